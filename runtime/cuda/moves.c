/* See moves.h. Invariant: after every move all conflicting parts are in the program's order. */
#include "moves.h"

#include "conflicts.h"

#include <stdlib.h>

static void set_place(Moves *m, int32_t step, int32_t place) {
    int32_t own = moves_place(step);
    if (m->place[step] == own && place != own) m->moved[m->nmoved++] = step;
    m->place[step] = place;
}

bool moves_open(Moves *m, const PeftProgram *p, const PeftFunction *f, const OrderStep *step,
                const OrderStep *epilogue, PeftError *err) {
    size_t n = (size_t)f->nstep;
    *m = (Moves){.step = step, .epilogue = epilogue, .nstep = f->nstep};
    m->place = peft_alloc(2 * n + 1, sizeof *m->place, err);
    bool *conflict = order_conflicts(step, f->nstep, err);
    if (!m->place || !conflict) {
        free(conflict);
        return false;
    }
    m->moved = m->place + n;
    for (int32_t i = 0; i < f->nstep; i++) {
        int32_t z = i + 1;
        m->place[i] = moves_place(i);
        if (!p->kernel[f->step[i].kernel].group) continue;
        while (z < f->nstep && !conflict[(size_t)i * n + (size_t)z]) z++;
        set_place(m, i, moves_place(z) - 1);
    }
    free(conflict);
    return true;
}

void moves_close(Moves *m) {
    free(m->place);
    *m = (Moves){.place = NULL};
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

typedef struct Batch { /* n steps and what their products touch */
    const int32_t *step;
    const OrderStep *product;
    int n;
} Batch;

/* Whether member i meets step y, which need not be one of the batch. */
static bool member_meets(const Moves *m, const Batch *b, int i, int32_t place, int32_t y) {
    for (int k = 0; k < b->n; k++)
        if (b->step[k] == y) return false;
    return meets(m, b->step[i], &b->product[i], place, y);
}

/* What a product passes stands between here and there in the program, or has moved. */
static bool may_move(const Moves *m, const Batch *b, int i, int32_t place) {
    int32_t x = b->step[i], from = m->place[x];
    int32_t low = (from < place ? from : place) / 2, high = (from < place ? place : from) / 2;
    if (from < place && m->epilogue[x].n > 0) return false;
    for (int k = 0; k < b->n; k++)
        if (k != i && meets_member(m, x, &b->product[i], place, b->step[k], &b->product[k]))
            return false;
    for (int32_t y = low; y <= high; y++)
        if (member_meets(m, b, i, place, y)) return false;
    for (int32_t k = 0; k < m->nmoved; k++)
        if (member_meets(m, b, i, place, m->moved[k])) return false;
    return true;
}

bool moves_try(Moves *m, const int32_t *step, const OrderStep *product, int n, int32_t to) {
    const Batch b = {step, product, n};
    for (int i = 0; i < n; i++)
        if (!may_move(m, &b, i, moves_place(to))) return false;
    for (int i = 0; i < n; i++) set_place(m, step[i], moves_place(to));
    return true;
}
