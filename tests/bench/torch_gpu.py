#!/usr/bin/env python3
"""One training step of transformers + peft on a GPU, timed: the peer of `make bench-gpu`.

    torch_gpu.py --variant lora_r16 --batches lengths.json --mode eager|graph

bf16 autocast, SDPA, fused AdamW, clip to norm 1, each batch padded to its longest sequence, inputs on
the GPU before the clock starts. "graph" is the whole step captured by hand, once per padded length,
and replayed: the strongest form that PyTorch has, which nobody gets without writing it. The batches
file comes from torch_step.py --write-batches. Prints one line of JSON: milliseconds a step over all
batches (one clock around them, waiting at the end), after one pass of warm-up over the same batches.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from torch_peer import apply_variant, pad

SHAPES = {
    "bert-base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}


class Step:
    """The optimizer step on one padded batch, in tensors of a fixed place."""

    def __init__(self, model, capturable: bool):
        self.model = model
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        lr = torch.tensor(1e-5, device="cuda") if capturable else 1e-5
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=lr, weight_decay=0.0, fused=True, capturable=capturable
        )

    def __call__(self, batch: dict):
        self.optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cuda", torch.bfloat16):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        return loss


def make_inputs(batches: list[list[int]]) -> list[dict]:
    inputs = []
    for lengths in batches:
        ids = [torch.randint(1000, 30000, (n,)).tolist() for n in lengths]
        batch = pad(ids) | {"labels": torch.randint(0, 2, (len(lengths),))}
        inputs.append({name: value.cuda() for name, value in batch.items()})
    return inputs


def capture(step: Step, inputs: list[dict]):
    """A runner that copies a batch into its length's tensors and replays that length's graph."""
    graphs, pool = {}, None
    side = torch.cuda.Stream()
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
    batches = json.load(open(a.batches))
    config = transformers.BertConfig(**SHAPES[a.shape], attn_implementation="sdpa")
    model = apply_variant(transformers.BertForSequenceClassification(config), a.variant)
    model.cuda().train()
    inputs = make_inputs(batches)
    step = Step(model, a.mode == "graph")
    start = time.perf_counter()
    run = capture(step, inputs) if a.mode == "graph" else step
    for batch in inputs:
        run(batch)
    torch.cuda.synchronize()
    warm = time.perf_counter() - start
    times = []
    for _ in range(a.rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in inputs:
            run(batch)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3 / len(inputs))
    return {
        "variant": a.variant, "shape": a.shape, "mode": a.mode, "steps": len(inputs),
        "ms_per_step": round(statistics.median(times), 3),
        "ms_rounds": [round(t, 3) for t in times],
        "warm_up_s": round(warm, 2),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1),
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=("full_ft", "lora_r8", "lora_r16", "adapters"), required=True)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--mode", choices=("eager", "graph"), default="eager")
    parser.add_argument("--batches", metavar="FILE", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
