#!/usr/bin/env bash
# Pages against each other and against the tree: Spanish versions have the structure, commands and
# numbers of the English ones, tables of results are what metrics/ says, links and make targets exist.
# Each check is also shown a page with one mistake, which it must find.
# shellcheck disable=SC2016 # backticks in single quotes are Markdown

set -u
tmp=$(mktemp -d "$PEFTC_TMP/docs.XXXXXX")
pages=(README.md README.es.md docs/*.md metrics/*.md examples/base/README.md)
. tests/cases.sh
finds() { # NAME TEXT COMMAND...: passes when the command fails and says the text
    local name=$1 text=$2
    shift 2
    if "$@" >"$tmp/log" 2>&1; then case_fail "$name" "not noticed"
    elif grep -qF -- "$text" "$tmp/log"; then case_ok "$name"
    else case_fail "$name" "no '$text' in: $(head -4 "$tmp/log" | tr '\n' ' ')"; fi
}

# ---- translations ----

# What has to be the same in both languages, a line each: levels of headings, code without its
# comments (of a listing of folders: the folders), rows of tables by columns, items of lists, and for
# each section, sorted, its inline code and numbers.
outline() { # PAGE
    awk '
    function flush(i, j, t) {
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && kept[j - 1] "" > kept[j] ""; j--) {
                t = kept[j]
                kept[j] = kept[j - 1]
                kept[j - 1] = t
            }
        for (i = 1; i <= n; i++) print kept[i]
        n = 0
    }
    function keep_all(text, pattern, kind) {
        while (match(text, pattern)) {
            kept[++n] = kind " " substr(text, RSTART, RLENGTH)
            text = substr(text, RSTART + RLENGTH)
        }
    }
    function code(text) {
        if (text ~ /^ *[a-z]+\/ +[^ ]/) keep_all(text, "[A-Za-z_]+/", "folder")
        else {
            sub(/(^| +)# .*/, "", text)
            if (text ~ /[^ ]/) print "code " text
        }
    }
    /^```/ { fenced = !fenced; print "fence"; next }
    fenced || /^    / { code($0); next }
    /^#+ / { flush(); match($0, /^#+/); print "heading of level " RLENGTH; sub(/^#+ /, "") }
    /^\|/ { print "table row of " gsub(/\|/, "|") - 1 }
    /^[*-] / { print "item" }
    /^[0-9]+\. / { print "numbered item" }
    {
        gsub(/\]\([^)]*\)/, "]")
        keep_all($0, "`[^`]*`", "inline")
        gsub(/`[^`]*`/, "")
        keep_all($0, "[0-9][0-9.,]*[0-9]|[0-9]", "number")
    }
    END { flush() }' "$1"
}
in_step() { # ENGLISH SPANISH
    outline "$1" >"$tmp/english" && outline "$2" >"$tmp/spanish" || return 1
    [ -s "$tmp/english" ] || { echo "$1 is empty"; return 1; }
    diff "$tmp/english" "$tmp/spanish"
}
for spanish in README.es.md docs/*.es.md; do
    check "$spanish is in step" in_step "${spanish%.es.md}.md" "$spanish"
done

mistake() { # NAME SED-COMMAND TEXT: the page with this change is no longer in step
    sed "$2" README.es.md >"$tmp/changed.es.md"
    if cmp -s README.es.md "$tmp/changed.es.md"; then case_fail "$1" "the mistake could not be made"; return; fi
    finds "$1" "$3" in_step README.md "$tmp/changed.es.md"
}
mistake "a number that differs" 's/109,483,778/109,483,779/' "number 109,483,779"
mistake "a command that differs" 's/\.\/run eval /.\/run evaluate /' "code     ./run evaluate"
mistake "a heading that is missing" '$!{/^## Resultados$/d;}' "heading of level 2"
mistake "a name in the text that differs" 's/`make mutants`/`make mutant`/' 'inline `make mutant`'
mistake "a row that is missing" '/^| `make fuzz`/d' "table row of 2"
mistake "an item that is missing" '/^\* La memoria/d' "item"

# ---- results ----

results=()
for page in "${pages[@]}"; do if grep -q '^<!-- results ' "$page"; then results+=("$page"); fi; done
check "some page has results" [ ${#results[@]} -gt 0 ]
check "tables are what metrics/ says" tools/results.sh --check "${results[@]}"
sed '/^| `full_ft` |/s/[0-9]/7/' docs/comparison.md >"$tmp/typed.md"
finds "a number typed into a table" "not what metrics/ says" tools/results.sh --check "$tmp/typed.md"
printf '<!-- results metrics/none.json -->\n<!-- end of results -->\n' >"$tmp/none.md"
finds "results that are not there" "no metrics/none.json" tools/results.sh --check "$tmp/none.md"
printf '<!-- results metrics/README.md -->\n<!-- end of results -->\n' >"$tmp/other.md"
finds "results of another kind" "holds no results" tools/results.sh --check "$tmp/other.md"
grep -v 'end of results' docs/comparison.md >"$tmp/open.md"
finds "a block without an end" "has no end" tools/results.sh "$tmp/open.md"

# Conclusions are prose, but take their numbers from the tables above them.
concluded() { # PAGE: numbers under "What the numbers say" that no table of the page has
    local number bad=0
    numbers() { grep -oE '[0-9][0-9.,]*[0-9]|[0-9]' | sort -u; }
    grep '^|' "$1" | numbers >"$tmp/tabled"
    sed -n '/^## What the numbers say/,/^## Do it/p' "$1" | sed 's/`[^`]*`//g' | numbers >"$tmp/said"
    [ -s "$tmp/said" ] || { echo "$1 concludes nothing"; return 1; }
    while IFS= read -r number; do
        grep -qxF "$number" "$tmp/tabled" || { echo "$1: no table has $number"; bad=1; }
    done <"$tmp/said"
    return $bad
}
check "conclusions have the numbers of the tables" concluded docs/comparison.md
sed 's/from [0-9.]* points/from 9.87 points/' docs/comparison.md >"$tmp/concluded.md"
finds "a conclusion from another run" "no table has 9.87" concluded "$tmp/concluded.md"

# ---- links and commands ----

links() { # PAGE...: relative links, pictures included, that lead nowhere
    local page target bad=0
    for page in "$@"; do
        while IFS= read -r target; do
            case $target in http://* | https://* | mailto:* | '') continue ;; esac
            [ -e "$(dirname "$page")/$target" ] || { echo "$page: $target does not exist"; bad=1; }
        done < <(grep -o '](\([^)]*\))' "$page" | sed 's/^](//; s/)$//; s/#.*//')
    done
    return $bad
}
check "links lead somewhere" links "${pages[@]}"
echo '[x](nowhere.md)' >"$tmp/link.md"
finds "a dead link" "nowhere.md does not exist" links "$tmp/link.md"

targets() { # PAGE...: targets of make that are named in code and that no makefile has
    local page name bad=0
    for page in "$@"; do
        for name in $({ sed -n 's/^    \(\$ \)\{0,1\}make \([a-z][a-z-]*\).*/\2/p' "$page"
            grep -o '`make [a-z][a-z-]*' "$page" | cut -d' ' -f2; } | sort -u); do
            grep -qE "^([a-z-]+ )*$name( [a-z-]+)*:( |\$)" Makefile tools/*.mk docs/*.mk tests/*.mk ||
                { echo "$page: there is no target $name"; bad=1; }
        done
    done
    return $bad
}
check "targets of make exist" targets "${pages[@]}"
echo '`make nothing`' >"$tmp/make.md"
finds "a target that does not exist" "no target nothing" targets "$tmp/make.md"
rm -rf "$tmp"
