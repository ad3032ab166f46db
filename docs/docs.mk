# ---- drawings of one encoder layer: make graphs (needs Graphviz) ----

GRAPH_MODULE := bert.encoder.layer.0
GRAPHS := $(foreach m,lora_r16 lora_r8 qlora_r16 full_ft adapters,$(foreach v,forward backward fused,docs/graphs/$m.$v.svg))

.PHONY: graphs
graphs: $(GRAPHS)

# docs/graphs/PROGRAM.VIEW.svg; a failed drawing does not replace the old one.
docs/graphs/%.svg: $(BUILD)/peftc $(wildcard models/*.bert models/lib/*.bert)
	@command -v dot >/dev/null || { echo "make graphs needs Graphviz: apt-get install graphviz"; exit 1; }
	@mkdir -p $(@D) $(BUILD)/docs
	$(BUILD)/peftc models/$(basename $*).bert --emit dot --view $(patsubst .%,%,$(suffix $*)) \
	  --module $(GRAPH_MODULE) -o $(BUILD)/docs/$*.dot
	dot -Tsvg $(BUILD)/docs/$*.dot -o $(BUILD)/docs/$*.svg
	@mv $(BUILD)/docs/$*.svg $@
