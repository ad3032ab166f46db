# Sourced by suites, which keep their files in $tmp: a case prints one line, "ok NAME" or "FAIL NAME: why". What the
# command of the last check said is in $tmp/log; what that of says or refuse did, in $tmp/out and $tmp/err.
# shellcheck shell=bash disable=SC2154 # $tmp is the suite's
case_ok() { echo "ok $1"; }
case_fail() { echo "FAIL $1: $2"; }
check() { # NAME COMMAND...: passes when the command does
    local name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then case_ok "$name"; else case_fail "$name" "$(tail -4 "$tmp/log" | tr '\n' ' ' | cut -c1-400)"; fi
}
exits() { # NAME EXIT-CODE GREP-OPTION TEXT COMMAND...: exits so, and stderr has the text; else it is the case's failure
    local name=$1 code=$2 how=$3 text=$4 rc
    shift 4
    "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    rc=$?
    if [ $rc != "$code" ]; then case_fail "$name" "exit $rc, not $code: $(tail -2 "$tmp/err" | tr '\n' ' ')"
    elif ! grep -q "$how" -- "$text" "$tmp/err"; then case_fail "$name" "no '$text' in: $(tail -3 "$tmp/err" | tr '\n' ' ')"
    else return 0; fi
    return 1
}
says() { # NAME EXIT-CODE TEXT COMMAND...: exits so, and stderr has the text
    if exits "$1" "$2" -F "${@:3}"; then case_ok "$1"; fi
}
refuse() { # NAME EXIT-CODE PATTERN COMMAND...: exits so, with one error line that matches
    if ! exits "$1" "$2" -E "${@:3}"; then return 0; fi
    if [ "$(grep -c 'error:' "$tmp/err")" != 1 ]; then case_fail "$1" "not exactly one error line"; else case_ok "$1"; fi
}
