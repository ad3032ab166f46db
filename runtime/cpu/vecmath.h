/* Scalar float functions for loops that the compiler vectorises: generated kernels and the kernels
 * of this folder include this header and call pk_exp, pk_erf, pk_gelu, ... once per element.
 * Invariants: no branch, no table, no libm call, no errno, so that a plain loop over them becomes
 * SIMD code of whatever width the surrounding function targets (gcc: -O3 -fno-math-errno
 * -fno-trapping-math; -ffast-math is neither needed nor wanted). NaN goes in, NaN comes out;
 * infinities give the limit of the function. Polynomials and rationals are minimax fits in the
 * relative error (Lawson's iteration), degrees chosen so that rounding dominates; the largest
 * errors over dense ranges stand in tests/unit/test_vecmath.c. */
#ifndef PEFT_CPU_VECMATH_H
#define PEFT_CPU_VECMATH_H

#include <stdint.h>
#include <string.h>

#define PK_FN static inline __attribute__((always_inline, unused))

PK_FN uint32_t pk_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

PK_FN float pk_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Written so that NaN in x survives and the comparison becomes one min or max instruction. */
PK_FN float pk_at_least(float x, float lo) {
    return lo > x ? lo : x;
}
PK_FN float pk_at_most(float x, float hi) {
    return hi < x ? hi : x;
}
PK_FN float pk_max(float a, float b) {
    return a > b ? a : b;
}

PK_FN float pk_sqrt(float x) {
    return __builtin_sqrtf(x);
}
PK_FN float pk_rsqrt(float x) {
    return 1.0f / __builtin_sqrtf(x);
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2, for -86.9 <= x or NaN. The polynomial
 * is 2 exp(r) and the power 2^(n - 1): a normal number up to the largest finite result. */
PK_FN float pk_exp_bounded(float x) {
    const float to_int = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float shifted = x * 1.44269504f + to_int;
    float n = shifted - to_int;
    float r = x - n * 0.693359375f; /* exact: the high part of ln 2 has nine bits */
    r = r - n * -2.12194440e-4f;
    float p = 0.00276290346f;
    p = p * r + 0.0167375114f;
    p = p * r + 0.0833367854f;
    p = p * r + 0.333330392f;
    p = p * r + 0.99999988f;
    p = p * r + 2.0f;
    p = p * r + 2.0f;
    return p * pk_float((pk_bits(shifted) - pk_bits(to_int) + 126u) << 23);
}

/* exp(x) for every x; results below 1.7e-38 are 0. */
PK_FN float pk_exp(float x) {
    return pk_exp_bounded(pk_at_most(pk_at_least(x, -87.2f), 89.0f));
}

/* log(x) = e ln 2 + log1p(f), x = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)). */
PK_FN float pk_log(float x) {
    const uint32_t sqrt_half = 0x3f3504f3u;
    int tiny = x < 1.17549435e-38f; /* subnormal (or <= 0, replaced at the end) */
    float scaled = tiny ? x * 8388608.0f : x;
    uint32_t u = pk_bits(scaled) - sqrt_half;
    float e = (float)((int32_t)u >> 23) - (tiny ? 23.0f : 0.0f);
    float f = pk_float((u & 0x7fffffu) + sqrt_half) - 1.0f;
    float p = -0.0763449594f;
    p = p * f + 0.127615765f;
    p = p * f + -0.131601825f;
    p = p * f + 0.142017573f;
    p = p * f + -0.166233569f;
    p = p * f + 0.200012267f;
    p = p * f + -0.250008196f;
    p = p * f + 0.333333313f;
    float f2 = f * f;
    float y = p * (f2 * f) + e * -2.12194440e-4f;
    y = f + (y - 0.5f * f2) + e * 0.693359375f;
    y = x > 3.40282347e38f ? x : y; /* +inf */
    y = x == 0.0f ? -__builtin_inff() : y;
    return x >= 0.0f ? y : __builtin_nanf("");
}

/* tanh(x) = x + x^3 P(x^2) for |x| < 0.625, else 1 - 2 / (exp(2 |x|) + 1) with the sign of x. */
PK_FN float pk_tanh(float x) {
    float a = __builtin_fabsf(x), t = x * x;
    float p = -0.00570498686f;
    p = p * t + 0.0206390861f;
    p = p * t + -0.0537397154f;
    p = p * t + 0.133314416f;
    p = p * t + -0.333332807f;
    float large =
        __builtin_copysignf(1.0f - 2.0f / (pk_exp_bounded(pk_at_most(2.0f * a, 20.0f)) + 1.0f), x);
    return a < 0.625f ? x + x * (t * p) : large;
}

PK_FN float pk_sigmoid(float x) {
    return 1.0f / (1.0f + pk_exp(-x));
}

/* Phi(x), the normal distribution, for |x| <= 13, and bell = exp(-x^2 / 2). The lower tail is
 * bell P(|x|) / Q(|x|): no cancellation, so gelu keeps its relative accuracy for negative x. */
PK_FN float pk_normal(float x, float *bell) {
    float a = __builtin_fabsf(x);
    float p = 0.00399436383f;
    p = p * a + 0.0398088396f;
    p = p * a + 0.180784151f;
    p = p * a + 0.434976369f;
    p = p * a + 0.5f;
    float q = 0.0100122355f;
    q = q * a + 0.099793613f;
    q = q * a + 0.463001162f;
    q = q * a + 1.19230628f;
    q = q * a + 1.66783762f;
    q = q * a + 1.0f;
    *bell = pk_exp_bounded(-0.5f * x * x);
    float tail = *bell * p / q;
    return x < 0.0f ? tail : 1.0f - tail;
}

/* erf(x) = x P(x^2) for |x| < 0.6, else 2 Phi(sqrt(2) |x|) - 1 with the sign of x. */
PK_FN float pk_erf(float x) {
    float a = __builtin_fabsf(x), t = x * x, bell;
    float p = 0.00451235753f;
    p = p * t + -0.0266469866f;
    p = p * t + 0.112809919f;
    p = p * t + -0.376125127f;
    p = p * t + 1.12837911f;
    float tail = pk_normal(-pk_at_most(1.41421356f * a, 13.0f), &bell);
    return a < 0.6f ? x * p : __builtin_copysignf(1.0f - 2.0f * tail, x);
}

/* Activations. The argument is clamped to where the function, or its distance from the limit, is
 * below 1e-34: an infinite one must not meet the zero of another factor. */

/* x sigmoid(x), and its derivative s + x s (1 - s); with e = exp(-x), s = 1 / (1 + e), 1 - s = e s.
 */
PK_FN float pk_silu(float x) {
    float c = pk_at_least(x, -86.0f);
    return c / (1.0f + pk_exp_bounded(-pk_at_most(c, 86.0f)));
}
PK_FN float pk_silu_grad(float x) {
    float c = pk_at_most(pk_at_least(x, -86.0f), 86.0f);
    float e = pk_exp_bounded(-c), s = 1.0f / (1.0f + e);
    return s + c * s * (e * s);
}

/* x Phi(x) = 0.5 x (1 + erf(x / sqrt 2)), and its derivative Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi).
 */
PK_FN float pk_gelu(float x) {
    float bell, c = pk_at_least(x, -13.0f);
    return c * pk_normal(pk_at_most(c, 13.0f), &bell);
}
PK_FN float pk_gelu_grad(float x) {
    float bell, c = pk_at_most(pk_at_least(x, -13.0f), 13.0f);
    float phi = pk_normal(c, &bell);
    return phi + c * 0.398942280f * bell;
}

/* The tanh form, 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and its
 * derivative s + x s (1 - s) 2 u'. */
PK_FN float pk_gelu_tanh(float x) {
    float c = pk_at_least(x, -10.0f), t = pk_at_most(c, 10.0f);
    float e = pk_exp_bounded(-1.59576912f * t * (1.0f + 0.044715f * t * t));
    return c / (1.0f + e);
}
PK_FN float pk_gelu_tanh_grad(float x) {
    float c = pk_at_most(pk_at_least(x, -10.0f), 10.0f);
    float e = pk_exp_bounded(-1.59576912f * c * (1.0f + 0.044715f * c * c)), s = 1.0f / (1.0f + e);
    return s + c * s * (e * s) * (1.59576912f * (1.0f + 0.134145f * c * c));
}

/* Row reductions. A reduction in a kernel is an elementwise loop into a row that stays in L1, then
 * one of these: compilers do not vectorise a float sum, and must not choose its order. Element i
 * goes to lane i % 16 and the lanes are folded by one fixed tree, so the order is the same on every
 * instruction set (which lets four 4-wide registers do: the loop is bound by its loads). */
typedef float PkQuad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t PkQuadMask __attribute__((vector_size(16), aligned(4), may_alias));

typedef struct PkLanes {
    PkQuad quad[4];
} PkLanes;

PK_FN PkLanes pk_lanes_tail(const float *x, int64_t n, float fill) { /* n < 16 values, then fill */
    union {
        float f[16];
        PkLanes lanes;
    } u;
    for (int i = 0; i < 16; i++) u.f[i] = i < n ? x[i] : fill;
    return u.lanes;
}

PK_FN float pk_lanes_sum(const PkLanes *a) {
    PkQuad s = (a->quad[0] + a->quad[2]) + (a->quad[1] + a->quad[3]);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

PK_FN PkQuad pk_quad_max(PkQuad a, PkQuad b) {
    PkQuadMask m = a > b;
    return (PkQuad)(((PkQuadMask)a & m) | ((PkQuadMask)b & ~m));
}

/* sum of x[0..n); 0 for n = 0. */
PK_FN float pk_row_sum(const float *x, int64_t n) {
    PkLanes acc = {{{0}}};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int q = 0; q < 4; q++) acc.quad[q] += *(const PkQuad *)(x + i + 4 * q);
    if (i < n) {
        PkLanes t = pk_lanes_tail(x + i, n - i, 0.0f);
        for (int q = 0; q < 4; q++) acc.quad[q] += t.quad[q];
    }
    return pk_lanes_sum(&acc);
}

/* sum of x[i] y[i]. */
PK_FN float pk_row_dot(const float *x, const float *y, int64_t n) {
    PkLanes acc = {{{0}}};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int q = 0; q < 4; q++)
            acc.quad[q] += *(const PkQuad *)(x + i + 4 * q) * *(const PkQuad *)(y + i + 4 * q);
    if (i < n) {
        PkLanes s = pk_lanes_tail(x + i, n - i, 0.0f), t = pk_lanes_tail(y + i, n - i, 0.0f);
        for (int q = 0; q < 4; q++) acc.quad[q] += s.quad[q] * t.quad[q];
    }
    return pk_lanes_sum(&acc);
}

/* max of x[0..n), -inf for n = 0. A NaN may or may not be seen: use it for shifts, not for checks.
 */
PK_FN float pk_row_max(const float *x, int64_t n) {
    const float none = -__builtin_inff();
    PkLanes acc = pk_lanes_tail(x, 0, none);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int q = 0; q < 4; q++)
            acc.quad[q] = pk_quad_max(*(const PkQuad *)(x + i + 4 * q), acc.quad[q]);
    PkLanes t = pk_lanes_tail(x + i, n - i, none);
    for (int q = 0; q < 4; q++) acc.quad[q] = pk_quad_max(t.quad[q], acc.quad[q]);
    PkQuad m =
        pk_quad_max(pk_quad_max(acc.quad[0], acc.quad[2]), pk_quad_max(acc.quad[1], acc.quad[3]));
    return pk_max(pk_max(m[0], m[2]), pk_max(m[1], m[3]));
}

#endif
