#!/usr/bin/env bash
# The demo server: what it serves, what it refuses, and its page in a browser. The runs are made here: programs that
# answer as `run predict` does (one honest, one that hangs, one that answers nonsense, one that floods), so that
# nothing has to be trained. DEMO_SHOTS=dir keeps screenshots of the page.
set -u
tmp=$(mktemp -d "$PEFTC_TMP/demo.XXXXXX") demo=$PEFTC_BUILD/demo server=''
. tests/cases.sh
for need in curl python3; do
    command -v $need >/dev/null || { echo "skip the demo: no $need"; exit 0; }
done

# ---- runs ----

run_json() { # PROGRAM F1
    cat <<J
{
  "version": 1, "program": "$1", "source": "models/$1.bert", "base": "some/base", "data": "some/data",
  "device": "cpu", "instructions": "avx2", "threads": 2, "trainable_params": 1000, "total_params": 100000,
  "fit": {"epochs": 1, "batch": 32, "lr": 0.001, "warmup_steps": 1, "total_steps": 100, "weight_decay": 0.0,
          "clip_norm": 1.0, "seed": 42},
  "memory": {"planned_bytes": 10000000, "reached_bytes": 10000000, "lower_bound_bytes": 900,
    "planned_by_class": {"weights": 5000000, "gradients": 1000000, "optimizer": 2000000, "activations": 900000,
      "backward": 900000, "workspace": 100000, "inputs": 100000}},
  "epochs": [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_f1_macro": 0.8, "val_accuracy": 0.81, "tokens": 100,
    "seconds": 2.0}],
  "best_epoch": 1, "epoch_time_s": 2.0, "total_time_s": 2.5,
  "test_f1_macro": $2, "test_accuracy": $2, "test_loss": 0.2, "test_rows": 400
}
J
}
trained() { # PROGRAM F1, its program on stdin
    mkdir -p "$runs/$1/seed42"
    head -c 500 /dev/zero >"$runs/$1/seed42/adapter.safetensors"
    { printf '#!/usr/bin/env python3\nimport json, sys, time\n'; cat; } >"$runs/$1/run"
    chmod +x "$runs/$1/run"
    run_json "$1" "$2" >"$runs/$1/seed42/.run.json" && mv "$runs/$1/seed42/.run.json" "$runs/$1/seed42/run.json"
}
honest() {
    cat <<'P'
if sys.argv[1:3] != ["predict", "--from"] or "--json" not in sys.argv: sys.exit(3)
for line in sys.stdin:
    text = line.rstrip("\n")
    if text == "die": sys.exit(1)
    p = 0.25 if "not" in text else 0.875
    print(json.dumps({"text": text, "label": int(p > 0.5), "probabilities": [1 - p, p], "started": time.time()}), flush=True)
P
}
runs=$tmp/runs

# ---- server and requests ----

start() { # ARGUMENT...: on a free port; sets url and server
    "$demo" "$runs" --port 0 "$@" 2>"$tmp/server.log" &
    server=$!
    for _ in $(seq 100); do
        url=$(sed -n 's/^demo of .*: \(http:.*\)$/\1/p' "$tmp/server.log")
        [ -n "$url" ] && return 0
        kill -0 $server 2>/dev/null || break
        sleep 0.05
    done
    case_fail "the server starts" "$(tr '\n' ' ' <"$tmp/server.log")"
    exit 1
}
stop() { # passes when it ends in good order
    kill -TERM "$server"
    wait "$server"
    local rc=$?
    server=''
    [ $rc = 0 ] || { echo "exit $rc"; tail -20 "$tmp/server.log"; return 1; }
}
trap '[ -z "$server" ] || kill "$server" 2>/dev/null' EXIT
ask() { curl -s --max-time 40 -H 'Content-Type: application/json' --data-binary "$1" "$url/api/predict"; }
status() { # NAME CODE CURL-ARGUMENT...
    local name=$1 code=$2 got
    shift 2
    got=$(curl -s --max-time 20 -o "$tmp/body" -w '%{http_code}' --path-as-is "$@")
    if [ "$got" = "$code" ]; then case_ok "$name"; else case_fail "$name" "$got, not $code: $(head -c 200 "$tmp/body")"; fi
}
alive() { [ "$(curl -s --max-time 5 -o /dev/null -w '%{http_code}' "$url/")" = 200 ]; }
json() { python3 -c "
import json, sys
d = json.load(sys.stdin)
if not ($1): sys.exit('not so: $(printf %s "$1" | tr -d \"\'): ' + json.dumps(d)[:200])"; }
comparison() { curl -s "$url/api/comparison" | json "$1"; }
until_so() { # EXPRESSION over the comparison, within some seconds
    for _ in $(seq 40); do comparison "$1" && return 0; sleep 0.2; done
    return 1
}

# ---- before anything is trained, then filling in ----

start
check "without runs it says what to do" grep -q 'make compare' "$tmp/server.log"
check "and has an empty table" comparison 'd["variants"] == [] and d["progress"] == [] and d["error"] is None'
check "there is nobody to ask" bash -c "$(declare -f ask); url=$url; ask '{\"text\": \"good\"}' | grep -q '\"models\":\\[\\]'"
curl -sN --max-time 12 "$url/api/events" >"$tmp/events" &
listener=$!
sleep 0.3
mkdir -p "$runs/lora_r8/seed42"
printf '{"step": 10, "loss": 0.66}\n{"epoch": 1, "step": 20, "val_f1_macro": 0.75}\n{"step": 30, "lo' >"$runs/lora_r8/seed42/metrics.jsonl"
check "a run that trains has its progress, whole lines only" until_so \
    'd["progress"] and d["progress"][0]["step"] == 20 and d["progress"][0]["loss"] == 0.66 and d["progress"][0]["val_f1_macro"] == 0.75'
honest | trained lora_r8 0.9
check "a finished run has its numbers" until_so \
    'd["variants"] and d["variants"][0]["f1_macro"] == 0.9 and d["variants"][0]["memory_bytes"]["optimizer"] == 2000000 and not d["progress"]'
wait $listener
check "each change is an event" bash -c "[ \$(grep -c '^event: change' '$tmp/events') -ge 3 ]"
check "and there is a heartbeat" grep -q '^: still here' "$tmp/events"
mkdir -p "$runs/adapters/seed42" && echo '{"version": 1' >"$runs/adapters/seed42/run.json"
check "a broken run is left out and counted" until_so 'd["left_out"] == 1 and len(d["variants"]) == 1'
rm -r "$runs/adapters"
check "it ends when told to" stop

# ---- what it serves ----

trained lora_r16 0.91 <<'P'
for line in sys.stdin:
    if line != "warm\n": time.sleep(60)
    print('{"label": 1, "probabilities": [0.5, 0.5]}', flush=True)
P
trained full_ft 0.95 < <(honest)
trained nonsense 0.5 <<<'for line in sys.stdin: print("{\"label\": 1, \"probabilities\": [NaN, nan]}", flush=True)'
trained flood 0.5 <<<'while True: sys.stdout.write("a" * 4096)'
start
check "the page" bash -c "curl -s '$url/' | grep -q 'fine-tune all of BERT'"
check "a policy without inline script" bash -c "curl -sI '$url/' | grep -i '^content-security-policy:.*script-src .sha256-' | grep -qv unsafe"
digest() {
    curl -s "$url/" | python3 -c "
import base64, hashlib, re, sys
text = re.search(r'<$1>(.*?)</$1>', sys.stdin.read(), re.S).group(1)
print(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())"
}
for part in script style; do
    check "whose digest is that of the $part" bash -c "curl -sI '$url/' | grep -qF '$part-src '\\''sha256-$(digest $part)'"
done
check "a program" bash -c "curl -s '$url/api/program?name=lora_r8' | cmp - models/lora_r8.bert"
check "a graph" bash -c "curl -s '$url/graph?name=lora_r16.backward' | cmp - docs/graphs/lora_r16.backward.svg"
for figure in figures/*.svg figures/*.png; do
    [ ! -f "$figure" ] || check "$figure" bash -c "curl -s '$url/$figure' | cmp - '$figure'"
done
ask '{"text": "not \"good\"\u0007\n\ttoo \\ \u00e9\ud83d\ude00"}' >"$tmp/answer"
check "honest models answer" json '[m["probabilities"] for m in d["models"] if m["program"] in ("lora_r8", "full_ft")] == [[0.75, 0.25]] * 2' <"$tmp/answer"
check "with their latency" json 'all(0 <= m["ms"] < 5000 for m in d["models"] if "ms" in m)' <"$tmp/answer"
check "the text comes back as it was" json 'd["text"] == "not \"good\"\x07\n\ttoo \\ \u00e9\U0001f600"' <"$tmp/answer"
said() { json "[m['error'] for m in d['models'] if m['program'] == '$1'][0].startswith('$2')" <"$tmp/answer"; }
check "one that hangs is given up" said lora_r16 'no answer within'
check "one that answers nonsense is told" said nonsense 'the answer is not one'
check "one that floods is cut off" said flood 'an answer of more than'
rm -r "$runs"/{lora_r16,nonsense,flood}
until_so 'len(d["variants"]) == 2' >/dev/null 2>&1
ask '{"text": "die"}' >"$tmp/answer"
check "one that dies is told" said lora_r8 'the trained program ended'
ask '{"text": "good"}' >"$tmp/answer"
check "and started again" json 'len(d["models"]) == 2 and all(m["label"] == 1 for m in d["models"])' <"$tmp/answer"
children() { # numbers of the server's processes that predict
    local p
    for p in $(grep -lzx predict /proc/[0-9]*/cmdline 2>/dev/null); do
        p=${p%/cmdline}
        if grep -q "^PPid:[[:space:]]*$server\$" "$p/status" 2>/dev/null; then echo "${p#/proc/}"; fi
    done
}
check "one child for each model" [ "$(children | wc -l)" = 2 ]

# ---- what it refuses ----

post=(-H 'Content-Type: application/json')
head -c 5000 /dev/zero | tr '\0' a >"$tmp/long"
status "a body of more than 4 KB" 413 "${post[@]}" -H 'Expect:' --data-binary "@$tmp/long" "$url/api/predict"
status "a body without a length" 411 "${post[@]}" -H 'Transfer-Encoding: chunked' -d '{"text": "a"}' "$url/api/predict"
n=0
for body in '' '{' '[]' '"a"' '{"text": 1}' '{"text": ""}' '{"text": " \n"}' '{"text": "a", "b": 1}' '{"text": "a", "text": "b"}' \
    '{"text": "a"} x' '{"text": "\u0000"}' '{"text": "\ud800"}' $'{"text": "\xff\xfe"}' $'{"text": "\xc0\xaf"}' $'{"text": "\xed\xa0\x80"}' \
    "$(printf '[%.0s' $(seq 4000))"; do
    n=$((n + 1))
    status "a bad body, $n" 400 "${post[@]}" --data-binary "$body" "$url/api/predict"
done
status "a form" 415 -d '{"text": "a"}' "$url/api/predict"
status "a page of another origin" 403 "${post[@]}" -H 'Origin: http://evil.example' -d '{"text": "a"}' "$url/api/predict"
status "an opaque origin" 403 "${post[@]}" -H 'Origin: null' -d '{"text": "a"}' "$url/api/predict"
status "another site, by Sec-Fetch-Site" 403 "${post[@]}" -H 'Sec-Fetch-Site: cross-site' -d '{"text": "a"}' "$url/api/predict"
status "the page's own origin is fine" 200 "${post[@]}" -H "Origin: $url" -d '{"text": "a"}' "$url/api/predict"
for host in evil.example evil.example:80 127.0.0.1.evil.example localhost@evil.example 127.0.0.1:x '[::1'; do
    status "Host $host" 403 -H "Host: $host" "$url/api/comparison"
done
status "an empty Host" 403 -H 'Host;' "$url/api/comparison"
status "no Host" 400 -H 'Host:' "$url/api/comparison"
status "Host localhost is fine" 200 -H 'Host: localhost:99' "$url/api/comparison"
for path in '/figures/../Makefile' '/figures/..%2fMakefile' '/figures/%2e%2e%2fREADME.md' '/figures/.hidden.svg' '/figures/a/b.svg' \
    '/figures/%00.svg' '/../../etc/passwd' '/figures/' '//' '/api' '/page.html'; do
    status "$path" 404 "$url$path"
done
for name in '../README' '..%2f..%2fetc%2fpasswd' 'lib/bert' '' '%ff' "$(printf 'a%.0s' $(seq 300))"; do
    status "a program '${name:0:30}'" 400 "$url/api/program?name=$name"
    status "a graph '${name:0:30}'" 400 "$url/graph?name=$name"
done
status "a program that is not there" 404 "$url/api/program?name=nothing"
status "another method" 405 -X PUT "$url/"
status "POST elsewhere" 404 "${post[@]}" -d '{}' "$url/"
status "GET of the predictions" 405 "$url/api/predict"

hostile() { python3 - "${url##*:}" "$@" <<'P'
import socket, sys, time
port, what = int(sys.argv[1]), sys.argv[2]
connect = lambda: socket.create_connection(("127.0.0.1", port), timeout=25)
head = b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
def dribble(start):
    s, began = connect(), time.time()
    s.sendall(start)
    try:
        while time.time() - began < 20:
            time.sleep(0.5)
            s.sendall(b"a")
    except OSError:
        pass
    took = time.time() - began
    if took > 14: sys.exit("a slow client was kept for %.1f s" % took)
if what == "slow-header": dribble(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
if what == "slow-body": dribble(head + b"Content-Length: 4000\r\n\r\n")
if what == "garbage":
    for junk in (b"\0" * 5000, b"\xff" * 40000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9000 + b"\r\n",
                 b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", head + b"Content-Length: -1\r\n\r\n",
                 head + b"Content-Length: 99999999999999999999999\r\n\r\n", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"):
        s = connect()
        try:
            s.sendall(junk)
            s.shutdown(socket.SHUT_WR)
            answer = s.recv(1 << 16)
        except OSError:
            answer = b""
        s.close()
        if answer.startswith(b"HTTP/1.1 200"): sys.exit("200 for %r" % junk[:60])
if what == "many":
    held = []
    for _ in range(200):
        try: held.append(connect())
        except OSError: break
    time.sleep(13)  # all are late by now
if what == "listeners":
    held, codes = [], []
    for _ in range(20):
        s = connect()
        s.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        codes.append(s.recv(12)[9:])
        held.append(s)
    if codes.count(b"200") != 16 or codes.count(b"503") != 4: sys.exit(str(codes))
P
}
hostile slow-header >"$tmp/slow1" 2>&1 & a=$!
hostile slow-body >"$tmp/slow2" 2>&1 & b=$!
hostile many >"$tmp/many" 2>&1 & c=$!
check "requests that are none" hostile garbage
check "a client that sends its header slowly" wait $a
check "one that sends its body slowly" wait $b
wait $c
check "after 200 idle connections others are served" alive
check "at most 16 pages listen" hostile listeners
pids=$(children)
check "it ends in good order" stop
gone() { for p in $pids; do ! kill -0 "$p" 2>/dev/null || return 1; done; }
check "its children are gone" gone
check "no report of a sanitizer" bash -c "! grep -E 'Sanitizer|runtime error' '$tmp/server.log'"

# ---- command line ----

says "no folder" 2 "usage: demo RUNS" timeout 10 "$demo"
says "a port that is none" 2 "usage" timeout 10 "$demo" "$runs" --port 70000
says "an address that is none" 1 "is not a numeric address" timeout 10 "$demo" "$runs" --bind example
start --host demo.example
status "--host allows a name" 200 -H 'Host: demo.example' "$url/"
says "a port that is taken" 1 "cannot listen" timeout 10 "$demo" "$runs" --port "${url##*:}"

# ---- in a browser ----

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -n "$browser" ]; then
    timeout 200 python3 tests/tools/chromium.py "$browser" "$url/" "$runs" ${DEMO_SHOTS:+"$DEMO_SHOTS"}
else
    echo "skip in a browser: no chromium"
fi
check "the server ends after it" stop
