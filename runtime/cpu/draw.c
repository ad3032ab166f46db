/* See draw.h. Logarithm and cosine are polynomials, so that loops over them become SIMD code. Their
 * relative error is far below ERROR: where all numbers within it round to one float, that float is
 * the one libm's functions lead to; about one value in a million is left, and drawn with libm. */
#include "draw.h"
#include "isa.h"

#include <math.h>
#include <string.h>

#define ERROR 0x1p-44
enum { BLOCK = 256 };

#define INLINE static inline __attribute__((always_inline))

INLINE double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Of x below 2^53, exactly: two halves as the low bits of 2^84 and 2^52, for AVX2 cannot convert.
 */
INLINE double to_double(uint64_t x) {
    double high = double_of(bits_of(0x1p84) | x >> 32) - 0x1p84;
    return high + (double_of(bits_of(0x1p52) | (x & 0xffffffffu)) - 0x1p52);
}

INLINE double uniform01(uint64_t key, uint64_t i) {
    uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (to_double(z >> 11) + 0.5) * 0x1p-53;
}

/* log(x), x positive and normal: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and
 * log(m) = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1), |s| < 0.172. */
INLINE double log_of(double x) {
    const uint64_t least = 0x3fe6a09e667f3bcdu; /* sqrt(1/2) */
    uint64_t shifted = bits_of(x) + (0x3ff0000000000000u - least);
    double e = double_of(bits_of(0x1p52) | shifted >> 52) - (0x1p52 + 1023);
    double m = double_of((shifted & 0xfffffffffffffu) + least);
    double s = (m - 1) / (m + 1), z = s * s;
    double p = 1. / 19;
    p = p * z + 1. / 17;
    p = p * z + 1. / 15;
    p = p * z + 1. / 13;
    p = p * z + 1. / 11;
    p = p * z + 1. / 9;
    p = p * z + 1. / 7;
    p = p * z + 1. / 5;
    p = p * z + 1. / 3;
    double log_m = 2 * s + 2 * s * z * p;
    return e * 0x1.62e42fefa3800p-1 + (e * 0x1.ef35793c76730p-45 + log_m);
}

/* cos(x), x in [0, 2 pi]: minus or plus the sine of the distance to pi/2 or 3 pi/2, where it is 0;
 * Taylor's series, whose next term is below 2e-18. */
INLINE double cos_of(double x) {
    double high = x < 0x1.921fb54442d18p+1 ? 0x1.921fb54442d18p+0 : 0x1.2d97c7f3321d2p+2;
    double low = x < 0x1.921fb54442d18p+1 ? 0x1.1a62633145c07p-54 : 0x1.a79394c9e8a0ap-53;
    double y = (x - high) - low, z = y * y;
    double p = 1. / 51090942171709440000.;
    p = p * z - 1. / 121645100408832000.;
    p = p * z + 1. / 355687428096000.;
    p = p * z - 1. / 1307674368000.;
    p = p * z + 1. / 6227020800.;
    p = p * z - 1. / 39916800.;
    p = p * z + 1. / 362880.;
    p = p * z - 1. / 5040.;
    p = p * z + 1. / 120.;
    p = p * z - 1. / 6.;
    double sine = y + y * z * p;
    return x < 0x1.921fb54442d18p+1 ? -sine : sine;
}

static float normal_by_libm(double deviation, double u, double angle) {
    return (float)(deviation * sqrt(-2 * log(u)) * cos(angle));
}

typedef struct Block { /* of numbers on their way to normal ones */
    double u[BLOCK], angle[BLOCK];
    float least[BLOCK], most[BLOCK]; /* the floats of the ends of each value's interval */
} Block;

/* The angle is rounded before its cosine is taken, as libm's argument is: it goes through memory,
 * where no fused multiply-add can follow it. */
INLINE void transform_body(uint64_t key, uint64_t first, double deviation, Block *b) {
    for (int i = 0; i < BLOCK; i++) {
        b->u[i] = uniform01(key, 2 * (first + (uint64_t)i));
        b->angle[i] = 6.283185307179586 * uniform01(key, 2 * (first + (uint64_t)i) + 1);
    }
    for (int i = 0; i < BLOCK; i++) {
        double x = deviation * sqrt(-2 * log_of(b->u[i])) * cos_of(b->angle[i]);
        b->least[i] = (float)(x * (1 - ERROR));
        b->most[i] = (float)(x * (1 + ERROR));
    }
}

ISA_VARIANTS(static, transform, (uint64_t key, uint64_t first, double deviation, Block *b),
             (key, first, deviation, b))

void draw_normal(uint64_t key, int64_t first, int64_t n, double deviation, float *out) {
    Block b;
    for (int64_t at = 0; at < n; at += BLOCK) {
        int m = n - at < BLOCK ? (int)(n - at) : BLOCK;
        transform(key, (uint64_t)(first + at), deviation, &b);
        for (int i = 0; i < m; i++)
            out[at + i] = b.least[i] == b.most[i] ? b.least[i]
                                                  : normal_by_libm(deviation, b.u[i], b.angle[i]);
    }
}

void draw_uniform(uint64_t key, int64_t first, int64_t n, double bound, float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(bound * (2 * uniform01(key, (uint64_t)(first + i)) - 1));
}
