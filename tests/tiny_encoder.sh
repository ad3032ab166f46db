# Sourced by suites: a tiny encoder's folder without weights ($tmp/base) and 160 rows of the generated phrases in
# each split ($tmp/data; all of them in $tmp/all).
mkdir -p "$tmp/base" "$tmp/all" "$tmp/data"
"$PEFTC_BUILD/phrases" "$tmp/all" || { echo "FAIL setup: phrases"; exit 1; }
for f in train validation test; do head -161 "$tmp/all/$f.tsv" >"$tmp/data/$f.tsv"; done
cp "$tmp/all/vocab.txt" "$tmp/base/"
vocab=$(wc -l <"$tmp/base/vocab.txt")
cat >"$tmp/base/config.json" <<J
{"model_type": "bert", "vocab_size": $vocab, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
 "intermediate_size": 96, "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
 "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "initializer_range": 0.02}
J
