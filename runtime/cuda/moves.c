/* See moves.h. Invariant: after every move all conflicting parts are in the program's order. */
#include "moves.h"

bool order_conflict(const OrderStep *a, const OrderStep *b) {
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++) {
            const OrderRange *x = &a->range[i], *y = &b->range[k];
            int64_t begin = x->begin > y->begin ? x->begin : y->begin;
            int64_t end = x->end < y->end ? x->end : y->end;
            if (begin < end && (x->written || y->written)) return true;
        }
    return false;
}

void moves_begin(Moves *m, const PeftProgram *p, const PeftStep *step) {
    for (int32_t i = 0; i < m->nstep; i++) {
        int32_t z = i + 1;
        m->place[i] = moves_place(i);
        if (!p->kernel[step[i].kernel].group) continue;
        while (z < m->nstep && !order_conflict(&m->step[i], &m->step[z])) z++;
        m->place[i] = moves_place(z) - 1;
    }
}

/* Whether the product of step x, which touches `product`, would pass what it must not pass of step
 * y on its way to `place`. A product that has been moved counts as its whole step. */
static bool meets(const Moves *m, int32_t x, const OrderStep *product, int32_t place, int32_t y) {
    int32_t from = m->place[x], other = m->place[y], left = moves_place(y);
    if ((from < other) != (place < other) && order_conflict(product, &m->step[y])) return true;
    return (from <= left) != (place <= left) && order_conflict(product, &m->epilogue[y]);
}

/* The same for another step of the batch, whose product runs beside it. */
static bool meets_member(const Moves *m, int32_t x, const OrderStep *product, int32_t place,
                         int32_t y, const OrderStep *other) {
    int32_t from = m->place[x], left = moves_place(y);
    if (order_conflict(product, other)) return true;
    return (from <= left) != (place <= left) && order_conflict(product, &m->epilogue[y]);
}

bool moves_try(Moves *m, const int32_t *step, const OrderStep *product, int n, int32_t to) {
    int32_t place = moves_place(to);
    for (int i = 0; i < n; i++) {
        if (step[i] < to && m->epilogue[step[i]].n > 0) return false;
        for (int32_t y = 0; y < m->nstep; y++) {
            int k = 0;
            while (k < n && step[k] != y) k++;
            if (k == i) continue;
            if (k < n ? meets_member(m, step[i], &product[i], place, y, &product[k])
                      : meets(m, step[i], &product[i], place, y))
                return false;
        }
    }
    for (int i = 0; i < n; i++) m->place[step[i]] = place;
    return true;
}
