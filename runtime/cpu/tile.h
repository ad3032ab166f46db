/* Register tiles: the innermost loops of matrix multiplication and the packing that feeds them, one
 * set per instruction set. Internal to runtime/cpu (gemm.c, attention.c). A strip is 16 columns; a
 * tile computes up to TILE_ROWS rows by up to TILE_STRIPS strips of C wholly in registers.
 * Invariant: an element of C is the chain of its k products in ascending k, started at zero and
 * added to C at the end, whatever tile it falls in; so the cut into tiles never shows in the
 * result. */
#ifndef PEFT_CPU_TILE_H
#define PEFT_CPU_TILE_H

#include <stdbool.h>
#include <stdint.h>

enum { STRIP = 16, TILE_STRIPS = 4, TILE_ROWS = 12 };

/* c[i, j] (+)= sum over l < k of a[i, l] b[l, j], where a[i, l] stands at a + i a_row + l a_k and
 * b[l, j] at b + l b_k + (j / 16) b_strip + j % 16. */
typedef struct Tile {
    int64_t k;
    const float *a;
    int64_t a_row, a_k;
    const float *b; /* whole strips: columns beyond the matrix must be readable */
    int64_t b_k, b_strip;
    float *c;
    int64_t ldc;
    bool accumulate;
} Tile;

typedef void (*TileFn)(const Tile *t);

typedef struct TileOps {
    int strips;                                 /* widest tile */
    int rows[TILE_STRIPS + 1];                  /* tallest tile of that many strips */
    TileFn run[TILE_STRIPS + 1][TILE_ROWS + 1]; /* [strips][rows] */
    /* panel[l * 16 + j] = src[j * ld + l] for l < k, j < n; columns n <= j < 16 repeat the last. */
    void (*pack_transposed)(float *panel, const float *src, int64_t ld, int64_t k, int n);
} TileOps;

const TileOps *tile_ops(void); /* of the current instruction set */

/* One tile of rows <= ops->rows[min(strips, ops->strips)] by strips <= TILE_STRIPS. */
void tile_strips(const TileOps *ops, const Tile *t, int rows, int strips);

/* The whole product for m rows and n columns rounded up to strips, C included: for matrices that
 * fit the cache. */
void tile_matmul(const TileOps *ops, const Tile *t, int64_t m, int64_t n);

#endif
