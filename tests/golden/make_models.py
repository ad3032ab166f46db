#!/usr/bin/env python3
"""Golden logits, losses, gradients and AdamW steps for small BERTs.

They come from transformers, peft and AdapterHub:

    make_models.py peft         everything but the bottleneck adapters (requirements.txt)
    make_models.py adapters     the bottleneck adapters                (requirements-adapters.txt)

The two stacks want different versions of transformers, hence two runs in two environments; each
also writes its part of counts.json. Every tensor comes from a generator seeded by its own name, so
the two runs agree on the base weights and a rerun gives the same initial values. Initial values are
float32, the computation is float64 and its results are rounded to float32: they are the truth to
test against, and meta.json says how far torch's own float32 is from it. README.md describes the
files.
"""

import argparse
import copy
import fnmatch
import json
import re
import tempfile
import zlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, Trainer

import nf4

HERE = Path(__file__).resolve().parent
FIT = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "clip": 1.0,
    "warmup_steps": 3,
    "total_steps": 10,
}
# Values this close to a border between two codes are refused, since two right implementations could
# differ: a weight by dividing instead of multiplying by the reciprocal (an ulp), a block maximum by
# summing the mean in another order (about 1e-6 after scaling).
NF4_MARGIN = 3e-7
NF4_NESTED_MARGIN = 4e-6
ADAPTER = "peftc"  # the adapter's name inside AdapterHub's files


# ---- shapes and base weights ---------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A small BERT, its batch, and the number of classes of its tasks."""

    seed: int
    vocab: int
    hidden: int
    heads: int
    ffn: int
    layers: int
    positions: int
    eps: float
    prefix: str  # of the names in model.safetensors: "bert." after pre-training, none in an encoder
    classes: int
    lengths: tuple
    masked: int  # masked positions of the language-model batch

    def config(self) -> dict:
        """The base's config.json, as bases come: no classes are named and dropout is not 0."""
        return {
            "architectures": ["BertForPreTraining" if self.prefix else "BertModel"],
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "layer_norm_eps": self.eps,
            "max_position_embeddings": self.positions,
            "model_type": "bert",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": self.vocab,
        }


SHAPES = {
    # Nothing is a multiple of a vector; lengths from 1 to all positions.
    "odd30": Shape(2, 101, 30, 5, 52, 3, 40, 1e-12, "bert.", 3, (7, 2, 23, 1, 17, 5, 40), 13),
    # Everything odd: head size 11, 4-bit matrices of odd size; another epsilon, bare names.
    "odd33": Shape(4, 67, 33, 3, 47, 2, 50, 1e-5, "", 2, (1, 19, 3, 2, 33, 12), 9),
    # More than 256 scales in a 4-bit tensor; with 272 columns blocks of 64 cross rows.
    "even64": Shape(3, 311, 64, 2, 272, 2, 70, 1e-12, "bert.", 2,
                    (5, 16, 2, 64, 17, 1, 9, 32, 3, 70, 8, 15, 4, 31, 6, 2, 18, 12, 11), 0),
}  # fmt: skip

CLS, SEP, MASK, FIRST_WORD = 2, 3, 4, 5


def vocabulary(size: int) -> list[str]:
    """A vocabulary that can spell any lower-case word, padded with unused entries."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *("##" + c for c in letters),
        *"0123456789",
    ]
    return (words + [f"[unused{i}]" for i in range(size)])[:size]


def draw(seed: int, name: str, shape: tuple) -> np.ndarray:
    """float32 values as large as in a trained model or larger: every gradient must show."""
    rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
    normal = rng.standard_normal(shape)
    if name.endswith("LayerNorm.weight"):
        values = 1 + 0.4 * np.tanh(normal)
    elif name.endswith("embeddings.weight"):
        values = 0.7 * normal
    elif name.endswith("ia3_l"):
        values = 1 + 0.2 * normal
    elif "vera_lambda" in name:
        values = 0.5 + 0.3 * normal
    elif name.endswith("bias"):
        values = 0.2 * normal
    else:
        values = 1.1 / np.sqrt(shape[-1]) * normal
    return values.astype(np.float32)


def base_tensors(shape: Shape) -> dict:
    """The encoder, embeddings and pooler under their names in BertForSequenceClassification."""
    model = BertForSequenceClassification(BertConfig(**shape.config()))
    return {
        name: draw(shape.seed, name, tuple(p.shape))
        for name, p in model.named_parameters()
        if name.startswith("bert.")
    }


def quantisable(name: str) -> bool:
    """What a 4-bit base stores as NF4: linear weights and, on demand, the word embedding."""
    return (
        name.endswith("weight")
        and "LayerNorm" not in name
        and not re.search("position|token_type", name)
    )


def save(path: Path, tensors: dict) -> None:
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"format": "pt"}
    )
    path.chmod(0o644)  # the library makes files that only the owner can read


def write_base(folder: Path, shape: Shape) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {shape.prefix + k.removeprefix("bert."): v for k, v in base_tensors(shape).items()}
    if not shape.prefix:  # old encoder checkpoints also hold this buffer
        tensors["embeddings.position_ids"] = np.arange(shape.positions)[None, :]
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(shape.vocab)) + "\n")


def write_nf4(folder: Path, shape: Shape) -> None:
    """Codes, scales and dequantised values of every tensor that may be stored as NF4."""
    tensors = {}
    for name, weight in base_tensors(shape).items():
        if quantisable(name):
            q = nf4.quantise(weight)
            check_nf4(name, weight, q)
            tensors |= {
                f"{name}.codes": q.packed(),
                f"{name}.absmax": q.absmax,
                f"{name}.nested_absmax": q.nested_absmax,
                f"{name}.nested_offset": q.nested_offset.reshape(1),
                f"{name}.dequantised": q.dequantised(),
            }
    save(folder / "nf4.safetensors", tensors)


def check_nf4(name: str, weight: np.ndarray, q: nf4.Nf4) -> None:
    """Hold nf4.py against bitsandbytes; refuse values on which right implementations may differ."""
    import bitsandbytes.functional as bnb

    if not (q.margin > NF4_MARGIN and q.nested_margin > NF4_NESTED_MARGIN):
        raise SystemExit(
            f"{name}: {q.margin:.1e}, {q.nested_margin:.1e} from a border; change the shape's seed"
        )
    # Two faults of bitsandbytes on a CPU are kept out: its dequantiser is wrong for some row
    # lengths, so the rows it sees are whole blocks; its 8-bit quantiser takes the neighbouring code
    # now and then, which neither its CUDA kernel nor its plain torch operator does, so a neighbour
    # passes and our codes are dequantised.
    rows = weight.reshape(-1, nf4.BLOCK) if weight.size % nf4.BLOCK == 0 else weight
    packed, state = bnb.quantize_4bit(
        torch.from_numpy(rows), blocksize=nf4.BLOCK, compress_statistics=True, quant_type="nf4"
    )
    neighbour = np.abs(state.absmax.numpy().astype(int) - q.absmax) <= 1
    if not (np.array_equal(packed.numpy().ravel(), q.packed()) and neighbour.all()):
        raise SystemExit(f"{name}: nf4.py and bitsandbytes choose different codes")
    state.absmax = torch.from_numpy(q.absmax)
    values = bnb.dequantize_4bit(packed, state).numpy().reshape(weight.shape)
    if not np.abs(values - q.dequantised()).max() <= 1e-6 * np.abs(weight).max():
        raise SystemExit(f"{name}: nf4.py and bitsandbytes dequantise differently")


def batch_tensors(shape: Shape, mlm: bool) -> dict:
    """One packed batch: [CLS] words [SEP]; never id 0, whose embedding torch does not train."""
    rng = np.random.RandomState(1000 + shape.seed)
    sequences = []
    for length in shape.lengths:
        ids = rng.randint(FIRST_WORD, shape.vocab, length)
        ids[0], ids[1:][-1:] = CLS, SEP
        sequences.append(ids)
    tokens = np.concatenate(sequences).astype(np.int32)
    batch = {
        "tokens": tokens,
        "offsets": np.cumsum([0, *shape.lengths]).astype(np.int32),
        "labels": rng.randint(0, shape.classes, len(shape.lengths)).astype(np.int32),
    }
    if mlm:
        positions = np.sort(rng.choice(tokens.size, shape.masked, replace=False)).astype(np.int32)
        batch["masked_positions"] = positions
        batch["masked_ids"] = rng.randint(FIRST_WORD, shape.vocab, shape.masked).astype(np.int32)
        tokens[positions] = MASK
    return batch


# ---- variants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A way to train the base: peftc's program, its parameters, and how the library builds it."""

    program: str
    build: object  # (model, variant) -> model with requires_grad set
    settings: dict = field(default_factory=dict)  # of the program
    options: dict = field(default_factory=dict)  # of the library, where the program implies them
    stack: str = "peft"
    nf4: object = None  # name -> is the tensor stored as NF4
    mlm: bool = False
    shapes: tuple = ("odd30", "odd33", "even64")


def build_full(model, _):
    return model


def build_bitfit(model, _):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith("bias") or name.startswith("classifier")
    return model


def build_lora(model, variant):
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["query", "value"]} | variant.options
    rank, alpha = variant.settings["rank"], variant.settings["alpha"]
    return get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=alpha, **options)
    )


def build_ia3(model, _):
    from peft import IA3Config, get_peft_model

    return get_peft_model(model, IA3Config(task_type="SEQ_CLS"))


def build_vera(model, variant):
    from peft import VeraConfig, get_peft_model

    config = VeraConfig(
        task_type="SEQ_CLS", r=variant.settings["rank"], target_modules=["query", "value"]
    )
    return get_peft_model(model, config)


def build_bottleneck(model, variant):
    import adapters

    config = {
        "adapters": adapters.DoubleSeqBnConfig,
        "pfeiffer": adapters.SeqBnConfig,
        "parallel": adapters.ParBnConfig,
    }
    # AdapterHub computes hidden // factor; the half keeps rounding away from the wanted value.
    factor = model.config.hidden_size / (variant.settings["bottleneck"] + 0.5)
    adapters.init(model)
    model.add_adapter(ADAPTER, config=config[variant.program](reduction_factor=factor))
    model.train_adapter(ADAPTER)
    return model


def linears(name: str) -> bool:
    return quantisable(name) and "embeddings" not in name


SIX = {"target_modules": r".*encoder.*\.(query|key|value|dense)"}
SMALL = ("odd30", "odd33")
VARIANTS = {
    "full_ft": Variant("full_ft", build_full),
    "mlm": Variant("mlm", build_full, mlm=True, shapes=SMALL),
    "bitfit": Variant("bitfit", build_bitfit, shapes=SMALL),
    "lora": Variant("lora_r8", build_lora, {"rank": 3, "alpha": 7}),
    "lora_r16": Variant("lora_r16", build_lora, {"rank": 16, "alpha": 32}),
    "lora_all": Variant("lora_all", build_lora, {"rank": 5, "alpha": 8}, SIX),
    "rslora": Variant(
        "rslora", build_lora, {"rank": 3, "alpha": 7}, {"use_rslora": True}, shapes=SMALL
    ),
    "dora": Variant("dora", build_lora, {"rank": 3, "alpha": 7}, {"use_dora": True}),
    "ia3": Variant("ia3", build_ia3),
    "vera": Variant("vera", build_vera, {"rank": 11}),
    "qlora": Variant("qlora_r16", build_lora, {"rank": 3, "alpha": 7}, nf4=linears),
    "qlora_embedding": Variant(
        "qlora_embedding", build_lora, {"rank": 3, "alpha": 7}, nf4=quantisable
    ),
    "houlsby": Variant("adapters", build_bottleneck, {"bottleneck": 7}, stack="adapters"),
    "pfeiffer": Variant("pfeiffer", build_bottleneck, {"bottleneck": 7}, stack="adapters"),
    "parallel": Variant("parallel", build_bottleneck, {"bottleneck": 9}, stack="adapters"),
}


def canonical(name: str) -> str:
    """A parameter's name without the library's wrappers, prefixes and adapter name."""
    name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    name = (
        name.replace(".modules_to_save.default", "")
        .replace(f".adapters.{ADAPTER}", "")
        .replace(".default", "")
    )
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def library_file(model, variant: Variant) -> dict:
    """What the library itself saves for this model, less the base, under its own names."""
    if variant.stack == "adapters":
        with tempfile.TemporaryDirectory() as folder:
            model.save_adapter(folder, ADAPTER, with_head=True, use_safetensors=True)
            return load_file(f"{folder}/adapter.safetensors") | load_file(
                f"{folder}/model_head.safetensors"
            )
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        return {k: v.numpy().copy() for k, v in get_peft_model_state_dict(model).items()}
    return {
        n: p.detach().numpy().copy()
        for n, p in model.named_parameters()
        if not n.startswith("bert.")
    }


def build(shape: Shape, variant: Variant, base: dict):
    """The library's model on the base, every new parameter drawn, and the file of the latter."""
    config = BertConfig(**shape.config(), num_labels=shape.classes, attn_implementation="eager")
    model = (BertForMaskedLM if variant.mlm else BertForSequenceClassification)(config)
    missing, unexpected = model.load_state_dict(
        {k: torch.from_numpy(v) for k, v in base.items()}, strict=False
    )
    if unexpected and not variant.mlm or any(k.startswith("bert.") for k in missing):
        raise SystemExit(
            f"the base does not fit the model: missing {missing}, unexpected {unexpected}"
        )
    model = variant.build(model, variant)
    fresh = {
        n: p for n, p in model.named_parameters() if p.requires_grad and canonical(n) not in base
    }
    if variant.program == "vera":
        fresh |= {
            n: b
            for n, b in model.named_buffers()
            if re.fullmatch(r"base_model\.vera_[AB]\.default", n)
        }
    for name, tensor in fresh.items():
        if "lora_magnitude_vector" not in name:
            tensor.data.copy_(
                torch.from_numpy(draw(shape.seed, canonical(name), tuple(tensor.shape)))
            )
    for module in model.modules():
        if len(getattr(module, "lora_magnitude_vector", ())):
            set_magnitude(module, shape.seed)
    return model.eval(), library_file(model, variant)


def set_magnitude(module, seed: int) -> None:
    """DoRA's magnitudes start at the row norms of W + s B A; off them the (c - 1) term counts."""
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    weight = module.base_layer.weight + module.scaling["default"] * b @ a
    norm = weight.detach().double().norm(dim=1)
    wobble = torch.from_numpy(draw(seed, "wobble.bias", tuple(norm.shape)))
    module.lora_magnitude_vector["default"].weight.data.copy_(norm * (1 + wobble))


# ---- the computation -----------------------------------------------------------------------------


def forward(model, batch: dict, mlm: bool):
    """Logits and loss of the packed batch, padded to its longest sequence and masked."""
    offsets, tokens = batch["offsets"], batch["tokens"]
    lengths = np.diff(offsets)
    inputs = torch.zeros(len(lengths), lengths.max(), dtype=torch.long)
    mask = torch.arange(lengths.max())[None, :] < torch.from_numpy(lengths)[:, None]
    inputs[mask] = torch.from_numpy(tokens).long()
    logits = model(input_ids=inputs, attention_mask=mask.long()).logits
    if mlm:
        logits = logits[mask][torch.from_numpy(batch["masked_positions"]).long()]
    labels = batch["masked_ids"] if mlm else batch["labels"]
    return logits, F.cross_entropy(logits, torch.from_numpy(labels).long())


def reference(model, batch: dict, mlm: bool, dtype) -> tuple[dict, float]:
    """Everything `replay --steps 10` writes, and the norm of the first gradient."""
    model = copy.deepcopy(model).to(dtype)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decay = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {
            "params": [p for n, p in trainable.items() if n in decay],
            "weight_decay": FIT["weight_decay"],
        },
        {"params": [p for n, p in trainable.items() if n not in decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=FIT["lr"], betas=(FIT["beta1"], FIT["beta2"]), eps=FIT["eps"]
    )
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, FIT["warmup_steps"], FIT["total_steps"]
    )
    out, losses, norm = {}, [], None
    for step in range(FIT["total_steps"]):
        optimizer.zero_grad()
        logits, loss = forward(model, batch, mlm)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            out = {"logits": logits.detach().numpy().copy(), "loss": np.array([loss.item()])}
            out |= {f"grad.{canonical(n)}": p.grad.numpy().copy() for n, p in trainable.items()}
        total = torch.nn.utils.clip_grad_norm_(trainable.values(), FIT["clip"]).item()
        norm = total if norm is None else norm
        optimizer.step()
        schedule.step()
    out["losses"] = np.array(losses)
    return out | {f"param.{canonical(n)}": p.detach().numpy() for n, p in trainable.items()}, norm


def deviation(got: dict, want: dict) -> dict:
    """Largest |difference| / |wanted| (2-norms) of a kind of tensor; key biases stand apart."""
    worst = {}
    for name, value in want.items():
        kind = name.split(".")[0]
        difference = np.linalg.norm(got[name].astype(np.float64) - value)
        if name.endswith("self.key.bias"):
            kind, relative = f"{kind}.key_bias_absolute", difference
        else:
            relative = difference / np.linalg.norm(value) if difference else 0.0
        worst[kind] = max(worst.get(kind, 0.0), float(relative))
    return {k: float(f"{v:.1e}") for k, v in worst.items()}


def write_fixture(root: Path, shape_name: str, variant_name: str) -> None:
    shape, variant = SHAPES[shape_name], VARIANTS[variant_name]
    base = base_tensors(shape)
    if variant.nf4:
        base = {k: nf4.quantise(v).dequantised() if variant.nf4(k) else v for k, v in base.items()}
    model, init = build(shape, variant, base)
    batch = batch_tensors(shape, variant.mlm)
    expected, norm = reference(model, batch, variant.mlm, torch.float64)
    single, _ = reference(model, batch, variant.mlm, torch.float32)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packages = ["torch", "transformers", variant.stack] + ["bitsandbytes"] * bool(variant.nf4)
    meta = {
        "variant": variant_name,
        "program": f"models/{variant.program}.bert",
        "base": f"../{shape_name}",
        "settings": ({} if variant.mlm else {"classes": shape.classes}) | variant.settings,
        "fit": FIT,
        "trainable": trainable,
        "first_gradient_norm": norm,
        "torch_float32_deviation": deviation(single, expected),
        "versions": {package: version(package) for package in packages},
    }
    folder = root / f"{shape_name}_{variant_name}"
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "init.safetensors", init)
    save(folder / "batch.safetensors", batch)
    save(folder / "expected.safetensors", {k: v.astype(np.float32) for k, v in expected.items()})
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    first, last = expected["losses"][[0, -1]]
    print(
        f"{folder.name}: {trainable} trainable, loss {first:.4f} -> {last:.4f},"
        f" gradient {norm:.2f}, float32 off by {meta['torch_float32_deviation']}",
        flush=True,
    )


# ---- trainable counts of bert-base ---------------------------------------------------------------

BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
COUNTED = {
    "full_ft": VARIANTS["full_ft"],
    "mlm": VARIANTS["mlm"],
    "bitfit": VARIANTS["bitfit"],
    "lora_r8": Variant("lora_r8", build_lora, {"rank": 8, "alpha": 16}),
    "lora_r16": Variant("lora_r16", build_lora, {"rank": 16, "alpha": 32}),
    "qlora_r16": Variant("qlora_r16", build_lora, {"rank": 16, "alpha": 32}),
    "rslora_r8": Variant("rslora", build_lora, {"rank": 8, "alpha": 16}, {"use_rslora": True}),
    "dora_r8": Variant("dora", build_lora, {"rank": 8, "alpha": 16}, {"use_dora": True}),
    "lora_all_r8": Variant("lora_all", build_lora, {"rank": 8, "alpha": 16}, SIX),
    "lora_all_r16": Variant("lora_all", build_lora, {"rank": 16, "alpha": 32}, SIX),
    "ia3": VARIANTS["ia3"],
    "vera_r256": Variant("vera", build_vera, {"rank": 256}),
    "houlsby_48": Variant("adapters", build_bottleneck, {"bottleneck": 48}, stack="adapters"),
    "houlsby_64": Variant("adapters", build_bottleneck, {"bottleneck": 64}, stack="adapters"),
    "houlsby_96": Variant("adapters", build_bottleneck, {"bottleneck": 96}, stack="adapters"),
    "pfeiffer_48": Variant("pfeiffer", build_bottleneck, {"bottleneck": 48}, stack="adapters"),
    "pfeiffer_64": Variant("pfeiffer", build_bottleneck, {"bottleneck": 64}, stack="adapters"),
    "pfeiffer_96": Variant("pfeiffer", build_bottleneck, {"bottleneck": 96}, stack="adapters"),
    "parallel_384": Variant("parallel", build_bottleneck, {"bottleneck": 384}, stack="adapters"),
}


def count(variant: Variant, classes: int) -> dict:
    """Trainable and all parameters, by the library, of bert-base without allocating it."""
    kind = BertForMaskedLM if variant.mlm else BertForSequenceClassification
    with torch.device("meta"):
        model = kind(BertConfig(**BERT_BASE, num_labels=classes))
    base = sum(p.numel() for p in model.parameters())
    if variant.program != "vera":  # vera draws its projections and must have a device
        with torch.device("meta"):
            model = variant.build(model, variant)
    else:
        model = variant.build(model.to_empty(device="cpu"), variant)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    new = [p for n, p in named if re.search(r"lora_|ia3_|vera_|adapters\.", n)]
    return {
        "trainable": sum(p.numel() for _, p in named),
        "all": base + sum(p.numel() for p in new),
    }


def write_counts(path: Path, stack: str) -> None:
    counts = json.loads(path.read_text())["bert-base"] if path.exists() else {}
    for name, variant in COUNTED.items():
        if variant.stack == stack:
            each = {} if variant.mlm else {f"classes={c}": count(variant, c) for c in (2, 4)}
            counts[name] = each or count(variant, 2)
    ordered = {name: counts[name] for name in COUNTED if name in counts}
    path.write_text(json.dumps({"bert-base": ordered}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack", choices=("peft", "adapters"))
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="fixtures whose folder matches, as odd30_*"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where models/ and counts.json go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation
    transformers.logging.set_verbosity_error()
    root = arguments.out / "models"
    for shape_name, shape in SHAPES.items():
        write_base(root / shape_name, shape)
        if arguments.stack == "peft":
            write_nf4(root / shape_name, shape)
        for variant_name, variant in VARIANTS.items():
            wanted = fnmatch.fnmatch(f"{shape_name}_{variant_name}", arguments.only)
            if wanted and variant.stack == arguments.stack and shape_name in variant.shapes:
                write_fixture(root, shape_name, variant_name)
    write_counts(arguments.out / "counts.json", arguments.stack)


if __name__ == "__main__":
    main()
