/* A function's first launch on a thread of its own, while the host fills the variables. A library
 * loads each of its kernels when it is first launched, which takes as long as reading the weights.
 * The launch computes with whatever the memory holds, on a real batch, since kernels follow its
 * indices. Invariant: nobody else uses the GPU meanwhile, and all that the launch has written is
 * written again or dead: variables are copied to the GPU only later. */
#include "internal.h"

#include <string.h>

static void *warm_up(void *ctx) {
    CudaWarmUp *w = ctx;
    const CudaExec *d = w->exec->cuda;
    PeftError ignored = {{0}, 0}; /* the first real launch meets it again */
    if (d->api->cuCtxSetCurrent(d->gpu.context) == CUDA_SUCCESS &&
        cuda_launch_function(w->exec, w->fn, w->size, &ignored))
        d->api->cuStreamSynchronize(d->stream);
    return NULL;
}

/* A variable that is on the GPU would be lost. */
static bool is_fresh(const Exec *x) {
    for (int i = 0; i < x->program->nvar; i++)
        if (x->cuda->value[i] == CUDA_DEVICE) return false;
    return true;
}

bool cuda_warm_up(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                  const int64_t size[PEFT_SYM_COUNT], PeftError *err) {
    CudaWarmUp *w = &x->cuda->warm_up;
    bool plain;
    if (!cuda_graph_switch(&plain, err)) return false;
    if (plain || w->running || !is_fresh(x)) return true;
    *w = (CudaWarmUp){.exec = x, .fn = fn};
    memcpy(w->size, size, sizeof w->size);
    if (!cuda_push_batch(x, sym, err)) return false;
    w->running = pthread_create(&w->thread, NULL, warm_up, w) == 0;
    return true;
}

void cuda_warmed(const Exec *x) {
    CudaWarmUp *w = &x->cuda->warm_up;
    if (w->running) pthread_join(w->thread, NULL);
    w->running = false;
}
