/* The CUDA driver, NVRTC and cuBLASLt as tables of functions found with dlopen. Building peftc
 * needs no CUDA header, and a machine without a GPU runs everything else; what is missing is named
 * together with what to install. Only what is called is declared: types and enum values are those
 * of the vendor's binary interface, symbols are the versioned ones behind cuda.h's macros, so every
 * declaration must stay as it is in the headers of CUDA 12.0 to 13. The libraries stay loaded until
 * the process ends (the driver registers exit handlers of its own).
 *
 * The environment's PEFTC_CUDA_LIBS=dir:dir names the folders where NVRTC and cuBLASLt are looked
 * for, and the driver first; each may be a library folder or a Python site-packages. An empty entry
 * ("dir:") stands for the system's own search, which is also what is done without the variable. */
#ifndef PEFT_CUDA_API_H
#define PEFT_CUDA_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "../error.h"

#define CUDA_MIN_DRIVER     12000 /* as cuDriverGetVersion counts: 1000 major + 10 minor */
#define CUDA_MIN_CAPABILITY 8     /* Ampere: bf16 tensor cores, asynchronous copies */

/* ---- types of the driver API ---- */

typedef enum CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600, /* of queries: the work is not done yet */
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
} CUresult;

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;

typedef enum CUdevice_attribute {
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_MODE = 20,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
} CUdevice_attribute;

typedef enum CUfunction_attribute {
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
} CUfunction_attribute;

typedef enum CUstreamCaptureMode {
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_STREAM_CAPTURE_MODE_RELAXED = 2
} CUstreamCaptureMode;

enum { CU_COMPUTEMODE_PROHIBITED = 2 };
enum { CU_STREAM_NON_BLOCKING = 1 };
enum { CU_EVENT_DEFAULT = 0, CU_EVENT_DISABLE_TIMING = 2 };
enum { CU_EVENT_RECORD_EXTERNAL = 1 }; /* captured: as a node of the graph */

enum { CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

typedef struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int programmatic;
    } value;
} CUlaunchAttribute;

typedef struct CUlaunchConfig {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    CUstream stream;
    CUlaunchAttribute *attribute;
    unsigned nattribute;
} CUlaunchConfig;

/* ---- types of NVRTC ---- */

typedef enum nvrtcResult { NVRTC_SUCCESS = 0, NVRTC_ERROR_COMPILATION = 6 } nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;

/* ---- types of cuBLASLt ---- */

typedef enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;

typedef enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum cudaDataType { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType;
enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };

typedef enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3, /* int32_t */
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,     /* uint32_t */
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8, /* of the result's type, a value for each of its rows */
    CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE = 10, /* int64_t */
} cublasLtMatmulDescAttributes_t;

enum { CUBLASLT_EPILOGUE_BIAS = 4 };

typedef enum cublasLtMatrixLayoutAttribute_t {
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,         /* int32_t */
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6 /* int64_t, elements */
} cublasLtMatrixLayoutAttribute_t;

typedef enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,   /* uint64_t */
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3, /* uint32_t */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, /* uint32_t, also the next three */
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
} cublasLtMatmulPreferenceAttributes_t;

enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };

/* 32 bits each, the last two 16. */
typedef enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_ID = 0,
    CUBLASLT_ALGO_CONFIG_TILE_ID = 1,
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM = 2,
    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3,
    CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING = 4,
    CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION = 5,
    CUBLASLT_ALGO_CONFIG_STAGES_ID = 6,
    CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID = 7,
    CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID = 8
} cublasLtMatmulAlgoConfigAttributes_t;

typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDescOpaque *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayoutOpaque *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreferenceOpaque *cublasLtMatmulPreference_t;

typedef struct cublasLtMatmulAlgo_t {
    uint64_t data[8]; /* opaque; may be copied, and stored for the same library version */
} cublasLtMatmulAlgo_t;

/* Filled in by the library, so size and offsets are checked here. */
typedef struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;
_Static_assert(sizeof(cublasLtMatmulAlgo_t) == 64, "cuBLASLt's binary interface");
_Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == 96, "cuBLASLt's binary interface");
_Static_assert(offsetof(cublasLtMatmulHeuristicResult_t, state) == 72, "cuBLASLt's interface");

/* ---- the functions: name, symbol, result, arguments ---- */

/* clang-format off */
#define CUDA_DRIVER_API(X)                                                                         \
    X(cuInit, cuInit, CUresult, (unsigned flags))                                                  \
    X(cuDriverGetVersion, cuDriverGetVersion, CUresult, (int *version))                            \
    X(cuGetErrorName, cuGetErrorName, CUresult, (CUresult code, const char **text))                \
    X(cuGetErrorString, cuGetErrorString, CUresult, (CUresult code, const char **text))            \
    X(cuDeviceGetCount, cuDeviceGetCount, CUresult, (int *count))                                  \
    X(cuDeviceGet, cuDeviceGet, CUresult, (CUdevice *device, int index))                           \
    X(cuDeviceGetName, cuDeviceGetName, CUresult, (char *name, int size, CUdevice device))         \
    X(cuDeviceGetAttribute, cuDeviceGetAttribute, CUresult,                                        \
      (int *value, CUdevice_attribute attribute, CUdevice device))                                 \
    X(cuDeviceTotalMem, cuDeviceTotalMem_v2, CUresult, (size_t *bytes, CUdevice device))           \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, CUresult,                                \
      (CUcontext *context, CUdevice device))                                                       \
    X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, CUresult, (CUdevice device))        \
    X(cuCtxSetCurrent, cuCtxSetCurrent, CUresult, (CUcontext context))                             \
    X(cuCtxSynchronize, cuCtxSynchronize, CUresult, (void))                                        \
    X(cuMemGetInfo, cuMemGetInfo_v2, CUresult, (size_t *free_bytes, size_t *total_bytes))          \
    X(cuMemAlloc, cuMemAlloc_v2, CUresult, (CUdeviceptr *at, size_t bytes))                        \
    X(cuMemFree, cuMemFree_v2, CUresult, (CUdeviceptr at))                                         \
    X(cuMemAllocHost, cuMemAllocHost_v2, CUresult, (void **at, size_t bytes))                      \
    X(cuMemFreeHost, cuMemFreeHost, CUresult, (void *at))                                          \
    X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, CUresult,                                           \
      (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                           \
    X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, CUresult,                                           \
      (void *to, CUdeviceptr from, size_t bytes, CUstream stream))                                 \
    X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, CUresult,                                           \
      (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                           \
    X(cuMemsetD8Async, cuMemsetD8Async, CUresult,                                                  \
      (CUdeviceptr at, unsigned char value, size_t count, CUstream stream))                        \
    X(cuMemsetD32Async, cuMemsetD32Async, CUresult,                                                \
      (CUdeviceptr at, unsigned value, size_t count, CUstream stream))                             \
    X(cuStreamCreate, cuStreamCreate, CUresult, (CUstream *stream, unsigned flags))                \
    X(cuStreamDestroy, cuStreamDestroy_v2, CUresult, (CUstream stream))                            \
    X(cuStreamSynchronize, cuStreamSynchronize, CUresult, (CUstream stream))                       \
    X(cuStreamQuery, cuStreamQuery, CUresult, (CUstream stream))                                   \
    X(cuStreamWaitEvent, cuStreamWaitEvent, CUresult,                                              \
      (CUstream stream, CUevent event, unsigned flags))                                            \
    X(cuStreamBeginCapture, cuStreamBeginCapture_v2, CUresult,                                     \
      (CUstream stream, CUstreamCaptureMode mode))                                                 \
    X(cuStreamEndCapture, cuStreamEndCapture, CUresult, (CUstream stream, CUgraph *graph))         \
    X(cuEventCreate, cuEventCreate, CUresult, (CUevent *event, unsigned flags))                    \
    X(cuEventDestroy, cuEventDestroy_v2, CUresult, (CUevent event))                                \
    X(cuEventRecord, cuEventRecord, CUresult, (CUevent event, CUstream stream))                    \
    X(cuEventRecordWithFlags, cuEventRecordWithFlags, CUresult,                                    \
      (CUevent event, CUstream stream, unsigned flags))                                            \
    X(cuEventQuery, cuEventQuery, CUresult, (CUevent event))                                       \
    X(cuEventSynchronize, cuEventSynchronize, CUresult, (CUevent event))                           \
    X(cuEventElapsedTime, cuEventElapsedTime, CUresult, (float *ms, CUevent from, CUevent to))     \
    X(cuGraphInstantiate, cuGraphInstantiateWithFlags, CUresult,                                   \
      (CUgraphExec *exec, CUgraph graph, unsigned long long flags))                                \
    X(cuGraphGetNodes, cuGraphGetNodes, CUresult,                                                  \
      (CUgraph graph, CUgraphNode *nodes, size_t *count))                                          \
    X(cuGraphUpload, cuGraphUpload, CUresult, (CUgraphExec exec, CUstream stream))                 \
    X(cuGraphLaunch, cuGraphLaunch, CUresult, (CUgraphExec exec, CUstream stream))                 \
    X(cuGraphDestroy, cuGraphDestroy, CUresult, (CUgraph graph))                                   \
    X(cuGraphExecDestroy, cuGraphExecDestroy, CUresult, (CUgraphExec exec))                        \
    X(cuModuleLoadData, cuModuleLoadData, CUresult, (CUmodule *module, const void *image))         \
    X(cuModuleUnload, cuModuleUnload, CUresult, (CUmodule module))                                 \
    X(cuModuleGetFunction, cuModuleGetFunction, CUresult,                                          \
      (CUfunction *function, CUmodule module, const char *name))                                   \
    X(cuModuleGetGlobal, cuModuleGetGlobal_v2, CUresult,                                           \
      (CUdeviceptr *at, size_t *bytes, CUmodule module, const char *name))                         \
    X(cuFuncGetAttribute, cuFuncGetAttribute, CUresult,                                            \
      (int *value, CUfunction_attribute attribute, CUfunction function))                           \
    X(cuFuncSetAttribute, cuFuncSetAttribute, CUresult,                                            \
      (CUfunction function, CUfunction_attribute attribute, int value))                            \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessor,    \
      CUresult, (int *blocks, CUfunction function, int block_threads, size_t shared_bytes))        \
    X(cuLaunchKernelEx, cuLaunchKernelEx, CUresult,                                                \
      (const CUlaunchConfig *config, CUfunction function, void **arg, void **extra))

#define CUDA_NVRTC_API(X)                                                                          \
    X(nvrtcVersion, nvrtcVersion, nvrtcResult, (int *major, int *minor))                           \
    X(nvrtcGetErrorString, nvrtcGetErrorString, const char *, (nvrtcResult code))                  \
    X(nvrtcGetNumSupportedArchs, nvrtcGetNumSupportedArchs, nvrtcResult, (int *count))             \
    X(nvrtcGetSupportedArchs, nvrtcGetSupportedArchs, nvrtcResult, (int *archs))                   \
    X(nvrtcCreateProgram, nvrtcCreateProgram, nvrtcResult,                                         \
      (nvrtcProgram *program, const char *source, const char *name, int header_count,              \
       const char *const *headers, const char *const *header_names))                               \
    X(nvrtcDestroyProgram, nvrtcDestroyProgram, nvrtcResult, (nvrtcProgram *program))              \
    X(nvrtcCompileProgram, nvrtcCompileProgram, nvrtcResult,                                       \
      (nvrtcProgram program, int option_count, const char *const *options))                        \
    X(nvrtcGetProgramLogSize, nvrtcGetProgramLogSize, nvrtcResult,                                 \
      (nvrtcProgram program, size_t *size))                                                        \
    X(nvrtcGetProgramLog, nvrtcGetProgramLog, nvrtcResult, (nvrtcProgram program, char *log))      \
    X(nvrtcGetCUBINSize, nvrtcGetCUBINSize, nvrtcResult, (nvrtcProgram program, size_t *size))     \
    X(nvrtcGetCUBIN, nvrtcGetCUBIN, nvrtcResult, (nvrtcProgram program, char *cubin))

#define CUDA_CUBLASLT_API(X)                                                                       \
    X(cublasLtGetVersion, cublasLtGetVersion, size_t, (void))                                      \
    X(cublasLtGetStatusString, cublasLtGetStatusString, const char *, (cublasStatus_t status))     \
    X(cublasLtCreate, cublasLtCreate, cublasStatus_t, (cublasLtHandle_t *handle))                  \
    X(cublasLtDestroy, cublasLtDestroy, cublasStatus_t, (cublasLtHandle_t handle))                 \
    X(cublasLtMatmulDescCreate, cublasLtMatmulDescCreate, cublasStatus_t,                          \
      (cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType scale))               \
    X(cublasLtMatmulDescDestroy, cublasLtMatmulDescDestroy, cublasStatus_t,                        \
      (cublasLtMatmulDesc_t desc))                                                                 \
    X(cublasLtMatmulDescSetAttribute, cublasLtMatmulDescSetAttribute, cublasStatus_t,              \
      (cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value,     \
       size_t size))                                                                               \
    X(cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutCreate, cublasStatus_t,                      \
      (cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t cols,            \
       int64_t ld))                                                                                \
    X(cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayoutSetAttribute, cublasStatus_t,          \
      (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute,                   \
       const void *value, size_t size))                                                            \
    X(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutDestroy, cublasStatus_t,                    \
      (cublasLtMatrixLayout_t layout))                                                             \
    X(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceCreate, cublasStatus_t,              \
      (cublasLtMatmulPreference_t *preference))                                                    \
    X(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreferenceDestroy, cublasStatus_t,            \
      (cublasLtMatmulPreference_t preference))                                                     \
    X(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreferenceSetAttribute, cublasStatus_t,  \
      (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,      \
       const void *value, size_t size))                                                            \
    X(cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulAlgoGetHeuristic, cublasStatus_t,              \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,               \
       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,               \
       cublasLtMatmulPreference_t preference, int requested,                                       \
       cublasLtMatmulHeuristicResult_t *results, int *found))                                      \
    X(cublasLtMatmulAlgoCheck, cublasLtMatmulAlgoCheck, cublasStatus_t,                            \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,               \
       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,               \
       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result))                 \
    X(cublasLtMatmulAlgoConfigGetAttribute, cublasLtMatmulAlgoConfigGetAttribute, cublasStatus_t,  \
      (const cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t attribute,           \
       void *value, size_t size, size_t *written))                                                 \
    X(cublasLtMatmul, cublasLtMatmul, cublasStatus_t,                                              \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,       \
       cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,            \
       const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,                  \
       cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,         \
       size_t workspace_bytes, CUstream stream))
/* clang-format on */

/* The tables together; all fields are read-only after opening, so threads may share it. */
typedef struct CudaApi {
    int driver_version;           /* 12040 for CUDA 12.4; 0 when no driver was opened */
    int nvrtc_major, nvrtc_minor; /* 0 when NVRTC was not opened */
    size_t cublaslt_version;      /* 130100 for 13.1.0; 0 when cuBLASLt was not opened */
#define X(name, symbol, result, arguments) result(*name) arguments;
    CUDA_DRIVER_API(X)
    CUDA_NVRTC_API(X)
    CUDA_CUBLASLT_API(X)
#undef X
} CudaApi;

/* Opens the driver and cuBLASLt and initialises the driver. On failure *out is NULL and the message
 * names the library, what was found and what to install. */
bool cuda_api_open(CudaApi **out, PeftError *err);

/* The same in two parts: the driver alone, and cuBLASLt when that has not been done. */
bool cuda_api_open_driver(CudaApi **out, PeftError *err);
bool cuda_api_need_products(CudaApi *api, PeftError *err);

/* Opens NVRTC too, when that has not been done. */
bool cuda_api_need_compiler(CudaApi *api, PeftError *err);

/* NVRTC alone: compiling for a named architecture needs neither a GPU nor a driver. */
bool cuda_api_open_compiler(CudaApi **out, PeftError *err);

void cuda_api_close(CudaApi *api); /* NULL is fine */

/* True when the driver call `what` (its name, or what was being done) succeeded; else a message
 * with the driver's name and text of the error. Exit code 3 when the GPU has no memory left. */
bool cuda_ok(CUresult code, const char *what, PeftError *err);

typedef struct CudaDevice {
    int index; /* as CUDA_VISIBLE_DEVICES numbers them */
    CUdevice handle;
    CUcontext context; /* the primary one, retained and current while the device is open */
    char name[128];
    int major, minor; /* compute capability */
    int multiprocessors;
    int shared_bytes;               /* a block may have, opted in */
    int l2_bytes;                   /* size of the L2 cache */
    size_t total_bytes, free_bytes; /* memory of the GPU, when it was opened */
} CudaDevice;

bool cuda_device_count(const CudaApi *api, int *count, PeftError *err);

/* Describes a GPU (no context is made, free_bytes is 0). */
bool cuda_device_describe(const CudaApi *api, int index, CudaDevice *device, PeftError *err);

/* Makes a GPU's primary context current in this thread; one that peftc cannot use (older than
 * Ampere, compute mode prohibited, no context to be had) is refused with the reason. */
bool cuda_device_open(const CudaApi *api, int index, CudaDevice *device, PeftError *err);

/* Opens the first GPU that can be used; the reason is the first one's when none can. */
bool cuda_device_open_first(const CudaApi *api, CudaDevice *device, PeftError *err);
void cuda_device_close(const CudaApi *api, CudaDevice *device);

/* Lists libraries and GPUs with their memory, as text or as one JSON object, and why something
 * cannot be used. True when at least one GPU can be used. */
bool cuda_devices_print(FILE *out, bool json);

#endif
