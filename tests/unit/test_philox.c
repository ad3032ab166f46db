/* The dropout generator: published answers, the row routine against the scalar reference on every
 * instruction set, and the statistics a mask must have. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/philox.h"

typedef struct Answer {
    uint32_t counter[4], key[2], result[4];
} Answer;

/* Known answers of Philox4x32-7 published with the generator. */
static const Answer answers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
};

static void known_answers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        const Answer *a = &answers[i];
        PhiloxRow r = {a->key[0], a->key[1], a->counter[1], a->counter[2], a->counter[3]};
        uint16_t lane[8];
        philox_block(&r, a->counter[0], lane);
        for (int j = 0; j < 8; j++)
            assert_int_equal(lane[j], a->result[j / 2] >> (16 * (j % 2)) & 0xffff);
    }
}

static void key_and_counter_layout(void **state) {
    (void)state;
    PhiloxRow r = philox_row(0x0000000300000005u, 7, 11, 13, 17);
    assert_int_equal(r.k0, 5u ^ 3u * 0x85ebca6bu);
    assert_int_equal(r.k1, 7);
    assert_int_equal(r.site, 11);
    assert_int_equal(r.sample, 13);
    assert_int_equal(r.position, 17);
    uint16_t lane[8];
    philox_block(&r, 3, lane);
    for (int i = 0; i < 8; i++)
        assert_int_equal(philox_lane(0x0000000300000005u, 7, 11, 13, 17, 24 + (uint64_t)i),
                         lane[i]);
}

static void check_row(const PhiloxRow *r, int64_t c0, int64_t n, uint32_t threshold) {
    float scale = philox_scale(threshold);
    float *keep = malloc((size_t)(n + 1) * sizeof *keep);
    assert_non_null(keep);
    keep[n] = -5.0f;
    philox_keep_row(r, c0, n, threshold, scale, keep);
    for (int64_t i = 0; i < n; i++) {
        uint16_t lane[8];
        philox_block(r, (uint32_t)((c0 + i) / 8), lane);
        assert_true(keep[i] == (lane[i % 8] < threshold ? 0.0f : scale));
    }
    assert_true(keep[n] == -5.0f);
    free(keep);
}

static void rows_match_reference(void **state) {
    (void)state;
    static const uint32_t thresholds[] = {0, 1, 6554, 32767, 32768, 32769, 65535, 65536};
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) continue;
        isa_use((Isa)isa);
        for (int64_t n = 0; n < 140; n++) {
            PhiloxRow r = philox_row(0x123456789abcdefu * (uint64_t)n, 0xfffffff0u + (uint32_t)n, 5,
                                     (uint32_t)n * 77777u, 1u << 31);
            check_row(&r, n % 9 * 8, n, thresholds[n % 8]);
        }
        PhiloxRow r = philox_row(42, 1, 2, 3, 4);
        check_row(&r, 0, 3072, 6554);
        for (uint64_t i = 0; i < 64; i++) /* a number equal to the threshold is kept */
            check_row(&r, 0, 64, philox_lane(42, 1, 2, 3, 4, i));
        check_row(&r, ((int64_t)1 << 32) * 8 - 16, 64, 6554); /* the block counter wraps at 2^32 */
    }
}

static void thresholds(void **state) {
    (void)state;
    assert_int_equal(philox_threshold(0.0f), 0);
    assert_int_equal(philox_threshold(-1.0f), 0);
    assert_int_equal(philox_threshold(NAN), 0);
    assert_int_equal(philox_threshold(0.1f), 6554);
    assert_int_equal(philox_threshold(0.5f), 32768);
    assert_int_equal(philox_threshold(1.0f), 65536);
    assert_int_equal(philox_threshold(7.0f), 65536);
    assert_true(philox_scale(0) == 1.0f);
    assert_true(philox_scale(32768) == 2.0f);
    assert_true(philox_scale(65536) == 0.0f);
}

/* Share of dropped elements over one coordinate of the mask, the others fixed; the product of
 * neighbours along it must be as for independent draws. Bounds are five standard deviations. */
typedef uint16_t (*Draw)(uint32_t i);
static uint16_t by_column(uint32_t i) {
    return philox_lane(42, 3, 1, 9, 5, i);
}
static uint16_t by_position(uint32_t i) {
    return philox_lane(42, 3, 1, 9, i, 5);
}
static uint16_t by_sample(uint32_t i) {
    return philox_lane(42, 3, 1, i, 9, 5);
}
static uint16_t by_site(uint32_t i) {
    return philox_lane(42, 3, i, 1, 9, 5);
}
static uint16_t by_step(uint32_t i) {
    return philox_lane(42, i, 3, 1, 9, 5);
}
static uint16_t by_seed(uint32_t i) {
    return philox_lane(i, 42, 3, 1, 9, 5);
}

static void statistics(void **state) {
    (void)state;
    static const Draw draws[] = {by_column, by_position, by_sample, by_site, by_step, by_seed};
    const double n = 200000, p = 6554.0 / 65536.0;
    for (size_t d = 0; d < sizeof draws / sizeof *draws; d++) {
        double dropped = 0, both = 0, before = 0, mean = 0;
        for (uint32_t i = 0; i < (uint32_t)n; i++) {
            uint16_t x = draws[d](i);
            double now = x < 6554;
            mean += x;
            dropped += now;
            both += now * before;
            before = now;
        }
        assert_true(fabs(dropped / n - p) <= 5 * sqrt(p * (1 - p) / n));
        assert_true(fabs(both / n - p * p) <= 5 * sqrt(p * p * (1 - p * p) / n));
        assert_true(fabs(mean / n - 32767.5) <= 5 * 65536 / sqrt(12 * n));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),        cmocka_unit_test(key_and_counter_layout),
        cmocka_unit_test(rows_match_reference), cmocka_unit_test(thresholds),
        cmocka_unit_test(statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
