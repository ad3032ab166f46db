/* Matrix multiplication and NF4 dequantisation against double-precision references: odd shapes,
 * every instruction set this machine has, transposes, accumulation, strides, epilogues, NF4 weights
 * in both orientations, and identical bits for every number of threads. Operands are allocated to
 * the exact size, so the sanitizer run also checks that nothing is read or written outside. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../runtime/cpu/gemm.h"
#include "../../runtime/cpu/isa.h"

static uint64_t rng_state = 1;

static uint32_t rng(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float uniform(void) {
    return (float)(rng() & 0xffffff) / 8388608.0f - 1.0f;
}

static float *random_floats(int64_t n) {
    float *p = malloc((size_t)(n > 0 ? n : 1) * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) p[i] = uniform();
    return p;
}

/* A valid NF4 buffer of random content. */
static void *random_nf4(int64_t n, bool dq) {
    Nf4Layout l = nf4_layout(n, dq);
    uint8_t *p = aligned_alloc(64, l.bytes ? l.bytes : 64);
    assert_non_null(p);
    for (size_t i = 0; i < l.bytes; i++) p[i] = (uint8_t)rng();
    float *scale = (float *)(p + (dq ? l.nested : l.absmax));
    for (int64_t i = 0; i < (dq ? nf4_groups(n) : nf4_blocks(n)); i++) scale[i] = uniform();
    if (dq) *(float *)(p + l.offset) = uniform();
    return p;
}

typedef struct Case {
    int64_t m, n, k;
    bool trans_a, trans_b, accumulate, epilogue, nf4, dq;
    int64_t pad_a, pad_b, pad_c; /* leading dimension beyond the row */
} Case;

typedef struct Operands {
    Case c;
    int64_t lda, ldb, ldc, rows_a, rows_b;
    float *a, *b, *start, *bias; /* b: dequantised values where NF4 */
    void *packed;
    Nf4View view;
} Operands;

static int64_t stored(int64_t rows, int64_t cols, int64_t ld) {
    return rows > 0 ? (rows - 1) * ld + cols : 0;
}

static Operands make_operands(const Case *c) {
    Operands o = {.c = *c};
    o.rows_a = c->trans_a ? c->k : c->m;
    o.rows_b = c->trans_b ? c->n : c->k;
    o.lda = (c->trans_a ? c->m : c->k) + c->pad_a;
    o.ldb = (c->trans_b ? c->k : c->n) + (c->nf4 ? 0 : c->pad_b);
    o.ldc = c->n + c->pad_c;
    o.a = random_floats(stored(o.rows_a, o.lda - c->pad_a, o.lda));
    o.start = random_floats(c->m * o.ldc);
    o.bias = random_floats(c->n);
    if (!c->nf4) {
        o.b = random_floats(stored(o.rows_b, o.ldb - c->pad_b, o.ldb));
        return o;
    }
    int64_t n = o.rows_b * o.ldb;
    o.packed = random_nf4(n, c->dq);
    o.view = nf4_view(o.packed, n, c->dq);
    o.b = random_floats(n);
    for (int64_t i = 0; i < n; i++) o.b[i] = nf4_value(&o.view, i);
    return o;
}

static void free_operands(Operands *o) {
    free(o->a);
    free(o->b);
    free(o->start);
    free(o->bias);
    free(o->packed);
}

typedef struct Epilogue {
    float *c, *copy;
    const float *bias;
    int64_t ldc, n;
    int *seen; /* [m, n] */
} Epilogue;

static void bias_relu(void *ctx, int64_t row, int64_t col, int64_t n) {
    Epilogue *e = ctx;
    assert_true(n >= 1 && n <= 64 && col + n <= e->n);
    float *c = e->c + row * e->ldc;
    for (int64_t j = col; j < col + n; j++) {
        e->seen[row * e->n + j]++;
        e->copy[row * e->n + j] = c[j];
        c[j] = fmaxf(c[j] + e->bias[j], 0.0f);
    }
}

/* The product into a fresh C (m x ldc); the caller frees it. */
static float *multiply(const Operands *o, int threads) {
    const Case *c = &o->c;
    float *out = malloc((size_t)(c->m * o->ldc + 1) * sizeof *out);
    void *workspace = aligned_alloc(64, gemm_workspace_bytes(threads));
    assert_non_null(out);
    assert_non_null(workspace);
    memset(workspace, 0xff,
           gemm_workspace_bytes(threads)); /* NaN: stale scratch must not be seen */
    memcpy(out, o->start, (size_t)(c->m * o->ldc) * sizeof *out);
    Epilogue e = {out,  malloc((size_t)(c->m * c->n + 1) * sizeof(float)), o->bias, o->ldc,
                  c->n, calloc((size_t)(c->m * c->n + 1), sizeof(int))};
    Gemm g = {.m = c->m, .n = c->n, .k = c->k, .a = o->a, .lda = o->lda, .trans_a = c->trans_a};
    g.b = c->nf4 ? NULL : o->b;
    g.b_nf4 = c->nf4 ? &o->view : NULL;
    g.ldb = o->ldb;
    g.trans_b = c->trans_b;
    g.c = out;
    g.ldc = o->ldc;
    g.accumulate = c->accumulate;
    g.epilogue = c->epilogue ? bias_relu : NULL;
    g.epilogue_ctx = &e;
    gemm_run(&g, threads, workspace);
    for (int64_t i = 0; c->epilogue && i < c->m * c->n; i++) {
        assert_int_equal(e.seen[i], 1);
        float want = fmaxf(e.copy[i] + o->bias[i % c->n], 0.0f);
        assert_true(out[i / c->n * o->ldc + i % c->n] == want);
    }
    free(e.copy);
    free(e.seen);
    free(workspace);
    return out;
}

/* Worst error as a share of eps (sqrt(k) + 8) sum |a b|: rounding errors of a chain add up like a
 * random walk. Elements between n and ldc must be untouched. */
static double check(const Operands *o, const float *out) {
    const Case *c = &o->c;
    double worst = 0;
    for (int64_t i = 0; i < c->m; i++) {
        for (int64_t j = 0; j < o->ldc; j++) {
            float start = o->start[i * o->ldc + j], got = out[i * o->ldc + j];
            if (j >= c->n) {
                assert_true(got == start);
                continue;
            }
            double sum = c->accumulate ? start : 0.0, size = fabs(sum);
            for (int64_t l = 0; l < c->k; l++) {
                double x = o->a[c->trans_a ? l * o->lda + i : i * o->lda + l];
                double y = o->b[c->trans_b ? j * o->ldb + l : l * o->ldb + j];
                sum += x * y;
                size += fabs(x * y);
            }
            if (c->epilogue) {
                sum = fmax(sum + o->bias[j], 0.0);
                size += fabs(o->bias[j]);
            }
            double tol = 0x1p-24 * (sqrt((double)c->k) + 8.0) * size;
            double share = fabs(got - sum) / (tol > 0 ? tol : 1e-30);
            if (!(share <= 1.0))
                fail_msg("[%ld, %ld] of %ld x %ld x %ld: %.9g, expected %.9g", (long)i, (long)j,
                         (long)c->m, (long)c->n, (long)c->k, (double)got, sum);
            if (share > worst) worst = share;
        }
    }
    return worst;
}

static void each_isa(double (*body)(void *ctx), void *ctx) {
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) {
            print_message("           %s: not on this processor\n", isa_name((Isa)isa));
            continue;
        }
        isa_use((Isa)isa);
        rng_state = 7;
        print_message("           %s: worst error %.0f %% of the tolerance\n", isa_name((Isa)isa),
                      100 * body(ctx));
    }
}

static const int64_t sizes[] = {1,  2,  3,  5,  6,  7,  12, 13, 15,  16,
                                17, 31, 33, 48, 63, 64, 65, 79, 130, 200};
static int64_t any_size(void) {
    return sizes[rng() % (sizeof sizes / sizeof *sizes)];
}
static bool coin(void) {
    return rng() >> 7 & 1;
}

static double random_case(int64_t k) {
    Case c = {.m = any_size(), .n = any_size(), .k = k};
    c.trans_a = coin();
    c.trans_b = coin();
    c.accumulate = coin();
    c.epilogue = coin();
    c.nf4 = rng() % 3 == 0;
    c.dq = coin();
    c.pad_a = rng() % 4;
    c.pad_b = rng() % 4;
    c.pad_c = rng() % 4;
    Operands o = make_operands(&c);
    float *out = multiply(&o, 1);
    double share = check(&o, out);
    for (int threads = 2; threads <= 5; threads++) {
        float *again = multiply(&o, threads);
        assert_memory_equal(again, out, (size_t)(c.m * o.ldc) * sizeof *out);
        free(again);
    }
    free(out);
    free_operands(&o);
    return share;
}

static double small_cases(void *ctx) {
    double worst = 0;
    for (int i = 0; i < 150; i++) worst = fmax(worst, random_case(any_size()));
    (void)ctx;
    return worst;
}

static double blocked_cases(void *ctx) { /* around and beyond the k block */
    static const int64_t ks[] = {767, 768, 769, 1537, 2000};
    double worst = 0;
    for (int i = 0; i < 10; i++) worst = fmax(worst, random_case(ks[i % 5]));
    (void)ctx;
    return worst;
}

static void random_shapes(void **state) {
    (void)state;
    each_isa(small_cases, NULL);
}

static void long_k(void **state) {
    (void)state;
    each_isa(blocked_cases, NULL);
}

static double bert_shape(void *ctx) {
    Operands o = make_operands(ctx);
    float *out = multiply(&o, 2);
    double share = check(&o, out);
    free(out);
    free_operands(&o);
    return share;
}

static void training_shapes(void **state) {
    (void)state;
    Case cases[] = {
        {.m = 53, .n = 768, .k = 768, .trans_b = true, .epilogue = true},
        {.m = 53, .n = 384, .k = 1536},
        {.m = 192, .n = 384, .k = 53, .trans_a = true, .accumulate = true},
        {.m = 53, .n = 16, .k = 768, .trans_b = true},
        {.m = 53, .n = 384, .k = 384, .trans_b = true, .nf4 = true, .dq = true},
        {.m = 53, .n = 384, .k = 384, .nf4 = true, .dq = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) each_isa(bert_shape, &cases[i]);
}

static void fused_sets_agree(void **state) {
    (void)state;
    if (!isa_supported(ISA_AVX512) || !isa_supported(ISA_AVX2)) skip();
    Case c = {.m = 61, .n = 100, .k = 1000, .trans_b = true, .accumulate = true};
    Operands o = make_operands(&c);
    isa_use(ISA_AVX512);
    float *wide = multiply(&o, 1);
    isa_use(ISA_AVX2);
    float *narrow = multiply(&o, 3);
    assert_memory_equal(wide, narrow, (size_t)(c.m * o.ldc) * sizeof *wide);
    free(wide);
    free(narrow);
    free_operands(&o);
}

static void empty_products(void **state) {
    (void)state;
    Case none[] = {{.m = 0, .n = 5, .k = 3, .epilogue = true}, {.m = 5, .n = 0, .k = 3}};
    for (int i = 0; i < 2; i++) {
        Operands o = make_operands(&none[i]);
        free(multiply(&o, 2));
        free_operands(&o);
    }
    Case zero = {.m = 3, .n = 17, .k = 0, .epilogue = true}; /* C = 0, then the epilogue */
    Operands o = make_operands(&zero);
    float *out = multiply(&o, 1);
    assert_true(check(&o, out) == 0.0);
    free(out);
    free_operands(&o);
}

static void nan_is_kept(void **state) {
    (void)state;
    Case c = {.m = 9, .n = 20, .k = 33};
    Operands o = make_operands(&c);
    o.a[4 * o.lda + 2] = NAN;
    float *out = multiply(&o, 1);
    for (int64_t i = 0; i < c.m * c.n; i++) assert_true(isnan(out[i]) == (i / c.n == 4));
    free(out);
    free_operands(&o);
}

static void dynamic_map(void **state) {
    (void)state;
    const float *map = nf4_code8();
    for (int i = 1; i < 256; i++) assert_true(map[i - 1] < map[i]);
    assert_true(map[127] == 0.0f && map[255] == 1.0f);
    assert_true(fabsf(map[0] + 0.99296875f) <= 1e-6f);
    for (int i = 0; i < 127; i++) assert_true(map[i] == -map[254 - i]);
    /* bits of the published map where other orders of rounding give neighbours */
    static const struct {
        int i;
        uint32_t bits;
    } exact[] = {{18, 0xbf3d6666}, {89, 0xbce7ae15}, {165, 0x3ce7ae15}, {236, 0x3f3d6666}};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++)
        assert_memory_equal(&map[exact[i].i], &exact[i].bits, sizeof(float));
    /* independently: cell c of 2^e in decade e has the midpoint 0.1 + 0.9 (c + 1/2) / 2^e */
    for (int e = 0, at = 128; e < 7; e++)
        for (int c = 0; c < 1 << e; c++, at++) {
            double want = pow(10, e - 6) * (0.1 + 0.9 * (c + 0.5) / (1 << e));
            assert_true(fabs(map[at] - want) <= 3e-7 * want);
        }
}

static void nf4_sections(void **state) {
    (void)state;
    /* 100,000 elements: 1,563 blocks, 7 groups */
    assert_int_equal(nf4_bytes(100000, true), 50048 + 1600 + 64 + 64);
    assert_int_equal(nf4_bytes(100000, false), 50048 + 6272);
    assert_int_equal(nf4_bytes(1, true), 256);
    assert_int_equal(nf4_bytes(0, false), 0);
    uint8_t *buf = random_nf4(131, true);
    Nf4View v = nf4_view(buf, 131, true);
    Nf4Layout l = nf4_layout(131, true);
    assert_int_equal(l.absmax_codes, 128);
    assert_ptr_equal(v.absmax_codes, buf + l.absmax_codes);
    buf[0] = 0xf7; /* codes 15 and 7: 1 and 0 */
    buf[l.absmax_codes] = 255;
    ((float *)(buf + l.nested))[0] = 0.75f;
    *(float *)(buf + l.offset) = 0.125f;
    assert_true(nf4_value(&v, 0) == 0.875f && nf4_value(&v, 1) == 0.0f);
    free(buf);
}

static double dequant_rows(void *ctx) {
    (void)ctx;
    for (int i = 0; i < 400; i++) {
        int64_t n = 1 + rng() % 1000, first = rng() % (uint32_t)n,
                count = rng() % (uint32_t)(n - first + 1);
        bool dq = coin();
        void *buf = random_nf4(n, dq);
        Nf4View v = nf4_view(buf, n, dq);
        float *out = random_floats(count);
        nf4_dequant_row(&v, first, count, out);
        for (int64_t j = 0; j < count; j++) assert_true(out[j] == nf4_value(&v, first + j));
        free(out);
        free(buf);
    }
    return 0;
}

static void nf4_rows(void **state) {
    (void)state;
    each_isa(dequant_rows, NULL);
}

static void isa_by_name(void **state) {
    (void)state;
    PeftError err = {0};
    setenv("PEFT_ISA", "portable", 1);
    assert_true(isa_init(&err));
    assert_int_equal(isa_current(), ISA_PORTABLE);
    setenv("PEFT_ISA", "avx1024", 1);
    assert_false(isa_init(&err));
    assert_string_equal(err.msg, "PEFT_ISA=avx1024: expected avx512, avx2 or portable");
    unsetenv("PEFT_ISA");
    assert_true(isa_init(&err));
    assert_true(isa_supported(isa_current()));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_shapes),   cmocka_unit_test(long_k),
        cmocka_unit_test(training_shapes), cmocka_unit_test(fused_sets_agree),
        cmocka_unit_test(empty_products),  cmocka_unit_test(nan_is_kept),
        cmocka_unit_test(dynamic_map),     cmocka_unit_test(nf4_sections),
        cmocka_unit_test(nf4_rows),        cmocka_unit_test(isa_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
