/* All variables filled at once: the same bytes for every number of threads, each variable what its
 * initialiser or its tensor says however it is stored, and of several errors the first variable's.
 */
#include "scratch.h"

#include <math.h>
#include <omp.h>

#include "../../runtime/fill.h"
#include "../../runtime/storage.h"
#include "../../runtime/cpu/nf4.h"

enum { ROWS = 700, COLUMNS = 192, N = ROWS * COLUMNS, SMALL = 5, VARS = 8, BYTES = 4 * N };

static PeftVar variable(const char *name, DType dtype, int init, double value) {
    return (PeftVar){.name = name,
                     .dtype = (uint8_t)dtype,
                     .rank = 2,
                     .dim = {ROWS, COLUMNS},
                     .init = (uint8_t)init,
                     .init_value = value};
}

static void make_variables(PeftVar v[VARS]) {
    v[0] = variable("normal", DT_F32, PEFT_NORMAL, 0.02);
    v[1] = variable("same normal, work", DT_WORK, PEFT_NORMAL, 0.02);
    v[2] = variable("uniform", DT_MASTER, PEFT_UNIFORM, 0.5);
    v[3] = variable("ones", DT_F32, PEFT_ONES, 0);
    v[4] = variable("constant", DT_WORK, PEFT_CONSTANT, 0.1);
    v[5] = variable("zero", DT_F32, PEFT_ZEROS, 0);
    v[6] = variable("nf4", DT_NF4, PEFT_NORMAL, 0.02);
    v[7] = variable("loaded", DT_WORK, PEFT_ZEROS, 0);
    v[5].dim[0] = 1, v[5].dim[1] = SMALL;
}

/* A file of one tensor [ROWS, COLUMNS]: i / 64, but NaN at `bad` when that is not negative. */
static SafeTensors *file_of(const char *name, int64_t bad) {
    PeftError err = {0};
    int64_t dims[] = {ROWS, COLUMNS};
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path(name));
    float *x = malloc(BYTES);
    assert_non_null(x);
    for (int64_t i = 0; i < N; i++) x[i] = i == bad ? NAN : (float)i / 64;
    StWriter *w = st_writer_new(path, &err);
    assert_non_null(w);
    assert_int_equal(st_writer_add(w, name, ST_F32, 2, dims, &err), 0);
    assert_true(st_writer_begin(w, &err) && st_writer_put(w, 0, x, BYTES, &err));
    assert_true(st_writer_finish(w, &err));
    free(x);
    SafeTensors *st = st_open(path, &err);
    if (!st) fail_msg("%s", err.msg);
    return st;
}

static char *buffers(int n) {
    char *at = aligned_alloc(64, (size_t)n * BYTES);
    assert_non_null(at);
    memset(at, 0x5a, (size_t)n * BYTES);
    return at;
}

static char *filled(int threads, int work, const StTensor *tensor) {
    static PeftVar v[VARS];
    PeftError err = {0};
    Fill fill[VARS];
    char *at = buffers(VARS);
    make_variables(v);
    for (int i = 0; i < VARS; i++)
        fill[i] = (Fill){.var = &v[i], .at = at + i * BYTES, .tensor = i == 7 ? tensor : NULL};
    omp_set_num_threads(threads);
    if (!fill_all(fill, VARS, work, 42, &err)) fail_msg("%s", err.msg);
    return at;
}

static void test_threads(void **state) {
    (void)state;
    SafeTensors *st = file_of("loaded", -1);
    for (int work = 2; work <= 4; work += 2) {
        char *one = filled(1, work, st_get(st, 0));
        for (int threads = 2; threads <= 5; threads++) {
            char *more = filled(threads, work, st_get(st, 0));
            assert_memory_equal(one, more, VARS * BYTES);
            free(more);
        }
        free(one);
    }
    st_close(st);
}

static float value(const char *at, int var, DType dtype, int64_t i) {
    float x;
    storage_get(at + var * BYTES, dtype, 2, N, i, 1, &x);
    return x;
}

static void test_values(void **state) {
    (void)state;
    SafeTensors *st = file_of("loaded", -1);
    char *at = filled(3, 2, st_get(st, 0));
    double sum = 0, square = 0;
    for (int64_t i = 0; i < N; i++) {
        float normal = value(at, 0, DT_F32, i), loaded = (float)i / 64, bf16;
        uint16_t room;
        storage_put(&room, DT_WORK, 2, 1, 0, 1, &loaded);
        storage_get(&room, DT_WORK, 2, 1, 0, 1, &bf16);
        assert_true(value(at, 7, DT_WORK, i) == bf16);
        assert_true(fabsf(value(at, 2, DT_MASTER, i)) <= 0.5f);
        assert_true(value(at, 3, DT_F32, i) == 1);
        assert_true(value(at, 4, DT_WORK, i) == 0.10009765625f); /* 0.1 in bf16 */
        sum += (double)normal;
        square += (double)normal * (double)normal;
    }
    assert_true(fabs(sum / N) < 5 * 0.02 / sqrt(N));
    assert_true(fabs(square / N / (0.02 * 0.02) - 1) < 5 * sqrt(2. / N));
    static const float zeros[SMALL];
    assert_memory_equal(at + 5 * BYTES, zeros, sizeof zeros);
    assert_int_equal(at[5 * BYTES + (int)sizeof zeros], 0x5a); /* and nothing behind them */
    free(at);
    st_close(st);
}

/* What is quantised must be finite: the last two of three variables are not. */
static void test_first_error(void **state) {
    (void)state;
    SafeTensors *file[] = {file_of("good", -1), file_of("bad late", N - 1), file_of("bad", 0)};
    PeftVar v = variable("x", DT_NF4, PEFT_ZEROS, 0);
    char *at = buffers(3), first[sizeof(((PeftError *)0)->msg)] = "";
    for (int threads = 1; threads <= 4; threads++) {
        PeftError err = {0};
        Fill fill[3];
        for (int i = 0; i < 3; i++)
            fill[i] = (Fill){.var = &v, .at = at + i * BYTES, .tensor = st_get(file[i], 0)};
        omp_set_num_threads(threads);
        assert_false(fill_all(fill, 3, 4, 42, &err));
        assert_non_null(strstr(err.msg, "element 134399 of 134400"));
        if (threads == 1) strcpy(first, err.msg);
        assert_string_equal(err.msg, first);
    }
    for (int i = 0; i < 3; i++) st_close(file[i]);
    free(at);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_first_error),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
