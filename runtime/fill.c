/* See fill.h. A quantised variable is one piece, which streams: it never exists in full precision.
 * Floats that are stored as floats are read where they stay. */
#include "fill.h"
#include "exec.h"
#include "storage.h"
#include "cpu/draw.h"
#include "cpu/nf4.h"
#include "cpu/parallel.h"
#include "io/quantize.h"

#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { PIECE = 1 << 16 };

typedef struct Filling {
    const Fill *fill;
    int n, work;
    uint64_t seed;
    int64_t *first;             /* [n + 1] by variable: its first piece */
    float *room;                /* PIECE for each thread */
    atomic_int_fast64_t failed; /* the first piece that did, or their number */
    PeftError *err;             /* its error */
} Filling;

static uint64_t name_key(uint64_t seed, const char *name) {
    uint64_t h = 0xcbf29ce484222325u ^ seed * 0x9e3779b97f4a7c15u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

static void initialise(const PeftVar *v, uint64_t seed, int64_t first, int64_t n, float *out) {
    uint64_t key = name_key(seed, v->name);
    float value = v->init == PEFT_ONES ? 1 : v->init == PEFT_CONSTANT ? (float)v->init_value : 0;
    if (v->init == PEFT_UNIFORM)
        draw_uniform(key, first, n, v->init_value, out);
    else if (v->init == PEFT_NORMAL)
        draw_normal(key, first, n, v->init_value, out);
    else
        for (int64_t i = 0; i < n; i++) out[i] = value;
}

static bool values(const Filling *a, const Fill *f, int64_t first, int64_t n, float *out,
                   PeftError *err) {
    if (f->tensor) return st_read_f32(f->tensor, out, first, n, err);
    initialise(f->var, a->seed, first, n, out);
    return true;
}

static bool fill_quantised(const Filling *a, const Fill *f, float *room, PeftError *err) {
    NfQuantizer q;
    int64_t n = var_count(f->var);
    if (!nf_quantizer_init(&q, f->at, n, f->var->dtype == DT_NF4, err)) return false;
    for (int64_t i = 0; i < n; i += PIECE) {
        int64_t m = n - i < PIECE ? n - i : PIECE;
        if (values(a, f, i, m, room, err) && nf_quantizer_push(&q, room, m, err)) continue;
        nf_quantizer_free(&q);
        return false;
    }
    return nf_quantizer_finish(&q, err);
}

static bool fill_piece(const Filling *a, const Fill *f, int64_t piece, float *room,
                       PeftError *err) {
    if (peft_is_nf4(f->var->dtype)) return fill_quantised(a, f, room, err);
    int64_t n = var_count(f->var), first = piece * PIECE;
    int64_t m = n - first < PIECE ? n - first : PIECE;
    if (storage_is_float(f->var->dtype, a->work))
        return values(a, f, first, m, (float *)f->at + first, err);
    if (!values(a, f, first, m, room, err)) return false;
    storage_put(f->at, f->var->dtype, a->work, n, first, m, room);
    return true;
}

static void note_failure(Filling *a, int64_t piece, const PeftError *why) {
#pragma omp critical(fill_error)
    if (piece < atomic_load(&a->failed)) {
        atomic_store(&a->failed, piece);
        *a->err = *why;
    }
}

/* The variable that a piece belongs to. */
static int owner(const Filling *a, int64_t piece) {
    int low = 0, high = a->n;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (a->first[middle] <= piece)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void run_piece(void *ctx, int thread, int64_t piece) {
    Filling *a = ctx;
    PeftError why = {{0}, 0};
    if (atomic_load_explicit(&a->failed, memory_order_relaxed) < piece) return;
    int i = owner(a, piece);
    if (!fill_piece(a, &a->fill[i], piece - a->first[i], a->room + (size_t)thread * PIECE, &why))
        note_failure(a, piece, &why);
}

bool fill_all(const Fill *fill, int n, int work, uint64_t seed, PeftError *err) {
    int threads = omp_get_max_threads();
    Filling a = {.fill = fill, .n = n, .work = work, .seed = seed, .err = err};
    a.first = peft_zalloc((size_t)n + 1, sizeof *a.first, err);
    a.room = peft_alloc((size_t)threads * PIECE, sizeof *a.room, err);
    bool ok = a.first && a.room;
    for (int i = 0; ok && i < n; i++) {
        int64_t count = var_count(fill[i].var);
        int64_t pieces = peft_is_nf4(fill[i].var->dtype) ? 1 : (count + PIECE - 1) / PIECE;
        a.first[i + 1] = a.first[i] + pieces;
    }
    if (ok) {
        atomic_init(&a.failed, a.first[n]);
        parallel_tasks(threads, a.first[n], run_piece, &a);
        ok = atomic_load(&a.failed) == a.first[n];
    }
    free(a.first);
    free(a.room);
    return ok;
}
