#!/usr/bin/env bash
# Every model's CUDA kernels compile for sm_80 and sm_90; needs NVRTC, but no GPU.
set -u
export PEFTC_CACHE=  # an earlier result would prove nothing
one() { # SM MODEL
    local name log
    name="$(basename "$2" .bert) sm_$1" log=$PEFTC_TMP/nvrtc.$1.$(basename "$2")
    "$PEFTC_BUILD/peftc" "$2" --emit cuda >"$log.cu" 2>"$log" &&
        "$PEFTC_BUILD/tests/nvrtc" "$1" "$log.cu" >>"$log" 2>&1
    case $? in
    0) echo "ok $name" ;;
    77) echo "skip $name: $(tail -1 "$log")" ;;
    *) echo "FAIL $name: $(tail -40 "$log" | tr '\n' ' ')" ;;
    esac
}
export -f one
for model in models/*.bert; do
    for sm in 80 90; do printf '%s %s\n' "$sm" "$model"; done
done | xargs -P "$(nproc)" -L1 bash -c 'one "$0" "$1"'
