#!/usr/bin/env bash
# One test per diagnostic: each NAME.bert is compiled as far as its parameter report, and what that says on
# stderr, carets included, has to be what NAME.expected holds; the last line there is the exit status.
#   tests/diag/run.sh COMPILER [--update] [NAME...]
# A first line "# peftc: ARGUMENTS" in a test adds command-line arguments.
set -u
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
compiler=$(realpath "$1")
shift
update=0
if [ "${1-}" = --update ]; then update=1; shift; fi
cd "$(dirname "$0")" || exit 2
export NO_COLOR=1
names=("$@")
if [ ${#names[@]} = 0 ]; then for f in *.bert; do names+=("${f%.bert}"); done; fi
failed=0
for name in "${names[@]}"; do
    args=()
    first=$(head -n 1 "$name.bert" | tr -d '\0')
    case $first in '# peftc: '*) read -ra args <<<"${first#\# peftc: }" ;; esac
    found=$(timeout 20 "$compiler" --emit=params "${args[@]}" "$name.bert" 2>&1 >/dev/null; echo "exit $?")
    if [ $update = 1 ]; then
        printf '%s\n' "$found" >"$name.expected"
    elif difference=$(diff "$name.expected" <(printf '%s\n' "$found")); then
        echo "ok $name"
    else
        failed=1
        echo "FAIL $name: not what $name.expected holds"
        sed 's/^/    /' <<<"$difference"
    fi
done
exit $failed
