# ---- the GPU: make test-gpu [ONLY="golden parity order repeat faults sanitizer"] ----

GPU_TOOLS := $(BUILD)/peftc $(BUILD)/phrases $(BUILD)/tests/golden $(BUILD)/tests/nvrtc $(BUILD)/tests/hold_gpu

# tests/suites/gpu.sh, of which a machine without a GPU runs a part in make test
tests: $(GPU_TOOLS)

.PHONY: test-gpu gpu-tools
gpu-tools: $(GPU_TOOLS)

test-gpu: deps
	@$(MAKE) --no-print-directory -j$(THREADS) gpu-tools >&2
	PEFTC_GPU=require PEFTC_BUILD=$(BUILD) tests/suites/gpu.sh $(ONLY)
