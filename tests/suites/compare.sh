#!/usr/bin/env bash
# The comparison: corpus, baseline, float16 converter, aggregator on good and broken runs,
# tools/compare.sh from a first run over an interrupted one to a changed setting, and its table on a
# terminal.
set -u
tmp=$(mktemp -d "$PEFTC_TMP/compare.XXXXXX") bin=$PEFTC_BUILD
. tests/cases.sh
number() { sed -n "s/.*\"$2\": \([-0-9.e]*\),*$/\1/p" "$1" | head -1; }

# ---- corpus and baseline ----

mkdir -p "$tmp/corpus" "$tmp/again" "$tmp/other"
check "the corpus is made" "$bin/phrases" "$tmp/corpus"
"$bin/phrases" "$tmp/again" && "$bin/phrases" "$tmp/other" --seed 7
check "the same seed gives the same corpus" diff -r "$tmp/corpus" "$tmp/again"
check "another seed gives another" bash -c "! cmp -s '$tmp/corpus/train.tsv' '$tmp/other/train.tsv'"
disjoint() {
    [ -z "$(cat "$tmp"/corpus/{train,validation,test}.tsv | grep -v '^sentence' | cut -f1 | sort | uniq -d)" ]
}
check "no phrase is in two splits" disjoint
spelled() { # every word of the texts is in the vocabulary
    cat "$tmp"/corpus/text/*.txt <(cut -f1 "$tmp"/corpus/*.tsv | grep -vx sentence) | tr ' ' '\n' | sort -u |
        comm -23 - <(sort -u "$tmp/corpus/vocab.txt") | grep . && return 1
    return 0
}
check "the vocabulary has every word" spelled

bow() { "$bin/bow" --vocab "$tmp/corpus/vocab.txt" --data "$tmp/corpus" --out "$tmp/$1.json"; }
check "the baseline is measured" bow b1
bow b2
check "twice the same bytes" cmp "$tmp/b1.json" "$tmp/b2.json"
weak() { awk -v f="$(number "$tmp/b1.json" f1_macro)" 'BEGIN {print f; exit !(f > 0.55 && f < 0.85)}'; }
check "counting words is not enough for the corpus" weak
says "a baseline without a vocabulary" 1 "nowhere/vocab.txt" "$bin/bow" --vocab nowhere/vocab.txt --data "$tmp/corpus" --out "$tmp/x.json"
says "a baseline without a test set" 1 "has no test set" bash -c "mkdir -p '$tmp/notest' && cp '$tmp/corpus/train.tsv' '$tmp/notest' &&
    '$bin/bow' --vocab '$tmp/corpus/vocab.txt' --data '$tmp/notest' --out '$tmp/x.json'"

# ---- float16 ----

# A file with one 4 x 2 float32 matrix: little-endian bits as eight hex words.
# shellcheck disable=SC2059
matrix() { # FILE WORD...
    local header='{"bert.embeddings.word_embeddings.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]}}' w
    while [ $((${#header} % 8)) != 0 ]; do header="$header "; done
    {
        printf "\\x$(printf %x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
        for w in "${@:2}"; do printf "\\x${w:6:2}\\x${w:4:2}\\x${w:2:2}\\x${w:0:2}"; done
    } >"$1"
}
halves() { # what the writer put last: the biases, matrices by name; the words are the largest name but one
    matrix "$tmp/f32" 3f800000 80000000 477fe000 33800000 33000000 3f801000 3f803000 387fffff
    "$bin/half" "$tmp/f32" "$tmp/f16" || return 1
    od -An -v -tx2 "$tmp/f16" | tr -d '\n' | grep -q '3c00 8000 7bff 0001 0000 3c00 3c02 0400'
}
check "float16: exact, tie to even, subnormal, largest" halves
pooler() { od -An -v -tx2 "$tmp/f16" | tr -d '\n' | grep -q '3c00 0000 0000 3c00'; }
check "the pooler that is added is the identity" pooler
matrix "$tmp/f32" 3f800000 80000000 477ff000 33800000 33000000 3f801000 3f803000 387fffff
says "a value float16 cannot hold" 1 "element 2 of bert.embeddings.word_embeddings.weight is 65520" "$bin/half" "$tmp/f32" "$tmp/f16b"
check "nothing is left of it" test ! -e "$tmp/f16b"

# ---- the aggregator, on made-up runs ----

fixture() { # FOLDER PROGRAM SEED F1 [TRAINABLE BYTES]
    local dir=$tmp/$1/$2/seed$3
    mkdir -p "$dir"
    head -c "${6:-1000}" /dev/zero >"$dir/adapter.safetensors"
    cat >"$dir/run.json" <<J
{
  "version": 1, "program": "$2", "source": "models/$2.bert", "base": "some/base", "data": "some/data",
  "device": "cpu", "instructions": "avx2", "threads": 2, "trainable_params": ${5:-1000}, "total_params": 100000,
  "fit": {"epochs": 2, "batch": 32, "accumulate": 1, "lr": 0.001, "warmup_steps": 1, "total_steps": 10,
          "weight_decay": 0.0, "clip_norm": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "seed": $3},
  "memory": {"planned_bytes": ${5:-1000}000, "reached_bytes": ${5:-1000}000, "lower_bound_bytes": 900,
    "planned_by_class": {"weights": 100, "gradients": 1, "optimizer": 2, "activations": 3, "backward": 4, "workspace": 5, "inputs": 6}},
  "epochs": [
    {"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_f1_macro": 0.8, "val_accuracy": 0.81, "tokens": 100, "seconds": 2.0},
    {"epoch": 2, "train_loss": 0.3, "val_loss": null, "val_f1_macro": 0.9, "val_accuracy": 0.91, "tokens": 100, "seconds": 4.0}],
  "best_epoch": 2, "epoch_time_s": 3.0, "total_time_s": 7.5,
  "test_f1_macro": $4, "test_accuracy": $4, "test_loss": 0.2, "test_rows": 400
}
J
}
good() { rm -rf "${tmp:?}/$1"; fixture "$1" full_ft 42 0.95 100000 50000; fixture "$1" lora_r8 42 0.90; fixture "$1" qlora_r16 42 0.945; }
aggregate() { "$bin/compare" "$tmp/$1" "${@:2}"; }
good runs
fixture runs lora_r8 43 0.92
fixture runs lora_r8 44 0.94
check "runs are compared" aggregate runs --out "$tmp/c.json"
cp "$tmp/log" "$tmp/table"
check "comparison.json fits its schema" "$bin/schema" docs/comparison.schema.json "$tmp/c.json"
if python3 -c 'import jsonschema' 2>/dev/null; then
    check "so says the jsonschema library" python3 -c "
import json, jsonschema
jsonschema.Draft202012Validator(json.load(open('docs/comparison.schema.json'))).validate(json.load(open('$tmp/c.json')))"
else
    echo "skip so says the jsonschema library: no python3 with jsonschema"
fi
field() { # KEY FIELD VALUE
    sed -n "/^  \"$1\": {/,/^  }/p" "$tmp/c.json" >"$tmp/part"
    local found
    found=$(number "$tmp/part" "$2")
    echo "$1 $2 is $found"
    awk -v a="$found" -v b="$3" 'BEGIN {d = a - b; if (d < 0) d = -d; exit !(a != "" && d <= 1e-9)}'
}
check "the mean over seeds" field lora_r8 f1_macro 0.92
check "the spread over seeds" field lora_r8 f1_macro_spread 0.02
check "noise of one seed: the test set's" field full_ft f1_macro_noise 0.01089724736
check "noise of three seeds: their spread" field lora_r8 f1_macro_noise 0.02
check "qlora is the brief's name" field qlora trainable_params 1000
check "peak in 10^9 bytes" field full_ft peak_vram_gb 0.1
check "time per epoch over epochs and seeds" field lora_r8 epoch_time_s 3
check "its spread" field full_ft epoch_time_spread_s 1.41421356237
check "a clear loss is a loss" grep -q 'lora_r8 against full_ft: loses 3.0 points' "$tmp/c.json"
check "a loss within noise is not" grep -q 'qlora against full_ft: is as good within noise' "$tmp/c.json"
check "on a CPU the table says memory" grep -q 'memory, not VRAM' "$tmp/table"

schema_refuses() { # NAME SED-EXPRESSION TEXT
    sed "$2" "$tmp/c.json" >"$tmp/bad.json"
    says "$1" 1 "$3" "$bin/schema" docs/comparison.schema.json "$tmp/bad.json"
}
schema_refuses "schema: a missing field" '0,/"epoch_time_s"/s//"epoch_time"/' "/full_ft"
schema_refuses "schema: a share above 1" '0,/"f1_macro": 0.95/s//"f1_macro": 1.95/' "at most 1"
schema_refuses "schema: a wrong type" '0,/"seed": 42/s//"seed": "42"/' "/full_ft"
schema_refuses "schema: another version" 's/"version": 1/"version": 2/' "/about/version"

# One run is broken, the others stay: exit code 1, the file and the field are named, the rest is written.
breaks() { # NAME TEXT SED-EXPRESSION
    good broken
    sed -i "$3" "$tmp/broken/lora_r8/seed42/run.json"
    says "$1" 1 "$2" aggregate broken --out "$tmp/d-$1.json"
    if grep -q "lora_r8/seed42" "$tmp/err" && grep -q '"qlora"' "$tmp/d-$1.json" && ! grep -q '"lora_r8"' "$tmp/d-$1.json"
    then case_ok "$1: the others stay"; else case_fail "$1: the others stay" "$(tail -1 "$tmp/err")"; fi
}
breaks missing-field "trainable_params is missing" 's/"trainable_params": 1000, //'
breaks wrong-version "is of version 7 and this program reads version 1" 's/"version": 1/"version": 7/'
breaks truncated "is not valid JSON" '10,$d'
breaks not-a-number "is not valid JSON" 's/"test_loss": 0.2/"test_loss": NaN/'
breaks null-score "test_f1_macro: expected a number from 0 to 1, found null" 's/"test_f1_macro": 0.90/"test_f1_macro": null/'
breaks impossible-score "test_f1_macro: expected a number from 0 to 1, found 1.5" 's/"test_f1_macro": 0.90/"test_f1_macro": 1.5/'
breaks negative-bytes "memory.reached_bytes: expected a whole number" 's/"reached_bytes": 1000000/"reached_bytes": -1/'
breaks no-such-epoch "best_epoch: expected one of the epochs, found 3" 's/"best_epoch": 2/"best_epoch": 3/'
good notes
sed -i '2i "peftc_version": "9.8.7", "commit": "abc", "program_hash": "0123456789abcdef", "date": "2026-01-02T03:04:05Z", \
  "processor": "Some CPU", "compute": "bf16", "gpu": "Some GPU", "driver": "1.2, CUDA 3.4",' "$tmp"/notes/*/seed42/run.json
sed -i 's/abc/def/; s/2026-01-02/2026-01-03/' "$tmp/notes/qlora_r16/seed42/run.json"
check "runs say where they come from" aggregate notes --out "$tmp/c.json"
check "so does the comparison, and fits the schema" "$bin/schema" docs/comparison.schema.json "$tmp/c.json"
about() { # TEXT...: the comparison's "about" has them
    local text
    sed -n '/^  "about": {/,/^  }/p' "$tmp/c.json" >"$tmp/part"
    for text in "$@"; do grep -qF "$text" "$tmp/part" || { echo "no $text in:"; cat "$tmp/part"; return 1; }; done
}
check "what runs agree on, and what not" about '"commit": "several"' '"gpu": "Some GPU"' '"driver": "1.2, CUDA 3.4"' \
    '"compute": "bf16"' '"peftc_version": "9.8.7"' '"date": "2026-01-03T03:04:05Z"'
schema_refuses "schema: a date that is none" 's/"date": "2026-01-03T/"date": "Jan 3 /' "/about/date"
mkdir "$tmp/notes/lora_r8/seed43" && cp "$tmp/notes/lora_r8/seed42/adapter.safetensors" "$tmp/notes/lora_r8/seed43/"
sed 's/"seed": 42/"seed": 43/; s/"compute": "bf16"/"compute": "fp32"/' "$tmp/notes/lora_r8/seed42/run.json" \
    >"$tmp/notes/lora_r8/seed43/run.json"
says "seeds in float32 and in bf16" 1 "are not runs of one program" aggregate notes

# The same runs as metrics/ keeps them: run.json only, in folders PROGRAM-SEED.
good runs; fixture runs lora_r8 43 0.92; fixture runs odd-one 7 0.5
sed -i '2i "saved_bytes": 1000, "base_bytes": 5000,' "$tmp"/runs/*/seed*/run.json
sed -i 's/"saved_bytes": 1000/"saved_bytes": 50000/' "$tmp/runs/full_ft/seed42/run.json"
check "runs with weights" aggregate runs --out "$tmp/c.json"
for run in "$tmp"/runs/*/seed*; do
    to=$tmp/flat/$(basename "${run%/*}")-${run##*seed}
    mkdir -p "$to" && cp "$run/run.json" "$to/"
done
check "runs without them, in folders of their own" aggregate flat --out "$tmp/flat.json"
check "give the same comparison" cmp "$tmp/c.json" "$tmp/flat.json"
check "a name with a dash is a program" grep -q '^  "odd-one": {' "$tmp/flat.json"
check "storage is computed from what the runs say" grep -q 'one base and 50 adapters take 0.1 MB (lora_r8)' "$tmp/flat.json"
sed -i 's/"saved_bytes": 1000/"saved_bytes": -1/' "$tmp/flat/lora_r8-43/run.json"
says "a size below 0" 1 "saved_bytes: expected a whole number" aggregate flat
kept() {
    local file
    for file in metrics/*/comparison.json; do
        "$bin/schema" docs/comparison.schema.json "$file" && "$bin/compare" "${file%/*}" --out "$tmp/kept.json" --replace &&
            cmp "$tmp/kept.json" "$file" || return 1
    done
}
check "committed comparisons are what their runs say" kept

good noweights; rm "$tmp/noweights/lora_r8/seed42/adapter.safetensors"
says "a run without weights" 1 "holds no trained weights" aggregate noweights
good base; echo '{"version": 1, "f1_macro": 2}' >"$tmp/base/baseline.json"
says "a broken baseline" 1 "f1_macro: expected a number from 0 to 1, found 2" aggregate base
good mixed; sed -i 's|some/data|other/data|' "$tmp/mixed/lora_r8/seed42/run.json"
says "runs of different data" 1 "cannot be compared" aggregate mixed
good seeds; fixture seeds lora_r8 43 0.9 2000
says "seeds of different programs" 1 "are not runs of one program" aggregate seeds
says "a folder that is not there" 1 "cannot read the folder" "$bin/compare" "$tmp/nowhere"
mkdir "$tmp/empty"
says "no run at all" 1 "holds no finished run" aggregate empty --out "$tmp/e.json"

old() { # NAME SED-EXPRESSION TEXT: what stands there is not replaced, and has its bytes afterwards
    sed "$2" "$tmp/c.json" >"$tmp/old.json"
    cp "$tmp/old.json" "$tmp/old.copy"
    says "$1" 1 "$3" aggregate runs --out "$tmp/old.json"
    check "$1: kept" cmp "$tmp/old.json" "$tmp/old.copy"
}
old "a comparison of another version" 's/"version": 1/"version": 9/' "is not replaced: its version is 9"
old "a comparison of other data" 's|"data": "some/data"|"data": "real/data"|' "is not replaced: it compares runs of other data"
old "a damaged comparison" '20,$d' "is not valid JSON"
check "--replace replaces it" aggregate runs --replace --out "$tmp/old.json"
says "an output folder that is not there" 1 "$tmp/no/c.json" aggregate runs --out "$tmp/no/c.json"

# ---- make compare ----

mkdir -p "$tmp/data"
for f in train validation test; do head -129 "$tmp/corpus/$f.tsv" >"$tmp/data/$f.tsv"; done
export THREADS=1 BUILD=$PEFTC_BUILD RUNS=$tmp/made BASE=examples/base DATA=$tmp/data PROGRAMS=lora_r8 EPOCHS=1 SEEDS=1,2
unset TASK SET METRICS AGAIN REPLACE DEVICE BATCH
says "an unknown task" 1 "TASK=poetry is unknown" env TASK=poetry tools/compare.sh
says "a base that is not there" 1 "make fetch" env BASE=nowhere tools/compare.sh
mkdir "$tmp/nobase" && echo '{}' >"$tmp/nobase/config.json"
says "a base without a vocabulary" 1 "has no readable vocab.txt" env BASE="$tmp/nobase" tools/compare.sh
cp examples/base/vocab.txt "$tmp/nobase/"
says "a base without weights" 1 "has no model.safetensors" env BASE="$tmp/nobase" tools/compare.sh
touch "$tmp/nobase/model.safetensors"
says "a base that is no BERT" 1 "model_type" env BASE="$tmp/nobase" RUNS="$tmp/nob" tools/compare.sh
says "a real base without data" 1 "needs DATA=DIR" env BASE="$tmp/nobase" DATA= tools/compare.sh
says "data that are not there" 1 "is not a folder" env DATA="$tmp/nodata" tools/compare.sh
says "an unknown program" 1 "there is no models/lora_r9.bert" env PROGRAMS=lora_r9 tools/compare.sh
says "a seed that is no number" 1 "'x' is not a whole number" env SEEDS=42,x tools/compare.sh
cp -r "$tmp/data" "$tmp/baddata" && printf 'a film\tmaybe\n' >>"$tmp/baddata/test.tsv"
says "a label that is no number" 1 "test.tsv:130" env DATA="$tmp/baddata" RUNS="$tmp/bad" tools/compare.sh

check "two seeds are trained and compared" tools/compare.sh
check "comparison.json of real runs fits the schema" "$bin/schema" docs/comparison.schema.json "$tmp/made/comparison.json"
origin() {
    local run=$tmp/made/lora_r8/seed1/run.json hash
    hash=$(sed -n 's/^ *\.hash = 0x\([0-9a-f]*\)u,$/\1/p' "$tmp/made/lora_r8/program.c")
    cat "$run"
    [ -n "$hash" ] && grep -qF "\"program_hash\": \"$hash\"" "$run" && grep -qF "\"commit\": \"$(cat "$bin/commit")\"" "$run" &&
        grep -qE '"date": "20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"' "$run" && grep -qE '"processor": ".+"' "$run" &&
        grep -qE '"peftc_version": "[0-9.]+"' "$run" && grep -qF '"compute": "fp32"' "$run" && ! grep -q '"gpu"' "$run" &&
        grep -qF "\"saved_bytes\": $(cat "${run%/*}"/*.safetensors | wc -c)," "$run" &&
        grep -qF "\"base_bytes\": $(cat examples/base/*.safetensors | wc -c)," "$run"
}
check "run.json says where it comes from" origin
check "the metrics do not" bash -c "! grep -rlE 'commit|processor|20[0-9]{2}-[0-9]{2}-' '$tmp'/made/lora_r8/seed1/metrics.*"
commit_of() { # GIT_DIR: the commit that the makefile finds
    env -u MAKEFLAGS -u MAKELEVEL GIT_DIR="$1" make -s BUILD="$tmp/commit" "$tmp/commit/commit" && cat "$tmp/commit/commit"
}
outside() { # and the file is left alone while the commit is the same
    [ "$(commit_of /nowhere)" = unknown ] && touch -d @1 "$tmp/commit/commit" && [ "$(commit_of /nowhere)" = unknown ] &&
        [ "$(stat -c %Y "$tmp/commit/commit")" = 1 ]
}
check "outside a checkout the commit is unknown" outside
kept_metrics() { METRICS=$tmp/metrics tools/compare.sh && cmp "$tmp/metrics/comparison.json" "$tmp/made/comparison.json" &&
    "$bin/compare" "$tmp/metrics" --out "$tmp/again.json" && cmp "$tmp/again.json" "$tmp/metrics/comparison.json" &&
    cmp "$tmp/metrics/lora_r8/seed2/metrics.csv" "$tmp/made/lora_r8/seed2/metrics.csv"; }
check "METRICS=DIR gets the metrics of every run, enough to compare them again" kept_metrics
sum=$(cksum "$tmp"/made/lora_r8/seed*/run.json)
says "finished runs are kept" 0 "finished before, kept: $tmp/made/lora_r8/seed2" tools/compare.sh
check "untouched" test "$sum" = "$(cksum "$tmp"/made/lora_r8/seed*/run.json)"
says "runs with other settings are kept" 1 "> fit.epochs=2" env EPOCHS=2 tools/compare.sh
check "still untouched" test "$sum" = "$(cksum "$tmp"/made/lora_r8/seed*/run.json)"
says "AGAIN=1 trains them again" 0 "1 epochs" env AGAIN=1 SET=fit.lr=1e-3 SEEDS=1 tools/compare.sh
echo '{"version": 1}' >"$tmp/made/lora_r8/seed2/run.json"
says "a damaged run" 1 "AGAIN=1 trains it again" env SEEDS=2 SET=fit.lr=1e-3 tools/compare.sh
check "is trained again" env AGAIN=1 SEEDS=2 SET=fit.lr=1e-3 tools/compare.sh

# A run that is stopped in its middle, by the user or by the system, goes on with the same command.
stopped() { # SIGNAL EXIT-CODE TEXT SEED
    local dir=$tmp/stop/lora_r8/seed$4 pid run n=0
    set -m
    SEEDS=$4 tools/compare.sh >"$tmp/stop.out" 2>"$tmp/stop.err" &
    pid=$!
    set +m
    while [ ! -e "$dir/checkpoint" ] && kill -0 $pid 2>/dev/null && [ $((n++)) -lt 600 ]; do sleep 0.1; done
    run=$(grep -lzxF -- "$dir" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3)
    if [ "$1" = INT ]; then kill -INT -- -$pid; else kill -"$1" $run; fi
    wait $pid
    local rc=$?
    cat "$tmp/stop.err"
    [ $rc = "$2" ] && grep -qF -- "$3" "$tmp/stop.err" && [ -e "$dir/checkpoint" ] && [ ! -e "$dir/run.json" ]
}
mkdir -p "$tmp/stop/lora_r8" && cp -p "$tmp"/made/lora_r8/{run,program.c} "$tmp/stop/lora_r8/"
export RUNS=$tmp/stop EPOCHS=60
check "interrupted: says how to go on" stopped INT 130 "the same command goes on" 5
check "killed: says how to go on" stopped KILL 1 "failed with exit code 137" 6
check "both go on and are compared" env SEEDS=5,6 timeout 600 tools/compare.sh
whole() { for s in 5 6; do [ "$(grep -c '"epoch"' "$RUNS/lora_r8/seed$s/metrics.jsonl")" = 60 ] || return 1; done; }
check "with every epoch once" whole

# ---- on a GPU that computes nothing (fake_cuda.c) ----

fake() { # the three libraries, in $tmp/gpu
    mkdir -p "$tmp/gpu" && "${CC:-cc}" -w -shared -fPIC -I. -DSTUBS -c -o "$tmp/gpu/a.o" tests/suites/fake_cuda.c &&
        "${CC:-cc}" -w -shared -fPIC -I. -c -o "$tmp/gpu/b.o" tests/suites/fake_cuda.c &&
        "${CC:-cc}" -shared -o "$tmp/gpu/libcuda.so.1" "$tmp"/gpu/[ab].o &&
        cp "$tmp/gpu/libcuda.so.1" "$tmp/gpu/libnvrtc.so.12" && cp "$tmp/gpu/libcuda.so.1" "$tmp/gpu/libcublasLt.so.12"
}
check "a GPU that computes nothing" fake
gpu() { PEFTC_CUDA_LIBS=$tmp/gpu PEFTC_CACHE=$tmp/cache DEVICE=cuda EPOCHS=1 RUNS=$tmp/cuda "$@" tools/compare.sh; }
check "runs on it are compared" gpu env SEEDS=1
cp "$tmp/log" "$tmp/table"
says_gpu() {
    cat "$tmp/cuda/lora_r8/seed1/run.json"
    grep -qE '"gpu": "Fake GPU"' "$tmp/cuda/lora_r8/seed1/run.json" && grep -q '"compute": "bf16"' "$tmp/cuda/lora_r8/seed1/run.json" &&
        grep -qE '"driver": "([0-9.]+, )?CUDA [0-9]+\.[0-9]+"' "$tmp/cuda/lora_r8/seed1/run.json"
}
check "run.json says which, its driver and how it computed" says_gpu
check "so does comparison.json, and fits the schema" bash -c "'$bin/schema' docs/comparison.schema.json '$tmp/cuda/comparison.json' &&
    grep -q '\"gpu\": \"Fake GPU\"' '$tmp/cuda/comparison.json'"
check "the table says VRAM, and on what" bash -c "grep -q 'VRAM MB' '$tmp/table' && grep -q 'measured on Fake GPU, driver .*, matrices in bf16' '$tmp/table'"
says "COMPUTE is a setting" 1 "> device cuda fp32" gpu env SEEDS=1 COMPUTE=fp32

# ---- on a terminal ----

# What a terminal of WIDTH columns shows at the end of a stream; fails when a mode was changed.
cat >"$tmp/screen" <<'P'
use strict;
my ($width, @row) = (shift, "");
my ($y, $x, $text) = (0, 0, do { local $/; <STDIN> });
while ($text =~ /\G(?:\e\[([?0-9;]*)([A-Za-z])|([^\e]))/gcs) {
    my ($n, $command, $c) = ($1, $2, $3);
    if (defined $c) {
        if ($c eq "\r") { $x = 0 }
        elsif ($c eq "\n") { $y++, $x = 0; $row[$y] //= "" }
        else {
            if ($x == $width) { $y++, $x = 0; $row[$y] //= "" }
            $row[$y] .= " " x ($x - length $row[$y]) if length $row[$y] < $x;
            substr($row[$y], $x++, 1) = $c;
        }
    }
    elsif ($command eq "A") { $y -= $n; $y = 0 if $y < 0 }
    elsif ($command eq "K") { $row[$y] = substr $row[$y], 0, $x }
    elsif ($command eq "J") { $row[$y] = substr $row[$y], 0, $x; $#row = $y }
    elsif ($command ne "m") { die "the terminal was told ESC [ $n$command" }
}
die "an escape that is none" if (pos($text) // 0) != length $text;
s/ +$// for @row;
print "$_\n" for @row;
P

# Runs a command on a terminal of so many columns and 24 rows. $tmp/stream gets what it was sent,
# $tmp/shown what it shows at the end.
on_terminal() { # COLUMNS COMMAND...
    local columns=$1
    shift
    printf '%q ' "$@" >"$tmp/command"
    TERM=xterm script -qec "stty cols $columns rows 24; . '$tmp/command'" /dev/null </dev/null >"$tmp/stream" 2>&1
    local rc=$?
    perl "$tmp/screen" "$columns" <"$tmp/stream" >"$tmp/shown" || return 1
    cat "$tmp/shown"
    return $rc
}
shows() { # LINE...: extended regular expressions, each of a whole line
    local line
    for line in "$@"; do grep -qxE -- "$line" "$tmp/shown" || { echo "no '$line' in:"; cat "$tmp/shown"; return 1; }; done
}
lacks() { ! grep -qE -- "$2" "$tmp/$1"; } # FILE PATTERN
inside() { # COLUMNS: the table is there, and no line of it reaches the edge
    sed -n '/^full_ft  *[0-9#]/,$p' "$tmp/shown" | awk -v w="$1" 'length >= w {print; bad = 1} END {exit bad || NR < 4}'
}

if ! script -qec true /dev/null </dev/null >/dev/null 2>&1 || ! command -v perl >/dev/null; then
    echo "skip the table on a terminal: needs script and perl"
else
    good live
    cat >"$tmp/said" <<'T'
[1/3] full_ft, seed 42, fit.lr=2e-5
memory: 21.1 MB planned for the worst batch (424 tokens; lower bound 21.1 MB)
full_ft epoch 1/2: 94/188 | loss 0.6931 | lr 1.00e-05 | 1,234 tokens/s | 0:12 left
validation: 32/1000 | evaluating | 0:01 left
epoch 1: train loss 0.5000, validation loss 0.4000, macro F1 0.8123, accuracy 0.8123, 6.0 s, 1234 tokens/s, best so far
[2/3] lora_r8, seed 7, fit.lr=1e-4
make compare: lora_r8, seed 7 failed with exit code 1; finished runs are kept, the same command tries it again
[3/3] qlora_r16, seed 1, fit.lr=1e-4
qlora_r16 epoch 1/2: 94/188 | loss 1.2345 | lr 1.00e-05 | 12,345 tokens/s | 1:02:03 left
T
    filter() { # COLUMNS [SETTING]...: the table of what was said
        on_terminal "$1" env "${@:2}" bash -c '"$0" "$1" full_ft/42 lora_r8/7 qlora_r16/1 <"$2"' "$bin/live" "$tmp/live" "$tmp/said"
    }
    check "the table on 80 columns" filter 80
    check "a finished run has the numbers of its run.json" shows 'full_ft +#+ 100% +done 0\.3000 0\.9500 +100\.0 +33'
    check "a failed one says so" shows 'lora_r8 +\.+ +0% +failed'
    check "one that only stopped, too" shows 'qlora_r16 +#+\.+ +25% +stopped 1\.2345 +12,345'
    check "progress moves the table" lacks shown ' left$'
    check "the rest is printed above it" shows 'memory: 21\.1 MB planned .*' 'make compare: lora_r8, seed 7 failed .*'
    check "the table is there once" test "$(grep -c ' tokens/s$' "$tmp/shown")" = 1
    check "in colour" grep -q $'\033\\[31m' "$tmp/stream"
    check "60 columns and NO_COLOR" filter 60 NO_COLOR=1
    check "without colour" lacks stream $'\033\\[[0-9]*m'
    check "every column fits" shows 'full_ft +100% +done 0\.3000 0\.9500 +100\.0 +33'
    check "no line reaches the edge" inside 60
    check "20 columns" filter 20
    check "no line reaches that edge" inside 20
    for i in {1..60}; do echo "[$i/99] p, seed $i"; done >"$tmp/said"
    check "99 runs" on_terminal 80 bash -c '"$0" "$1" p/{1..99} <"$2"' "$bin/live" "$tmp/live" "$tmp/said"
    check "as many as fit, around the current one" test "$(grep -c '^p [0-9]* ' "$tmp/shown"; grep -c '^p 60 ' "$tmp/shown")" = $'20\n1'
    says "the table of nothing" 2 "usage: live" "$bin/live" "$tmp/live"
    { head -c 20000 /dev/zero | tr '\0' x; printf '\n\0\n[99/3] x\n[2/3]\n[1/3] a\na epoch 0/0: 1/0 | loss x | 0:00 left\n[2/3]'; } >"$tmp/said"
    check "lines too long, without sense or without an end" filter 80

    export RUNS=$tmp/made EPOCHS=1
    check "make compare on a terminal" on_terminal 60 env AGAIN=1 tools/compare.sh
    check "a row a run, all done" shows 'lora_r8 1 +100% +done .*' 'lora_r8 2 +100% +done .*' '2 of 2 done, .*'
    check "a run alone on 60 columns" on_terminal 60 "$RUNS/lora_r8/run" train --base examples/base --data "$tmp/data" \
        --out "$tmp/alone" --overwrite --threads 1 --set fit.epochs=8
    check "says how far it is" grep -q 'lora_r8 epoch 1/8 .*4/4 | loss ' "$tmp/stream"
    check "that leaves nothing behind" lacks shown ' left$|evaluating'
    plain() { tools/compare.sh >"$tmp/stream" 2>&1 && grep -q 'finished before' "$tmp/stream" && lacks stream $'\033'; }
    check "elsewhere there are plain lines" plain

    # Ctrl-C, typed: the run stops with its checkpoint, the terminal is as it was.
    typed() {
        local n=0 dir=$tmp/stop/lora_r8/seed8 session
        mkfifo "$tmp/keys" || return 1
        cat >"$tmp/command" <<C
stty cols 80 rows 24; stty -a >"$tmp/before"
SEEDS=8 EPOCHS=60 RUNS="$tmp/stop" tools/compare.sh; echo \$? >"$tmp/rc"
stty -a >"$tmp/after"
C
        TERM=xterm script -qec ". '$tmp/command'" /dev/null <"$tmp/keys" >"$tmp/stream" 2>&1 &
        session=$!
        exec 9>"$tmp/keys"
        while [ ! -e "$dir/checkpoint" ] && [ $((n++)) -lt 600 ]; do sleep 0.1; done
        printf '\003' >&9
        wait $session
        exec 9>&-
        perl "$tmp/screen" 80 <"$tmp/stream" >"$tmp/shown" || return 1
        cat "$tmp/shown"
        [ "$(cat "$tmp/rc")" = 130 ] && cmp "$tmp/before" "$tmp/after" && [ -e "$dir/checkpoint" ] && [ ! -e "$dir/run.json" ]
    }
    check "Ctrl-C stops it and leaves the terminal as it was" typed
    check "the table says how far it came" shows 'lora_r8 .* +[0-9]+% +stopped .*' '0 of 1 done, .*' 'make compare: interrupted.*'
fi

if mkdir "$tmp/full" && mount -t tmpfs -o size=400k tmpfs "$tmp/full" 2>/dev/null; then
    says "a full disk" 1 "No space left" env RUNS="$tmp/full" METRICS="$tmp/metrics2" SEEDS=1 tools/compare.sh
    umount "$tmp/full"
else
    echo "skip a full disk: cannot mount a small file system here"
fi
