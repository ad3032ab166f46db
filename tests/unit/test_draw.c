/* Initial values: the vectorised transform gives libm's floats on every instruction set, whoever
 * draws which part. That takes errors far below ERROR, which draw.c, included here, promises:
 * floats alone would tell of a wrong digit once in a hundred million values. */
#include "../../runtime/cpu/draw.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1 << 21 };

static double word01(uint64_t key, uint64_t i) {
    uint64_t z = key + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 11) + 0.5) * 0x1p-53;
}

static float normal(uint64_t key, uint64_t i, double deviation) {
    double u = word01(key, 2 * i), w = word01(key, 2 * i + 1);
    return (float)(deviation * sqrt(-2 * log(u)) * cos(6.283185307179586 * w));
}

static void assert_same(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: value %lld is %a, expected %a", isa_name(isa_current()), (long long)i,
                     (double)a[i], (double)b[i]);
}

/* Two million values meet the case that is left to libm about once in every run. */
static void test_normal_has_libm_bits(void **state) {
    (void)state;
    static const struct {
        uint64_t key;
        int64_t first;
        double deviation;
    } draw[] = {{1, 0, 0.02}, {0xfedcba9876543210u, (int64_t)1 << 40, 1}};
    float *expected = malloc(N * sizeof *expected), *found = malloc(N * sizeof *found);
    assert_true(expected && found);
    for (size_t d = 0; d < sizeof draw / sizeof *draw; d++) {
        for (int64_t i = 0; i < N; i++)
            expected[i] = normal(draw[d].key, (uint64_t)(draw[d].first + i), draw[d].deviation);
        for (Isa isa = ISA_PORTABLE; isa < ISA_COUNT; isa++) {
            if (!isa_supported(isa)) continue;
            isa_use(isa);
            draw_normal(draw[d].key, draw[d].first, N, draw[d].deviation, found);
            assert_same(found, expected, N);
        }
    }
    free(expected);
    free(found);
}

static void assert_near(const char *what, double x, double found, long double exact) {
    long double error = fabsl(found - exact);
    if (!(error <= fabsl(exact) * 0x1p-49L))
        fail_msg("%s(%a) is %a, expected %La", what, x, found, exact);
}

/* Everywhere, and where the cosine is next to zero and the logarithm next to one. */
static void test_errors(void **state) {
    (void)state;
    static const double zero[] = {0x1.921fb54442d18p+0, 0x1.2d97c7f3321d2p+2};
    for (uint64_t i = 0; i < 1 << 20; i++) {
        double u = word01(11, i), x = 6.283185307179586 * u;
        assert_near("log", u, log_of(u), logl(u));
        assert_near("cos", x, cos_of(x), cosl(x));
    }
    for (int k = 1; k <= 53; k++)
        for (int sign = -1; sign <= 1; sign += 2) {
            double tiny = ldexp(1, -k);
            assert_near("log", tiny, log_of(tiny), logl(tiny));
            assert_near("log", 1 - tiny, log_of(1 - tiny), logl(1 - tiny));
            for (int z = 0; z < 2; z++) {
                double x = zero[z] + sign * tiny;
                assert_near("cos", x, cos_of(x), cosl(x));
            }
        }
}

static void test_parts(void **state) {
    (void)state;
    float whole[1000], part[1000];
    static const int64_t cut[] = {0, 1, 258, 513, 999, 1000};
    for (int k = 0; k < 2; k++) {
        void (*draw)(uint64_t, int64_t, int64_t, double, float *) = k ? draw_uniform : draw_normal;
        draw(7, 0, 1000, 0.5, whole);
        for (size_t i = 0; i + 1 < sizeof cut / sizeof *cut; i++)
            draw(7, cut[i], cut[i + 1] - cut[i], 0.5, part + cut[i]);
        assert_same(part, whole, 1000);
    }
}

static void test_uniform(void **state) {
    (void)state;
    float x[1000];
    draw_uniform(3, 5, 1000, 0.25, x);
    for (int i = 0; i < 1000; i++)
        assert_true(x[i] == (float)(0.25 * (2 * word01(3, (uint64_t)(5 + i)) - 1)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normal_has_libm_bits),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_uniform),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
