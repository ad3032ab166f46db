/* Compiling through NVRTC, where it can be opened, and the cubin cache, anywhere: damage, company,
 * a folder that cannot be written, the bound. */
#include "scratch.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>

#include "../../runtime/cuda/cubin_cache.h"
#include "../../runtime/cuda/module.h"

/* ---- the cubin cache ---- */

static const char *const some_options[] = {"-arch=sm_90", "--fmad=true"};

static CubinKey key_of(const char *source) {
    return cubin_key(source, some_options, 2, 13, 0);
}

/* A folder of the cache's own; made by the first put. */
static const char *put_one(const char *folder, const char *source, const void *data, size_t n) {
    const char *dir = scratch_path(folder);
    CubinKey key = key_of(source);
    cubin_cache_put(dir, &key, data, n, CUBIN_CACHE_BYTES);
    return dir;
}

static bool cached(const char *dir, const char *source) {
    size_t n;
    CubinKey key = key_of(source);
    char *cubin = cubin_cache_get(dir, &key, &n);
    free(cubin);
    return cubin != NULL;
}

static void file_of(const char *dir, const char *source, char path[600]) {
    CubinKey key = key_of(source);
    int at = snprintf(path, 600, "%s/", dir);
    for (int i = 0; i < 16; i++) at += snprintf(path + at, 600 - (size_t)at, "%02x", key.byte[i]);
    snprintf(path + at, 600 - (size_t)at, ".cubin");
}

static void test_keys_differ(void **state) {
    (void)state;
    const char *const joined[] = {"-arch=sm_90--fmad=true"}, *const swapped[] = {"--fmad=true",
                                                                                 "-arch=sm_90"};
    CubinKey base = key_of("a");
    CubinKey other[] = {
        key_of("b"),
        key_of(""),
        cubin_key("a", some_options, 1, 13, 0),
        cubin_key("a", joined, 1, 13, 0),
        cubin_key("a", swapped, 2, 13, 0),
        cubin_key("a", some_options, 2, 12, 0),
        cubin_key("a", some_options, 2, 13, 1),
    };
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        assert_memory_not_equal(&base, &other[i], sizeof base);
    CubinKey again = key_of("a");
    assert_memory_equal(&base, &again, sizeof base);
}

static void test_cache_round_trip(void **state) {
    (void)state;
    size_t n = 0;
    const char *dir = put_one("trip/deep", "a", "cubin\0bytes", 11);
    CubinKey key = key_of("a");
    char *cubin = cubin_cache_get(dir, &key, &n);
    assert_non_null(cubin);
    assert_int_equal(n, 11);
    assert_memory_equal(cubin, "cubin\0bytes", 11);
    free(cubin);
    assert_false(cached(dir, "b"));
    assert_int_equal(scratch_count(dir, "tmp"), 0);
}

static void rewrite(const char *path, const char *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void test_cache_damage(void **state) {
    (void)state;
    const char *dir = put_one("damage", "a", "0123456789", 10);
    char path[600];
    file_of(dir, "a", path);
    size_t n;
    char *file = scratch_read(path, &n);
    assert_int_equal(n, 50);
    for (size_t cut = 0; cut < n; cut++) {
        rewrite(path, file, cut);
        assert_false(cached(dir, "a"));
    }
    for (size_t bit = 0; bit < 8 * n; bit++) {
        file[bit / 8] ^= (char)(1 << bit % 8);
        rewrite(path, file, n);
        assert_false(cached(dir, "a"));
        file[bit / 8] ^= (char)(1 << bit % 8);
    }
    char other[600]; /* a whole file under another key's name */
    file_of(dir, "b", other);
    rewrite(other, file, n);
    assert_false(cached(dir, "b"));
    put_one("damage", "a", "0123456789", 10); /* what a compilation does after a miss */
    assert_true(cached(dir, "a"));
    free(file);
}

static void test_cache_cannot_be_written(void **state) {
    (void)state;
    scratch_file("file", "x", 1);
    assert_false(cached(put_one("file/below", "a", "1", 1), "a"));
    assert_false(cached("/proc/no/such/folder", "a"));
    const char *dir = put_one("blocked", "b", "1", 1); /* a folder has the file's name */
    char path[600];
    file_of(dir, "a", path);
    assert_int_equal(mkdir(path, 0777), 0);
    put_one("blocked", "a", "1", 1);
    assert_false(cached(dir, "a"));
    assert_true(cached(dir, "b"));
    assert_int_equal(scratch_count(dir, "tmp"), 0);
}

enum { CONCURRENT_BYTES = 200000, CONCURRENT_WRITES = 40 };

static void write_many(const char *dir, char fill) {
    CubinKey key = key_of("shared");
    char *data = malloc(CONCURRENT_BYTES);
    if (!data) return;
    memset(data, fill, CONCURRENT_BYTES);
    for (int i = 0; i < CONCURRENT_WRITES; i++)
        cubin_cache_put(dir, &key, data, CONCURRENT_BYTES, CUBIN_CACHE_BYTES);
    free(data);
}

/* Whatever is found is one writer's whole cubin, once one has finished a first write. */
static void read_many(const char *dir) {
    CubinKey key = key_of("shared");
    for (int i = 0; i < CONCURRENT_WRITES; i++) {
        size_t n = 0;
        char *cubin = cubin_cache_get(dir, &key, &n);
        assert_non_null(cubin);
        assert_int_equal(n, CONCURRENT_BYTES);
        for (size_t k = 1; k < n; k++)
            if (cubin[k] != cubin[0]) fail_msg("mixed content at byte %zu", k);
        free(cubin);
    }
}

static void test_cache_concurrent_processes(void **state) {
    (void)state;
    char first[CONCURRENT_BYTES];
    memset(first, 'a', sizeof first);
    const char *dir = put_one("processes", "shared", first, sizeof first);
    pid_t child[3];
    for (int i = 0; i < 3; i++) {
        child[i] = fork();
        assert_true(child[i] >= 0);
        if (child[i] == 0) {
            write_many(dir, (char)('b' + i));
            _exit(0);
        }
    }
    read_many(dir);
    for (int i = 0; i < 3; i++) {
        int status = 0;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_int_equal(status, 0);
    }
    read_many(dir);
    assert_int_equal(scratch_count(dir, "tmp"), 0);
    assert_int_equal(scratch_count(dir, ".cubin"), 1);
}

static void test_cache_concurrent_threads(void **state) {
    (void)state;
    const char *dir = scratch_path("threads");
#pragma omp parallel for num_threads(4) schedule(static, 1)
    for (int i = 0; i < 4; i++) write_many(dir, (char)('a' + i));
    read_many(dir);
    assert_int_equal(scratch_count(dir, "tmp"), 0);
}

/* Sets when a file was last used, to tell files apart however fast they were written. */
static void set_age(const char *path, int seconds) {
    time_t then = time(NULL) - seconds;
    struct timespec t[2] = {{.tv_sec = then}, {.tv_sec = then}};
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

static void test_cache_bound(void **state) {
    (void)state;
    char data[1000] = {0}, path[600], foreign[600], stale[600], young[600];
    static const char *const sources[] = {"a", "b", "c", "d"};
    const char *dir = scratch_path("bound");
    for (int i = 0; i < 4; i++) {
        put_one("bound", sources[i], data, sizeof data);
        file_of(dir, sources[i], path);
        set_age(path, 1000 - i);
    }
    snprintf(foreign, sizeof foreign, "%s/notes.txt", dir);
    snprintf(stale, sizeof stale, "%s/cubin.tmp.abcdef", dir);
    snprintf(young, sizeof young, "%s/cubin.tmp.ghijkl", dir);
    rewrite(foreign, data, sizeof data);
    rewrite(stale, data, sizeof data);
    rewrite(young, data, sizeof data);
    set_age(foreign, 100000);
    set_age(stale, 100000);
    assert_true(cached(dir, "a")); /* the oldest becomes the youngest */
    CubinKey key = key_of("e");
    cubin_cache_put(dir, &key, data, sizeof data, 3 * 1040);
    assert_true(cached(dir, "a"));
    assert_false(cached(dir, "b"));
    assert_false(cached(dir, "c"));
    assert_true(cached(dir, "d"));
    assert_true(cached(dir, "e"));
    assert_int_equal(access(foreign, F_OK), 0);
    assert_int_equal(access(young, F_OK), 0);
    assert_int_not_equal(access(stale, F_OK), 0);
}

static void assert_cache_dir(const char *expected) {
    char *dir = cubin_cache_dir();
    if (expected)
        assert_string_equal(dir, expected);
    else
        assert_null(dir);
    free(dir);
}

static void test_cache_dir(void **state) {
    (void)state;
    char *home = strdup(getenv("HOME") ? getenv("HOME") : "/");
    setenv("PEFTC_CACHE", "/own", 1);
    setenv("XDG_CACHE_HOME", "/xdg", 1);
    setenv("HOME", "/home/me", 1);
    assert_cache_dir("/own");
    setenv("PEFTC_CACHE", "", 1);
    assert_cache_dir(NULL);
    unsetenv("PEFTC_CACHE");
    assert_cache_dir("/xdg/peftc");
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_cache_dir("/home/me/.cache/peftc");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_cache_dir(NULL);
    setenv("HOME", home, 1);
    free(home);
}

/* ---- compiling ---- */

static const char kernel_source[] =
    "extern \"C\" __global__ void scale(float *x, float s, int n) {\n"
    "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    "    if (i < n) x[i] *= s;\n"
    "}\n";
static const char broken_source[] = "/* gelu of h: model.bert:12 */\n"
                                    "extern \"C\" __global__ void gelu(float *x) {\n"
                                    "    int a = 1;\n"
                                    "    int b = 2;\n"
                                    "    int c = 3;\n"
                                    "    int d = 4;\n"
                                    "    int e = 5;\n"
                                    "    x[0] = a + b + c + d + e + no_such_name;\n"
                                    "}\n";

static void test_report(void **state) {
    (void)state;
    char *text = cuda_compile_report("k.cu", broken_source, some_options, 2,
                                     "k.cu(8): error: identifier \"no_such_name\" is undefined\n"
                                     "1 error detected in the compilation of \"k.cu\".");
    assert_string_equal(text, "k.cu does not compile\n"
                              "options: -arch=sm_90 --fmad=true\n"
                              "log:\n"
                              "k.cu(8): error: identifier \"no_such_name\" is undefined\n"
                              "1 error detected in the compilation of \"k.cu\".\n"
                              "source:\n"
                              "      1 | /* gelu of h: model.bert:12 */\n"
                              "      2 | extern \"C\" __global__ void gelu(float *x) {\n"
                              "   ...\n"
                              "      5 |     int c = 3;\n"
                              "      6 |     int d = 4;\n"
                              "      7 |     int e = 5;\n"
                              ">     8 |     x[0] = a + b + c + d + e + no_such_name;\n"
                              "      9 | }\n"
                              "     10 | \n");
    free(text);
}

/* Logs that lie, repeat and overflow: the report stays small and inside the source. */
static void test_report_bounds(void **state) {
    (void)state;
    static const char *const logs[] = {"",
                                       "k.cu(0): error: x",
                                       "k.cu(99): error: x",
                                       "k.cu(99999999999999999999): error: x",
                                       "(): error",
                                       "): error",
                                       "k.cu(1): error: a\nk.cu(1): error: b\n\n"};
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++) {
        char *text = cuda_compile_report("k.cu", "int a;", some_options, 2, logs[i]);
        assert_non_null(text);
        assert_true(strlen(text) < 300);
        free(text);
    }
    size_t n = 1 << 20;
    char *log = malloc(n + 1), *source = malloc(n + 1);
    assert_non_null(log);
    assert_non_null(source);
    log[0] = 0;
    for (size_t at = 0; at + 32 < n;)
        at += (size_t)snprintf(log + at, 32, "k.cu(%zu): error: x\n", at % 500);
    memset(source, 'x', n);
    for (size_t i = 999; i < n; i += 1000) source[i] = '\n';
    source[n] = 0;
    char *text = cuda_compile_report("k.cu", source, some_options, 2, log);
    assert_true(strlen(text) < 16384 + 16 * 8 * 180 + 200);
    free(text);
    free(source);
    free(log);
}

static CudaApi *open_compiler(void) {
    setenv("PEFTC_CACHE", scratch_path("cubins"), 1);
    CudaApi *api;
    PeftError err = {0};
    if (cuda_api_open_compiler(&api, &err)) return api;
    print_message("skip: %s\n", err.msg);
    skip();
    return NULL;
}

static char *compile_for(const CudaApi *api, const char *source, int major, int minor, size_t *n,
                         PeftError *err) {
    static const char *const options[] = {"--fmad=true"};
    char *cubin;
    *err = (PeftError){0};
    bool ok = cuda_compile(api, source, "k.cu", major, minor, options, 1, &cubin, n, err);
    assert_true(ok == (cubin != NULL));
    return cubin;
}

static nvrtcResult refuse(nvrtcProgram program, int n, const char *const *options) {
    (void)program, (void)n, (void)options;
    return NVRTC_ERROR_COMPILATION;
}

/* Runs cuda_compile on a source that fails and returns what it wrote on stderr. */
static char *stderr_of_failure(const CudaApi *api, const char *source, PeftError *err) {
    const char *path = scratch_path("stderr");
    size_t n;
    fflush(stderr);
    int old = dup(2), fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    assert_true(old >= 0 && fd >= 0);
    dup2(fd, 2);
    char *cubin = compile_for(api, source, 8, 0, &n, err);
    fflush(stderr);
    dup2(old, 2);
    close(old);
    close(fd);
    assert_null(cubin);
    return scratch_read(path, &n);
}

static void test_compile(void **state) {
    (void)state;
    CudaApi *api = open_compiler();
    PeftError err;
    size_t n80, n90;
    char *sm80 = compile_for(api, kernel_source, 8, 0, &n80, &err);
    if (!sm80) fail_msg("%s", err.msg);
    char *sm90 = compile_for(api, kernel_source, 9, 0, &n90, &err);
    if (!sm90) fail_msg("%s", err.msg);
    assert_true(n80 > 500 && n90 > 500);
    assert_memory_equal(sm80, "\177ELF", 4);
    assert_memory_equal(sm90, "\177ELF", 4);
    assert_non_null(memmem(sm80, n80, ".text.scale", 11));
    assert_true(n80 != n90 || memcmp(sm80, sm90, n80) != 0);
    CudaApi no_compiler = *api; /* so that an answer can only come from the cache */
    no_compiler.nvrtcCompileProgram = refuse;
    size_t n;
    char *again = compile_for(&no_compiler, kernel_source, 9, 0, &n, &err);
    if (!again) fail_msg("%s", err.msg);
    assert_int_equal(n, n90);
    assert_memory_equal(again, sm90, n);
    free(again);
    free(sm80);
    free(sm90);
    cuda_api_close(api);
}

static void test_compile_with_damaged_or_no_cache(void **state) {
    (void)state;
    CudaApi *api = open_compiler();
    const char *dir = scratch_path("damaged");
    setenv("PEFTC_CACHE", dir, 1);
    PeftError err;
    size_t n, again_n;
    free(compile_for(api, kernel_source, 8, 0, &n, &err));
    assert_int_equal(scratch_count(dir, ".cubin"), 1);
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) {
        char path[600];
        snprintf(path, sizeof path, "%s/%.200s", dir, e->d_name);
        if (strstr(e->d_name, ".cubin")) assert_int_equal(truncate(path, 100), 0);
    }
    closedir(d);
    char *again = compile_for(api, kernel_source, 8, 0, &again_n, &err);
    assert_non_null(again);
    assert_int_equal(n, again_n);
    free(again);
    scratch_file("plain", "x", 1);
    setenv("PEFTC_CACHE", scratch_path("plain/below"), 1);
    again = compile_for(api, kernel_source, 8, 0, &again_n, &err);
    assert_non_null(again);
    free(again);
    cuda_api_close(api);
}

static void test_compile_errors(void **state) {
    (void)state;
    CudaApi *api = open_compiler();
    PeftError err;
    char *text = stderr_of_failure(api, broken_source, &err);
    assert_message(&err, "k.cu", "sm_80", "k.cu(8): error", "no_such_name", NULL);
    assert_non_null(strstr(text, "options: -arch=sm_80 --std=c++17"));
    assert_non_null(strstr(text, "k.cu(8): error"));
    assert_non_null(strstr(text, "1 | /* gelu of h: model.bert:12 */"));
    assert_non_null(strstr(text, ">     8 |     x[0] = a + b"));
    free(text);
    assert_int_equal(scratch_count(scratch_path("cubins"), "tmp"), 0);
    size_t n;
    assert_null(compile_for(api, kernel_source, 3, 5, &n, &err));
    assert_message(&err, "cannot compile for sm_35", "newest is sm_", NULL);
    cuda_api_close(api);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_differ),
        cmocka_unit_test(test_cache_round_trip),
        cmocka_unit_test(test_cache_damage),
        cmocka_unit_test(test_cache_cannot_be_written),
        cmocka_unit_test(test_cache_concurrent_processes),
        cmocka_unit_test(test_cache_concurrent_threads),
        cmocka_unit_test(test_cache_bound),
        cmocka_unit_test(test_cache_dir),
        cmocka_unit_test(test_report),
        cmocka_unit_test(test_report_bounds),
        cmocka_unit_test(test_compile),
        cmocka_unit_test(test_compile_with_damaged_or_no_cache),
        cmocka_unit_test(test_compile_errors),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
