/* See batched.h. A batch runs in the place of its first step, so the others must not need, nor
 * change, anything of the steps that they overtake; an epilogue that is a kernel of its own stays
 * where it was. */
#include "batched.h"

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

/* ---- what steps have to do with each other ---- */

typedef struct Touch { /* a buffer that a step reads or writes */
    int32_t ref;
    bool written;
} Touch;

typedef struct Touches {
    Touch *touch;
    int32_t *first; /* by step, and the end */
    int32_t *last;  /* by step: behind what it touches, of a product without its epilogue */
} Touches;

static int32_t add_touches(const PeftProgram *p, PeftSpan span, Touch *out) {
    const PeftStep *s = span.step;
    int32_t n = 0;
    for (int i = span.begin; i < span.end; i++) {
        bool c = product_of(p, s) && i == PEFT_GEMM_C;
        if (s->arg[i] != PEFT_REF_NONE) out[n++] = (Touch){s->arg[i], c || i >= s->nread};
    }
    return n;
}

static bool find_touches(const PeftProgram *p, const PeftFunction *f, Touches *t, PeftError *err) {
    PeftSpan span[PEFT_SPANS];
    size_t room = 1;
    for (int i = 0; i < f->nstep; i++) {
        peft_spans(p, &f->step[i], span);
        for (int k = 0; k < PEFT_SPANS; k++) room += (size_t)(span[k].end - span[k].begin);
    }
    t->touch = peft_alloc(room, sizeof *t->touch, err);
    t->first = peft_alloc((size_t)f->nstep + 1, sizeof *t->first, err);
    t->last = peft_alloc((size_t)f->nstep + 1, sizeof *t->last, err);
    if (!t->touch || !t->first || !t->last) return false;
    int32_t n = 0;
    for (int i = 0; i < f->nstep; i++) {
        t->first[i] = n;
        peft_spans(p, &f->step[i], span);
        for (int k = 0; k < PEFT_SPANS; k++) n += add_touches(p, span[k], t->touch + n);
        const PeftGemm *g = product_of(p, &f->step[i]);
        t->last[i] = g && batch_leaves_epilogue(g) ? t->first[i] + PEFT_GEMM_C + 1 : n;
    }
    t->first[f->nstep] = n;
    return true;
}

/* Of what step a touches from its argument `from` on, with step b's product. */
static bool conflict(const Touches *t, int a, int from, int b) {
    for (int i = t->first[a] + from; i < t->first[a + 1]; i++)
        for (int k = t->first[b]; k < t->last[b]; k++)
            if (t->touch[i].ref == t->touch[k].ref && (t->touch[i].written || t->touch[k].written))
                return true;
    return false;
}

/* ---- batches ---- */

/* Whether step j can run where the batch's first step stands. leader: by step, that of its batch,
 * or the step itself; of what belongs to an earlier batch only an epilogue runs behind it. */
static bool can_overtake(const Touches *t, const int32_t *leader, int first, int j) {
    for (int i = first; i < j; i++) {
        bool ran = leader[i] < first;
        if (ran && t->last[i] == t->first[i + 1]) continue;
        if (conflict(t, i, ran ? PEFT_GEMM_C : 0, j)) return false;
    }
    return true;
}

static Batched gather(const PeftProgram *p, const PeftFunction *f, const Touches *t,
                      int32_t *leader, int first) {
    Batched b = {.step = {first}, .n = 1, .first = first};
    const PeftGemm *g = product_of(p, &f->step[first]);
    for (int j = first + 1; j < f->nstep && j < first + BATCH_REACH && b.n < BATCH_MOST; j++) {
        const PeftGemm *other = product_of(p, &f->step[j]);
        if (!may_join(other) || leader[j] != j || !same_form(g, other) ||
            !can_overtake(t, leader, first, j))
            continue;
        leader[j] = first;
        b.step[b.n++] = j;
    }
    return b;
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
    Touches t = {NULL, NULL, NULL};
    int32_t *leader = peft_alloc((size_t)f->nstep + 1, sizeof *leader, err);
    *out = (Batches){peft_alloc((size_t)f->nstep / 2 + 1, sizeof *out->batch, err), 0};
    bool ok = leader && out->batch && find_touches(p, f, &t, err);
    for (int i = 0; ok && i < f->nstep; i++) leader[i] = i;
    for (int i = 0; ok && i < f->nstep; i++) {
        const PeftGemm *g = product_of(p, &f->step[i]);
        if (!may_join(g) || leader[i] != i) continue;
        Batched b = gather(p, f, &t, leader, i);
        if (b.n > 1) out->batch[out->n++] = b;
    }
    ok = ok && sort_batches(p, f, out, err);
    free(leader);
    free(t.touch);
    free(t.first);
    free(t.last);
    if (!ok) batches_free(out);
    return ok;
}

void batches_free(Batches *b) {
    free(b->batch);
    *b = (Batches){NULL, 0};
}
