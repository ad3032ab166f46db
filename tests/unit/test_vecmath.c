/* vecmath.h against double-precision libm over dense ranges of floats: the largest errors, the
 * special values, the row reductions and their order. The functions are called from loops that the
 * compiler vectorises, once per instruction set, as kernels do. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/vecmath.h"

enum { CHUNK = 4096 };

static double ref_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double ref_silu(double x) {
    return isinf(x) && x < 0 ? 0 : x * ref_sigmoid(x);
}
static double ref_silu_grad(double x) {
    double s = ref_sigmoid(x);
    return isinf(x) ? (x > 0) : s + x * s * (1 - s);
}
static double ref_gelu(double x) {
    return isinf(x) && x < 0 ? 0 : 0.5 * x * erfc(-x / sqrt(2));
}
static double ref_gelu_grad(double x) {
    double tail = isinf(x) ? 0 : x * exp(-x * x / 2) / sqrt(2 * acos(-1));
    return 0.5 * erfc(-x / sqrt(2)) + tail;
}
static double tanh_argument(double x) {
    return sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x);
}
static double ref_gelu_tanh(double x) {
    return isinf(x) && x < 0 ? 0 : 0.5 * x * (1 + tanh(tanh_argument(x)));
}
static double ref_gelu_tanh_grad(double x) {
    if (isinf(x)) return x > 0;
    double t = tanh(tanh_argument(x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / acos(-1)) * (1 + 0.134145 * x * x);
}
static double ref_rsqrt(double x) {
    return 1 / sqrt(x);
}

#define LOOP(f)                                                                             \
    PK_FN void loop_##f##_body(const float *restrict x, float *restrict y, int64_t n) {     \
        for (int64_t i = 0; i < n; i++) y[i] = pk_##f(x[i]);                                \
    }                                                                                       \
    ISA_VARIANTS(static, loop_##f, (const float *restrict x, float *restrict y, int64_t n), \
                 (x, y, n))
LOOP(exp)
LOOP(log)
LOOP(tanh)
LOOP(erf)
LOOP(sigmoid)
LOOP(silu)
LOOP(silu_grad)
LOOP(gelu)
LOOP(gelu_grad)
LOOP(gelu_tanh)
LOOP(gelu_tanh_grad)
LOOP(sqrt)
LOOP(rsqrt)

typedef struct Function {
    const char *name;
    void (*loop)(const float *restrict x, float *restrict y, int64_t n);
    double (*ref)(double x);
    float from, to;    /* range of the dense check */
    double rtol, atol; /* |error| <= rtol |ref| + atol */
    float special[5];  /* at -inf, -1e30, 0, 1e30, inf */
} Function;

static const Function functions[] = {
    /* exp flushes results below 1.7e-38; x^2 in exp(-x^2 / 2) costs gelu's far tail bits */
    {"exp", loop_exp, exp, -104, 89, 2e-7, 1.7e-38, {0, 0, 1, INFINITY, INFINITY}},
    {"log", loop_log, log, 1e-45f, 3.4e38f, 1e-7, 0, {NAN, NAN, -INFINITY, 69.0775528f, INFINITY}},
    {"tanh", loop_tanh, tanh, -20, 20, 2e-7, 1e-44, {-1, -1, 0, 1, 1}},
    {"erf", loop_erf, erf, -8, 8, 2e-7, 1e-44, {-1, -1, 0, 1, 1}},
    {"sigmoid", loop_sigmoid, ref_sigmoid, -100, 40, 3e-7, 1.7e-38, {0, 0, 0.5f, 1, 1}},
    {"silu", loop_silu, ref_silu, -87, 1000, 3e-7, 5e-36, {0, 0, 0, 1e30f, INFINITY}},
    {"silu_grad", loop_silu_grad, ref_silu_grad, -100, 100, 0, 2.5e-7, {0, 0, 0.5f, 1, 1}},
    {"gelu", loop_gelu, ref_gelu, -40, 1000, 1.2e-6, 1e-12, {0, 0, 0, 1e30f, INFINITY}},
    {"gelu_grad", loop_gelu_grad, ref_gelu_grad, -40, 40, 0, 2.5e-7, {0, 0, 0.5f, 1, 1}},
    {"gelu_tanh",
     loop_gelu_tanh,
     ref_gelu_tanh,
     -40,
     1000,
     1.2e-6,
     1e-9,
     {0, 0, 0, 1e30f, INFINITY}},
    {"gelu_tanh_grad",
     loop_gelu_tanh_grad,
     ref_gelu_tanh_grad,
     -40,
     40,
     0,
     3e-7,
     {0, 0, 0.5f, 1, 1}},
    {"sqrt", loop_sqrt, sqrt, 1e-38f, 3e38f, 6e-8, 0, {NAN, NAN, 0, 1e15f, INFINITY}},
    {"rsqrt", loop_rsqrt, ref_rsqrt, 1e-38f, 3e38f, 1.2e-7, 0, {NAN, NAN, INFINITY, 1e-15f, 0}},
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };

static void check_special(const Function *f) {
    const float x[6] = {-INFINITY, -1e30f, 0.0f, 1e30f, INFINITY, NAN};
    float in[32], y[32];
    for (int i = 0; i < 32; i++) in[i] = x[i % 6]; /* whole vectors and a remainder */
    f->loop(in, y, 32);
    for (int i = 0; i < 32; i++) {
        bool nan = i % 6 == 5 || isnan(f->special[i % 6]);
        float want = nan ? 0.0f : f->special[i % 6];
        bool ok =
            nan ? isnan(y[i]) : y[i] == want || fabsf(y[i] - want) <= 2e-7f * fabsf(want) + 1e-34f;
        if (!ok) fail_msg("%s(%g) = %.9g", f->name, (double)in[i], (double)y[i]);
    }
}

typedef struct Worst {
    double share, error, at;
} Worst;

static void check_chunk(const Function *f, const float *x, int64_t n, Worst *w) {
    float y[CHUNK];
    f->loop(x, y, n);
    for (int64_t i = 0; i < n; i++) {
        double want = f->ref(x[i]), tol = f->rtol * fabs(want) + f->atol, error = fabs(y[i] - want);
        if (error == 0) continue;
        if (isinf(y[i]) && fabs(want) > 3.4028235e38) continue;
        double share = error / tol;
        if (!(share <= w->share)) *w = (Worst){share, error, x[i]};
    }
}

/* Every 641st float of the range, by bit pattern: all exponents, both signs. */
static Worst dense(const Function *f) {
    float x[CHUNK];
    int64_t n = 0;
    Worst w = {0};
    for (int64_t u = 0; u < (int64_t)1 << 32; u += 641) {
        float v = pk_float((uint32_t)u);
        if (!(v >= f->from && v <= f->to)) continue;
        x[n++] = v;
        if (n < CHUNK) continue;
        check_chunk(f, x, n, &w);
        n = 0;
    }
    check_chunk(f, x, n, &w);
    return w;
}

static double nanoseconds(const Function *f) {
    static float x[CHUNK], y[CHUNK];
    double best = 1e9;
    for (int i = 0; i < CHUNK; i++) x[i] = 0.1f + (float)i * (3.0f / CHUNK);
    for (int round = 0; round < 20; round++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        f->loop(x, y, CHUNK);
        clock_gettime(CLOCK_MONOTONIC, &b);
        double t = 1e9 * (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec);
        if (t < best) best = t;
    }
    return best / CHUNK;
}

static void accuracy(void **state) {
    (void)state;
    int failed = 0;
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) continue;
        isa_use((Isa)isa);
        for (int i = 0; i < FUNCTIONS; i++) {
            const Function *f = &functions[i];
            Worst w = dense(f);
            print_message(
                "           %-8s %-14s error %.2e at %12.5g, %3.0f %% of tolerance, %.2f ns\n",
                isa_name((Isa)isa), f->name, w.error, w.at, 100 * w.share, nanoseconds(f));
            failed += !(w.share <= 1.0);
        }
    }
    assert_int_equal(failed, 0);
}

static void special_values(void **state) {
    (void)state;
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) continue;
        isa_use((Isa)isa);
        for (int i = 0; i < FUNCTIONS; i++) check_special(&functions[i]);
    }
}

/* The order that vecmath.h promises: element i in lane i % 16, then a fixed tree. */
static float tree_sum(const float *x, int64_t n) {
    float lane[16] = {0}, quad[4];
    for (int64_t i = 0; i < n; i++) lane[i % 16] += x[i];
    for (int i = 0; i < 4; i++) quad[i] = (lane[i] + lane[i + 8]) + (lane[i + 4] + lane[i + 12]);
    return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

PK_FN void row_sum_body(const float *x, int64_t n, float *out) {
    *out = pk_row_sum(x, n);
}
ISA_VARIANTS(static, row_sum, (const float *x, int64_t n, float *out), (x, n, out))
PK_FN void row_max_body(const float *x, int64_t n, float *out) {
    *out = pk_row_max(x, n);
}
ISA_VARIANTS(static, row_max, (const float *x, int64_t n, float *out), (x, n, out))
PK_FN void row_dot_body(const float *x, const float *y, int64_t n, float *out) {
    *out = pk_row_dot(x, y, n);
}
ISA_VARIANTS(static, row_dot, (const float *x, const float *y, int64_t n, float *out),
             (x, y, n, out))

static void row_reductions(void **state) {
    (void)state;
    for (int64_t n = 0; n < 100; n++) {
        float *x = malloc((size_t)(n + 1) * sizeof *x), *y = malloc((size_t)(n + 1) * sizeof *y);
        float max = -INFINITY, got;
        double dot = 0, size = 0;
        for (int64_t i = 0; i < n; i++) {
            x[i] =
                (float)sin((double)(i * i + n)) - 2.0f; /* all negative: 0 must not win the max */
            y[i] = (float)cos((double)(3 * i + n));
            max = fmaxf(max, x[i]);
            dot += (double)x[i] * y[i];
            size += fabs((double)x[i] * y[i]);
        }
        for (int isa = 0; isa < ISA_COUNT; isa++) {
            if (!isa_supported((Isa)isa)) continue;
            isa_use((Isa)isa);
            row_sum(x, n, &got);
            assert_true(got == tree_sum(x, n));
            row_max(x, n, &got);
            assert_true(got == max);
            row_dot(x, y, n, &got);
            assert_true(fabs(got - dot) <= 5e-7 * size);
        }
        free(x);
        free(y);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(special_values),
        cmocka_unit_test(accuracy),
        cmocka_unit_test(row_reductions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
