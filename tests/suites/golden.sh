#!/usr/bin/env bash
# Every fixture of tests/golden/models, and a few of them again with passes left out.
set -u
golden=$PEFTC_BUILD/tests/golden peftc=$PEFTC_BUILD/peftc
one() { # FIXTURE [peftc options]
    local tmp
    tmp=$(mktemp -d "$PEFTC_TMP/golden.XXXXXX")
    "$golden" "$peftc" "$1" "$tmp" --opt 1 "${@:2}" 2>&1 | sed "s|^ok [a-z0-9_]*|& ${*:2}|"
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
