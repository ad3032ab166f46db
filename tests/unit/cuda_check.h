/* What the tests of CUDA device code on the emulator share: random numbers, results between guard
 * zones, launches, comparison. NaN fails a comparison. */
#ifndef PEFT_CUDA_CHECK_H
#define PEFT_CUDA_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include "cuda_emulator.h"

extern "C" { /* this header does not say so for all its functions */
#include <cmocka.h>
}

using cuda_emulator::FORWARD;
using cuda_emulator::Order;
using cuda_emulator::REVERSE;
using cuda_emulator::SHUFFLED;

static uint64_t rng_state = 1;

enum { SYMBOLS = 6 }; /* of a batch, as in peftrt.h */

static inline uint32_t rng() {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static inline float uniform() { /* in [-2, 2) */
    return (float)(rng() & 0xffffff) / 4194304.0f - 2.0f;
}

static inline std::vector<float> random_floats(int64_t n) {
    std::vector<float> x((size_t)n);
    for (float &v : x) v = uniform();
    return x;
}

/* A result with guard zones, of values that no kernel computes, as bf16 neither. */
template <typename T> struct Guarded {
    enum { GUARD = 64 };
    static constexpr T MARK = sizeof(T) == 2 ? (T)0x7f77 : (T)-771155;
    std::vector<T> all;
    explicit Guarded(int64_t n) : all((size_t)n + 2 * GUARD, MARK) {}
    T *data() { return all.data() + GUARD; }
    int64_t size() const { return (int64_t)all.size() - 2 * GUARD; }
    T operator[](int64_t i) const { return all[(size_t)(i + GUARD)]; }
    void check() const {
        for (size_t i = 0; i < GUARD; i++) {
            assert_true(all[i] == MARK);
            assert_true(all[all.size() - 1 - i] == MARK);
        }
    }
};

template <typename T> void same_bits(const Guarded<T> &a, const Guarded<T> &b) {
    assert_int_equal(a.all.size(), b.all.size());
    assert_memory_equal(a.all.data(), b.all.data(), a.all.size() * sizeof(T));
}

static inline void run_kernel(unsigned x, unsigned y, unsigned threads, Order order,
                              std::function<void()> kernel) {
    const std::string error = cuda_emulator::launch(x, y, threads, order, std::move(kernel));
    if (!error.empty()) fail_msg("%s", error.c_str());
}

/* A value as kernels store it: a float, or the bits of a bf16. */
static inline double stored_value(float x) {
    return x;
}
static inline double stored_value(uint16_t bits) {
    return __uint_as_float((uint32_t)bits << 16);
}

/* Against values that the CPU computed in another order of summation. */
template <typename T>
void close_to(const Guarded<T> &got, const std::vector<float> &want, double tolerance,
              const char *what) {
    assert_int_equal(got.size(), want.size());
    double scale = 1;
    for (float w : want)
        if (isfinite(w)) scale = std::max(scale, fabs((double)w));
    for (size_t i = 0; i < want.size(); i++) {
        const double value = stored_value(got[(int64_t)i]), error = fabs(value - want[i]);
        if (value != want[i] && !(error <= tolerance * scale))
            fail_msg("%s[%zu]: %.9g, not %.9g", what, i, value, (double)want[i]);
    }
    got.check();
}

#endif
