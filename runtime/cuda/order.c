/* See order.h. Steps are placed one by one, in the program's order. What a step comes after is kept
 * as a vector clock: for every stream, the last of its steps that is known to have ended. So step j
 * comes before step i when the clock of i has reached j on j's stream, and a step waits only for
 * those conflicting steps that its clock has not reached yet. */
#include "order.h"

#include "batched.h"
#include "conflicts.h"
#include "moves.h"

#include <stdlib.h>
#include <string.h>

enum { NOTHING = -1 }; /* in clocks: no step of the stream has ended */

typedef struct Placing {
    const bool *conflict; /* [nstep][nstep] */
    int streams;
    int32_t *clock;   /* [nstep + 1][streams] */
    int32_t *tail;    /* by stream: its last step so far, or NOTHING */
    int32_t *depth;   /* by step: steps of the longest chain that ends with it */
    int32_t *pending; /* conflicting steps that the step being placed is not known to follow */
    int npending;
    Order *out;
} Placing;

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
    const bool *conflicts = &p->conflict[(size_t)i * (size_t)p->out->nstep];
    p->npending = 0;
    for (int s = 0; s < p->streams; s++) clock[s] = NOTHING;
    for (int j = i - 1; j >= 0; j--) {
        if (reached(p, clock, j) || !(end || conflicts[j])) continue;
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
    bool *conflict = order_conflicts(step, n, err);
    Placing p = {.conflict = conflict, .streams = streams, .out = out};
    bool ok = conflict && reserve(&p, err);
    for (int s = 0; ok && s < streams; s++) p.tail[s] = NOTHING;
    for (int i = 0; ok && i <= n; i++) {
        find_pending(&p, i);
        place(&p, i, i < n ? choose_stream(&p, i) : 0);
    }
    if (ok) out->first_wait[n + 1] = out->nwait;
    free(conflict);
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
    free(o->part);
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

static bool has_counters(PeftKernelKind kind) {
    return kind == PEFT_KERNEL_FULL_SUM || kind == PEFT_KERNEL_INDEX;
}

/* Counters that launches of the same code share lie below the arena. */
static void add_counters(Ranges *r, PeftKernelKind kind, int32_t kernel) {
    const PeftKernel *k = r->program->kernel;
    int32_t same = 0;
    if (!has_counters(kind)) return;
    while (strcmp(k[same].name, k[kernel].name) != 0) same++;
    add_range(r, -1 - (int64_t)same, 1, true);
}

/* Launches that share counters may come in any order, and members of one have their own. Counters
 * are a step's last range. */
static OrderStep without_counters(const PeftProgram *p, const PeftStep *s, OrderStep touches) {
    touches.n -= has_counters(p->kernel[s->kernel].kind);
    return touches;
}

static OrderStep step_ranges(Ranges *r, const PeftStep *s) {
    OrderStep out = {.range = &r->range[r->n]};
    PeftSpan span[PEFT_SPANS];
    int before = r->n;
    peft_spans(r->program, s, span);
    for (int i = 0; i < PEFT_SPANS; i++) add_buffers(r, span[i].step, span[i].begin, span[i].end);
    if (!peft_is_second(r->program, s)) add_buffer(r, s->workspace, true);
    add_counters(r, r->program->kernel[s->kernel].kind, s->kernel);
    out.n = r->n - before;
    return out;
}

/* ---- batches ---- */

/* What is placed as one: a step of the program, or a batch of products. */
typedef struct Item {
    int32_t step[BATCH_MOST];
    int32_t n;
    OrderPart part;
    OrderStep touches;
    int32_t place;
} Item;

typedef struct Sequence { /* items in an order that is right on one stream */
    Item *item;
    int32_t n;
} Sequence;

/* The address of operand k of a product; -1: it has none. */
static int64_t operand_at(const Ranges *r, int32_t step, int k) {
    int32_t ref = batch_operand(r->program, &r->program->fn[r->fn].step[step], k);
    int i = PEFT_REF_INDEX(ref);
    return PEFT_REF_KIND(ref) == PEFT_REF_VAR ? r->plan->var_offset[i]
           : PEFT_REF_KIND(ref) == PEFT_REF_TEMP
               ? r->plan->persistent + r->plan->temp_offset[r->fn][i]
               : -1;
}

/* Bytes that the distances between a batch's operands are multiples of. */
enum { BATCH_ALIGN = 16 };

/* Whether the steps' operands lie at equal distances, and forward. */
static bool in_step(const Ranges *r, const int32_t *step, int n) {
    for (int k = 0; k < BATCH_OPERANDS; k++) {
        int64_t first = operand_at(r, step[0], k), stride = operand_at(r, step[1], k) - first;
        if (stride < 0 || stride % BATCH_ALIGN || (k == PEFT_GEMM_C && stride == 0)) return false;
        for (int i = 2; i < n; i++)
            if (operand_at(r, step[i], k) != first + i * stride) return false;
    }
    return true;
}

/* What a product touches in a batch: the library's workspace, its last range, is that of the first
 * in the program, and a kernel behind it comes later. */
static OrderStep member_touches(Ranges *r, const OrderStep *step, int32_t first, int32_t j) {
    const PeftGemm *g = r->program->fn[r->fn].step[j].desc;
    OrderRange workspace = step[j].range[step[j].n - 1];
    bool own = j == first || peft_is_nf4(g->b_dtype);
    int n = batch_leaves_epilogue(g) ? PEFT_GEMM_C + 1 : step[j].n - 1;
    OrderStep s = {&r->range[r->n], n + own};
    for (int k = 0; k < n; k++) r->range[r->n++] = step[j].range[k];
    if (own) r->range[r->n++] = workspace;
    return s;
}

/* C and what follows it but for the workspace; nothing when no kernel is left behind the product.
 */
static OrderStep epilogue_touches(const Ranges *r, const OrderStep *step, int32_t j) {
    const PeftStep *s = &r->program->fn[r->fn].step[j];
    bool gemm = r->program->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
    if (!gemm || !batch_leaves_epilogue(s->desc)) return (OrderStep){NULL, 0};
    return (OrderStep){step[j].range + PEFT_GEMM_C, step[j].n - PEFT_GEMM_C - 1};
}

/* From the program's steps to items. */
typedef struct Sequencer {
    Ranges *ranges;
    const OrderStep *step;
    Moves moves;
    Item *batch; /* by the step where it runs; n = 0: there is none */
    bool *taken; /* by step: its product is in a batch */
} Sequencer;

static bool try_members(Sequencer *q, const int32_t *member, int n, int32_t at) {
    Ranges *r = q->ranges;
    OrderStep touches[BATCH_MOST];
    int before = r->n;
    int32_t first = member[0];
    for (int m = 1; m < n; m++)
        if (member[m] < first) first = member[m];
    for (int m = 0; m < n; m++) touches[m] = member_touches(r, q->step, first, member[m]);
    if (!in_step(r, member, n) || !moves_try(&q->moves, member, touches, n, at)) {
        r->n = before;
        return false;
    }
    Item *item = &q->batch[at];
    *item = (Item){.n = n,
                   .part = ORDER_PRODUCTS,
                   .touches = {&r->range[before], r->n - before},
                   .place = moves_place(at)};
    for (int m = 0; m < n; m++) {
        item->step[m] = member[m];
        q->taken[member[m]] = true;
    }
    return true;
}

/* All of the batch, or else two at a time, each where the first or the last of them stands. */
static void make_batch(Sequencer *q, const Batched *b) {
    if (try_members(q, b->step, b->n, b->at)) return;
    for (int i = 0; i + 1 < b->n; i++)
        for (int j = i + 1; j < b->n; j++) {
            const int32_t pair[] = {b->step[i], b->step[j]};
            bool last = batch_waits(b) == (pair[0] < pair[1]);
            if (!q->taken[pair[0]] && !q->taken[pair[1]]) try_members(q, pair, 2, pair[last]);
        }
}

static int by_place(const void *a, const void *b) {
    const Item *x = a, *y = b;
    if (x->place != y->place) return x->place < y->place ? -1 : 1;
    return x->part != y->part ? (x->part < y->part ? -1 : 1) : x->step[0] - y->step[0];
}

/* Each step where it runs; a kernel that is left of a product behind where that was. */
static void list_items(const Sequencer *q, Sequence *out) {
    for (int32_t i = 0; i < q->moves.nstep; i++) {
        const OrderStep *left = &q->moves.epilogue[i];
        if (q->batch[i].n) out->item[out->n++] = q->batch[i];
        if (!q->taken[i])
            out->item[out->n++] =
                (Item){.step = {i}, .n = 1, .touches = q->step[i], .place = q->moves.place[i]};
        else if (left->n)
            out->item[out->n++] = (Item){.step = {i},
                                         .n = 1,
                                         .part = ORDER_EPILOGUE,
                                         .touches = *left,
                                         .place = moves_place(i)};
    }
    qsort(out->item, (size_t)out->n, sizeof *out->item, by_place);
}

static bool make_sequence(Ranges *r, const OrderStep *step, Sequence *out, PeftError *err) {
    const PeftFunction *f = &r->program->fn[r->fn];
    size_t room = (size_t)f->nstep + 1;
    Batches batches;
    if (!batches_find(r->program, r->fn, &batches, err)) return false;
    OrderStep *bare = peft_zalloc(room, sizeof *bare, err);
    OrderStep *epilogue = peft_zalloc(room, sizeof *epilogue, err);
    Sequencer q = {.ranges = r,
                   .step = step,
                   .batch = peft_zalloc(room, sizeof *q.batch, err),
                   .taken = peft_zalloc(room, sizeof *q.taken, err)};
    bool ok = bare && epilogue && q.batch && q.taken;
    for (int32_t i = 0; ok && i < f->nstep; i++) {
        bare[i] = without_counters(r->program, &f->step[i], step[i]);
        epilogue[i] = epilogue_touches(r, step, i);
    }
    ok = ok && moves_open(&q.moves, r->program, f, bare, epilogue, err);
    for (int32_t i = 0; ok && i < batches.n; i++) make_batch(&q, &batches.batch[i]);
    if (ok) list_items(&q, out);
    moves_close(&q.moves);
    batches_free(&batches);
    free(bare);
    free(epilogue);
    free(q.batch);
    free(q.taken);
    return ok;
}

/* ---- groups ---- */

typedef struct Group { /* of items that one launch serves, in their order */
    int32_t first, last, n;
} Group;

typedef struct Grouping {
    const PeftFunction *f;
    const PeftProgram *program;
    const Item *item;
    int32_t nitem;
    bool *conflict; /* [nitem][nitem], but for shared counters */
    int32_t *next;  /* by item: the next one of its group, or NOTHING */
    int32_t *group; /* by item: the group that it is the last of so far, or NOTHING */
    Group *of;
    int n;
} Grouping;

static const PeftStep *step_of(const Grouping *g, int32_t item) {
    return &g->f->step[g->item[item].step[0]];
}

/* Whether the group may wait until item i, and item i be one of it. */
static bool can_join(const Grouping *g, const Group *group, int32_t i) {
    const PeftStep *a = step_of(g, group->first), *b = step_of(g, i);
    if (a->kernel != b->kernel || a->rows != b->rows || group->n == PEFT_GROUP) return false;
    const size_t n = (size_t)g->nitem;
    for (int32_t m = group->first; m != NOTHING; m = g->next[m])
        for (int32_t j = group->last + 1; j <= i; j++)
            if (g->conflict[(size_t)m * n + (size_t)j]) return false;
    return true;
}

static bool find_conflicts(Grouping *g, PeftError *err) {
    OrderStep *bare = peft_alloc((size_t)g->nitem + 1, sizeof *bare, err);
    if (!bare) return false;
    for (int32_t i = 0; i < g->nitem; i++)
        bare[i] = without_counters(g->program, step_of(g, i), g->item[i].touches);
    g->conflict = order_conflicts(bare, g->nitem, err);
    free(bare);
    return g->conflict != NULL;
}

static void find_groups(Grouping *g) {
    for (int32_t i = 0; i < g->nitem; i++) {
        bool grouped = g->program->kernel[step_of(g, i)->kernel].group;
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

static bool is_prepared(const Grouping *g, int32_t item) {
    const PeftStep *s = step_of(g, item);
    const PeftGemm *d = s->desc;
    return g->item[item].part != ORDER_EPILOGUE &&
           g->program->kernel[s->kernel].kind == PEFT_KERNEL_GEMM && peft_is_nf4(d->b_dtype);
}

/* ---- the steps to launch ---- */

typedef struct Joining {
    const OrderStep *step; /* the program's */
    OrderStep *joined;
    OrderRange *range; /* of the joined ones, copied side by side */
    int nrange, n;
    Order *out;
} Joining;

static void open_joined(Joining *j, OrderPart part) {
    j->joined[j->n].range = &j->range[j->nrange];
    j->out->first_member[j->n + 1] = j->out->first_member[j->n];
    j->out->part[j->n] = (uint8_t)part;
}

static void add_range_of(Joining *j, const OrderRange *range) {
    j->range[j->nrange++] = *range;
}

static void add_member(Joining *j, int32_t member) {
    j->out->member[j->out->first_member[j->n + 1]++] = member;
}

static void close_joined(Joining *j) {
    j->joined[j->n].n = (int)(&j->range[j->nrange] - j->joined[j->n].range);
    j->n++;
}

/* Dequantising reads variables and writes workspaces: it need not wait for the products' other
 * operand. A product's second range is that of B, its last one the workspace. */
static void add_prepare(Joining *j, const Item *item) {
    open_joined(j, ORDER_PREPARES);
    for (int m = 0; m < item->n; m++) {
        const OrderStep *s = &j->step[item->step[m]];
        add_member(j, item->step[m]);
        add_range_of(j, &s->range[1]);
        add_range_of(j, &s->range[s->n - 1]);
    }
    close_joined(j);
}

/* Each group is a step in the place of its last item, what can be prepared for it before it. */
static void join_groups(const Grouping *g, Joining *j) {
    j->out->first_member[0] = 0;
    for (int32_t i = 0; i < g->nitem; i++) {
        if (g->group[i] == NOTHING) continue;
        if (is_prepared(g, i)) add_prepare(j, &g->item[i]);
        open_joined(j, g->item[i].part);
        for (int32_t m = g->of[g->group[i]].first; m != NOTHING; m = g->next[m]) {
            for (int k = 0; k < g->item[m].n; k++) add_member(j, g->item[m].step[k]);
            for (int k = 0; k < g->item[m].touches.n; k++)
                add_range_of(j, &g->item[m].touches.range[k]);
        }
        close_joined(j);
    }
}

/* ---- what comes first ---- */

enum { PREPARE_AHEAD = 1 }; /* steps before its product that a weight is dequantised */

typedef struct Rank { /* of a step among those that could come next */
    int32_t depth;    /* steps of the longest chain before it: about when it can start */
    int32_t height;   /* of the longest chain behind it: how much waits for it */
    int32_t step;
} Rank;

static int by_rank(const void *a, const void *b) {
    const Rank *x = a, *y = b;
    if (x->depth != y->depth) return x->depth < y->depth ? -1 : 1;
    if (x->height != y->height) return x->height > y->height ? -1 : 1;
    return x->step < y->step ? -1 : 1;
}

/* What is prepared could mostly start long before: it would take the place of what the chain waits
 * for. */
static void delay_prepares(const bool *conflict, const uint8_t *part, int n, Rank *rank) {
    for (int i = 0; i < n; i++) {
        int user = i + 1;
        if (part[i] != ORDER_PREPARES) continue;
        while (user < n && !conflict[i * n + user]) user++;
        int32_t late = user < n ? rank[user].depth - PREPARE_AHEAD : 0;
        if (rank[i].depth < late) rank[i].depth = late;
    }
}

static bool rank_steps(const OrderStep *step, const uint8_t *part, int n, Rank *rank,
                       PeftError *err) {
    bool *conflict = order_conflicts(step, n, err);
    if (!conflict) return false;
    for (int i = 0; i < n; i++) {
        rank[i] = (Rank){.step = i};
        for (int j = 0; j < i; j++)
            if (conflict[i * n + j] && rank[j].depth >= rank[i].depth)
                rank[i].depth = rank[j].depth + 1;
    }
    for (int i = n - 1; i >= 0; i--)
        for (int j = 0; j < i; j++)
            if (conflict[i * n + j] && rank[i].height >= rank[j].height)
                rank[j].height = rank[i].height + 1;
    delay_prepares(conflict, part, n, rank);
    free(conflict);
    return true;
}

/* Puts the launches into the order in which they can start, and first what the longest chain waits
 * for: a GPU that has not room for all begins with what was launched first. */
static bool arrange(Joining *j, PeftError *err) {
    size_t n = (size_t)j->n, members = (size_t)j->out->first_member[n];
    Rank *rank = peft_alloc(n + 1, sizeof *rank, err);
    OrderStep *step = peft_alloc(n + 1, sizeof *step, err);
    int32_t *member = peft_alloc(members + 1, sizeof *member, err);
    int32_t *first = peft_alloc(n + 1, sizeof *first, err);
    uint8_t *part = peft_alloc(n + 1, sizeof *part, err);
    bool ok = rank && step && member && first && part &&
              rank_steps(j->joined, j->out->part, j->n, rank, err);
    if (ok) {
        qsort(rank, n, sizeof *rank, by_rank);
        memcpy(step, j->joined, n * sizeof *step);
        memcpy(member, j->out->member, members * sizeof *member);
        memcpy(first, j->out->first_member, (n + 1) * sizeof *first);
        memcpy(part, j->out->part, n * sizeof *part);
    }
    for (size_t i = 0; ok && i < n; i++) {
        int32_t from = rank[i].step, at = j->out->first_member[i];
        j->joined[i] = step[from];
        j->out->part[i] = part[from];
        for (int32_t m = first[from]; m < first[from + 1]; m++) j->out->member[at++] = member[m];
        j->out->first_member[i + 1] = at;
    }
    free(rank);
    free(step);
    free(member);
    free(first);
    free(part);
    return ok;
}

static bool reserve_members(Order *out, size_t n, PeftError *err) {
    out->member = peft_alloc(3 * n + 1, sizeof *out->member, err);
    out->first_member = peft_alloc(3 * n + 2, sizeof *out->first_member, err);
    out->part = peft_alloc(3 * n + 1, sizeof *out->part, err);
    return out->member && out->first_member && out->part;
}

bool order_function(const PeftProgram *p, const ProgramPlan *plan, PeftFn fn,
                    const int64_t sym[PEFT_SYM_COUNT], int streams, Order *out, PeftError *err) {
    const PeftFunction *f = &p->fn[fn];
    Ranges r = {.program = p, .plan = plan, .fn = fn, .sym = sym};
    size_t room = 0, n = (size_t)f->nstep;
    *out = (Order){0};
    for (int i = 0; i < f->nstep; i++) room += 2 * (size_t)f->step[i].narg + 2; /* once joined */
    r.range = peft_alloc(4 * (room + n), sizeof *r.range, err); /* of steps, items, launches */
    OrderStep *step = peft_alloc(4 * n, sizeof *step, err);
    Sequence sequence = {peft_alloc(2 * n + 1, sizeof(Item), err), 0};
    Grouping g = {.f = f, .program = p};
    g.next = peft_alloc(2 * n + 1, sizeof *g.next, err);
    g.group = peft_alloc(2 * n + 1, sizeof *g.group, err);
    g.of = peft_alloc(2 * n + 1, sizeof *g.of, err);
    Order members = {0};
    bool ok = r.range && step && sequence.item && g.next && g.group && g.of &&
              reserve_members(&members, n, err);
    for (int i = 0; ok && i < f->nstep; i++) step[i] = step_ranges(&r, &f->step[i]);
    ok = ok && make_sequence(&r, step, &sequence, err);
    if (ok) {
        Joining j = {.step = step, .joined = step + n, .range = &r.range[r.n], .out = &members};
        g.item = sequence.item;
        g.nitem = sequence.n;
        ok = find_conflicts(&g, err);
        if (ok) find_groups(&g);
        if (ok) join_groups(&g, &j);
        ok = ok && arrange(&j, err) && order_steps(j.joined, j.n, streams, out, err);
    }
    if (ok) {
        out->member = members.member;
        out->first_member = members.first_member;
        out->part = members.part;
    } else {
        order_free(&members);
    }
    free(r.range);
    free(step);
    free(sequence.item);
    free(g.conflict);
    free(g.next);
    free(g.group);
    free(g.of);
    return ok;
}
