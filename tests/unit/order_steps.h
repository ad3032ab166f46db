/* What the tests of a GPU's order share: random steps, and all pairs of steps by brute force. */
#ifndef PEFT_TEST_ORDER_STEPS_H
#define PEFT_TEST_ORDER_STEPS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/order.h"

enum { MOST_STEPS = 60, MOST_RANGES = 4 };

static uint32_t random_state = 1;

static inline int below(int n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int)((random_state >> 8) % (uint32_t)n);
}

/* ---- all pairs ---- */

/* before[i * (n + 1) + j]: step j ends before step i (n: the end) begins, by streams and waits, but
 * for one wait that is left out (-1: none). The caller's. */
static inline bool *all_pairs(const Order *o, int left_out) {
    int n = o->nstep, width = n + 1;
    bool *before = calloc((size_t)width * (size_t)width, 1);
    assert_non_null(before);
    for (int i = 0; i <= n; i++) {
        int stream = i < n ? o->stream[i] : 0, last = i - 1;
        while (last >= 0 && o->stream[last] != stream) last--;
        for (int k = o->first_wait[i] - 1; k < o->first_wait[i + 1]; k++) {
            int j = k < o->first_wait[i] ? last : k == left_out ? -1 : o->wait[k];
            if (j < 0) continue; /* the start, or nothing */
            assert_true(j < i);
            before[i * width + j] = true;
            for (int x = 0; x < j; x++)
                if (before[j * width + x]) before[i * width + x] = true;
        }
    }
    return before;
}

static inline bool ranges_conflict(OrderRange a, OrderRange b) {
    for (int64_t at = a.begin; at < a.end; at++)
        if (at >= b.begin && at < b.end) return a.written || b.written;
    return false;
}

static inline bool steps_conflict(const OrderStep *a, const OrderStep *b) {
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++)
            if (ranges_conflict(a->range[i], b->range[k])) return true;
    return false;
}

static inline Order order_of(const OrderStep *step, int n, int streams) {
    Order o;
    PeftError err = {{0}, 0};
    if (!order_steps(step, n, streams, &o, &err)) fail_msg("%s", err.msg);
    return o;
}

typedef struct Steps {
    OrderStep step[MOST_STEPS];
    OrderRange range[MOST_STEPS][MOST_RANGES];
    int n;
} Steps;

static inline void make_steps(Steps *s, int n, int bytes) {
    s->n = n;
    for (int i = 0; i < n; i++) {
        s->step[i] = (OrderStep){s->range[i], below(MOST_RANGES + 1)};
        for (int k = 0; k < s->step[i].n; k++) {
            int64_t begin = below(bytes) - 2;
            s->range[i][k] = (OrderRange){begin, begin + below(6), below(3) == 0};
        }
    }
}

#endif
