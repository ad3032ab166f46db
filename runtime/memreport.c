/* See memreport.h. */
#include "memreport.h"
#include "plan.h"

#include <stdlib.h>
#include <string.h>

const char *const mem_class_name[PEFT_MEM_CLASSES] = {
    "weights", "gradients", "optimizer", "activations", "backward", "workspace", "inputs"};

enum { LARGEST = 12 };

typedef struct Live {
    const char *label, *where;
    int64_t bytes;
    int mem_class;
} Live;

static int by_bytes(const void *a, const void *b) {
    const Live *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return strcmp(x->label, y->label);
}

static void add(Live *list, int *n, const char *label, const char *where, int64_t bytes,
                int mem_class) {
    list[(*n)++] = (Live){label, where, bytes, mem_class};
}

/* Everything alive at the peak, largest first. */
static Live *live_at_peak(const PeftProgram *p, const ProgramPlan *plan, const int64_t *train_sym,
                          const int64_t *eval_sym, int *n, PeftError *err) {
    PeftFn fn = plan->peak_fn;
    const PeftFunction *f = &p->fn[fn];
    const int64_t *sym = fn == PEFT_FN_EVAL ? eval_sym : train_sym;
    int32_t at = plan->fn[fn].peak_step;
    Live *list = peft_alloc((size_t)(p->nvar + f->ntemp), sizeof *list, err);
    *n = 0;
    for (int i = 0; list && i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        add(list, n, v->name, v->where, plan_bytes(v->dtype, v->rank, v->dim, sym),
            v->is_state ? PEFT_MEM_OPTIMIZER : PEFT_MEM_WEIGHT);
    }
    for (int i = 0; list && i < f->ntemp; i++) {
        const PeftTemp *t = &f->temp[i];
        if (at < t->first || at > t->last) continue;
        int64_t bytes = t->mem_class == PEFT_MEM_WORKSPACE
                            ? step_workspace_bytes(p, &f->step[t->first], sym)
                            : plan_bytes(t->dtype, t->rank, t->dim, sym);
        add(list, n, t->label, t->where, bytes, t->mem_class);
    }
    if (list) qsort(list, (size_t)*n, sizeof *list, by_bytes);
    return list;
}

static void print_text(FILE *out, const PeftProgram *p, const ProgramPlan *plan, const int64_t *sym,
                       const Live *list, int n) {
    static const char *const fn_name[PEFT_FN_COUNT] = {
        "evaluation", "a training step", "the update", "the gradients", "the start values"};
    fprintf(out, "%s, worst batch: %lld tokens in %lld sequences, longest %lld\n\n", p->name,
            (long long)sym[PEFT_SYM_T], (long long)sym[PEFT_SYM_S], (long long)sym[PEFT_SYM_L]);
    for (int c = 0; c < PEFT_MEM_CLASSES; c++)
        if (plan->by_class[c])
            fprintf(out, "  %-12s %12.3f MB\n", mem_class_name[c], (double)plan->by_class[c] / 1e6);
    fprintf(out, "  %-12s %12.3f MB  most bytes alive at once, in %s\n", "lower bound",
            (double)plan->lower_bound / 1e6, fn_name[plan->peak_fn]);
    fprintf(out, "  %-12s %12.3f MB  the arena: %lld bytes, %.4f of the lower bound\n\n", "peak",
            (double)plan->peak / 1e6, (long long)plan->peak,
            (double)plan->peak / (double)plan->lower_bound);
    fprintf(out, "largest buffers at the peak\n");
    for (int i = 0; i < n && i < LARGEST; i++)
        fprintf(out, "  %12.3f MB  %-11s %s  %s\n", (double)list[i].bytes / 1e6,
                mem_class_name[list[i].mem_class], list[i].label, list[i].where);
}

static void print_json(FILE *out, const PeftProgram *p, const ProgramPlan *plan, const int64_t *sym,
                       const Live *list, int n) {
    fprintf(
        out,
        "{\"program\": \"%s\", \"tokens\": %lld, \"sequences\": %lld, \"longest\": %lld, \"peak_bytes\": "
        "%lld, \"lower_bound_bytes\": %lld, \"by_class\": {",
        p->name, (long long)sym[PEFT_SYM_T], (long long)sym[PEFT_SYM_S], (long long)sym[PEFT_SYM_L],
        (long long)plan->peak, (long long)plan->lower_bound);
    for (int c = 0; c < PEFT_MEM_CLASSES; c++)
        fprintf(out, "%s\"%s\": %lld", c ? ", " : "", mem_class_name[c],
                (long long)plan->by_class[c]);
    fprintf(out, "}, \"largest\": [");
    for (int i = 0; i < n && i < LARGEST; i++)
        fprintf(out, "%s{\"bytes\": %lld, \"class\": \"%s\", \"label\": \"%s\", \"where\": \"%s\"}",
                i ? ", " : "", (long long)list[i].bytes, mem_class_name[list[i].mem_class],
                list[i].label, list[i].where);
    fprintf(out, "]}\n");
}

bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err) {
    ProgramPlan plan;
    int n;
    unsigned fns =
        1u << PEFT_FN_EVAL | 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE | 1u << PEFT_FN_START;
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (!p->fn[f].nstep) fns &= ~(1u << f);
    if (!program_plan(p, fns, train_sym, eval_sym, &plan, err)) return false;
    Live *list = live_at_peak(p, &plan, train_sym, eval_sym, &n, err);
    if (list) (json ? print_json : print_text)(out, p, &plan, train_sym, list, n);
    free(list);
    program_plan_free(&plan);
    return list != NULL;
}
