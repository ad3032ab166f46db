# ---- the comparison: make compare [BASE=dir DATA=dir TASK=name SEEDS=42,43 ...] ----
#
# Settings reach tools/compare.sh, which lists them, through the environment: make exports what its command line sets.

# The commit that run.json names. The file changes only when the commit does, so make without a change
# builds nothing, and a tree without git is built as "unknown".
.PHONY: commit
commit:
$(BUILD)/commit: commit
	@mkdir -p $(@D)
	@c=$$(git rev-parse --short=12 HEAD 2>/dev/null) && \
	  { git diff --quiet HEAD 2>/dev/null || c=$$c-changed; }; echo "$${c:-unknown}" >$@.new; \
	  if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/runtime/cli/origin.o: $(BUILD)/commit
$(BUILD)/runtime/cli/origin.o: CFLAGS += -DPEFTC_COMMIT='"$(shell cat $(BUILD)/commit)"'

$(BUILD)/phrases: tools/phrases.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 $(WARN) -o $@ $<

$(BUILD)/bow $(BUILD)/half $(BUILD)/schema: $(BUILD)/%: tools/%.c $(BUILD)/libpeftrt.a
	$(CC) $(CFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/compare: $(wildcard tools/compare/*.c) $(BUILD)/libpeftrt.a tools/compare/compare.h
	$(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) $(LIBS)

$(BUILD)/live: tools/live.c $(addprefix tools/compare/,read.c statistics.c compare.h) $(BUILD)/libpeftrt.a
	$(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) $(LIBS)

# The generated phrases; vocab.txt is the last file written.
CORPUS := $(BUILD)/corpus
$(CORPUS)/vocab.txt: $(BUILD)/phrases
	@rm -rf $(CORPUS)
	@mkdir -p $(CORPUS)
	$(BUILD)/phrases $(CORPUS)

.PHONY: phrases compare compare-tools fetch pretrain
phrases: $(CORPUS)/vocab.txt

compare-tools: $(BUILD)/peftc $(BUILD)/compare $(BUILD)/live $(BUILD)/bow $(BUILD)/half $(CORPUS)/vocab.txt

# tests/suites/compare.sh
tests: compare-tools $(BUILD)/schema

compare: deps
	@$(MAKE) --no-print-directory -j$(THREADS) compare-tools >&2
	@BUILD='$(BUILD)' tools/compare.sh

# A real encoder into data/minilm, without installing anything.
fetch:
	@tools/fetch.sh

# The embedded base again, from nothing; ADOPT=1 puts it into examples/base.
pretrain: deps
	@$(MAKE) --no-print-directory -j$(THREADS) compare-tools >&2
	@BUILD='$(BUILD)' tools/pretrain.sh $(CORPUS) $(if $(ADOPT),--adopt)
