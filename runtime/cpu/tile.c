/* Instances of tile_template.h: which tile shapes exist on which instruction set. The shapes fill
 * the register file (32 of 16 floats: 6 x 64 or 12 x 32; 16 of 8: 6 x 16; 16 of 4: 3 x 16) and keep
 * enough independent chains in flight for two multiply-adds a cycle. */
#include "tile.h"
#include "isa.h"

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
#define EACH(i, n) UNROLL for (int i = 0; i < (n); i++) /* n is a constant: unrolled */

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Vec8 __attribute__((vector_size(32), aligned(4), may_alias));

#define INSTANCE(isa, target, strips, rows)                            \
    target static void tile_##strips##x##rows##_##isa(const Tile *t) { \
        tile_##isa(t, rows, strips);                                   \
    }
#define UP_TO_3(M, isa, target, s) M(isa, target, s, 1) M(isa, target, s, 2) M(isa, target, s, 3)
#define UP_TO_6(M, isa, target, s) \
    UP_TO_3(M, isa, target, s) M(isa, target, s, 4) M(isa, target, s, 5) M(isa, target, s, 6)
#define UP_TO_8(M, isa, target, s) \
    UP_TO_6(M, isa, target, s) M(isa, target, s, 7) M(isa, target, s, 8)
#define UP_TO_12(M, isa, target, s) \
    UP_TO_8(M, isa, target, s)      \
    M(isa, target, s, 9) M(isa, target, s, 10) M(isa, target, s, 11) M(isa, target, s, 12)
#define ENTRY(isa, target, strips, rows) [rows] = tile_##strips##x##rows##_##isa,

#define TILE_ISA portable
#define TILE_TARGET
#define TILE_LANES 4
#include "tile_template.h"
UP_TO_3(INSTANCE, portable, , 1)
static const TileOps portable_ops = {
    .strips = 1,
    .rows = {[1] = 3},
    .run = {[1] = {UP_TO_3(ENTRY, portable, , 1)}},
    .pack_transposed = pack_transposed_portable,
};
#undef TILE_ISA
#undef TILE_TARGET
#undef TILE_LANES

#ifdef ISA_X86
#define TILE_ISA    avx2
#define TILE_TARGET ISA_TARGET_AVX2
#define TILE_LANES  8
#include "tile_template.h"
UP_TO_6(INSTANCE, avx2, ISA_TARGET_AVX2, 1)
static const TileOps avx2_ops = {
    .strips = 1,
    .rows = {[1] = 6},
    .run = {[1] = {UP_TO_6(ENTRY, avx2, , 1)}},
    .pack_transposed = pack_transposed_avx2,
};
#undef TILE_ISA
#undef TILE_TARGET
#undef TILE_LANES

#define TILE_ISA    avx512
#define TILE_TARGET ISA_TARGET_AVX512
#define TILE_LANES  16
#include "tile_template.h"
UP_TO_12(INSTANCE, avx512, ISA_TARGET_AVX512, 1)
UP_TO_12(INSTANCE, avx512, ISA_TARGET_AVX512, 2)
UP_TO_8(INSTANCE, avx512, ISA_TARGET_AVX512, 3)
UP_TO_6(INSTANCE, avx512, ISA_TARGET_AVX512, 4)
static const TileOps avx512_ops = {
    .strips = 4,
    .rows = {[1] = 12, [2] = 12, [3] = 8, [4] = 6},
    .run = {[1] = {UP_TO_12(ENTRY, avx512, , 1)},
            [2] = {UP_TO_12(ENTRY, avx512, , 2)},
            [3] = {UP_TO_8(ENTRY, avx512, , 3)},
            [4] = {UP_TO_6(ENTRY, avx512, , 4)}},
    .pack_transposed = pack_transposed_avx512,
};
#endif

const TileOps *tile_ops(void) {
#ifdef ISA_X86
    switch (isa_current()) {
    case ISA_AVX512: return &avx512_ops;
    case ISA_AVX2: return &avx2_ops;
    default: break;
    }
#endif
    return &portable_ops;
}

void tile_strips(const TileOps *ops, const Tile *t, int rows, int strips) {
    Tile part = *t;
    for (int s = 0; s < strips; s += ops->strips) {
        int width = strips - s < ops->strips ? strips - s : ops->strips;
        part.b = t->b + s * t->b_strip;
        part.c = t->c + s * STRIP;
        ops->run[width][rows](&part);
    }
}

void tile_matmul(const TileOps *ops, const Tile *t, int64_t m, int64_t n) {
    int64_t strips = (n + STRIP - 1) / STRIP;
    for (int64_t s = 0; s < strips; s += TILE_STRIPS) {
        int width = strips - s < TILE_STRIPS ? (int)(strips - s) : TILE_STRIPS;
        int tallest = ops->rows[width < ops->strips ? width : ops->strips];
        int64_t tiles = (m + tallest - 1) / tallest;
        for (int64_t i = 0; i < tiles; i++) {
            int64_t r0 = m * i / tiles, r1 = m * (i + 1) / tiles;
            Tile part = *t;
            part.a = t->a + r0 * t->a_row;
            part.b = t->b + s * t->b_strip;
            part.c = t->c + r0 * t->ldc + s * STRIP;
            tile_strips(ops, &part, (int)(r1 - r0), width);
        }
    }
}
