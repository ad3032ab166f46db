/* What device.c (libraries, memory, copies), graph.c (a function) and launch.c (one step) share. */
#ifndef PEFT_CUDA_INTERNAL_H
#define PEFT_CUDA_INTERNAL_H

#include <pthread.h>

#include "api.h"
#include "code.h"
#include "device.h"
#include "gemm.h"
#include "order.h"
#include "tune.h"
#include "timing.h"

/* The environment's limit of streams; 1: one step after the other. */
#define CUDA_STREAMS_VARIABLE "PEFTC_CUDA_STREAMS"
#define CUDA_GRAPH_VARIABLE   "PEFTC_CUDA_GRAPH"

enum {
    CUDA_HEADROOM = 128000000, /* bytes beside the arena: kernels, graphs, the library */
    CUDA_MAX_GRAPHS = 1024,
    CUDA_STREAMS = 3, /* that a function's steps are spread over */
    CUDA_MAX_STREAMS = 32
};

typedef struct CudaOrder { /* of a function's steps */
    Order order;
    CUevent *event;    /* by step, then that of the start; NULL where nobody waits for it */
    void *const **arg; /* by step of the program: its first argument */
} CudaOrder;

typedef struct CudaGraph { /* a function for one size of batch */
    PeftFn fn;
    int64_t tokens, sequences, masked;
    bool tuned;       /* products have their algorithms */
    bool launched;    /* step by step, once */
    CUgraphExec exec; /* captured, or NULL so far */
} CudaGraph;

typedef enum CudaValue { /* of a variable, where it is */
                         CUDA_NOWHERE,
                         CUDA_HOST, /* the host may have written it */
                         CUDA_ZERO, /* to be set to zero, as nothing was written yet */
                         CUDA_DEVICE
} CudaValue;

typedef struct CudaWarmUp { /* of a function (warm_up.c) */
    pthread_t thread;
    bool running;
    Exec *exec;
    PeftFn fn;
    int64_t size[PEFT_SYM_COUNT];
} CudaWarmUp;

struct CudaExec {
    CudaApi *api;
    CudaDevice gpu;
    CUstream stream;                     /* of copies, graphs, and the steps of no other */
    CUstream side[CUDA_MAX_STREAMS - 1]; /* of steps that run beside it; NULL: not needed yet */
    CUstream current;                    /* that a step is launched on */
    bool overlap; /* kernels may be set up before the one before them on the stream has ended */
    CudaOrder order[PEFT_FN_COUNT];   /* of functions that were launched */
    CudaTiming timing[PEFT_FN_COUNT]; /* of functions that are profiled */
    CudaCode code;
    CUfunction *kernel; /* by the program's kernels; NULL: nothing generated */
    CUfunction attention, attention_grad, index, segment_sum, transpose, dequant, receive, send;
    CudaGemm *gemm;
    CudaTuner *tuner;
    CUdeviceptr arena, sym;
    bool plain; /* no graphs: steps are launched one by one each time */
    CudaGraph *graph;
    int ngraph;
    uint8_t *value;          /* CudaValue, by variable */
    bool ahead;              /* the device may have changed variables since they were copied back */
    struct CudaQueue *queue; /* of submitted runs; made by the first */
    CudaWarmUp warm_up;
};

typedef struct CudaExec CudaExec;

/* The device's address of a place in the host's arena; 0 for NULL. */
CUdeviceptr cuda_address(const Exec *x, const void *host);

/* Steps of the program that are one launch: mostly one, or up to PEFT_GROUP of a kernel for
 * several, or a batch of products. Buffers are places in the host's arena. */
typedef struct CudaMembers {
    const PeftStep *step; /* the first one */
    void *const *arg[PEFT_GROUP];
    void *workspace[PEFT_GROUP];
    int n;
    OrderPart part;
} CudaMembers;

/* Step i of a function's order. */
CudaMembers cuda_members(const Exec *x, PeftFn fn, int i);

/* What steps need and can have before their operands are there: quantised weights, each dequantised
 * into its step's workspace, in one launch. It comes before cuda_step. */
bool cuda_prepare(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT],
                  PeftError *err);

/* Launches them on the current stream, or the part of them that is not cuda_prepare's. */
bool cuda_step(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT],
               PeftError *err);

/* A batch and its symbols from page-locked memory, and a function's scalars into it, on the stream.
 */
bool cuda_receive(const Exec *x, const void *inputs, CUdeviceptr to, size_t bytes,
                  const int64_t sym[PEFT_SYM_COUNT], PeftError *err);
bool cuda_send(const Exec *x, PeftFn fn, float scalar[EXEC_SCALARS], PeftError *err);

/* The product that they are, a batch when they are several; a quantised B is what was dequantised
 * into the workspace. */
CudaMatmul cuda_product(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT]);

/* Whether a program's kernel is launched: computing in bf16 and the GPU's memory of a block may
 * decide it. */
bool cuda_has_kernel(const Exec *x, const PeftKernel *k);

/* Whether two products through a narrow middle, of which s is the first, are one kernel for a batch
 * of this size. */
bool cuda_is_narrow(const Exec *x, const PeftStep *s, const int64_t sym[PEFT_SYM_COUNT]);

/* Settles the algorithms of a function's products for this size of batch (tune.h). To be called at
 * the function's start, when all its temporaries are dead, and before it is launched. */
bool cuda_tune_function(const Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                        PeftError *err);

/* Bytes that the library may use for one product. */
int64_t cuda_library_workspace(const PeftGemm *g);

/* Waits for everything launched so far. what: for the message. */
bool cuda_wait(const Exec *x, const char *what, PeftError *err);

/* The code of a wait for a function's results; the message says what a user can do. */
bool cuda_function_ended(CUresult code, PeftError *err);

/* Whether the environment wants no graphs, nor anything else that runs ahead of its turn. */
bool cuda_graph_switch(bool *plain, PeftError *err);

/* Copies the inputs and the batch's sizes. */
bool cuda_push_batch(const Exec *x, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);

/* Launches all steps of a function for this size of batch; the stream waits for them. */
bool cuda_launch_function(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);
/* Drops graphs, orders, events and the other streams. */
void cuda_close_functions(CudaExec *d);

#endif
