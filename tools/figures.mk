# ---- figures: make figures [COMPARISON=file FIGURES=folder] ----

$(BUILD)/figures: $(wildcard tools/figures/*.c) $(BUILD)/libpeftrt.a tools/figures/figures.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) $(LIBS)

# tests/suites/figures.sh
tests: $(BUILD)/figures

.PHONY: figures
figures: deps
	@$(MAKE) --no-print-directory $(BUILD)/figures >&2
	@BUILD='$(BUILD)' tools/figures.sh
