/* Opening the CUDA libraries on a machine that need not have any: what is missing is named, what
 * does not fit together is refused. Libraries are built here that answer as an old driver, a small
 * GPU, a full one. */
#include "scratch.h"

#include <dlfcn.h>
#include <jansson.h>

#include "../../runtime/cuda/api.h"

#define LIBS "PEFTC_CUDA_LIBS"

static char users_libs[4096]; /* the variable as the test was started with */

static int set_up(void **state) {
    const char *libs = getenv(LIBS);
    snprintf(users_libs, sizeof users_libs, "%s", libs ? libs : "");
    return scratch_make(state);
}

/* ---- libraries that answer as told ---- */

#define X(name, symbol, result, arguments) #symbol,
static const char *const driver_symbols[] = {CUDA_DRIVER_API(X) NULL};
static const char *const nvrtc_symbols[] = {CUDA_NVRTC_API(X) NULL};
static const char *const cublaslt_symbols[] = {CUDA_CUBLASLT_API(X) NULL};
#undef X

/* When COUNT is 2 the GPU that is not FIRST has compute capability 7.5. */
static const char driver_source[] =
    "#include <stddef.h>\n#include <string.h>\n"
    "#ifndef VERSION\n#define VERSION 12040\n#endif\n#ifndef INIT\n#define INIT 0\n#endif\n"
    "#ifndef COUNT\n#define COUNT 1\n#endif\n#ifndef RETAIN\n#define RETAIN 0\n#endif\n"
    "#ifndef MODE\n#define MODE 0\n#endif\n#ifndef FIRST\n#define FIRST 0\n#endif\n"
    "#define SMALL(d) (COUNT == 2 && (d) != FIRST)\n"
    "int cuInit(unsigned f) { (void)f; return INIT; }\n"
    "int cuDriverGetVersion(int *v) { *v = VERSION; return 0; }\n"
    "int cuGetErrorName(int c, const char **t) { *t = c == 2 ? \"CUDA_ERROR_OUT_OF_MEMORY\" : "
    "\"CUDA_ERROR_OTHER\"; return 0; }\n"
    "int cuGetErrorString(int c, const char **t) { *t = c == 2 ? \"out of memory\" : \"other\"; "
    "return 0; }\n"
    "int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }\n"
    "int cuDeviceGet(int *d, int i) { *d = i; return i < COUNT ? 0 : 101; }\n"
    "int cuDeviceGetName(char *t, int n, int d) { strncpy(t, SMALL(d) ? \"Small\\t\\\"GPU\\\"\" : "
    "\"Large GPU\", n); return 0; }\n"
    "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? (SMALL(d) ? 7 : 9) : a == 76 ? "
    "(SMALL(d) ? 5 : 0) : a == 20 ? MODE : 100 + a; return 0; }\n"
    "int cuDeviceTotalMem_v2(size_t *n, int d) { *n = SMALL(d) ? 4000000000 : 80000000000; return 0; }\n"
    "int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = t_(); return RETAIN; }\n"
    "int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 70000000000; *t = 80000000000; return 0; }\n";
static const char nvrtc_source[] =
    "#ifndef MAJOR\n#define MAJOR 12\n#endif\n"
    "int nvrtcVersion(int *a, int *b) { *a = MAJOR; *b = 3; return 0; }\n";
static const char cublaslt_source[] = "#ifndef BLAS\n#define BLAS 120304\n#endif\n"
                                      "unsigned long cublasLtGetVersion(void) { return BLAS; }\n";

/* Builds dir/file: the given functions and, for the other names of the table, functions that
 * return 0; `without` is left out. */
static void build_library(const char *dir, const char *file, const char *const *symbols,
                          const char *source, const char *defines, const char *without) {
    char path[600], command[2048], definition[128];
    mkdir(dir, 0777);
    snprintf(path, sizeof path, "%s/%s.c", dir, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "static int there_; static inline void *t_(void) { return &there_; }\n%s", source);
    for (; *symbols; symbols++) {
        snprintf(definition, sizeof definition, " %s(", *symbols);
        if (!strstr(source, definition) && (!without || strcmp(without, *symbols) != 0))
            fprintf(f, "int %s(void) { return 0; }\n", *symbols);
    }
    assert_int_equal(fclose(f), 0);
    const char *cc = getenv("CC");
    snprintf(command, sizeof command, "%s -w -shared -fPIC %s -o %s/%s %s", cc ? cc : "cc", defines,
             dir, file, path);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

/* A folder of its own for each case: a library once opened stays, under its path. */
static const char *build_driver(const char *name, const char *defines, const char *without) {
    const char *dir = scratch_path(name);
    build_library(dir, "libcuda.so.1", driver_symbols, driver_source, defines, without);
    setenv(LIBS, dir, 1);
    return dir;
}

static void build_nvrtc(const char *dir, const char *file, const char *defines) {
    build_library(dir, file, nvrtc_symbols, nvrtc_source, defines, NULL);
}

static void build_cublaslt(const char *dir, const char *file, const char *defines) {
    build_library(dir, file, cublaslt_symbols, cublaslt_source, defines, NULL);
}

/* All three libraries, as a program without GPU code of its own needs them. */
static bool open_all(CudaApi **api, PeftError *err) {
    if (!cuda_api_open(api, err)) return false;
    if (cuda_api_need_compiler(*api, err)) return true;
    cuda_api_close(*api);
    *api = NULL;
    return false;
}

/* Opening fails and says all of this. */
#define assert_refused(...)                       \
    do {                                          \
        CudaApi *api_;                            \
        PeftError err_ = {0};                     \
        assert_false(open_all(&api_, &err_));     \
        assert_null(api_);                        \
        assert_message(&err_, __VA_ARGS__, NULL); \
    } while (0)

/* ---- what is missing is named ---- */

static void test_no_driver(void **state) {
    (void)state;
    if (dlopen("libcuda.so.1", RTLD_NOW)) {
        print_message("skip: this machine has an NVIDIA driver\n");
        skip();
    }
    const char *dir = scratch_path("empty");
    mkdir(dir, 0777);
    setenv(LIBS, dir, 1);
    assert_refused("no NVIDIA driver", "libcuda.so.1", "install the NVIDIA driver", "--device cpu");
    char path[600];
    snprintf(path, sizeof path, "%s/libcuda.so.1", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("not a library", f);
    fclose(f);
    assert_refused("no NVIDIA driver", path);
}

static void test_driver_cannot_be_used(void **state) {
    (void)state;
    build_driver("old", "-DVERSION=11080", "cuGraphLaunch");
    assert_refused("for CUDA 11.8", "12.0 or later", "update it");
    build_driver("part", "", "cuGraphLaunch");
    assert_refused("libcuda.so.1", "no function cuGraphLaunch", "reinstall");
    build_driver("none", "-DINIT=100", NULL);
    assert_refused("sees no GPU", "CUDA_VISIBLE_DEVICES");
    build_driver("broken", "-DINIT=999", NULL);
    assert_refused("does not start", "cuInit", "other", "999", "CUDA_ERROR_OTHER");
}

static void test_toolkit_missing(void **state) {
    (void)state;
    const char *dir = build_driver("bare12", "", NULL);
    assert_refused("no cuBLASLt", "libcublasLt.so.12", "nvidia-cublas-cu12", LIBS);
    build_cublaslt(dir, "libcublasLt.so.12", "");
    assert_refused("no NVRTC", "libnvrtc.so.12", "nvidia-cuda-nvrtc-cu12", LIBS);
    CudaApi *api;
    PeftError err = {0};
    if (!cuda_api_open(&api, &err)) fail_msg("%s", err.msg); /* without NVRTC */
    assert_int_equal(api->nvrtc_major, 0);
    cuda_api_close(api);
    dir = build_driver("bare13", "-DVERSION=13000", NULL);
    build_cublaslt(dir, "libcublasLt.so.13", "-DBLAS=130000");
    assert_refused("no NVRTC", "libnvrtc.so.13", "package nvidia-cuda-nvrtc,");
}

static void test_versions_must_fit(void **state) {
    (void)state;
    const char *dir = build_driver("mixed", "", NULL);
    build_nvrtc(dir, "libnvrtc.so.13", "-DMAJOR=13"); /* passed over with this driver */
    build_nvrtc(dir, "libnvrtc.so", "-DMAJOR=13");
    build_cublaslt(dir, "libcublasLt.so", "-DBLAS=110900");
    assert_refused("cuBLASLt is version 11.9", "12.0 or later");
    build_cublaslt(dir, "libcublasLt.so.12", "");
    assert_refused("NVRTC is version 13.3", "driver is for CUDA 12.4", "nvidia-cuda-nvrtc-cu12");
    build_nvrtc(dir, "libnvrtc.so.12", "");
    CudaApi *api;
    PeftError err = {0};
    if (!open_all(&api, &err)) fail_msg("%s", err.msg);
    assert_int_equal(api->driver_version, 12040);
    assert_int_equal(api->nvrtc_major, 12);
    assert_int_equal(api->nvrtc_minor, 3);
    assert_int_equal(api->cublaslt_version, 120304);
    cuda_api_close(api);
}

/* A folder of wheels, then the system's search, in one variable. */
static void test_site_packages(void **state) {
    (void)state;
    const char *dir = scratch_path("site");
    mkdir(dir, 0777);
    static const char *const level[] = {"nvidia", "nvidia/cuda_nvrtc", "nvidia/cuda_nvrtc/lib"};
    char path[600];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, level[i]);
        mkdir(path, 0777);
    }
    build_nvrtc(path, "libnvrtc.so.12", "");
    snprintf(path, sizeof path, "%s/nothing:%s", scratch, dir);
    setenv(LIBS, path, 1);
    CudaApi *api;
    PeftError err = {0};
    if (!cuda_api_open_compiler(&api, &err)) fail_msg("%s", err.msg);
    assert_int_equal(api->nvrtc_minor, 3);
    assert_int_equal(api->driver_version, 0);
    cuda_api_close(api);
}

/* ---- devices ---- */

static CudaApi *open_fake(const char *name, const char *defines) {
    const char *dir = build_driver(name, defines, NULL);
    build_nvrtc(dir, "libnvrtc.so.12", "");
    build_cublaslt(dir, "libcublasLt.so.12", "");
    CudaApi *api;
    PeftError err = {0};
    if (!open_all(&api, &err)) fail_msg("%s", err.msg);
    return api;
}

static void test_devices(void **state) {
    (void)state;
    CudaApi *api = open_fake("two", "-DCOUNT=2");
    CudaDevice d;
    PeftError err = {0};
    int count = 0;
    assert_true(cuda_device_count(api, &count, &err));
    assert_int_equal(count, 2);
    assert_true(cuda_device_open(api, 0, &d, &err));
    assert_string_equal(d.name, "Large GPU");
    assert_int_equal(d.major * 10 + d.minor, 90);
    assert_int_equal(d.multiprocessors, 116);
    assert_int_equal(d.shared_bytes, 197);
    assert_int_equal(d.l2_bytes, 138);
    assert_int_equal(d.total_bytes, 80000000000);
    assert_int_equal(d.free_bytes, 70000000000);
    cuda_device_close(api, &d);
    assert_false(cuda_device_open(api, 1, &d, &err));
    assert_message(&err, "GPU 1 (Small?\"GPU\")", "7.5", "8.0", "Ampere", NULL);
    err = (PeftError){0};
    assert_false(cuda_device_open(api, 2, &d, &err));
    assert_message(&err, "cuDeviceGet", "101", NULL);
    cuda_api_close(api);
}

/* A GPU that cannot be used is passed over; when none can, the first one's reason counts. */
static void test_first_usable_device(void **state) {
    (void)state;
    CudaApi *api = open_fake("second", "-DCOUNT=2 -DFIRST=1");
    CudaDevice d;
    PeftError err = {0};
    if (!cuda_device_open_first(api, &d, &err)) fail_msg("%s", err.msg);
    assert_int_equal(d.index, 1);
    assert_string_equal(err.msg, "");
    cuda_device_close(api, &d);
    cuda_api_close(api);
    api = open_fake("neither", "-DCOUNT=2 -DRETAIN=2");
    assert_false(cuda_device_open_first(api, &d, &err));
    assert_message(&err, "cuDevicePrimaryCtxRetain", "out of memory", NULL);
    assert_int_equal(err.code, 3);
    cuda_api_close(api);
}

static void test_device_refused(void **state) {
    (void)state;
    CudaDevice d;
    PeftError err = {0};
    CudaApi *api = open_fake("full", "-DRETAIN=2");
    assert_false(cuda_device_open(api, 0, &d, &err));
    assert_message(&err, "cuDevicePrimaryCtxRetain", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY",
                   NULL);
    assert_int_equal(err.code, 3);
    cuda_api_close(api);
    api = open_fake("prohibited", "-DMODE=2");
    err = (PeftError){0};
    assert_false(cuda_device_open(api, 0, &d, &err));
    assert_message(&err, "prohibited", "nvidia-smi", NULL);
    assert_int_equal(err.code, 0);
    cuda_api_close(api);
}

static char *printed_devices(bool json, bool *usable) {
    const char *path = scratch_path("devices");
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    *usable = cuda_devices_print(f, json);
    fclose(f);
    size_t n;
    return scratch_read(path, &n);
}

static void test_devices_print(void **state) {
    (void)state;
    bool usable;
    cuda_api_close(open_fake("list", "-DCOUNT=2"));
    char *text = printed_devices(false, &usable);
    assert_true(usable);
    assert_string_equal(text,
                        "driver    for CUDA 12.4\n"
                        "NVRTC     12.3\n"
                        "cuBLASLt  12.3.4\n"
                        "GPU 0     Large GPU, compute capability 9.0, 80000 MB, 70000 MB free\n"
                        "GPU 1     Small?\"GPU\", compute capability 7.5, 4000 MB\n"
                        "          cannot be used: GPU 1 (Small?\"GPU\") has compute "
                        "capability 7.5, expected 8.0 or later (Ampere or newer): choose "
                        "another GPU or use --device cpu\n");
    free(text);
    text = printed_devices(true, &usable);
    assert_true(usable);
    json_t *root = json_loads(text, 0, NULL), *gpus = json_object_get(root, "gpus");
    assert_int_equal(json_array_size(gpus), 2);
    json_t *first = json_array_get(gpus, 0), *second = json_array_get(gpus, 1);
    assert_true(json_is_true(json_object_get(first, "usable")));
    assert_true(json_real_value(json_object_get(first, "free_mb")) == 70000);
    assert_true(json_is_false(json_object_get(second, "usable")));
    assert_non_null(strstr(json_string_value(json_object_get(second, "why")), "Ampere"));
    json_decref(root);
    free(text);
}

static void test_devices_print_without_toolkit(void **state) {
    (void)state;
    bool usable;
    build_driver("list-bare", "", NULL);
    char *text = printed_devices(false, &usable);
    assert_false(usable);
    assert_non_null(strstr(text, "NVRTC     cannot be used: no NVRTC"));
    assert_non_null(strstr(text, "GPU 0     Large GPU"));
    free(text);
    text = printed_devices(true, &usable);
    json_t *root = json_loads(text, 0, NULL);
    const char *why = json_string_value(json_object_get(json_object_get(root, "cuBLASLt"), "why"));
    assert_non_null(why);
    assert_non_null(strstr(why, "no cuBLASLt"));
    json_decref(root);
    free(text);
}

/* The real libraries behind a driver that is not: every function of the tables is there. */
static void test_real_libraries(void **state) {
    (void)state;
    char libs[5000];
    const char *dir = build_driver("any", "-DVERSION=99000", NULL);
    snprintf(libs, sizeof libs, "%s:%s", dir, users_libs);
    setenv(LIBS, libs, 1);
    CudaApi *api;
    PeftError err = {0};
    if (!open_all(&api, &err)) {
        if (!strstr(err.msg, "cannot be opened")) fail_msg("%s", err.msg);
        print_message("skip: %s\n", err.msg);
        skip();
    }
    print_message("NVRTC %d.%d, cuBLASLt %zu\n", api->nvrtc_major, api->nvrtc_minor,
                  api->cublaslt_version);
    assert_true(api->cublaslt_version >= 120000);
    assert_non_null(
        strstr(api->cublasLtGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), "not supported"));
    cuda_api_close(api);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_driver),
        cmocka_unit_test(test_driver_cannot_be_used),
        cmocka_unit_test(test_toolkit_missing),
        cmocka_unit_test(test_versions_must_fit),
        cmocka_unit_test(test_site_packages),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_first_usable_device),
        cmocka_unit_test(test_device_refused),
        cmocka_unit_test(test_devices_print),
        cmocka_unit_test(test_devices_print_without_toolkit),
        cmocka_unit_test(test_real_libraries),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_drop);
}
