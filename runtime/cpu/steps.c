/* See steps.h. Work is cut by sizes alone, never by the number of threads, wherever a cut decides
 * an order of summation. */
#include "steps.h"
#include "attention.h"
#include "gemm.h"
#include "isa.h"
#include "parallel.h"
#include "segment.h"

#include <string.h>

bool cpu_ready(PeftError *err) {
    return isa_init(err);
}

/* ---- generated kernels ---- */

typedef struct Call {
    const PeftKernel *kernel;
    void *const *arg;
    const int64_t *sym;
} Call;

static void map_rows(void *ctx, int64_t r0, int64_t r1) {
    const Call *c = ctx;
    c->kernel->map(c->arg, c->sym, r0, r1);
}

/* WORTH: elements from which on handing work to other threads pays for the barrier behind it. */
enum { PIECE = 4096, WORTH = 24576, SUM_COLUMNS = 64, SUM_CHUNK = 32768, MAX_CHUNKS = 4096 };

static int64_t grain_rows(int64_t cols) {
    int64_t rows = PIECE / (cols > 0 ? cols : 1);
    return rows > 0 ? rows : 1;
}

static void run_map(const Call *c, const PeftStep *s, int threads) {
    int64_t rows = peft_dim(s->rows, c->sym), grain = grain_rows(s->cols);
    parallel_rows(rows * s->cols < WORTH ? 1 : threads, rows, grain, map_rows, (void *)c);
}

static void run_column_sum(const Call *c, const PeftStep *s, int threads) {
    bool alone = peft_dim(s->rows, c->sym) * s->cols < WORTH;
    parallel_rows(alone ? 1 : threads, s->cols, SUM_COLUMNS, map_rows, (void *)c);
}

typedef struct FullSum {
    const Call *call;
    int64_t rows, chunk;
    double part[MAX_CHUNKS];
} FullSum;

static void sum_chunks(void *ctx, int64_t i0, int64_t i1) {
    FullSum *f = ctx;
    for (int64_t i = i0; i < i1; i++) {
        int64_t r0 = i * f->chunk, r1 = r0 + f->chunk < f->rows ? r0 + f->chunk : f->rows;
        f->part[i] = f->call->kernel->sum(f->call->arg, f->call->sym, r0, r1);
    }
}

/* Chunks of a fixed number of rows, their sums added in order. The result is the last argument. */
static void run_full_sum(const Call *c, const PeftStep *s, int threads) {
    FullSum f = {.call = c, .rows = peft_dim(s->rows, c->sym)};
    int64_t by_size = SUM_CHUNK / (s->cols > 0 ? s->cols : 1);
    int64_t by_count = (f.rows + MAX_CHUNKS - 1) / MAX_CHUNKS;
    f.chunk = by_size > by_count ? by_size : by_count;
    if (f.chunk < 1) f.chunk = 1;
    int64_t chunks = (f.rows + f.chunk - 1) / f.chunk;
    parallel_rows(chunks <= 1 ? 1 : threads, chunks, 1, sum_chunks, &f);
    double sum = 0;
    for (int64_t i = 0; i < chunks; i++) sum += f.part[i];
    *(float *)c->arg[s->narg - 1] = (float)sum;
}

/* ---- matrix product ---- */

static void call_epilogue(void *ctx, int64_t row, int64_t col, int64_t n) {
    const Call *c = ctx;
    c->kernel->epilogue(c->arg, c->sym, row, col, n);
}

static void run_gemm(const Call *c, const PeftStep *s, void *workspace, int threads) {
    const PeftGemm *d = s->desc;
    Gemm g = {
        .m = peft_dim(d->m, c->sym), .n = peft_dim(d->n, c->sym), .k = peft_dim(d->k, c->sym)};
    Nf4View view;
    g.a = c->arg[0];
    g.trans_a = d->trans_a;
    g.lda = d->trans_a ? g.m : g.k;
    g.trans_b = d->trans_b;
    g.ldb = d->trans_b ? g.k : g.n;
    if (!peft_is_nf4(d->b_dtype)) {
        g.b = c->arg[1];
    } else {
        view = nf4_view(c->arg[1], g.n * g.k, d->b_dtype == DT_NF4);
        g.b_nf4 = &view;
    }
    g.c = c->arg[2];
    g.ldc = g.n;
    if (c->kernel->epilogue) {
        g.epilogue = call_epilogue;
        g.epilogue_ctx = (void *)c;
    }
    gemm_run(&g, threads, workspace);
}

/* ---- templates ---- */

static Attention attention_of(const PeftAttention *d, void *const *in, const int64_t *sym) {
    const int32_t *rng = in[4]; /* q, k, v, offsets, rng, sample */
    Attention a = {.sequences = sym[PEFT_SYM_S],
                   .heads = d->heads,
                   .head_dim = d->width / d->heads,
                   .offsets = in[3],
                   .cls_only = d->rows == DIM_S,
                   .scale = (float)d->scale,
                   .q = in[0],
                   .k = in[1],
                   .v = in[2],
                   .ldq = d->width,
                   .ldk = d->width,
                   .ldv = d->width,
                   .dropout = rng[3] ? (float)d->p : 0,
                   .seed = (uint32_t)rng[0] | (uint64_t)(uint32_t)rng[1] << 32,
                   .step = (uint32_t)rng[2],
                   .site = (uint32_t)d->site,
                   .samples = in[5]};
    return a;
}

static void run_attention(const Call *c, const PeftStep *s, void *workspace, int threads) {
    const PeftAttention *d = s->desc;
    Attention a = attention_of(d, c->arg, c->sym);
    attention_forward(&a, c->arg[6], d->width, c->arg[7], threads, workspace);
}

static void run_attention_grad(const Call *c, const PeftStep *s, void *workspace, int threads) {
    const PeftAttention *d = s->desc;
    void *const in[] = {c->arg[1], c->arg[2], c->arg[3], c->arg[5], c->arg[6], c->arg[7]};
    Attention a = attention_of(d, in, c->sym);
    AttentionGrad g = {.dctx = c->arg[0],
                       .lddctx = d->width,
                       .lse = c->arg[4],
                       .dq = c->arg[8],
                       .dk = c->arg[9],
                       .dv = c->arg[10],
                       .lddq = d->width,
                       .lddk = d->width,
                       .lddv = d->width};
    attention_backward(&a, &g, threads, workspace);
}

static void run_index(const Call *c, const PeftStep *s) {
    const PeftIndex *d = s->desc;
    index_build(c->arg[0], peft_dim(d->n, c->sym), peft_dim(d->rows, c->sym), c->arg[1], c->arg[2],
                c->arg[3]);
}

static void run_segment_sum(const Call *c, const PeftStep *s, int threads) {
    const PeftIndex *d = s->desc;
    segment_sum(c->arg[0], d->cols, c->arg[1], c->arg[2], peft_dim(d->n, c->sym), c->arg[3],
                threads);
}

typedef struct Transpose {
    const float *in;
    float *out;
    int64_t rows, cols; /* of the result */
} Transpose;

static void transpose_rows(void *ctx, int64_t r0, int64_t r1) {
    const Transpose *t = ctx;
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = 0; c < t->cols; c++) t->out[r * t->cols + c] = t->in[c * t->rows + r];
}

static void run_transpose(const Call *c, const PeftStep *s, int threads) {
    const PeftIndex *d = s->desc;
    Transpose t = {c->arg[0], c->arg[1], peft_dim(d->rows, c->sym), peft_dim(d->cols, c->sym)};
    parallel_rows(threads, t.rows, grain_rows(t.cols), transpose_rows, &t);
}

void cpu_step(const PeftProgram *p, const PeftStep *s, void *const *arg, void *workspace,
              const int64_t sym[PEFT_SYM_COUNT], int threads) {
    Call c = {&p->kernel[s->kernel], arg, sym};
    switch (c.kernel->kind) {
    case PEFT_KERNEL_MAP: run_map(&c, s, threads); break;
    case PEFT_KERNEL_COLUMN_SUM: run_column_sum(&c, s, threads); break;
    case PEFT_KERNEL_FULL_SUM: run_full_sum(&c, s, threads); break;
    case PEFT_KERNEL_GEMM: run_gemm(&c, s, workspace, threads); break;
    case PEFT_KERNEL_ATTENTION: run_attention(&c, s, workspace, threads); break;
    case PEFT_KERNEL_ATTENTION_GRAD: run_attention_grad(&c, s, workspace, threads); break;
    case PEFT_KERNEL_INDEX: run_index(&c, s); break;
    case PEFT_KERNEL_SEGMENT_SUM: run_segment_sum(&c, s, threads); break;
    case PEFT_KERNEL_TRANSPOSE: run_transpose(&c, s, threads); break;
    }
}
