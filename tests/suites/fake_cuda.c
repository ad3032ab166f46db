/* A CUDA driver, NVRTC and cuBLASLt without a GPU, for what programs do around their kernels: every
 * call succeeds and computes nothing. Compiled twice and linked: with -DSTUBS the functions that
 * only succeed, without it those that give something back. FREE: bytes of free memory, MOST: that
 * it gives at once. Events are a microsecond apart; a cubin says which options it was compiled
 * with. BREAK: graphs that it launches well; the next one, and everything from then on, fails when
 * it is waited for. BREAK_KERNEL: the same for kernels, which fail at once. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda/api.h"

#ifdef STUBS

#define X(name, symbol, result, arguments)          \
    __attribute__((weak)) result symbol arguments;  \
    __attribute__((weak)) result symbol arguments { \
        return (result)0;                           \
    }
CUDA_DRIVER_API(X)
CUDA_NVRTC_API(X)
CUDA_CUBLASLT_API(X)
#undef X

#else

#ifndef FREE
#define FREE 70000000000
#endif
#ifndef MOST
#define MOST 70000000000
#endif
#ifndef BREAK
#define BREAK 1000000000
#endif
#ifndef BREAK_KERNEL
#define BREAK_KERNEL 1000000000
#endif
#ifndef MINOR
#define MINOR 0
#endif

static int something; /* that handles point to */
static size_t taken;

/* ---- the driver ---- */

CUresult cuDriverGetVersion(int *version) {
    *version = 12040;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    (void)device;
    strncpy(name, "Fake GPU", (size_t)size);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? 9
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? MINOR
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_MODE             ? 0
                                                                         : 200000;
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = 80000000000;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)device;
    *context = (CUcontext)&something;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = FREE - taken;
    *total_bytes = 80000000000;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    if (bytes > MOST) return CUDA_ERROR_OUT_OF_MEMORY;
    taken += bytes;
    *at = (CUdeviceptr)1 << 40;
    return CUDA_SUCCESS;
}

static int graphs, kernels; /* launched */

static CUresult state(void) {
    return graphs > BREAK || kernels > BREAK_KERNEL ? (CUresult)700 : CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    CUresult before = state();
    (void)exec, (void)stream;
    graphs++;
    return before;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **param, void **extra) {
    (void)config, (void)f, (void)param, (void)extra;
    kernels++;
    return state();
}

CUresult cuEventSynchronize(CUevent event) {
    (void)event;
    return state();
}

CUresult cuStreamSynchronize(CUstream stream) {
    (void)stream;
    return state();
}

CUresult cuGetErrorString(CUresult code, const char **text) {
    *text = code == 700 ? "an illegal memory access was encountered" : "error";
    return CUDA_SUCCESS;
}

CUresult cuMemAllocHost_v2(void **at, size_t bytes) {
    *at = calloc(1, bytes);
    return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemFreeHost(void *at) {
    free(at);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    (void)flags;
    *stream = (CUstream)&something;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    (void)flags;
    *event = (CUevent)&something;
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    (void)from, (void)to;
    *ms = 1e-3f;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    (void)stream;
    *graph = (CUgraph)&something;
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    (void)graph, (void)flags;
    *exec = (CUgraphExec)&something;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    (void)image;
    *module = (CUmodule)&something;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    (void)module, (void)name;
    *function = (CUfunction)&something;
    return CUDA_SUCCESS;
}

/* ---- NVRTC ---- */

nvrtcResult nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 3;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetNumSupportedArchs(int *count) {
    *count = 2;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetSupportedArchs(int *archs) {
    archs[0] = 80;
    archs[1] = 90;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name,
                               int header_count, const char *const *headers,
                               const char *const *header_names) {
    (void)source, (void)name, (void)header_count, (void)headers, (void)header_names;
    *program = calloc(1, 256);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    free(*program);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int option_count,
                                const char *const *options) {
    for (int i = 0; i < option_count; i++) strncat((char *)program, options[i], 40);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *size) {
    *size = strlen((char *)program) + 1;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) {
    strcpy(cubin, (char *)program);
    return NVRTC_SUCCESS;
}

/* ---- cuBLASLt ---- */

size_t cublasLtGetVersion(void) {
    return 120304;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
    (void)handle, (void)desc, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *found = requested > 0;
    if (requested > 0) memset(results, 0, sizeof *results);
    return CUBLAS_STATUS_SUCCESS;
}

#endif
