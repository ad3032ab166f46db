/* A cuBLASLt that computes in the host's memory exactly what its interface says: column-major
 * operands, leading dimensions, batches, alpha and beta. */
#ifndef PEFT_FAKE_CUBLASLT_H
#define PEFT_FAKE_CUBLASLT_H

#include "scratch.h"

#include "bf16.h"

#include "../../runtime/cuda/gemm.h"

struct cublasLtContext {
    int dummy;
};
struct cublasLtMatmulDescOpaque {
    int32_t op[2]; /* of the first and the second operand */
    uint32_t epilogue;
    const void *bias;
    int64_t bias_stride;
};
struct cublasLtMatrixLayoutOpaque {
    cudaDataType type;
    int64_t rows, columns, ld, stride;
    int32_t batch; /* 0: not set */
};
struct cublasLtMatmulPreferenceOpaque {
    uint64_t workspace;
    uint32_t reduction, align[4];
};

static struct {
    int live;           /* objects made and not destroyed */
    int heuristics;     /* times asked */
    int products;       /* computed, each of a batch */
    uint64_t algorithm; /* of the last product */
    CUdeviceptr workspace;
    size_t workspace_bytes;
    cublasStatus_t answer; /* of the heuristic */
    cublasStatus_t launch, check;
    size_t check_workspace; /* what an algorithm that is checked asks for */
} lt;

static cublasStatus_t lt_create(cublasLtHandle_t *h) {
    *h = calloc(1, sizeof **h);
    lt.live++;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_desc_create(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                     cudaDataType scale) {
    assert_int_equal(compute, 68); /* CUBLAS_COMPUTE_32F: neither TF32 nor bf16 inside */
    assert_int_equal(scale, CUDA_R_32F);
    *d = calloc(1, sizeof **d);
    lt.live++;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_desc_set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t which,
                                  const void *value, size_t size) {
    bool wide = which >= CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    void *to = which == CUBLASLT_MATMUL_DESC_EPILOGUE            ? (void *)&d->epilogue
               : which == CUBLASLT_MATMUL_DESC_BIAS_POINTER      ? (void *)&d->bias
               : which == CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE ? (void *)&d->bias_stride
                                                                 : &d->op[which - 3];
    assert_int_equal(size, wide ? 8 : 4);
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_layout_create(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows,
                                       uint64_t columns, int64_t ld) {
    *l = calloc(1, sizeof **l);
    **l = (struct cublasLtMatrixLayoutOpaque){
        .type = type, .rows = (int64_t)rows, .columns = (int64_t)columns, .ld = ld};
    assert_true(ld >= (int64_t)rows);
    lt.live++;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_layout_set(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t which,
                                    const void *value, size_t size) {
    bool count = which == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
    assert_true(count || which == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
    assert_int_equal(size, count ? sizeof l->batch : sizeof l->stride);
    memcpy(count ? (void *)&l->batch : (void *)&l->stride, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_preference_create(cublasLtMatmulPreference_t *p) {
    *p = calloc(1, sizeof **p);
    lt.live++;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_preference_set(cublasLtMatmulPreference_t p,
                                        cublasLtMatmulPreferenceAttributes_t which,
                                        const void *value, size_t size) {
    switch (which) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        assert_int_equal(size, 8);
        memcpy(&p->workspace, value, size);
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        assert_int_equal(size, 4);
        memcpy(&p->reduction, value, size);
        break;
    default:
        assert_true(which >= 5 && which <= 8);
        assert_int_equal(size, 4);
        memcpy(&p->align[which - 5], value, size);
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_drop(void *object) {
    free(object);
    lt.live--;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_desc_destroy(cublasLtMatmulDesc_t d) {
    return lt_drop(d);
}

static cublasStatus_t lt_layout_destroy(cublasLtMatrixLayout_t l) {
    return lt_drop(l);
}

static cublasStatus_t lt_preference_destroy(cublasLtMatmulPreference_t p) {
    return lt_drop(p);
}

static cublasStatus_t lt_destroy(cublasLtHandle_t h) {
    return lt_drop(h);
}

/* Four algorithms, 10 to 13, of which the second does not run. */
static cublasStatus_t lt_heuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                                   cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                   cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                   cublasLtMatmulPreference_t p, int requested,
                                   cublasLtMatmulHeuristicResult_t *results, int *found) {
    assert_true(h && desc && a && b && c && d && c->ld == d->ld && c->batch == d->batch);
    assert_int_equal(requested, CUDA_GEMM_CANDIDATES);
    assert_int_equal(p->reduction, 2); /* COMPUTE_TYPE: partial sums stay fp32 */
    for (int i = 0; i < 4; i++) assert_int_equal(p->align[i], CUDA_GEMM_ALIGN);
    lt.heuristics++;
    *found = 0;
    if (lt.answer != CUBLAS_STATUS_SUCCESS) return lt.answer;
    *found = 4;
    for (int i = 0; i < 4; i++) {
        results[i] = (cublasLtMatmulHeuristicResult_t){.algo.data = {10 + (uint64_t)i}};
        results[i].workspaceSize = p->workspace / 2;
        results[i].state = i == 1 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_check(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                               cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                               cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                               const cublasLtMatmulAlgo_t *algo,
                               cublasLtMatmulHeuristicResult_t *result) {
    assert_true(h && desc && a && b && c && d && c->ld == d->ld && c->batch == d->batch);
    *result = (cublasLtMatmulHeuristicResult_t){.algo = *algo, .state = lt.check};
    result->workspaceSize = lt.check_workspace;
    return CUBLAS_STATUS_SUCCESS;
}

/* The algorithms 12 and 13 have the same attributes; attribute 6 is one that it does not know. */
static cublasStatus_t lt_attribute(const cublasLtMatmulAlgo_t *algo,
                                   cublasLtMatmulAlgoConfigAttributes_t which, void *value,
                                   size_t size, size_t *written) {
    assert_int_equal(size, which >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID ? 2 : 4);
    if (which == CUBLASLT_ALGO_CONFIG_STAGES_ID) return CUBLAS_STATUS_NOT_SUPPORTED;
    uint32_t tile = algo->data[0] < 13 ? (uint32_t)algo->data[0] : 12;
    uint32_t x = which == CUBLASLT_ALGO_CONFIG_TILE_ID ? tile : which;
    memcpy(value, &x, size);
    *written = size;
    return CUBLAS_STATUS_SUCCESS;
}

/* Element (i, j) of a column-major matrix. */
static float load(const void *at, const struct cublasLtMatrixLayoutOpaque *l, int64_t i,
                  int64_t j) {
    assert_true(i < l->rows && j < l->columns);
    int64_t e = i + j * l->ld;
    return l->type == CUDA_R_32F ? ((const float *)at)[e] : from_bf16(((const uint16_t *)at)[e]);
}

static void *of_batch(const void *at, const struct cublasLtMatrixLayoutOpaque *l, int n) {
    return (char *)at + n * l->stride * (l->type == CUDA_R_32F ? 4 : 2);
}

static cublasStatus_t lt_matmul(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, const void *alpha,
                                const void *a, cublasLtMatrixLayout_t la, const void *b,
                                cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                                cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                                const cublasLtMatmulAlgo_t *algo, void *workspace,
                                size_t workspace_bytes, CUstream stream) {
    (void)stream;
    assert_true(h && lc != ld);
    lt.products += ld->batch ? ld->batch : 1;
    assert_int_equal(desc->epilogue, desc->bias ? CUBLASLT_EPILOGUE_BIAS : 0);
    struct cublasLtMatrixLayoutOpaque vector = {
        .type = ld->type, .rows = ld->rows, .columns = 1, .ld = ld->rows};
    lt.algorithm = algo->data[0];
    lt.workspace = (uintptr_t)workspace;
    lt.workspace_bytes = workspace_bytes;
    if (lt.launch != CUBLAS_STATUS_SUCCESS) return lt.launch;
    int64_t k = desc->op[0] == CUBLAS_OP_N ? la->columns : la->rows;
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    assert_true(la->batch == ld->batch && lb->batch == ld->batch && lc->batch == ld->batch);
    for (int n = 0; n < (ld->batch ? ld->batch : 1); n++) {
        const void *x = of_batch(a, la, n), *y = of_batch(b, lb, n), *z = of_batch(c, lc, n);
        const void *bias = desc->bias ? (const char *)desc->bias +
                                            n * desc->bias_stride * (ld->type == CUDA_R_32F ? 4 : 2)
                                      : NULL;
        void *to = of_batch(d, ld, n);
        for (int64_t j = 0; j < ld->columns; j++)
            for (int64_t i = 0; i < ld->rows; i++) {
                float sum = 0;
                for (int64_t t = 0; t < k; t++)
                    sum += (desc->op[0] ? load(x, la, t, i) : load(x, la, i, t)) *
                           (desc->op[1] ? load(y, lb, j, t) : load(y, lb, t, j));
                float r = scale * sum + (keep == 0 ? 0 : keep * load(z, lc, i, j));
                if (bias) r += load(bias, &vector, i, 0);
                if (ld->type == CUDA_R_32F)
                    ((float *)to)[i + j * ld->ld] = r;
                else
                    ((uint16_t *)to)[i + j * ld->ld] = to_bf16(r);
            }
    }
    return CUBLAS_STATUS_SUCCESS;
}

static const char *lt_text(cublasStatus_t status) {
    return status == CUBLAS_STATUS_ALLOC_FAILED ? "allocation failed" : "not supported";
}

static const CudaApi lt_api = {.cublaslt_version = 130100,
                               .cublasLtGetStatusString = lt_text,
                               .cublasLtCreate = lt_create,
                               .cublasLtDestroy = lt_destroy,
                               .cublasLtMatmulDescCreate = lt_desc_create,
                               .cublasLtMatmulDescDestroy = lt_desc_destroy,
                               .cublasLtMatmulDescSetAttribute = lt_desc_set,
                               .cublasLtMatrixLayoutCreate = lt_layout_create,
                               .cublasLtMatrixLayoutDestroy = lt_layout_destroy,
                               .cublasLtMatrixLayoutSetAttribute = lt_layout_set,
                               .cublasLtMatmulPreferenceCreate = lt_preference_create,
                               .cublasLtMatmulPreferenceDestroy = lt_preference_destroy,
                               .cublasLtMatmulPreferenceSetAttribute = lt_preference_set,
                               .cublasLtMatmulAlgoGetHeuristic = lt_heuristic,
                               .cublasLtMatmulAlgoCheck = lt_check,
                               .cublasLtMatmulAlgoConfigGetAttribute = lt_attribute,
                               .cublasLtMatmul = lt_matmul};

#endif
