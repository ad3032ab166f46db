/* From CUDA C to a loaded function: NVRTC compiles a source to a cubin for one architecture (no GPU
 * is needed), the cubin is kept in the cache (cubin_cache.h), and the driver loads it into the
 * current context. The stages are separate calls, so that compiling ahead of time and in parallel
 * is the same code as compiling at first use; all state is in the arguments. */
#ifndef PEFT_CUDA_MODULE_H
#define PEFT_CUDA_MODULE_H

#include "api.h"

/* Compiles `source` for compute capability major.minor, or takes the result of an earlier process.
 * Options are added to -arch=sm_XY --std=c++17 -default-device. `name` stands for the source in
 * messages and debug information ("k017_bias_gelu_3072.cu"). *cubin is to be freed. On a compile
 * error err has the first error's line and stderr cuda_compile_report's text. Thread-safe. */
bool cuda_compile(const CudaApi *api, const char *source, const char *name, int major, int minor,
                  const char *const *options, int noptions, char **cubin, size_t *n,
                  PeftError *err);

/* What a person needs to repair a source that does not compile: the options, NVRTC's log, and the
 * numbered lines around each error with the kernel that they are in. Bounded (at most 16 errors, 16
 * KB of log, 160 characters of a line); to be freed, NULL when there is no memory. */
char *cuda_compile_report(const char *name, const char *source, const char *const *options,
                          int noptions, const char *log);

/* Loads a whole cubin into the current context: the driver takes no size. */
bool cuda_module_load(const CudaApi *api, const void *cubin, CUmodule *module, PeftError *err);
void cuda_module_unload(const CudaApi *api, CUmodule module); /* NULL is fine */

#endif
