/* The only OpenMP in the runtime. A region for one thread is a plain call. */
#include "parallel.h"

#include <omp.h>
#include <stdatomic.h>

void parallel_run(int threads, void (*fn)(void *ctx, int thread, int count), void *ctx) {
    if (threads <= 1) {
        fn(ctx, 0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    fn(ctx, omp_get_thread_num(), omp_get_num_threads());
}

typedef struct Rows {
    int64_t rows, grain;
    void (*fn)(void *ctx, int64_t r0, int64_t r1);
    void *ctx;
} Rows;

static int64_t cut(const Rows *r, int64_t grains, int i, int count) {
    /* grains * i / count without the overflow */
    int64_t g = grains / count * i + grains % count * i / count;
    int64_t row = g * r->grain;
    return row < r->rows ? row : r->rows;
}

static void rows_thread(void *ctx, int thread, int count) {
    const Rows *r = ctx;
    int64_t grains = r->rows / r->grain + (r->rows % r->grain != 0);
    int64_t r0 = cut(r, grains, thread, count), r1 = cut(r, grains, thread + 1, count);
    if (r0 < r1) r->fn(r->ctx, r0, r1);
}

void parallel_rows(int threads, int64_t rows, int64_t grain,
                   void (*fn)(void *ctx, int64_t r0, int64_t r1), void *ctx) {
    if (rows <= 0) return;
    Rows r = {rows, grain, fn, ctx};
    int64_t grains = rows / grain + (rows % grain != 0);
    parallel_run(grains < threads ? (int)grains : threads, rows_thread, &r);
}

typedef struct Tasks {
    int64_t n;
    void (*fn)(void *ctx, int thread, int64_t i);
    void *ctx;
    atomic_int_fast64_t next;
} Tasks;

static void tasks_thread(void *ctx, int thread, int count) {
    Tasks *t = ctx;
    (void)count;
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->n) return;
        t->fn(t->ctx, thread, i);
    }
}

void parallel_tasks(int threads, int64_t n, void (*fn)(void *ctx, int thread, int64_t i),
                    void *ctx) {
    if (n <= 0) return;
    Tasks t = {.n = n, .fn = fn, .ctx = ctx};
    atomic_init(&t.next, 0);
    parallel_run(n < threads ? (int)n : threads, tasks_thread, &t);
}
