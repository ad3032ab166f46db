/* Plans and launches of cuBLASLt products, and the one place where row-major becomes column-major.
 *
 * cuBLASLt stores by columns. A row-major X[r, c] with row stride ld, read by columns, is the
 * matrix X^T [c, r] with leading dimension ld, so C = op(A) op(B) is computed as the product that
 * leaves C^T in C's memory:
 *     C^T[n, m] = op(B)^T[n, k] op(A)^T[k, m].
 * cuBLASLt's first operand is B's memory and its second A's. Each is already transposed by being
 * read by columns: op(B)^T is that memory untransposed (OP_N) when op(B) = B and transposed (OP_T)
 * when trans_b, and the same for A. Layouts therefore have the stored matrix's columns as rows. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 256, WORKSPACE_ALIGN = 256 /* which cuBLASLt demands */ };

struct CudaGemmPlan {
    CudaMatmul shape;   /* with leading dimensions filled in; no buffers */
    CudaGemmPlan *next; /* of the same bucket */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t first, second, result, added; /* memory of B, A, C, the addend */
    cublasLtMatmulHeuristicResult_t candidate[CUDA_GEMM_CANDIDATES];
    int candidates, selected;             /* selected < 0: not one of them */
    cublasLtMatmulHeuristicResult_t used; /* by products */
    bool settled;
};

struct CudaGemm {
    const CudaApi *api;
    cublasLtHandle_t handle;
    CudaGemmPlan *bucket[BUCKETS];
};

static bool blas_ok(const CudaApi *api, cublasStatus_t status, const char *what, PeftError *err) {
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    if (err && !err->msg[0] && status == CUBLAS_STATUS_ALLOC_FAILED) err->code = 3;
    return peft_fail(err, "cuBLASLt %zu.%zu: %s: %s", api->cublaslt_version / 10000,
                     api->cublaslt_version % 10000 / 100, what,
                     api->cublasLtGetStatusString(status));
}

/* A failure of one product: names its shape. */
static bool product_ok(const CudaApi *api, cublasStatus_t status, const char *what,
                       const CudaMatmul *s, PeftError *err) {
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    char text[256];
    int n =
        snprintf(text, sizeof text, "%s for C[%lld, %lld] = A%s B%s, k = %lld, %s to %s", what,
                 (long long)s->m, (long long)s->n, s->trans_a ? "^T" : "", s->trans_b ? "^T" : "",
                 (long long)s->k, s->in == CUDA_GEMM_F32 ? "fp32" : "bf16",
                 s->out == CUDA_GEMM_F32 ? "fp32" : "bf16");
    if (s->batch > 1) snprintf(text + n, sizeof text - (size_t)n, ", a batch of %d", s->batch);
    return blas_ok(api, status, text, err);
}

/* ---- opening ---- */

bool cuda_gemm_open(CudaGemm **out, const CudaApi *api, PeftError *err) {
    CudaGemm *g = *out = peft_zalloc(1, sizeof *g, err);
    if (!g) return false;
    g->api = api;
    if (blas_ok(api, api->cublasLtCreate(&g->handle), "cublasLtCreate", err)) return true;
    free(g);
    *out = NULL;
    return false;
}

static void drop_plan(const CudaApi *api, CudaGemmPlan *p) {
    if (p->desc) api->cublasLtMatmulDescDestroy(p->desc);
    if (p->first) api->cublasLtMatrixLayoutDestroy(p->first);
    if (p->second) api->cublasLtMatrixLayoutDestroy(p->second);
    if (p->result) api->cublasLtMatrixLayoutDestroy(p->result);
    if (p->added) api->cublasLtMatrixLayoutDestroy(p->added);
    free(p);
}

void cuda_gemm_close(CudaGemm *g) {
    if (!g) return;
    for (int i = 0; i < BUCKETS; i++)
        for (CudaGemmPlan *p = g->bucket[i], *next; p; p = next) {
            next = p->next;
            drop_plan(g->api, p);
        }
    g->api->cublasLtDestroy(g->handle);
    free(g);
}

/* ---- planning ---- */

static int64_t stored_columns(bool transposed, int64_t rows, int64_t columns) {
    return transposed ? rows : columns;
}

/* Fills in leading dimensions; false on a shape that has no meaning. */
static bool normalise(CudaMatmul *s, PeftError *err) {
    int64_t most = INT32_MAX;
    if (s->m < 1 || s->n < 1 || s->k < 1 || s->m > most || s->n > most || s->k > most)
        return peft_fail(err, "GPU product of m = %lld, n = %lld, k = %lld: expected 1 to %lld",
                         (long long)s->m, (long long)s->n, (long long)s->k, (long long)most);
    if (s->in == CUDA_GEMM_F32 && s->out != CUDA_GEMM_F32)
        return peft_fail(err, "GPU product of fp32 operands: expected an fp32 result, found bf16");
    int64_t a = stored_columns(s->trans_a, s->m, s->k), b = stored_columns(s->trans_b, s->k, s->n);
    if (!s->lda) s->lda = a;
    if (!s->ldb) s->ldb = b;
    if (!s->ldc) s->ldc = s->n;
    if (!s->batch) s->batch = 1;
    if (s->lda < a || s->ldb < b || s->ldc < s->n)
        return peft_fail(err,
                         "GPU product with row strides %lld, %lld, %lld: expected at least %lld, "
                         "%lld, %lld",
                         (long long)s->lda, (long long)s->ldb, (long long)s->ldc, (long long)a,
                         (long long)b, (long long)s->n);
    return true;
}

static bool same_shape(const CudaMatmul *x, const CudaMatmul *y) {
    return x->m == y->m && x->n == y->n && x->k == y->k && x->lda == y->lda && x->ldb == y->ldb &&
           x->ldc == y->ldc && x->trans_a == y->trans_a && x->trans_b == y->trans_b &&
           x->in == y->in && x->out == y->out && x->workspace_bytes == y->workspace_bytes &&
           !x->bias == !y->bias && x->batch == y->batch && !x->stride_a == !y->stride_a;
}

static cudaDataType data_type(CudaGemmType t) {
    return t == CUDA_GEMM_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static bool set_desc(const CudaApi *api, cublasLtMatmulDesc_t desc,
                     cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size,
                     PeftError *err) {
    return blas_ok(api, api->cublasLtMatmulDescSetAttribute(desc, attribute, value, size),
                   "cublasLtMatmulDescSetAttribute", err);
}

static bool set_layout(const CudaApi *api, cublasLtMatrixLayout_t layout,
                       cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t size,
                       PeftError *err) {
    return blas_ok(api, api->cublasLtMatrixLayoutSetAttribute(layout, attribute, value, size),
                   "cublasLtMatrixLayoutSetAttribute", err);
}

/* Of a row-major matrix stored as rows x columns: the column-major view of the same memory. */
static bool make_layout(const CudaApi *api, cublasLtMatrixLayout_t *layout, CudaGemmType type,
                        int64_t rows, int64_t columns, int64_t ld, int32_t batch, PeftError *err) {
    return blas_ok(api,
                   api->cublasLtMatrixLayoutCreate(layout, data_type(type), (uint64_t)columns,
                                                   (uint64_t)rows, ld),
                   "cublasLtMatrixLayoutCreate", err) &&
           (batch == 1 || set_layout(api, *layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                     sizeof batch, err));
}

/* Strides are set for each launch: they are not part of a shape. */
static bool set_strides(const CudaApi *api, const CudaGemmPlan *p, const CudaMatmul *x,
                        PeftError *err) {
    const struct {
        cublasLtMatrixLayout_t layout;
        int64_t stride;
    } set[] = {{p->first, x->stride_b},
               {p->second, x->stride_a},
               {p->result, x->stride_c},
               {p->added, x->addend ? x->stride_addend : x->stride_c}};
    bool ok = true;
    if (p->shape.batch == 1) return true;
    for (size_t i = 0; ok && i < sizeof set / sizeof *set; i++)
        ok = set_layout(api, set[i].layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                        &set[i].stride, sizeof set[i].stride, err);
    return ok && (!x->bias || set_desc(api, p->desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE,
                                       &x->stride_bias, sizeof x->stride_bias, err));
}

/* cuBLASLt's rows are our columns: a bias has a value for each. */
static bool set_epilogue(const CudaApi *api, CudaGemmPlan *p, PeftError *err) {
    uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    return !p->shape.bias ||
           set_desc(api, p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue, err);
}

static bool set_bias(const CudaApi *api, const CudaGemmPlan *p, CUdeviceptr bias, PeftError *err) {
    const void *at = (const void *)(uintptr_t)bias;
    return !bias || set_desc(api, p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at, sizeof at, err);
}

static bool describe(const CudaApi *api, CudaGemmPlan *p, PeftError *err) {
    const CudaMatmul *s = &p->shape;
    int32_t op_first = s->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t op_second = s->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    return blas_ok(api, api->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                   "cublasLtMatmulDescCreate", err) &&
           set_desc(api, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first, err) &&
           set_desc(api, p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof op_second, err) &&
           set_epilogue(api, p, err) && set_bias(api, p, p->shape.bias, err) &&
           make_layout(api, &p->first, s->in, s->trans_b ? s->n : s->k,
                       stored_columns(s->trans_b, s->k, s->n), s->ldb, s->batch, err) &&
           make_layout(api, &p->second, s->in, s->trans_a ? s->k : s->m,
                       stored_columns(s->trans_a, s->m, s->k), s->lda, s->batch, err) &&
           make_layout(api, &p->result, s->out, s->m, s->n, s->ldc, s->batch, err) &&
           make_layout(api, &p->added, s->out, s->m, s->n, s->ldc, s->batch, err) &&
           set_strides(api, p, s, err);
}

/* What is left of a workspace that may begin anywhere. */
static size_t usable_workspace(const CudaMatmul *s) {
    return s->workspace_bytes >= WORKSPACE_ALIGN ? s->workspace_bytes - (WORKSPACE_ALIGN - 1) : 0;
}

/* Reductions in the output's type would round partial sums to bf16, so the mask allows the one in
 * fp32; products that are not split need no bit of it. */
static bool set_preferences(const CudaApi *api, cublasLtMatmulPreference_t preference,
                            const CudaMatmul *s, PeftError *err) {
    uint64_t workspace = usable_workspace(s);
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, align = CUDA_GEMM_ALIGN;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t size;
    } set[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
               {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align, sizeof align},
               {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align, sizeof align}};
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof set / sizeof *set; i++)
        ok = blas_ok(api,
                     api->cublasLtMatmulPreferenceSetAttribute(preference, set[i].attribute,
                                                               set[i].value, set[i].size),
                     "cublasLtMatmulPreferenceSetAttribute", err);
    return ok;
}

/* Keeps the usable ones among the heuristic's answers, in its order. */
static bool ask_heuristic(CudaGemm *g, CudaGemmPlan *p, cublasLtMatmulPreference_t preference,
                          PeftError *err) {
    int found = 0;
    cublasStatus_t status = g->api->cublasLtMatmulAlgoGetHeuristic(
        g->handle, p->desc, p->first, p->second, p->added, p->result, preference,
        CUDA_GEMM_CANDIDATES, p->candidate, &found);
    if (status == CUBLAS_STATUS_SUCCESS) {
        for (int i = 0; i < found && i < CUDA_GEMM_CANDIDATES; i++)
            if (p->candidate[i].state == CUBLAS_STATUS_SUCCESS)
                p->candidate[p->candidates++] = p->candidate[i];
        if (p->candidates == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return product_ok(g->api, status, "no algorithm", &p->shape, err);
}

static bool find_candidates(CudaGemm *g, CudaGemmPlan *p, PeftError *err) {
    cublasLtMatmulPreference_t preference;
    if (!blas_ok(g->api, g->api->cublasLtMatmulPreferenceCreate(&preference),
                 "cublasLtMatmulPreferenceCreate", err))
        return false;
    bool ok =
        set_preferences(g->api, preference, &p->shape, err) && ask_heuristic(g, p, preference, err);
    g->api->cublasLtMatmulPreferenceDestroy(preference);
    return ok;
}

static CudaGemmPlan **bucket_of(CudaGemm *g, const CudaMatmul *s) {
    uint64_t h = (uint64_t)s->m * 0x9e3779b97f4a7c15u;
    h = (h ^ (uint64_t)s->n) * 0x9e3779b97f4a7c15u;
    h = (h ^ (uint64_t)s->k) * 0x9e3779b97f4a7c15u;
    return &g->bucket[h >> 56];
}
_Static_assert(BUCKETS == 256, "the bucket is the hash's top byte");

CudaGemmPlan *cuda_gemm_plan(CudaGemm *g, const CudaMatmul *product, PeftError *err) {
    CudaMatmul s = *product;
    if (!normalise(&s, err)) return NULL;
    CudaGemmPlan **bucket = bucket_of(g, &s);
    for (CudaGemmPlan *p = *bucket; p; p = p->next)
        if (same_shape(&p->shape, &s)) return p;
    CudaGemmPlan *p = peft_zalloc(1, sizeof *p, err);
    if (!p) return NULL;
    p->shape = s;
    if (!describe(g->api, p, err) || !find_candidates(g, p, err)) {
        drop_plan(g->api, p);
        return NULL;
    }
    cuda_gemm_select(p, 0);
    p->next = *bucket;
    return *bucket = p;
}

/* ---- the choice among algorithms ---- */

const CudaMatmul *cuda_gemm_shape(const CudaGemmPlan *plan) {
    return &plan->shape;
}

int cuda_gemm_candidates(const CudaGemmPlan *plan) {
    return plan->candidates;
}

int cuda_gemm_selected(const CudaGemmPlan *plan) {
    return plan->selected;
}

void cuda_gemm_select(CudaGemmPlan *plan, int candidate) {
    if (plan->settled || candidate < 0 || candidate >= plan->candidates) return;
    plan->selected = candidate;
    plan->used = plan->candidate[candidate];
}

void cuda_gemm_settle(CudaGemmPlan *plan) {
    plan->settled = true;
}

bool cuda_gemm_settled(const CudaGemmPlan *plan) {
    return plan->settled;
}

/* The library's own attributes of a configuration; one that it does not have counts as 0. */
static void describe_algorithm(const CudaApi *api, const cublasLtMatmulAlgo_t *algo,
                               char text[CUDA_GEMM_NAME]) {
    static const char *const label[] = {"algo",    "tile",   "split", "reduce", "swizzle",
                                        "variant", "stages", "inner", "cluster"};
    size_t at = 0;
    for (int i = CUBLASLT_ALGO_CONFIG_ID; i <= CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID; i++) {
        uint32_t wide = 0;
        uint16_t narrow = 0;
        bool is_narrow = i >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID;
        size_t written, size = is_narrow ? sizeof narrow : sizeof wide;
        if (api->cublasLtMatmulAlgoConfigGetAttribute(algo, (cublasLtMatmulAlgoConfigAttributes_t)i,
                                                      is_narrow ? (void *)&narrow : (void *)&wide,
                                                      size, &written) != CUBLAS_STATUS_SUCCESS)
            wide = narrow = 0;
        int n = snprintf(text + at, CUDA_GEMM_NAME - at, "%s%s %x", i ? " " : "", label[i],
                         is_narrow ? narrow : wide);
        if (n > 0 && (size_t)n < CUDA_GEMM_NAME - at) at += (size_t)n;
    }
}

/* Attributes may not tell all: equal ones are numbered in the heuristic's order. */
void cuda_gemm_name(const CudaGemm *g, const CudaGemmPlan *plan, int candidate,
                    char name[CUDA_GEMM_NAME]) {
    char other[CUDA_GEMM_NAME];
    int twins = 0;
    describe_algorithm(g->api, &plan->candidate[candidate].algo, name);
    for (int i = 0; i < candidate; i++) {
        describe_algorithm(g->api, &plan->candidate[i].algo, other);
        twins += strcmp(name, other) == 0;
    }
    size_t at = strlen(name);
    if (twins) snprintf(name + at, CUDA_GEMM_NAME - at, " #%d", twins + 1);
}

void cuda_gemm_adopt(const CudaGemm *g, CudaGemmPlan *plan, const CudaGemmPlan *like) {
    cublasLtMatmulHeuristicResult_t checked = {.state = CUBLAS_STATUS_NOT_SUPPORTED};
    if (plan->settled || plan == like ||
        g->api->cublasLtMatmulAlgoCheck(g->handle, plan->desc, plan->first, plan->second,
                                        plan->added, plan->result, &like->used.algo,
                                        &checked) != CUBLAS_STATUS_SUCCESS ||
        checked.state != CUBLAS_STATUS_SUCCESS ||
        checked.workspaceSize > usable_workspace(&plan->shape))
        return;
    plan->selected = -1;
    plan->used = (cublasLtMatmulHeuristicResult_t){.algo = like->used.algo,
                                                   .workspaceSize = checked.workspaceSize};
}

/* ---- running ---- */

bool cuda_gemm_run(CudaGemm *g, const CudaMatmul *product, CUstream stream, PeftError *err) {
    const CudaMatmul *x = product;
    if ((x->a | x->b | x->c | x->addend | x->bias) %
        CUDA_GEMM_ALIGN) /* a kernel would fault on it */
        return peft_fail(err,
                         "GPU product of buffers at %#llx, %#llx, %#llx: expected multiples of %d",
                         x->a, x->b, x->c, CUDA_GEMM_ALIGN);
    if (x->workspace_bytes && !x->workspace)
        return peft_fail(err,
                         "GPU product with %zu bytes of workspace: expected its address, "
                         "found 0",
                         x->workspace_bytes);
    const CudaGemmPlan *p = cuda_gemm_plan(g, x, err);
    if (!p || !set_bias(g->api, p, x->bias, err) || !set_strides(g->api, p, x, err)) return false;
    CUdeviceptr workspace =
        (x->workspace + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
    float alpha = x->scale != 0 ? x->scale : 1, beta = x->addend ? 1 : 0;
    CUdeviceptr addend = x->addend ? x->addend : x->c;
    cublasStatus_t status = g->api->cublasLtMatmul(
        g->handle, p->desc, &alpha, (const void *)(uintptr_t)x->b, p->first,
        (const void *)(uintptr_t)x->a, p->second, &beta, (const void *)(uintptr_t)addend, p->added,
        (void *)(uintptr_t)x->c, p->result, &p->used.algo, (void *)(uintptr_t)workspace,
        p->used.workspaceSize, stream);
    return product_ok(g->api, status, "launch", &p->shape, err);
}
