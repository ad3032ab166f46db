/* The pass manager. Invariant: between two passes the graph satisfies verify_graph, so the pass
 * named in a failure is the one that broke it. */
#include "pass.h"

#include <string.h>

#include "optimizer.h"
#include "text.h"
#include "verify.h"

#include "../runtime/measure.h"

typedef struct Pass {
    const char *name, *what;
    bool (*run)(Graph *g, const PassContext *c);
    bool required;
} Pass;

static const Pass passes[] = {
#define PASS(name, what, required) {#name, what, pass_##name, required},
#include "pass.def"
#undef PASS
};

enum { PASS_COUNT = sizeof passes / sizeof *passes };

/* requires: the forward graph as the outputs of PEFT_FN_EVAL.
 * gives: PEFT_FN_TRAIN, PEFT_FN_GRADIENTS and, with accumulation, PEFT_FN_UPDATE.
 * leaves alone: PEFT_FN_EVAL, and a graph with nothing to train. */
bool pass_train(Graph *g, const PassContext *c) {
    bool any = false;
    for (int i = 0; i < g->nvar; i++) any |= g->var[i].kind == VAR_PARAM && g->var[i].trainable;
    if (c->fit && any) build_train(g, c->fit);
    return c->fit && any;
}

/* ---- lists of pass names ---- */

/* Whether a comma-separated list names the pass; "all" names every one. */
static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    while (list && *list) {
        size_t len = strcspn(list, ",");
        if ((len == n && !memcmp(list, name, n)) || (len == 3 && !memcmp(list, "all", 3)))
            return true;
        list += len + (list[len] == ',');
    }
    return false;
}

static const Pass *find_pass(const char *name, size_t n) {
    for (int i = 0; i < PASS_COUNT; i++)
        if (strlen(passes[i].name) == n && !memcmp(passes[i].name, name, n)) return &passes[i];
    return NULL;
}

static bool fail_unknown(PeftError *err, const char *option, const char *name, size_t n) {
    char known[256] = "";
    size_t used = 0;
    for (int i = 0; i < PASS_COUNT; i++) {
        if (find_pass(passes[i].name, strlen(passes[i].name)) != &passes[i]) continue;
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "",
                                 passes[i].name);
    }
    return peft_fail(err, "%s: there is no pass '%.*s'; passes are %s", option, (int)n, name,
                     known);
}

static bool check_list(const char *option, const char *list, bool skipping, PeftError *err) {
    while (list && *list) {
        size_t len = strcspn(list, ",");
        if (len != 3 || memcmp(list, "all", 3)) {
            const Pass *p = find_pass(list, len);
            if (!p) return fail_unknown(err, option, list, len);
            if (skipping && p->required)
                return peft_fail(err,
                                 "%s: the pass '%s' cannot be skipped: it is what makes the "
                                 "program, not an optimisation",
                                 option, p->name);
        }
        list += len + (list[len] == ',');
    }
    return true;
}

bool passes_check(const PassOptions *o, PeftError *err) {
    return check_list("--dump-after", o->dump_after, false, err) &&
           check_list("--skip", o->skip, true, err);
}

void passes_list(FILE *to) {
    for (int i = 0; i < PASS_COUNT; i++)
        fprintf(to, "  %-12s %s%s\n", passes[i].name, passes[i].what,
                passes[i].required ? " (always runs)" : "");
}

/* ---- running ---- */

static int count_live(Graph *g) {
    int32_t sum = 0;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        int32_t n;
        graph_live(g, (PeftFn)f, &n);
        sum += n;
    }
    return sum;
}

void passes_run(Graph *g, const PassOptions *o) {
    PassContext c = {.fit = o->fit};
    verify_graph(g, "elaborate");
    if (o->time) fprintf(o->log, "%-12s %9s %7s\n", "pass", "ms", "nodes");
    for (int i = 0; i < PASS_COUNT; i++) {
        const Pass *p = &passes[i];
        if (!p->required && listed(o->skip, p->name)) continue;
        double start = clock_seconds();
        bool changed = p->run(g, &c);
        double ms = 1e3 * (clock_seconds() - start);
        verify_graph(g, p->name);
        const char *note = changed ? "" : " (unchanged)";
        if (o->time) fprintf(o->log, "%-12s %9.3f %7d%s\n", p->name, ms, count_live(g), note);
        if (listed(o->dump_after, p->name)) {
            fprintf(o->log, "# after %s%s\n", p->name, note);
            text_print(o->log, g, false);
        }
    }
}
