/* Runs that are submitted to a GPU and not waited for, on a driver that does everything as late as
 * it may (late_driver.c): every run sees its own batch, results come in order, the host waits when
 * the queue is full and not before, and variables are copied as often as they have changed. */
#include "scratch.h"

#include <dlfcn.h>

#include "../../runtime/cuda/api.h"
#include "../../runtime/exec.h"
#include "../../runtime/feed.h"

enum { TOKENS = 16 };

/* ---- the library ---- */

#define X(name, symbol, result, arguments) #symbol,
static const char *const symbols[] = {CUDA_DRIVER_API(X) CUDA_NVRTC_API(X) CUDA_CUBLASLT_API(X)};
#undef X

static void *driver;

static int *counter(const char *name) {
    int *at = dlsym(driver, name);
    assert_non_null(at);
    return at;
}

/* Functions of the tables that late_driver.c does not have return 0. */
static int build_driver(void) {
    char command[8192], here[4096], dir[600], path[700];
    const char *cc = getenv("CC");
    if (!getcwd(here, sizeof here)) return -1;
    snprintf(dir, sizeof dir, "%s", scratch_path("libs"));
    if (mkdir(dir, 0777)) return -1;
    snprintf(path, sizeof path, "%s/rest.c", dir);
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++)
        fprintf(f, "__attribute__((weak)) int %s(void) { return 0; }\n", symbols[i]);
    fclose(f);
    snprintf(
        command, sizeof command,
        "cd %s && %s -w -O1 -shared -fPIC -o libcuda.so.1 rest.c %s/tests/unit/late_driver.c && "
        "cp libcuda.so.1 libnvrtc.so.12 && cp libcuda.so.1 libcublasLt.so.12",
        dir, cc ? cc : "cc", here);
    setenv("PEFTC_CUDA_LIBS", dir, 1);
    setenv("PEFTC_CACHE", "", 1); /* what this library compiles is not worth keeping */
    if (system(command) != 0) return -1;
    snprintf(path, sizeof path, "%s/libcuda.so.1", dir);
    driver = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return driver ? 0 : -1;
}

static int set_up(void **state) {
    return scratch_make(state) ? -1 : build_driver();
}

/* ---- the program ---- */

static const PeftVar vars[] = {
    {.name = "w",
     .block = "",
     .where = "w:1",
     .dtype = DT_F32,
     .rank = 1,
     .trainable = 1,
     .dim = {1}},
    {.name = "frozen", .block = "", .where = "w:2", .dtype = DT_F32, .rank = 1, .dim = {1}}};
static const PeftKernel kernels[] = {{.name = "late_loss",
                                      .kind = PEFT_KERNEL_MAP,
                                      .launch = PEFT_LAUNCH_ELEMENTS,
                                      .block = 32,
                                      .vector = 1},
                                     {.name = "late_update",
                                      .kind = PEFT_KERNEL_MAP,
                                      .launch = PEFT_LAUNCH_ELEMENTS,
                                      .block = 32,
                                      .vector = 1}};
static const int32_t loss_args[] = {PEFT_REF_INPUT | PEFT_IN_tokens, PEFT_REF_TEMP | 0};
static const int32_t update_args[] = {PEFT_REF_TEMP | 0, PEFT_REF_VAR | 0, PEFT_REF_TEMP | 1};
static const PeftStep steps[] = {{.kernel = 0,
                                  .narg = 2,
                                  .arg = loss_args,
                                  .rows = 1,
                                  .cols = 1,
                                  .workspace = PEFT_REF_NONE,
                                  .label = "loss",
                                  .where = "w:3"},
                                 {.kernel = 1,
                                  .narg = 3,
                                  .arg = update_args,
                                  .rows = 1,
                                  .cols = 1,
                                  .workspace = PEFT_REF_NONE,
                                  .label = "update",
                                  .where = "w:4"}};
static const PeftTemp temps[] = {
    {.label = "loss", .where = "w:3", .dtype = DT_F32, .first = 0, .last = 1},
    {.label = "norm", .where = "w:4", .dtype = DT_F32, .first = 1, .last = 1}};
static const PeftOutput outputs[] = {{.name = "loss", .ref = PEFT_REF_TEMP | 0},
                                     {.name = "grad_norm", .ref = PEFT_REF_TEMP | 1},
                                     {.name = "lr", .ref = PEFT_REF_INPUT | PEFT_IN_lr}};
static const PeftProgram program = {.version = PEFT_PROGRAM_VERSION,
                                    .name = "late",
                                    .var = vars,
                                    .nvar = 2,
                                    .kernel = kernels,
                                    .nkernel = 2,
                                    .fn = {[PEFT_FN_EVAL] = {steps, temps, outputs, 1, 1, 1},
                                           [PEFT_FN_TRAIN] = {steps, temps, outputs, 2, 2, 3}},
                                    .cuda_source = ""};

static void open_unwritten(Exec *x, Device device) {
    PeftError err = {0};
    int64_t worst[PEFT_SYM_COUNT];
    feed_symbols(TOKENS, 1, 0, TOKENS, worst);
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_EVAL;
    if (!exec_open(x, &program, fns, device, COMPUTE_FP32, 1, worst, worst, 0, &err))
        fail_msg("%s", err.msg);
}

static void open_program(Exec *x, Device device) {
    open_unwritten(x, device);
    *(float *)exec_var(x, 0) = 0;
    *(float *)exec_var(x, 1) = 1;
}

/* Batch i has 1 to TOKENS tokens; the sum of all. What lies behind them is another batch's. */
static float feed(Exec *x, int i, int64_t sym[PEFT_SYM_COUNT]) {
    int32_t *token = exec_input(x, PEFT_IN_tokens);
    int n = 1 + i * 7 % TOKENS, sum = 0;
    for (int t = 0; t < TOKENS; t++) token[t] = i + t;
    for (int t = 0; t < n; t++) sum += token[t];
    *(float *)exec_input(x, PEFT_IN_lr) = (float)i / 8;
    feed_symbols(n, 1, 0, n, sym);
    return (float)sum;
}

static void submit(Exec *x, int i, float *loss) {
    PeftError err = {0};
    int64_t sym[PEFT_SYM_COUNT];
    *loss = feed(x, i, sym);
    if (!exec_submit(x, PEFT_FN_TRAIN, sym, &err)) fail_msg("%s", err.msg);
}

/* Result i: its own batch's loss, and all losses up to it. */
static void collect(Exec *x, int i, const float *loss) {
    PeftError err = {0};
    ExecResult r;
    float norm = 0;
    if (!exec_collect(x, &r, &err)) fail_msg("%s", err.msg);
    for (int k = 0; k <= i; k++) norm += loss[k];
    assert_int_equal(r.fn, PEFT_FN_TRAIN);
    assert_int_equal(r.tokens, 1 + i * 7 % TOKENS);
    assert_float_equal(r.scalar[EXEC_LOSS], loss[i], 0);
    assert_float_equal(r.scalar[EXEC_GRAD_NORM], norm, 0);
    assert_float_equal(r.scalar[EXEC_LR], (float)i / 8, 0);
}

static void pull(Exec *x) {
    PeftError err = {0};
    if (!exec_pull(x, &err)) fail_msg("%s", err.msg);
}

static float eval(Exec *x, int i) {
    PeftError err = {0};
    int64_t sym[PEFT_SYM_COUNT];
    float want = feed(x, i, sym);
    if (!exec_run(x, PEFT_FN_EVAL, sym, &err)) fail_msg("%s", err.msg);
    float found = *(const float *)exec_output(x, PEFT_FN_EVAL, "loss", NULL);
    assert_float_equal(found, want, 0);
    return found;
}

/* ---- tests ---- */

enum { RUNS = 3 * EXEC_QUEUE + 5 };

static void test_in_order(void **state) {
    (void)state;
    float loss[RUNS];
    int next = 0;
    Exec x;
    open_program(&x, DEVICE_CUDA);
    for (int i = 0; i < RUNS; i++) {
        submit(&x, i, &loss[i]);
        if (exec_queue_full(&x)) collect(&x, next++, loss);
    }
    assert_int_equal(next, RUNS - EXEC_QUEUE + 1);
    while (x.pending) collect(&x, next++, loss);
    assert_int_equal(next, RUNS);
    exec_close(&x);
    assert_int_equal(*counter("late_misuse"), 0);
}

static void test_waits_for_a_slot_only(void **state) {
    (void)state;
    float loss[EXEC_QUEUE];
    Exec x;
    open_program(&x, DEVICE_CUDA);
    int before = *counter("late_waits");
    for (int i = 0; i < EXEC_QUEUE; i++) {
        assert_false(exec_queue_full(&x));
        submit(&x, i, &loss[i]);
    }
    assert_true(exec_queue_full(&x));
    assert_int_equal(*counter("late_waits"), before);
    for (int i = 0; i < EXEC_QUEUE; i++) collect(&x, i, loss);
    assert_int_equal(*counter("late_waits"), before + EXEC_QUEUE);
    exec_close(&x);
}

/* A run that is waited for comes after those submitted, whose results stay. */
static void test_run_between(void **state) {
    (void)state;
    float loss[4];
    Exec x;
    open_program(&x, DEVICE_CUDA);
    submit(&x, 0, &loss[0]);
    submit(&x, 1, &loss[1]);
    eval(&x, 5);
    submit(&x, 2, &loss[2]);
    eval(&x, 6);
    for (int i = 0; i < 3; i++) collect(&x, i, loss);
    exec_close(&x);
}

static void test_variables(void **state) {
    (void)state;
    float loss[4];
    int *down = counter("late_downloads"), *up = counter("late_uploads"), before;
    Exec x;
    open_program(&x, DEVICE_CUDA);
    submit(&x, 0, &loss[0]);
    submit(&x, 1, &loss[1]);
    pull(&x);
    assert_float_equal(*(const float *)exec_value(&x, 0), loss[0] + loss[1], 0);
    assert_float_equal(*(const float *)exec_value(&x, 1), 1, 0);
    before = *down;
    pull(&x); /* nothing has run since */
    eval(&x, 3);
    assert_int_equal(*down, before + 1); /* the loss */
    pull(&x);
    assert_int_equal(*down, before + 1);
    before = *up;
    submit(&x, 2, &loss[2]);
    assert_int_equal(*up, before); /* reading a variable sends nothing back */
    *(float *)exec_var(&x, 0) = 100;
    submit(&x, 3, &loss[3]);
    assert_int_equal(*up, before + 1);
    pull(&x);
    assert_float_equal(*(const float *)exec_value(&x, 0), 100 + loss[3], 0);
    exec_close(&x);
}

static void warm_up(Exec *x, int i) {
    PeftError err = {0};
    int64_t sym[PEFT_SYM_COUNT];
    feed(x, i, sym);
    if (!exec_warm_up(x, PEFT_FN_TRAIN, sym, &err)) fail_msg("%s", err.msg);
}

/* Runs on what the memory holds, and on nothing that is worth keeping; the first run after it is a
 * graph. With variables on the GPU, or without graphs, nothing runs. */
static void test_warm_up(void **state) {
    (void)state;
    float loss[2];
    int *graphs = counter("late_graphs"), before = *graphs;
    Exec x;
    open_unwritten(&x, DEVICE_CUDA);
    warm_up(&x, 9);
    *(float *)exec_var(&x, 0) = 0;
    *(float *)exec_var(&x, 1) = 1;
    submit(&x, 0, &loss[0]);
    assert_int_equal(*graphs, before + 1);
    warm_up(&x, 9);
    submit(&x, 1, &loss[1]);
    for (int i = 0; i < 2; i++) collect(&x, i, loss);
    pull(&x);
    assert_float_equal(*(const float *)exec_value(&x, 0), loss[0] + loss[1], 0);
    exec_close(&x);
    setenv("PEFTC_CUDA_GRAPH", "off", 1);
    open_program(&x, DEVICE_CUDA);
    warm_up(&x, 9);
    unsetenv("PEFTC_CUDA_GRAPH");
    before = *graphs;
    submit(&x, 0, &loss[0]);
    assert_int_equal(*graphs, before);
    collect(&x, 0, loss);
    exec_close(&x);
    assert_int_equal(*counter("late_misuse"), 0);
}

static void test_closed_while_warming_up(void **state) {
    (void)state;
    Exec x;
    open_unwritten(&x, DEVICE_CUDA);
    warm_up(&x, 9);
    exec_close(&x);
    assert_int_equal(*counter("late_misuse"), 0);
}

/* A variable begins as zero without a copy; what was written is not set to zero any more. */
static void test_zero(void **state) {
    (void)state;
    float loss[2];
    int *up = counter("late_uploads"), before;
    Exec x;
    open_unwritten(&x, DEVICE_CUDA);
    assert_true(exec_zero(&x, 0));
    *(float *)exec_var(&x, 1) = 1;
    assert_false(exec_zero(&x, 1));
    before = *up;
    submit(&x, 0, &loss[0]);
    assert_int_equal(*up, before + 1);
    assert_false(exec_zero(&x, 0));
    submit(&x, 1, &loss[1]);
    for (int i = 0; i < 2; i++) collect(&x, i, loss);
    exec_close(&x);
    open_unwritten(&x, DEVICE_NULL);
    assert_false(exec_zero(&x, 0));
    exec_close(&x);
}

static void test_closed_under_way(void **state) {
    (void)state;
    float loss[3];
    Exec x;
    open_program(&x, DEVICE_CUDA);
    for (int i = 0; i < 3; i++) submit(&x, i, &loss[i]);
    exec_close(&x);
    assert_int_equal(*counter("late_misuse"), 0);
}

/* Batches of other sizes are launched as one: a graph serves all up to PEFT_ROW_STEP tokens. */
static void test_few_sizes(void **state) {
    (void)state;
    float loss[TOKENS];
    int *graphs = counter("late_graphs"), before = *graphs;
    Exec x;
    open_program(&x, DEVICE_CUDA);
    assert_int_equal(x.train_sym[PEFT_SYM_T], PEFT_ROW_STEP);
    for (int i = 0; i < TOKENS; i++) submit(&x, i, &loss[i]);
    assert_int_equal(*graphs, before + 1);
    for (int i = 0; i < TOKENS; i++) collect(&x, i, loss);
    exec_close(&x);
}

/* The high-water mark is that of the largest batch, whatever came before and after. */
static void test_high_water(void **state) {
    (void)state;
    PeftError err = {0};
    int64_t sym[PEFT_SYM_COUNT];
    PeftTemp wide[2] = {temps[0], temps[1]};
    PeftProgram p = program;
    wide[0].rank = wide[1].rank = 2; /* [T, L] and [S, 16] */
    wide[0].dim[0] = DIM_T;
    wide[0].dim[1] = DIM_L;
    wide[1].dim[0] = DIM_S;
    wide[1].dim[1] = 16;
    p.fn[PEFT_FN_TRAIN].temp = wide;
    p.fn[PEFT_FN_EVAL] = (PeftFunction){0};
    int64_t worst[PEFT_SYM_COUNT], most = 0;
    feed_symbols(400, 50, 0, 60, worst);
    Exec x;
    assert_true(exec_open(&x, &p, 1u << PEFT_FN_TRAIN, DEVICE_NULL, COMPUTE_FP32, 1, worst, worst,
                          0, &err));
    for (int i = 0; i < 500; i++) { /* sizes that are the largest in one symbol or another */
        int64_t t = 1 + (i + 1) * 363 % 400, s = 1 + i * 11 % 50, l = 1 + i * 23 % 60;
        int64_t size[2] = {t * l * 4, s * 16 * 4};
        for (int k = 0; k < 2; k++) {
            int64_t end = x.plan.persistent + x.plan.temp_offset[PEFT_FN_TRAIN][k] +
                          (size[k] + PEFT_ALIGN - 1) / PEFT_ALIGN * PEFT_ALIGN;
            if (end > most) most = end;
        }
        feed_symbols(t, s, 0, l, sym);
        if (!exec_run(&x, PEFT_FN_TRAIN, sym, &err)) fail_msg("%s", err.msg);
        assert_int_equal(x.high_water, most);
    }
    assert_true(x.nlargest[PEFT_FN_TRAIN] < 250);
    exec_close(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_order),    cmocka_unit_test(test_waits_for_a_slot_only),
        cmocka_unit_test(test_run_between), cmocka_unit_test(test_variables),
        cmocka_unit_test(test_warm_up),     cmocka_unit_test(test_closed_while_warming_up),
        cmocka_unit_test(test_zero),        cmocka_unit_test(test_closed_under_way),
        cmocka_unit_test(test_few_sizes),   cmocka_unit_test(test_high_water),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_drop);
}
