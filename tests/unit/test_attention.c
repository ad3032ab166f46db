/* Packed attention against a double-precision reference, forward and backward: odd head sizes,
 * sequences of length 0 and 1 and longer than a block, [CLS] queries only, dropout, every subset of
 * wanted gradients, every instruction set, identical bits for every number of threads; and the
 * sorted-segment embedding gradient. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../runtime/cpu/attention.h"
#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/philox.h"
#include "../../runtime/cpu/segment.h"

static uint64_t rng_state = 1;

static uint32_t rng(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float *random_floats(int64_t n) {
    float *p = malloc((size_t)(n + 1) * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(rng() & 0xffffff) / 4194304.0f - 2.0f;
    return p;
}

enum { MAX_SEQUENCES = 6 };

typedef struct Case {
    int64_t heads, dim;
    int32_t lengths[MAX_SEQUENCES]; /* ends at -1 */
    bool cls_only;
    float dropout;
} Case;

static const Case cases[] = {
    {2, 64, {13, 1, 16, 17, 40, -1}, false, 0.0f},
    {3, 32, {9, 0, 33, 1, -1}, false, 0.1f},
    {2, 64, {100, 5, -1}, false, 0.1f},
    {3, 5, {7, 50, 2, -1}, false, 0.25f},
    {1, 1, {3, 1, -1}, false, 0.5f},
    {2, 20, {48, 49, 97, -1}, false, 0.0f},
    {2, 64, {13, 0, 1, 40, -1}, true, 0.0f},
    {3, 5, {7, 60, 0, 2, -1}, true, 0.2f},
    {2, 16, {4, 4, -1}, false, 1.0f}, /* everything dropped */
    {1, 8, {0, -1}, false, 0.1f},
};
enum { CASES = sizeof cases / sizeof *cases };

typedef struct Problem {
    Attention a;
    int32_t offsets[MAX_SEQUENCES + 1], samples[MAX_SEQUENCES];
    int64_t tokens, queries, hidden, max_len, ld; /* one ld, wider than hidden */
    float *q, *k, *v, *dctx;
} Problem;

static void make_problem(const Case *c, Problem *p) {
    memset(p, 0, sizeof *p);
    int64_t n = 0;
    for (; c->lengths[n] >= 0; n++) {
        p->offsets[n + 1] = p->offsets[n] + c->lengths[n];
        p->samples[n] = (int32_t)(1000 + 17 * n);
        if (c->lengths[n] > p->max_len) p->max_len = c->lengths[n];
    }
    p->tokens = p->offsets[n];
    p->queries = c->cls_only ? n : p->tokens;
    p->hidden = c->heads * c->dim;
    p->ld = p->hidden + 3;
    p->q = random_floats(p->queries * p->ld);
    p->k = random_floats(p->tokens * p->ld);
    p->v = random_floats(p->tokens * p->ld);
    p->dctx = random_floats(p->queries * p->ld);
    p->a =
        (Attention){.sequences = n, .heads = c->heads, .head_dim = c->dim, .offsets = p->offsets};
    p->a.cls_only = c->cls_only;
    p->a.scale = 1.0f / sqrtf((float)c->dim);
    p->a.q = p->q;
    p->a.k = p->k;
    p->a.v = p->v;
    p->a.ldq = p->a.ldk = p->a.ldv = p->ld;
    p->a.dropout = c->dropout;
    p->a.seed = 0x1234567890u;
    p->a.step = 3;
    p->a.site = 21;
    p->a.samples = p->samples;
}

static void free_problem(Problem *p) {
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->dctx);
}

typedef struct Result { /* all [rows, ld], rows of queries or tokens; lse [queries, heads] */
    float *ctx, *lse, *dq, *dk, *dv;
} Result;

enum { DQ = 1, DK = 2, DV = 4 };

static float *marked(int64_t n) {
    float *p = malloc((size_t)(n + 1) * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) p[i] = -77.0f;
    return p;
}

static Result run(const Problem *p, int wanted, int threads) {
    const Attention *a = &p->a;
    Result r = {marked(p->queries * p->ld), marked(p->queries * a->heads), NULL, NULL, NULL};
    size_t bytes = attention_workspace_bytes(threads, p->max_len, a->head_dim);
    void *workspace = aligned_alloc(64, bytes ? bytes : 64);
    assert_non_null(workspace);
    memset(workspace, 0xff, bytes); /* NaN */
    attention_forward(a, r.ctx, p->ld, r.lse, threads, workspace);
    memset(workspace, 0xff, bytes);
    if (wanted & DQ) r.dq = marked(p->queries * p->ld);
    if (wanted & DK) r.dk = marked(p->tokens * p->ld);
    if (wanted & DV) r.dv = marked(p->tokens * p->ld);
    AttentionGrad g = {p->dctx, p->ld, r.lse, r.dq, r.dk, r.dv, p->ld, p->ld, p->ld};
    attention_backward(a, &g, threads, workspace);
    free(workspace);
    return r;
}

static void free_result(Result *r) {
    free(r->ctx);
    free(r->lse);
    free(r->dq);
    free(r->dk);
    free(r->dv);
}

typedef struct Reference { /* [rows, hidden] doubles */
    double *ctx, *lse, *dq, *dk, *dv;
} Reference;

static double dot(const float *x, const float *y, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * y[i];
    return s;
}

/* One query of one head: probabilities, then every product of theirs, added to r. */
static void reference_query(const Problem *p, int64_t s, int64_t h, int64_t query, Reference *r) {
    const Attention *a = &p->a;
    const int64_t dim = a->head_dim, key0 = p->offsets[s], len = p->offsets[s + 1] - key0;
    const int64_t row = a->cls_only ? s : key0 + query, col = h * dim;
    double prob[128], keep[128], dp[128], sum = 0, max = -INFINITY, inner = 0;
    uint32_t threshold = philox_threshold(a->dropout);
    for (int64_t j = 0; j < len; j++) {
        prob[j] = a->scale * dot(p->q + row * p->ld + col, p->k + (key0 + j) * p->ld + col, dim);
        max = fmax(max, prob[j]);
        uint16_t lane = philox_lane(a->seed, a->step, a->site, (uint32_t)p->samples[s],
                                    (uint32_t)(h << 16 | query), (uint64_t)j);
        keep[j] = lane < threshold ? 0 : 65536.0 / (65536.0 - threshold);
    }
    for (int64_t j = 0; j < len; j++) sum += exp(prob[j] - max);
    r->lse[row * a->heads + h] = max + log(sum);
    for (int64_t j = 0; j < len; j++) {
        prob[j] = exp(prob[j] - max) / sum;
        dp[j] = keep[j] * dot(p->dctx + row * p->ld + col, p->v + (key0 + j) * p->ld + col, dim);
        inner += prob[j] * dp[j];
    }
    for (int64_t j = 0; j < len; j++) {
        double ds = a->scale * prob[j] * (dp[j] - inner);
        for (int64_t d = 0; d < dim; d++) {
            int64_t at = (key0 + j) * p->ld + col + d, to = (key0 + j) * p->hidden + col + d;
            r->ctx[row * p->hidden + col + d] += prob[j] * keep[j] * p->v[at];
            r->dq[row * p->hidden + col + d] += ds * p->k[at];
            r->dk[to] += ds * p->q[row * p->ld + col + d];
            r->dv[to] += prob[j] * keep[j] * p->dctx[row * p->ld + col + d];
        }
    }
}

static Reference reference(const Problem *p) {
    size_t q = (size_t)(p->queries * p->hidden + 1), t = (size_t)(p->tokens * p->hidden + 1);
    Reference r = {calloc(q, sizeof(double)),
                   calloc((size_t)(p->queries * p->a.heads + 1), sizeof(double)),
                   calloc(q, sizeof(double)), calloc(t, sizeof(double)), calloc(t, sizeof(double))};
    for (int64_t i = 0; i < p->queries * p->a.heads; i++) r.lse[i] = -INFINITY;
    for (int64_t s = 0; s < p->a.sequences; s++)
        for (int64_t h = 0; h < p->a.heads; h++)
            for (int64_t i = 0; i < p->offsets[s + 1] - p->offsets[s] && !(p->a.cls_only && i); i++)
                reference_query(p, s, h, i, &r);
    return r;
}

static void free_reference(Reference *r) {
    free(r->ctx);
    free(r->lse);
    free(r->dq);
    free(r->dk);
    free(r->dv);
}

/* |got - want| against the largest |want|; columns beyond the matrix must be untouched. */
static void check_matrix(const char *what, const float *got, const double *want, int64_t rows,
                         int64_t cols, int64_t ld) {
    double size = 1e-30;
    for (int64_t i = 0; i < rows * cols; i++) size = fmax(size, fabs(want[i]));
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < ld; j++) {
            float x = got[i * ld + j];
            if (j >= cols) {
                assert_true(x == -77.0f);
                continue;
            }
            double error = fabs(x - want[i * cols + j]);
            if (!(error <= 2e-6 * size))
                fail_msg("%s[%ld, %ld] = %.9g, expected %.9g", what, (long)i, (long)j, (double)x,
                         want[i * cols + j]);
        }
    }
}

static void check(const Problem *p, const Result *got, const Reference *want) {
    check_matrix("ctx", got->ctx, want->ctx, p->queries, p->hidden, p->ld);
    if (got->dq) check_matrix("dq", got->dq, want->dq, p->queries, p->hidden, p->ld);
    if (got->dk) check_matrix("dk", got->dk, want->dk, p->tokens, p->hidden, p->ld);
    if (got->dv) check_matrix("dv", got->dv, want->dv, p->tokens, p->hidden, p->ld);
    for (int64_t i = 0; i < p->queries * p->a.heads; i++) {
        if (isinf(want->lse[i]))
            assert_true(got->lse[i] == -INFINITY);
        else
            assert_true(fabs(got->lse[i] - want->lse[i]) <= 2e-6 * fmax(1, fabs(want->lse[i])));
    }
}

static void same_bits(const float *x, const float *y, int64_t n) {
    assert_true((x == NULL) == (y == NULL));
    if (x) assert_memory_equal(x, y, (size_t)n * sizeof *x);
}

static void compare_results(const Problem *p, const Result *x, const Result *y) {
    same_bits(x->ctx, y->ctx, p->queries * p->ld);
    same_bits(x->lse, y->lse, p->queries * p->a.heads);
    same_bits(x->dq, y->dq, p->queries * p->ld);
    same_bits(x->dk, y->dk, p->tokens * p->ld);
    same_bits(x->dv, y->dv, p->tokens * p->ld);
}

static void check_case(const Case *c) {
    Problem p;
    make_problem(c, &p);
    Reference want = reference(&p);
    Result all = run(&p, DQ | DK | DV, 1);
    check(&p, &all, &want);
    for (int threads = 2; threads <= 5; threads++) {
        Result again = run(&p, DQ | DK | DV, threads);
        compare_results(&p, &all, &again);
        free_result(&again);
    }
    for (int wanted = 0; wanted < 8; wanted++) {
        Result some = run(&p, wanted, 2);
        if (some.dq) same_bits(some.dq, all.dq, p.queries * p.ld);
        if (some.dk) same_bits(some.dk, all.dk, p.tokens * p.ld);
        if (some.dv) same_bits(some.dv, all.dv, p.tokens * p.ld);
        free_result(&some);
    }
    free_result(&all);
    free_reference(&want);
    free_problem(&p);
}

static void matches_reference(void **state) {
    (void)state;
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) continue;
        isa_use((Isa)isa);
        for (int i = 0; i < CASES; i++) check_case(&cases[i]);
    }
}

/* Scores near the ends of float: the shift by the maximum must keep everything finite. */
static void large_scores(void **state) {
    (void)state;
    Case c = {1, 16, {6, -1}, false, 0.0f};
    Problem p;
    make_problem(&c, &p);
    for (int64_t i = 0; i < p.tokens * p.ld; i++) p.q[i] *= 1e4f;
    Result r = run(&p, DQ | DK | DV, 1);
    for (int64_t i = 0; i < p.tokens; i++)
        for (int64_t j = 0; j < p.hidden; j++)
            assert_true(isfinite(r.ctx[i * p.ld + j]) && isfinite(r.dq[i * p.ld + j]));
    free_result(&r);
    free_problem(&p);
}

static void check_segments(int64_t n, int64_t rows, int64_t cols) {
    int32_t *idx = malloc((size_t)(n + 1) * sizeof *idx),
            *order = malloc((size_t)(n + 1) * sizeof *order);
    int32_t *start = malloc((size_t)(n + 1) * sizeof *start),
            *slot = malloc((size_t)rows * sizeof *slot);
    float *dy = random_floats(n * cols), *out = random_floats(n * cols),
          *again = random_floats(n * cols);
    for (int64_t i = 0; i < n; i++) idx[i] = (int32_t)(rng() % (uint32_t)rows);
    int32_t used = index_build(idx, n, rows, order, start, slot);
    segment_sum(dy, cols, order, start, n, out, 1);
    int32_t u = 0;
    for (int64_t r = 0; r < rows; r++) { /* the definition, row by row */
        int32_t at = start[u], count = 0;
        for (int64_t i = 0; i < n; i++)
            if (idx[i] == r) assert_int_equal(order[at + count++], i);
        assert_int_equal(slot[r], count ? u : -1);
        if (!count) continue;
        for (int64_t c = 0; c < cols; c++) {
            float sum = 0;
            for (int32_t i = at; i < at + count; i++) sum += dy[order[i] * cols + c];
            assert_true(out[u * cols + c] == sum);
        }
        assert_int_equal(start[++u], at + count);
    }
    assert_int_equal(u, used);
    for (int64_t i = used; i <= n; i++) assert_int_equal(start[i], n);
    for (int64_t i = used; i < n; i++)
        for (int64_t c = 0; c < cols; c++) assert_true(out[i * cols + c] == 0.0f);
    for (int threads = 2; threads <= 5; threads++) {
        segment_sum(dy, cols, order, start, n, again, threads);
        assert_memory_equal(out, again, (size_t)(n * cols) * sizeof *out);
    }
    free(idx);
    free(order);
    free(start);
    free(slot);
    free(dy);
    free(out);
    free(again);
}

static void embedding_gradient(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {
        {0, 5, 7},    {1, 1, 1},      {40, 1, 33}, /* one segment: the token type */
        {100, 7, 70}, {60, 1000, 48},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_segments(shapes[i][0], shapes[i][1], shapes[i][2]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_reference),
        cmocka_unit_test(large_scores),
        cmocka_unit_test(embedding_gradient),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
