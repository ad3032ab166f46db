#!/usr/bin/env bash
# What devices, plan and profile say, and how a program chooses its device and refuses what does not fit:
# on the CPU and on a GPU that computes nothing (fake_cuda.c). With NVRTC, code compiled ahead (--arch).
set -u
tmp=$(mktemp -d "$PEFTC_TMP/profile.XXXXXX") peftc=$PEFTC_BUILD/peftc
user_libs=${PEFTC_CUDA_LIBS-} nvrtc_libs=${PEFTC_CUDA_LIBS+set}
. tests/cases.sh
prints() { # TEXT COMMAND...: the command succeeds and prints the text
    local text=$1
    shift
    "$@" >"$tmp/said" 2>&1 || { cat "$tmp/said"; return 1; }
    grep -qF -- "$text" "$tmp/said" || { echo "no '$text' in:"; cat "$tmp/said"; return 1; }
}
refuses() { # CODE TEXT COMMAND...
    local code=$1 text=$2 rc
    shift 2
    "$@" >"$tmp/said" 2>&1 </dev/null
    rc=$?
    [ $rc = "$code" ] && grep -qF -- "$text" "$tmp/said" || { echo "exit $rc:"; cat "$tmp/said"; return 1; }
}

mkdir -p "$tmp/none"
. tests/tiny_encoder.sh
check "compile" "$peftc" models/lora_r16.bert --base "$tmp/base" --opt 1 -o "$tmp/run"
check "compile with accumulation" "$peftc" models/lora_r8.bert --base "$tmp/base" --opt 1 --set fit.accumulate=4 -o "$tmp/acc"
run=$tmp/run
fed() { "$run" "$1" --base "$tmp/base" --data "$tmp/data" --scratch "${@:2}"; }

fake() { # DIR OPTIONS...: the three libraries
    local dir=$tmp/$1
    shift
    mkdir -p "$dir" &&
        "${CC:-cc}" -w -shared -fPIC -I. "$@" -DSTUBS -c -o "$dir/a.o" tests/suites/fake_cuda.c &&
        "${CC:-cc}" -w -shared -fPIC -I. "$@" -c -o "$dir/b.o" tests/suites/fake_cuda.c &&
        "${CC:-cc}" -shared -o "$dir/libcuda.so.1" "$dir/a.o" "$dir/b.o" &&
        cp "$dir/libcuda.so.1" "$dir/libnvrtc.so.12" && cp "$dir/libcuda.so.1" "$dir/libcublasLt.so.12"
}
check "a GPU that computes nothing" fake gpu
check "one with little memory" fake small -DFREE=138500000
check "one whose memory others took" fake taken -DMOST=1000000
check "one of a later minor version" fake minor -DMINOR=4
export PEFTC_CACHE=$tmp/cache
on() { PEFTC_CUDA_LIBS=$tmp/$1 "${@:2}"; } # FAKE COMMAND...

# ---- which device ----
check "auto without libraries is the CPU, and says why" on none prints "device: cpu; no " fed plan --device auto
check "auto with a GPU is CUDA, and says which" on gpu prints "device: cuda; Fake GPU, compute capability 9.0" fed plan --device auto
check "without --device it is the CPU" on gpu prints "2 threads" fed plan --threads 2
check "a GPU's plan needs no GPU" on none prints "a GPU in bf16" fed plan --device cuda
check "fp32 too" on none prints "a GPU in fp32" fed plan --device cuda --compute fp32
check "cuda without libraries is refused" refuses 1 "error: no " on none fed train --out "$tmp/no" --device cuda
check "an unknown device is refused" refuses 2 "cpu, cuda, auto or null" fed plan --device gpu
check "devices: the GPU and what auto takes" on gpu prints "auto      --device auto takes cuda" "$run" devices
check "devices without a GPU" on none prints "auto      --device auto takes cpu" "$run" devices
check "devices as JSON" on gpu prints '"auto": "cuda"}' "$run" devices --json

# ---- what fits ----
number() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" "$tmp/said" | head -1; }
# The suggested batch fits, and one more does not. FAKE PROGRAM LIMIT-OPTIONS...
suggestion() {
    local where=$1 batch
    run=$2
    shift 2
    on "$where" refuses 3 "the largest that fits is --set fit.batch=" fed train --out "$tmp/no" "$@" || return 1
    batch=$(sed -n 's/.*fit.batch=\([0-9]*\).*/\1/p' "$tmp/said")
    echo "suggested $batch"
    [ -n "$batch" ] && on "$where" fed profile --steps 1 "$@" --set fit.batch="$batch" >/dev/null &&
        on "$where" refuses 3 "largest that fits" fed train --out "$tmp/no" "$@" --set fit.batch=$((batch + $(parts)))
}
parts() { [ "$run" = "$tmp/acc" ] && echo 4 || echo 1; }
check "over --memory: the largest batch" suggestion none "$tmp/run" --memory 1.3MB
check "over --memory: a multiple of the parts" suggestion none "$tmp/acc" --memory 1MB
check "over the GPU's memory: the largest batch" suggestion small "$tmp/run" --device cuda --set fit.batch=160
run=$tmp/run
check "memory that is gone meanwhile" refuses 3 "another process took them" on taken fed train --out "$tmp/no" --device cuda
check "plan says the same" refuses 3 "the largest that fits is --set fit.batch=" fed plan --memory 1.3MB
check "nothing fits" refuses 3 "not even --set fit.batch=1 fits" fed train --out "$tmp/no" --memory 10KB
check "a size that is none" refuses 2 "is not a size" fed train --out "$tmp/no" --memory 3x

# ---- memory as three figures ----
three_lines() {
    prints "counted by the driver" on gpu fed train --out "$tmp/gpu" --device cuda --set fit.epochs=1 || return 1
    grep -q '"driver_bytes"' "$tmp/gpu/run.json" || { echo "no driver_bytes"; return 1; }
    cp "$tmp/gpu/run.json" "$tmp/said"
    echo "planned $(number planned_bytes), reached $(number reached_bytes)"
    [ "$(number planned_bytes)" -gt 0 ] && [ "$(number planned_bytes)" = "$(number reached_bytes)" ]
}
check "planned, reached, and the driver's figure" three_lines

# ---- profile ----
tables() { # every table's shares are 100 %, and the files agree with each other
    awk -F'"' '{ split($1, a, ","); split($3, b, ","); if (NR > 1) { share[a[1]] += b[4]; us[a[1]] += b[3]; n++ } }
        END { for (v in share) if (!(share[v] > 99.9 && share[v] < 100.1)) { print v, share[v]; bad = 1 }
              if (!(us["kernel"] > 0.999 * us["line"] && us["kernel"] < 1.001 * us["pass"])) bad = 1
              exit bad || n < 20 || length(share) != 3 }' "$1"
}
profile() { # FAKE DEVICE
    local us_csv us_trace
    on "$1" fed profile --steps 2 --device "$2" --csv "$tmp/p.csv" --trace "$tmp/p.trace" --json >"$tmp/p.json" || return 1
    tables "$tmp/p.csv" || { echo "CSV"; cat "$tmp/p.csv"; return 1; }
    us_csv=$(awk -F, '$1 == "pass" { us += $4 } END { printf "%.3f", us }' "$tmp/p.csv")
    us_trace=$(tr '{' '\n' <"$tmp/p.trace" | sed -n 's/.*"ph":"X".*"dur":\([0-9.e-]*\),.*/\1/p' | awk '{ us += $1 } END { printf "%.3f", us }')
    echo "CSV $us_csv us, trace $us_trace us"
    awk -v a="$us_csv" -v b="$us_trace" 'BEGIN { exit !(a > 0 && b > 0.999 * a && b < 1.001 * a) }'
}
many() { on gpu fed profile --steps 100000 --device cuda --json | grep '"steps": 15,'; } # 3 epochs of 160 rows
check "no more steps than the run has" many
check "profile: shares, CSV and trace" profile none cpu
check "profile on a GPU" profile gpu cuda
# Events are a microsecond apart: steps that are launched together share one.
check "a GPU's steps are timed by its events" prints "optimizer,21,9" sed 's/"//g' "$tmp/p.csv"
fullest() { # the fullest step of the timeline is the plan's lower bound, to the byte
    awk '/"timeline"/ { on = 1 } /"lower_bound_bytes"/ && !bound { gsub(/[^0-9]/, "", $2); bound = $2 + 0 }
         on && /"(weights|gradients|optimizer|activations|backward|workspace|inputs)": [0-9]+/ {
             gsub(/[^0-9]/, "", $2); sum += $2; if (++n == 7) { if (sum > most) most = sum; sum = n = 0 } }
         END { print "fullest", most, "bound", bound; exit !(bound > 0 && most == bound) }' "$tmp/p.json"
}
check "the timeline's fullest step is the plan's bound on a GPU" fullest
check "profile as JSON on the CPU" profile none cpu
check "the timeline's fullest step is the plan's bound" fullest
start() { # phases of the start: all there, adding up to the whole
    awk '/"startup_s"/ { on = 1; next } on && /}/ { on = 0 } on { gsub(/[",:]/, " "); if ($1 == "total") total = $2; else { sum += $2; n++ } }
         END { print n " phases, " sum " of " total " s"; exit !(n == 5 && total > 0 && sum > 0.999 * total && sum < 1.001 * total) }' "$tmp/p.json"
}
check "what the start is spent on" start
check "profile as text" prints "MB alive over the steps" fed profile --steps 1
check "profile with accumulation" prints "planned peak" "$tmp/acc" profile --base "$tmp/base" --data "$tmp/data" --scratch --steps 1
check "a trace that cannot be written" refuses 1 "cannot write /proc/nothing/t" fed profile --trace /proc/nothing/t

# ---- a GPU that fails in the middle of training ----
check "one that breaks after five graphs" fake breaks -DBREAK=5
check "one that breaks after a hundred kernels" fake breaks-kernel -DBREAK_KERNEL=100
broken() { # the checkpoint from before is whole
    local out=$tmp/broken
    on breaks refuses 1 "illegal memory access was encountered (error 700); --resume goes on" \
        fed train --out "$out" --device cuda --checkpoint-every 1 || return 1
    [ -s "$out/checkpoint" ] && [ ! -e "$out/run.json" ] || { ls "$out"; return 1; }
    on gpu prints "best epoch" fed train --out "$out" --device cuda --resume && [ -s "$out/run.json" ]
}
check "a failing GPU: the message, the checkpoint, --resume" broken
named() { PEFTC_CUDA_GRAPH=off on breaks-kernel refuses 1 "lib/bert.bert:" fed train --out "$tmp/named" --device cuda && grep -q "error: k[0-9]*_" "$tmp/said"; }
check "launched one by one, the kernel and its line are named" named

# ---- code compiled ahead ----
ahead() { on gpu "$peftc" models/lora_r16.bert --base "$tmp/base" --opt 1 --arch "$1" -o "$tmp/ahead"; }
check "--arch" ahead sm_80,sm_90
no_nvrtc() { # on a machine with a driver and cuBLASLt alone
    mkdir -p "$tmp/bare-$1" && cp "$tmp/$1/libcuda.so.1" "$tmp/$1/libcublasLt.so.12" "$tmp/bare-$1/"
    on "bare-$1" refuses 1 "no NVRTC" fed train --out "$tmp/no" --device cuda || return 1
    run=$tmp/ahead
    on "bare-$1" prints "device: cuda" fed profile --steps 1 --device auto --compute "$2"
    local rc=$?
    run=$tmp/run
    return $rc
}
check "it runs without NVRTC" no_nvrtc gpu bf16
check "on a later minor version" no_nvrtc minor fp32
check "devices names it" on none prints "built in  sm_80, sm_90" "$tmp/ahead" devices
check "--arch without NVRTC" refuses 1 "no NVRTC" on none "$peftc" models/lora_r16.bert --base "$tmp/base" --arch sm_90 -o "$tmp/x"
check "--arch with an older architecture" refuses 2 "older than sm_80" ahead sm_75
check "--arch that names nothing" refuses 2 "not 'sm_80,'" ahead sm_80,
check "--arch and --emit" refuses 2 "no --emit" "$peftc" models/lora_r16.bert --arch sm_90 --emit c
real() {
    [ -z "$nvrtc_libs" ] && unset PEFTC_CUDA_LIBS || export PEFTC_CUDA_LIBS=$user_libs
    "$peftc" models/lora_r16.bert --base "$tmp/base" --opt 1 --arch sm_90 -o "$tmp/real" 2>"$tmp/log" ||
        { grep -q "no NVRTC:" "$tmp/log" && return 77; return 1; }
    prints "built in  sm_90" "$tmp/real" devices && [ "$(stat -c %s "$tmp/real")" -gt $(($(stat -c %s "$tmp/run") + 100000)) ]
}
real
case $? in
0) case_ok "--arch with NVRTC" ;;
77) echo "skip --arch with NVRTC: $(tail -1 "$tmp/log")" ;;
*) case_fail "--arch with NVRTC" "$(tail -3 "$tmp/log" | tr '\n' ' ')" ;;
esac
rm -rf "$tmp"
