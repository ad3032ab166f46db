# peftc: build, test, compare. `make help` lists the targets.
#
# Objects go to build/$(MODE): release, or asan (address and undefined-behaviour sanitizers).

MODE   ?= release
BUILD  := build$(if $(filter asan,$(MODE)),/asan)
CC     ?= cc
THREADS ?= $(shell nproc 2>/dev/null || echo 2)

WARN   := -Wall -Wextra -Werror
OPT    := -O2
ifeq ($(MODE),asan)
OPT    := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
endif
CFLAGS := -std=gnu11 $(OPT) $(WARN) -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp -MMD -MP
LIBS   := -ljansson -lutf8proc -lz -lm -ldl -fopenmp

RUNTIME_SRC  := $(wildcard runtime/*.c runtime/*/*.c)
COMPILER_SRC := $(filter-out compiler/main.c,$(wildcard compiler/*.c compiler/*/*.c grammar/*.c))
RUNTIME_OBJ  := $(RUNTIME_SRC:%.c=$(BUILD)/%.o) $(BUILD)/cuda_text.o
COMPILER_OBJ := $(COMPILER_SRC:%.c=$(BUILD)/%.o) $(BUILD)/grammar/peft.tab.o $(BUILD)/grammar/peft.lex.o
# Headers that generated programs include; peftc finds them beside itself.
INCLUDED     := $(wildcard runtime/*.h runtime/cpu/*.h)
INCLUDE_COPY := $(INCLUDED:runtime/%=$(BUILD)/include/%)

.PHONY: all deps
all: deps
	@$(MAKE) --no-print-directory -j$(THREADS) $(BUILD)/peftc

# Installs missing packages on Debian and Ubuntu, names them elsewhere.
deps:
	@tools/deps.sh

$(BUILD)/peftc: $(BUILD)/compiler/main.o $(COMPILER_OBJ) $(BUILD)/libpeftrt.a | $(INCLUDE_COPY)
	$(CC) $(OPT) -o $@ $^ $(LIBS)

$(BUILD)/libpeftrt.a: $(RUNTIME_OBJ)
	@rm -f $@
	ar qcs $@ $^

$(BUILD)/include/%: runtime/%
	@mkdir -p $(@D)
	@cp $< $@

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -I. -Icompiler -Iruntime -I$(BUILD)/grammar -c -o $@ $<

# Micro-kernels and row loops are where the time goes, and in a start where values are stored.
$(BUILD)/runtime/cpu/%.o $(BUILD)/runtime/storage.o: OPT := $(OPT:-O2=-O3)

# Lines of text as lines of a C string.
C_STRING := sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/    "&\\n"/'

# The CUDA source that every program's kernels are compiled behind, as a string.
CUDA_TEXT := $(addprefix runtime/cuda/,kernel_cuda.h tensor_core.cu attention_tile.cu attention_long.cu attention_short.cu attention.cu templates.cu narrow.cu)
$(BUILD)/cuda_text.c: $(CUDA_TEXT)
	@mkdir -p $(@D)
	@{ echo 'extern const char cuda_text[];'; echo 'const char cuda_text[] ='; \
	  $(C_STRING) $^; echo '    ;'; } >$@

$(BUILD)/cuda_text.o: $(BUILD)/cuda_text.c
	$(CC) $(CFLAGS) -c -o $@ $<

$(BUILD)/grammar/peft.tab.c: grammar/peft.y
	@mkdir -p $(@D)
	bison -Wall -Werror -o $@ --defines=$(BUILD)/grammar/peft.tab.h $<

$(BUILD)/grammar/peft.lex.c: grammar/peft.l $(BUILD)/grammar/peft.tab.c
	flex --header-file=$(BUILD)/grammar/peft.lex.h -o $@ $<

$(BUILD)/grammar/%.o: $(BUILD)/grammar/%.c
	$(CC) $(CFLAGS) -I. -Icompiler -Iruntime -I$(BUILD)/grammar -c -o $@ $<

# Every compiler file may include the parser's headers.
$(COMPILER_OBJ): | $(BUILD)/grammar/peft.lex.c

-include $(RUNTIME_OBJ:.o=.d) $(COMPILER_OBJ:.o=.d) $(BUILD)/compiler/main.d

-include tools/compare.mk tools/figures.mk tools/demo.mk tools/docker.mk docs/docs.mk tests/gpu.mk

.PHONY: clean
clean:
	rm -rf build

# ---- tests ----

TEST_SRC := $(wildcard tests/unit/test_*.c)
TESTS    := $(TEST_SRC:tests/unit/%.c=$(BUILD)/tests/%)

$(BUILD)/libpeftc.a: $(COMPILER_OBJ)
	@rm -f $@
	@ar qcs $@ $^

$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libpeftc.a $(BUILD)/libpeftrt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Icompiler -Iruntime -I$(BUILD)/grammar -I. -o $@ $< $(BUILD)/libpeftc.a $(BUILD)/libpeftrt.a -lcmocka $(LIBS)

$(BUILD)/tests/%: tests/tools/%.c $(BUILD)/libpeftrt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -I. -o $@ $< $(BUILD)/libpeftrt.a $(LIBS)

# The CUDA templates, emulated on the CPU; skipped where there is no C++ compiler.
TESTS += $(patsubst tests/unit/%.cpp,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.cpp))
$(BUILD)/tests/%: tests/unit/%.cpp $(BUILD)/libpeftrt.a $(CUDA_TEXT) $(wildcard tests/unit/cuda_*.h)
	@mkdir -p $(@D)
	@if command -v $(CXX) >/dev/null; then \
	  $(CXX) $(subst -std=gnu11,-std=gnu++17,$(CFLAGS)) -Wno-unknown-pragmas -Iruntime -I. -o $@ $< $(BUILD)/libpeftrt.a -lcmocka $(LIBS); \
	else printf '#!/bin/sh\necho "skip $*: no C++ compiler ($(CXX))"\necho "[  SKIPPED ] $*"\n' >$@; chmod +x $@; fi

TOOLS := $(patsubst tests/tools/%.c,$(BUILD)/tests/%,$(wildcard tests/tools/*.c))

.PHONY: tests test asan
tests: $(BUILD)/peftc $(TESTS) $(TOOLS)

test: deps
	@$(MAKE) --no-print-directory -j$(THREADS) tests
	tests/run --build $(BUILD) $(if $(ONLY),--only $(ONLY))

asan:
	$(MAKE) MODE=asan test

-include $(TESTS:=.d)

# Negates each gradient rule in turn: the gradient tests must notice.
.PHONY: mutants
mutants: tests
	tests/mutants.sh $(BUILD)

# ---- benchmarks: ratios against PyTorch in the same run; PYTHON needs torch, transformers and peft ----

PYTHON ?= python3

build/bench/%: tests/bench/%.c build/libpeftrt.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -I. -Iruntime -o $@ $< build/libpeftrt.a $(LIBS)

.PHONY: bench
bench: build/peftc build/bench/bench_gemm
	@test -n "$(BASE)" -a -n "$(DATA)" || { echo "make bench BASE=dir DATA=dir: a base model's folder and SST-2's"; exit 2; }
	$(PYTHON) tests/bench/bench.py --base $(BASE) --data $(DATA) $(BENCH)

# ---- fuzzing: libFuzzer targets on every reader, FUZZ_SECONDS each ----

FUZZ_SECONDS ?= 60
FUZZERS := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_LIB := $(filter-out compiler/main.c compiler/options.c,$(COMPILER_SRC)) $(RUNTIME_SRC)

build/fuzz/lib.a: $(FUZZ_LIB) build/grammar/peft.lex.c build/cuda_text.c
	@mkdir -p build/fuzz/obj
	cd build/fuzz/obj && for f in $(FUZZ_LIB:%=../../../%) ../../grammar/peft.tab.c ../../grammar/peft.lex.c \
    ../../cuda_text.c; do \
	  clang -std=gnu11 -g -O1 -fsanitize=fuzzer-no-link,address,undefined -I../../.. -I../../../compiler -I../../../runtime \
	    -I../../grammar -c $$f -o $$(echo $$f | tr -d . | tr / _).o || exit 1; done
	ar qcs $@ build/fuzz/obj/*.o

build/fuzz/fuzz_%: tests/fuzz/fuzz_%.c build/fuzz/lib.a
	clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -I. -Icompiler -Iruntime -Ibuild/grammar -o $@ $< build/fuzz/lib.a -ljansson -lutf8proc -lz -lm -ldl

.PHONY: fuzz
fuzz: $(FUZZERS)
	@for f in $(FUZZERS); do name=$${f##*/fuzz_}; mkdir -p build/fuzz/new-$$name; \
	  echo "$$name: $(FUZZ_SECONDS) s"; \
	  $$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -verbosity=0 -artifact_prefix=build/fuzz/ \
	    build/fuzz/new-$$name tests/fuzz/corpus/$$name || exit 1; done

# ---- style ----

STYLED := $(filter-out %.inc,$(wildcard compiler/*.[ch] compiler/*/*.[ch] runtime/*.[ch] runtime/*/*.[ch] runtime/cuda/*.cu tests/*/*.[ch] tests/*/*.cpp tools/*.c tools/*/*.[ch]))

.PHONY: fmt lint
fmt:
	clang-format -i $(STYLED)

lint:
	clang-format --dry-run -Werror $(STYLED)
	@for f in $(filter %.c,$(filter compiler/% runtime/%,$(STYLED))); do \
	  clang -std=gnu11 -fsyntax-only -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wno-unknown-attributes \
	    -Icompiler -Iruntime -Ibuild/grammar -fopenmp $$f || exit 1; done

.PHONY: help
help:
	@echo 'make                     build/peftc and the runtime library'
	@echo 'make test                everything that must hold; ONLY=name for one suite'
	@echo 'make compare             the five runs side by side; BASE=dir DATA=dir for real ones'
	@echo 'make figures             curves, memory, time, quality, table; COMPARISON=file FIGURES=dir'
	@echo 'make demo                the live page on localhost: RUNS=dir DEMO_PORT=8080'
	@echo 'make build jupyter sh stop    the Docker image and its container; GPU=1'
	@echo 'make fetch               a real base model into data/minilm'
	@echo 'make bench               a step against PyTorch; BASE=dir DATA=dir'
	@echo 'make test-gpu            the GPU backend on a real GPU; ONLY="golden parity" for a part'
	@echo 'make bench-gpu           a GPU step against PyTorch; BASE=dir DATA=dir'
	@echo 'make asan                make test with address and undefined-behaviour sanitizers'
	@echo 'make mutants             negate each gradient rule: the tests must notice'
	@echo 'make fuzz                libFuzzer on every reader, FUZZ_SECONDS each'
	@echo 'make graphs pretrain     redo the committed pictures and the embedded base'
	@echo 'make fmt lint clean'
