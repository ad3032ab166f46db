/* Whole functions on the emulated GPU, in the runtime's own order and with the products of a fake
 * library: a driver that does everything at once, and outputs to compare. */
#ifndef PEFT_CUDA_WHOLE_H
#define PEFT_CUDA_WHOLE_H

#include "cuda_run.h"
#include "fake_cublaslt.h"

/* ---- a driver that does everything at once ---- */

static CUresult make_stream(CUstream *stream, unsigned flags) {
    static char any;
    (void)flags;
    *stream = (CUstream)(void *)&any;
    return CUDA_SUCCESS;
}

static CUresult drop_stream(CUstream stream) {
    (void)stream;
    return CUDA_SUCCESS;
}

static CUresult make_event(CUevent *event, unsigned flags) {
    static char any;
    (void)flags;
    *event = (CUevent)(void *)&any;
    return CUDA_SUCCESS;
}

static CUresult drop_event(CUevent event) {
    (void)event;
    return CUDA_SUCCESS;
}

static CUresult record_event(CUevent event, CUstream stream) {
    (void)event, (void)stream;
    return CUDA_SUCCESS;
}

static CUresult wait_event(CUstream stream, CUevent event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return CUDA_SUCCESS;
}

/* The driver and the products. */
static CudaApi library(void) {
    CudaApi api = lt_api;
    api.cuStreamCreate = make_stream;
    api.cuStreamDestroy = drop_stream;
    api.cuEventCreate = make_event;
    api.cuEventDestroy = drop_event;
    api.cuEventRecord = record_event;
    api.cuStreamWaitEvent = wait_event;
    api.cuLaunchKernelEx = emulated_launch;
    return api;
}

/* ---- runs ---- */

static void open_whole(Run *r, const Built *b, int order, int shared_bytes) {
    PeftError err = {{0}, 0};
    open_run(r, b, order, shared_bytes);
    r->api = library();
    r->cuda.graph = calloc(PEFT_FN_COUNT, sizeof *r->cuda.graph);
    assert_non_null(r->cuda.graph);
    if (!make_stream(&r->cuda.stream, 0) && !cuda_gemm_open(&r->cuda.gemm, &r->api, &err))
        fail_msg("%s", err.msg);
}

static void close_whole(Run *r) {
    cuda_close_functions(&r->cuda);
    cuda_gemm_close(r->cuda.gemm);
    close_run(r);
}

static void run(Run *r, PeftFn fn) {
    PeftError err = {{0}, 0};
    launching = r;
    launched = launched_narrow = lt.products = 0;
    if (!cuda_launch_function(&r->x, fn, r->sym, &err)) fail_msg("%s", err.msg);
}

static int64_t count(const Run *r, const PeftOutput *o) {
    int64_t n = 1;
    for (int k = 0; k < o->rank; k++) n *= peft_dim(o->dim[k], r->device_sym);
    return n;
}

/* Of all outputs: as a share of each one's greatest value. */
static void same_outputs(const Run *a, const Run *b, PeftFn fn, double tolerance) {
    const PeftFunction *f = &a->b->p->table.fn[fn];
    for (int i = 0; i < f->nout; i++) {
        const PeftOutput *o = &f->out[i];
        const float *x = exec_output(&a->x, fn, o->name, NULL);
        const float *y = exec_output(&b->x, fn, o->name, NULL);
        double most = 0, worst = 0;
        for (int64_t k = 0; k < count(a, o); k++) {
            double error = fabs((double)x[k] - (double)y[k]);
            if (fabs((double)x[k]) > most) most = fabs((double)x[k]);
            if (!(error <= worst)) worst = error;
        }
        if (!(most < 1e6 && worst <= tolerance * most))
            fail_msg("%s: %.3g apart of %.3g", o->name, worst, most);
    }
}

#endif
