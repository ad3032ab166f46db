/* What device.c (libraries, memory, copies), graph.c (a function) and launch.c (one step) share. */
#ifndef PEFT_CUDA_INTERNAL_H
#define PEFT_CUDA_INTERNAL_H

#include "api.h"
#include "device.h"
#include "gemm.h"

enum {
    CUDA_LIBRARY_WORKSPACE = 4 << 20, /* bytes that one matrix product may use */
    CUDA_MAX_GRAPHS = 1024
};

typedef struct CudaGraph { /* a function for one size of batch */
    PeftFn fn;
    int64_t tokens, sequences, masked;
    bool launched;    /* step by step, once */
    CUgraphExec exec; /* captured, or NULL so far */
} CudaGraph;

struct CudaExec {
    CudaApi *api;
    CudaDevice gpu;
    CUstream stream;
    CUmodule module;
    CUfunction *kernel; /* by the program's kernels; NULL: nothing generated */
    CUfunction attention, attention_grad, index, segment_sum, transpose, dequant;
    CudaGemm *gemm;
    CUdeviceptr arena, sym;
    CudaGraph *graph;
    int ngraph;
    bool *touched; /* by variable: the host may have written it */
};

typedef struct CudaExec CudaExec;

/* The device's address of a place in the host's arena; 0 for NULL. */
CUdeviceptr cuda_address(const Exec *x, const void *host);

/* Launches one step on the stream. arg, workspace: places in the host's arena. */
bool cuda_step(const Exec *x, const PeftStep *s, void *const *arg, void *workspace,
               const int64_t sym[PEFT_SYM_COUNT], PeftError *err);

/* Waits for everything launched so far. what: for the message. */
bool cuda_wait(const Exec *x, const char *what, PeftError *err);

/* Launches all steps of a function for this size of batch. */
bool cuda_launch_function(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);
void cuda_drop_graphs(CudaExec *d);

#endif
