/* Row-major products over a cuBLASLt that computes in the host's memory exactly what its interface
 * says: column-major operands, leading dimensions, alpha and beta. So the order of operands,
 * transposition, strides and types are tested against a plain row-major loop without a GPU. */
#include "scratch.h"

#include <math.h>

#include "../../runtime/cuda/gemm.h"

/* ---- a cuBLASLt of the test's own ---- */

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

static cublasStatus_t drop(void *object) {
    free(object);
    lt.live--;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t lt_desc_destroy(cublasLtMatmulDesc_t d) {
    return drop(d);
}

static cublasStatus_t lt_layout_destroy(cublasLtMatrixLayout_t l) {
    return drop(l);
}

static cublasStatus_t lt_preference_destroy(cublasLtMatmulPreference_t p) {
    return drop(p);
}

static cublasStatus_t lt_destroy(cublasLtHandle_t h) {
    return drop(h);
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

static float bf16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t float_to_bf16(float f) { /* to nearest, ties to even; no NaN here */
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Element (i, j) of a column-major matrix. */
static float load(const void *at, const struct cublasLtMatrixLayoutOpaque *l, int64_t i,
                  int64_t j) {
    assert_true(i < l->rows && j < l->columns);
    int64_t e = i + j * l->ld;
    return l->type == CUDA_R_32F ? ((const float *)at)[e]
                                 : bf16_to_float(((const uint16_t *)at)[e]);
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
    assert_true(h && lc != ld && !stream);
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
                    ((uint16_t *)to)[i + j * ld->ld] = float_to_bf16(r);
            }
    }
    return CUBLAS_STATUS_SUCCESS;
}

static const char *lt_text(cublasStatus_t status) {
    return status == CUBLAS_STATUS_ALLOC_FAILED ? "allocation failed" : "not supported";
}

static const CudaApi api = {.cublaslt_version = 130100,
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

static CudaGemm *gemm;

static int set_up(void **state) {
    (void)state;
    memset(&lt, 0, sizeof lt);
    PeftError err = {0};
    return cuda_gemm_open(&gemm, &api, &err) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    cuda_gemm_close(gemm);
    return lt.live == 0 ? 0 : -1;
}

/* ---- the tests ---- */

enum { ELEMENTS = 256 };

static _Alignas(256) unsigned char buffer[5][ELEMENTS * 4];
static _Alignas(256) unsigned char scratch_memory[4096];

static CUdeviceptr address(const void *p) {
    return (uintptr_t)p;
}

/* Small integers: products and sums are exact in fp32, and small ones in bf16. */
static float value_of(int which, int64_t e) {
    return (float)((e * 7 + which * 3) % 5 - 2);
}

static void store(int which, CudaGemmType type, int64_t e, float x) {
    if (type == CUDA_GEMM_F32)
        ((float *)buffer[which])[e] = x;
    else
        ((uint16_t *)buffer[which])[e] = float_to_bf16(x);
}

static float stored(int which, CudaGemmType type, int64_t e) {
    return type == CUDA_GEMM_F32 ? ((float *)buffer[which])[e]
                                 : bf16_to_float(((uint16_t *)buffer[which])[e]);
}

static CudaMatmul product_of(int64_t m, int64_t n, int64_t k) {
    return (CudaMatmul){.m = m,
                        .n = n,
                        .k = k,
                        .a = address(buffer[0]),
                        .b = address(buffer[1]),
                        .c = address(buffer[2])};
}

/* Runs a product and compares all of C's buffer, the gaps between rows too. */
static void check(CudaMatmul x) {
    int64_t lda = x.lda ? x.lda : x.trans_a ? x.m : x.k, ldc = x.ldc ? x.ldc : x.n;
    int64_t ldb = x.ldb ? x.ldb : x.trans_b ? x.k : x.n;
    for (int64_t e = 0; e < ELEMENTS; e++) {
        store(0, x.in, e, value_of(0, e));
        store(1, x.in, e, value_of(1, e));
        for (int which = 2; which < 5; which++) store(which, x.out, e, value_of(which, e));
    }
    PeftError err = {0};
    if (!cuda_gemm_run(gemm, &x, NULL, &err)) fail_msg("%s", err.msg);
    for (int64_t e = 0; e < ELEMENTS; e++) {
        int64_t i = e / ldc, j = e % ldc;
        float expected = value_of(2, e);
        if (i < x.m && j < x.n) {
            if (x.addend == address(buffer[4])) expected = value_of(4, e);
            if (!x.addend) expected = 0;
            if (x.bias) expected += value_of(3, j);
            float scale = x.scale != 0 ? x.scale : 1;
            for (int64_t t = 0; t < x.k; t++)
                expected += scale * value_of(0, x.trans_a ? t * lda + i : i * lda + t) *
                            value_of(1, x.trans_b ? j * ldb + t : t * ldb + j);
        }
        if (!(stored(2, x.out, e) == expected))
            fail_msg("C[%d, %d]: %g, expected %g (trans %d %d)", (int)i, (int)j,
                     (double)stored(2, x.out, e), (double)expected, x.trans_a, x.trans_b);
    }
}

static void test_row_major(void **state) {
    (void)state;
    for (int bits = 0; bits < 32; bits++) {
        CudaMatmul x = product_of(3, 5, 7);
        x.trans_a = bits & 1;
        x.trans_b = bits & 2;
        if (bits & 4) x.addend = bits & 1 ? address(buffer[4]) : x.c;
        if (bits & 2) x.scale = 2;
        if (bits & 8) x.bias = address(buffer[3]);
        if (bits & 8) x.lda = 11, x.ldb = 9, x.ldc = 8;
        x.in = bits & 16 ? CUDA_GEMM_BF16 : CUDA_GEMM_F32;
        check(x);
        if (bits & 16) {
            x.out = CUDA_GEMM_BF16;
            check(x);
        }
    }
    check(product_of(1, 1, 1));
    check(product_of(16, 1, 3));
    check(product_of(1, 16, 3));
    /* a classifier's two classes, and its gradient */
    for (int bits = 0; bits < 4; bits++) {
        CudaMatmul x = product_of(6, bits & 1 ? 2 : 9, bits & 1 ? 9 : 2);
        x.trans_b = bits & 1;
        x.addend = x.c;
        x.in = CUDA_GEMM_BF16;
        x.out = bits & 2 ? CUDA_GEMM_BF16 : CUDA_GEMM_F32;
        check(x);
    }
}

/* Three products in one launch: one A or three, each operand at distances of its own. */
static void test_batches(void **state) {
    (void)state;
    enum { M = 3, N = 4, K = 5 };
    for (int bits = 0; bits < 16; bits++) {
        CudaMatmul x = product_of(M, N, K);
        PeftError err = {0};
        x.batch = 3;
        x.stride_a = bits & 1 ? 0 : M * K + 1;
        x.stride_b = K * N + 12;
        x.stride_c = M * N + 8;
        x.stride_addend = bits & 4 ? M * N + 4 : x.stride_c;
        x.stride_bias = N + 2;
        x.trans_b = bits & 8;
        if (bits & 2) x.bias = address(buffer[3]);
        x.addend = bits & 4 ? address(buffer[4]) : x.c;
        for (int64_t e = 0; e < ELEMENTS; e++)
            for (int which = 0; which < 5; which++)
                store(which, CUDA_GEMM_F32, e, value_of(which, e));
        if (!cuda_gemm_run(gemm, &x, NULL, &err)) fail_msg("%s", err.msg);
        for (int64_t e = 0; e < ELEMENTS; e++) {
            int64_t b = e / x.stride_c, i = e % x.stride_c / N, j = e % x.stride_c % N;
            float expected = value_of(2, e);
            if (b < 3 && i < M) {
                if (bits & 4) expected = value_of(4, b * x.stride_addend + i * N + j);
                if (x.bias) expected += value_of(3, b * x.stride_bias + j);
                for (int64_t t = 0; t < K; t++)
                    expected += value_of(0, b * x.stride_a + i * K + t) *
                                value_of(1, b * x.stride_b + (x.trans_b ? j * K + t : t * N + j));
            }
            assert_true(stored(2, CUDA_GEMM_F32, e) == expected);
        }
        const CudaGemmPlan *plan = cuda_gemm_plan(gemm, &x, &err);
        x.stride_c += 4; /* distances are no part of a shape, their number is */
        assert_ptr_equal(cuda_gemm_plan(gemm, &x, &err), plan);
        x.batch = 2;
        assert_ptr_not_equal(cuda_gemm_plan(gemm, &x, &err), plan);
    }
}

static void test_result_is_not_read(void **state) {
    (void)state;
    CudaMatmul x = product_of(2, 2, 2);
    for (int64_t e = 0; e < 4; e++) {
        store(0, CUDA_GEMM_F32, e, 1);
        store(1, CUDA_GEMM_F32, e, 1);
        store(2, CUDA_GEMM_F32, e, NAN);
    }
    PeftError err = {0};
    assert_true(cuda_gemm_run(gemm, &x, NULL, &err));
    for (int64_t e = 0; e < 4; e++) assert_true(stored(2, CUDA_GEMM_F32, e) == 2);
}

static void test_plans_are_kept(void **state) {
    (void)state;
    PeftError err = {0};
    CudaMatmul base = product_of(4, 4, 4);
    CudaGemmPlan *plan = cuda_gemm_plan(gemm, &base, &err);
    assert_non_null(plan);
    CudaMatmul same = base;
    same.ldc = 4; /* what 0 means */
    same.addend = same.c;
    same.scale = 3;
    same.c = 0;
    assert_ptr_equal(cuda_gemm_plan(gemm, &same, &err), plan);
    assert_int_equal(lt.heuristics, 1);
    CudaMatmul other[8];
    for (int i = 0; i < 8; i++) other[i] = base;
    other[0].m = 5;
    other[1].n = 3;
    other[2].k = 3;
    other[3].trans_a = true;
    other[4].trans_b = true;
    other[5].in = CUDA_GEMM_BF16;
    other[6].ldc = 6;
    other[7].workspace_bytes = 1024;
    for (int i = 0; i < 8; i++) assert_ptr_not_equal(cuda_gemm_plan(gemm, &other[i], &err), plan);
    for (int64_t n = 1; n <= 2000; n++) {
        CudaMatmul many = product_of(n, 1, 1);
        assert_non_null(cuda_gemm_plan(gemm, &many, &err));
    }
    assert_int_equal(lt.heuristics, 2009);
    assert_ptr_equal(cuda_gemm_plan(gemm, &base, &err), plan);
}

static void test_selection(void **state) {
    (void)state;
    PeftError err = {0};
    CudaMatmul x = product_of(2, 3, 4);
    CudaGemmPlan *plan = cuda_gemm_plan(gemm, &x, &err);
    assert_int_equal(cuda_gemm_shape(plan)->ldb, 3);
    assert_int_equal(cuda_gemm_candidates(plan), 3); /* one of the four was not usable */
    assert_int_equal(cuda_gemm_selected(plan), 0);
    check(x);
    assert_int_equal(lt.algorithm, 10);
    cuda_gemm_select(plan, 1);
    check(x);
    assert_int_equal(lt.algorithm, 12);
    cuda_gemm_select(plan, 3);
    cuda_gemm_select(plan, -1);
    assert_int_equal(cuda_gemm_selected(plan), 1);
    cuda_gemm_settle(plan);
    assert_true(cuda_gemm_settled(plan));
    cuda_gemm_select(plan, 2);
    assert_int_equal(cuda_gemm_selected(plan), 1);
}

static void test_names(void **state) {
    (void)state;
    PeftError err = {0};
    CudaMatmul x = product_of(2, 3, 4);
    const CudaGemmPlan *plan = cuda_gemm_plan(gemm, &x, &err);
    char name[3][CUDA_GEMM_NAME];
    for (int i = 0; i < 3; i++) cuda_gemm_name(gemm, plan, i, name[i]);
    assert_string_equal(name[0], "algo 0 tile a split 2 reduce 3 swizzle 4 variant 5 stages 0 "
                                 "inner 7 cluster 8");
    assert_string_equal(name[1], "algo 0 tile c split 2 reduce 3 swizzle 4 variant 5 stages 0 "
                                 "inner 7 cluster 8");
    assert_string_equal(name[2], "algo 0 tile c split 2 reduce 3 swizzle 4 variant 5 stages 0 "
                                 "inner 7 cluster 8 #2");
}

/* Another size takes an algorithm over, with the workspace that it needs there, or keeps its own.
 */
static void test_adoption(void **state) {
    (void)state;
    PeftError err = {0};
    CudaMatmul x = product_of(5, 3, 4), round = product_of(8, 3, 4);
    x.workspace = round.workspace = address(scratch_memory);
    x.workspace_bytes = round.workspace_bytes = 1024;
    CudaGemmPlan *plan = cuda_gemm_plan(gemm, &x, &err), *like = cuda_gemm_plan(gemm, &round, &err);
    cuda_gemm_select(like, 2);
    lt.check = CUBLAS_STATUS_NOT_SUPPORTED;
    cuda_gemm_adopt(gemm, plan, like);
    assert_int_equal(cuda_gemm_selected(plan), 0);
    lt.check = CUBLAS_STATUS_SUCCESS;
    lt.check_workspace = 1024; /* does not fit wherever it begins */
    cuda_gemm_adopt(gemm, plan, like);
    assert_int_equal(cuda_gemm_selected(plan), 0);
    cuda_gemm_adopt(gemm, like, like);
    assert_int_equal(cuda_gemm_selected(like), 2);
    lt.check_workspace = 512;
    cuda_gemm_adopt(gemm, plan, like);
    assert_int_equal(cuda_gemm_selected(plan), -1);
    check(x);
    assert_int_equal(lt.algorithm, 13);
    assert_int_equal(lt.workspace_bytes, 512);
    cuda_gemm_settle(plan);
    cuda_gemm_select(like, 0);
    cuda_gemm_adopt(gemm, plan, like);
    check(x);
    assert_int_equal(lt.algorithm, 13);
}

/* Wherever the workspace begins, the library gets an aligned part that lies within it. */
static void test_workspace(void **state) {
    (void)state;
    for (size_t bytes = 0; bytes < 2048; bytes += 101)
        for (size_t start = 0; start < 512; start += 64) {
            CudaMatmul x = product_of(2, 2, 2);
            x.workspace = address(scratch_memory + start);
            x.workspace_bytes = bytes;
            check(x);
            if (lt.workspace_bytes == 0) continue;
            assert_int_equal(lt.workspace % 256, 0);
            assert_true(lt.workspace >= x.workspace);
            assert_true(lt.workspace + lt.workspace_bytes <= x.workspace + bytes);
        }
    CudaMatmul x = product_of(2, 2, 2);
    x.workspace_bytes = 1000;
    PeftError err = {0};
    assert_false(cuda_gemm_run(gemm, &x, NULL, &err));
    assert_message(&err, "1000 bytes of workspace", NULL);
}

static void assert_run_fails(CudaMatmul x, const char *text) {
    PeftError err = {0};
    assert_false(cuda_gemm_run(gemm, &x, NULL, &err));
    assert_message(&err, text, NULL);
}

static void test_refused(void **state) {
    (void)state;
    assert_run_fails(product_of(0, 2, 2), "m = 0");
    assert_run_fails(product_of(2, -1, 2), "n = -1");
    assert_run_fails(product_of(2, 2, (int64_t)1 << 31), "k = 2147483648");
    CudaMatmul x = product_of(4, 4, 8);
    x.lda = 7;
    assert_run_fails(x, "row strides 7, 4, 4: expected at least 8, 4, 4");
    x.trans_a = true; /* [k, m] has rows of 4 */
    check(x);
    x = product_of(4, 4, 8);
    x.out = CUDA_GEMM_BF16;
    assert_run_fails(x, "expected an fp32 result");
    x = product_of(4, 4, 8);
    x.b += 8;
    assert_run_fails(x, "expected multiples of 16");
}

static void test_library_failures(void **state) {
    (void)state;
    PeftError err = {0};
    CudaMatmul x = product_of(4, 6, 8);
    x.trans_b = true;
    x.in = CUDA_GEMM_BF16;
    lt.answer = CUBLAS_STATUS_NOT_SUPPORTED;
    int live = lt.live;
    assert_null(cuda_gemm_plan(gemm, &x, &err));
    assert_message(&err, "cuBLASLt 13.1", "no algorithm for C[4, 6] = A B^T, k = 8, bf16 to fp32",
                   "not supported", NULL);
    assert_int_equal(lt.live, live);
    lt.answer = CUBLAS_STATUS_SUCCESS;
    lt.launch = CUBLAS_STATUS_ALLOC_FAILED;
    err = (PeftError){0};
    assert_false(cuda_gemm_run(gemm, &x, NULL, &err));
    assert_message(&err, "launch for C[4, 6]", "allocation failed", NULL);
    assert_int_equal(err.code, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_row_major, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_batches, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_result_is_not_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_plans_are_kept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_selection, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_adoption, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_workspace, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_library_failures, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
