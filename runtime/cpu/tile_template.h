/* Included by tile.c once per instruction set, with
 *   TILE_ISA     suffix of the names       TILE_TARGET  function attribute
 *   TILE_LANES   floats per register, 4, 8 or 16
 * The multiplication and the packing of tile.h in GNU vector types. Loops over rows and strips have
 * constant bounds and are unrolled, which makes the accumulators registers. */
#define TILE_CAT2(a, b) a##_##b
#define TILE_CAT(a, b)  TILE_CAT2(a, b)
#define TILE_NAME(x)    TILE_CAT(x, TILE_ISA)
#define VEC             TILE_NAME(VEC)
typedef float VEC __attribute__((vector_size(4 * TILE_LANES), aligned(4), may_alias));

TILE_TARGET static inline __attribute__((always_inline)) void
TILE_NAME(tile)(const Tile *t, const int rows, const int strips) {
    enum { PER = STRIP / TILE_LANES };
    VEC acc[TILE_ROWS][TILE_STRIPS * PER];
    const float *a = t->a, *b = t->b;
    const int64_t a_row = t->a_row, a_k = t->a_k, b_k = t->b_k, b_strip = t->b_strip, ldc = t->ldc;
    float *c = t->c;
    const bool accumulate = t->accumulate;
    EACH(i, rows) EACH(j, strips * PER) acc[i][j] = (VEC){0};
    for (int64_t l = t->k; l > 0; l--, a += a_k, b += b_k) {
        VEC row[TILE_STRIPS * PER];
        EACH(j, strips * PER) row[j] = *(const VEC *)(b + j / PER * b_strip + j % PER * TILE_LANES);
        EACH(i, rows) EACH(j, strips * PER) acc[i][j] += a[i * a_row] * row[j];
    }
    EACH(i, rows) EACH(j, strips * PER) {
        VEC *out = (VEC *)(c + i * ldc + j * TILE_LANES);
        if (accumulate) acc[i][j] += *out;
        *out = acc[i][j];
    }
}

/* Transposes within each group of four lanes; PICK takes, of every group, elements 0..3 of x and
 * 4..7 of y. */
#define PICK1(g, i)          ((i) < 4 ? 4 * (g) + (i) : TILE_LANES + 4 * (g) + (i)-4)
#define PICK4(g, a, b, c, d) PICK1(g, a), PICK1(g, b), PICK1(g, c), PICK1(g, d)
#if TILE_LANES == 16
#define PICK_ALL(...) \
    PICK4(0, __VA_ARGS__), PICK4(1, __VA_ARGS__), PICK4(2, __VA_ARGS__), PICK4(3, __VA_ARGS__)
#elif TILE_LANES == 8
#define PICK_ALL(...) PICK4(0, __VA_ARGS__), PICK4(1, __VA_ARGS__)
#else
#define PICK_ALL(...) PICK4(0, __VA_ARGS__)
#endif
#define PICK(x, y, ...) __builtin_shufflevector(x, y, PICK_ALL(__VA_ARGS__))

/* Four floats at l of each of the rows 4 * g, in group g of lanes. */
TILE_TARGET static inline __attribute__((always_inline)) VEC
TILE_NAME(gather)(const float *const *row, int64_t l) {
    Quad q0 = *(const Quad *)(row[0] + l);
#if TILE_LANES == 4
    return q0;
#else
    Quad q1 = *(const Quad *)(row[4] + l);
    Vec8 low = __builtin_shufflevector(q0, q1, 0, 1, 2, 3, 4, 5, 6, 7);
#if TILE_LANES == 8
    return low;
#else
    Quad q2 = *(const Quad *)(row[8] + l), q3 = *(const Quad *)(row[12] + l);
    Vec8 high = __builtin_shufflevector(q2, q3, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

TILE_TARGET static void TILE_NAME(pack_transposed)(float *panel, const float *src, int64_t ld,
                                                   int64_t k, int n) {
    const float *row[STRIP];
    int64_t l = 0;
    for (int j = 0; j < STRIP; j++) row[j] = src + (j < n ? j : n - 1) * ld;
    for (; l + 4 <= k; l += 4) {
        EACH(part, STRIP / TILE_LANES) {
            const int j = part * TILE_LANES;
            VEC v0 = TILE_NAME(gather)(row + j, l), v1 = TILE_NAME(gather)(row + j + 1, l);
            VEC v2 = TILE_NAME(gather)(row + j + 2, l), v3 = TILE_NAME(gather)(row + j + 3, l);
            VEC lo01 = PICK(v0, v1, 0, 4, 1, 5), hi01 = PICK(v0, v1, 2, 6, 3, 7);
            VEC lo23 = PICK(v2, v3, 0, 4, 1, 5), hi23 = PICK(v2, v3, 2, 6, 3, 7);
            float *out = panel + l * STRIP + j;
            *(VEC *)out = PICK(lo01, lo23, 0, 1, 4, 5);
            *(VEC *)(out + STRIP) = PICK(lo01, lo23, 2, 3, 6, 7);
            *(VEC *)(out + 2 * STRIP) = PICK(hi01, hi23, 0, 1, 4, 5);
            *(VEC *)(out + 3 * STRIP) = PICK(hi01, hi23, 2, 3, 6, 7);
        }
    }
    for (; l < k; l++)
        for (int j = 0; j < STRIP; j++) panel[l * STRIP + j] = row[j][l];
}

#undef PICK
#undef PICK_ALL
#undef PICK4
#undef PICK1
#undef VEC
