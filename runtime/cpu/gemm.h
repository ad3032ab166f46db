/* fp32 matrix multiplication on the CPU: C[m, n] = A[m, k] B[k, n] (+ C), row-major, either operand
 * transposed, B optionally an NF4 weight, with a callback that finishes each row segment of C while
 * it is in the L1 cache (bias, activation, dropout, residual: generated code). Invariants: nothing
 * is allocated; k is never split between threads, and an element of C is a chain of products in a
 * fixed order (blocks of ascending k, summed in C), so the result does not depend on the number of
 * threads. AVX-512 and AVX2 give the same bits; portable C rounds its products. */
#ifndef PEFT_CPU_GEMM_H
#define PEFT_CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nf4.h"

/* Sees c[row, col .. col + n) final, n <= 64. It may overwrite these elements and nothing else of
 * C. Calls come from all threads, each segment exactly once. */
typedef void (*GemmEpilogue)(void *ctx, int64_t row, int64_t col, int64_t n);

typedef struct Gemm {
    int64_t m, n, k; /* >= 0; with k = 0 the product is zero */
    const float *a;  /* [m, k], with trans_a [k, m] */
    int64_t lda;     /* elements from one stored row to the next, also below */
    bool trans_a;
    const float *b; /* [k, n], with trans_b [n, k] */
    int64_t ldb;
    bool trans_b;
    const Nf4View *b_nf4; /* when not NULL the weight B, of rows of ldb elements; b is not used */
    float *c;             /* [m, n]; must not overlap A and B */
    int64_t ldc;
    bool accumulate;       /* C += A B */
    GemmEpilogue epilogue; /* or NULL */
    void *epilogue_ctx;
} Gemm;

/* Scratch for a call on that many threads, any shape; 64-byte aligned, contents of no importance.
 */
size_t gemm_workspace_bytes(int threads);
void gemm_run(const Gemm *g, int threads, void *workspace);

#endif
