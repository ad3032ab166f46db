#!/usr/bin/env bash
# Do the gradient tests have teeth? For every gradient rule, links test_gradcheck with that rule's
# results negated (ld --wrap, the product's code is untouched) and expects the suite to go red.
set -u
cd "$(dirname "$0")/.."
build=${1:-build} cc=${CC:-cc} tmp=$(mktemp -d) killed=0 survived=0
trap 'rm -rf "$tmp"' EXIT
rules=$(nm "$build/libpeftc.a" 2>/dev/null | sed -n 's/^[0-9a-f]* T \(grad_[A-Z_]*\)$/\1/p' | sort -u)
[ -n "$rules" ] || { echo "FAIL no gradient rules found in $build/libpeftc.a: run make tests first"; exit 1; }

mutate() { # RULE: "red" when the suite fails with it, "green" when it does not notice
    cat >"$tmp/$1.c" <<C
#include "compiler/graph.h"
void __real_$1(Graph *g, Node *n, Node *const dy[], const bool need[], Node *dx[]);
void __wrap_$1(Graph *g, Node *n, Node *const dy[], const bool need[], Node *dx[]);
void __wrap_$1(Graph *g, Node *n, Node *const dy[], const bool need[], Node *dx[]) {
    __real_$1(g, n, dy, need, dx);
    for (int i = 0; i < n->nin; i++)
        if (need[i] && dx[i]) dx[i] = nd1(g, OP_NEG, dx[i]);
}
C
    $cc -std=gnu11 -I. -Icompiler -Iruntime -fopenmp -Wl,--wrap="$1" -o "$tmp/$1" "$tmp/$1.c" \
        tests/unit/test_gradcheck.c "$build/libpeftc.a" "$build/libpeftrt.a" \
        -lcmocka -ljansson -lutf8proc -lz -lm -ldl || { echo broken; return; }
    if "$tmp/$1" >/dev/null 2>&1; then echo green; else echo red; fi
}

for rule in $rules; do
    verdict=$(mutate "$rule")
    case $verdict in
    red) killed=$((killed + 1)) ;;
    *) survived=$((survived + 1)); echo "FAIL $rule negated: the suite is $verdict" ;;
    esac
done
echo "$killed mutants noticed, $survived survived"
[ "$survived" = 0 ] && [ "$killed" -gt 0 ]
