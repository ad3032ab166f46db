#!/usr/bin/env python3
"""One training step of transformers + peft on a GPU, timed: the peer of `make bench-gpu`.

    torch_gpu.py --variant lora_r16 --batches lengths.json --mode eager|compile|graph

bf16 autocast, SDPA, fused AdamW, clip to norm 1, dropout on, inputs on the GPU before the clock starts. Each batch is
padded to its longest sequence; "compile" is torch.compile(mode="reduce-overhead") and pads to multiples of --pad
instead, since it compiles and records each length again. "graph" is the whole step captured by hand, once per padded
length, and replayed: the strongest form that PyTorch has, which nobody gets without writing it. qlora_r16 keeps the
encoder's and the pooler's weights in NF4 with double quantisation by bitsandbytes; exit code 77 where that cannot be
imported. The batches file comes from torch_step.py --write-batches.

Prints one line of JSON: milliseconds a step over all batches (one clock around them, waiting at the end) after a pass
of warm-up over the same batches; seconds from --started (seconds since 1970; default: this script's start) to the end
of the first step and to the end of warm-up; the allocator's peak.
"""

import argparse
import json
import statistics
import sys
import time

BORN = time.time()

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402
from torch_peer import add_lora, apply_variant, pad  # noqa: E402
from torch_step import SHAPES  # noqa: E402

MISSING = 77


class Step:
    """The optimizer step on one padded batch; gradients are made anew, which saves clearing and adding them."""

    def __init__(self, model, mode: str):
        graph = mode == "graph"
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        lr = torch.tensor(1e-5, device="cuda") if graph else 1e-5
        self.optimizer = torch.optim.AdamW(self.trainable, lr=lr, weight_decay=0.0, fused=True, capturable=graph)
        self.compiled = mode == "compile"
        self.model = torch.compile(model, mode="reduce-overhead") if self.compiled else model

    def __call__(self, batch: dict):
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        return loss


def store_in_nf4(model) -> None:
    """What bitsandbytes does with a model that is loaded in 4 bits, the classifier left out."""
    try:
        import bitsandbytes as bnb
    except ImportError as why:
        print(f"bitsandbytes cannot be imported: {why}", file=sys.stderr)
        sys.exit(MISSING)
    for module in list(model.bert.modules()):
        for name, linear in list(module.named_children()):
            if not isinstance(linear, nn.Linear):
                continue
            stored = bnb.nn.Linear4bit(linear.in_features, linear.out_features, compute_dtype=torch.bfloat16,
                                       compress_statistics=True, quant_type="nf4")
            stored.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True,
                                              quant_type="nf4")
            stored.bias = linear.bias
            setattr(module, name, stored)


def make_model(a):
    config = transformers.BertConfig(**SHAPES[a.shape], attn_implementation="sdpa")
    model = transformers.BertForSequenceClassification(config)
    if a.variant == "qlora_r16":
        store_in_nf4(model)
        model = add_lora(model, 16, 0.0)
    else:
        model = apply_variant(model, a.variant)
    return model.cuda().train()


def make_inputs(batches: list[list[int]], multiple: int) -> list[dict]:
    inputs = []
    for lengths in batches:
        batch = pad([torch.randint(1000, 30000, (n,)).tolist() for n in lengths])
        more = -batch["input_ids"].shape[1] % multiple
        batch = {name: nn.functional.pad(value, (0, more)) for name, value in batch.items()}
        batch["labels"] = torch.randint(0, 2, (len(lengths),))
        inputs.append({name: value.cuda() for name, value in batch.items()})
    return inputs


def capture(step: Step, inputs: list[dict]):
    """A runner that copies a batch into its length's tensors and replays that length's graph."""
    graphs, pool, side = {}, None, torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in inputs[:3]:
            step(batch)
    torch.cuda.current_stream().wait_stream(side)
    for batch in inputs:
        key = tuple(batch["input_ids"].shape)
        if key in graphs:
            continue
        static = {name: value.clone() for name, value in batch.items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            loss = step(static)
        pool = pool or graph.pool()
        graphs[key] = graph, static, loss

    def run(batch: dict):
        graph, static, loss = graphs[tuple(batch["input_ids"].shape)]
        for name, value in batch.items():
            static[name].copy_(value, non_blocking=True)
        graph.replay()
        return loss

    return run


def measure(a) -> dict:
    torch.manual_seed(42)
    batches = json.load(open(a.batches))[: a.steps]
    model = make_model(a)
    inputs = make_inputs(batches, a.pad if a.mode == "compile" else 1)
    step = Step(model, a.mode)
    step(inputs[0])
    torch.cuda.synchronize()
    first = time.time() - a.started
    run = capture(step, inputs) if a.mode == "graph" else step
    for batch in inputs:
        run(batch)
    torch.cuda.synchronize()
    ready = time.time() - a.started
    times = []
    for _ in range(a.rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in inputs:
            run(batch)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3 / len(inputs))
    return {
        "variant": a.variant, "shape": a.shape, "mode": a.mode, "steps": a.rounds * len(inputs),
        "ms_per_step": round(statistics.median(times), 3),
        "ms_rounds": [round(t, 3) for t in times],
        "first_step_s": round(first, 2), "ready_s": round(ready, 2),
        "tokens_per_step": round(sum(map(sum, batches)) / len(batches), 1),
        "padded_tokens_per_step": round(sum(i["input_ids"].numel() for i in inputs) / len(inputs), 1),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=("full_ft", "lora_r8", "lora_r16", "qlora_r16", "adapters"), required=True)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--mode", choices=("eager", "compile", "graph"), default="eager")
    parser.add_argument("--batches", metavar="FILE", required=True)
    parser.add_argument("--steps", type=int, default=200, help="batches of the file that are used")
    parser.add_argument("--rounds", type=int, default=2, help="timed passes over them")
    parser.add_argument("--pad", type=int, default=64, metavar="N", help="compile: lengths are multiples of N")
    parser.add_argument("--started", type=float, default=BORN, metavar="SECONDS")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
