/* See order.h. Steps are placed one by one, in the program's order. What a step comes after is kept
 * as a vector clock: for every stream, the last of its steps that is known to have ended. So step j
 * comes before step i when the clock of i has reached j on j's stream, and a step waits only for
 * those conflicting steps that its clock has not reached yet. */
#include "order.h"

#include <stdlib.h>
#include <string.h>

enum { NOTHING = -1 }; /* in clocks: no step of the stream has ended */

typedef struct Placing {
    const OrderStep *step;
    int streams;
    int32_t *clock;   /* [nstep + 1][streams] */
    int32_t *tail;    /* by stream: its last step so far, or NOTHING */
    int32_t *depth;   /* by step: steps of the longest chain that ends with it */
    int32_t *pending; /* conflicting steps that the step being placed is not known to follow */
    int npending;
    Order *out;
} Placing;

static bool conflict(const OrderStep *a, const OrderStep *b) {
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++) {
            const OrderRange *x = &a->range[i], *y = &b->range[k];
            int64_t begin = x->begin > y->begin ? x->begin : y->begin;
            int64_t end = x->end < y->end ? x->end : y->end;
            if (begin < end && (x->written || y->written)) return true;
        }
    return false;
}

static int32_t *clock_of(const Placing *p, int step) {
    return &p->clock[(size_t)step * (size_t)p->streams];
}

static bool reached(const Placing *p, const int32_t *clock, int step) {
    return clock[p->out->stream[step]] >= step;
}

/* The clock of whoever runs after `step`, too. */
static void run_after(const Placing *p, int32_t *clock, int step) {
    const int32_t *other = clock_of(p, step);
    for (int s = 0; s < p->streams; s++)
        if (other[s] > clock[s]) clock[s] = other[s];
}

/* Later steps first: what they follow needs no look. The end of the function conflicts with all. */
static void find_pending(Placing *p, int i) {
    bool end = i == p->out->nstep;
    int32_t *clock = clock_of(p, i);
    p->npending = 0;
    for (int s = 0; s < p->streams; s++) clock[s] = NOTHING;
    for (int j = i - 1; j >= 0; j--) {
        if (reached(p, clock, j) || !(end || conflict(&p->step[i], &p->step[j]))) continue;
        p->pending[p->npending++] = j;
        run_after(p, clock, j);
    }
}

/* Behind the last step that it waits for, the one of the longest chain, when nothing has followed
 * that on its stream; or else on a stream that has nothing left to do before the step may run; or
 * else on a new one; or else where the shortest chain is in the way. */
static int choose_stream(const Placing *p, int i) {
    const int32_t *clock = clock_of(p, i);
    int best = -1, idle = -1, shortest = 0;
    for (int s = 0; s < p->streams; s++) {
        int32_t t = p->tail[s];
        if (t == NOTHING) return best >= 0 ? best : idle >= 0 ? idle : s;
        bool waits = false;
        for (int k = 0; k < p->npending; k++) waits = waits || p->pending[k] == t;
        if (waits && (best < 0 || p->depth[t] > p->depth[p->tail[best]])) best = s;
        if (clock[s] == t && (idle < 0 || t < p->tail[idle])) idle = s;
        if (p->depth[t] < p->depth[p->tail[shortest]]) shortest = s;
    }
    return best >= 0 ? best : idle >= 0 ? idle : shortest;
}

/* Puts step i (or the end) on stream s: notes the waits that the stream's order does not imply. */
static void place(Placing *p, int i, int s) {
    Order *o = p->out;
    int32_t t = p->tail[s], depth = 0, *clock = clock_of(p, i);
    o->first_wait[i] = o->nwait;
    for (int k = 0; k < p->npending; k++) {
        int32_t j = p->pending[k];
        if (p->depth[j] > depth) depth = p->depth[j];
        if (t == NOTHING || !reached(p, clock_of(p, t), j)) o->wait[o->nwait++] = j;
    }
    if (t == NOTHING && s != 0 && p->npending == 0) o->wait[o->nwait++] = ORDER_START;
    if (t != NOTHING) {
        if (p->depth[t] > depth) depth = p->depth[t];
        run_after(p, clock, t);
    }
    if (i == o->nstep) return;
    clock[s] = p->tail[s] = i;
    o->stream[i] = s;
    p->depth[i] = depth + 1;
    if (p->depth[i] > o->longest) o->longest = p->depth[i];
}

static bool reserve(Placing *p, PeftError *err) {
    Order *o = p->out;
    size_t n = (size_t)o->nstep, streams = (size_t)p->streams;
    p->clock = peft_alloc((n + 1) * streams, sizeof *p->clock, err);
    p->tail = peft_alloc(streams, sizeof *p->tail, err);
    p->depth = peft_alloc(n + 1, sizeof *p->depth, err);
    p->pending = peft_alloc(n + 1, sizeof *p->pending, err);
    o->stream = peft_alloc(n + 1, sizeof *o->stream, err);
    o->first_wait = peft_alloc(n + 2, sizeof *o->first_wait, err);
    o->wait = peft_alloc((n + 1) * streams, sizeof *o->wait, err); /* one of each stream at most */
    return p->clock && p->tail && p->depth && p->pending && o->stream && o->first_wait && o->wait;
}

bool order_steps(const OrderStep *step, int n, int streams, Order *out, PeftError *err) {
    *out = (Order){.nstep = n};
    Placing p = {.step = step, .streams = streams, .out = out};
    bool ok = reserve(&p, err);
    for (int s = 0; ok && s < streams; s++) p.tail[s] = NOTHING;
    for (int i = 0; ok && i <= n; i++) {
        find_pending(&p, i);
        place(&p, i, i < n ? choose_stream(&p, i) : 0);
    }
    if (ok) out->first_wait[n + 1] = out->nwait;
    free(p.clock);
    free(p.tail);
    free(p.depth);
    free(p.pending);
    if (!ok) order_free(out);
    return ok;
}

void order_free(Order *o) {
    free(o->stream);
    free(o->wait);
    free(o->first_wait);
    free(o->member);
    free(o->first_member);
    free(o->prepares);
    *o = (Order){0};
}

/* ---- a function's steps ---- */

typedef struct Ranges {
    const PeftProgram *program;
    const ProgramPlan *plan;
    PeftFn fn;
    const int64_t *sym;
    OrderRange *range;
    int n;
} Ranges;

static void add_range(Ranges *r, int64_t begin, int64_t bytes, bool written) {
    r->range[r->n++] = (OrderRange){begin, begin + bytes, written};
}

/* Nobody writes the inputs. */
static void add_buffer(Ranges *r, int32_t ref, bool written) {
    int i = PEFT_REF_INDEX(ref);
    if (PEFT_REF_KIND(ref) == PEFT_REF_VAR) {
        const PeftVar *v = &r->program->var[i];
        add_range(r, r->plan->var_offset[i], plan_bytes(v->dtype, v->rank, v->dim, r->sym),
                  written);
    } else if (PEFT_REF_KIND(ref) == PEFT_REF_TEMP) {
        add_range(r, r->plan->persistent + r->plan->temp_offset[r->fn][i],
                  plan_temp_bytes(r->program, r->fn, i, r->sym), written);
    }
}

static void add_buffers(Ranges *r, const PeftStep *s, int from, int to) {
    bool gemm = r->program->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
    for (int k = from; k < to; k++)
        add_buffer(r, s->arg[k], k >= s->nread || (gemm && k == PEFT_GEMM_C));
}

/* Counters that launches of the same code share lie below the arena. */
static void add_counters(Ranges *r, PeftKernelKind kind, int32_t kernel) {
    const PeftKernel *k = r->program->kernel;
    int32_t same = 0;
    if (kind != PEFT_KERNEL_FULL_SUM && kind != PEFT_KERNEL_INDEX) return;
    while (strcmp(k[same].name, k[kernel].name) != 0) same++;
    add_range(r, -1 - (int64_t)same, 1, true);
}

static OrderStep step_ranges(Ranges *r, const PeftStep *s) {
    PeftKernelKind kind = r->program->kernel[s->kernel].kind;
    OrderStep out = {.range = &r->range[r->n]};
    int before = r->n;
    const PeftJoin *join = peft_join(r->program, s);
    const PeftStep *second = peft_second(r->program, s);
    bool done = peft_is_second(r->program, s);
    if (join) add_buffers(r, s - join->back, PEFT_GEMM_C, s[-join->back].narg);
    add_buffers(r, s, done ? PEFT_GEMM_C : 0, peft_own_args(r->program, s));
    if (second) add_buffers(r, second, 1, peft_product_args(second));
    if (!done) add_buffer(r, s->workspace, true);
    add_counters(r, kind, s->kernel);
    out.n = r->n - before;
    return out;
}

/* ---- groups ---- */

typedef struct Group { /* of steps that one launch serves, in the program's order */
    int32_t first, last, n;
} Group;

typedef struct Grouping {
    const PeftFunction *f;
    const PeftProgram *program;
    const OrderStep *step;
    int32_t *next;  /* by step: the next one of its group, or NOTHING */
    int32_t *group; /* by step: the group that it is the last of so far, or NOTHING */
    Group *of;
    int n;
} Grouping;

/* Members have counters of their own: those that launches share are each step's last range. */
static OrderStep without_counters(const Grouping *g, int i) {
    OrderStep s = g->step[i];
    s.n -= g->program->kernel[g->f->step[i].kernel].kind == PEFT_KERNEL_FULL_SUM;
    return s;
}

/* Whether the group may wait until step i, and step i be one of it. */
static bool can_join(const Grouping *g, const Group *group, int i) {
    const PeftStep *a = &g->f->step[group->first], *b = &g->f->step[i];
    if (a->kernel != b->kernel || a->rows != b->rows || group->n == PEFT_GROUP) return false;
    OrderStep last = without_counters(g, i);
    for (int m = group->first; m != NOTHING; m = g->next[m]) {
        OrderStep member = without_counters(g, m);
        if (conflict(&member, &last)) return false;
        for (int j = group->last + 1; j < i; j++)
            if (conflict(&member, &g->step[j])) return false;
    }
    return true;
}

static void find_groups(Grouping *g) {
    for (int i = 0; i < g->f->nstep; i++) {
        bool grouped = g->program->kernel[g->f->step[i].kernel].group;
        int k = g->n - 1;
        while (grouped && k >= 0 && !can_join(g, &g->of[k], i)) k--;
        g->next[i] = NOTHING;
        if (grouped && k >= 0) {
            g->next[g->of[k].last] = i;
            g->group[g->of[k].last] = NOTHING;
        } else {
            k = g->n++;
            g->of[k] = (Group){.first = i};
        }
        g->of[k].last = i;
        g->group[i] = k;
        g->of[k].n++;
    }
}

static bool is_prepared(const Grouping *g, int i) {
    const PeftStep *s = &g->f->step[i];
    const PeftGemm *d = s->desc;
    return g->program->kernel[s->kernel].kind == PEFT_KERNEL_GEMM && peft_is_nf4(d->b_dtype);
}

/* Dequantising reads a variable and writes the workspace: it need not wait for the product's other
 * operand. A product's second range is that of B, its last one the workspace. */
static OrderStep prepare_ranges(const OrderStep *step, OrderRange *range, int *n) {
    OrderStep out = {.range = &range[*n], .n = 2};
    range[(*n)++] = step->range[1];
    range[(*n)++] = step->range[step->n - 1];
    return out;
}

static int add_member(Order *out, int n, int32_t member) {
    out->member[out->first_member[n + 1]++] = member;
    return n;
}

/* Each group is a step in the place of its last member, what can be prepared for it one before it.
 * Ranges are copied side by side. Gives the number of steps. */
static int join_groups(const Grouping *g, OrderStep *joined, OrderRange *range, Order *out) {
    int n = 0, nrange = 0;
    out->first_member[0] = 0;
    for (int i = 0; i < g->f->nstep; i++) {
        if (g->group[i] == NOTHING) continue;
        out->first_member[n + 1] = out->first_member[n];
        out->prepares[n] = is_prepared(g, i);
        if (out->prepares[n]) {
            joined[add_member(out, n, i)] = prepare_ranges(&g->step[i], range, &nrange);
            n++;
            out->first_member[n + 1] = out->first_member[n];
            out->prepares[n] = false;
        }
        joined[n] = (OrderStep){.range = &range[nrange]};
        for (int m = g->of[g->group[i]].first; m != NOTHING; m = g->next[m]) {
            add_member(out, n, m);
            for (int k = 0; k < g->step[m].n; k++) range[nrange++] = g->step[m].range[k];
        }
        joined[n].n = (int)(&range[nrange] - joined[n].range);
        n++;
    }
    return n;
}

static bool reserve_members(Order *out, size_t n, PeftError *err) {
    out->member = peft_alloc(2 * n + 1, sizeof *out->member, err);
    out->first_member = peft_alloc(2 * n + 2, sizeof *out->first_member, err);
    out->prepares = peft_alloc(2 * n + 1, sizeof *out->prepares, err);
    return out->member && out->first_member && out->prepares;
}

bool order_function(const PeftProgram *p, const ProgramPlan *plan, PeftFn fn,
                    const int64_t sym[PEFT_SYM_COUNT], int streams, Order *out, PeftError *err) {
    const PeftFunction *f = &p->fn[fn];
    Ranges r = {.program = p, .plan = plan, .fn = fn, .sym = sym};
    size_t room = 0, n = (size_t)f->nstep;
    *out = (Order){0};
    for (int i = 0; i < f->nstep; i++) room += 2 * (size_t)f->step[i].narg + 2; /* once joined */
    r.range = peft_alloc(2 * (room + n), sizeof *r.range, err);
    OrderStep *step = peft_alloc(3 * n, sizeof *step, err);
    Grouping g = {.f = f, .program = p, .step = step};
    g.next = peft_alloc(n, sizeof *g.next, err);
    g.group = peft_alloc(n, sizeof *g.group, err);
    g.of = peft_alloc(n, sizeof *g.of, err);
    Order members = {0};
    bool ok = r.range && step && g.next && g.group && g.of && reserve_members(&members, n, err);
    for (int i = 0; ok && i < f->nstep; i++) step[i] = step_ranges(&r, &f->step[i]);
    if (ok) find_groups(&g);
    ok = ok && order_steps(step + n, join_groups(&g, step + n, r.range + room, &members), streams,
                           out, err);
    if (ok) {
        out->member = members.member;
        out->first_member = members.first_member;
        out->prepares = members.prepares;
    } else {
        order_free(&members);
    }
    free(r.range);
    free(step);
    free(g.next);
    free(g.group);
    free(g.of);
    return ok;
}
