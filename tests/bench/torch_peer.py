"""What torch_step.py and torch_quality.py share: the variants on transformers and peft, and SST-2.

The model is always transformers' BertForSequenceClassification, LoRA is peft's; the bottleneck
adapters are written here after AdapterHub's formulas, because its package pins another version of
transformers. A batch is padded to its longest sequence and never further.
"""

import math

import torch
from torch import nn

VARIANTS = ("full_ft", "lora_r8", "lora_r16", "qlora_r16", "adapters", "pfeiffer")
BOTTLENECK = 64


class Bottleneck(nn.Module):
    """up(act(down(x))) with AdapterHub's "bert" initialisation."""

    def __init__(self, hidden: int, activation):
        super().__init__()
        self.down, self.up = nn.Linear(hidden, BOTTLENECK), nn.Linear(BOTTLENECK, hidden)
        self.activation = activation
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x):
        return self.up(self.activation(self.down(x)))


class HoulsbyOutput(nn.Module):
    """double_seq_bn: a sub-block's output with the adapter before the residual and the norm."""

    def __init__(self, output):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = output.dense, output.dropout, output.LayerNorm
        self.adapter = Bottleneck(output.LayerNorm.weight.numel(), nn.functional.silu)

    def forward(self, hidden_states, input_tensor):
        h = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(h + self.adapter(h) + input_tensor)


class PfeifferOutput(nn.Module):
    """seq_bn: the adapter reads the normed sum, its output joins the sum, which is normed again."""

    def __init__(self, output):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = output.dense, output.dropout, output.LayerNorm
        self.adapter = Bottleneck(output.LayerNorm.weight.numel(), nn.functional.relu)

    def forward(self, hidden_states, input_tensor):
        x = self.dropout(self.dense(hidden_states)) + input_tensor
        return self.LayerNorm(self.adapter(self.LayerNorm(x)) + x)


def add_lora(model, rank: int, dropout: float):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type="SEQ_CLS",
            r=rank,
            lora_alpha=32,
            lora_dropout=dropout,
            target_modules=["query", "value"],
        ),
    )


def add_adapters(model, variant: str):
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in model.bert.encoder.layer:
        if variant == "adapters":
            layer.attention.output = HoulsbyOutput(layer.attention.output)
            layer.output = HoulsbyOutput(layer.output)
        else:
            layer.output = PfeifferOutput(layer.output)
    for parameter in model.classifier.parameters():
        parameter.requires_grad = True
    return model


def round_to_nf4(model) -> None:
    """Replace the encoder's and the pooler's weights by what NF4 with double quantisation keeps.

    A frozen 4-bit weight with float32 arithmetic is this, without decoding it at every step.
    """
    import bitsandbytes.functional as bnb

    for name, module in model.bert.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            if weight.numel() % 64:
                raise SystemExit(f"{name}: {weight.numel()} weights are not whole blocks of 64")
            packed, state = bnb.quantize_4bit(
                weight.reshape(-1, 64), blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            weight.copy_(bnb.dequantize_4bit(packed, state).reshape(weight.shape))


def apply_variant(model, variant: str, lora_dropout: float = 0.0):
    """The model with what `variant` adds and requires_grad set."""
    if variant == "full_ft":
        return model
    if variant in ("adapters", "pfeiffer"):
        return add_adapters(model, variant)
    if variant == "qlora_r16":
        round_to_nf4(model)
    return add_lora(model, int(variant.split("_r")[1]), lora_dropout)


def schedule(optimizer, total: int, ratio: float = 0.1):
    """Linear warm-up from 0 over ceil(ratio * total) steps, then linear decay to 0."""
    warm = math.ceil(total * ratio)

    def factor(step: int) -> float:
        return step / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def read_tsv(path) -> list[tuple[str, int]]:
    """Rows of a file with the header `sentence<TAB>label`."""
    with open(path, encoding="utf-8", newline="\n") as file:
        header = file.readline().rstrip("\n")
        if header != "sentence\tlabel":
            raise SystemExit(f"{path}: the header is {header!r}, expected sentence<TAB>label")
        rows = [line.rstrip("\n").rsplit("\t", 1) for line in file]
    return [(sentence, int(label)) for sentence, label in rows]


def tokenise(base, sentences: list[str], limit: int) -> list[list[int]]:
    """Token ids of each sentence by the fast tokenizer with the base's vocabulary."""
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(base)
    return tokenizer(sentences, truncation=True, max_length=limit)["input_ids"]


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each batch: randperm from a fresh generator, the last batch kept."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return [order[i : i + size] for i in range(0, count, size)]


def pad(sequences: list[list[int]]) -> dict:
    """input_ids and attention_mask, padded with 0 on the right to the longest."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
