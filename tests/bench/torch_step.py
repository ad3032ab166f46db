#!/usr/bin/env python3
"""One training step of transformers + peft on a CPU, in float32, timed: the peer of `make bench`.

    torch_step.py --data DIR --base DIR --write-batches lengths.json
    torch_step.py --variant lora_r16 --shape bert-base --batches lengths.json

The first makes the batches of SST-2's first epoch. A batches file is JSON, a list of batches, each
the list of its sequences' token counts, so that both sides time the same work. The weights are
random, a step's time does not depend on them. A step is zero_grad, forward, backward, clip to norm
1, fused AdamW; inputs are padded before the clock starts. Prints one line of JSON; times are wall
clock of single steps after the warm-up.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

SHAPES = {
    "bert-base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
BATCH = 32


def resident_mb() -> float:
    """Largest resident set so far, in units of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write_batches(arguments) -> None:
    from torch_peer import epoch_batches, read_tsv, tokenise

    rows = [row for i, row in enumerate(read_tsv(f"{arguments.data}/train.tsv")) if i % 64 != 63]
    lengths = [len(ids) for ids in tokenise(arguments.base, [text for text, _ in rows], 512)]
    batches = epoch_batches(len(lengths), BATCH, 42, 0)[: arguments.warmup + arguments.steps]
    with open(arguments.write_batches, "w") as file:
        json.dump([[lengths[i] for i in batch] for batch in batches], file)


def make_inputs(batches: list[list[int]]) -> list[dict]:
    """Padded random ids of the given lengths, with labels."""
    import torch

    from torch_peer import pad

    inputs = []
    for lengths in batches:
        ids = [torch.randint(1000, 30000, (n,)).tolist() for n in lengths]
        inputs.append(pad(ids) | {"labels": torch.randint(0, 2, (len(lengths),))})
    return inputs


def time_steps(model, inputs: list[dict], warmup: int, steps: int) -> list[float]:
    """Milliseconds of each timed step."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, weight_decay=0.0, fused=True)
    times = []
    for step in range(warmup + steps):
        batch = inputs[step % len(inputs)]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e3)
    return times[warmup:]


def measure(arguments) -> dict:
    import torch
    import transformers

    from torch_peer import apply_variant

    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(42)
    with open(arguments.batches) as file:
        batches = json.load(file)
    imported = resident_mb()
    config = transformers.BertConfig(**SHAPES[arguments.shape], attn_implementation="sdpa")
    model = apply_variant(transformers.BertForSequenceClassification(config), arguments.variant)
    model.train()
    inputs = make_inputs(batches)
    times = time_steps(model, inputs, arguments.warmup, arguments.steps)
    timed = [batches[(arguments.warmup + i) % len(batches)] for i in range(arguments.steps)]
    return {
        "variant": arguments.variant,
        "shape": arguments.shape,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "ms_per_step": {
            "median": round(statistics.median(times), 2),
            "min": round(min(times), 2),
            "max": round(max(times), 2),
        },
        "tokens_per_step": sum(map(sum, timed)) / len(timed),
        "padded_tokens_per_step": sum(len(b) * max(b) for b in timed) / len(timed),
        "peak_rss_mb": round(resident_mb(), 1),
        "imported_rss_mb": round(imported, 1),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=("full_ft", "lora_r8", "lora_r16", "adapters"))
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--batches", metavar="FILE", help="token counts of each batch, JSON")
    parser.add_argument("--write-batches", metavar="FILE", help="make that file and stop")
    parser.add_argument("--data", metavar="DIR", help="SST-2: holds train.tsv")
    parser.add_argument("--base", metavar="DIR", help="holds vocab.txt")
    arguments = parser.parse_args()
    # OpenMP and MKL read these when torch is loaded, hence the late imports.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(arguments.threads)
    if arguments.write_batches:
        if not (arguments.data and arguments.base):
            parser.error("--write-batches needs --data and --base")
        write_batches(arguments)
    elif not (arguments.variant and arguments.batches):
        parser.error("give --variant and --batches, or --write-batches")
    else:
        json.dump(measure(arguments), sys.stdout)
        print()


if __name__ == "__main__":
    main()
