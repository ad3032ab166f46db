/* One task is one (sequence, head). Its K (and V, for the backward pass) is packed as transposed
 * strips, then blocks of query rows go through the register tiles of tile.h: scores for the block,
 * row operations on them while they are in the cache, and the products with V, K, Q and dctx. Rows
 * of scores are padded to whole strips; a padding score is -inf, so its probability is zero. Where
 * head_dim is not whole strips, the row operands go through padded copies. */
#include "attention.h"

#include <string.h>

#include "isa.h"
#include "parallel.h"
#include "philox.h"
#include "tile.h"
#include "vecmath.h"

enum { QUERIES = 48 /* rows of a block */ };

static int64_t whole_strips(int64_t n) {
    return (n + STRIP - 1) / STRIP * STRIP;
}
static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* A matrix of head_dim columns, in place or padded to whole strips. */
typedef struct Rows {
    float *at;
    int64_t ld;
} Rows;

typedef struct Scratch {  /* sizes in floats for a longest sequence of len */
    float *kt, *vt;       /* head_dim * len: K and V as transposed strips */
    float *p, *dp;        /* queries * len: scores and probabilities; their gradients */
    float *keep;          /* len */
    float *key_rows[3];   /* len * head_dim, only where head_dim is padded */
    float *query_rows[3]; /* queries * head_dim, likewise */
} Scratch;

/* Lays the parts out from base on; the number of floats, with base NULL only that. */
static size_t scratch_layout(int64_t max_len, int64_t head_dim, float *base, Scratch *s) {
    size_t len = (size_t)whole_strips(max_len), dim = (size_t)whole_strips(head_dim);
    size_t queries = (size_t)whole_strips(min64(max_len, QUERIES)), at = 0;
    size_t padded = head_dim % STRIP ? dim : 0;
#define PART(field, floats) s->field = base ? base + at : NULL, at += (floats)
    PART(kt, len * dim);
    PART(vt, len * dim);
    PART(p, queries * len);
    PART(dp, queries * len);
    PART(keep, len);
    for (int i = 0; i < 3; i++) {
        PART(key_rows[i], len * padded);
        PART(query_rows[i], queries * padded);
    }
#undef PART
    return at;
}

size_t attention_workspace_bytes(int threads, int64_t max_len, int64_t head_dim) {
    Scratch s;
    return (size_t)threads * scratch_layout(max_len, head_dim, NULL, &s) * sizeof(float);
}

typedef struct Job {
    const Attention *a;
    float *ctx; /* forward */
    int64_t ldctx;
    float *lse;
    const AttentionGrad *g; /* backward; NULL in the forward pass */
    const TileOps *ops;
    uint32_t threshold;
    float kept_scale;
    int64_t max_len;
    float *workspace;
} Job;

typedef struct Task { /* one sequence and head: pointers at its first row and column */
    int64_t head, seq, len, queries, query0;
    const float *q, *k, *v;
} Task;

static Rows rows_in(const float *src, int64_t ld, int64_t rows, int64_t dim, float *buffer) {
    if (dim % STRIP == 0) return (Rows){(float *)src, ld};
    Rows r = {buffer, whole_strips(dim)};
    for (int64_t i = 0; i < rows; i++) {
        memcpy(r.at + i * r.ld, src + i * ld, (size_t)dim * sizeof(float));
        for (int64_t j = dim; j < r.ld; j++) r.at[i * r.ld + j] = 0.0f;
    }
    return r;
}

static Rows rows_out(float *dst, int64_t ld, int64_t dim, float *buffer) {
    return dim % STRIP == 0 ? (Rows){dst, ld} : (Rows){buffer, whole_strips(dim)};
}

static void rows_store(const Rows *r, int64_t rows, int64_t dim, float *dst, int64_t ld) {
    for (int64_t i = 0; r->at != dst && i < rows; i++)
        memcpy(dst + i * ld, r->at + i * r->ld, (size_t)dim * sizeof(float));
}

static void pack_transposed(const TileOps *ops, const float *src, int64_t ld, int64_t rows,
                            int64_t dim, float *strips) {
    for (int64_t j = 0; j < rows; j += STRIP)
        ops->pack_transposed(strips + j * dim, src + j * ld, ld, dim, (int)min64(STRIP, rows - j));
}

/* out[rows, len] = x[rows, dim] times packed transposed strips. */
static void times_packed(const TileOps *ops, const float *x, int64_t ld, int64_t rows, int64_t dim,
                         const float *strips, int64_t len, float *out) {
    Tile t = {.k = dim,
              .a = x,
              .a_row = ld,
              .a_k = 1,
              .b = strips,
              .b_k = STRIP,
              .b_strip = STRIP * dim,
              .c = out,
              .ldc = whole_strips(len)};
    tile_matmul(ops, &t, rows, len);
}

/* out[rows, dim] = s[rows, len] x[len, dim]. */
static void scores_times(const TileOps *ops, const float *s, int64_t rows, int64_t len,
                         const Rows *x, int64_t dim, const Rows *out) {
    Tile t = {.k = len,
              .a = s,
              .a_row = whole_strips(len),
              .a_k = 1,
              .b = x->at,
              .b_k = x->ld,
              .b_strip = STRIP,
              .c = out->at,
              .ldc = out->ld};
    tile_matmul(ops, &t, rows, dim);
}

/* out[len, dim] (+)= s[rows, len]' x[rows, dim]. */
static void add_transposed_times(const TileOps *ops, const float *s, int64_t rows, int64_t len,
                                 const Rows *x, int64_t dim, const Rows *out, bool accumulate) {
    Tile t = {.k = rows,
              .a = s,
              .a_row = 1,
              .a_k = whole_strips(len),
              .b = x->at,
              .b_k = x->ld,
              .b_strip = STRIP,
              .c = out->at,
              .ldc = out->ld,
              .accumulate = accumulate};
    tile_matmul(ops, &t, len, dim);
}

/* Loops over rows of whole strips: the constant inner bound leaves the vectoriser no remainder. */
#define EACH(j, n)                                    \
    for (int64_t j##0 = 0; j##0 < (n); j##0 += STRIP) \
        for (int64_t j = j##0; j < j##0 + STRIP; j++)

PK_FN void scale_scores(float *row, int64_t len, float scale) {
    EACH(j, whole_strips(len)) row[j] *= scale;
    for (int64_t j = len; j < whole_strips(len); j++) row[j] = -__builtin_inff();
}

/* Scores to probabilities; lse[i * ldlse] of each row. */
PK_FN void softmax_rows_body(float *p, int64_t rows, int64_t len, float scale, float *lse,
                             int64_t ldlse) {
    int64_t n = whole_strips(len);
    for (int64_t i = 0; i < rows; i++, p += n) {
        scale_scores(p, len, scale);
        float max = pk_row_max(p, n);
        EACH(j, n) p[j] = pk_exp(p[j] - max);
        float sum = pk_row_sum(p, n), inverse = 1.0f / sum;
        EACH(j, n) p[j] *= inverse;
        lse[i * ldlse] = max + pk_log(sum);
    }
}
ISA_VARIANTS(static, softmax_rows,
             (float *p, int64_t rows, int64_t len, float scale, float *lse, int64_t ldlse),
             (p, rows, len, scale, lse, ldlse))

/* The same from the stored lse. */
PK_FN void probability_rows_body(float *p, int64_t rows, int64_t len, float scale, const float *lse,
                                 int64_t ldlse) {
    int64_t n = whole_strips(len);
    for (int64_t i = 0; i < rows; i++, p += n) {
        float shift = lse[i * ldlse];
        scale_scores(p, len, scale);
        EACH(j, n) p[j] = pk_exp(p[j] - shift);
    }
}
ISA_VARIANTS(static, probability_rows,
             (float *p, int64_t rows, int64_t len, float scale, const float *lse, int64_t ldlse),
             (p, rows, len, scale, lse, ldlse))

/* p <- p * keep. */
PK_FN void drop_row_body(float *p, int64_t n, const float *keep) {
    EACH(j, n) p[j] *= keep[j];
}
ISA_VARIANTS(static, drop_row, (float *p, int64_t n, const float *keep), (p, n, keep))

/* dp <- scale p (dp keep - sum(p dp keep)), p <- p * keep. */
PK_FN void score_grad_row_body(float *p, float *dp, int64_t n, const float *keep, float scale) {
    EACH(j, n) dp[j] *= keep[j];
    float sum = pk_row_dot(p, dp, n);
    EACH(j, n) {
        float x = p[j];
        dp[j] = scale * x * (dp[j] - sum);
        p[j] = x * keep[j];
    }
}
ISA_VARIANTS(static, score_grad_row,
             (float *p, float *dp, int64_t n, const float *keep, float scale),
             (p, dp, n, keep, scale))

/* Multipliers of the probabilities of one query: 0 or the scale of the kept ones. */
static void keep_row(const Job *job, const Task *t, int64_t query, float *keep) {
    const Attention *a = job->a;
    PhiloxRow row = philox_row(a->seed, a->step, a->site, (uint32_t)a->samples[t->seq],
                               (uint32_t)(t->head << 16 | query));
    philox_keep_row(&row, 0, whole_strips(t->len), job->threshold, job->kept_scale, keep);
}

static void forward_task(const Job *job, const Task *t, const Scratch *s) {
    const Attention *a = job->a;
    const int64_t dim = a->head_dim, n = whole_strips(t->len);
    float *ctx = job->ctx + t->query0 * job->ldctx + t->head * dim;
    float *lse = job->lse + t->query0 * a->heads + t->head;
    pack_transposed(job->ops, t->k, a->ldk, t->len, dim, s->kt);
    Rows v = rows_in(t->v, a->ldv, t->len, dim, s->key_rows[0]);
    for (int64_t i = 0; i < t->queries; i += QUERIES) {
        int64_t rows = min64(QUERIES, t->queries - i);
        times_packed(job->ops, t->q + i * a->ldq, a->ldq, rows, dim, s->kt, t->len, s->p);
        softmax_rows(s->p, rows, t->len, a->scale, lse + i * a->heads, a->heads);
        for (int64_t r = 0; job->threshold && r < rows; r++) {
            keep_row(job, t, i + r, s->keep);
            drop_row(s->p + r * n, n, s->keep);
        }
        float *dst = ctx + i * job->ldctx;
        Rows out = rows_out(dst, job->ldctx, dim, s->query_rows[0]);
        scores_times(job->ops, s->p, rows, t->len, &v, dim, &out);
        rows_store(&out, rows, dim, dst, job->ldctx);
    }
}

/* Probabilities of a block of queries into s->p, kept ones scaled; dS into s->dp where wanted. */
static void backward_scores(const Job *job, const Task *t, int64_t i, int64_t rows, bool scores,
                            const Scratch *s) {
    const Attention *a = job->a;
    const AttentionGrad *g = job->g;
    const int64_t dim = a->head_dim, n = whole_strips(t->len), query = t->query0 + i;
    times_packed(job->ops, t->q + i * a->ldq, a->ldq, rows, dim, s->kt, t->len, s->p);
    probability_rows(s->p, rows, t->len, a->scale, g->lse + query * a->heads + t->head, a->heads);
    if (scores)
        times_packed(job->ops, g->dctx + query * g->lddctx + t->head * dim, g->lddctx, rows, dim,
                     s->vt, t->len, s->dp);
    for (int64_t r = 0; r < rows; r++) {
        if (job->threshold) keep_row(job, t, i + r, s->keep);
        if (scores)
            score_grad_row(s->p + r * n, s->dp + r * n, n, s->keep, a->scale);
        else
            drop_row(s->p + r * n, n, s->keep);
    }
}

static void backward_task(const Job *job, const Task *t, const Scratch *s) {
    const Attention *a = job->a;
    const AttentionGrad *g = job->g;
    const int64_t dim = a->head_dim, col = t->head * dim, key0 = a->offsets[t->seq];
    const bool scores = g->dq || g->dk;
    float *dk_at = g->dk ? g->dk + key0 * g->lddk + col : NULL;
    float *dv_at = g->dv ? g->dv + key0 * g->lddv + col : NULL;
    Rows dk = rows_out(dk_at, g->lddk, dim, s->key_rows[1]);
    Rows dv = rows_out(dv_at, g->lddv, dim, s->key_rows[2]);
    Rows k = {0};
    pack_transposed(job->ops, t->k, a->ldk, t->len, dim, s->kt);
    if (scores) pack_transposed(job->ops, t->v, a->ldv, t->len, dim, s->vt);
    if (g->dq) k = rows_in(t->k, a->ldk, t->len, dim, s->key_rows[0]);
    if (!job->threshold)
        for (int64_t j = 0; j < whole_strips(t->len); j++) s->keep[j] = 1.0f;
    for (int64_t i = 0; i < t->queries; i += QUERIES) {
        int64_t rows = min64(QUERIES, t->queries - i), query = t->query0 + i;
        backward_scores(job, t, i, rows, scores, s);
        if (g->dq) {
            float *dst = g->dq + query * g->lddq + col;
            Rows out = rows_out(dst, g->lddq, dim, s->query_rows[0]);
            scores_times(job->ops, s->dp, rows, t->len, &k, dim, &out);
            rows_store(&out, rows, dim, dst, g->lddq);
        }
        if (g->dk) {
            Rows q = rows_in(t->q + i * a->ldq, a->ldq, rows, dim, s->query_rows[1]);
            add_transposed_times(job->ops, s->dp, rows, t->len, &q, dim, &dk, i > 0);
        }
        if (g->dv) {
            Rows d =
                rows_in(g->dctx + query * g->lddctx + col, g->lddctx, rows, dim, s->query_rows[2]);
            add_transposed_times(job->ops, s->p, rows, t->len, &d, dim, &dv, i > 0);
        }
    }
    if (g->dk) rows_store(&dk, t->len, dim, dk_at, g->lddk);
    if (g->dv) rows_store(&dv, t->len, dim, dv_at, g->lddv);
}

/* The first token of a sequence without tokens attends to nothing. */
static void empty_query(const Job *job, const Task *t) {
    const int64_t dim = job->a->head_dim, col = t->head * dim;
    float *row = job->g ? job->g->dq : job->ctx;
    int64_t ld = job->g ? job->g->lddq : job->ldctx;
    for (int64_t j = 0; row && j < dim; j++) row[t->query0 * ld + col + j] = 0.0f;
    if (!job->g) job->lse[t->query0 * job->a->heads + t->head] = -__builtin_inff();
}

static void run_task(void *ctx, int thread, int64_t i) {
    const Job *job = ctx;
    const Attention *a = job->a;
    Task t = {.head = i % a->heads, .seq = i / a->heads};
    const int64_t key0 = a->offsets[t.seq], col = t.head * a->head_dim;
    t.len = a->offsets[t.seq + 1] - key0;
    t.queries = a->cls_only ? 1 : t.len;
    t.query0 = a->cls_only ? t.seq : key0;
    if (t.len == 0) {
        if (a->cls_only) empty_query(job, &t);
        return;
    }
    t.q = a->q + t.query0 * a->ldq + col;
    t.k = a->k + key0 * a->ldk + col;
    t.v = a->v + key0 * a->ldv + col;
    Scratch s;
    size_t floats = scratch_layout(job->max_len, a->head_dim, NULL, &s);
    scratch_layout(job->max_len, a->head_dim, job->workspace + (size_t)thread * floats, &s);
    if (job->g)
        backward_task(job, &t, &s);
    else
        forward_task(job, &t, &s);
}

static void run(Job *job, int threads, void *workspace) {
    const Attention *a = job->a;
    job->ops = tile_ops();
    job->threshold = philox_threshold(a->dropout);
    job->kept_scale = philox_scale(job->threshold);
    job->workspace = workspace;
    for (int64_t s = 0; s < a->sequences; s++) {
        int64_t len = a->offsets[s + 1] - a->offsets[s];
        if (len > job->max_len) job->max_len = len;
    }
    parallel_tasks(threads, a->sequences * a->heads, run_task, job);
}

void attention_forward(const Attention *a, float *ctx, int64_t ldctx, float *lse, int threads,
                       void *workspace) {
    Job job = {.a = a, .ctx = ctx, .ldctx = ldctx, .lse = lse};
    run(&job, threads, workspace);
}

void attention_backward(const Attention *a, const AttentionGrad *g, int threads, void *workspace) {
    Job job = {.a = a, .g = g};
    if (g->dq || g->dk || g->dv) run(&job, threads, workspace);
}
