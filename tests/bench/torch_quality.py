#!/usr/bin/env python3
"""The quality peer: transformers + peft fine-tune a local base on SST-2 by the recipe of peftc.

Batch 32, 3 epochs, learning rate 2e-5 (full) or 1e-4, linear warm-up over ceil(10 %) of the steps
and linear decay, AdamW without decay, gradients clipped to norm 1, float32. Validation is every
train row with index i % 64 == 63, dev.tsv is the test set, epoch e visits the rows in the order of
randperm under seed + e. Prints one line of JSON an epoch (the mean training loss over rows, the
macro F1 on validation) and a last one with the test macro F1 of the best epoch by validation.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
import transformers

from torch_peer import VARIANTS, apply_variant, epoch_batches, pad, read_tsv, schedule, tokenise


def macro_f1(predicted: list[int], labels: list[int]) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN); a class that never occurs counts 0."""
    scores = []
    for c in sorted({*labels, *predicted}):
        hits = sum(p == c and t == c for p, t in zip(predicted, labels, strict=True))
        scores.append(2 * hits / (predicted.count(c) + labels.count(c)))
    return sum(scores) / len(scores)


def evaluate(model, rows: list, device: str) -> float:
    """Macro F1 over tokenised rows, visited by length so that little is padded."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    predicted = [0] * len(rows)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = {k: v.to(device) for k, v in pad([rows[i][0] for i in chosen]).items()}
            for i, label in zip(chosen, model(**batch).logits.argmax(1).tolist(), strict=True):
                predicted[i] = label
    return macro_f1(predicted, [label for _, label in rows])


def train_epoch(model, rows: list, batches: list, optimizer, rates, device: str) -> float:
    """Mean loss over the rows of the batches, one optimizer step a batch."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    total = 0.0
    for chosen in batches:
        batch = pad([rows[i][0] for i in chosen])
        batch["labels"] = torch.tensor([rows[i][1] for i in chosen])
        optimizer.zero_grad(set_to_none=True)
        loss = model(**{k: v.to(device) for k, v in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        rates.step()
        total += loss.item() * len(chosen)
    return total / sum(map(len, batches))


def load_rows(arguments) -> tuple[list, list, list]:
    """Tokenised (ids, label) rows for training, validation and test."""
    data = Path(arguments.data)
    train, test = read_tsv(data / "train.tsv"), read_tsv(data / "dev.tsv")
    ids = tokenise(arguments.base, [text for text, _ in train + test], 512)
    rows = [(i, label) for i, (_, label) in zip(ids, train + test, strict=True)]
    train, test = rows[: len(train)], rows[len(train) :]
    validation = [row for i, row in enumerate(train) if i % 64 == 63]
    return [row for i, row in enumerate(train) if i % 64 != 63], validation, test


def run(arguments) -> None:
    transformers.set_seed(arguments.seed)
    model = transformers.BertForSequenceClassification.from_pretrained(
        arguments.base, num_labels=2, dtype=torch.float32
    )
    model = apply_variant(model, arguments.variant, arguments.lora_dropout).to(arguments.device)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    train, validation, test = load_rows(arguments)
    epochs = [epoch_batches(len(train), 32, arguments.seed, e) for e in range(arguments.epochs)]
    epochs = [batches[: arguments.max_steps] for batches in epochs]
    rate = arguments.lr or (2e-5 if arguments.variant == "full_ft" else 1e-4)
    optimizer = torch.optim.AdamW(trainable.values(), lr=rate, weight_decay=0.0, fused=True)
    rates = schedule(optimizer, sum(map(len, epochs)))
    best, kept = (-1.0, 0), {}
    for epoch, batches in enumerate(epochs):
        start = time.perf_counter()
        loss = train_epoch(model, train, batches, optimizer, rates, arguments.device)
        seconds = time.perf_counter() - start
        score = evaluate(model, validation, arguments.device)
        report = {"epoch": epoch, "train_loss": round(loss, 4), "validation_f1_macro": score}
        print(json.dumps(report | {"epoch_time_s": round(seconds, 1)}), flush=True)
        if score > best[0]:
            best, kept = (score, epoch), copy.deepcopy({n: p.data for n, p in trainable.items()})
    for name, parameter in trainable.items():
        parameter.data.copy_(kept[name])
    report = {
        "variant": arguments.variant,
        "seed": arguments.seed,
        "trainable": sum(p.numel() for p in trainable.values()),
        "best_epoch": best[1],
        "validation_f1_macro": best[0],
        "test_f1_macro": evaluate(model, test, arguments.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="folder with config.json, weights, vocab.txt")
    parser.add_argument("--data", required=True, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--variant", required=True, choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, help="2e-5 for full_ft, 1e-4 for the others")
    parser.add_argument("--lora-dropout", type=float, default=0.0)
    parser.add_argument("--max-steps", type=int, help="cut every epoch after so many steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="a torch device")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run(arguments)


if __name__ == "__main__":
    main()
