#!/usr/bin/env bash
# Draws the figures of a comparison: curves, memory, time, quality and table as SVG and PNG, and
# table.md. `make figures` calls it; settings are environment variables:
#
#   COMPARISON   the comparison.json; default out/compare/comparison.json
#   FIGURES      the folder the pictures go to; default figures
#
# Everything is drawn in a temporary folder inside FIGURES first and moved when all of it is there:
# a picture under its final name is whole, and after a failure the old ones stand.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
COMPARISON=${COMPARISON:-out/compare/comparison.json} FIGURES=${FIGURES:-figures}

die() { printf 'make figures: %s\n' "$*" >&2; exit 1; }

[ -r "$COMPARISON" ] ||
    die "there is no comparison $COMPARISON; \`make compare\` makes one, COMPARISON=FILE names another"
command -v gnuplot >/dev/null || die "gnuplot is missing; the package is gnuplot-nox"
mkdir -p "$FIGURES" || die "cannot make the folder $FIGURES"
new=$(mktemp -d "$FIGURES/.new.XXXXXX") || die "cannot write in $FIGURES"
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM

"$build/figures" "$COMPARISON" "$new" || exit 1
for figure in curves memory time quality table; do
    for kind in svg png; do
        if ! (cd "$new" && gnuplot -e "kind='$kind'; picture='$figure.$kind'" "$figure.gp" 2>log </dev/null) ||
            [ ! -s "$new/$figure.$kind" ]; then
            die "gnuplot cannot draw $figure.$kind: $(grep -v '^ *$' "$new/log" | tail -1)"
        fi
    done
done
for file in "$new"/*.svg "$new"/*.png "$new/table.md"; do
    mv -f "$file" "$FIGURES/" || die "cannot write in $FIGURES"
    echo "$FIGURES/${file##*/}"
done
