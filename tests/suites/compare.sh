#!/usr/bin/env bash
# The comparison: corpus, baseline, float16 converter, aggregator on good and broken runs, and
# tools/compare.sh from a first run over an interrupted one to a changed setting.
set -u
tmp=$(mktemp -d "$PEFTC_TMP/compare.XXXXXX") bin=$PEFTC_BUILD
case_ok() { echo "ok $1"; }
case_fail() { echo "FAIL $1: $2"; }
check() { # NAME COMMAND...: passes when the command does
    local name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then case_ok "$name"; else case_fail "$name" "$(tail -3 "$tmp/log" | tr '\n' ' ')"; fi
}
says() { # NAME EXIT-CODE TEXT COMMAND...: exits so, and stderr has the text
    local name=$1 code=$2 text=$3
    shift 3
    "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    local rc=$?
    if [ $rc != "$code" ]; then case_fail "$name" "exit $rc, not $code: $(tail -2 "$tmp/err" | tr '\n' ' ')"
    elif ! grep -qF -- "$text" "$tmp/err"; then case_fail "$name" "no '$text' in: $(tail -3 "$tmp/err" | tr '\n' ' ')"
    else case_ok "$name"; fi
}
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
kept_metrics() { METRICS=$tmp/metrics tools/compare.sh && cmp "$tmp/metrics/comparison.json" "$tmp/made/comparison.json" &&
    cmp "$tmp/metrics/lora_r8/seed2/metrics.csv" "$tmp/made/lora_r8/seed2/metrics.csv"; }
check "METRICS=DIR gets the metrics of every run" kept_metrics
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
    run=$(pgrep -g $pid -f -- "--out $dir")
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
check "both go on and are compared" env SEEDS=5,6 timeout 100 tools/compare.sh
whole() { for s in 5 6; do [ "$(grep -c '"epoch"' "$RUNS/lora_r8/seed$s/metrics.jsonl")" = 60 ] || return 1; done; }
check "with every epoch once" whole

if mkdir "$tmp/full" && mount -t tmpfs -o size=256k tmpfs "$tmp/full" 2>/dev/null; then
    says "a full disk" 1 "No space left" env RUNS="$tmp/full" METRICS="$tmp/metrics2" SEEDS=1 tools/compare.sh
    umount "$tmp/full"
else
    echo "skip a full disk: cannot mount a small file system here"
fi
