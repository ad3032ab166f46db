/* What generated C kernels are made of: the forms of a kernel, each compiled for every instruction
 * set, and the few functions that kernels call beside those of vecmath.h. A generated file includes
 * this header and nothing else.
 *
 * Kernels do not use restrict: a result may lie over an operand of which every element is read
 * before it is written. PEFT_SIMD says that the iterations of a loop are independent, which is all
 * the vectoriser needs; no loop marked with it sums anything up. */
#ifndef PEFT_KERNEL_C_H
#define PEFT_KERNEL_C_H

#include <math.h>

#include "cpu/isa.h"
#include "cpu/nf4.h"
#include "cpu/philox.h"
#include "cpu/vecmath.h"
#include "peftrt.h"

#define PEFT_SIMD _Pragma("omp simd")
#define PK_INF    __builtin_inff()
#define PK_NAN    __builtin_nanf("")

/* ---- forms: PEFT_x_BODY(name) { ... } PEFT_x(name) ---- */

#define PEFT_MAP_PARAMS \
    (void *const *arg, const int64_t *sym, const int32_t *site, int64_t begin, int64_t end)
#define PEFT_MAP_BODY(name) PK_FN void name##_body PEFT_MAP_PARAMS
#define PEFT_MAP(name)      ISA_VARIANTS(static, name, PEFT_MAP_PARAMS, (arg, sym, site, begin, end))

#define PEFT_SUM_PARAMS                                                                     \
    (void *const *arg, const int64_t *sym, const int32_t *site, int64_t begin, int64_t end, \
     double *sum)
#define PEFT_SUM_BODY(name) PK_FN void name##_body PEFT_SUM_PARAMS
#define PEFT_SUM(name) \
    ISA_VARIANTS(static, name, PEFT_SUM_PARAMS, (arg, sym, site, begin, end, sum))

#define PEFT_EPILOGUE_PARAMS \
    (void *const *arg, const int64_t *sym, const int32_t *site, int64_t r, int64_t col, int64_t n)
#define PEFT_EPILOGUE_BODY(name) PK_FN void name##_body PEFT_EPILOGUE_PARAMS
#define PEFT_EPILOGUE(name) \
    ISA_VARIANTS(static, name, PEFT_EPILOGUE_PARAMS, (arg, sym, site, r, col, n))

/* ---- entries: a kernel with its dropout sites, as the tables point to it ---- */

#define PEFT_MAP_ENTRY(name, id, ...)                                                          \
    static void entry_##id(void *const *arg, const int64_t *sym, int64_t begin, int64_t end) { \
        static const int32_t site[] = {__VA_ARGS__};                                           \
        name(arg, sym, site, begin, end);                                                      \
    }
#define PEFT_SUM_ENTRY(name, id, ...)                                                            \
    static double entry_##id(void *const *arg, const int64_t *sym, int64_t begin, int64_t end) { \
        static const int32_t site[] = {__VA_ARGS__};                                             \
        double sum;                                                                              \
        name(arg, sym, site, begin, end, &sum);                                                  \
        return sum;                                                                              \
    }
#define PEFT_EPILOGUE_ENTRY(name, id, ...)                                                 \
    static void entry_##id(void *const *arg, const int64_t *sym, int64_t row, int64_t col, \
                           int64_t n) {                                                    \
        static const int32_t site[] = {__VA_ARGS__};                                       \
        name(arg, sym, site, row, col, n);                                                 \
    }

/* ---- functions ---- */

PK_FN float pk_square(float x) {
    return x * x;
}
PK_FN float pk_relu(float x) {
    return pk_at_least(x, 0.0f);
}
PK_FN float pk_step(float x) {
    return x > 0.0f ? 1.0f : 0.0f;
}
PK_FN float pk_min(float a, float b) {
    return b < a ? b : a;
}
PK_FN int64_t pk_slot(int32_t i) {
    return i < 0 ? 0 : i;
} /* an index that is safe to read */

/* 1 - beta^step */
PK_FN float pk_bias_correction(double beta, float step) {
    return (float)-expm1((double)step * log(beta));
}

/* Dropout factors of columns first .. first + n of a row, in `scratch` of PK_KEEP_ROOM(n) floats:
 * 0 or 1 / (1 - p), or 1 when dropout is off. rng: seed low, seed high, step, dropout on. */
#define PK_KEEP_ROOM(n) ((n) + 8)
static inline __attribute__((unused)) const float *pk_keep(const int32_t *rng, int32_t site,
                                                           int32_t sample, int32_t position,
                                                           float p, int64_t first, int64_t n,
                                                           float *scratch) {
    int64_t skip = first & 7; /* philox_keep_row starts at multiples of 8 */
    if (!rng[3]) {
        for (int64_t i = 0; i < n; i++) scratch[i] = 1.0f;
        return scratch;
    }
    uint64_t seed = (uint32_t)rng[0] | (uint64_t)(uint32_t)rng[1] << 32;
    PhiloxRow row =
        philox_row(seed, (uint32_t)rng[2], (uint32_t)site, (uint32_t)sample, (uint32_t)position);
    uint32_t threshold = philox_threshold(p);
    philox_keep_row(&row, first - skip, n + skip, threshold, philox_scale(threshold), scratch);
    return scratch + skip;
}

#endif
