/* Row-major matrix products on the GPU through cuBLASLt: C[m, n] = scale op(A) op(B) (+ addend), in
 * fp32 (products and sums in fp32, no TF32) or of bf16 operands with fp32 sums and a bf16 or fp32
 * result. What a product needs (descriptors, the algorithms to choose from) is planned once per
 * shape and kept; a planned product allocates nothing and only launches, so it can be captured in a
 * graph. Only algorithms that sum split products in fp32 and in a fixed order are candidates:
 * results are the same bits from run to run. One thread at a time may use a CudaGemm. */
#ifndef PEFT_CUDA_GEMM_H
#define PEFT_CUDA_GEMM_H

#include "api.h"

#define CUDA_GEMM_ALIGN      16 /* bytes: of A, B and C */
#define CUDA_GEMM_CANDIDATES 16
#define CUDA_GEMM_NAME       192 /* characters of an algorithm's name, with the final zero */

typedef enum CudaGemmType { CUDA_GEMM_F32, CUDA_GEMM_BF16 } CudaGemmType;

typedef struct CudaMatmul {
    int64_t m, n, k;       /* 1 to 2^31 - 1 */
    int64_t lda, ldb, ldc; /* elements from one stored row to the next; 0: rows follow each other */
    bool trans_a;          /* A is stored [k, m] instead of [m, k] */
    bool trans_b;          /* B is stored [n, k] instead of [k, n] */
    CudaGemmType in, out;  /* of A and B, of C: F32 and F32, BF16 and BF16, or BF16 and F32 */
    size_t workspace_bytes; /* algorithms that need more are not considered; 0: none */
    int batch;              /* products of this shape in one launch; 0 counts as 1 */

    /* What follows may differ between products of one plan. */
    CUdeviceptr a, b, c; /* C must not overlap anything else */
    CUdeviceptr bias;    /* n values of C's type, added to each row; 0 or not 0 is part of the
                            shape, the address is not */
    CUdeviceptr addend;  /* C = scale op(A) op(B) + this, of C's type and stride, which may be C
                            itself; 0: nothing is added */
    int64_t stride_a, stride_b, stride_c, stride_addend,
        stride_bias;       /* of a batch: elements from one product's operand to the next one's;
                              whether that of A is 0 is part of the shape */
    float scale;           /* 0 counts as 1 */
    CUdeviceptr workspace; /* for this product alone until it is done; any alignment */
} CudaMatmul;

typedef struct CudaGemm CudaGemm;
typedef struct CudaGemmPlan CudaGemmPlan; /* belongs to its CudaGemm and lives as long */

bool cuda_gemm_open(CudaGemm **out, const CudaApi *api, PeftError *err); /* in this context */
void cuda_gemm_close(CudaGemm *g);                                       /* NULL is fine */

/* Launches a product on a stream; the first of its shape is planned. */
bool cuda_gemm_run(CudaGemm *g, const CudaMatmul *product, CUstream stream, PeftError *err);

/* The plan of a product's shape, made at its first use with the heuristic's first algorithm. */
CudaGemmPlan *cuda_gemm_plan(CudaGemm *g, const CudaMatmul *product, PeftError *err);

/* The plan's shape, with leading dimensions filled in and without buffers. */
const CudaMatmul *cuda_gemm_shape(const CudaGemmPlan *plan);

/* The algorithms that a plan can choose from, best guess first: 1 to CUDA_GEMM_CANDIDATES. */
int cuda_gemm_candidates(const CudaGemmPlan *plan);
int cuda_gemm_selected(const CudaGemmPlan *plan);         /* -1: another plan's, adopted */
void cuda_gemm_select(CudaGemmPlan *plan, int candidate); /* out of range: no change */

/* From then on the plan's selection does not change. */
void cuda_gemm_settle(CudaGemmPlan *plan);
bool cuda_gemm_settled(const CudaGemmPlan *plan);

/* A candidate's configuration as text, which tells the plan's candidates apart and is the same
 * wherever library version, GPU and shape are the same. */
void cuda_gemm_name(const CudaGemm *g, const CudaGemmPlan *plan, int candidate,
                    char name[CUDA_GEMM_NAME]);

/* Selects the algorithm that `like`, a plan of nearly the same shape, has selected, where the
 * library accepts it for this shape and within this workspace; otherwise the selection stays. */
void cuda_gemm_adopt(const CudaGemm *g, CudaGemmPlan *plan, const CudaGemmPlan *like);

#endif
