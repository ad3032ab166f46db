#!/usr/bin/env bash
# The notebook from a fresh kernel on the embedded default. Needs the packages of requirements.txt in
# $PYTHON (default python3). The committed copy must have outputs, without errors and without paths.
set -u
tmp=$(mktemp -d "$PEFTC_TMP/notebook.XXXXXX") notebook=examples/comparison.ipynb python=${PYTHON:-python3}
. tests/cases.sh

if ! "$python" -c 'import ipykernel, matplotlib, nbconvert, nbformat' 2>/dev/null; then
    echo "skip notebook: $python lacks the packages of requirements.txt"
    exit 0
fi

if [[ $PEFTC_BUILD == *asan ]]; then
    echo "skip notebook: its runs take too long with sanitizers"
    exit 0
fi

# Says what is wrong with a notebook's outputs: cells not run in order, errors, too few pictures,
# absolute paths.
cat >"$tmp/look.py" <<'P'
import re, sys, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
code = [cell for cell in notebook.cells if cell.cell_type == "code"]
problems, pictures = [], 0
if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
    problems.append("cells were not run once, in order, from a fresh kernel")
for cell in code:
    for output in cell.outputs:
        text = output.get("text", "") + output.get("data", {}).get("text/markdown", "")
        pictures += "image/png" in output.get("data", {})
        if output.output_type == "error":
            problems.append(f"cell {cell.execution_count}: {output.ename}: {output.evalue[-300:]}")
        if output.get("name") == "stderr":
            problems.append(f"cell {cell.execution_count} wrote on stderr: {text[:200]}")
        if path := re.search(r"(?<![\w.])/(home|root|tmp|usr|var|work\w*|Users)/\S*", text):
            problems.append(f"cell {cell.execution_count} shows the path {path[0]}")
if pictures < 3:
    problems.append(f"{pictures} pictures, not 3")
print("; ".join(problems).replace("\n", " "))
sys.exit(bool(problems))
P
look() { # NAME FILE
    local said
    if said=$("$python" "$tmp/look.py" "$2" 2>&1); then case_ok "$1"; else case_fail "$1" "${said: -600}"; fi
}

look "the committed outputs are whole" "$notebook"
sed 's/"GPU: /"\/home\/somebody\/x GPU: /' "$notebook" >"$tmp/path.ipynb"
if "$python" "$tmp/look.py" "$tmp/path.ipynb" | grep -q 'shows the path /home/somebody'; then
    case_ok "a path in an output is noticed"
else
    case_fail "a path in an output is noticed" "it was not"
fi

# With its own folder of runs, so that everything is trained here and nothing of the user's is touched.
if BUILD=$PEFTC_BUILD RUNS=$tmp/runs "$python" -m nbconvert --to notebook --execute \
    --ExecutePreprocessor.timeout=800 --output-dir "$tmp" --output executed "$notebook" >"$tmp/log" 2>&1; then
    case_ok "every cell runs from a fresh kernel"
else
    case_fail "every cell runs from a fresh kernel" "$(tail -5 "$tmp/log" | tr '\n' ' ')"
    exit
fi
# Here, unlike in the committed copy, both folders may have absolute paths.
sed -i "s|$tmp/runs|RUNS|g; s|$PEFTC_BUILD|build|g" "$tmp/executed.ipynb"
look "its outputs are whole" "$tmp/executed.ipynb"
rm -rf "$tmp"
