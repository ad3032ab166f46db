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
says() { # NAME EXIT-CODE TEXT COMMAND...: exits so, and stderr has the text
    local name=$1 code=$2 text=$3 rc
    shift 3
    "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    rc=$?
    if [ $rc != "$code" ]; then case_fail "$name" "exit $rc, not $code: $(tail -2 "$tmp/err" | tr '\n' ' ')"
    elif ! grep -qF -- "$text" "$tmp/err"; then case_fail "$name" "no '$text' in: $(tail -3 "$tmp/err" | tr '\n' ' ')"
    else case_ok "$name"; fi
}
refuse() { # NAME EXIT-CODE PATTERN COMMAND...: exits so, with one error line that matches
    local name=$1 code=$2 pattern=$3 rc
    shift 3
    "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    rc=$?
    if [ $rc != "$code" ]; then case_fail "$name" "exit $rc, not $code: $(tail -1 "$tmp/err")"
    elif ! grep -qE -- "$pattern" "$tmp/err"; then case_fail "$name" "no '$pattern' in: $(tail -1 "$tmp/err")"
    elif [ "$(grep -c 'error:' "$tmp/err")" != 1 ]; then case_fail "$name" "not exactly one error line"
    else case_ok "$name"; fi
}
