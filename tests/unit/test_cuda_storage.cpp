/* The device's loads and stores of bf16, of masters and of floats against runtime/storage.c: the
 * same bits for every upper half of a float, one at a time and eight at a time. Only a NaN's bits
 * are free where a value is rounded: it is a NaN on both sides. */
#include "cuda_check.h"

namespace fp32 {
#include "../../runtime/cuda/kernel_cuda.h"
} // namespace fp32

#define PEFT_BF16
namespace bf16 {
#include "../../runtime/cuda/kernel_cuda.h"
} // namespace bf16

extern "C" {
#include "../../runtime/storage.h"
}

using bf16::Bf16;

static const uint16_t lower[] = {0, 1, 0x1234, 0x7fff, 0x8000, 0x8001, 0xcdef, 0xffff};

enum { LOWERS = sizeof lower / sizeof *lower, ALL = 0x10000 * LOWERS };

/* Aligned as the arena's buffers are. */
template <typename T> struct Aligned {
    T *at;
    explicit Aligned(int64_t n) : at((T *)aligned_alloc(64, ((size_t)n * sizeof(T) + 63) & ~63ul)) {
        assert_non_null(at);
    }
    ~Aligned() { free(at); }
    Aligned(const Aligned &) = delete;
    Aligned &operator=(const Aligned &) = delete;
    T &operator[](int64_t i) const { return at[i]; }
};

static uint32_t bits_at(int64_t i) {
    return (uint32_t)(i / LOWERS) << 16 | lower[i % LOWERS];
}

static void fill_floats(const Aligned<float> &x) {
    for (int64_t i = 0; i < ALL; i++) x[i] = __uint_as_float(bits_at(i));
}

static bool is_nan(uint32_t u) {
    return (u & 0x7fffffffu) > 0x7f800000u;
}

/* Of bf16, n of them; NaN is as good as any other. */
static void same_halves(const Aligned<Bf16> &got, const Aligned<uint16_t> &want, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (got[i].bits != want[i] &&
            !(is_nan((uint32_t)got[i].bits << 16) && is_nan((uint32_t)want[i] << 16)))
            fail_msg("value %lld: %04x, not %04x", (long long)i, got[i].bits, want[i]);
}

static void same_floats(const Aligned<float> &got, const Aligned<float> &want) {
    assert_memory_equal(got.at, want.at, ALL * sizeof(float));
}

static void bf16_is_that_of_the_host(void **) {
    Aligned<float> x(ALL), one(ALL), eight(ALL), back(ALL);
    Aligned<uint16_t> want(ALL);
    Aligned<Bf16> single(ALL), vector(ALL);
    fill_floats(x);
    storage_put(want.at, DT_WORK, 2, ALL, 0, ALL, x.at);
    for (int64_t i = 0; i < ALL; i++) bf16::pk_put(single.at, i, x[i]);
    for (int64_t i = 0; i < ALL; i += 8) bf16::pk_put8(vector.at, i, x.at + i);
    same_halves(single, want, ALL);
    same_halves(vector, want, ALL);
    storage_get(single.at, DT_WORK, 2, ALL, 0, ALL, back.at);
    for (int64_t i = 0; i < ALL; i++) one[i] = bf16::pk_get(single.at, i);
    for (int64_t i = 0; i < ALL; i += 8) bf16::pk_get8(single.at, i, eight.at + i);
    same_floats(one, back);
    same_floats(eight, back);
    for (int64_t i = 0; i < ALL; i++) one[i] = bf16::pk_stored(single.at, x[i]);
    same_floats(one, back);
}

/* Both planes, NaN included. */
static void masters_are_those_of_the_host(void **) {
    Aligned<float> x(ALL), one(ALL), eight(ALL), back(ALL);
    Aligned<uint16_t> want(2 * ALL);
    Aligned<Bf16> single(2 * ALL), vector(2 * ALL);
    fill_floats(x);
    storage_put(want.at, DT_MASTER, 2, ALL, 0, ALL, x.at);
    for (int64_t i = 0; i < ALL; i++) bf16::pk_put_master(single.at, i, ALL, x[i]);
    for (int64_t i = 0; i < ALL; i += 8) bf16::pk_put8_master(vector.at, i, ALL, x.at + i);
    assert_memory_equal(single.at, want.at, 2 * ALL * sizeof(Bf16));
    assert_memory_equal(vector.at, want.at, 2 * ALL * sizeof(Bf16));
    storage_get(want.at, DT_MASTER, 2, ALL, 0, ALL, back.at);
    for (int64_t i = 0; i < ALL; i++) one[i] = bf16::pk_get_master(single.at, i, ALL);
    for (int64_t i = 0; i < ALL; i += 8) bf16::pk_get8_master(single.at, i, ALL, eight.at + i);
    same_floats(one, back);
    same_floats(eight, back);
}

/* With floats as work values every form is a copy. */
static void floats_are_copied(void **) {
    Aligned<float> x(ALL), y(ALL), z(ALL);
    fill_floats(x);
    for (int64_t i = 0; i < ALL; i++) fp32::pk_put(y.at, i, fp32::pk_get(x.at, i));
    same_floats(y, x);
    for (int64_t i = 0; i < ALL; i++)
        fp32::pk_put_master(z.at, i, ALL, fp32::pk_get_master(x.at, i, ALL));
    same_floats(z, x);
    for (int64_t i = 0; i < ALL; i += 8) {
        alignas(16) float value[2][8];
        fp32::pk_get8(x.at, i, value[0]);
        fp32::pk_put8(y.at, i ^ 8, value[0]);
        fp32::pk_get8_master(x.at, i, ALL, value[1]);
        fp32::pk_put8_master(z.at, i ^ 8, ALL, value[1]);
    }
    for (int64_t i = 0; i < ALL; i += 8) {
        assert_memory_equal(y.at + i, x.at + (i ^ 8), 8 * sizeof(float));
        assert_memory_equal(z.at + i, x.at + (i ^ 8), 8 * sizeof(float));
    }
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_is_that_of_the_host),
        cmocka_unit_test(masters_are_those_of_the_host),
        cmocka_unit_test(floats_are_copied),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
