#!/usr/bin/env python3
"""Check the golden values of models/ against a second computation, independent of the first.

The model is written out here from the formulas, in float64, on packed sequences, one at a time,
with no transformers, peft, adapters or torch.optim; it reads only the fixtures' files. It must give
the stored logits, loss, gradients, ten losses and final parameters; and a few elements of every
gradient are compared with a four-point difference quotient of the loss. Prints one line a fixture
with the largest deviations, relative to the size of the tensor, and exits with 1 when one is too
large.
"""

import argparse
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

# Values are stored as float32, which is off by at most 6e-8 of an element.
STORED = 1e-7
# The quotient itself errs by less; a step of 1e-5 rarely carries a rectifier over its kink.
QUOTIENT = 5e-7
# Exact arithmetic gives key biases no gradient, float64 gives them this much.
KEY_BIAS = 1e-12


def parameter_name(name: str) -> str:
    """The canonical name of a tensor in a peft or AdapterHub file."""
    return re.sub(r"^base_model\.(model\.)?", "", name).replace(".adapters.peftc.", ".")


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Model:
    """One fixture's tensors and the loss as a function of them."""

    def __init__(self, folder: Path):
        self.meta = json.loads((folder / "meta.json").read_text())
        base = (folder / self.meta["base"]).resolve()
        self.config = json.loads((base / "config.json").read_text())
        tensors = load_file(base / "model.safetensors")
        tensors.pop("embeddings.position_ids", None)
        tensors = {k if k.startswith("bert.") else f"bert.{k}": v for k, v in tensors.items()}
        if self.meta["program"].startswith("models/qlora"):
            embedding = "embedding" in self.meta["program"]
            for name, value in load_file(base / "nf4.safetensors").items():
                if name.endswith(".dequantised") and (embedding or "embeddings" not in name):
                    tensors[name.removesuffix(".dequantised")] = value
        self.added = {
            parameter_name(k): v for k, v in load_file(folder / "init.safetensors").items()
        }
        self.p = {k: torch.from_numpy(v).double() for k, v in (tensors | self.added).items()}
        batch = {
            k: torch.from_numpy(v).long()
            for k, v in load_file(folder / "batch.safetensors").items()
        }
        self.batch = batch
        self.check_settings()
        self.kind = Path(self.meta["program"]).stem
        self.norms = {}

    def check_settings(self) -> None:
        """The sizes that meta.json states are those of the tensors."""
        inner = {"lora_A.weight": "rank", "lambda_d": "rank", "adapter_down.0.weight": "bottleneck"}
        inner["classifier.weight"] = "classes"
        for name, value in self.added.items():
            for suffix, setting in inner.items():
                if name.endswith(suffix) and value.shape[0] != self.meta["settings"][setting]:
                    raise SystemExit(f"{name} has shape {value.shape}, {setting} says otherwise")

    def trainable(self) -> list[str]:
        if self.kind == "full_ft":
            return list(self.p)
        if self.kind == "mlm":
            return [n for n in self.p if "pooler" not in n]
        if self.kind == "bitfit":
            return [n for n in self.p if n.endswith("bias") or n.startswith("classifier")]
        return [n for n in self.added if not n.startswith("vera_")]

    def linear(self, name: str, x):
        p, settings = self.p, self.meta["settings"]
        scaled = p.get(f"{name}.ia3_l")
        if scaled is not None and scaled.shape[0] == 1:  # a feed-forward layer: the input is scaled
            x = x * scaled
        y = x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        if scaled is not None and scaled.shape[0] != 1:
            y = y * scaled[:, 0]
        if f"{name}.vera_lambda_b" in p:
            y = y + p[f"{name}.vera_lambda_b"] * (
                (p[f"{name}.vera_lambda_d"] * (x @ p["vera_A"].T)) @ p["vera_B"].T
            )
        if f"{name}.lora_A.weight" in p:
            root = math.sqrt(settings["rank"]) if self.kind == "rslora" else settings["rank"]
            delta = (
                settings["alpha"] / root * p[f"{name}.lora_B.weight"] @ p[f"{name}.lora_A.weight"]
            )
            magnitude = p.get(f"{name}.lora_magnitude_vector")
            if magnitude is None:
                return y + x @ delta.T
            weight = p[f"{name}.weight"] + delta
            norm = self.norms.get(name, weight.detach().norm(dim=1))
            y = x @ (magnitude[:, None] / norm[:, None] * weight).T + p[f"{name}.bias"]
        return y

    def layer_norm(self, name: str, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config["layer_norm_eps"])
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def bottleneck(self, name: str, x):
        down = self.linear(f"{name}.adapter_down.0", x)
        return self.linear(
            f"{name}.adapter_up",
            down * torch.sigmoid(down) if self.kind == "adapters" else down.relu(),
        )

    def sublayer_output(self, name: str, x, residual):
        h, norm = self.linear(f"{name}.dense", x), f"{name}.LayerNorm"
        if f"{name}.adapter_up.weight" not in self.p:
            return self.layer_norm(norm, h + residual)
        if self.kind == "adapters":
            return self.layer_norm(norm, h + self.bottleneck(name, h) + residual)
        if self.kind == "parallel":
            return self.layer_norm(norm, h + 4 * self.bottleneck(name, residual) + residual)
        first = self.layer_norm(norm, h + residual)
        return self.layer_norm(norm, self.bottleneck(name, first) + h + residual)

    def layer(self, name: str, x):
        """One encoder layer on one sequence, x [L, hidden]."""
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self.linear(f"{name}.attention.self.{part}", x)
            .unflatten(1, (heads, -1))
            .transpose(0, 1)
            for part in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=2)
        attended = (weights @ v).transpose(0, 1).flatten(1)
        a = self.sublayer_output(f"{name}.attention.output", attended, x)
        return self.sublayer_output(
            f"{name}.output", gelu(self.linear(f"{name}.intermediate.dense", a)), a
        )

    def encode(self, ids):
        e = "bert.embeddings"
        x = self.p[f"{e}.word_embeddings.weight"][ids]
        x = (
            x
            + self.p[f"{e}.position_embeddings.weight"][: len(ids)]
            + self.p[f"{e}.token_type_embeddings.weight"][0]
        )
        x = self.layer_norm(f"{e}.LayerNorm", x)
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(f"bert.encoder.layer.{i}", x)
        return x

    def loss(self):
        """Logits and mean cross entropy of the batch."""
        bounds = self.batch["offsets"].tolist()
        hidden = [self.encode(self.batch["tokens"][a:b]) for a, b in itertools.pairwise(bounds)]
        if self.kind == "mlm":
            h = torch.cat(hidden)[self.batch["masked_positions"]]
            head = "cls.predictions"
            h = self.layer_norm(
                f"{head}.transform.LayerNorm", gelu(self.linear(f"{head}.transform.dense", h))
            )
            logits = h @ self.p["bert.embeddings.word_embeddings.weight"].T + self.p[f"{head}.bias"]
            labels = self.batch["masked_ids"]
        else:
            pooled = torch.tanh(
                self.linear("bert.pooler.dense", torch.stack([h[0] for h in hidden]))
            )
            logits, labels = self.linear("classifier", pooled), self.batch["labels"]
        picked = logits[torch.arange(len(labels)), labels]
        return logits, (torch.logsumexp(logits, dim=1) - picked).mean()

    def freeze_norms(self):
        """DoRA takes the norm as a constant: so must a difference quotient."""
        for name in [
            n.removesuffix(".lora_A.weight") for n in self.p if n.endswith("lora_A.weight")
        ]:
            settings = self.meta["settings"]
            delta = self.p[f"{name}.lora_B.weight"] @ self.p[f"{name}.lora_A.weight"]
            weight = self.p[f"{name}.weight"] + settings["alpha"] / settings["rank"] * delta
            self.norms[name] = weight.detach().norm(dim=1)


def worse(known: float, error: float) -> float:
    """The larger of two errors; an error that is not a number is the largest."""
    return max(known, error) if math.isfinite(error) else math.inf


def train(model: Model) -> dict:
    """What replay writes: clipped AdamW with linear warm-up and decay, from the formulas."""
    fit, names = model.meta["fit"], model.trainable()
    moments = {n: (torch.zeros_like(model.p[n]), torch.zeros_like(model.p[n])) for n in names}
    out, losses = {}, []
    for step in range(fit["total_steps"]):
        for name in names:
            model.p[name] = model.p[name].detach().requires_grad_()
        logits, loss = model.loss()
        found = torch.autograd.grad(loss, [model.p[n] for n in names])
        gradients = dict(zip(names, found, strict=True))
        losses.append(loss.item())
        if step == 0:
            out = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
            out |= {f"grad.{n}": g for n, g in gradients.items()}
        norm = math.sqrt(sum((g * g).sum().item() for g in gradients.values()))
        clip = min(1.0, fit["clip"] / (norm + 1e-6))
        warm, total = fit["warmup_steps"], fit["total_steps"]
        rate = fit["lr"] * (step / warm if step < warm else (total - step) / (total - warm))
        for name in names:
            m, v = moments[name]
            g = gradients[name] * clip
            m.mul_(fit["beta1"]).add_(g, alpha=1 - fit["beta1"])
            v.mul_(fit["beta2"]).add_(g * g, alpha=1 - fit["beta2"])
            decay = 0 if "bias" in name or "LayerNorm" in name else fit["weight_decay"]
            scaled = (
                m
                / (1 - fit["beta1"] ** (step + 1))
                / (torch.sqrt(v / (1 - fit["beta2"] ** (step + 1))) + fit["eps"])
            )
            model.p[name] = model.p[name].detach() * (1 - rate * decay) - rate * scaled
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    return out | {f"param.{n}": model.p[n] for n in names}


def quotients(model: Model, expected: dict, each: int) -> float:
    """Largest deviation of stored gradients from quotients, over the tensor's largest one."""
    worst, step = 0.0, 1e-5
    rng = np.random.RandomState(7)
    model.freeze_norms()
    for name in model.trainable():
        gradient = expected[f"grad.{name}"].astype(np.float64).reshape(-1)
        size = max(np.abs(gradient).max(), 1e-3)
        values = model.p[name].reshape(-1)  # a view: the model sees the change
        known = np.flatnonzero(gradient) if np.any(gradient) else np.arange(gradient.size)
        for i in rng.choice(known, min(each, known.size), replace=False):
            start, loss = values[i].item(), {}
            for k in (-2, -1, 1, 2):
                values[i] = start + k * step
                with torch.no_grad():
                    loss[k] = model.loss()[1].item()
            values[i] = start
            quotient = (8 * (loss[1] - loss[-1]) - (loss[2] - loss[-2])) / (12 * step)
            worst = worse(worst, abs(quotient - gradient[i]) / size)
    return worst


def check(folder: Path, each: int) -> bool:
    expected = load_file(folder / "expected.safetensors")
    got = train(Model(folder))
    if got.keys() != expected.keys():
        print(f"{folder.name}: tensor names differ: {sorted(got.keys() ^ expected.keys())}")
        return False
    worst, quotient = {}, quotients(Model(folder), expected, each)
    for name, want in expected.items():
        if want.shape != tuple(got[name].shape):
            print(
                f"{folder.name}: {name} has shape {want.shape}, expected {tuple(got[name].shape)}"
            )
            return False
        size = np.linalg.norm(want)
        error = np.linalg.norm(got[name].numpy() - want) / (size if size > 0 else 1.0)
        kind = name.split(".")[0]
        if name.startswith("grad.") and name.endswith("self.key.bias"):
            kind, error = "key bias", error * size
        worst[kind] = worse(worst.get(kind, 0.0), error)
    print(
        f"{folder.name:24}",
        *(f"{k} {v:.1e}" for k, v in worst.items()),
        f"quotient {quotient:.1e}",
        flush=True,
    )
    bounds = {kind: KEY_BIAS if kind == "key bias" else STORED for kind in worst}
    return all(worst[k] <= bounds[k] for k in worst) and quotient <= QUOTIENT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parent / "models")
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument(
        "--each",
        type=int,
        default=2,
        help="elements of each gradient tried with difference quotients",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = sorted(
        p.parent for p in arguments.models.glob(f"{arguments.only}/expected.safetensors")
    )
    failed = [f.name for f in folders if not check(f, arguments.each)]
    print(f"{len(folders) - len(failed)} passed, {len(failed)} failed", *failed)
    sys.exit(bool(failed or not folders))


if __name__ == "__main__":
    main()
