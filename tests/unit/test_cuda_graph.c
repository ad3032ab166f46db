/* What reaches the driver when steps are launched on streams and captured: it follows streams and
 * events, so that a step that does not wait for what it must is seen. */
#include "order_steps.h"

#include "runtime/cuda/internal.h"

/* Bits of what has ended before what comes next on a stream, or before an event: the steps, and
 * what was on the function's stream before it was launched. */
enum { EARLIER = MOST_STEPS, FAKE_EVENTS = MOST_STEPS + 1 };
typedef struct Driver {
    uint64_t stream[CUDA_MAX_STREAMS], event[FAKE_EVENTS];
    uint64_t before[MOST_STEPS]; /* each step */
    bool in_capture[CUDA_MAX_STREAMS], event_in_capture[FAKE_EVENTS];
    bool capturing;
    int launched, fails_at; /* steps; -1: none */
    int nstream, nevent, ngraph, graph_launches, live;
} Driver;

static Driver driver;

static int handle(const void *p) {
    assert_non_null(p);
    return (int)(uintptr_t)p - 1;
}

static void *handle_of(int i) {
    return (void *)(uintptr_t)(i + 1);
}

/* While something is captured, work on a stream outside it would run at once. */
static uint64_t *use_stream(CUstream stream) {
    int s = handle(stream);
    assert_in_range(s, 0, driver.nstream - 1);
    assert_int_equal(driver.in_capture[s], driver.capturing);
    return &driver.stream[s];
}

static CUresult fake_stream_create(CUstream *stream, unsigned flags) {
    assert_int_equal(flags, CU_STREAM_NON_BLOCKING);
    assert_false(driver.capturing);
    *stream = handle_of(driver.nstream++);
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_stream_destroy(CUstream stream) {
    driver.live -= handle(stream) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_event_create(CUevent *event, unsigned flags) {
    assert_int_equal(flags, CU_EVENT_DISABLE_TIMING);
    assert_in_range(driver.nevent, 0, FAKE_EVENTS - 1);
    *event = handle_of(driver.nevent++);
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_event_destroy(CUevent event) {
    driver.live -= handle(event) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_record(CUevent event, CUstream stream) {
    driver.event[handle(event)] = *use_stream(stream);
    driver.event_in_capture[handle(event)] = driver.capturing;
    return CUDA_SUCCESS;
}

static CUresult fake_wait(CUstream stream, CUevent event, unsigned flags) {
    int s = handle(stream), e = handle(event);
    assert_int_equal(flags, 0);
    assert_int_equal(driver.event_in_capture[e], driver.capturing);
    driver.in_capture[s] = driver.capturing;
    *use_stream(stream) |= driver.event[e];
    return CUDA_SUCCESS;
}

static CUresult fake_launch(const CUlaunchConfig *c, CUfunction f, void **arg, void **extra) {
    int step = handle(f);
    uint64_t *done = use_stream(c->stream);
    assert_true(c->grid_x == 1 && c->grid_y == 1 && c->grid_z == 1);
    assert_true(c->block_x == 32 && c->block_y == 1 && c->block_z == 1);
    assert_true(c->shared_bytes == 0 && c->nattribute == 0 && arg && !extra);
    if (step == driver.fails_at) return CUDA_ERROR_INVALID_VALUE;
    assert_false(driver.before[step]); /* once */
    driver.launched++;
    driver.before[step] = *done;
    *done |= 1ull << step;
    return CUDA_SUCCESS;
}

static CUresult fake_begin_capture(CUstream stream, CUstreamCaptureMode mode) {
    assert_int_equal(mode, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    assert_false(driver.capturing);
    driver.capturing = driver.in_capture[handle(stream)] = true;
    return CUDA_SUCCESS;
}

/* Every stream of the capture must have been joined to its first one, or there is no graph. */
static CUresult fake_end_capture(CUstream stream, CUgraph *graph) {
    uint64_t done = *use_stream(stream), all = done;
    for (int s = 0; s < driver.nstream; s++)
        if (driver.in_capture[s]) all |= driver.stream[s];
    memset(driver.in_capture, 0, sizeof driver.in_capture);
    driver.capturing = false;
    *graph = NULL;
    if (all != done) return CUDA_ERROR_INVALID_VALUE;
    driver.ngraph++;
    *graph = handle_of(0);
    return CUDA_SUCCESS;
}

static CUresult fake_instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    assert_int_equal(flags, 0);
    *exec = handle_of(handle(graph));
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_graph_destroy(CUgraph graph) {
    return handle(graph) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult fake_exec_destroy(CUgraphExec exec) {
    driver.live -= handle(exec) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_graph_launch(CUgraphExec exec, CUstream stream) {
    assert_int_equal(handle(exec), 0);
    assert_int_equal(handle(stream), 0);
    driver.graph_launches++;
    return CUDA_SUCCESS;
}

static CudaApi fake_api = {
    .cuStreamCreate = fake_stream_create,
    .cuStreamDestroy = fake_stream_destroy,
    .cuStreamWaitEvent = fake_wait,
    .cuStreamBeginCapture = fake_begin_capture,
    .cuStreamEndCapture = fake_end_capture,
    .cuEventCreate = fake_event_create,
    .cuEventDestroy = fake_event_destroy,
    .cuEventRecord = fake_record,
    .cuGraphInstantiate = fake_instantiate,
    .cuGraphLaunch = fake_graph_launch,
    .cuGraphDestroy = fake_graph_destroy,
    .cuGraphExecDestroy = fake_exec_destroy,
    .cuLaunchKernelEx = fake_launch,
};

/* Random steps as a program of maps over variables, which overlap as the ranges do. */
typedef struct Machine {
    PeftKernel kernel[MOST_STEPS];
    CUfunction function[MOST_STEPS];
    PeftStep step[MOST_STEPS];
    PeftVar var[MOST_STEPS * MOST_RANGES];
    int32_t ref[MOST_STEPS * MOST_RANGES];
    int64_t offset[MOST_STEPS * MOST_RANGES];
    void *arg[MOST_STEPS * MOST_RANGES], *workspace[MOST_STEPS];
    char arena[1024];
    PeftProgram program;
    CudaExec cuda;
    Exec x;
} Machine;

static void add_step(Machine *m, const OrderStep *from, int i) {
    int32_t *n = &m->program.nvar;
    m->kernel[i] = (PeftKernel){.name = "map",
                                .kind = PEFT_KERNEL_MAP,
                                .launch = PEFT_LAUNCH_ELEMENTS,
                                .block = 32,
                                .vector = 1};
    m->function[i] = handle_of(i);
    m->step[i] = (PeftStep){.kernel = i,
                            .arg = &m->ref[*n],
                            .rows = 1,
                            .cols = 1,
                            .workspace = PEFT_REF_NONE,
                            .where = "test.bert:7"};
    for (int written = 0; written < 2; written++)
        for (int k = 0; k < from->n; k++) {
            OrderRange r = from->range[k];
            if (r.written != (written == 1)) continue;
            m->var[*n] = (PeftVar){.dtype = DT_F32, .rank = 1, .dim = {r.end - r.begin}};
            m->offset[*n] = 4 * (r.begin + 2);
            m->arg[*n] = m->arena + m->offset[*n];
            m->ref[*n] = PEFT_REF_VAR | *n;
            m->step[i].narg++;
            m->step[i].nread += !written;
            ++*n;
        }
}

static void open_machine(Machine *m, const Steps *s, const char *streams) {
    memset(m, 0, sizeof *m);
    driver = (Driver){.nstream = 1, .stream = {1ull << EARLIER}, .live = 1, .fails_at = -1};
    for (int i = 0; i < s->n; i++) add_step(m, &s->step[i], i);
    m->program.kernel = m->kernel;
    m->program.var = m->var;
    m->program.fn[PEFT_FN_TRAIN] = (PeftFunction){.step = m->step, .nstep = s->n};
    m->cuda = (CudaExec){.api = &fake_api, .stream = handle_of(0), .kernel = m->function};
    m->cuda.graph = calloc(CUDA_MAX_GRAPHS, sizeof *m->cuda.graph);
    assert_non_null(m->cuda.graph);
    m->x = (Exec){.program = &m->program, .plan.var_offset = m->offset, .arena = m->arena};
    m->x.cuda = &m->cuda;
    m->x.arg[PEFT_FN_TRAIN] = m->arg;
    m->x.workspace[PEFT_FN_TRAIN] = m->workspace;
    setenv(CUDA_STREAMS_VARIABLE, streams, 1);
}

static void close_machine(Machine *m) {
    cuda_close_functions(&m->cuda);
    assert_int_equal(driver.live, 1); /* the first stream is the device's */
    unsetenv(CUDA_STREAMS_VARIABLE);
}

/* Launches the function and follows what was launched or captured. */
static void launch(Machine *m) {
    static const int64_t sym[PEFT_SYM_COUNT] = {0, 1, 1, 1, 1};
    PeftError err = {{0}, 0};
    memset(driver.stream, 0, sizeof driver.stream);
    memset(driver.before, 0, sizeof driver.before);
    driver.stream[0] = 1ull << EARLIER;
    driver.launched = 0;
    driver.fails_at = -1;
    if (!cuda_launch_function(&m->x, PEFT_FN_TRAIN, sym, &err)) fail_msg("%s", err.msg);
}

static void check_launches(const Steps *s) {
    assert_int_equal(driver.launched, s->n);
    assert_int_equal(driver.stream[0], (1ull << EARLIER) | ((1ull << s->n) - 1));
    for (int i = 0; i < s->n; i++) {
        assert_true(driver.before[i] >> EARLIER & 1);
        for (int j = 0; j < i; j++)
            if (steps_conflict(&s->step[i], &s->step[j])) assert_true(driver.before[i] >> j & 1);
    }
}

static void test_launches(void **state) {
    (void)state;
    static const char *const limit[] = {"", "1", "2", "3", "32"};
    for (int round = 0; round < 100; round++) {
        static Machine m;
        Steps s;
        make_steps(&s, below(MOST_STEPS + 1), 10 + below(120));
        open_machine(&m, &s, limit[round % 5]);
        launch(&m);
        check_launches(&s);
        assert_int_equal(driver.ngraph, 0);
        if (round % 5 == 1) assert_int_equal(driver.nstream + driver.nevent, 1);
        if (round % 5 == 2) assert_in_range(driver.nstream, 1, 2);
        launch(&m); /* captured */
        check_launches(&s);
        assert_int_equal(driver.ngraph, 1);
        assert_int_equal(driver.graph_launches, 1);
        launch(&m);
        assert_int_equal(driver.launched, 0);
        assert_int_equal(driver.graph_launches, 2);
        close_machine(&m);
    }
}

static void test_launch_failures(void **state) {
    (void)state;
    static Machine m;
    static const int64_t sym[PEFT_SYM_COUNT] = {0, 1, 1, 1, 1};
    static const char *const wrong[] = {"0", "33", "two", "2x", "99999999999999999999"};
    Steps s;
    make_steps(&s, 20, 40);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        PeftError err = {{0}, 0};
        open_machine(&m, &s, wrong[i]);
        assert_false(cuda_launch_function(&m.x, PEFT_FN_TRAIN, sym, &err));
        assert_non_null(strstr(err.msg, "PEFTC_CUDA_STREAMS is '"));
        assert_non_null(strstr(err.msg, "to 32"));
        close_machine(&m);
    }
    open_machine(&m, &s, "4");
    for (int launches = 0; launches < 2; launches++) { /* the second one is captured */
        PeftError err = {{0}, 0};
        driver.fails_at = 7;
        driver.launched = 0;
        memset(driver.before, 0, sizeof driver.before);
        assert_false(cuda_launch_function(&m.x, PEFT_FN_TRAIN, sym, &err));
        assert_in_range(driver.launched, 0, s.n - 1);
        assert_ptr_equal(strstr(err.msg, "map (test.bert:7): launch a kernel"), err.msg);
        assert_false(driver.capturing);
        if (launches == 0) launch(&m);
    }
    close_machine(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launches),
        cmocka_unit_test(test_launch_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
