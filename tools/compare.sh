#!/usr/bin/env bash
# Trains several programs on one base and one data set, one after another, and compares them.
# `make compare` calls it; every setting is an environment variable (make compare BASE=dir ...):
#
#   BASE      folder of the encoder: config.json, vocab.txt, model.safetensors
#   DATA      folder of the data: train.tsv, dev.tsv or AG News CSV
#   TASK      sst2 or agnews; default: by the files in DATA
#   SEEDS     42,43,44: each program is trained with each; default 42
#   PROGRAMS  names in models/; default the five of the comparison
#   COMPUTE   bf16 or fp32, on a GPU; default bf16
#   EPOCHS, BATCH, THREADS, DEVICE, SET ("fit.lr=1e-4 fit.warmup=6%")   onto every program
#   RUNS      where programs and runs are kept; default out/compare or out/compare-BASE-DATA
#   METRICS   where comparison.json and the metrics of the runs go; default RUNS
#   AGAIN=1   train again what was trained with other settings
#   REPLACE=1 replace a comparison.json of other data
#
# On a terminal a table of all runs stays at its bottom (tools/live.c); elsewhere there are plain lines.
# A finished run is kept as long as the same command would make it again: program, base, data and
# settings are compared by content (seedN.settings). An interrupted one goes on from its checkpoint.
# A run that fails does not stop the others; the exit code is then 1, after an interrupt 130.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
embedded=examples/base
BASE=${BASE:-$embedded} TASK=${TASK:-} SEEDS=${SEEDS:-42} AGAIN=${AGAIN:-} REPLACE=${REPLACE:-}
PROGRAMS=${PROGRAMS:-full_ft lora_r8 lora_r16 qlora_r16 adapters}
BASE=${BASE%/} DATA=${DATA:-} DATA=${DATA%/}
failed='' table=''
# Threads that spin while they wait are up to seven times slower when something else runs on the machine.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

say() { printf '%s\n' "$*" >&2; }
die() { say "make compare: $*"; exit 1; }

# ---- what was asked for ----

check_base() {
    [ -d "$BASE" ] || die "BASE=$BASE is not a folder; \`make fetch\` gets an encoder into data/minilm"
    local f
    for f in config.json vocab.txt; do
        [ -r "$BASE/$f" ] || die "BASE=$BASE has no readable $f; it takes config.json, vocab.txt and" \
            "model.safetensors of a BERT as Hugging Face publishes it"
    done
    [ -r "$BASE/model.safetensors" ] || [ -r "$BASE/model.safetensors.index.json" ] ||
        die "BASE=$BASE has no model.safetensors; weights in another format have to be saved as" \
            "safetensors first"
}

check_settings() {
    local seed program
    case $TASK in
    '' | sst2 | agnews | tsv | csv) ;;
    *) die "TASK=$TASK is unknown; there are sst2 (TSV with sentence and label) and agnews (CSV)" ;;
    esac
    for seed in ${SEEDS//,/ }; do
        [[ $seed =~ ^[0-9]{1,15}$ ]] || die "SEEDS=$SEEDS: '$seed' is not a whole number"
    done
    for program in ${PROGRAMS//,/ }; do
        [ -r "models/$program.bert" ] || die "PROGRAMS: there is no models/$program.bert"
    done
}

choose_data() {
    if [ -z "$DATA" ]; then
        [ "$BASE" = "$embedded" ] || die "BASE=$BASE needs DATA=DIR, the folder with the task's train.tsv and dev.tsv"
        DATA=$build/corpus
    fi
    if [ ! -d "$DATA" ] || [ ! -r "$DATA" ]; then die "DATA=$DATA is not a folder that can be read"; fi
    if [ "$BASE" = "$embedded" ] && [ "$DATA" = "$build/corpus" ]; then
        RUNS=${RUNS:-out/compare}
    else
        RUNS=${RUNS:-out/compare-$(basename "$BASE")-$(basename "$DATA")}
    fi
    METRICS=${METRICS:-$RUNS}
    mkdir -p "$RUNS" "$METRICS" || die "cannot write in $RUNS or $METRICS"
}

# ---- programs ----

# The settings a base folder recommends for a program (fit.txt: "PROGRAM fit.lr=1e-3 ..."), then
# those of the command line, which win.
settings_of() { # PROGRAM
    [ -r "$BASE/fit.txt" ] && sed -n "s/^$1 //p" "$BASE/fit.txt" | tr ' ' '\n'
    [ -z "${EPOCHS:-}" ] || echo "fit.epochs=$EPOCHS"
    [ -z "${BATCH:-}" ] || echo "fit.batch=$BATCH"
    [ -z "${SET:-}" ] || tr ' ' '\n' <<<"$SET"
}

# Words the programs learn nothing of order from; also the first to look at vocabulary and data.
measure_baseline() {
    "$build/bow" --vocab "$BASE/vocab.txt" --data "$DATA" ${TASK:+--task "$TASK"} \
        --out "$RUNS/baseline.json" || exit 1
    classes=$(sed -n 's/.*"classes": \([0-9]*\).*/\1/p' "$RUNS/baseline.json")
}

# Compiles models/PROGRAM.bert into RUNS/PROGRAM/run, unless what is there came from the same C.
compile() { # PROGRAM
    local dir=$RUNS/$1
    mkdir -p "$dir" || return 1
    "$build/peftc" "models/$1.bert" --base "$BASE" --set "classes=$classes" --emit c \
        -o "$dir/program.c.new" || return 1
    if [ -x "$dir/run" ] && [ "$dir/run" -nt "$build/libpeftrt.a" ] &&
        cmp -s "$dir/program.c.new" "$dir/program.c"; then
        rm "$dir/program.c.new"
        return 0
    fi
    "$build/peftc" "models/$1.bert" --base "$BASE" --set "classes=$classes" -o "$dir/run" || return 1
    mv "$dir/program.c.new" "$dir/program.c"
}

# ---- runs ----

checksum() { # FILE...: of those that exist
    local f
    for f in "$@"; do [ ! -f "$f" ] || printf '%s %s\n' "$(basename "$f")" "$(cksum <"$f")"; done
}

describe() { # PROGRAM SEED: everything the run's result depends on
    printf 'program %s\n' "$1"
    checksum "$RUNS/$1/program.c"
    printf 'task %s\ndevice %s\nseed %s\n' "${TASK:-auto}" "${DEVICE:-cpu}${COMPUTE:+ $COMPUTE}" "$2"
    settings_of "$1"
    cat "$RUNS/inputs"
}

state_of() { # PROGRAM SEED -> finished, broken, other, interrupted or new
    local dir=$RUNS/$1/seed$2
    if [ ! -e "$dir/run.json" ] && [ ! -e "$dir/checkpoint" ]; then echo new
    elif ! cmp -s "$dir.settings" "$dir.settings.new"; then echo other
    elif [ -e "$dir/run.json" ]; then
        if "$build/compare" --check "$dir"; then echo finished; else echo broken; fi
    else echo interrupted; fi
}

# One run: kept, resumed or made. Returns the program's exit code.
train() { # PROGRAM SEED
    local dir=$RUNS/$1/seed$2 how=() set=() state s
    describe "$1" "$2" >"$dir.settings.new" || return 1
    state=$(state_of "$1" "$2")
    if [ -z "$AGAIN" ] && { [ "$state" = other ] || [ "$state" = broken ]; }; then
        if [ "$state" = other ]; then
            say "$dir was made with other settings or another version (< then, > now):"
            diff "$dir.settings" "$dir.settings.new" 2>/dev/null | grep '^[<>]' | head -6 >&2
        fi
        say "AGAIN=1 trains it again; RUNS=DIR keeps it and puts new runs elsewhere"
        rm -f "$dir.settings.new"
        return 1
    fi
    mv "$dir.settings.new" "$dir.settings" || return 1
    case $state in
    finished) say "finished before, kept: $dir"; return 0 ;;
    interrupted) how=(--resume) ;;
    other | broken) how=(--overwrite) ;;
    esac
    for s in $(settings_of "$1"); do set+=(--set "$s"); done
    "$RUNS/$1/run" train --base "$BASE" --data "$DATA" --out "$dir" --set "fit.seed=$2" \
        ${set[@]+"${set[@]}"} ${how[@]+"${how[@]}"} ${TASK:+--task "$TASK"} \
        ${THREADS:+--threads "$THREADS"} ${DEVICE:+--device "$DEVICE"} ${COMPUTE:+--compute "$COMPUTE"} 1>&2
}

stop() { # RC PROGRAM SEED
    [ "$1" = 130 ] && { say "make compare: interrupted in $2, seed $3; the same command goes on from there"; exit 130; }
    say "make compare: $2, seed $3 failed with exit code $1; finished runs are kept, the same command tries it again"
    failed="$failed $2/seed$3"
}

# On a terminal everything that is said from here on goes through the table, which ends with its input.
start_table() {
    local program seed runs=()
    if [ ! -t 2 ] || [ "${TERM:-dumb}" = dumb ]; then return; fi
    for program in ${PROGRAMS//,/ }; do for seed in ${SEEDS//,/ }; do runs+=("$program/$seed"); done; done
    [ ${#runs[@]} -le 256 ] || return
    exec 3>&2 2> >(exec "$build/live" "$RUNS" "${runs[@]}" >&3 2>&3)
    table=$!
    export PEFTC_PROGRESS_SECONDS=0.2
    trap end_table EXIT
}
end_table() {
    [ -n "$table" ] || return
    exec 2>&3
    wait "$table"
    table=''
}

run_all() {
    local program seed n=0 total=0 rc
    for program in ${PROGRAMS//,/ }; do for seed in ${SEEDS//,/ }; do total=$((total + 1)); done; done
    for program in ${PROGRAMS//,/ }; do
        rc=''
        for seed in ${SEEDS//,/ }; do
            n=$((n + 1))
            say ""
            say "[$n/$total] $program, seed $seed$(settings_of "$program" | sed "s/^/, /" | tr -d "\n")"
            if [ -z "$rc" ]; then
                compile "$program"
                rc=$?
            fi
            if [ $rc != 0 ]; then stop $rc "$program" "$seed"; continue; fi
            train "$program" "$seed" || { stop $? "$program" "$seed"; continue; }
            [ -n "$table" ] || [ $n = $total ] || "$build/compare" "$RUNS" --brief >&2
        done
    done
}

copy_metrics() {
    local run to
    [ "$METRICS" != "$RUNS" ] || return 0
    cp "$RUNS/baseline.json" "$METRICS/" || return 1
    for run in "$RUNS"/*/seed*/run.json; do
        [ -e "$run" ] || continue
        to=$METRICS/${run#"$RUNS"/}
        mkdir -p "${to%/*}" && cp "${run%/*}"/{run.json,metrics.jsonl,metrics.csv} "${to%/*}/" || return 1
    done
}

check_settings
check_base
choose_data
measure_baseline
checksum "$BASE"/{config.json,vocab.txt} "$BASE"/*.safetensors "$DATA"/{train,validation,val,dev,test}.{tsv,csv}{,.gz} \
    >"$RUNS/inputs" || die "cannot write $RUNS/inputs"
trap 'say "make compare: interrupted; the same command goes on from there"; exit 130' INT TERM
start_table
run_all
end_table
say ""
"$build/compare" "$RUNS" --out "$METRICS/comparison.json" ${REPLACE:+--replace} || failed="$failed table"
copy_metrics || failed="$failed metrics"
[ -z "$failed" ] || die "not complete:$failed"
say "written: $METRICS/comparison.json"
