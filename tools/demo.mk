# ---- the live demo: make demo [RUNS=dir DEMO_PORT=8080 BIND=127.0.0.1 DEMO="--host NAME"] ----

DEMO_RUNS := $(or $(RUNS),out/compare)
DEMO_SRC  := $(wildcard tools/demo/*.c) tools/compare/read.c tools/compare/statistics.c

# page.html as a string, and the policy that lets a browser run its one script and use its one style: their digests.
$(BUILD)/demo_page.c: tools/demo/page.html
	@mkdir -p $(@D)
	@digest() { { echo; sed -n "/^<$$1>$$/,/^<\/$$1>$$/p" $< | sed '1d;$$d'; } | sha256sum | cut -c1-64 | \
	    tr a-f A-F | basenc --base16 -d | base64; }; \
	  { echo 'extern const char page_text[], page_policy[];'; echo 'const char page_text[] ='; \
	    $(C_STRING) $<; echo '    ;'; \
	    echo 'const char page_policy[] ='; \
	    echo '    "default-src '"'none'; script-src 'sha256-$$(digest script)'; style-src 'sha256-$$(digest style)'; "'"'; \
	    echo '    "img-src '"'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"'";'; \
	  } >$@.new && mv $@.new $@

$(BUILD)/demo: $(DEMO_SRC) $(BUILD)/demo_page.c $(BUILD)/libpeftrt.a $(wildcard tools/demo/*.h) tools/compare/compare.h
	$(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) -lmicrohttpd -lpthread $(LIBS)

.PHONY: demo
demo: deps
	@$(MAKE) --no-print-directory -j$(THREADS) $(BUILD)/demo >&2
	@$(BUILD)/demo '$(DEMO_RUNS)' --bind '$(or $(BIND),127.0.0.1)' --port '$(or $(DEMO_PORT),8080)' $(DEMO)

# tests/suites/demo.sh
tests: $(BUILD)/demo
