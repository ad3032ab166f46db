#!/usr/bin/env bash
# The figures: plot data against the numbers of a made-up comparison.json, pictures of good, small
# and odd comparisons, and one clear message, with the old pictures kept, for every broken one.
# shellcheck disable=SC2012,SC2015,SC2016
set -u
tmp=$(mktemp -d "$PEFTC_TMP/figures.XXXXXX") bin=$PEFTC_BUILD
export BUILD=$bin
unset COMPARISON FIGURES
. tests/cases.sh
one_line() { # NAME TEXT COMMAND...: exits with 1, and stderr is one line that has the text
    local name=$1 text=$2
    shift 2
    "$@" >"$tmp/log" 2>"$tmp/err" </dev/null
    local rc=$?
    if [ $rc != 1 ]; then case_fail "$name" "exit $rc: $(tail -2 "$tmp/err" | tr '\n' ' ')"
    elif [ "$(wc -l <"$tmp/err")" != 1 ]; then case_fail "$name" "not one line: $(tr '\n' ' ' <"$tmp/err")"
    elif ! grep -qF -- "$text" "$tmp/err"; then case_fail "$name" "no '$text' in: $(cat "$tmp/err")"
    else case_ok "$name"; fi
}

# ---- a comparison ----

run() { # SEED FACTOR: two epochs; their losses are 0.5 and 0.25, and 0.4 and none, times FACTOR
    awk -v s="$1" -v k="$2" 'BEGIN { printf "{\"seed\": %d, \"f1_macro\": 0.9, \"accuracy\": 0.9, \"loss\": 0.3,\n" \
        "\"val_f1_macro\": 0.9, \"best_epoch\": 2, \"total_time_s\": 7, \"date\": \"2026-11-24T10:00:00Z\", \"commit\": \"abc\",\n" \
        "\"processor\": \"Some CPU\", \"gpu\": \"\", \"driver\": \"\", \"peftc_version\": \"0.1.0\", \"program_hash\": \"\", \"epochs\": [\n" \
        "{\"epoch\": 1, \"train_loss\": %.9g, \"val_loss\": %.9g, \"val_f1_macro\": 0.8, \"val_accuracy\": 0.8, \"tokens\": 9, \"seconds\": %.9g},\n" \
        "{\"epoch\": 2, \"train_loss\": %.9g, \"val_loss\": null, \"val_f1_macro\": 0.9, \"val_accuracy\": 0.9, \"tokens\": 9, \"seconds\": %.9g}]}",
        s, k * 0.5, k * 0.4, k * 2, k * 0.25, k * 4 }'
}
method() { # KEY F1 PARAMETERS MB RUN...: memory is 100, 10, 20, 30, 40, 5, 1 and gaps
    local key=$1 f1=$2 parameters=$3 mb=$4 runs='' r spread=null
    shift 4
    for r in "$@"; do runs="$runs${runs:+, }$r"; done
    [ $# = 1 ] || spread=0.0125
    cat <<J
"$key": {"trainable_params": $parameters, "f1_macro": $f1, "peak_vram_gb": 0.0$mb, "epoch_time_s": 3.25,
"total_params": 4000000, "trainable_percent": 12.5, "device": "cpu", "compute": "fp32", "driver_bytes": null, "seeds": [42], "f1_macro_spread": $spread,
"f1_macro_noise": 0.0075, "val_f1_macro": 0.9, "accuracy": 0.9, "epoch_time_spread_s": 0.75,
"planned_bytes": ${mb}000000, "reached_bytes": ${mb}000000, "lower_bound_bytes": 900,
"memory_bytes": {"weights": 100, "gradients": 10, "optimizer": 20, "activations": 30, "backward": 40, "workspace": 5, "inputs": 1},
"saved_bytes": 2500000, "program": "p", "source": "models/p.bert", "instructions": "avx2", "threads": 2,
"fit": {"epochs": 2, "batch": 32, "lr": 0.001, "warmup_steps": 1, "total_steps": 10, "weight_decay": 0.0, "clip_norm": 1.0, "seed": 42},
"runs": [$runs]},
J
}
rest() { # DEVICE
    cat <<J
"baseline": {"version": 1, "model": "words", "data": "some/data", "seed": 42, "classes": 2, "trainable_params": 970,
"train_rows": 10, "test_rows": 400, "val_f1_macro": 0.6, "f1_macro": 0.6125, "accuracy": 0.6},
"takeaways": ["lora_r8 against full_ft: a <sentence> of this | run."],
"about": {"version": 1, "base": "some/base", "data": "some/data", "test_rows": 1234, "device": "$1",
"compute": "fp32", "processor": "Some CPU", "gpu": "$([ "$1" = cpu ] || echo "$1")", "driver": "", "peftc_version": "0.1.0",
"date": "2026-11-24T10:00:00Z", "commit": "abc", "base_bytes": 5}}
J
}
one=$(run 42 1) two=$(run 43 2)
{
    echo '{'
    method full_ft 0.95 4000000 80 "$one"
    method lora_r8 0.9125 16642 40 "$one" "$two"
    method lora_r16 0.925 33026 41 "$one"
    method qlora 0.93 33026 20 "$one"
    method adapters 0.9 132866 45 "$one"
    rest cpu
} >"$tmp/good.json"
check "the made-up comparison fits the schema" "$bin/schema" docs/comparison.schema.json "$tmp/good.json"

# ---- plot data ----

mkdir "$tmp/data"
check "data and scripts are written" "$bin/figures" "$tmp/good.json" "$tmp/data"
line() { grep -qx -- "$2" "$tmp/data/$1.dat" || { echo "no '$2' in:"; head -20 "$tmp/data/$1.dat"; return 1; }; }
block() { # FILE INDEX: gnuplot's data block
    awk -v want="$2" '/^$/ {blank++; next} blank > 1 {at++} {blank = 0} at == want && !/^#/' "$tmp/data/$1.dat"
}
check "quality: parameters, bytes, F1, noise" line quality '1 16642 40000000 0.9125 0.0075 '
check "quality: every method" test "$(grep -vc '^#' "$tmp/data/quality.dat")" = 5
gaps=$((80000000 - 206))
check "memory: peaks, classes in their order, gaps" line memory "0 80000000 80000000 100 10 20 30 40 5 1 $gaps"
check "time: mean and spread" line time '3 3.25 0.75 '
check "time: every epoch of every seed" test "$(block time 1 | awk '$1 == 1 {printf "%s ", $2}')" = "2 4 4 8 "
check "curves: one seed has no spread, a missing loss is none" \
    test "$(block curves 0)" = "1 0.5 ? 0.4 ? 0.8 ? 
2 0.25 ? ? ? 0.9 ? "
check "curves: mean and sample deviation over two seeds" \
    test "$(block curves 1)" = "1 0.75 0.3535533906 0.6 0.2828427125 0.8 0 
2 0.375 0.1767766953 ? ? 0.9 0 "
check "table: the cells" line table $'lora_r8\t16,642\t12.50\t0.9125 ± 0.0125\t40.0\t3.25 ± 0.75\t2.50'
check "table: the baseline" line table $'bag of words\t970\t\t0.6125\t\t\t'
check "Markdown: the same row" grep -qF '| lora_r8 | 16,642 | 12.50 | 0.9125 ± 0.0125 | 40.0 | 3.25 ± 0.75 | 2.50 |' "$tmp/data/table.md"
check "Markdown: takeaways are escaped" grep -qF '* lora_r8 against full_ft: a &lt;sentence> of this \| run.' "$tmp/data/table.md"
check "points at one place are moved apart: lora_r16 and qlora" test "$(grep -o '(\$2\*10\*\*[0-9.]*)' "$tmp/data/quality.gp" |
    sort -u | wc -l)" = 2
check "and the picture says so" grep -q 'points that would touch are moved right' "$tmp/data/quality.gp"
check "whiskers of several seeds are explained" grep -q 'one sample deviation over seeds' "$tmp/data/curves.gp"
mkdir "$tmp/committed"
committed() { "$bin/figures" "metrics/$1/comparison.json" "$tmp/committed" && cmp "$tmp/committed/table.md" "$2/table.md"; }
check "committed figures are of the committed comparison" committed embedded figures
check "those of MiniLM, too" committed minilm_sst2_h100 figures/minilm_sst2_h100
check "small type: device, date, data" grep -q 'device cpu, Some CPU, avx2, 2 threads; 2026-11-24T10:00:00Z' "$tmp/data/table.md"

# ---- pictures ----

if ! command -v gnuplot >/dev/null; then
    echo "skip pictures: no gnuplot"
    exit 0
fi
draw() { COMPARISON=$1 FIGURES=$2 tools/figures.sh; } # FILE FOLDER
figures='curves memory time quality table'
well_formed() { # FOLDER
    local f
    for f in $figures; do
        if command -v xmllint >/dev/null; then xmllint --noout "$1/$f.svg" || return 1
        else python3 -c 'import sys, xml.dom.minidom as d; d.parse(sys.argv[1])' "$1/$f.svg" || return 1; fi
    done
}
complete() { # FOLDER: the eleven files and nothing else, PNGs whole
    local f
    for f in $figures; do
        [ -s "$1/$f.svg" ] || { echo "no $f.svg"; return 1; }
        [ "$(head -c 8 "$1/$f.png" | od -An -tx1 | tr -d ' ')" = 89504e470d0a1a0a ] || { echo "$f.png is no PNG"; return 1; }
        tail -c 8 "$1/$f.png" | grep -qa IEND || { echo "$f.png is cut"; return 1; }
    done
    [ -s "$1/table.md" ] && [ "$(ls -A "$1" | wc -l)" = 11 ] || { ls -A "$1"; return 1; }
}
quiet() { draw "$1" "$2" 2>"$tmp/err" && [ ! -s "$tmp/err" ] || { cat "$tmp/err"; return 1; }; }
good_pictures() { # NAME FILE FOLDER
    check "$1: drawn without a warning" quiet "$2" "$tmp/$3"
    check "$1: all there" complete "$tmp/$3"
    check "$1: SVG is well-formed" well_formed "$tmp/$3"
}
good_pictures "five methods" "$tmp/good.json" good
named() {
    local f m
    for f in $figures; do
        for m in full_ft lora_r8 lora_r16 qlora adapters; do
            grep -q "$m<" "$tmp/good/$f.svg" || { echo "$f.svg lacks $m"; return 1; }
        done
        grep -q '2026-11-24T10:00:00Z' "$tmp/good/$f.svg" && grep -q 'device cpu' "$tmp/good/$f.svg" &&
            grep -q 'some/data' "$tmp/good/$f.svg" || { echo "$f.svg lacks device, date or data"; return 1; }
    done
}
check "every figure names every method, device, date and data" named
check "on a CPU no figure says VRAM" bash -c "! grep -l VRAM $tmp/good/*.svg $tmp/good/table.md"
sums() { (cd "$1" && cksum ./*.svg ./*.png table.md); }
sums "$tmp/good" >"$tmp/sums"
quiet "$tmp/good.json" "$tmp/good" >"$tmp/log"
check "drawn twice: the same bytes" test "$(sums "$tmp/good")" = "$(cat "$tmp/sums")"

{ echo '{'; method full_ft 0.95 4000000 8000 "$one"; method qlora 0.93 33026 4000 "$one"; rest cuda; } |
    sed 's/"compute": "fp32", "processor"/"compute": "bf16", "processor"/; s/"gpu": "cuda", "driver": ""/"gpu": "Some GPU", "driver": "1.2"/' >"$tmp/gpu.json"
good_pictures "a GPU" "$tmp/gpu.json" gpu
check "small type: GPU, how it computed" grep -q 'device cuda, Some GPU, driver 1.2, bf16; 2026' "$tmp/gpu/table.md"
check "on a GPU it is VRAM, in GB" grep -q 'VRAM (GB' "$tmp/gpu/memory.svg"

# One method, one epoch of no time, no loss, scores of 0 and 1.
nothing='{"processor": "", "epochs": [{"epoch": 1, "train_loss": null, "val_loss": null, "val_f1_macro": 0, "seconds": 0}]}'
{ echo '{'; method lora_r8 1 1 1 "$nothing"; rest cpu; } | sed -e 's/\("[a-z]*ed_bytes"\): [0-9]*/\1: 0/g' \
    -e 's/"epoch_time_s": 3.25/"epoch_time_s": 0/; s/"epoch_time_spread_s": 0.75/"epoch_time_spread_s": null/' >"$tmp/small.json"
good_pictures "one method, one epoch, nothing but zeros" "$tmp/small.json" small

# Names that are commands, markup or too long stay text.
odd="a'b\`touch $tmp/pwned\`"
{ echo '{'; method "$odd" 0.9 100 30 "$one"; method '<b>&amp;%s\n\u0001|$(x)' 0.8 200 31 "$one"
  method "$(printf 'ü%.0s' {1..99})" 0.7 300 32 "$one"; method '' 0.6 400 33 "$one"; method '"$&' 0.6 400 33 "$one"; rest cpu; } |
    sed 's/^""$&":/"\\"$\&":/' >"$tmp/odd.json"
good_pictures "odd names" "$tmp/odd.json" odd
check "a name is not run" test ! -e "$tmp/pwned"

many() { echo '{'; for i in $(seq "$1"); do method "method_number_$i" 0.9 $((i * 100)) 30 "$one"; done; rest cpu; }
many 32 >"$tmp/many.json"
good_pictures "32 methods" "$tmp/many.json" many

# ---- broken input: one line, and the pictures that were there stay ----

broken() { # NAME TEXT SED-EXPRESSION
    sed "$3" "$tmp/good.json" >"$tmp/bad.json"
    one_line "$1" "$2" draw "$tmp/bad.json" "$tmp/good"
}
one_line "a comparison that is not there" "make compare" draw "$tmp/nowhere.json" "$tmp/good"
one_line "a folder instead of a file" "$tmp" draw "$tmp" "$tmp/good"
broken "an empty file" "bad.json" d
broken "a cut file" "is not valid JSON" '20,$d'
broken "NaN" "is not valid JSON" '0,/"f1_macro": 0.95/s//"f1_macro": NaN/'
broken "a number too large for a double" "is not valid JSON" '0,/"f1_macro": 0.95/s//"f1_macro": 1e999/'
broken "a list instead of an object" "bad.json" '1i ['
broken "another version" "is of version 2 and this program reads version 1" 's/"about": {"version": 1/"about": {"version": 2/'
broken "no version" 'version is missing' 's/"about": {"version": 1, /"about": {/'
broken "no about" "about is missing" 's/"about":/"abort":/'
for field in trainable_params f1_macro f1_macro_spread f1_macro_noise epoch_time_s epoch_time_spread_s reached_bytes planned_bytes \
    saved_bytes trainable_percent memory_bytes runs; do
    broken "no $field" "\"full_ft\".$field is missing" "0,/\"$field\":/s//\"x$field\":/"
done
broken "no class of memory" '"full_ft".memory_bytes.optimizer is missing' '0,/"optimizer":/s//"optimiser":/'
broken "no seconds" '"full_ft".runs[0].epochs[0].seconds is missing' '0,/"seconds":/s//"second":/'
broken "a score above 1" "f1_macro: expected a number from 0 to 1, found 1.5" '0,/"f1_macro": 0.95/s//"f1_macro": 1.5/'
broken "a score that is null" "found null" '0,/"f1_macro": 0.95/s//"f1_macro": null/'
broken "no trained parameter" "trainable_params: expected a whole number from 1, found 0" 's/"trainable_params": 4000000/"trainable_params": 0/'
broken "negative bytes" "reached_bytes: expected a whole number" '0,/"reached_bytes": 8/s//"reached_bytes": -8/'
broken "bytes that overflow" "bytes that can be added up" '0,/"weights": 100/s//"weights": 9223372036854775807/'
broken "a method that is a number" "expected an object" '1s/$/"odd": 5,/'
broken "no runs" "runs: expected a list of 1 to 1000, found []" '0,/"runs": \[/s//"runs": [], "r": [/'
{ echo '{'; rest cpu; } >"$tmp/none.json"
one_line "no method at all" "there is no method in it" draw "$tmp/none.json" "$tmp/good"
many 33 >"$tmp/more.json"
one_line "too many methods" "more than 32 methods" draw "$tmp/more.json" "$tmp/good"

# A gnuplot that fails in its middle.
mkdir "$tmp/path"
cat >"$tmp/path/gnuplot" <<'S'
#!/bin/sh
case $2 in *time.svg*) echo half >time.svg; echo "no such terminal" >&2; exit 1 ;; esac
exec /usr/bin/env PATH="$REAL" gnuplot "$@"
S
chmod +x "$tmp/path/gnuplot"
one_line "a plotter that fails" "gnuplot cannot draw time.svg: no such terminal" env REAL="$PATH" PATH="$tmp/path:$PATH" \
    COMPARISON="$tmp/gpu.json" FIGURES="$tmp/good" tools/figures.sh
check "after all of these the pictures are as they were" test "$(sums "$tmp/good")" = "$(cat "$tmp/sums")"
check "and nothing is left beside them" complete "$tmp/good"
if mkdir "$tmp/full" && mount -t tmpfs -o size=100k tmpfs "$tmp/full" 2>/dev/null; then
    one_line "a full disk" "make figures:" draw "$tmp/good.json" "$tmp/full"
    check "a full disk: no half picture" test -z "$(ls -A "$tmp/full")"
    umount "$tmp/full"
else
    echo "skip a full disk: cannot mount a small file system here"
fi
