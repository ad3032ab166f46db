#!/usr/bin/env bash
# Every fixture of tests/golden/models, and a few of them again with passes left out.
# PEFTC_DEVICE and PEFTC_COMPUTE choose another device and type than the processor's float32 (gpu.sh).
set -u
golden=$PEFTC_BUILD/tests/golden peftc=$PEFTC_BUILD/peftc
one() { # FIXTURE [peftc options]
    local tmp
    tmp=$(mktemp -d "$PEFTC_TMP/golden.XXXXXX")
    "$golden" ${PEFTC_DEVICE:+--device "$PEFTC_DEVICE"} ${PEFTC_COMPUTE:+--compute "$PEFTC_COMPUTE"} \
        "$peftc" "$1" "$tmp" --opt 1 "${@:2}" >"$tmp/said" 2>&1
    local rc=$?
    sed "s|^ok [a-z0-9_]*|& ${*:2}|" "$tmp/said"
    # One that dies (of a sanitizer, say) may have said neither ok nor FAIL.
    [ $rc = 0 ] || grep -q '^FAIL ' "$tmp/said" || echo "FAIL ${1##*/} ${*:2}: exit $rc"
    rm -rf "$tmp"
}
export -f one
export golden peftc
{
    for f in tests/golden/models/*/meta.json; do
        echo "one ${f%/meta.json}"
    done
    for f in odd30_full_ft odd33_lora even64_qlora odd30_houlsby; do
        echo "one tests/golden/models/$f --skip all"
        echo "one tests/golden/models/$f --skip fuse"
    done
} | xargs -P "$(nproc)" -I{} bash -c '{}'
