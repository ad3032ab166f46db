/* Counting sort over the rows, and a sum that threads share by columns: segments are as unequal as
 * words (every sequence has a [CLS], all tokens share the token type), columns are not. */
#include "segment.h"

#include <string.h>

#include "parallel.h"

int32_t index_build(const int32_t *idx, int64_t n, int64_t rows, int32_t *order,
                    int32_t *segment_start, int32_t *slot) {
    memset(slot, 0, (size_t)rows * sizeof *slot);
    for (int64_t i = 0; i < n; i++) slot[idx[i]]++;
    int32_t used = 0, at = 0;
    for (int64_t r = 0; r < rows; r++) {
        int32_t count = slot[r];
        slot[r] = count ? used : -1;
        if (count) segment_start[used++] = at;
        at += count;
    }
    for (int64_t i = 0; i < n; i++) order[segment_start[slot[idx[i]]]++] = (int32_t)i;
    /* every start has run to its segment's end, which is where the next one starts */
    for (int32_t u = used; u > 0; u--) segment_start[u] = segment_start[u - 1];
    segment_start[0] = 0;
    for (int64_t u = used; u <= n; u++) segment_start[u] = (int32_t)n;
    return used;
}

typedef struct Sum {
    const float *dy;
    int64_t cols, n;
    const int32_t *order, *segment_start;
    float *out;
} Sum;

static void sum_columns(void *ctx, int64_t c0, int64_t c1) {
    const Sum *s = ctx;
    for (int64_t u = 0; u < s->n; u++) {
        float *restrict out = s->out + u * s->cols;
        memset(out + c0, 0, (size_t)(c1 - c0) * sizeof *out);
        for (int32_t i = s->segment_start[u]; i < s->segment_start[u + 1]; i++) {
            const float *restrict row = s->dy + s->order[i] * s->cols;
            for (int64_t c = c0; c < c1; c++) out[c] += row[c];
        }
    }
}

void segment_sum(const float *dy, int64_t cols, const int32_t *order, const int32_t *segment_start,
                 int64_t n, float *out, int threads) {
    Sum s = {dy, cols, n, order, segment_start, out};
    parallel_rows(threads, cols, 16 /* a cache line */, sum_columns, &s);
}
