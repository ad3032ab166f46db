#!/usr/bin/env bash
# Makes the embedded base of examples/base/ again: models/mlm.bert from nothing on the generated text,
# then float16. `make pretrain` calls it with the corpus in CORPUS. The same machine type gives the same
# bytes; --adopt puts them into examples/base/. Interrupted, it goes on where it was.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build} out=${RUNS:-out/pretrain} base=examples/base corpus=$1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # see tools/compare.sh

say() { printf '%s\n' "$*" >&2; }
mkdir -p "$out/start"
cp $base/config.json "$out/start/"
cp "$corpus/vocab.txt" "$out/start/"

# Small and young, this encoder loses more by dropout than it gains; fine-tuning keeps the usual 0.1.
"$build/peftc" models/mlm.bert --base "$out/start" --set config.dropout=0 --set config.attention_dropout=0 \
    --set fit.epochs=8 --set fit.batch=64 --set fit.lr=2e-3 -o "$out/run"
if [ -e "$out/mlm/run.json" ]; then
    say "pre-trained before, kept: $out/mlm (remove it to train again)"
else
    how=()
    [ ! -e "$out/mlm/checkpoint" ] || how=(--resume)
    "$out/run" train --base "$out/start" --scratch --data "$corpus/text" --out "$out/mlm" \
        ${THREADS:+--threads "$THREADS"} ${how[@]+"${how[@]}"}
fi
"$build/half" "$out/mlm/model.safetensors" "$out/model.safetensors"
if [ "${2-}" = --adopt ]; then
    cp "$out/model.safetensors" "$out/start/vocab.txt" $base/
    say "put into $base/"
elif cmp -s "$out/model.safetensors" $base/model.safetensors; then
    say "$out/model.safetensors has the bytes of $base/model.safetensors"
else
    say "$out/model.safetensors differs from $base/model.safetensors; make pretrain ADOPT=1 puts it there"
    exit 1
fi
