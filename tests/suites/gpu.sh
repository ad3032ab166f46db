#!/usr/bin/env bash
# The CUDA backend on a real GPU: `make test-gpu`, or by hand
#   [PEFTC_BUILD=DIR] tests/suites/gpu.sh [golden parity order repeat faults sanitizer]
# Where no GPU can be used, what needs one is skipped; with PEFTC_GPU=require its absence is a failure. Programs are
# compiled from models/ for the embedded base, so nothing else is needed.
#
# Tolerances. golden: see tests/tools/golden.c. parity: a loss in float32 depends on the order of sums alone, some
# 1e-6 of it a step, which AdamW's division by small gradients amplifies: 1e-4 of the loss. In bf16 every stored matrix
# is off by at most 2^-9 = 2e-3 of an element; through the eight sub-layers of the base a logit by some 1 %
# (tests/golden/bf16_models.py on models of two and three layers: 0.4 to 2 %): 1e-2 of the loss.
set -u
cd "$(dirname "$0")/../.." || exit
build=${PEFTC_BUILD:-build}
tmp=$(mktemp -d "${PEFTC_TMP:-${TMPDIR:-/tmp}}/gpu.XXXXXX") peftc=$build/peftc
trap 'rm -rf "$tmp"' EXIT
# Stored choices of algorithms decide bits, so all runs share a cache.
export PEFTC_BUILD=$build PEFTC_TMP=$tmp PEFTC_CACHE=${PEFTC_CACHE:-$tmp/cache}
parts=${*:-golden parity order repeat faults sanitizer}
variants='full_ft lora_r8 lora_r16 qlora_r16 adapters'
base=examples/base data=$tmp/data
. tests/cases.sh

train() { # PROGRAM OUT options...
    "$tmp/$1" train --base $base --data "$data" --out "$tmp/$2" "${@:3}"
}
gpu_train() { train "$@" --device cuda; }
weights() { # PROGRAM: the name of the file that its training ends with
    case $1 in full_ft) echo model.safetensors ;; adapters) echo adapter.safetensors ;; *) echo adapter_model.safetensors ;; esac
}
same() { # PROGRAM OUT OUT
    local f
    for f in metrics.jsonl metrics.csv "$(weights "$1")"; do cmp "$tmp/$2/$f" "$tmp/$3/$f" || return 1; done
}

# ---- data, programs, the GPU ----

# 48 rows are two steps an epoch, of 32 and of 16 rows; the last step of an epoch is always recorded.
gpu=no
has_gpu() { "$tmp/lora_r16" devices --json | grep -q '"usable": *true'; }
program() { # NAME
    "$peftc" "models/$1.bert" --base $base --opt 1 -o "$tmp/$1" || { case_fail setup "$1"; return 1; }
}
setup() {
    local f m
    mkdir -p "$tmp/all" "$data"
    "$build/phrases" "$tmp/all" || { case_fail setup phrases; return 1; }
    for f in train validation test; do head -49 "$tmp/all/$f.tsv" >"$data/$f.tsv"; done
    program lora_r16 || return 1
    if has_gpu; then gpu=yes; elif [ "${PEFTC_GPU:-}" = require ]; then
        case_fail "a GPU" "none that can be used: $("$tmp/lora_r16" devices | tr '\n' ' ')"
    fi
    [ $gpu = yes ] || return 0 # lora_r16 is enough
    for m in $variants; do [ -x "$tmp/$m" ] || program "$m" || return 1; done
}
needs_gpu() { # PART: true with a GPU; says what is skipped without
    [ $gpu = yes ] || { echo "skip $1: no GPU that can be used"; return 1; }
}

# ---- golden: gradients, ten steps ----

part_golden() {
    needs_gpu "golden values in fp32 and bf16" || return
    local type
    for type in fp32 bf16; do
        PEFTC_DEVICE=cuda PEFTC_COMPUTE=$type tests/suites/golden.sh | sed "s/^\(ok\|FAIL\) [a-z0-9_]*/& $type/"
    done
}

# ---- parity: the CPU's losses, dropout on ----

# compare A B TOLERANCE: two metrics.jsonl name the same steps, and each loss of B is within TOLERANCE of A's.
compare() {
    [ "$(wc -l <"$1")" -ge 24 ] && [ "$(wc -l <"$1")" = "$(wc -l <"$2")" ] || { echo "lines differ or are few"; return 1; }
    paste -d '\n' "$1" "$2" | awk -v tolerance="$3" '
        function number(key) {
            if (!match($0, "\"" key "\": -?[0-9.][-+0-9.e]*")) { print "no " key ": " $0; bad = 1; exit 1 }
            return substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) + 0
        }
        function loss() { return /"epoch"/ ? number("val_loss") : number("loss") }
        NR % 2 { step = number("step"); want = loss(); next }
        {
            off = loss() - want
            if (off < 0) off = -off
            if (number("step") != step || !(off <= tolerance * want)) {
                printf "step %d: loss %g, not %g: off by %.2g of it\n", step, loss(), want, off / want
                bad = 1
            }
            if (off / want > worst) worst = off / want
        }
        END { if (bad) exit 1; printf "at most %.2g of the loss\n", worst }'
}
parity() { # PROGRAM TYPE TOLERANCE
    gpu_train "$1" "parity-$1-$2" --set fit.epochs=12 --compute "$2" &&
        compare "$tmp/parity-$1/metrics.jsonl" "$tmp/parity-$1-$2/metrics.jsonl" "$3"
}
part_parity() {
    local m
    # A comparison with another seed must fail, or it would say nothing.
    check "lora_r16 trains on the CPU" train lora_r16 parity-lora_r16 --set fit.epochs=12
    check "lora_r16 trains from another seed" train lora_r16 parity-other --set fit.epochs=12 --set fit.seed=7
    check "another seed's losses are noticed" \
        eval "! compare '$tmp/parity-lora_r16/metrics.jsonl' '$tmp/parity-other/metrics.jsonl' 1e-2"
    needs_gpu "losses of the GPU against the CPU" || return
    for m in $variants; do
        [ -f "$tmp/parity-$m/run.json" ] || check "$m trains on the CPU" train "$m" "parity-$m" --set fit.epochs=12
        check "$m: the CPU's losses in fp32" parity "$m" fp32 1e-4
        check "$m: the CPU's losses in bf16" parity "$m" bf16 1e-2
    done
}

# ---- order: graphs, streams and plain launches give the same bytes ----

order() { # PROGRAM TYPE SWITCH
    grep -qa "${3%=*}" "$tmp/$1" || { echo "the program has no switch ${3%=*}"; return 1; }
    local out="order-$1-$2"
    [ -f "$tmp/$out/run.json" ] || gpu_train "$1" "$out" --set fit.epochs=4 --compute "$2" || return 1
    env "$3" "$tmp/$1" train --base $base --data "$data" --out "$tmp/$out-$3" --set fit.epochs=4 --compute "$2" --device cuda &&
        same "$1" "$out" "$out-$3"
}
part_order() {
    needs_gpu "graph replay against plain launches" || return
    local m type
    for m in $variants; do
        for type in fp32 bf16; do
            check "$m in $type: a graph is its launches" order "$m" $type PEFTC_CUDA_GRAPH=off
            check "$m in $type: one stream is several" order "$m" $type PEFTC_CUDA_STREAMS=1
        done
    done
}

# ---- repeat: two runs, and an interrupted one ----

killed() { # PROGRAM: a run that is killed outright after its first checkpoint goes on to the same bytes
    local fit='--set fit.epochs=200' pid n=0
    gpu_train "$1" "kill-$1" $fit --checkpoint-every 1 &
    pid=$!
    while [ ! -f "$tmp/kill-$1/checkpoint" ] && [ $((n++)) -lt 1200 ]; do sleep 0.05; done
    kill -9 $pid
    wait $pid 2>/dev/null
    [ ! -f "$tmp/kill-$1/run.json" ] || { echo "it had finished already"; return 1; }
    gpu_train "$1" "kill-$1" $fit --resume && gpu_train "$1" "whole-$1" $fit && same "$1" "kill-$1" "whole-$1"
}
part_repeat() {
    needs_gpu "two runs, kill and resume" || return
    local m type
    for m in $variants; do
        for type in fp32 bf16; do
            check "$m trains in $type" gpu_train "$m" "again-$m-$type" --set fit.epochs=4 --compute $type
            check "$m again in $type" gpu_train "$m" "again-$m-$type-2" --set fit.epochs=4 --compute $type
            check "$m in $type: two runs give the same bytes" same "$m" "again-$m-$type" "again-$m-$type-2"
        done
        check "$m: a killed run gives the same bytes" killed "$m"
    done
}

# ---- faults: what is missing, broken or too small ----

bad_train() { "$tmp/lora_r16" train --base $base --data "$data" --out "$tmp/bad" --overwrite --device cuda "$@"; }
# CACHE OUT [SETTING]: a run whose bits follow from the library and the GPU alone, unless tuning is on
with() {
    env PEFTC_CACHE="$1" "PEFTC_TUNE=${3:-off}" "$tmp/lora_r16" train --base $base --data "$data" --out "$tmp/$2" \
        --overwrite --device cuda --set fit.epochs=2
}
cached() { with "$1" "$2" && same lora_r16 "$2" cache-none; } # the bytes of a run without a cache
damage() { # every file of a folder: its second half overwritten
    local f n=0
    for f in "$1"/*; do
        [ -f "$f" ] || continue
        truncate -s "$(($(stat -c %s "$f") / 2))" "$f" && head -c 5000 /dev/urandom >>"$f" && n=$((n + 1))
    done
    [ $n -gt 0 ]
}
compiler_faults() { # NVRTC without a GPU
    "$peftc" models/lora_r16.bert --base $base --emit cuda >"$tmp/kernels.cu" || return
    local nvrtc="$build/tests/nvrtc" junk="$tmp/junk"
    mkdir -p "$junk"
    for f in libnvrtc.so.13 libnvrtc.so.12 libnvrtc.so; do echo "not a library" >"$junk/$f"; done
    check "a file that is no library is named" eval \
        "PEFTC_CUDA_LIBS=$junk $nvrtc 80 $tmp/kernels.cu 2>&1 | grep -E 'no NVRTC: .*(invalid ELF header|file too short)'"
    PEFTC_CACHE=$tmp/cubins "$nvrtc" 80 "$tmp/kernels.cu" >"$tmp/log" 2>&1
    case $? in
    0)
        check "a compilation fills the cache" ls "$tmp"/cubins/*
        check "a damaged cache is compiled again" eval "damage '$tmp/cubins' && PEFTC_CACHE=$tmp/cubins $nvrtc 80 $tmp/kernels.cu"
        check "a cache that cannot be made costs nothing" env PEFTC_CACHE=/proc/nothing "$nvrtc" 80 "$tmp/kernels.cu"
        ;;
    77) echo "skip the cubin cache: $(tail -1 "$tmp/log")" ;;
    *) case_fail "NVRTC" "$(tail -3 "$tmp/log" | tr '\n' ' ')" ;;
    esac
}
part_faults() {
    local none='no NVIDIA driver|sees no GPU'
    [ $gpu = no ] || none='no cuBLASLt'
    compiler_faults
    refuse "over the budget" 3 budget bad_train --memory 10KB
    PEFTC_CUDA_LIBS=$tmp/nowhere refuse "libraries nowhere" 1 "$none" bad_train
    check "devices says why" eval "PEFTC_CUDA_LIBS=$tmp/nowhere '$tmp/lora_r16' devices | grep -E '$none'"
    check "nothing half-written is left" eval "[ ! -e '$tmp/bad/run.json' ] && [ ! -e '$tmp/bad/checkpoint' ]"
    refuse "unknown type" 2 "bf16 or fp32" bad_train --compute fp16
    needs_gpu "faults of the GPU and its cache" || return
    local cache=$tmp/own-cache
    check "train without a cache" with '' cache-none
    check "a cache that cannot be made gives the same bytes" cached /proc/nothing cache-unwritable
    check "a new cache gives the same bytes" cached "$cache" cache-new
    check "a full cache gives the same bytes" cached "$cache" cache-full
    check "tuned with a new cache" with "$cache" tuned on
    check "a damaged cache gives the same bytes" eval "damage '$cache' && cached '$cache' cache-damaged"
    check "damaged choices are measured again" eval "damage '$cache' && with '$cache' tuned-damaged on"
    check "tuned without a place to store choices" with /proc/nothing tuned-unwritable on
    check "which runs with the first candidates" same lora_r16 tuned-unwritable cache-none
    PEFTC_TUNE=maybe refuse "unknown tuning" 2 "on or off" bad_train
    refuse "no free memory" 3 "memory|MB free" "$build/tests/hold_gpu" 100 \
        "$tmp/lora_r16" train --base $base --data "$data" --out "$tmp/bad" --overwrite --device cuda
}

# ---- sanitizer: a step of each program launched, captured and replayed, and evaluation ----

# TOOL PROGRAM. All 48 rows are one batch, so every step is of the same size. Tuning would run for minutes here. A
# program that was told how its threads wait does not start itself again. racecheck looks for races within a kernel and
# ends a process whose kernels run side by side: they are launched one by one. initcheck does not follow the bulk copies
# by which the library's bf16 kernels write their results: it looks at float32, and at no launch ahead of its turn, which
# reads memory before anything is there.
sanitize() {
    local log="$tmp/sanitize-$1-$2" rc how=() options=()
    case $1 in
    racecheck) how=(PEFTC_CUDA_GRAPH=off CUDA_LAUNCH_BLOCKING=1) ;;
    initcheck) how=(PEFTC_CUDA_GRAPH=off) options=(--compute fp32) ;;
    esac
    env "${how[@]}" PEFTC_TUNE=off OMP_WAIT_POLICY=passive timeout 240 compute-sanitizer --tool "$1" \
        --target-processes all --error-exitcode 9 "$tmp/$2" train --base $base --data "$data" --out "$log.out" \
        --device cuda --set fit.batch=48 "${options[@]}" >"$log" 2>&1
    rc=$?
    if [ $rc = 0 ] && grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log"; then
        case_ok "$1 $2"
    else
        case_fail "$1 $2" "exit $rc: $(grep -iE '=====|error' "$log" | grep -vE '^=+( COMPUTE-SANITIZER)?$' | head -16 | tr '\n' ' ' | cut -c1-900)"
    fi
}
part_sanitizer() {
    needs_gpu "compute-sanitizer" || return
    command -v compute-sanitizer >/dev/null || { echo "skip compute-sanitizer: not installed (it comes with the CUDA toolkit)"; return; }
    export tmp base data
    export -f sanitize case_ok case_fail
    for tool in memcheck racecheck initcheck; do
        for m in $variants; do echo "$tool $m"; done
    done | xargs -P "$(($(nproc) < 6 ? $(nproc) : 6))" -L1 bash -c 'sanitize "$0" "$1"'
}

all_parts() {
    local part
    for part in $parts; do
        if declare -F "part_$part" >/dev/null; then "part_$part"; else case_fail "gpu.sh" "no part '$part'; see its head"; fi
    done
}
{ setup && all_parts; } 2>&1 | tee "$tmp/results"
! grep -q '^FAIL' "$tmp/results"
