/* C is cut into column panels of 64. A thread packs a panel of B, KBLOCK rows at a time, into its
 * workspace (192 KB, which stays in L2) and runs register tiles down the rows of C against it; A is
 * read in place, transposed or not: a tile reads six rows of it at once, and packing them costs
 * more than it saves. All panels laid end to end, rows downwards, are cut into runs of equal work,
 * one per thread: columns are shared out first, rows only where there are fewer panels than threads
 * or the division is not even. A panel that two threads share is packed by both; who computes an
 * element does not change it (tile.h). Between tiles the lines of C that come next and the part of
 * B that is packed next are prefetched: both are strided, which the hardware does not foresee. */
#include "gemm.h"

#include <string.h>

#include "parallel.h"
#include "tile.h"

enum {
    PANEL = STRIP * TILE_STRIPS,
    KBLOCK = 768,
    PANEL_FLOATS = PANEL * KBLOCK,
    STAGE_FLOATS = STRIP * KBLOCK, /* dequantised rows of B on their way to a transposed strip */
    AHEAD = 16,                    /* rows of B between the one packed and the one prefetched */
    WORKSPACE_FLOATS = PANEL_FLOATS + STAGE_FLOATS
};

typedef struct Job {
    const Gemm *g;
    const TileOps *ops;
    int64_t kblocks, kblock;
    float *workspace; /* WORKSPACE_FLOATS per thread */
} Job;

typedef struct Scratch {
    float *panel; /* [strip][k][16] */
    float *stage; /* [16][k] */
} Scratch;

size_t gemm_workspace_bytes(int threads) {
    return (size_t)threads * WORKSPACE_FLOATS * sizeof(float);
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Rows k0 .. k0 + k, columns n0 .. n0 + n of B: what is packed at a time. */
typedef struct Block {
    int64_t k0, k, n0, n;
} Block;

static Block block_at(const Job *job, int64_t panel, int64_t kb) {
    Block b = {.k0 = kb * job->kblock, .n0 = panel * PANEL};
    b.k = min64(job->kblock, job->g->k - b.k0);
    b.n = min64(PANEL, job->g->n - b.n0);
    return b;
}

/* B stored as [n, k]: strip by strip, transposed. */
static void pack_transposed(const Job *job, const Block *b, const Scratch *s) {
    const Gemm *g = job->g;
    for (int64_t j = 0; j < b->n; j += STRIP) {
        int width = (int)min64(STRIP, b->n - j);
        int64_t at = (b->n0 + j) * g->ldb + b->k0;
        float *strip = s->panel + j * b->k;
        if (g->b_nf4) {
            for (int i = 0; i < width; i++)
                nf4_dequant_row(g->b_nf4, at + i * g->ldb, b->k, s->stage + i * b->k);
            job->ops->pack_transposed(strip, s->stage, b->k, b->k, width);
        } else {
            job->ops->pack_transposed(strip, g->b + at, g->ldb, b->k, width);
        }
    }
}

/* B stored as [k, n]: row by row, zero between n and the last strip's edge. Of what run_rows has
 * prefetched, A has pushed out a part by now, and the hardware sees no stream in pieces of rows. */
static void pack_rows(const Gemm *g, const Block *b, const Scratch *s) {
    int64_t whole = b->n / STRIP * STRIP;
    for (int64_t l = 0; l < b->k; l++) {
        int64_t at = (b->k0 + l) * g->ldb + b->n0;
        const float *row = g->b_nf4 ? s->stage : g->b + at;
        if (g->b_nf4) nf4_dequant_row(g->b_nf4, at, b->n, s->stage);
        float *out = s->panel + l * STRIP;
        for (int64_t j = 0; !g->b_nf4 && l + AHEAD < b->k && j < b->n; j += STRIP)
            __builtin_prefetch(row + AHEAD * g->ldb + j);
        for (int64_t j = 0; j < whole; j += STRIP)
            memcpy(out + j * b->k, row + j, STRIP * sizeof *out);
        if (whole == b->n) continue;
        for (int64_t j = whole; j < whole + STRIP; j++)
            out[whole * b->k + j - whole] = j < b->n ? row[j] : 0.0f;
    }
}

/* The i-th of count parts of a block of a float B, as it is stored, to L2. */
static void prefetch_part(const Gemm *g, const Block *b, int64_t i, int64_t count) {
    int64_t rows = g->trans_b ? b->n : b->k, cols = g->trans_b ? b->k : b->n;
    const float *at = g->b + (g->trans_b ? b->n0 * g->ldb + b->k0 : b->k0 * g->ldb + b->n0);
    for (int64_t r = rows * i / count; r < rows * (i + 1) / count; r++)
        for (int64_t c = 0; c < cols; c += STRIP) __builtin_prefetch(at + r * g->ldb + c, 0, 2);
}

/* A tile whose last strip is cut by the edge of C goes through a buffer of whole strips. */
static void run_edge_tile(const TileOps *ops, const Tile *t, int rows, int64_t n) {
    float buffer[TILE_ROWS * PANEL];
    Tile part = *t;
    part.c = buffer;
    part.ldc = PANEL;
    for (int i = 0; t->accumulate && i < rows; i++) {
        memset(buffer + i * PANEL, 0, sizeof(float) * PANEL);
        memcpy(buffer + i * PANEL, t->c + i * t->ldc, (size_t)n * sizeof(float));
    }
    tile_strips(ops, &part, rows, (int)((n + STRIP - 1) / STRIP));
    for (int i = 0; i < rows; i++)
        memcpy(t->c + i * t->ldc, buffer + i * PANEL, (size_t)n * sizeof(float));
}

/* Rows [r0, r1) of C against the packed block b; next is the one packed after it, or NULL. */
static void run_rows(const Job *job, const Block *b, const float *panel, int64_t r0, int64_t r1,
                     const Block *next) {
    const Gemm *g = job->g;
    const bool last = b->k0 + b->k == g->k;
    int strips = (int)((b->n + STRIP - 1) / STRIP);
    int tallest = job->ops->rows[min64(strips, job->ops->strips)];
    int64_t tiles = (r1 - r0 + tallest - 1) / tallest, end;
    Tile t = {.k = b->k, .b = panel, .b_k = STRIP, .b_strip = STRIP * b->k, .ldc = g->ldc};
    t.accumulate = g->accumulate || b->k0 > 0;
    t.a_row = g->trans_a ? 1 : g->lda;
    t.a_k = g->trans_a ? g->lda : 1;
    for (int64_t row = r0, i = 0; row < r1; row = end, i++) {
        end = r0 + (r1 - r0) * (i + 1) / tiles;
        t.a = g->a + row * t.a_row + b->k0 * t.a_k;
        t.c = g->c + row * g->ldc + b->n0;
        for (int64_t r = end; r < min64(end + tallest, r1); r++)
            for (int64_t j = 0; j < b->n; j += STRIP)
                __builtin_prefetch(g->c + r * g->ldc + b->n0 + j, 1);
        if (next && g->b) prefetch_part(g, next, i, tiles);
        if (b->n % STRIP)
            run_edge_tile(job->ops, &t, (int)(end - row), b->n);
        else
            tile_strips(job->ops, &t, (int)(end - row), strips);
        for (int64_t r = row; last && g->epilogue && r < end; r++)
            g->epilogue(g->epilogue_ctx, r, b->n0, b->n);
    }
}

static void run_panel(const Job *job, int64_t p, int64_t r0, int64_t r1, bool more,
                      const Scratch *s) {
    Block b = block_at(job, p, 0);
    for (int64_t kb = 0; kb < job->kblocks; kb++) {
        if (job->g->trans_b)
            pack_transposed(job, &b, s);
        else
            pack_rows(job->g, &b, s);
        bool last = kb + 1 == job->kblocks;
        Block next = last ? block_at(job, p + 1, 0) : block_at(job, p, kb + 1);
        run_rows(job, &b, s->panel, r0, r1, last && !more ? NULL : &next);
        b = next;
    }
}

/* Where run i of count begins: a panel and a row of it, rows at whole tiles. */
static void cut(const Job *job, int i, int count, int64_t *panel, int64_t *row) {
    int64_t m = job->g->m, strips = (job->g->n + STRIP - 1) / STRIP, work = m * strips;
    int64_t at = work / count * i + work % count * i / count;
    int64_t p = i < count ? at / (m * TILE_STRIPS) : (strips + TILE_STRIPS - 1) / TILE_STRIPS;
    int64_t width = min64(TILE_STRIPS, strips - p * TILE_STRIPS);
    *panel = p;
    *row = width > 0 ? (at - p * m * TILE_STRIPS) / width / TILE_ROWS * TILE_ROWS : 0;
}

static void gemm_thread(void *ctx, int thread, int count) {
    const Job *job = ctx;
    float *own = job->workspace + (size_t)thread * WORKSPACE_FLOATS;
    Scratch s = {own, own + PANEL_FLOATS};
    int64_t p, row, end_p, end_row;
    cut(job, thread, count, &p, &row);
    cut(job, thread + 1, count, &end_p, &end_row);
    for (; p < end_p; p++, row = 0)
        run_panel(job, p, row, job->g->m, p + 1 < end_p || end_row > 0, &s);
    if (row < end_row) run_panel(job, p, row, end_row, false, &s);
}

void gemm_run(const Gemm *g, int threads, void *workspace) {
    if (g->m <= 0 || g->n <= 0) return;
    Job job = {.g = g, .ops = tile_ops(), .workspace = workspace};
    job.kblocks = g->k > KBLOCK ? (g->k + KBLOCK - 1) / KBLOCK : 1;
    job.kblock = ((g->k + job.kblocks - 1) / job.kblocks + 7) / 8 * 8; /* equal blocks */
    parallel_run(threads, gemm_thread, &job);
}
