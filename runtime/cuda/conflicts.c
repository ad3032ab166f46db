/* See conflicts.h. All pairs are found by going through memory once: few ranges lie over each
 * other, while a program has hundreds of steps, and an optimizer's launch hundreds of ranges. */
#include "conflicts.h"

#include <stdlib.h>

typedef struct Entry {
    OrderRange range;
    int step;
} Entry;

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

static int by_begin(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    return (x->range.begin > y->range.begin) - (x->range.begin < y->range.begin);
}

/* The ranges that are not empty. */
static int list_entries(const OrderStep *step, int n, Entry *out) {
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < step[i].n; k++)
            if (step[i].range[k].begin < step[i].range[k].end)
                out[count++] = (Entry){step[i].range[k], i};
    qsort(out, (size_t)count, sizeof *out, by_begin);
    return count;
}

/* entry[0] to entry[open - 1] reach beyond where the last one began. */
static void mark(Entry *entry, int count, bool *matrix, int n) {
    int open = 0;
    for (int i = 0; i < count; i++) {
        const Entry e = entry[i];
        int kept = 0;
        for (int k = 0; k < open; k++) {
            const Entry other = entry[k];
            if (other.range.end <= e.range.begin) continue;
            entry[kept++] = other;
            if (!e.range.written && !other.range.written) continue;
            matrix[(size_t)e.step * (size_t)n + (size_t)other.step] = true;
            matrix[(size_t)other.step * (size_t)n + (size_t)e.step] = true;
        }
        entry[kept++] = e;
        open = kept;
    }
}

bool *order_conflicts(const OrderStep *step, int n, PeftError *err) {
    size_t ranges = 1;
    for (int i = 0; i < n; i++) ranges += (size_t)step[i].n;
    bool *matrix = peft_zalloc((size_t)n * (size_t)n + 1, sizeof *matrix, err);
    Entry *entry = peft_alloc(ranges, sizeof *entry, err);
    if (matrix && entry) {
        mark(entry, list_entries(step, n, entry), matrix, n);
        free(entry);
        return matrix;
    }
    free(matrix);
    free(entry);
    return NULL;
}
