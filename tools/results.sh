#!/bin/sh
# Puts measured results into pages of Markdown. A block
#   <!-- results metrics/NAME/comparison.json -->
#   ...
#   <!-- end of results -->
# gets two tables made from that file, in Spanish where the page is *.es.md. No number of a table is
# typed by hand, and pages in two languages cannot differ.
#   tools/results.sh [--check] PAGE...     --check: only says which pages are not up to date
set -eu
check=''
if [ "${1-}" = --check ]; then check=1; shift; fi
[ $# -gt 0 ] || { echo "usage: tools/results.sh [--check] PAGE..." >&2; exit 2; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT

# Two tables from a comparison.json in the layout that `make compare` writes: a field a line.
tables() { # LANGUAGE FILE
    awk -v language="$1" -v file="$2" '
    function fail(text) { print file ": " text > "/dev/stderr"; failed = 1; exit 1 }
    function get(name, field) {
        if (!((name, field) in v)) fail(name " has no " field "; is it what make compare writes?")
        return v[name, field]
    }
    function spread(name, field, digits, s) {
        s = get(name, field)
        return s == "null" ? "" : sprintf(" ± %.*f", digits, s)
    }
    function commas(n, s) {
        s = sprintf("%.0f", n)
        while (match(s, /[0-9][0-9][0-9][0-9](,|$)/)) s = substr(s, 1, RSTART) "," substr(s, RSTART + 1)
        return s
    }
    function note(text, english, spanish) { if (text != "") printf "; %s%s", es ? spanish : english, text }
    function header(text, n) {
        print text
        gsub(/[^|]/, "", text)
        n = length(text) - 2
        printf "|---|"
        while (n-- > 0) printf "---:|"
        print ""
    }
    function against(f, i, m) {
        print ""
        if (es) header("| frente a `" f "` | puntos de F1 | azar | memoria | tiempo por época | 50 tareas en disco, MB |")
        else header("| against `" f "` | points of F1 | chance | memory | time per epoch | 50 tasks on disk, MB |")
        printf "| `%s` | | | 100 %% | 100 %% | %s |\n", f, commas(50 * get(f, "saved_bytes") / 1e6)
        for (i = 1; i <= n; i++) {
            m = order[i]
            if (m == f) continue
            printf "| `%s` | %+.2f |", m, 100 * (get(m, "f1_macro") - get(f, "f1_macro"))
            printf " %.2f |", 100 * sqrt(get(m, "f1_macro_noise") ^ 2 + get(f, "f1_macro_noise") ^ 2)
            printf " %.0f %% |", 100 * get(m, "reached_bytes") / get(f, "reached_bytes")
            printf " %.0f %% |", 100 * get(m, "epoch_time_s") / get(f, "epoch_time_s")
            printf " %s |\n", commas((get("about", "base_bytes") + 50 * get(m, "saved_bytes")) / 1e6)
        }
    }
    BEGIN { es = language == "es" }
    /^  "[^"]+": \{/ { split($0, part, "\""); name = part[2]; next }
    /^    "[^"]+": [^[{]/ {
        split($0, part, "\"")
        value = substr($0, index($0, ": ") + 2)
        gsub(/^"|"?,?$/, "", value)
        v[name, part[2]] = value
        if (part[2] == "trainable_params" && name != "baseline") order[++n] = name
    }
    END {
        if (failed) exit 1
        if (!n) fail("holds no results")
        peak = get("about", "device") != "cpu" ? "VRAM" : es ? "memoria" : "memory"
        if (es) header("| método | entrenables | % del total | F1 macro (test) | azar | " peak " pico, MB | s por época | MB por tarea |")
        else header("| method | trainable | % of total | test macro F1 | chance | peak " peak ", MB | s per epoch | MB per task |")
        for (i = 1; i <= n; i++) {
            m = order[i]
            printf "| `%s` | %s | %.4f |", m, commas(get(m, "trainable_params")), get(m, "trainable_percent")
            printf " %.4f%s | %.4f |", get(m, "f1_macro"), spread(m, "f1_macro_spread", 4), get(m, "f1_macro_noise")
            printf " %.1f |", get(m, "reached_bytes") / 1e6
            printf " %.2f%s |", get(m, "epoch_time_s"), spread(m, "epoch_time_spread_s", 2)
            printf " %.2f |\n", get(m, "saved_bytes") / 1e6
        }
        if (("full_ft", "f1_macro") in v) against("full_ft")
        print ""
        if (("baseline", "f1_macro") in v)
            printf (es ? "Contar palabras, sin encoder: F1 macro %.4f. " : "Counting words, without an encoder: macro F1 %.4f. "),
                v["baseline", "f1_macro"]
        printf (es ? "Filas de test: %s; dispositivo: `%s`" : "Test rows: %s; device: `%s`"),
            commas(get("about", "test_rows")), get("about", "device")
        if (get("about", "device") == "cpu") {
            note(get("about", "processor"), "", "")
            printf (es ? "; hilos: %s; juego de instrucciones: %s" : "; threads: %s; instruction set: %s"),
                get(order[1], "threads"), get(order[1], "instructions")
        } else {
            note(get("about", "gpu"), "", "")
            note(get("about", "driver"), "driver ", "driver ")
            note(get("about", "compute"), "matrices in ", "matrices en ")
        }
        note(substr(get("about", "date"), 1, 10), "finished on ", "terminado el ")
        note(get("about", "commit"), "commit ", "commit ")
        print "."
    }' "$2"
}

rewrite() { # PAGE
    case $1 in *.es.md) language=es ;; *) language=en ;; esac
    inside=''
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
        '<!-- results '*' -->')
            [ -z "$inside" ] || { echo "$1: a block of results has no end" >&2; return 1; }
            inside=1
            metrics=${line#'<!-- results '}
            metrics=${metrics%' -->'}
            [ -r "$metrics" ] || { echo "$1: there is no $metrics to take results from" >&2; return 1; }
            printf '%s\n\n' "$line"
            tables "$language" "$metrics" || return 1
            echo ''
            ;;
        '<!-- end of results -->') inside=''; printf '%s\n' "$line" ;;
        *) [ -n "$inside" ] || printf '%s\n' "$line" ;;
        esac
    done <"$1"
    [ -z "$inside" ] || { echo "$1: a block of results has no end" >&2; return 1; }
}

rc=0
for page in "$@"; do
    [ -r "$page" ] || { echo "$page: cannot be read" >&2; exit 1; }
    rewrite "$page" >"$new" || exit 1
    if cmp -s "$new" "$page"; then continue; fi
    if [ -n "$check" ]; then
        echo "$page: its tables are not what metrics/ says; run tools/results.sh $page" >&2
        rc=1
    else
        cat "$new" >"$page"
    fi
done
exit $rc
