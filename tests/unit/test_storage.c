/* How values lie in memory: bf16 against an exact reference for every upper half of a float,
 * masters that give back every bit, pieces of a buffer, and floats that pass through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "../../runtime/storage.h"

/* Below, at and above the middle between two bf16, and next to both of them. */
static const uint16_t lower[] = {0, 1, 0x1234, 0x7fff, 0x8000, 0x8001, 0xcdef, 0xffff};

enum { UPPERS = 0x10000, LOWERS = sizeof lower / sizeof *lower, ALL = UPPERS * LOWERS };

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint32_t bits_at(int i) {
    return (uint32_t)(i / LOWERS) << 16 | lower[i % LOWERS];
}

static float *all_floats(void) {
    float *x = malloc(ALL * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < ALL; i++) x[i] = float_of(bits_at(i));
    return x;
}

/* What the 15 bits of a bf16 without its sign stand for; 2^128 where infinity begins. */
static double magnitude(int m) {
    int exponent = m >> 7, mantissa = m & 127;
    return exponent ? ldexp(128 + mantissa, exponent - 134) : ldexp(mantissa, -133);
}

/* The nearest bf16 to a finite float, found by comparing distances; in the middle the even one, or
 * for masters the one away from zero. */
static uint16_t nearest(uint32_t u, bool tie_up) {
    int m = u >> 16 & 0x7fff;
    double x = fabs((double)float_of(u)), down = x - magnitude(m), up = magnitude(m + 1) - x;
    if (up < down || (up == down && (tie_up || m % 2))) m++;
    return (uint16_t)((u >> 16 & 0x8000) | (uint32_t)m);
}

static bool is_nan_bf16(uint16_t b) {
    return isnan(float_of((uint32_t)b << 16));
}

static void check_high(uint16_t found, uint32_t u, bool tie_up) {
    float x = float_of(u);
    bool same = isnan(x)   ? is_nan_bf16(found)
                : isinf(x) ? found == u >> 16
                           : found == nearest(u, tie_up);
    if (!same) fail_msg("%08x (%g) is stored as %04x", u, (double)x, found);
}

static void bf16_is_the_nearest_and_even(void **state) {
    (void)state;
    float *x = all_floats(), *back = malloc(ALL * sizeof *back);
    uint16_t *stored = malloc(ALL * sizeof *stored);
    assert_true(back && stored);
    storage_put(stored, DT_WORK, 2, ALL, 0, ALL, x);
    storage_get(stored, DT_WORK, 2, ALL, 0, ALL, back);
    for (int i = 0; i < ALL; i++) {
        check_high(stored[i], bits_at(i), false);
        assert_int_equal(bits_of(back[i]), (uint32_t)stored[i] << 16);
    }
    free(stored);
    free(back);
    free(x);
}

/* Values that a table of cases should name. */
static void bf16_by_hand(void **state) {
    (void)state;
    static const struct {
        uint32_t bits;
        uint16_t want;
    } cases[] = {
        {0x3f808000, 0x3f80},                                             /* ties: down to even */
        {0x3f818000, 0x3f82},                                             /* and up to even */
        {0xbf818000, 0xbf82}, {0x3f808001, 0x3f81}, {0x80000000, 0x8000}, /* -0 */
        {0x00000001, 0x0000},                                             /* the least denormal */
        {0x80008001, 0x8001}, {0x007fffff, 0x0080},                       /* denormal to normal */
        {0x7f7fffff, 0x7f80}, /* the largest float to infinity */
        {0x7f7f7fff, 0x7f7f}, {0xff800000, 0xff80},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float x = float_of(cases[i].bits);
        uint16_t found;
        storage_put(&found, DT_WORK, 2, 1, 0, 1, &x);
        assert_int_equal(found, cases[i].want);
    }
}

static void masters_keep_every_bit(void **state) {
    (void)state;
    float *x = all_floats(), *back = malloc(ALL * sizeof *back);
    uint16_t *stored = malloc(2 * ALL * sizeof *stored);
    assert_true(back && stored);
    storage_put(stored, DT_MASTER, 2, ALL, 0, ALL, x);
    storage_get(stored, DT_MASTER, 2, ALL, 0, ALL, back);
    for (int i = 0; i < ALL; i++) {
        uint32_t u = bits_at(i);
        check_high(stored[i], u, true); /* what products read */
        if (isnan(x[i]))
            assert_true(isnan(back[i]));
        else if (bits_of(back[i]) != u)
            fail_msg("%08x comes back as %08x", u, bits_of(back[i]));
    }
    free(stored);
    free(back);
    free(x);
}

/* ---- pieces ---- */

enum { COUNT = 41 };

static void fill(float *x) {
    for (int i = 0; i < COUNT; i++) x[i] = sinf((float)i) * ldexpf(1, i % 7 - 3);
}

/* A buffer written in pieces has the bytes of one written at once, and a piece touches nothing
 * beside its values; what is read in pieces is what is read at once. */
static void check_pieces(DType dtype, int work) {
    size_t bytes = COUNT * (size_t)(dtype == DT_WORK ? work : 4);
    static const int end[] = {0, 1, 8, 8, 23, 40, COUNT};
    float x[COUNT], whole[COUNT], piece[COUNT];
    char *once = malloc(bytes), *parts = malloc(bytes), *before = malloc(bytes);
    assert_true(once && parts && before);
    fill(x);
    memset(parts, 0xab, bytes);
    storage_put(once, dtype, work, COUNT, 0, COUNT, x);
    for (size_t i = 1; i < sizeof end / sizeof *end; i++) {
        int first = end[i - 1], n = end[i] - first;
        float back[COUNT];
        memcpy(before, parts, bytes);
        storage_put(parts, dtype, work, COUNT, first, n, x + first);
        size_t changed = 0;
        for (size_t k = 0; k < bytes; k++) changed += before[k] != parts[k];
        assert_true(changed <= bytes / COUNT * (size_t)n);
        storage_get(parts, dtype, work, COUNT, first, n, back);
        memcpy(piece + first, back, (size_t)n * sizeof *back);
    }
    assert_memory_equal(once, parts, bytes);
    storage_get(once, dtype, work, COUNT, 0, COUNT, whole);
    assert_memory_equal(whole, piece, sizeof whole);
    free(once);
    free(parts);
    free(before);
}

static void pieces_make_the_whole(void **state) {
    (void)state;
    check_pieces(DT_WORK, 2);
    check_pieces(DT_MASTER, 2);
    check_pieces(DT_F32, 2);
    check_pieces(DT_WORK, 4);
    check_pieces(DT_MASTER, 4);
}

static void floats_pass_through(void **state) {
    (void)state;
    static const struct {
        DType dtype;
        int work;
    } kind[] = {{DT_F32, 4}, {DT_F32, 2}, {DT_WORK, 4}, {DT_MASTER, 4}};
    float *x = all_floats(), *stored = malloc(ALL * sizeof *stored);
    float *back = malloc(ALL * sizeof *back);
    assert_true(stored && back);
    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
        memset(stored, 0, ALL * sizeof *stored);
        storage_put(stored, kind[i].dtype, kind[i].work, ALL, 0, ALL, x);
        storage_get(stored, kind[i].dtype, kind[i].work, ALL, 0, ALL, back);
        assert_memory_equal(stored, x, ALL * sizeof *x);
        assert_memory_equal(back, x, ALL * sizeof *x);
    }
    free(back);
    free(stored);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_is_the_nearest_and_even), cmocka_unit_test(bf16_by_hand),
        cmocka_unit_test(masters_keep_every_bit),       cmocka_unit_test(pieces_make_the_whole),
        cmocka_unit_test(floats_pass_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
