/* See batched.h. Buffers are compared here, of which a step touches few; what their bytes have to
 * do with each other is up to the order. */
#include "batched.h"

#include "moves.h"

#include <stdlib.h>

static const PeftGemm *product_of(const PeftProgram *p, const PeftStep *s) {
    return p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM ? s->desc : NULL;
}

/* Those through a narrow middle are launched two at a time. */
static bool may_join(const PeftGemm *g) {
    return g && !g->ahead && !g->back;
}

bool batch_leaves_epilogue(const PeftGemm *g) {
    return !g->plain && !g->joined && !g->finished;
}

bool batch_waits(const Batched *b) {
    bool waits = false;
    for (int i = 0; i < b->n; i++) waits = waits || b->step[i] < b->at;
    return waits;
}

static bool same_form(const PeftGemm *a, const PeftGemm *b) {
    double a_scale = a->plain ? a->scale : 1, b_scale = b->plain ? b->scale : 1;
    bool a_addend = a->plain && a->addend >= 0, b_addend = b->plain && b->addend >= 0;
    bool a_bias = a->plain && a->bias >= 0, b_bias = b->plain && b->bias >= 0;
    return a->m == b->m && a->n == b->n && a->k == b->k && a->trans_a == b->trans_a &&
           a->trans_b == b->trans_b && a->b_dtype == b->b_dtype && a->c_dtype == b->c_dtype &&
           a_scale == b_scale && a_addend == b_addend && a_bias == b_bias;
}

int32_t batch_operand(const PeftProgram *p, const PeftStep *s, int k) {
    const PeftGemm *g = product_of(p, s);
    int32_t extra = k == 3 ? g->addend : g->bias;
    if (k == 1 && peft_is_nf4(g->b_dtype)) return s->workspace;
    if (k < 3) return s->arg[k];
    return g->plain && extra >= 0 ? s->arg[extra] : PEFT_REF_NONE;
}

/* ---- what steps touch ---- */

typedef struct Touches {
    OrderRange *range; /* a buffer each */
    OrderStep *step, *product, *epilogue;
} Touches;

static int add_touches(const PeftProgram *p, PeftSpan span, OrderRange *out) {
    const PeftStep *s = span.step;
    int n = 0;
    for (int i = span.begin; i < span.end; i++) {
        int64_t ref = (uint32_t)s->arg[i];
        bool c = product_of(p, s) && i == PEFT_GEMM_C;
        if (s->arg[i] != PEFT_REF_NONE) out[n++] = (OrderRange){ref, ref + 1, c || i >= s->nread};
    }
    return n;
}

static void split_touches(const PeftProgram *p, const PeftFunction *f, Touches *t, int32_t i) {
    const PeftGemm *g = product_of(p, &f->step[i]);
    OrderStep all = t->step[i];
    t->product[i] = all;
    t->epilogue[i] = (OrderStep){NULL, 0};
    if (!g || !batch_leaves_epilogue(g)) return;
    t->product[i].n = PEFT_GEMM_C + 1;
    t->epilogue[i] = (OrderStep){all.range + PEFT_GEMM_C, all.n - PEFT_GEMM_C};
}

static bool find_touches(const PeftProgram *p, const PeftFunction *f, Touches *t, PeftError *err) {
    PeftSpan span[PEFT_SPANS];
    size_t room = 1, n = (size_t)f->nstep + 1;
    for (int i = 0; i < f->nstep; i++) {
        peft_spans(p, &f->step[i], span);
        for (int k = 0; k < PEFT_SPANS; k++) room += (size_t)(span[k].end - span[k].begin);
    }
    t->range = peft_alloc(room, sizeof *t->range, err);
    t->step = peft_alloc(3 * n, sizeof *t->step, err);
    if (!t->range || !t->step) return false;
    t->product = t->step + n;
    t->epilogue = t->product + n;
    OrderRange *at = t->range;
    for (int32_t i = 0; i < f->nstep; i++) {
        OrderStep *s = &t->step[i];
        *s = (OrderStep){at, 0};
        peft_spans(p, &f->step[i], span);
        for (int k = 0; k < PEFT_SPANS; k++) s->n += add_touches(p, span[k], at + s->n);
        at += s->n;
        split_touches(p, f, t, i);
    }
    return true;
}

/* ---- batches ---- */

typedef struct Finder {
    const PeftProgram *program;
    const PeftFunction *function;
    Touches touches;
    Moves moves;
    bool *taken; /* by step: it is in a batch */
} Finder;

/* A gradient of few elements, as of an adapter: such a product leaves most of the GPU idle, and
 * nobody waits for it before the optimizer. */
static bool may_wait(const PeftGemm *g) {
    return may_join(g) && !batch_leaves_epilogue(g) && g->m >= 0 && g->n >= 0 &&
           g->m <= BATCH_WAITS / (g->n ? g->n : 1);
}

/* The batch of step `first` and those behind it that can run at its place, or, when they may wait,
 * the last one's. */
static Batched gather(Finder *d, int32_t first, bool waits) {
    Batched b = {.step = {first}, .n = 1, .at = first};
    const PeftFunction *f = d->function;
    const PeftGemm *g = product_of(d->program, &f->step[first]);
    int32_t end = first + (waits ? BATCH_WAIT_REACH : BATCH_REACH);
    OrderStep product[BATCH_MOST] = {d->touches.product[first]};
    for (int32_t j = first + 1; j < f->nstep && j < end && b.n < BATCH_MOST; j++) {
        const PeftGemm *other = product_of(d->program, &f->step[j]);
        if (!may_join(other) || d->taken[j] || !same_form(g, other)) continue;
        b.step[b.n] = j;
        product[b.n] = d->touches.product[j];
        if (moves_try(&d->moves, b.step, product, b.n + 1, waits ? j : first)) {
            b.n++;
            b.at = waits ? j : first;
        }
    }
    for (int i = 0; i < b.n && b.n > 1; i++) d->taken[b.step[i]] = true;
    return b;
}

static void find_batches(Finder *d, bool waits, Batches *out) {
    for (int32_t i = 0; i < d->function->nstep; i++) {
        const PeftGemm *g = product_of(d->program, &d->function->step[i]);
        if (d->taken[i] || !(waits ? g && may_wait(g) : may_join(g))) continue;
        Batched b = gather(d, i, waits);
        if (b.n > 1) out->batch[out->n++] = b;
    }
}

/* ---- their order ---- */

typedef struct Ranks { /* by temporary: its place among those of one batch, or -1 */
    int32_t *of;
    const PeftProgram *program;
    const PeftFunction *function;
} Ranks;

/* What decides where a product's operand k lies; -1: nothing yet. Variables lie as declared. */
static int32_t rank_of(const Ranks *r, int32_t step, int k) {
    int32_t ref = batch_operand(r->program, &r->function->step[step], k);
    if (PEFT_REF_KIND(ref) == PEFT_REF_VAR) return PEFT_REF_INDEX(ref);
    return PEFT_REF_KIND(ref) == PEFT_REF_TEMP ? r->of[PEFT_REF_INDEX(ref)] : -1;
}

/* An operand that tells a batch's products apart; -1: none does. */
static int deciding_operand(const Ranks *r, const Batched *b) {
    for (int k = 0; k < BATCH_OPERANDS; k++) {
        bool apart = true;
        for (int i = 0; i < b->n; i++) {
            apart = apart && rank_of(r, b->step[i], k) >= 0;
            for (int j = 0; j < i; j++)
                apart = apart && rank_of(r, b->step[i], k) != rank_of(r, b->step[j], k);
        }
        if (apart) return k;
    }
    return -1;
}

static void sort_by(const Ranks *r, Batched *b, int k) {
    for (int i = 1; i < b->n; i++)
        for (int j = i; j > 0 && rank_of(r, b->step[j], k) < rank_of(r, b->step[j - 1], k); j--) {
            int32_t swap = b->step[j];
            b->step[j] = b->step[j - 1];
            b->step[j - 1] = swap;
        }
    for (int i = 0; i < b->n; i++)
        for (int o = 0; o < BATCH_OPERANDS; o++) {
            int32_t ref = batch_operand(r->program, &r->function->step[b->step[i]], o);
            if (PEFT_REF_KIND(ref) == PEFT_REF_TEMP && r->of[PEFT_REF_INDEX(ref)] < 0)
                r->of[PEFT_REF_INDEX(ref)] = i;
        }
}

/* Batches of variables' products first, then those of what these read and write. */
static bool sort_batches(const PeftProgram *p, const PeftFunction *f, const Batches *all,
                         PeftError *err) {
    Ranks r = {peft_alloc((size_t)f->ntemp + 1, sizeof *r.of, err), p, f};
    bool *sorted = peft_zalloc((size_t)all->n + 1, sizeof *sorted, err), more = true;
    for (int i = 0; r.of && i < f->ntemp; i++) r.of[i] = -1;
    while (r.of && sorted && more) {
        more = false;
        for (int i = 0; i < all->n; i++) {
            int k = sorted[i] ? -1 : deciding_operand(&r, &all->batch[i]);
            if (k < 0) continue;
            sort_by(&r, &all->batch[i], k);
            sorted[i] = more = true;
        }
    }
    bool ok = r.of && sorted;
    free(r.of);
    free(sorted);
    return ok;
}

bool batches_find(const PeftProgram *p, PeftFn fn, Batches *out, PeftError *err) {
    const PeftFunction *f = &p->fn[fn];
    size_t n = (size_t)f->nstep + 1;
    Finder d = {.program = p, .function = f};
    d.taken = peft_zalloc(n, sizeof *d.taken, err);
    *out = (Batches){peft_alloc(n, sizeof *out->batch, err), 0};
    bool ok = d.taken && out->batch && find_touches(p, f, &d.touches, err) &&
              moves_open(&d.moves, p, f, d.touches.step, d.touches.epilogue, err);
    for (int waits = 0; ok && waits < 2; waits++) find_batches(&d, waits, out);
    ok = ok && sort_batches(p, f, out, err);
    moves_close(&d.moves);
    free(d.taken);
    free(d.touches.range);
    free(d.touches.step);
    if (!ok) batches_free(out);
    return ok;
}

void batches_free(Batches *b) {
    free(b->batch);
    *b = (Batches){NULL, 0};
}
