#!/usr/bin/env bash
# Compiled programs as a user meets them: reproducible, resumable, as large as planned, and clear about
# bad input. Uses the generated phrases and a tiny encoder trained from scratch.
set -u
tmp=$(mktemp -d "$PEFTC_TMP/programs.XXXXXX") peftc=$PEFTC_BUILD/peftc
. tests/cases.sh
same() { cmp "$1/metrics.jsonl" "$2/metrics.jsonl" && cmp "$1/metrics.csv" "$2/metrics.csv" && cmp "$1/$3" "$2/$3"; }

# ---- a base and some data ----
mkdir -p "$tmp/all/text"
. tests/tiny_encoder.sh
for m in full_ft lora_r8 lora_r16 qlora_r16 adapters dora mlm; do
    check "compile $m" "$peftc" "models/$m.bert" --base "$tmp/base" --opt 1 -o "$tmp/$m"
done
train() { # PROGRAM OUT options...
    "$tmp/$1" train --base "$tmp/base" --data "$tmp/data" --scratch --out "$tmp/$2" --set fit.epochs=2 --set fit.lr=1e-3 "${@:3}"
}

# ---- the same bytes ----
check "train lora_r16" train lora_r16 a
check "train again, one thread" train lora_r16 b --threads 1
check "two runs give the same bytes" same "$tmp/a" "$tmp/b" adapter_model.safetensors
check "train full_ft" train full_ft f1 --threads 3
check "train full_ft again" train full_ft f2 --threads 1
check "threads do not matter" same "$tmp/f1" "$tmp/f2" model.safetensors
check "stop after 3 steps" train lora_r16 c --steps 3
check "go on" train lora_r16 c --resume
check "a resumed run gives the same bytes" same "$tmp/a" "$tmp/c" adapter_model.safetensors
check "stop after an epoch" train full_ft f3 --steps 5
check "go on after an epoch" train full_ft f3 --resume
check "resuming between epochs gives the same bytes" same "$tmp/f1" "$tmp/f3" model.safetensors

killed() { # a run that is killed outright after its first checkpoint goes on to the same bytes
    train lora_r16 k --set fit.epochs=40 --checkpoint-every 1 &
    local pid=$! n=0
    while [ ! -f "$tmp/k/checkpoint" ] && [ $((n++)) -lt 400 ]; do sleep 0.05; done
    kill -9 $pid
    wait $pid 2>/dev/null
    [ ! -f "$tmp/k/run.json" ] || { echo "it had finished already"; return 1; }
    train lora_r16 k --set fit.epochs=40 --resume && train lora_r16 k2 --set fit.epochs=40 &&
        same "$tmp/k" "$tmp/k2" adapter_model.safetensors
}
check "a killed run gives the same bytes" killed

# A checkpoint comes once a minute. Both runs have thousands of steps an epoch and are killed in the first.
fast_clock() { "${CC:-cc}" -shared -fPIC -O1 -o "$tmp/fast_clock.so" tests/suites/fast_clock.c; }
first_epoch() { # OUT FILE TEXT: in the background, killed once the file has the text
    train lora_r16 "$1" --data "$tmp/all" --set fit.batch=1 &
    local pid=$! n=0 rc=0
    until grep -qs -- "$3" "$tmp/$1/$2" || [ $((n++)) -ge 3000 ]; do
        kill -0 $pid 2>/dev/null || break
        sleep 0.02
    done
    kill -9 $pid || rc=1
    wait $pid 2>/dev/null
    tail -1 "$tmp/$1/metrics.jsonl"
    [ $rc = 0 ] && grep -q '"step": 10,' "$tmp/$1/metrics.jsonl" && ! grep -q '"epoch"' "$tmp/$1/metrics.jsonl"
}
minute() { LD_PRELOAD=$tmp/fast_clock.so ASAN_OPTIONS=verify_asan_link_order=0 first_epoch timed checkpoint '' && [ -e "$tmp/timed/checkpoint" ]; }
sooner() { first_epoch untimed metrics.jsonl '"step": 100,' && [ ! -e "$tmp/untimed/checkpoint" ]; }
check "a clock that is faster" fast_clock
check "a minute within an epoch leaves a checkpoint" minute
check "less than a minute does not" sooner

# ---- memory: what was planned is what is reached ----
number() { sed -n "s/.*\"$2\": \([0-9]*\).*/\1/p" "$1" | head -1; }
planned() {
    train "$1" "m-$1" || return 1
    local plan reached
    plan=$(number "$tmp/m-$1/run.json" planned_bytes) reached=$(number "$tmp/m-$1/run.json" reached_bytes)
    echo "planned $plan, reached $reached"
    [ -n "$plan" ] && [ "$plan" = "$reached" ]
}
for m in full_ft lora_r8 lora_r16 qlora_r16 adapters dora; do check "$m reaches its plan to the byte" planned $m; done
plan_verb() {
    local said
    said=$("$tmp/lora_r16" plan --base "$tmp/base" --data "$tmp/data" --scratch --json --set fit.epochs=2 --set fit.lr=1e-3) || return 1
    echo "$said"
    [ "$(echo "$said" | sed -n 's/.*"peak_bytes": \([0-9]*\).*/\1/p' | head -1)" = "$(number "$tmp/a/run.json" planned_bytes)" ]
}
check "plan says what train uses" plan_verb
check "the null device finds no fault" train lora_r16 null --device null
check "mask and pre-train" "$tmp/mlm" train --base "$tmp/base" --data "$tmp/all/text" --scratch --out "$tmp/mlm1" --steps 5

# ---- using the result ----
mkdir -p "$tmp/trained" && cp "$tmp/base/"* "$tmp/f1/model.safetensors" "$tmp/trained/"
check "train on a trained base" "$tmp/lora_r16" train --base "$tmp/trained" --data "$tmp/data" --out "$tmp/p"
score() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" | cut -c1-8; }
evaluate() {
    local now then
    now=$("$tmp/lora_r16" eval --from "$tmp/p" --data "$tmp/data" --json | score f1_macro)
    then=$(score test_f1_macro <"$tmp/p/run.json")
    echo "now $now, then $then"
    [ -n "$now" ] && [ "$now" = "$then" ]
}
check "eval repeats the test score" evaluate
check "predict" eval '"$tmp/lora_r16" predict --from "$tmp/p" --json "the film is not dull" | grep -q probabilities'
check "predict with a whole model" eval '"$tmp/full_ft" predict --from "$tmp/f1" "the film is not dull" | grep -q "the film"'
check "tokenize" eval '[ "$(echo "the film ." | "$tmp/lora_r16" tokenize --base "$tmp/base" | wc -w)" = 5 ]'
check "help" eval '"$tmp/lora_r16" train --help | grep -q -- --resume'
check "about" eval '"$tmp/lora_r16" | grep -q trainable'

# ---- bad input ----
t() { "$tmp/lora_r16" train --base "$tmp/base" --scratch --data "$tmp/data" --out "$tmp/bad" "$@"; }
d() { # a train.tsv with this content
    rm -rf "$tmp/d"; mkdir -p "$tmp/d"; printf "$1" >"$tmp/d/train.tsv"; cp "$tmp/data/test.tsv" "$tmp/d/dev.tsv"
    cp "$tmp/data/validation.tsv" "$tmp/d/"
    "$tmp/lora_r16" train --base "$tmp/base" --scratch --data "$tmp/d" --out "$tmp/bad"
}
refuse "unknown verb" 2 "did you mean train" "$tmp/lora_r16" trian
refuse "unknown option" 2 "did you mean --data" "$tmp/lora_r16" train --dta x
refuse "a stray argument" 2 "unexpected argument 'stray'; train takes options only" "$tmp/lora_r16" train stray
refuse "a stray argument after an option" 2 "unexpected argument 'stray'" t --threads 1 stray
refuse "an option before the verb" 2 "unexpected argument 'train'; a verb comes before its options" "$tmp/lora_r16" --json train
refuse "option without value" 2 "needs a value" "$tmp/lora_r16" train --out
refuse "no base" 2 "--base" "$tmp/lora_r16" train --data "$tmp/data" --out "$tmp/bad"
refuse "no out" 2 "--out" "$tmp/lora_r16" train --base "$tmp/base" --data "$tmp/data"
refuse "missing base" 1 "nowhere" "$tmp/lora_r16" train --base "$tmp/nowhere" --data "$tmp/data" --out "$tmp/bad"
refuse "missing data" 1 "nowhere" "$tmp/lora_r16" train --base "$tmp/base" --scratch --data "$tmp/nowhere" --out "$tmp/bad"
refuse "base without weights" 1 "safetensors" "$tmp/lora_r16" train --base "$tmp/base" --data "$tmp/data" --out "$tmp/bad"
refuse "unknown --set" 2 "did you mean fit.lr" t --set fit.lrr=1
refuse "bad --set value" 2 "fit.epochs" t --set fit.epochs=two
refuse "over the budget" 3 "budget" t --memory 10KB
refuse "plan over the budget" 3 "budget" "$tmp/lora_r16" plan --base "$tmp/base" --scratch --data "$tmp/data" --memory 10KB
refuse "finished run" 1 "--overwrite" train lora_r16 a
cp -r "$tmp/a" "$tmp/a.copy"
refuse "--overwrite over the budget" 3 "budget" train lora_r16 a --overwrite --memory 10KB
refuse "--overwrite with a wrong setting" 2 "fit.epochs" train lora_r16 a --overwrite --set fit.epochs=two
refuse "--overwrite with missing data" 1 "nowhere" "$tmp/lora_r16" train --base "$tmp/base" --scratch --data "$tmp/nowhere" --out "$tmp/a" --overwrite
refuse "--overwrite with a base without weights" 1 "safetensors" "$tmp/lora_r16" train --base "$tmp/base" --data "$tmp/data" --out "$tmp/a" --overwrite
check "the finished run is as it was" diff -r "$tmp/a.copy" "$tmp/a"
refuse "nothing to resume" 1 "no checkpoint" t --resume
refuse "no label column" 1 "label" d 'sentence\tmark\na\t1\n'
refuse "bad label" 1 "train.tsv:3" d 'sentence\tlabel\na\t1\nb\tx\n'
refuse "empty file" 1 "train.tsv" d ''
refuse "NUL byte" 1 "train.tsv:2" d 'sentence\tlabel\na\0b\t1\n'
refuse "too few columns" 1 "train.tsv:2" d 'sentence\tlabel\nonly text\n'
refuse "number of classes" 2 "--set classes=3" d 'sentence\tlabel\na\t0\nb\t1\nc\t2\n'
refuse "unwritable out" 1 "/proc/nothing" "$tmp/lora_r16" train --base "$tmp/base" --scratch --data "$tmp/data" --out /proc/nothing
sed 's/"hidden_size": 48/"hidden_size": 51/' "$tmp/base/config.json" >"$tmp/config51" && mkdir -p "$tmp/base51" && cp "$tmp/base/vocab.txt" "$tmp/base51/" && cp "$tmp/config51" "$tmp/base51/config.json"
refuse "base of another size" 2 "compile it again" "$tmp/lora_r16" train --base "$tmp/base51" --data "$tmp/data" --out "$tmp/bad"
mkdir -p "$tmp/short" && cp "$tmp/base/config.json" "$tmp/short/" && head -50 "$tmp/base/vocab.txt" >"$tmp/short/vocab.txt"
refuse "vocabulary too short" 1 "vocab_size" "$tmp/lora_r16" train --base "$tmp/short" --scratch --data "$tmp/data" --out "$tmp/bad"
mkdir -p "$tmp/cut" && cp "$tmp/base/"* "$tmp/cut/" && head -c 1000 "$tmp/f1/model.safetensors" >"$tmp/cut/model.safetensors"
refuse "truncated weights" 1 "cut/model.safetensors" "$tmp/lora_r16" train --base "$tmp/cut" --data "$tmp/data" --out "$tmp/bad"
check "train that was refused leaves no folder" [ ! -e "$tmp/bad" ]
check "compile for three classes" "$peftc" models/lora_r16.bert --base "$tmp/base" --opt 1 --set classes=3 -o "$tmp/three"
refuse "predict with an adapter of other classes" 2 "$tmp/p was trained by a 'lora_r16' of .* has .*--set \\(classes" \
    "$tmp/three" predict --from "$tmp/p" "the film is not dull"
refuse "eval with it" 2 "$tmp/p was trained by" "$tmp/three" eval --from "$tmp/p" --data "$tmp/data"
disk_full() { ( ulimit -f 20; trap '' XFSZ; t --overwrite --checkpoint-every 1 ); }
refuse "disk full" 1 "$tmp/bad" disk_full
check "nothing half-written is left" eval '! ls "$tmp"/bad/*.tmp* 2>/dev/null && [ ! -e "$tmp/bad/run.json" ]'
refuse "program without a file" 2 "nothing.bert" "$peftc" nothing.bert
refuse "unknown peftc option" 2 "did you mean --emit" "$peftc" --emt c
rm -rf "$tmp"
