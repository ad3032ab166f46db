/* A program's CUDA as loaded functions. Its source is compiled in parts, in parallel: the templates
 * that every program has, and its own kernels in groups of about the same size. Parts come from the
 * executable (peftc --arch compiled them), else from the cache, else from NVRTC, which is opened
 * only then. The invariant: a part is a function of program, compute type and architecture alone,
 * so that it does not matter where it came from. */
#ifndef PEFT_CUDA_CODE_H
#define PEFT_CUDA_CODE_H

#include "../exec.h"
#include "api.h"

enum { CUDA_CODE_PARTS = 9, CUDA_TEMPLATE_PARTS = 3 };

typedef struct CudaSourcePart { /* of the program's source */
    const char *begin;
    size_t bytes;
} CudaSourcePart;

/* The templates' parts come first, nothing of the source; the others share its kernels, none of
 * them cut, by length of text. */
void cuda_code_split(const char *source, CudaSourcePart part[CUDA_CODE_PARTS]);

/* Compiles all parts for one architecture; images are to be freed. api: with NVRTC opened. */
bool cuda_code_compile(const CudaApi *api, const PeftProgram *p, Compute compute, int major,
                       int minor, PeftCubin part[CUDA_CODE_PARTS], PeftError *err);

/* The executable has all parts for a GPU of this compute capability: NVRTC is not needed. */
bool cuda_code_is_built_in(const PeftProgram *p, Compute compute, int major, int minor);

/* Parts of what every program has. */
enum { CUDA_PART_ATTENTION, CUDA_PART_ATTENTION_GRAD, CUDA_PART_TEMPLATES };

/* The part that a kernel of the source is in. */
int cuda_code_part(const char *source, const char *name);

typedef struct CudaCode {
    CUmodule module[CUDA_CODE_PARTS];
} CudaCode;

/* Loads the program's code into the current context. *code must be zero, and is to be closed
 * whatever the result. */
bool cuda_code_open(CudaCode *code, CudaApi *api, const PeftProgram *p, Compute compute,
                    const CudaDevice *gpu, PeftError *err);
void cuda_code_close(CudaCode *code, const CudaApi *api);

/* A kernel by its extern "C" name and part. */
bool cuda_code_function(const CudaCode *code, const CudaApi *api, int part, const char *name,
                        CUfunction *function, PeftError *err);

#endif
