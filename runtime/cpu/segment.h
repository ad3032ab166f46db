/* Gradient of an embedding lookup without atomics: positions are sorted by the row they looked up,
 * and each distinct row sums its positions in ascending order. The result is the same for every
 * number of threads. */
#ifndef PEFT_CPU_SEGMENT_H
#define PEFT_CPU_SEGMENT_H

#include <stdint.h>

/* Stable sort of the positions 0 .. n - 1 by idx, 0 <= idx[i] < rows. The distinct values,
 * ascending, are numbered u = 0 .. U - 1; value u owns order[segment_start[u] .. segment_start[u +
 * 1]). order [n];  segment_start [n + 1], entries U .. n equal n;  slot [rows] = u, or -1 if
 * absent. O(n + rows). Returns U. */
int32_t index_build(const int32_t *idx, int64_t n, int64_t rows, int32_t *order,
                    int32_t *segment_start, int32_t *slot);

/* out[u, :] = sum of dy[order[i], :] over the positions i of segment u; rows U .. n - 1 are zero.
 * dy and out are [n, cols]. */
void segment_sum(const float *dy, int64_t cols, const int32_t *order, const int32_t *segment_start,
                 int64_t n, float *out, int threads);

#endif
