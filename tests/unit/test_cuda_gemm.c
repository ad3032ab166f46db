/* Row-major products over a cuBLASLt without a GPU (fake_cublaslt.h): the order of operands,
 * transposition, strides and types against a plain row-major loop. */
#include "fake_cublaslt.h"

#include <math.h>

static CudaGemm *gemm;

static int set_up(void **state) {
    (void)state;
    memset(&lt, 0, sizeof lt);
    PeftError err = {0};
    return cuda_gemm_open(&gemm, &lt_api, &err) ? 0 : -1;
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
        ((uint16_t *)buffer[which])[e] = to_bf16(x);
}

static float stored(int which, CudaGemmType type, int64_t e) {
    return type == CUDA_GEMM_F32 ? ((float *)buffer[which])[e]
                                 : from_bf16(((uint16_t *)buffer[which])[e]);
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
