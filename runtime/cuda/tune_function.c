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

/* What the function launches as products for a batch of the real size, batches of products among
 * them, at the size sym; `product` has room for all. */
static int list_products(const Exec *x, PeftFn fn, const int64_t *real, const int64_t *sym,
                         CudaMatmul *product) {
    const Order *o = &x->cuda->order[fn].order;
    int n = 0;
    for (int i = 0; i < o->nstep; i++) {
        CudaMembers m = cuda_members(x, fn, i);
        if ((m.part == ORDER_WHOLE || m.part == ORDER_PRODUCTS) && in_library(x, m.step, real))
            product[n++] = cuda_product(x, &m, sym);
    }
    return n;
}

bool cuda_tune_function(const Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                        PeftError *err) {
    const CudaExec *d = x->cuda;
    size_t room = (size_t)d->order[fn].order.nstep;
    int64_t rounded[PEFT_SYM_COUNT];
    if (!d->tuner || room == 0) return true; /* without a tuner: the first choice of each */
    memcpy(rounded, sym, sizeof rounded);
    for (int s = PEFT_SYM_T; s <= PEFT_SYM_M; s++) rounded[s] = cuda_tune_size(sym[s]);
    CudaMatmul *product = peft_alloc(2 * room, sizeof *product, err);
    if (!product) return false;
    int n = list_products(x, fn, sym, sym, product);
    list_products(x, fn, sym, rounded, product + n);
    CudaRange dead = {d->arena + (CUdeviceptr)x->plan.persistent,
                      (size_t)(x->plan.peak - x->plan.persistent)};
    bool ok = cuda_tune_products(d->tuner, product, product + n, n, dead, d->stream, err);
    free(product);
    return ok;
}
