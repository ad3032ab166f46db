#!/usr/bin/env python3
"""One training step of peftc against PyTorch on the same processor, in the same run, on the same batches.

    bench.py --base BASE --data DATA [--shapes minilm,bert-base] [--variants ...] [--rounds 3]

BASE gives the vocabulary (and MiniLM's dimensions); weights are random on both sides, a step's time does
not depend on them. Both sides run float32, the first batches of SST-2's first epoch with seed 42,
dropout 0.1, AdamW, clip 1. Rounds alternate the two sides; each cell is the best median. Also measures
the processor's register-only FMA ceiling and prints the share of it that the GEMMs reach. Writes
metrics/bench_cpu.json and prints a Markdown table. torch, transformers and peft are needed here only
(tests/golden/requirements.txt).
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BERT_BASE = dict(model_type="bert", vocab_size=30522, hidden_size=768, num_hidden_layers=12,
                 num_attention_heads=12, intermediate_size=3072, max_position_embeddings=512,
                 type_vocab_size=2, layer_norm_eps=1e-12, hidden_dropout_prob=0.1,
                 attention_probs_dropout_prob=0.1, hidden_act="gelu", initializer_range=0.02)
TARGET = {"full_ft": 3.5, "lora_r16": 4.0, "adapters": 4.0}


def command(*words: str) -> str:
    done = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench.py: {words[0]} failed with {done.returncode}")
    return done.stdout


def base_folder(shape: str, base: str, work: pathlib.Path) -> pathlib.Path:
    folder = work / shape
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(f"{base}/vocab.txt", folder)
    config = json.load(open(f"{base}/config.json")) if shape == "minilm" else BERT_BASE
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(program: pathlib.Path, base: pathlib.Path, a) -> dict:
    return json.loads(command(program, "profile", "--base", base, "--scratch", "--data", a.data,
                              "--steps", a.steps, "--threads", a.threads, "--json"))


def theirs(variant: str, shape: str, batches: pathlib.Path, a) -> dict:
    return json.loads(command(sys.executable, ROOT / "tests/bench/torch_step.py", "--variant", variant,
                              "--shape", shape, "--threads", a.threads, "--steps", a.steps,
                              "--warmup", 2, "--batches", batches))


def gemm_share(profile: dict, ceiling: float) -> float:
    """GEMM FLOP/s over the time of the kernels that are GEMMs, as a share of the ceiling (GFLOP/s)."""
    gemms = [k for k in profile["kernel"] if k["tflop_s"] > 0]
    work = sum(1e3 * k["tflop_s"] * k["us_per_step"] for k in gemms)
    return work / sum(k["us_per_step"] for k in gemms) / ceiling


def ceiling_gflops(a) -> float:
    return float(command(a.build / "bench/bench_gemm", a.threads, "ceiling"))


def write_batches(batches: pathlib.Path, steps: int, a) -> None:
    command(sys.executable, ROOT / "tests/bench/torch_step.py", "--data", a.data, "--base", a.base,
            "--write-batches", batches, "--steps", steps, "--warmup", 0)


def compile_program(variant: str, base: pathlib.Path, program: pathlib.Path, build: pathlib.Path) -> None:
    command(build / "peftc", ROOT / f"models/{variant}.bert", "--base", base, "-o", program)


def commit() -> str:
    return subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE,
                          text=True, check=False).stdout.strip()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--shapes", default="minilm,bert-base")
    p.add_argument("--variants", default="lora_r16,adapters,full_ft")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--build", type=pathlib.Path, default=ROOT / "build", metavar="DIR", help="holds peftc")
    p.add_argument("--out", default=str(ROOT / "metrics/bench_cpu.json"))
    a = p.parse_args()
    work = a.build / "bench"
    work.mkdir(parents=True, exist_ok=True)
    batches = work / "batches.json"
    write_batches(batches, 2 + a.steps, a)
    rows, ceilings = [], []
    for shape in a.shapes.split(","):
        base = base_folder(shape, a.base, work)
        for variant in a.variants.split(","):
            program = work / f"{shape}_{variant}"
            compile_program(variant, base, program, a.build)
            best_ours = best_theirs = None
            for _ in range(a.rounds):
                ceilings.append(ceiling_gflops(a))
                mine, peer = ours(program, base, a), theirs(variant, shape, batches, a)
                if best_ours is None or mine["ms_median"] < best_ours["ms_median"]:
                    best_ours = mine
                if best_theirs is None or peer["ms_per_step"]["median"] < best_theirs["ms_per_step"]["median"]:
                    best_theirs = peer
            rows.append(dict(shape=shape, variant=variant, peftc_ms=best_ours["ms_median"],
                             torch_ms=best_theirs["ms_per_step"]["median"],
                             ratio=best_theirs["ms_per_step"]["median"] / best_ours["ms_median"], target=TARGET.get(variant),
                             arena_mb=best_ours["arena_bytes"] / 1e6, torch_peak_rss_mb=best_theirs["peak_rss_mb"],
                             gemm_share=gemm_share(best_ours, max(ceilings))))
            print(json.dumps(rows[-1]), file=sys.stderr)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    result = dict(device=cpu, threads=a.threads, ceiling_gflops=max(ceilings), load=os.getloadavg()[0],
                  torch=best_theirs.get("torch", "?"), commit=commit(),
                  date=datetime.date.today().isoformat(), rows=rows)
    pathlib.Path(a.out).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{cpu}, {a.threads} threads, ceiling {max(ceilings):.0f} GFLOP/s, torch {result['torch']}\n")
    print("| shape | variant | peftc ms | torch ms | ratio | aim | arena MB | torch peak MB | GEMMs at |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        print(f"| {r['shape']} | {r['variant']} | {r['peftc_ms']:.1f} | {r['torch_ms']:.0f} | {r['ratio']:.2f}x | "
              f"{r['target']}x | {r['arena_mb']:.0f} | {r['torch_peak_rss_mb']:.0f} | {100 * r['gemm_share']:.0f} % |")


if __name__ == "__main__":
    main()
