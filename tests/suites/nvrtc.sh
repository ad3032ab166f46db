#!/usr/bin/env bash
# Every model's CUDA kernels compile for sm_80, and what all programs share for sm_90, too, as fp32
# and as bf16; needs NVRTC, but no GPU. The cache is this run's own: an earlier result would prove
# nothing, but what all programs share need not be compiled for each.
set -u
export PEFTC_CACHE=$PEFTC_TMP/cubins
sources=$PEFTC_TMP/nvrtc
mkdir -p "$PEFTC_CACHE" "$sources"
for model in models/*.bert; do
    name=$(basename "$model" .bert)
    "$PEFTC_BUILD/peftc" "$model" --emit cuda >"$sources/$name.cu" 2>"$sources/$name.log" && continue
    echo "FAIL $name: $(tail -3 "$sources/$name.log" | tr '\n' ' ')"
    rm "$sources/$name.cu"
done
compile() { # SM FILE...
    local rc
    "$PEFTC_BUILD/tests/nvrtc" "$@" 2>"$sources/log"
    rc=$?
    [ $rc != 77 ] || echo "skip sm_$1: $(tail -1 "$sources/log")"
    case $rc in 0|1|77) ;; *) echo "FAIL sm_$1: $(tail -3 "$sources/log" | tr '\n' ' ')" ;; esac
}
compile 80 "$sources"/*.cu
# Generated text hardly depends on the architecture: programs of every kind of kernel will do.
compile 90 "$sources"/{full_ft,qlora_r16,adapters}.cu
