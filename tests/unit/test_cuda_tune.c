/* Choosing algorithms by time, over a driver and a cuBLASLt whose clock is the test's: each
 * algorithm takes as long as a table says. Checked: which one is chosen, that only dead memory is
 * written, and that a choice takes effect only when it is stored and then is taken unmeasured. */
#include "fake_cublaslt.h"

#include <math.h>

#include "../../runtime/cuda/tune.h"
#include "../../runtime/cuda/tune_cache.h"

/* ---- a driver and a cuBLASLt with a clock ---- */

struct CUevent_st {
    double us;
};
struct CUgraph_st {
    double us;
};
struct CUgraphExec_st {
    double us;
};

enum { ALGORITHMS = 4 };

static struct {
    int live;   /* objects made and not destroyed */
    double now; /* microseconds */
    bool capturing;
    double captured;         /* duration of what was captured */
    double cost[ALGORITHMS]; /* of one product; < 0: cannot be launched */
    double slow;             /* of the first replays: a clock that is not up yet */
    int replays;
    uint64_t algorithm;    /* of the last product */
    int64_t rows;          /* of the last product: m */
    CudaRange dead, arena; /* what may be written, what may be read */
    cublasStatus_t check;
    CUresult sync; /* what waiting answers */
} fake;

static cublasStatus_t four_algorithms(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                                      cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                      cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                      cublasLtMatmulPreference_t p, int requested,
                                      cublasLtMatmulHeuristicResult_t *results, int *found) {
    (void)h, (void)desc, (void)a, (void)b, (void)c, (void)d, (void)p;
    assert_true(requested >= ALGORITHMS);
    *found = ALGORITHMS;
    for (uint64_t i = 0; i < ALGORITHMS; i++)
        results[i] = (cublasLtMatmulHeuristicResult_t){.algo.data = {i}};
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check(cublasLtHandle_t h, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                            cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                            cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo,
                            cublasLtMatmulHeuristicResult_t *result) {
    (void)h, (void)desc, (void)a, (void)b, (void)c, (void)d;
    *result = (cublasLtMatmulHeuristicResult_t){.algo = *algo};
    return fake.check;
}

static cublasStatus_t attribute_of(const cublasLtMatmulAlgo_t *algo,
                                   cublasLtMatmulAlgoConfigAttributes_t which, void *value,
                                   size_t size, size_t *written) {
    memset(value, 0, size);
    if (which == CUBLASLT_ALGO_CONFIG_ID) memcpy(value, &algo->data[0], size);
    *written = size;
    return CUBLAS_STATUS_SUCCESS;
}

static size_t bytes_of(cublasLtMatrixLayout_t l) {
    int64_t before = l->batch > 1 ? (l->batch - 1) * l->stride : 0; /* the last of a batch */
    return (size_t)(before + l->ld * (int64_t)l->columns) * (l->type == CUDA_R_32F ? 4 : 2);
}

static bool lies_in(CudaRange r, const void *p, size_t bytes) {
    CUdeviceptr at = (uintptr_t)p;
    return at >= r.begin && at + bytes <= r.begin + r.bytes;
}

static bool apart(const void *p, size_t n, const void *q, size_t m) {
    CUdeviceptr a = (uintptr_t)p, b = (uintptr_t)q;
    return a + n <= b || b + m <= a;
}

enum { WORKSPACE = 4096 };

static cublasStatus_t timed_product(cublasLtHandle_t h, cublasLtMatmulDesc_t desc,
                                    const void *alpha, const void *a, cublasLtMatrixLayout_t la,
                                    const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                                    const void *c, cublasLtMatrixLayout_t lc, void *d,
                                    cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo,
                                    void *workspace, size_t workspace_bytes, CUstream stream) {
    (void)desc, (void)alpha, (void)workspace_bytes;
    assert_true(h && !stream);
    fake.algorithm = algo->data[0];
    fake.rows = ld->columns;
    if (fake.dead.bytes) {
        assert_true(lies_in(fake.dead, d, bytes_of(ld)));
        assert_true(lies_in(fake.arena, a, bytes_of(la)));
        assert_true(lies_in(fake.arena, b, bytes_of(lb)));
        assert_true(*(const float *)beta == 0 || lies_in(fake.arena, c, bytes_of(lc)));
        assert_true(apart(d, bytes_of(ld), workspace, WORKSPACE - 255));
    }
    double us = fake.cost[algo->data[0]];
    if (us < 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    *(fake.capturing ? &fake.captured : &fake.now) += us;
    return CUBLAS_STATUS_SUCCESS;
}

static CUresult set_memory(CUdeviceptr at, unsigned char value, size_t n, CUstream stream) {
    (void)value, (void)stream;
    assert_true(lies_in(fake.dead, (const void *)(uintptr_t)at, n));
    assert_false(fake.capturing);
    fake.now += 20;
    return CUDA_SUCCESS;
}

static CUresult begin_capture(CUstream stream, CUstreamCaptureMode mode) {
    (void)stream, (void)mode;
    assert_false(fake.capturing);
    fake.capturing = true;
    fake.captured = 0;
    return CUDA_SUCCESS;
}

static CUresult end_capture(CUstream stream, CUgraph *graph) {
    (void)stream;
    assert_true(fake.capturing);
    fake.capturing = false;
    *graph = calloc(1, sizeof **graph);
    (*graph)->us = fake.captured;
    fake.live++;
    return CUDA_SUCCESS;
}

static CUresult instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    (void)flags;
    *exec = calloc(1, sizeof **exec);
    (*exec)->us = graph->us;
    fake.live++;
    return CUDA_SUCCESS;
}

static CUresult upload(CUgraphExec exec, CUstream stream) {
    (void)exec, (void)stream;
    return CUDA_SUCCESS;
}

static CUresult launch(CUgraphExec exec, CUstream stream) {
    (void)stream;
    fake.now += exec->us + (fake.replays++ < ALGORITHMS ? fake.slow : 0);
    return CUDA_SUCCESS;
}

static CUresult graph_destroy(CUgraph graph) {
    free(graph);
    fake.live--;
    return CUDA_SUCCESS;
}

static CUresult exec_destroy(CUgraphExec exec) {
    free(exec);
    fake.live--;
    return CUDA_SUCCESS;
}

static CUresult event_create(CUevent *event, unsigned flags) {
    assert_int_equal(flags, CU_EVENT_DEFAULT);
    *event = calloc(1, sizeof **event);
    fake.live++;
    return CUDA_SUCCESS;
}

static CUresult event_destroy(CUevent event) {
    free(event);
    fake.live--;
    return CUDA_SUCCESS;
}

static CUresult event_record(CUevent event, CUstream stream) {
    (void)stream;
    event->us = fake.now;
    return CUDA_SUCCESS;
}

static CUresult event_wait(CUevent event) {
    (void)event;
    return fake.sync;
}

static CUresult event_elapsed(float *ms, CUevent from, CUevent to) {
    *ms = (float)((to->us - from->us) / 1000);
    return CUDA_SUCCESS;
}

static CUresult stream_wait(CUstream stream) {
    (void)stream;
    return fake.sync;
}

/* What the fake library does, but for products and the choice among algorithms. */
static const CudaApi *library(void) {
    static CudaApi api;
    api = lt_api;
    api.driver_version = 13000;
    api.cublasLtMatmulAlgoGetHeuristic = four_algorithms;
    api.cublasLtMatmulAlgoCheck = check;
    api.cublasLtMatmulAlgoConfigGetAttribute = attribute_of;
    api.cublasLtMatmul = timed_product;
    api.cuMemsetD8Async = set_memory;
    api.cuStreamBeginCapture = begin_capture;
    api.cuStreamEndCapture = end_capture;
    api.cuStreamSynchronize = stream_wait;
    api.cuGraphInstantiate = instantiate;
    api.cuGraphUpload = upload;
    api.cuGraphLaunch = launch;
    api.cuGraphDestroy = graph_destroy;
    api.cuGraphExecDestroy = exec_destroy;
    api.cuEventCreate = event_create;
    api.cuEventDestroy = event_destroy;
    api.cuEventRecord = event_record;
    api.cuEventSynchronize = event_wait;
    api.cuEventElapsedTime = event_elapsed;
    return &api;
}

/* ---- a process: its library and its tuner ---- */

typedef struct Process {
    CudaGemm *gemm;
    CudaTuner *tuner;
} Process;

static CudaDevice gpu = {.name = "A GPU", .major = 9, .multiprocessors = 132, .l2_bytes = 1 << 16};

static Process start(void) {
    Process p = {0};
    PeftError err = {0};
    if (!cuda_gemm_open(&p.gemm, library(), &err) ||
        !cuda_tuner_open(&p.tuner, library(), &gpu, p.gemm, &err))
        fail_msg("%s", err.msg);
    fake.replays = 0;
    return p;
}

static void stop(Process *p) {
    cuda_tuner_close(p->tuner);
    cuda_gemm_close(p->gemm);
    assert_int_equal(fake.live + lt.live, 0);
}

static int set_up(void **state) {
    (void)state;
    static int n;
    char name[32];
    memset(&fake, 0, sizeof fake);
    snprintf(name, sizeof name, "tune%d", n++);
    setenv("PEFTC_CACHE", scratch_path(name), 1);
    unsetenv("PEFTC_TUNE");
    const double cost[ALGORITHMS] = {9, 5, 7, 12};
    memcpy(fake.cost, cost, sizeof cost);
    fake.arena = (CudaRange){1 << 20, 1 << 20}; /* weights, then temporaries */
    fake.dead = (CudaRange){(1 << 20) + (1 << 19), 1 << 19};
    return 0;
}

/* Twelve layers: the same activations [m, 64], other weights [64, 32], the same result. */
enum { LAYERS = 12 };

static void products(CudaMatmul *x, int64_t m) {
    for (int i = 0; i < LAYERS; i++)
        x[i] = (CudaMatmul){.m = m,
                            .n = 32,
                            .k = 64,
                            .in = CUDA_GEMM_BF16,
                            .out = CUDA_GEMM_BF16,
                            .a = fake.dead.begin + 8192,
                            .b = fake.arena.begin + 4096 * (unsigned)i,
                            .c = fake.dead.begin + 65536,
                            .workspace = fake.dead.begin,
                            .workspace_bytes = WORKSPACE};
}

/* The algorithm that a size runs with after tuning. */
static int tuned(const Process *p, int64_t m) {
    CudaMatmul exact[LAYERS], rounded[LAYERS];
    PeftError err = {0};
    products(exact, m);
    products(rounded, cuda_tune_size(m));
    if (!cuda_tune_products(p->tuner, exact, rounded, LAYERS, fake.dead, NULL, &err))
        fail_msg("%s", err.msg);
    assert_true(cuda_gemm_run(p->gemm, &exact[0], NULL, &err));
    assert_int_equal(fake.rows, m);
    return (int)fake.algorithm;
}

/* ---- the tests ---- */

static void test_fastest(void **state) {
    (void)state;
    const double a[] = {9, 5, 7}, ties[] = {5.09, 5, 4.999}, none[] = {INFINITY, NAN, 0};
    const double some[] = {NAN, INFINITY, 8, -1, 0};
    assert_int_equal(cuda_tune_fastest(a, 3), 1);
    assert_int_equal(cuda_tune_fastest(ties, 3), 0);
    assert_int_equal(cuda_tune_fastest(none, 3), 0);
    assert_int_equal(cuda_tune_fastest(some, 5), 2);
    assert_int_equal(cuda_tune_fastest(a, 0), 0);
}

static void test_sizes(void **state) {
    (void)state;
    const int64_t size[][2] = {{0, 0},     {1, 8},     {8, 8},     {29, 32},
                               {32, 32},   {33, 40},   {64, 64},   {65, 128},
                               {426, 448}, {448, 448}, {449, 512}, {7000, 7040}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        assert_int_equal(cuda_tune_size(size[i][0]), size[i][1]);
}

static void test_fastest_is_selected(void **state) {
    (void)state;
    Process p = start();
    fake.slow = 500; /* the first replay of each candidate tells nothing */
    assert_int_equal(tuned(&p, 448), 1);
    const CudaTuneStats *s = cuda_tuner_stats(p.tuner);
    assert_int_equal(s->measured, 1);
    assert_int_equal(s->stored, 0);
    assert_true(fabs(s->first_us - LAYERS * 9) < 0.01 && fabs(s->chosen_us - LAYERS * 5) < 0.01);
    assert_string_equal(s->off, "");
    assert_in_range(fake.replays, 2 * ALGORITHMS, 5 * ALGORITHMS - 1); /* some gave up */
    int replays = fake.replays;
    assert_int_equal(tuned(&p, 448), 1);
    assert_int_equal(tuned(&p, 420), 1); /* shares the choice */
    assert_int_equal(fake.replays, replays);
    assert_int_equal(tuned(&p, 449), 1); /* another size */
    assert_true(fake.replays > replays);
    assert_int_equal(cuda_tuner_stats(p.tuner)->measured, 2);
    stop(&p);
}

/* Times that have changed do not matter to a process that finds the choice. */
static void test_second_process(void **state) {
    (void)state;
    Process p = start();
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
    fake.cost[2] = 1;
    p = start();
    assert_int_equal(tuned(&p, 430), 1);
    assert_int_equal(fake.replays, 0);
    assert_int_equal(cuda_tuner_stats(p.tuner)->stored, 1);
    stop(&p);
    gpu.multiprocessors = 114; /* another GPU */
    p = start();
    assert_int_equal(tuned(&p, 430), 2);
    stop(&p);
    gpu.multiprocessors = 132;
    p = start();
    assert_int_equal(tuned(&p, 430), 1);
    stop(&p);
}

/* Two processes that start without a choice end with the first one's. */
static void test_two_at_once(void **state) {
    (void)state;
    Process p = start(), q = start();
    assert_int_equal(tuned(&p, 448), 1);
    fake.cost[2] = 1;
    assert_int_equal(tuned(&q, 448), 1);
    assert_int_equal(cuda_tuner_stats(q.tuner)->measured, 1);
    cuda_tuner_close(p.tuner);
    cuda_gemm_close(p.gemm);
    stop(&q);
}

static void test_failing_candidates(void **state) {
    (void)state;
    Process p = start();
    fake.cost[0] = fake.cost[1] = -1;
    assert_int_equal(tuned(&p, 448), 2);
    stop(&p);
}

static void test_ties(void **state) {
    (void)state;
    Process p = start();
    fake.cost[0] = 5.05;
    assert_int_equal(tuned(&p, 448), 0);
    stop(&p);
}

static void test_size_keeps_its_own(void **state) {
    (void)state;
    Process p = start();
    fake.check = CUBLAS_STATUS_NOT_SUPPORTED;
    assert_int_equal(tuned(&p, 448), 1);
    assert_int_equal(tuned(&p, 447), 0); /* the library refuses 1 for it */
    fake.check = CUBLAS_STATUS_SUCCESS;
    assert_int_equal(tuned(&p, 447), 0); /* a selection does not change any more */
    stop(&p);
}

static void test_off(void **state) {
    (void)state;
    Process p = start();
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
    setenv("PEFTC_TUNE", "off", 1);
    p = start();
    assert_int_equal(tuned(&p, 448), 0);
    assert_string_equal(cuda_tuner_stats(p.tuner)->off, "PEFTC_TUNE=off");
    stop(&p);
    setenv("PEFTC_TUNE", "on", 1);
    p = start();
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
    setenv("PEFTC_CACHE", "", 1);
    p = start();
    assert_int_equal(tuned(&p, 448), 0);
    assert_non_null(strstr(cuda_tuner_stats(p.tuner)->off, "PEFTC_CACHE"));
    stop(&p);
    setenv("PEFTC_TUNE", "fast", 1);
    CudaTuner *t;
    PeftError err = {0};
    assert_false(cuda_tuner_open(&t, library(), &gpu, NULL, &err));
    assert_null(t);
    assert_message(&err, "PEFTC_TUNE is 'fast'", "on or off", NULL);
    assert_int_equal(err.code, 2);
    assert_int_equal(fake.live + lt.live, 0);
}

/* A choice that another run would not find must not take effect; what is stored still does. */
static void test_cannot_be_stored(void **state) {
    (void)state;
    Process p = start();
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", getenv("PEFTC_CACHE"), TUNE_CACHE_LOCK);
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkdir(path, 0777), 0);
    p = start();
    assert_int_equal(tuned(&p, 512), 0);
    assert_non_null(strstr(cuda_tuner_stats(p.tuner)->off, "cannot be stored"));
    int replays = fake.replays;
    assert_int_equal(tuned(&p, 640), 0);
    assert_int_equal(fake.replays, replays);
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
}

/* A name that the library does not offer, in a line that is whole. */
static void test_unknown_choice(void **state) {
    (void)state;
    Process p = start();
    assert_int_equal(tuned(&p, 448), 1);
    stop(&p);
    const char *dir = getenv("PEFTC_CACHE");
    TuneCache c = {0}, other = {0};
    PeftError err = {0};
    tune_cache_read(&c, dir);
    assert_int_equal(c.n, 1);
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, TUNE_CACHE_FILE);
    assert_int_equal(remove(path), 0);
    assert_true(tune_cache_add(&other, dir, &(TuneEntry){c.entry[0].key, "no such", ""}, 1, &err));
    tune_cache_free(&other);
    tune_cache_free(&c);
    p = start();
    assert_int_equal(tuned(&p, 448), 0);
    assert_int_equal(fake.replays, 0);
    stop(&p);
}

/* Results in variables, buffers at the arena's end, a workspace in the way: lt_matmul and
 * set_memory check what is touched. */
static void test_only_dead_memory(void **state) {
    (void)state;
    CUdeviceptr end = fake.dead.begin + fake.dead.bytes;
    const CUdeviceptr arena = fake.arena.begin, dead = fake.dead.begin;
    const struct {
        CUdeviceptr a, b, c, addend, workspace;
        bool gradient; /* of a weight: the batch's size is k */
        int batch;     /* products, one behind the other */
    } at[] = {
        {dead, arena, arena + 65536, arena + 65536, dead + 65536, 0, 0},
        {end - 128 * 400, arena, dead, 0, end - 65536 * 2, 0, 0},
        {dead, arena, end - 64 * 400, end - 64 * 400, dead, 0, 0},
        {dead, arena, dead + 65536 - 64 * 400, dead + 65536, dead + 65536, 0, 0},
        {arena, end - 4096, 64, 0, dead + 1024, 0, 0},
        {arena, dead, end, end - 64 * 400, end - WORKSPACE, 0, 0},
        {end - 128 * 400, dead, arena, 0, dead, 1, 0},
        {dead, end - 64 * 400, arena, arena, dead, 1, 0},
        {dead, arena, dead + 32768, 0, dead, 0, 3},
        {end - 3 * 128 * 400, arena, dead, 0, end - 65536, 0, 3},
        {arena, dead, end - 3 * 64 * 400, end - 3 * 64 * 400, dead, 0, 3},
        {end - 4 * 128 * 400, end - 4 * 64 * 400, arena, 0, dead, 1, 4},
    };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        Process p = start();
        CudaMatmul x = {.m = at[i].gradient ? 64 : 400,
                        .n = 32,
                        .k = at[i].gradient ? 400 : 64,
                        .trans_a = at[i].gradient,
                        .in = CUDA_GEMM_BF16,
                        .out = CUDA_GEMM_BF16,
                        .a = at[i].a,
                        .b = at[i].b,
                        .c = at[i].c,
                        .addend = at[i].addend,
                        .workspace = at[i].workspace,
                        .workspace_bytes = WORKSPACE,
                        .batch = at[i].batch,
                        .stride_a = at[i].batch ? 64 * 400 : 0,
                        .stride_b = at[i].gradient && at[i].batch ? 32 * 400 : 0,
                        .stride_c = at[i].batch ? 32 * 400 : 0,
                        .stride_addend = at[i].batch ? 32 * 400 : 0};
        CudaMatmul round = x;
        *(at[i].gradient ? &round.k : &round.m) = 448;
        PeftError err = {0};
        assert_true(cuda_tune_products(p.tuner, &x, &round, 1, fake.dead, NULL, &err));
        assert_int_equal(cuda_tuner_stats(p.tuner)->measured, 1);
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", getenv("PEFTC_CACHE"), TUNE_CACHE_FILE);
        stop(&p);
        assert_int_equal(remove(path), 0);
    }
}

static void test_no_room(void **state) {
    (void)state;
    Process p = start();
    fake.dead = (CudaRange){fake.dead.begin, WORKSPACE};
    CudaMatmul x[LAYERS];
    products(x, 448);
    PeftError err = {0};
    assert_true(cuda_tune_products(p.tuner, x, x, LAYERS, fake.dead, NULL, &err));
    assert_int_equal(fake.replays, 0);
    assert_int_equal(cuda_gemm_selected(cuda_gemm_plan(p.gemm, &x[0], &err)), 0);
    stop(&p);
}

static void test_gpu_failure(void **state) {
    (void)state;
    Process p = start();
    fake.sync = CUDA_ERROR_ILLEGAL_ADDRESS;
    CudaMatmul x[LAYERS];
    products(x, 448);
    PeftError err = {0};
    assert_false(cuda_tune_products(p.tuner, x, x, LAYERS, fake.dead, NULL, &err));
    assert_message(&err, "time a matrix product", "700", NULL);
    stop(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fastest),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test_setup(test_fastest_is_selected, set_up),
        cmocka_unit_test_setup(test_second_process, set_up),
        cmocka_unit_test_setup(test_two_at_once, set_up),
        cmocka_unit_test_setup(test_failing_candidates, set_up),
        cmocka_unit_test_setup(test_ties, set_up),
        cmocka_unit_test_setup(test_size_keeps_its_own, set_up),
        cmocka_unit_test_setup(test_off, set_up),
        cmocka_unit_test_setup(test_cannot_be_stored, set_up),
        cmocka_unit_test_setup(test_unknown_choice, set_up),
        cmocka_unit_test_setup(test_only_dead_memory, set_up),
        cmocka_unit_test_setup(test_no_room, set_up),
        cmocka_unit_test_setup(test_gpu_failure, set_up),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
