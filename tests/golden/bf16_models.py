#!/usr/bin/env python3
"""What storing matrices in bf16 does to the golden values of models/: tests/tools/golden.c has its bf16 tolerances from here.

check_models.py's model again, in float64, with what the GPU keeps in bf16 rounded to bf16 whenever it is stored:
weights and biases as products read them, what products, norms and activations hand on, and the gradients of all of these. Sums,
statistics, logits, losses, the trained weights themselves and the optimizer's moments stay exact. One rounding is one
sample of the noise, so this is done on eight grids (values are scaled by 1 to 1.875 to be rounded) and the root mean
square is taken. Prints one line a fixture, the largest deviation of each kind of tensor relative to its norm, and
writes bf16.json into the fixture's folder: the 2-norm of each tensor's deviation.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from check_models import Model, train, worse
from safetensors.numpy import load_file


SCALES = [1 + i / 8 for i in range(8)]


class Stored(torch.autograd.Function):
    """The value and its gradient as bf16 keeps them."""

    scale = 1.0

    @staticmethod
    def round(x):
        return (x * Stored.scale).to(torch.bfloat16).double() / Stored.scale

    @staticmethod
    def forward(ctx, x):
        return Stored.round(x)

    @staticmethod
    def backward(ctx, g):
        return Stored.round(g)


class Weight(Stored):
    """A weight as the product reads it; its gradient is a float32 sum."""

    @staticmethod
    def backward(ctx, g):
        return g


def stored(x):
    return Stored.apply(x)


class Rounded(Model):
    def linear(self, name: str, x):
        parts = ["weight", "lora_A.weight", "lora_B.weight"] + ["bias"] * (name != "classifier")
        exact, read = self.p, (f"{name}.{part}" for part in parts)
        self.p = exact | {n: Weight.apply(exact[n]) for n in read if n in exact}
        y = super().linear(name, stored(x))
        self.p = exact
        return y if name == "classifier" else stored(y)

    def layer_norm(self, name: str, x):
        return stored(super().layer_norm(name, stored(x)))

    def loss(self):
        exact, table = self.p, "bert.embeddings.word_embeddings.weight"
        self.p = exact | {table: Weight.apply(exact[table])}
        result = super().loss()
        self.p = exact
        return result


def deviations(folder: Path, want: dict) -> dict:
    """The 2-norm of each tensor's deviation, as root mean square over the grids."""
    squares = dict.fromkeys(want, 0.0)
    for Stored.scale in SCALES:
        got = train(Rounded(folder))
        for name, values in want.items():
            squares[name] += float(((got[name].numpy() - values) ** 2).sum()) / len(SCALES)
    return {name: math.sqrt(square) for name, square in squares.items()}


def largest(want: dict, deviation: dict) -> dict:
    """By kind of tensor: the largest deviation, relative to the tensor but for the key's bias."""
    worst = {}
    for name, value in deviation.items():
        kind, size = name.split(".")[0], np.linalg.norm(want[name].astype(np.float64))
        if name.endswith("self.key.bias"):
            kind, size = f"key bias {kind}", 1.0
        worst[kind] = worse(worst.get(kind, 0.0), value / size)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent / "models")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for file in sorted(arguments.models.glob(f"{arguments.only}/expected.safetensors")):
        want = load_file(file)
        deviation = deviations(file.parent, want)
        text = json.dumps({name: float(f"{value:.2e}") for name, value in deviation.items()}, indent=0)
        (file.parent / "bf16.json").write_text(text + "\n")
        print(f"{file.parent.name:24}", *(f"{k} {v:.1e}" for k, v in largest(want, deviation).items()), flush=True)


if __name__ == "__main__":
    main()
