/* Finding and opening the libraries, choosing versions that work together, and describing GPUs. A
 * library is opened only with all functions of its table present. NVRTC and cuBLASLt of a newer
 * major version than the driver's make code that the driver refuses to load, so the newest one
 * that the driver can use is taken. */
#include "api.h"

#include <dlfcn.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBS_VARIABLE "PEFTC_CUDA_LIBS"

/* ---- finding a library ---- */

/* Why the first copy found would not open; empty when there was none. */
typedef struct Refusal {
    char text[384];
} Refusal;

static void *open_path(const char *path, Refusal *why) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library) return library;
    const char *text = dlerror();
    if (text && !why->text[0]) snprintf(why->text, sizeof why->text, "%s", text);
    return NULL;
}

/* The folder itself, and below a Python site-packages where wheels put the libraries. */
static void *open_in_folder(const char *dir, size_t n, const char *name, Refusal *why) {
    static const char *const below[] = {"", "nvidia/cu13/lib/", "nvidia/cuda_nvrtc/lib/",
                                        "nvidia/cublas/lib/"};
    for (size_t i = 0; i < sizeof below / sizeof *below; i++) {
        char path[4096];
        int length = snprintf(path, sizeof path, "%.*s/%s%s", (int)n, dir, below[i], name);
        if (length < 0 || (size_t)length >= sizeof path || access(path, F_OK) != 0) continue;
        void *library = open_path(path, why);
        if (library) return library;
    }
    return NULL;
}

/* Folders of the variable in order; an empty entry, or an unset variable, is the system's search.
 */
static void *open_library(const char *name, Refusal *why) {
    const char *dirs = getenv(LIBS_VARIABLE);
    if (!dirs) return open_path(name, why);
    for (;;) {
        size_t n = strcspn(dirs, ":");
        void *library = n ? open_in_folder(dirs, n, name, why) : open_path(name, why);
        if (library || !dirs[n]) return library;
        dirs += n + 1;
    }
}

static const char *refusal_text(const Refusal *why) {
    if (why->text[0]) return why->text;
    return "not in the folders of " LIBS_VARIABLE;
}

/* ---- tables of functions ---- */

typedef struct Symbol {
    size_t offset; /* of the function pointer in CudaApi */
    const char *name;
} Symbol;

#define X(name, symbol, result, arguments) {offsetof(CudaApi, name), #symbol},
static const Symbol driver_symbols[] = {CUDA_DRIVER_API(X)};
static const Symbol nvrtc_symbols[] = {CUDA_NVRTC_API(X)};
static const Symbol cublaslt_symbols[] = {CUDA_CUBLASLT_API(X)};
#undef X
#define COUNT(table) (sizeof(table) / sizeof *(table))

/* Fills in the pointers; the first function that is not there, or NULL. */
static const char *bind_symbols(CudaApi *api, void *library, const Symbol *symbol, size_t n) {
    const char *missing = NULL;
    for (size_t i = 0; i < n; i++) {
        void *at = dlsym(library, symbol[i].name);
        memcpy((char *)api + symbol[i].offset, &at, sizeof at);
        if (!at && !missing) missing = symbol[i].name;
    }
    return missing;
}

/* ---- the driver ---- */

/* A process has one driver; its texts serve cuda_ok, which is called with a result alone. */
static CUresult (*_Atomic error_name)(CUresult, const char **);
static CUresult (*_Atomic error_string)(CUresult, const char **);

bool cuda_ok(CUresult code, const char *what, PeftError *err) {
    if (code == CUDA_SUCCESS) return true;
    const char *name = NULL, *text = NULL;
    if (error_name) error_name(code, &name);
    if (error_string) error_string(code, &text);
    if (err && !err->msg[0] && code == CUDA_ERROR_OUT_OF_MEMORY) err->code = 3;
    return peft_fail(err, "%s: %s (error %d%s%s)", what, text ? text : "CUDA error", (int)code,
                     name ? ", " : "", name ? name : "");
}

static bool open_driver(CudaApi *api, PeftError *err) {
    Refusal why = {0};
    void *library = open_library("libcuda.so.1", &why);
    if (!library) library = open_path("libcuda.so.1", &why);
    if (!library)
        return peft_fail(err,
                         "no NVIDIA driver: libcuda.so.1 cannot be opened (%s); install the NVIDIA "
                         "driver (525.60 or later, for CUDA 12.0) or use --device cpu",
                         refusal_text(&why));
    const char *missing = bind_symbols(api, library, driver_symbols, COUNT(driver_symbols));
    int version = 0;
    if (api->cuDriverGetVersion && api->cuDriverGetVersion(&version) == CUDA_SUCCESS &&
        version < CUDA_MIN_DRIVER)
        return peft_fail(err,
                         "the NVIDIA driver is for CUDA %d.%d, expected %d.%d or later: update it "
                         "(525.60 or later) or use --device cpu",
                         version / 1000, version % 1000 / 10, CUDA_MIN_DRIVER / 1000,
                         CUDA_MIN_DRIVER % 1000 / 10);
    if (missing)
        return peft_fail(err, "libcuda.so.1 has no function %s: reinstall the NVIDIA driver",
                         missing);
    error_name = api->cuGetErrorName;
    error_string = api->cuGetErrorString;
    CUresult code = api->cuInit(0);
    if (code == CUDA_ERROR_NO_DEVICE)
        return peft_fail(err, "the NVIDIA driver sees no GPU: check nvidia-smi and "
                              "CUDA_VISIBLE_DEVICES, or use --device cpu");
    if (!cuda_ok(code, "the NVIDIA driver does not start: cuInit", err)) return false;
    api->driver_version = version;
    return true;
}

/* ---- NVRTC and cuBLASLt ---- */

typedef struct Toolkit { /* a library of the CUDA toolkit, by file name, newest first */
    const char *title, *file[3], *package;
} Toolkit;

static const Toolkit nvrtc_toolkit = {
    "NVRTC", {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}, "nvidia-cuda-nvrtc"};
static const Toolkit cublaslt_toolkit = {
    "cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, "nvidia-cublas"};

/* With a driver for CUDA 12, version 13 is passed over. */
static void *open_toolkit(const CudaApi *api, const Toolkit *t, PeftError *err) {
    Refusal why = {0};
    bool old = api->driver_version && api->driver_version < 13000;
    for (int i = old; i < 3; i++) {
        void *library = open_library(t->file[i], &why);
        if (library) return library;
    }
    peft_fail(err,
              "no %s: %s cannot be opened (%s); install it with the CUDA toolkit or the Python "
              "package %s%s, and name its folder in " LIBS_VARIABLE " when it is not found",
              t->title, t->file[old], refusal_text(&why), t->package, old ? "-cu12" : "");
    return NULL;
}

static bool version_fits(const CudaApi *api, const Toolkit *t, int major, int minor,
                         PeftError *err) {
    int driver = api->driver_version / 1000;
    if (major < 12)
        return peft_fail(err, "%s is version %d.%d, expected 12.0 or later: install a newer %s",
                         t->title, major, minor, t->package);
    if (driver && major > driver)
        return peft_fail(err,
                         "%s is version %d.%d and the NVIDIA driver is for CUDA %d.%d: update the "
                         "driver or install %s-cu%d",
                         t->title, major, minor, driver, api->driver_version % 1000 / 10,
                         t->package, driver);
    return true;
}

static bool has_all(const Toolkit *t, const char *missing, PeftError *err) {
    if (!missing) return true;
    return peft_fail(err, "%s has no function %s: install version 12.0 or later (%s)", t->title,
                     missing, t->package);
}

/* NVRTC opens its second library by name when it first compiles, which in a folder of ours succeeds
 * only if nothing (an address sanitizer, say) hides from the loader who asks: loaded before, it is
 * found by that name. Where it is missing, NVRTC says so itself. */
static void load_builtins(int major, int minor) {
    char name[64];
    Refusal ignored = {0};
    snprintf(name, sizeof name, "libnvrtc-builtins.so.%d.%d", major, minor);
    open_library(name, &ignored);
}

static bool open_nvrtc(CudaApi *api, PeftError *err) {
    const Toolkit *t = &nvrtc_toolkit;
    void *library = open_toolkit(api, t, err);
    if (!library) return false;
    int major = 0, minor = 0;
    if (!has_all(t, bind_symbols(api, library, nvrtc_symbols, COUNT(nvrtc_symbols)), err))
        return false;
    if (api->nvrtcVersion(&major, &minor) != NVRTC_SUCCESS)
        return peft_fail(err, "NVRTC does not tell its version: reinstall %s", t->package);
    if (!version_fits(api, t, major, minor, err)) return false;
    api->nvrtc_major = major;
    api->nvrtc_minor = minor;
    load_builtins(major, minor);
    return true;
}

static bool open_cublaslt(CudaApi *api, PeftError *err) {
    const Toolkit *t = &cublaslt_toolkit;
    void *library = open_toolkit(api, t, err);
    if (!library) return false;
    if (!has_all(t, bind_symbols(api, library, cublaslt_symbols, COUNT(cublaslt_symbols)), err))
        return false;
    size_t version = api->cublasLtGetVersion();
    if (!version_fits(api, t, (int)(version / 10000), (int)(version % 10000 / 100), err))
        return false;
    api->cublaslt_version = version;
    return true;
}

/* ---- opening ---- */

static bool open_part(CudaApi **out, bool (*open)(CudaApi *, PeftError *), PeftError *err) {
    CudaApi *api = *out = peft_zalloc(1, sizeof *api, err);
    if (!api) return false;
    if (open(api, err)) return true;
    cuda_api_close(api);
    *out = NULL;
    return false;
}

static bool open_all(CudaApi *api, PeftError *err) {
    return open_driver(api, err) && open_cublaslt(api, err);
}

bool cuda_api_open(CudaApi **out, PeftError *err) {
    return open_part(out, open_all, err);
}

bool cuda_api_open_driver(CudaApi **out, PeftError *err) {
    return open_part(out, open_driver, err);
}

bool cuda_api_open_compiler(CudaApi **out, PeftError *err) {
    return open_part(out, open_nvrtc, err);
}

bool cuda_api_need_products(CudaApi *api, PeftError *err) {
    return api->cublaslt_version || open_cublaslt(api, err);
}

bool cuda_api_need_compiler(CudaApi *api, PeftError *err) {
    return api->nvrtc_major || open_nvrtc(api, err);
}

void cuda_api_close(CudaApi *api) {
    free(api);
}

/* ---- devices ---- */

bool cuda_device_count(const CudaApi *api, int *count, PeftError *err) {
    return cuda_ok(api->cuDeviceGetCount(count), "cuDeviceGetCount", err);
}

static bool read_attribute(const CudaApi *api, CUdevice device, CUdevice_attribute which,
                           int *value, PeftError *err) {
    return cuda_ok(api->cuDeviceGetAttribute(value, which, device), "cuDeviceGetAttribute", err);
}

bool cuda_device_describe(const CudaApi *api, int index, CudaDevice *device, PeftError *err) {
    *device = (CudaDevice){.index = index};
    CudaDevice *d = device;
    if (!cuda_ok(api->cuDeviceGet(&d->handle, index), "cuDeviceGet", err) ||
        !cuda_ok(api->cuDeviceGetName(d->name, sizeof d->name, d->handle), "cuDeviceGetName", err))
        return false;
    d->name[sizeof d->name - 1] = 0;
    for (char *p = d->name; *p; p++)
        if (*p < ' ' || *p > '~') *p = '?';
    return read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &d->major,
                          err) &&
           read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &d->minor,
                          err) &&
           read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                          &d->multiprocessors, err) &&
           read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                          &d->shared_bytes, err) &&
           read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &d->l2_bytes, err) &&
           cuda_ok(api->cuDeviceTotalMem(&d->total_bytes, d->handle), "cuDeviceTotalMem", err);
}

static bool can_be_used(const CudaApi *api, const CudaDevice *d, PeftError *err) {
    int mode = 0;
    if (d->major < CUDA_MIN_CAPABILITY)
        return peft_fail(err,
                         "GPU %d (%s) has compute capability %d.%d, expected %d.0 or later (Ampere "
                         "or newer): choose another GPU or use --device cpu",
                         d->index, d->name, d->major, d->minor, CUDA_MIN_CAPABILITY);
    if (!read_attribute(api, d->handle, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, &mode, err)) return false;
    if (mode == CU_COMPUTEMODE_PROHIBITED)
        return peft_fail(err,
                         "GPU %d (%s) is in compute mode prohibited: choose another GPU, or set it "
                         "to default with nvidia-smi -c 0",
                         d->index, d->name);
    return true;
}

bool cuda_device_open(const CudaApi *api, int index, CudaDevice *device, PeftError *err) {
    if (!cuda_device_describe(api, index, device, err) || !can_be_used(api, device, err))
        return false;
    if (!cuda_ok(api->cuDevicePrimaryCtxRetain(&device->context, device->handle),
                 "cannot start using the GPU: cuDevicePrimaryCtxRetain", err)) {
        device->context = NULL;
        return false;
    }
    size_t total;
    if (cuda_ok(api->cuCtxSetCurrent(device->context), "cuCtxSetCurrent", err) &&
        cuda_ok(api->cuMemGetInfo(&device->free_bytes, &total), "cuMemGetInfo", err))
        return true;
    cuda_device_close(api, device);
    return false;
}

bool cuda_device_open_first(const CudaApi *api, CudaDevice *device, PeftError *err) {
    int count = 0;
    PeftError first = {{0}, 0};
    if (!cuda_device_count(api, &count, err)) return false;
    for (int i = 0; i < count; i++) {
        PeftError why = {{0}, 0};
        if (cuda_device_open(api, i, device, &why)) return true;
        if (i == 0) first = why;
    }
    if (count == 0)
        return peft_fail(err, "the NVIDIA driver counts no GPU: check nvidia-smi and "
                              "CUDA_VISIBLE_DEVICES, or use --device cpu");
    err->code = first.code;
    return peft_fail(err, "%s", first.msg);
}

void cuda_device_close(const CudaApi *api, CudaDevice *device) {
    if (!device->context) return;
    api->cuCtxSetCurrent(NULL);
    api->cuDevicePrimaryCtxRelease(device->handle);
    device->context = NULL;
}

/* ---- the list of devices ---- */

typedef struct Listing {
    FILE *out;
    json_t *gpus; /* NULL when printing text */
    int usable;
} Listing;

static void list_device(const CudaApi *api, int index, Listing *l) {
    CudaDevice d;
    PeftError why = {0};
    bool open = cuda_device_open(api, index, &d, &why);
    l->usable += open;
    double total = (double)d.total_bytes / 1e6, available = (double)d.free_bytes / 1e6;
    if (l->gpus) {
        json_t *gpu =
            json_pack("{s:i, s:s, s:[ii], s:f, s:b}", "index", index, "name", d.name,
                      "compute_capability", d.major, d.minor, "total_mb", total, "usable", open);
        if (open) json_object_set_new(gpu, "free_mb", json_real(available));
        if (!open) json_object_set_new(gpu, "why", json_string(why.msg));
        json_array_append_new(l->gpus, gpu);
    } else {
        fprintf(l->out, "GPU %d     %s, compute capability %d.%d, %.0f MB", index, d.name, d.major,
                d.minor, total);
        if (open) fprintf(l->out, ", %.0f MB free\n", available);
        if (!open) fprintf(l->out, "\n          cannot be used: %s\n", why.msg);
    }
    if (open) cuda_device_close(api, &d);
}

static void list_library(const char *name, const char *version, const PeftError *why, Listing *l,
                         json_t *json) {
    bool open = !why->msg[0];
    if (json)
        json_object_set_new(
            json, name, json_pack("{s:s}", open ? "version" : "why", open ? version : why->msg));
    else
        fprintf(l->out, "%-9s %s%s\n", name,
                open ? "" : "cannot be used: ", open ? version : why->msg);
}

static void list_all(CudaApi *api, Listing *l, json_t *json) {
    PeftError driver = {0}, nvrtc = {0}, cublaslt = {0};
    char version[3][48];
    bool have_driver = open_driver(api, &driver);
    bool have_tools = open_nvrtc(api, &nvrtc);
    have_tools = open_cublaslt(api, &cublaslt) && have_tools;
    snprintf(version[0], sizeof *version, "for CUDA %d.%d", api->driver_version / 1000,
             api->driver_version % 1000 / 10);
    snprintf(version[1], sizeof *version, "%d.%d", api->nvrtc_major, api->nvrtc_minor);
    snprintf(version[2], sizeof *version, "%zu.%zu.%zu", api->cublaslt_version / 10000,
             api->cublaslt_version % 10000 / 100, api->cublaslt_version % 100);
    list_library("driver", version[0], &driver, l, json);
    list_library("NVRTC", version[1], &nvrtc, l, json);
    list_library("cuBLASLt", version[2], &cublaslt, l, json);
    int count = 0;
    if (have_driver) cuda_device_count(api, &count, NULL);
    for (int i = 0; i < count; i++) list_device(api, i, l);
    if (!have_tools) l->usable = 0;
}

bool cuda_devices_print(FILE *out, bool json) {
    CudaApi api = {0};
    Listing l = {.out = out};
    if (!json) {
        list_all(&api, &l, NULL);
        return l.usable > 0;
    }
    json_t *root = json_object();
    l.gpus = json_array();
    list_all(&api, &l, root);
    json_object_set_new(root, "gpus", l.gpus);
    json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(root);
    return l.usable > 0;
}
