# ---- the GPU: make test-gpu [ONLY="golden parity order repeat faults sanitizer"] ----

GPU_TOOLS := $(BUILD)/peftc $(BUILD)/phrases $(BUILD)/tests/golden $(BUILD)/tests/nvrtc $(BUILD)/tests/hold_gpu

# tests/suites/gpu.sh, of which a machine without a GPU runs a part in make test
tests: $(GPU_TOOLS)

.PHONY: test-gpu gpu-tools
gpu-tools: $(GPU_TOOLS)

test-gpu: deps
	@$(MAKE) --no-print-directory -j$(THREADS) gpu-tools >&2
	PEFTC_GPU=require PEFTC_BUILD=$(BUILD) tests/suites/gpu.sh $(ONLY)

# ---- make bench-gpu BASE=dir DATA=dir [BENCH="--only peftc,graph"]: PYTHON needs torch, transformers and peft ----

.PHONY: bench-gpu
bench-gpu: $(BUILD)/peftc
	@test -n "$(BASE)" -a -n "$(DATA)" || { echo "make bench-gpu BASE=dir DATA=dir: a base model's folder and SST-2's"; exit 2; }
	$(PYTHON) tests/bench/bench_gpu.py --build $(BUILD) --base $(BASE) --data $(DATA) --readme metrics/README.md $(BENCH)
