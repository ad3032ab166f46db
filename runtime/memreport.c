/* See memreport.h. The figures are those of runtime/plan.c, the code that a program plans itself
 * with: for the same batch the report and the run agree to the byte. */
#include "memreport.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "plan.h"

enum { SHOWN = 12 }; /* groups of buffers listed */

/* Buffers alive at the peak that one model line made in the same size: those of all layers. */
typedef struct Buffer {
    int64_t bytes; /* of each */
    int count;
    const char *what, *where; /* `what`: of the first */
    PeftClass class;
    int order; /* of the tables: ties */
} Buffer;

typedef struct Report {
    const PeftProgram *p;
    const int64_t *train_sym, *eval_sym;
    unsigned fn_mask;
    ProgramPlan plan;
    PeftFn peak_fn; /* of the lower bound, whose step the buffers are listed for */
    Buffer *buffer; /* alive then, most bytes first */
    int nbuffer;
} Report;

const char *const mem_class_name[PEFT_MEM_CLASSES] = {
    "weights", "gradients", "optimizer", "activations", "backward", "workspace", "inputs"};
static const char *const fn_name[PEFT_FN_COUNT] = {
    [PEFT_FN_EVAL] = "eval",           [PEFT_FN_TRAIN] = "train", [PEFT_FN_UPDATE] = "update",
    [PEFT_FN_GRADIENTS] = "gradients", [PEFT_FN_START] = "start",
};

/* ---- gathering ---- */

static int larger(const void *a, const void *b) {
    const Buffer *x = a, *y = b;
    int64_t all_x = x->bytes * x->count, all_y = y->bytes * y->count;
    if (all_x != all_y) return all_x > all_y ? -1 : 1;
    return x->order - y->order;
}

static void add_buffer(Report *r, int64_t bytes, const char *what, const char *where,
                       PeftClass class) {
    for (int i = 0; i < r->nbuffer; i++) {
        Buffer *b = &r->buffer[i];
        if (b->bytes != bytes || b->class != class || strcmp(b->where, where) != 0) continue;
        b->count++;
        return;
    }
    r->buffer[r->nbuffer] = (Buffer){bytes, 1, what, where, class, r->nbuffer};
    r->nbuffer++;
}

static bool list_buffers(Report *r, PeftError *err) {
    const PeftProgram *p = r->p;
    const PeftFunction *f = &p->fn[r->peak_fn];
    const int64_t *sym = r->peak_fn == PEFT_FN_EVAL ? r->eval_sym : r->train_sym;
    int32_t step = r->plan.fn[r->peak_fn].peak_step;
    r->buffer = peft_zalloc((size_t)p->nvar + (size_t)f->ntemp, sizeof *r->buffer, err);
    if (!r->buffer) return false;
    for (int i = 0; i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        add_buffer(r, plan_bytes(v->dtype, v->rank, v->dim, sym), v->name, v->where,
                   v->is_state ? PEFT_MEM_OPTIMIZER : PEFT_MEM_WEIGHT);
    }
    for (int i = 0; i < f->ntemp; i++) {
        const PeftTemp *t = &f->temp[i];
        PlanSpan alive = r->plan.temp_span[r->peak_fn][i];
        if (step < alive.first || step > alive.last) continue;
        add_buffer(r, plan_temp_bytes(p, r->peak_fn, i, sym), t->label, t->where,
                   (PeftClass)t->mem_class);
    }
    qsort(r->buffer, (size_t)r->nbuffer, sizeof *r->buffer, larger);
    return true;
}

/* fn_mask 0: the functions of a training run. */
static bool gather(Report *r, PeftError *err) {
    bool given = r->fn_mask != 0;
    static const PeftFn planned[] = {PEFT_FN_EVAL, PEFT_FN_TRAIN, PEFT_FN_UPDATE, PEFT_FN_START};
    for (size_t i = 0; !given && i < sizeof planned / sizeof *planned; i++)
        if (r->p->fn[planned[i]].nstep) r->fn_mask |= 1u << planned[i];
    if (!program_plan(r->p, r->fn_mask, r->train_sym, r->eval_sym, &r->plan, err)) return false;
    int64_t most = -1;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        if (!(r->fn_mask >> f & 1) || r->plan.fn[f].lower_bound <= most) continue;
        most = r->plan.fn[f].lower_bound;
        r->peak_fn = (PeftFn)f;
    }
    return list_buffers(r, err);
}

/* The step at which most bytes are alive; NULL for a program that does nothing. */
static const PeftStep *peak_step(const Report *r) {
    const PeftFunction *f = &r->p->fn[r->peak_fn];
    return f->nstep ? &f->step[r->plan.fn[r->peak_fn].peak_step] : NULL;
}

static double ratio(const ProgramPlan *plan) {
    return plan->lower_bound ? (double)plan->peak / (double)plan->lower_bound : 1;
}

/* ---- text ---- */

void memreport_used(FILE *out, const Exec *x) {
    int64_t driver = exec_driver_bytes(x);
    fprintf(out, "planned peak           %10.1f MB\n", (double)x->plan.peak / 1e6);
    fprintf(out, "arena high-water mark  %10.1f MB\n", (double)x->high_water / 1e6);
    if (driver >= 0) fprintf(out, "counted by the driver  %10.1f MB\n", (double)driver / 1e6);
}

static void print_bytes(FILE *out, const char *name, int64_t bytes) {
    fprintf(out, "%-14s %10.2f MB  %14" PRId64 " bytes", name, (double)bytes / 1e6, bytes);
}

static void print_classes(FILE *out, const Report *r) {
    for (int c = 0; c < PEFT_MEM_CLASSES; c++) {
        print_bytes(out, mem_class_name[c], r->plan.by_class[c]);
        fprintf(out, "  %5.1f %%\n",
                100 * (double)r->plan.by_class[c] / (double)(r->plan.lower_bound + 1));
    }
}

static void print_summary(FILE *out, const Report *r) {
    const int64_t *s = r->train_sym;
    fprintf(out,
            "memory plan of %s: %" PRId64 " tokens, %" PRId64 " sequences, the longest of %" PRId64
            ", ",
            r->p->name, s[PEFT_SYM_T], s[PEFT_SYM_S], s[PEFT_SYM_L]);
    if (s[PEFT_SYM_P])
        fprintf(out, "%" PRId64 " threads\n\n", s[PEFT_SYM_P]);
    else
        fprintf(out, "a GPU in %s\n\n", s[PEFT_SYM_W] == 2 ? "bf16" : "fp32");
    print_bytes(out, "peak", r->plan.peak);
    fputc('\n', out);
    print_bytes(out, "lower bound", r->plan.lower_bound);
    fprintf(out, "\n%-14s %10.4f\n\n", "ratio", ratio(&r->plan));
    print_classes(out, r);
    fputc('\n', out);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        if (!(r->fn_mask >> f & 1)) continue;
        print_bytes(out, fn_name[f], r->plan.persistent + r->plan.fn[f].peak);
        fprintf(out, "  %d steps, %d temporaries\n", r->p->fn[f].nstep, r->p->fn[f].ntemp);
    }
}

static void print_buffers(FILE *out, const Report *r) {
    const PeftStep *s = peak_step(r);
    if (s)
        fprintf(out, "\nmost of what is alive at the peak, step %d of %s (%s%s%s):\n",
                r->plan.fn[r->peak_fn].peak_step, fn_name[r->peak_fn], s->label,
                s->where[0] ? " at " : "", s->where);
    for (int i = 0; i < r->nbuffer && i < SHOWN; i++) {
        const Buffer *b = &r->buffer[i];
        fprintf(out, "%4d x %12" PRId64 " bytes  %-11s  %s%s%s\n", b->count, b->bytes,
                mem_class_name[b->class], b->what, b->where[0] ? "  " : "", b->where);
    }
}

static Report report_of(const Exec *x) {
    return (Report){
        .p = x->program, .train_sym = x->train_sym, .eval_sym = x->eval_sym, .fn_mask = x->fn_mask};
}

static void report_free(Report *r) {
    free(r->buffer);
    program_plan_free(&r->plan);
}

bool memreport_peak(FILE *out, const Exec *x, PeftError *err) {
    Report r = report_of(x);
    bool ok = gather(&r, err);
    if (ok) {
        print_classes(out, &r);
        print_buffers(out, &r);
    }
    report_free(&r);
    return ok;
}

/* ---- JSON ---- */

static json_t *json_buffers(const Report *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->nbuffer && i < SHOWN; i++) {
        const Buffer *b = &r->buffer[i];
        json_array_append_new(list,
                              json_pack("{s:I, s:i, s:s, s:s, s:s}", "bytes", (json_int_t)b->bytes,
                                        "count", b->count, "class", mem_class_name[b->class],
                                        "what", b->what, "where", b->where));
    }
    return list;
}

static json_t *json_report(const Report *r) {
    const int64_t *s = r->train_sym;
    json_t *class = json_object(), *fn = json_object();
    for (int c = 0; c < PEFT_MEM_CLASSES; c++)
        json_object_set_new(class, mem_class_name[c], json_integer(r->plan.by_class[c]));
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (r->fn_mask >> f & 1)
            json_object_set_new(fn, fn_name[f],
                                json_integer(r->plan.persistent + r->plan.fn[f].peak));
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:o, s:o}", "program",
                     r->p->name, "tokens", (json_int_t)s[PEFT_SYM_T], "sequences",
                     (json_int_t)s[PEFT_SYM_S], "longest", (json_int_t)s[PEFT_SYM_L], "threads",
                     (json_int_t)s[PEFT_SYM_P], "peak_bytes", (json_int_t)r->plan.peak,
                     "lower_bound_bytes", (json_int_t)r->plan.lower_bound, "ratio", ratio(&r->plan),
                     "by_class", class, "by_function", fn, "largest", json_buffers(r));
}

json_t *memreport_json(const Exec *x, PeftError *err) {
    Report r = report_of(x);
    json_t *root = gather(&r, err) ? json_report(&r) : NULL;
    if (!root) peft_fail(err, "cannot make the memory report of %s as JSON", x->program->name);
    report_free(&r);
    return root;
}

static bool print_json(FILE *out, const Report *r, PeftError *err) {
    json_t *root = json_report(r);
    bool ok = root && json_dumpf(root, out, JSON_INDENT(2)) == 0;
    fputc('\n', out);
    json_decref(root);
    return ok || peft_fail(err, "cannot write the memory report of %s as JSON", r->p->name);
}

bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err) {
    Report r = {.p = p, .train_sym = train_sym, .eval_sym = eval_sym};
    bool ok = gather(&r, err);
    if (ok && json) {
        ok = print_json(out, &r, err);
    } else if (ok) {
        print_summary(out, &r);
        print_buffers(out, &r);
    }
    report_free(&r);
    return ok;
}

/* ---- over time ---- */

/* Of variables and inputs, which every step of every function finds. */
static void count_persistent(const Exec *x, int64_t by_class[PEFT_MEM_CLASSES]) {
    int64_t variables = 0;
    for (int i = 0; i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        int64_t bytes = plan_placed(plan_bytes(v->dtype, v->rank, v->dim, x->train_sym));
        by_class[v->is_state ? PEFT_MEM_OPTIMIZER : PEFT_MEM_WEIGHT] += bytes;
        variables += bytes;
    }
    by_class[PEFT_MEM_INPUT] = x->plan.persistent - variables;
}

int64_t *memreport_timeline(const Exec *x, PeftFn fn, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    const int64_t *sym = fn == PEFT_FN_EVAL ? x->eval_sym : x->train_sym;
    int64_t *alive = peft_zalloc((size_t)f->nstep * PEFT_MEM_CLASSES, sizeof *alive, err);
    int64_t persistent[PEFT_MEM_CLASSES] = {0};
    if (!alive) return NULL;
    count_persistent(x, persistent);
    for (int s = 0; s < f->nstep; s++)
        memcpy(alive + s * PEFT_MEM_CLASSES, persistent, sizeof persistent);
    for (int i = 0; i < f->ntemp; i++) {
        const PeftTemp *t = &f->temp[i];
        int64_t bytes = plan_placed(plan_temp_bytes(x->program, fn, i, sym));
        PlanSpan span = x->plan.temp_span[fn][i];
        for (int s = span.first; s <= span.last; s++)
            alive[s * PEFT_MEM_CLASSES + t->mem_class] += bytes;
    }
    return alive;
}
