/* Threads for kernels, on OpenMP. Work is handed out so that what is computed never depends on who
 * computes it: a kernel built on these gives the same bits for every number of threads as long as
 * each output element belongs to one item. `threads` is an upper bound, at least 1. */
#ifndef PEFT_CPU_PARALLEL_H
#define PEFT_CPU_PARALLEL_H

#include <stdint.h>

/* fn(ctx, thread, count) once per thread, thread < count <= threads, count the same in all of them.
 */
void parallel_run(int threads, void (*fn)(void *ctx, int thread, int count), void *ctx);

/* [0, rows) cut into one run per thread; cuts fall on multiples of grain (>= 1). */
void parallel_rows(int threads, int64_t rows, int64_t grain,
                   void (*fn)(void *ctx, int64_t r0, int64_t r1), void *ctx);

/* fn(ctx, thread, i) for i in [0, n), handed out one by one in ascending order to whoever is free:
 * for items of unequal cost. */
void parallel_tasks(int threads, int64_t n, void (*fn)(void *ctx, int thread, int64_t i),
                    void *ctx);

#endif
