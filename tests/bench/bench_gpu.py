#!/usr/bin/env python3
"""Training steps of peftc against transformers + peft on one GPU, side by side: `make bench-gpu`.

    bench_gpu.py --base BASE --data DATA [--variants lora_r16,...] [--only peftc,eager,graph,compile] [--out FILE]

Shapes are bert-base's with random weights (BASE gives the vocabulary; peftc reads a model.safetensors of them, fp32, as
transformers writes it), batches are SST-2's of 32 rows in the order of seed 42, both sides compute in bf16 with dropout
0.1, AdamW, clip 1.

ms/step: both sides repeat the first --steps batches of the first epoch, after passes that warm them up; ours is the median
of five passes, batching included, theirs is as torch_gpu.py says, without preparing data. s/epoch is a whole second epoch
of DATA as `train` runs it, batching and progress included, validation left out; a peer's is its ms/step times as many
steps. Seconds to the end of the first step count from the start of a process, as a user starts it: reading and tokenising
all of DATA, opening the GPU, reading the weights (a file that the system has in memory), the step. Cold is with an empty
cache of kernels and algorithms, warm with the cache that the cold one left.

Runs can be divided: results are merged into --out by variant and column, so that a column measured again replaces the
old one; a file of another GPU is refused. What failed is written down as failed. Prints a Markdown table, which also
goes into --readme between two marks.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from bench import ROOT, base_folder, command, commit, compile_program, write_batches

VARIANTS = ("full_ft", "lora_r8", "lora_r16", "qlora_r16", "adapters")
PEERS = ("eager", "compile", "graph")
BATCH = 32
# At most: milliseconds a step, arena in MB. At least: times faster than each peer.
AIMS = {
    "full_ft": dict(ms=2.6, arena_mb=1700, eager=17, compile=3.2, graph=3.0),
    "lora_r8": dict(ms=1.2, arena_mb=420, eager=36, compile=5.7, graph=4.2),
    "lora_r16": dict(ms=1.2, arena_mb=420, eager=36, compile=5.7, graph=4.2),
    "qlora_r16": dict(arena_mb=300, eager=55, graph=4.9),
    "adapters": dict(ms=1.4, arena_mb=480, eager=25, graph=4.1),
}
QLORA_OF_LORA = 1.2
MARKS = ("<!-- bench-gpu: begin -->", "<!-- bench-gpu: end -->")


# ---- measuring ----


def write_weights(base: pathlib.Path) -> None:
    """A user's base: model.safetensors of random weights beside config.json."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(42)
    config = (base / "config.json").read_text()
    BertModel(BertConfig(**json.loads(config))).save_pretrained(base)
    (base / "config.json").write_text(config)


def timed(words: list, environment: dict) -> tuple[str, float]:
    """What a command prints, and its seconds; RuntimeError with its last words where it fails."""
    start = time.perf_counter()
    done = subprocess.run([str(w) for w in words], env=os.environ | environment, capture_output=True, text=True,
                          check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"exit {done.returncode}: {''.join(last)[:300]}")
    return done.stdout, seconds


def gpu_name(program: pathlib.Path) -> str:
    gpus = json.loads(command(program, "devices", "--json"))["cuda"].get("gpus", [])
    if not any(gpu["usable"] for gpu in gpus):
        sys.exit("bench_gpu.py: no GPU that can be used; `run devices` says why")
    return gpus[0]["name"]


def measure_peftc(variant: str, base: pathlib.Path, a) -> dict:
    program, out, cache = a.work / variant, a.work / f"{variant}.out", a.work / f"{variant}.cache"
    for folder in (out, cache):
        shutil.rmtree(folder, ignore_errors=True)
    compile_program(variant, base, program, a.build)
    common = ["--base", base, "--data", a.data, "--device", "cuda"]
    environment = {"PEFTC_CACHE": str(cache)}
    cold, warm = (json.loads(timed([program, "profile", *common, "--steps", 1, "--json"], environment)[0])["startup_s"]
                  for _ in range(2))
    steady = json.loads(timed([program, "profile", *common, "--steps", a.steps, "--json"], environment)[0])
    timed([program, "train", *common, "--out", out, "--set", "fit.epochs=2", "--checkpoint-every", 1000000], environment)
    run = json.loads((out / "run.json").read_text())
    for folder in (out, cache):
        shutil.rmtree(folder, ignore_errors=True)
    steps, epoch, memory = run["fit"]["total_steps"] // 2, run["epochs"][1], run["memory"]
    result = dict(ms_per_step=round(steady["ms_median"], 4), ms_least=round(steady["ms_min"], 4),
                  ms_most=round(steady["ms_max"], 4), steps=steps, s_per_epoch=round(epoch["seconds"], 3),
                  first_epoch_s=round(run["epochs"][0]["seconds"], 3), tokens_per_step=round(epoch["tokens"] / steps, 1),
                  cold_s=round(cold["total"], 2), warm_s=round(warm["total"], 2), cold_phases=cold, warm_phases=warm,
                  arena_mb=round(memory["planned_bytes"] / 1e6, 1), reached_mb=round(memory["reached_bytes"] / 1e6, 1),
                  trainable=run["trainable_params"])
    if "driver_bytes" in memory:
        result["driver_mb"] = round(memory["driver_bytes"] / 1e6, 1)
    return result


def measure_peer(mode: str, variant: str, batches: pathlib.Path, a) -> dict:
    text, _ = timed([sys.executable, ROOT / "tests/bench/torch_gpu.py", "--variant", variant, "--mode", mode,
                     "--batches", batches, "--steps", a.steps, "--rounds", a.rounds, "--started", time.time()], {})
    result = json.loads(text.splitlines()[-1])
    for key in ("variant", "mode", "shape"):
        del result[key]
    return result


def measure(column: str, variant: str, base: pathlib.Path, batches: pathlib.Path, a) -> dict:
    """One cell of the table; a failure is a result too."""
    start = time.perf_counter()
    try:
        cell = measure_peftc(variant, base, a) if column == "peftc" else measure_peer(column, variant, batches, a)
    except (RuntimeError, json.JSONDecodeError, KeyError, OSError) as why:
        cell = dict(failed=str(why))
    cell |= dict(date=datetime.date.today().isoformat(), commit=a.commit)
    print(f"{variant} {column}: {time.perf_counter() - start:.1f} s: {json.dumps(cell)}", file=sys.stderr, flush=True)
    return cell


# ---- results ----


def load(path: pathlib.Path, gpu: str) -> dict:
    if not path.exists():
        return dict(device=gpu, shape="bert-base", batch=BATCH, compute="bf16", variants={})
    result = json.loads(path.read_text())
    if result["device"] != gpu:
        sys.exit(f"bench_gpu.py: {path} was measured on {result['device']} and this is {gpu}: give another --out")
    return result


def save(path: pathlib.Path, result: dict) -> None:
    for cells in result["variants"].values():
        cells["ratio"] = {p: round(r, 2) for p in PEERS if (r := ratio(cells, p))}
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(result, indent=2) + "\n")
    new.replace(path)


def value(cells: dict, column: str, key: str):
    """A measured number, or None."""
    found = cells.get(column, {}).get(key)
    return found if isinstance(found, (int, float)) and math.isfinite(found) else None


def ratio(cells: dict, peer: str):
    ours, theirs = value(cells, "peftc", "ms_per_step"), value(cells, peer, "ms_per_step")
    return theirs / ours if ours and theirs else None


def show(number, digits: int, unit: str = "") -> str:
    return "-" if number is None else f"{number:,.{digits}f}{unit}"


def aim_ms(variant: str, variants: dict):
    if variant != "qlora_r16":
        return AIMS[variant]["ms"]
    lora = value(variants.get("lora_r16", {}), "peftc", "ms_per_step")
    return QLORA_OF_LORA * lora if lora else None


def row(variant: str, variants: dict, steps) -> str:
    cells, aims = variants[variant], AIMS[variant]

    def peer(mode: str) -> str:
        ms = value(cells, mode, "ms_per_step")
        if ms is None:
            return "failed" if "failed" in cells.get(mode, {}) else "-"
        epoch = show(ms * steps / 1e3 if steps else None, 1, " s")
        peak, first = show(value(cells, mode, "peak_mb"), 0, " MB"), show(value(cells, mode, "first_step_s"), 0, " s")
        return f"{show(ms, 2)}, {epoch}, {peak}, {first}"

    def times(mode: str) -> str:
        aim = f" ({aims[mode]})" if mode in aims else ""
        return f"{show(ratio(cells, mode), 1, 'x')}{aim}"

    def ours(key: str, digits: int, aim=None) -> str:
        return show(value(cells, "peftc", key), digits) + (f" ({aim:,.4g})" if aim else "")

    columns = [variant, ours("ms_per_step", 3, aim_ms(variant, variants)), ours("s_per_epoch", 2),
               ours("arena_mb", 0, aims["arena_mb"]), ours("driver_mb", 0), ours("cold_s", 1, 5.0), ours("warm_s", 2, 0.5),
               *(peer(mode) for mode in PEERS), " / ".join(times(mode) for mode in PEERS)]
    return "| " + " | ".join(columns) + " |"


def table(result: dict) -> str:
    variants = result["variants"]
    cells = [c for v in variants.values() for c in v.values() if isinstance(c, dict)]
    steps = next((c["steps"] for v in variants.values() if (c := v.get("peftc", {})).get("steps")), None)
    about = {k: sorted({c[k] for c in cells if k in c}) for k in ("torch", "transformers", "commit", "date")}
    head = ["program", "ms/step", "s/epoch", "arena MB", "driver MB", "cold s", "warm s",
            *(f"{mode}: ms/step, epoch, peak, first step" for mode in PEERS), "times faster than " + " / ".join(PEERS)]
    lines = [f"{result['device']}, bert-base shapes, SST-2 batches of {BATCH}, bf16; torch {', '.join(about['torch']) or '-'}, "
             f"transformers {', '.join(about['transformers']) or '-'}; commit {', '.join(about['commit'])}, "
             f"{', '.join(about['date'])}. Cold and warm: seconds from a process's start to the end of its first step, with all "
             "of SST-2 tokenised and fp32 weights read from a file, without and with cached kernels. Aims in brackets.", "",
             "| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + [row(v, variants, steps) for v in VARIANTS if v in variants])


def put_between_marks(path: pathlib.Path, text: str) -> None:
    """Replaces what is between the marks; without marks a section at the end begins."""
    page = path.read_text()
    begin, end = (page.find(mark) for mark in MARKS)
    block = f"{MARKS[0]}\n{text}\n{MARKS[1]}"
    if begin < 0 or end < begin:
        page = f"{page.rstrip()}\n\n## A training step on a GPU\n\n{block}\n"
    else:
        page = page[:begin] + block + page[end + len(MARKS[1]):]
    path.write_text(page)


# ---- the command ----


def chosen(text: str, known: tuple) -> list[str]:
    """Words of a list, in the order of what is known."""
    words = text.split(",")
    unknown = [w for w in words if w not in known]
    if unknown:
        sys.exit(f"bench_gpu.py: '{unknown[0]}' is none of {', '.join(known)}")
    return [k for k in known if k in words]


def read_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True, metavar="DIR", help="holds vocab.txt")
    p.add_argument("--data", required=True, metavar="DIR", help="SST-2")
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--only", default=",".join(("peftc", *PEERS)), help="columns to measure")
    p.add_argument("--steps", type=int, default=200, help="batches that are repeated")
    p.add_argument("--rounds", type=int, default=2, help="timed passes over them")
    p.add_argument("--batches", metavar="FILE", help="from torch_step.py --write-batches; default: made from DATA")
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build", metavar="DIR", help="holds peftc")
    p.add_argument("--work", type=pathlib.Path, metavar="DIR", help="for programs and runs; default: a temporary one")
    p.add_argument("--out", type=pathlib.Path, metavar="FILE", help="default: metrics/bench_<gpu>.json")
    p.add_argument("--readme", type=pathlib.Path, metavar="FILE", help="gets the table")
    p.add_argument("--commit", default=commit(), help="where there is no git")
    p.add_argument("--table", action="store_true", help="measure nothing, print the table of --out")
    a = p.parse_args()
    a.variants, a.only = chosen(a.variants, VARIANTS), chosen(a.only, ("peftc", *PEERS))
    if a.table and not a.out:
        p.error("--table needs --out")
    return a


def run(a) -> dict:
    a.work.mkdir(parents=True, exist_ok=True)
    base = base_folder("bert-base", a.base, a.work)
    if "peftc" in a.only:
        write_weights(base)
    batches = pathlib.Path(a.batches) if a.batches else a.work / "batches.json"
    if not a.batches and set(a.only) & set(PEERS):
        write_batches(batches, a.steps, a)
    program = a.work / "devices"
    compile_program(a.variants[0], base, program, a.build)
    gpu = gpu_name(program)
    slug = re.sub(r"[^a-z0-9]+", "_", gpu.lower().replace("nvidia", "")).strip("_")
    a.out = a.out or ROOT / f"metrics/bench_{slug}.json"
    result = load(a.out, gpu)
    for column in a.only:
        for variant in a.variants:
            result["variants"].setdefault(variant, {})[column] = measure(column, variant, base, batches, a)
            save(a.out, result)
    return result


def main() -> None:
    a = read_arguments()
    if a.table:
        result = json.loads(a.out.read_text())
    elif a.work:
        result = run(a)
    else:
        with tempfile.TemporaryDirectory(prefix="bench_gpu.") as folder:
            a.work = pathlib.Path(folder)
            result = run(a)
    text = table(result)
    print(text)
    if a.readme:
        put_between_marks(a.readme, text)
    failed = [f"{v} {c}" for v in a.variants for c in a.only if "failed" in result["variants"].get(v, {}).get(c, {})]
    if failed:
        sys.exit(f"bench_gpu.py: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
