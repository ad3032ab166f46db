/* Tuning before a function runs for a size of batch: its matrix products, at that size and at the
 * rounded one, as tune.h wants them. At a function's start all its temporaries are dead. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* Whether the library computes step s for batches of this size. */
static bool in_library(const Exec *x, const PeftStep *s, const int64_t *real) {
    if (x->program->kernel[s->kernel].kind != PEFT_KERNEL_GEMM) return false;
    const PeftGemm *g = s->desc;
    return !cuda_is_narrow(x, s - g->back, real);
}

static int product_count(const Exec *x, PeftFn fn, const int64_t *real) {
    const PeftFunction *f = &x->program->fn[fn];
    int n = 0;
    for (int i = 0; i < f->nstep; i++) n += in_library(x, &f->step[i], real);
    return n;
}

static void list_products(const Exec *x, PeftFn fn, const int64_t *real, const int64_t *sym,
                          CudaMatmul *product) {
    const PeftFunction *f = &x->program->fn[fn];
    void **arg = x->arg[fn];
    for (int i = 0; i < f->nstep; arg += f->step[i++].narg)
        if (in_library(x, &f->step[i], real))
            *product++ = cuda_product(x, &f->step[i], arg, x->workspace[fn][i], sym);
}

bool cuda_tune_function(const Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                        PeftError *err) {
    const CudaExec *d = x->cuda;
    int n =
        d->tuner ? product_count(x, fn, sym) : 0; /* without a tuner: the first choice of each */
    int64_t rounded[PEFT_SYM_COUNT];
    if (n == 0) return true;
    memcpy(rounded, sym, sizeof rounded);
    for (int s = PEFT_SYM_T; s <= PEFT_SYM_M; s++) rounded[s] = cuda_tune_size(sym[s]);
    CudaMatmul *product = peft_alloc(2 * (size_t)n, sizeof *product, err);
    if (!product) return false;
    list_products(x, fn, sym, sym, product);
    list_products(x, fn, sym, rounded, product + n);
    CudaRange dead = {d->arena + (CUdeviceptr)x->plan.persistent,
                      (size_t)(x->plan.peak - x->plan.persistent)};
    bool ok = cuda_tune_products(d->tuner, product, product + n, n, dead, d->stream, err);
    free(product);
    return ok;
}
