/* Memory planning. Owns the placement of buffers in an arena: every item gets an offset such that
 * no two items alive at the same step share a byte. The problem is NP-hard (interval colouring with
 * weights), but greedy placement is usually within a few per cent of the bound: items are placed
 * one by one, in a fixed order, into the gap between already placed neighbours that fits best. A
 * few orders are tried and the best plan is kept; a plan that reaches the lower bound ends the
 * search. Invariant: nothing here depends on addresses, threads or time, so equal tables give equal
 * plans. */
#include "plan.h"

#include "cpu/attention.h"
#include "cpu/gemm.h"
#include "cpu/nf4.h"
#include "cuda/batched.h"
#include "cuda/device.h"

#include <stdlib.h>
#include <string.h>

static int64_t aligned(int64_t bytes) {
    return (bytes + PEFT_ALIGN - 1) / PEFT_ALIGN * PEFT_ALIGN;
}

int64_t plan_placed(int64_t bytes) {
    return aligned(bytes ? bytes : 1);
}

static bool overlap_in_time(const PlanItem *a, const PlanItem *b) {
    return a->first <= b->last && b->first <= a->last;
}

/* ---- lower bound ---- */

typedef struct Event {
    int64_t step, bytes; /* bytes > 0 appear, < 0 are gone, at the start of `step` */
} Event;

/* Buffers that end before a step are gone before those that start at it appear. */
static int event_order(const void *a, const void *b) {
    const Event *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Most bytes alive at one step. False when the sum does not fit in 63 bits. */
static bool lower_bound(const PlanItem *item, int n, PlanSummary *out, PeftError *err) {
    Event *event = peft_alloc(2 * (size_t)n, sizeof *event, err);
    if (!event) return false;
    for (int i = 0; i < n; i++) {
        event[2 * i] = (Event){item[i].first, aligned(item[i].bytes)};
        event[2 * i + 1] = (Event){(int64_t)item[i].last + 1, -aligned(item[i].bytes)};
    }
    qsort(event, 2 * (size_t)n, sizeof *event, event_order);
    int64_t live = 0;
    bool ok = true;
    for (int i = 0; ok && i < 2 * n; i++) {
        ok = !__builtin_add_overflow(live, event[i].bytes, &live);
        if (live <= out->lower_bound) continue;
        out->lower_bound = live;
        out->peak_step = (int32_t)event[i].step;
    }
    free(event);
    return ok || peft_fail(err, "the memory plan needs more than 2^63 bytes; use smaller sizes");
}

/* ---- placement ---- */

typedef enum Order { BY_SIZE, BY_LIFETIME, BY_AREA, PEAK_FIRST, BY_START, ORDERS } Order;

typedef struct Candidate { /* an item with what it is sorted by */
    double rank;           /* larger first */
    int64_t bytes;
    int32_t first;
    int item;
} Candidate;

typedef struct Placement {
    const PlanItem *item;
    int n;
    Candidate *queue; /* items in placement order */
    int *placed;      /* items placed so far, by ascending offset */
    int64_t *offset;  /* result */
} Placement;

/* PEAK_FIRST packs what is alive at the step of the lower bound (lifetimes are below 2^32 steps),
 * then fits the rest around it. */
static double rank_of(const PlanItem *it, Order order, int32_t peak_step) {
    bool at_peak = it->first <= peak_step && peak_step <= it->last;
    double span = (double)it->last - it->first + 1, bytes = (double)it->bytes;
    switch (order) {
    case BY_SIZE: return bytes;
    case BY_LIFETIME: return span;
    case BY_AREA: return bytes * span;
    case PEAK_FIRST: return at_peak ? 0x1p40 + span : span;
    default: return -(double)it->first;
    }
}

/* By rank, then size, then start, then index: a total order. */
static int placement_order(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->rank != y->rank) return x->rank > y->rank ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return x->item < y->item ? -1 : x->item > y->item;
}

/* The smallest gap below `limit` between the neighbours in time of item i that holds it, or else
 * the end of the highest neighbour. `limit`: a plan as high as this is of no use; -1 when the item
 * does not fit below it. */
static int64_t best_gap(const Placement *p, int count, int i, int64_t limit) {
    const PlanItem *it = &p->item[i];
    int64_t need = aligned(it->bytes), top = 0, best = -1, best_slack = INT64_MAX;
    for (int k = 0; k < count; k++) {
        const PlanItem *other = &p->item[p->placed[k]];
        if (!overlap_in_time(it, other)) continue;
        int64_t begin = p->offset[p->placed[k]];
        if (begin >= top && begin - top >= need && begin - top - need < best_slack) {
            best_slack = begin - top - need;
            best = top;
        }
        int64_t end = begin + aligned(other->bytes);
        if (end > top) top = end;
    }
    if (best < 0) best = top;
    return best <= limit - need ? best : -1;
}

static void insert_placed(Placement *p, int count, int i) {
    int at = count;
    while (at > 0 && p->offset[p->placed[at - 1]] > p->offset[i]) {
        p->placed[at] = p->placed[at - 1];
        at--;
    }
    p->placed[at] = i;
}

/* Places all items in one order; the bytes needed, or `limit` when that is not undercut. */
static int64_t place_all(Placement *p, Order order, int32_t peak_step, int64_t limit) {
    for (int i = 0; i < p->n; i++) {
        const PlanItem *it = &p->item[i];
        p->queue[i] = (Candidate){rank_of(it, order, peak_step), it->bytes, it->first, i};
    }
    qsort(p->queue, (size_t)p->n, sizeof *p->queue, placement_order);
    int64_t peak = 0;
    for (int count = 0; count < p->n; count++) {
        int i = p->queue[count].item;
        int64_t at = best_gap(p, count, i, limit - 1);
        if (at < 0) return limit;
        p->offset[i] = at;
        insert_placed(p, count, i);
        int64_t end = at + aligned(p->item[i].bytes);
        if (end > peak) peak = end;
    }
    return peak;
}

static bool search(PlanItem *item, int n, PlanSummary *out, PeftError *err) {
    Placement p = {.item = item, .n = n};
    p.queue = peft_alloc((size_t)n, sizeof *p.queue, err);
    p.placed = peft_alloc((size_t)n, sizeof *p.placed, err);
    p.offset = peft_alloc((size_t)n, sizeof *p.offset, err);
    bool ok = p.queue && p.placed && p.offset;
    out->peak = INT64_MAX;
    for (Order order = 0; ok && order < ORDERS && out->peak > out->lower_bound; order++) {
        int64_t peak = place_all(&p, order, out->peak_step, out->peak);
        if (peak >= out->peak) continue;
        out->peak = peak;
        for (int i = 0; i < n; i++) item[i].offset = p.offset[i];
    }
    free(p.queue);
    free(p.placed);
    free(p.offset);
    if (ok && out->peak == INT64_MAX)
        return peft_fail(err, "the memory plan needs more than 2^63 bytes; use smaller sizes");
    return ok;
}

bool plan_offsets(PlanItem *item, int n, PlanSummary *out, PeftError *err) {
    *out = (PlanSummary){0};
    if (n == 0) return true;
    for (int i = 0; i < n; i++)
        if (item[i].bytes <= 0 || item[i].bytes > INT64_MAX - PEFT_ALIGN ||
            item[i].first > item[i].last)
            return peft_fail(err, "memory plan: item %d has %lld bytes, alive from %d to %d", i,
                             (long long)item[i].bytes, item[i].first, item[i].last);
    return lower_bound(item, n, out, err) && search(item, n, out, err);
}

bool plan_check(const PlanItem *item, int n, PeftError *err) {
    for (int i = 0; i < n; i++) {
        if (item[i].offset < 0 || item[i].offset % PEFT_ALIGN != 0)
            return peft_fail(err, "memory plan: item %d is at %lld, not a multiple of %d", i,
                             (long long)item[i].offset, PEFT_ALIGN);
        for (int j = 0; j < i; j++) {
            if (!overlap_in_time(&item[i], &item[j])) continue;
            bool apart = item[i].offset + item[i].bytes <= item[j].offset ||
                         item[j].offset + item[j].bytes <= item[i].offset;
            if (!apart)
                return peft_fail(err, "memory plan: items %d and %d overlap at %lld", j, i,
                                 (long long)item[i].offset);
        }
    }
    return true;
}

/* ---- sizes ---- */

int64_t plan_bytes(uint8_t dtype, int rank, const int64_t *dim, const int64_t sym[PEFT_SYM_COUNT]) {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) {
        int64_t d = peft_dim(dim[i], sym);
        if (d < 0 || __builtin_mul_overflow(n, d, &n)) return -1;
    }
    if (n > INT64_MAX / 8) return -1;
    if (peft_is_nf4(dtype)) return (int64_t)nf4_bytes(n, dtype == DT_NF4);
    return n * (dtype == DT_WORK ? sym[PEFT_SYM_W] : 4); /* f32, i32, and both planes of a master */
}

int64_t step_workspace_bytes(const PeftProgram *p, const PeftStep *s,
                             const int64_t sym[PEFT_SYM_COUNT]) {
    int threads = (int)sym[PEFT_SYM_P];
    PeftKernelKind kind = p->kernel[s->kernel].kind;
    if (threads == 0) return kind == PEFT_KERNEL_GEMM ? cuda_workspace_bytes(s, sym) : 0;
    if (kind == PEFT_KERNEL_GEMM) return (int64_t)gemm_workspace_bytes(threads);
    if (kind != PEFT_KERNEL_ATTENTION && kind != PEFT_KERNEL_ATTENTION_GRAD) return 0;
    const PeftAttention *a = s->desc;
    return (int64_t)attention_workspace_bytes(threads, sym[PEFT_SYM_L], a->width / a->heads);
}

int64_t plan_temp_bytes(const PeftProgram *p, PeftFn fn, int temp,
                        const int64_t sym[PEFT_SYM_COUNT]) {
    const PeftTemp *t = &p->fn[fn].temp[temp];
    if (t->mem_class != PEFT_MEM_WORKSPACE) return plan_bytes(t->dtype, t->rank, t->dim, sym);
    return step_workspace_bytes(p, &p->fn[fn].step[t->first], sym);
}

/* ---- a program's plan ---- */

typedef struct Planner {
    const PeftProgram *program;
    const int64_t *train_sym, *eval_sym;
    ProgramPlan *plan;
    PeftError *err;
} Planner;

static const int64_t *symbols_of(const Planner *pl, PeftFn fn) {
    return fn == PEFT_FN_EVAL ? pl->eval_sym : pl->train_sym;
}

/* Room for `bytes` at the end of the persistent part. */
static bool append(Planner *pl, int64_t bytes, const char *what, PeftClass class, int64_t *offset) {
    if (bytes < 0 || bytes > INT64_MAX - PEFT_ALIGN)
        return peft_fail(pl->err, "%s: its size overflows; use smaller dimensions", what);
    int64_t size = plan_placed(bytes);
    *offset = pl->plan->persistent;
    pl->plan->by_class[class] += size;
    if (__builtin_add_overflow(pl->plan->persistent, size, &pl->plan->persistent))
        return peft_fail(pl->err, "%s: the arena overflows; use smaller dimensions", what);
    return true;
}

static bool place_vars(Planner *pl) {
    const PeftProgram *p = pl->program;
    pl->plan->var_offset = peft_zalloc((size_t)p->nvar, sizeof(int64_t), pl->err);
    if (!pl->plan->var_offset) return false;
    for (int i = 0; i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        int64_t bytes = plan_bytes(v->dtype, v->rank, v->dim, pl->train_sym);
        PeftClass class = v->is_state ? PEFT_MEM_OPTIMIZER : PEFT_MEM_WEIGHT;
        if (!append(pl, bytes, v->name, class, &pl->plan->var_offset[i])) return false;
    }
    return true;
}

/* One batch buffer serves training and evaluation: each field has the larger of its two sizes. */
static bool place_inputs(Planner *pl) {
    static const struct {
        const char *name;
        uint8_t dtype, rank;
        int64_t dim[PEFT_MAX_RANK];
    } input[PEFT_IN_COUNT] = {
#define X(name, dtype, rank, d0, d1) {#name, dtype, rank, {d0, d1}},
        PEFT_INPUTS(X)
#undef X
    };
    for (int i = 0; i < PEFT_IN_COUNT; i++) {
        int64_t a = plan_bytes(input[i].dtype, input[i].rank, input[i].dim, pl->train_sym);
        int64_t b = plan_bytes(input[i].dtype, input[i].rank, input[i].dim, pl->eval_sym);
        int64_t bytes = a < 0 || b < 0 ? -1 : a > b ? a : b;
        if (!append(pl, bytes, input[i].name, PEFT_MEM_INPUT, &pl->plan->input_offset[i]))
            return false;
    }
    return true;
}

static bool is_gpu(const int64_t sym[PEFT_SYM_COUNT]) {
    return sym[PEFT_SYM_P] == 0;
}

/* Sizes and lifetimes, those of arrays not joined yet. */
static bool temp_items(const Planner *pl, PeftFn fn, PlanItem *item) {
    const PeftFunction *f = &pl->program->fn[fn];
    const int64_t *sym = symbols_of(pl, fn);
    for (int i = 0; i < f->ntemp; i++) {
        const PeftTemp *t = &f->temp[i];
        int64_t bytes = plan_temp_bytes(pl->program, fn, i, sym);
        if (bytes < 0)
            return peft_fail(pl->err, "%s (%s): its size overflows; use smaller dimensions",
                             t->label, t->where);
        item[i] = (PlanItem){.bytes = bytes ? bytes : 1, .first = t->first, .last = t->last};
        int32_t after = f->nstep - 1 - t->last;
        if (is_gpu(sym)) item[i].last += after < PLAN_GPU_SLACK ? after : PLAN_GPU_SLACK;
    }
    return true;
}

/* Items that lie side by side are placed as one: lead[i] is the first item of the array of item i
 * (i itself when it is in none), place[i] its number in there. */
typedef struct Arrays {
    int32_t *lead, *place;
} Arrays;

/* Of the operands k of a batch's products those become an array that are different temporaries of
 * one size and in no array yet. */
static void join_operands(const PeftProgram *p, PeftFn fn, const Batched *b, int k, PlanItem *item,
                          const Arrays *a) {
    const PeftStep *step = p->fn[fn].step;
    int32_t temp[BATCH_MOST];
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        int32_t ref = batch_operand(p, &step[b->step[i]], k), t = PEFT_REF_INDEX(ref);
        bool joins = PEFT_REF_KIND(ref) == PEFT_REF_TEMP && a->lead[t] < 0;
        for (int j = 0; joins && j < n; j++)
            joins = temp[j] != t && item[temp[j]].bytes == item[t].bytes;
        if (joins) temp[n++] = t;
    }
    if (n < 2 || item[temp[0]].bytes > INT64_MAX / (2 * BATCH_MOST))
        return; /* too much anyway: not added up */
    PlanItem all = item[temp[0]];
    for (int i = 0; i < n; i++) {
        const PlanItem *one = &item[temp[i]];
        if (one->first < all.first) all.first = one->first;
        if (one->last > all.last) all.last = one->last;
        a->lead[temp[i]] = temp[0];
        a->place[temp[i]] = i;
    }
    for (int i = 0; i < n; i++) {
        item[temp[i]].first = all.first;
        item[temp[i]].last = all.last;
    }
}

/* What products that wait for the last of them touch lives until then. */
static void extend_waiting(const PeftFunction *f, const Batched *b, PlanItem *item) {
    int32_t after = f->nstep - 1 - b->at;
    int32_t last = b->at + (after < PLAN_GPU_SLACK ? after : PLAN_GPU_SLACK);
    for (int i = 0; i < b->n; i++) {
        const PeftStep *s = &f->step[b->step[i]];
        for (int k = 0; k <= s->narg; k++) {
            int32_t ref = k < s->narg ? s->arg[k] : s->workspace;
            if (PEFT_REF_KIND(ref) != PEFT_REF_TEMP) continue;
            PlanItem *it = &item[PEFT_REF_INDEX(ref)];
            if (it->last < last) it->last = last;
        }
    }
}

static bool find_arrays(const Planner *pl, PeftFn fn, PlanItem *item, const Arrays *a) {
    const PeftFunction *f = &pl->program->fn[fn];
    Batches batches = {NULL, 0};
    for (int i = 0; i < f->ntemp; i++) a->lead[i] = -1;
    if (is_gpu(symbols_of(pl, fn)) && !batches_find(pl->program, fn, &batches, pl->err))
        return false;
    for (int i = 0; i < batches.n; i++)
        if (batch_waits(&batches.batch[i])) extend_waiting(f, &batches.batch[i], item);
    for (int waits = 0; waits < 2; waits++)
        for (int n = BATCH_MOST; n > 1; n--) /* large ones first: parts of them are arrays, too */
            for (int i = 0; i < batches.n; i++)
                for (int k = 0; k < BATCH_OPERANDS; k++)
                    if (batches.batch[i].n == n && batch_waits(&batches.batch[i]) == waits)
                        join_operands(pl->program, fn, &batches.batch[i], k, item, a);
    for (int i = 0; i < f->ntemp; i++)
        if (a->lead[i] < 0) a->lead[i] = i;
    batches_free(&batches);
    return true;
}

/* Places the arrays, then each item in its own. */
static bool place_arrays(PlanItem *item, int n, const Arrays *a, PlanSummary *out, PeftError *err) {
    PlanItem *whole = peft_zalloc((size_t)n, sizeof *whole, err);
    int32_t *at = peft_alloc((size_t)n, sizeof *at, err);
    int count = 0;
    bool ok = whole && at;
    for (int i = 0; ok && i < n; i++)
        if (a->lead[i] == i) {
            at[i] = count;
            whole[count++] = item[i];
        }
    for (int i = 0; ok && i < n; i++) {
        PlanItem *w = &whole[at[a->lead[i]]];
        int64_t end = a->place[i] * aligned(item[i].bytes) + item[i].bytes;
        if (end > w->bytes) w->bytes = end;
    }
    ok = ok && plan_offsets(whole, count, out, err) && plan_check(whole, count, err);
    for (int i = 0; ok && i < n; i++)
        item[i].offset = whole[at[a->lead[i]]].offset + a->place[i] * aligned(item[i].bytes);
    free(whole);
    free(at);
    return ok;
}

static bool plan_function(Planner *pl, PeftFn fn) {
    size_t n = (size_t)pl->program->fn[fn].ntemp;
    PlanItem *item = peft_zalloc(n, sizeof *item, pl->err);
    int64_t *offset = pl->plan->temp_offset[fn] = peft_zalloc(n, sizeof *offset, pl->err);
    PlanSpan *span = pl->plan->temp_span[fn] = peft_zalloc(n, sizeof *span, pl->err);
    Arrays arrays = {peft_zalloc(n, sizeof(int32_t), pl->err),
                     peft_zalloc(n, sizeof(int32_t), pl->err)};
    bool ok = item && offset && span && arrays.lead && arrays.place && temp_items(pl, fn, item) &&
              find_arrays(pl, fn, item, &arrays) &&
              place_arrays(item, (int)n, &arrays, &pl->plan->fn[fn], pl->err) &&
              plan_check(item, (int)n, pl->err);
    for (size_t i = 0; ok && i < n; i++) {
        offset[i] = item[i].offset;
        span[i] = (PlanSpan){item[i].first, item[i].last};
    }
    free(item);
    free(arrays.lead);
    free(arrays.place);
    return ok;
}

/* What is alive at the step where the lower bound of function `fn` lies. */
static void count_classes(Planner *pl, PeftFn fn) {
    const PeftFunction *f = &pl->program->fn[fn];
    const PlanSpan *span = pl->plan->temp_span[fn];
    int32_t at = pl->plan->fn[fn].peak_step;
    for (int i = 0; i < f->ntemp; i++) {
        int64_t bytes = plan_temp_bytes(pl->program, fn, i, symbols_of(pl, fn));
        if (span[i].first <= at && at <= span[i].last)
            pl->plan->by_class[f->temp[i].mem_class] += plan_placed(bytes);
    }
}

static bool plan_functions(Planner *pl, unsigned fn_mask) {
    ProgramPlan *plan = pl->plan;
    int64_t peak = -1, bound = -1;
    PeftFn bound_fn = PEFT_FN_EVAL;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        if (!(fn_mask >> f & 1)) continue;
        if (!plan_function(pl, (PeftFn)f)) return false;
        if (plan->fn[f].peak > peak) {
            peak = plan->fn[f].peak;
            plan->peak_fn = (PeftFn)f;
        }
        if (plan->fn[f].lower_bound > bound) {
            bound = plan->fn[f].lower_bound;
            bound_fn = (PeftFn)f;
        }
    }
    if (peak < 0) peak = bound = 0; /* nothing will run: weights alone */
    if (__builtin_add_overflow(plan->persistent, peak, &plan->peak))
        return peft_fail(pl->err, "the arena overflows; use smaller dimensions");
    plan->lower_bound = plan->persistent + bound;
    if (fn_mask) count_classes(pl, bound_fn);
    return true;
}

bool program_plan(const PeftProgram *p, unsigned fn_mask, const int64_t train_sym[PEFT_SYM_COUNT],
                  const int64_t eval_sym[PEFT_SYM_COUNT], ProgramPlan *out, PeftError *err) {
    memset(out, 0, sizeof *out);
    Planner pl = {p, train_sym, eval_sym, out, err};
    bool ok = place_vars(&pl) && place_inputs(&pl) && plan_functions(&pl, fn_mask);
    if (!ok) program_plan_free(out);
    return ok;
}

void program_plan_free(ProgramPlan *plan) {
    free(plan->var_offset);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        free(plan->temp_offset[f]);
        free(plan->temp_span[f]);
    }
    memset(plan, 0, sizeof *plan);
}
