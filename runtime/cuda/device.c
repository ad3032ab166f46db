/* See device.h. Functions and copies run in order on one stream. A function's outputs and a batch's
 * inputs lie at the same offsets in both arenas. exec_run's host waits for the outputs. A submitted
 * run's batch goes through a slot of page-locked memory, which the host fills while earlier runs
 * still compute, and its scalars come back to the slot; the host waits for a slot, not for a run.
 */
#include "device.h"
#include "internal.h"

#include "../startup.h"

#include <stdlib.h>
#include <string.h>

enum {
    LONG_SUM = 1024,
    LONGEST = 512,
    OVERLAP_MAJOR = 9,     /* compute capability that has programmatic dependent launch */
    OVERLAP_DRIVER = 12030 /* that captures it */
};

/* A long sum of few tiles is split over the GPU, and the parts, a tile's fp32 values on each of its
 * multiprocessors, are added up from memory. */
int64_t cuda_library_workspace(const PeftGemm *g) {
    return g->k >= LONG_SUM ? 8 << 20 : 1 << 20;
}

int64_t cuda_workspace_bytes(const PeftStep *s, const int64_t sym[PEFT_SYM_COUNT]) {
    const PeftGemm *g = s->desc;
    int64_t library = cuda_library_workspace(g);
    if (!peft_is_nf4(g->b_dtype)) return library;
    return library + peft_dim(g->n, sym) * peft_dim(g->k, sym) * sym[PEFT_SYM_W];
}

CUdeviceptr cuda_address(const Exec *x, const void *host) {
    return host ? x->cuda->arena + (CUdeviceptr)((const char *)host - x->arena) : 0;
}

/* ---- slots of submitted runs ---- */

typedef struct CudaQueue {
    char *slot; /* EXEC_QUEUE of them: symbols, scalars, inputs */
    size_t slot_bytes;
    CUevent done[EXEC_QUEUE]; /* recorded behind the copy of the scalars */
} CudaQueue;

enum { SLOT_SCALARS = 64, SLOT_INPUTS = 128 };
_Static_assert(PEFT_SYM_COUNT * sizeof(int64_t) <= SLOT_SCALARS, "a slot's symbols");
_Static_assert(EXEC_SCALARS * sizeof(float) <= SLOT_INPUTS - SLOT_SCALARS, "a slot's scalars");

/* Inputs lie side by side at the end of the persistent part. */
static int64_t first_input(const Exec *x) {
    int64_t first = x->plan.persistent;
    for (int i = 0; i < PEFT_IN_COUNT; i++)
        if (x->plan.input_offset[i] < first) first = x->plan.input_offset[i];
    return first;
}

static bool queue_open(Exec *x, PeftError *err) {
    const CudaApi *api = x->cuda->api;
    CudaQueue *q = x->cuda->queue = peft_zalloc(1, sizeof *q, err);
    if (!q) return false;
    q->slot_bytes = SLOT_INPUTS + (size_t)(x->plan.persistent - first_input(x));
    bool ok = cuda_ok(api->cuMemAllocHost((void **)&q->slot, EXEC_QUEUE * q->slot_bytes),
                      "reserve page-locked memory", err);
    for (int i = 0; ok && i < EXEC_QUEUE; i++)
        ok =
            cuda_ok(api->cuEventCreate(&q->done[i], CU_EVENT_DISABLE_TIMING), "make an event", err);
    return ok;
}

static void queue_close(CudaExec *d) {
    CudaQueue *q = d->queue;
    if (!q) return;
    for (int i = 0; i < EXEC_QUEUE; i++)
        if (q->done[i]) d->api->cuEventDestroy(q->done[i]);
    if (q->slot) d->api->cuMemFreeHost(q->slot);
    free(q);
}

/* ---- opening ---- */

/* Narrow products have another way. */
bool cuda_has_kernel(const Exec *x, const PeftKernel *k) {
    if (k->launch == PEFT_LAUNCH_NARROW)
        return x->compute == COMPUTE_BF16 && k->shared <= x->cuda->gpu.shared_bytes;
    return k->launch != PEFT_LAUNCH_NONE;
}

/* More memory of a block than every GPU has must be asked for. */
static bool reserve_shared(const CudaExec *d, const PeftKernel *k, CUfunction f, PeftError *err) {
    return k->launch != PEFT_LAUNCH_NARROW ||
           cuda_ok(d->api->cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                              k->shared),
                   "reserve a kernel's shared memory", err);
}

static bool find_kernels(Exec *x, PeftError *err) {
    const PeftProgram *p = x->program;
    CudaExec *d = x->cuda;
    const struct {
        int part;
        const char *name;
        CUfunction *to;
    } fixed[] = {{CUDA_PART_ATTENTION, "peft_attention", &d->attention},
                 {CUDA_PART_ATTENTION_GRAD, "peft_attention_grad", &d->attention_grad},
                 {CUDA_PART_TEMPLATES, "peft_index", &d->index},
                 {CUDA_PART_TEMPLATES, "peft_segment_sum", &d->segment_sum},
                 {CUDA_PART_TEMPLATES, "peft_transpose", &d->transpose},
                 {CUDA_PART_TEMPLATES, "peft_receive", &d->receive},
                 {CUDA_PART_TEMPLATES, "peft_send", &d->send},
                 {CUDA_PART_TEMPLATES, "peft_nf4_dequant", &d->dequant}};
    d->kernel = peft_zalloc((size_t)p->nkernel, sizeof(CUfunction), err);
    bool ok = d->kernel != NULL;
    for (size_t i = 0; ok && i < sizeof fixed / sizeof *fixed; i++)
        ok = cuda_code_function(&d->code, d->api, fixed[i].part, fixed[i].name, fixed[i].to, err);
    for (int i = 0; ok && i < p->nkernel; i++)
        if (cuda_has_kernel(x, &p->kernel[i]))
            ok = cuda_code_function(&d->code, d->api,
                                    cuda_code_part(p->cuda_source, p->kernel[i].name),
                                    p->kernel[i].name, &d->kernel[i], err) &&
                 reserve_shared(d, &p->kernel[i], d->kernel[i], err);
    return ok;
}

static bool reserve(Exec *x, PeftError *err) {
    CudaExec *d = x->cuda;
    size_t need = (size_t)x->plan.peak;
    int64_t room = (int64_t)d->gpu.free_bytes - CUDA_HEADROOM;
    if (x->plan.peak > room) {
        x->room = room;
        err->code = 3;
        return peft_fail(err,
                         "the plan needs %.1f MB, and %d MB for code and libraries, and %s has "
                         "%.1f MB free of %.1f",
                         (double)need / 1e6, CUDA_HEADROOM / 1000000, d->gpu.name,
                         (double)d->gpu.free_bytes / 1e6, (double)d->gpu.total_bytes / 1e6);
    }
    CUresult result = d->api->cuMemAlloc(&d->arena, need);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        err->code = 3;
        return peft_fail(err,
                         "%s gave no %.1f MB although %.1f MB were free: another process took them "
                         "meanwhile; try again, or use a smaller fit.batch",
                         d->gpu.name, (double)need / 1e6, (double)d->gpu.free_bytes / 1e6);
    }
    return cuda_ok(result, "reserve the planned memory", err) &&
           cuda_ok(d->api->cuMemAlloc(&d->sym, PEFT_SYM_COUNT * sizeof(int64_t)), "reserve memory",
                   err);
}

/* What attention.cu has room for. */
static bool attention_fits(const Exec *x, PeftError *err) {
    int64_t longest = x->train_sym[PEFT_SYM_L] > x->eval_sym[PEFT_SYM_L] ? x->train_sym[PEFT_SYM_L]
                                                                         : x->eval_sym[PEFT_SYM_L];
    if (longest > LONGEST)
        return peft_fail(err,
                         "a sequence has %lld tokens and --device cuda takes at most %d; use"
                         " --device cpu",
                         (long long)longest, LONGEST);
    return true;
}

static bool computes(const Exec *x, PeftError *err) {
    if (x->compute == COMPUTE_FP32 || !x->program->needs_fp32) return true;
    return peft_fail(err,
                     "%s was compiled without passes that --compute bf16 needs; use --compute fp32,"
                     " or compile it without --skip",
                     x->program->name);
}

bool cuda_open(Exec *x, PeftError *err) {
    if (!attention_fits(x, err) || !computes(x, err)) return false;
    CudaExec *d = x->cuda = peft_zalloc(1, sizeof *x->cuda, err);
    if (!d || !cuda_api_open(&d->api, err) || !cuda_device_open_first(d->api, &d->gpu, err))
        return false;
    if (!cuda_ok(d->api->cuStreamCreate(&d->stream, CU_STREAM_NON_BLOCKING), "make a stream", err))
        return false;
    d->value = peft_zalloc((size_t)x->program->nvar, 1, err);
    d->graph = peft_zalloc(CUDA_MAX_GRAPHS, sizeof *d->graph, err);
    if (!d->value || !d->graph || !reserve(x, err)) return false;
    d->overlap = d->gpu.major >= OVERLAP_MAJOR && d->api->driver_version >= OVERLAP_DRIVER;
    startup_end(STARTUP_DEVICE);
    if (!cuda_code_open(&d->code, d->api, x->program, x->compute, &d->gpu, err) ||
        !find_kernels(x, err))
        return false;
    startup_end(STARTUP_KERNELS);
    return cuda_gemm_open(&d->gemm, d->api, err) &&
           cuda_tuner_open(&d->tuner, d->api, &d->gpu, d->gemm, err);
}

void cuda_close(Exec *x) {
    CudaExec *d = x->cuda;
    cuda_warmed(x);
    if (d->stream)
        d->api->cuStreamSynchronize(d->stream); /* submitted runs use what is freed here */
    cuda_close_functions(d);
    queue_close(d);
    cuda_tuner_close(d->tuner);
    cuda_gemm_close(d->gemm);
    cuda_code_close(&d->code, d->api);
    if (d->arena) d->api->cuMemFree(d->arena);
    if (d->sym) d->api->cuMemFree(d->sym);
    if (d->stream) d->api->cuStreamDestroy(d->stream);
    if (d->gpu.context) cuda_device_close(d->api, &d->gpu);
    cuda_api_close(d->api);
    free(d->kernel);
    free(d->value);
    free(d);
    x->cuda = NULL;
}

/* What the driver counts as taken. Other processes' memory on the same GPU is in its figure, so it
 * is what one process uses only while that process is alone on the GPU. */
int64_t cuda_driver_bytes(const Exec *x) {
    const CudaExec *d = x->cuda;
    size_t now, total;
    if (d->api->cuMemGetInfo(&now, &total) != CUDA_SUCCESS) return -1;
    return (int64_t)d->gpu.free_bytes - (int64_t)now;
}

/* ---- copies ---- */

static bool upload(const Exec *x, const void *host, int64_t bytes, PeftError *err) {
    CudaExec *d = x->cuda;
    return bytes == 0 ||
           cuda_ok(d->api->cuMemcpyHtoDAsync(cuda_address(x, host), host, (size_t)bytes, d->stream),
                   "copy to the GPU", err);
}

static bool download(const Exec *x, void *host, int64_t bytes, PeftError *err) {
    CudaExec *d = x->cuda;
    return bytes == 0 ||
           cuda_ok(d->api->cuMemcpyDtoHAsync(host, cuda_address(x, host), (size_t)bytes, d->stream),
                   "copy from the GPU", err);
}

static bool clear(const Exec *x, const void *host, int64_t bytes, PeftError *err) {
    CudaExec *d = x->cuda;
    return bytes == 0 ||
           cuda_ok(d->api->cuMemsetD8Async(cuda_address(x, host), 0, (size_t)bytes, d->stream),
                   "clear memory of the GPU", err);
}

bool cuda_wait(const Exec *x, const char *what, PeftError *err) {
    return cuda_ok(x->cuda->api->cuStreamSynchronize(x->cuda->stream), what, err);
}

void cuda_touch(const Exec *x, int var) {
    x->cuda->value[var] = CUDA_HOST;
}

bool cuda_zero(const Exec *x, int var) {
    uint8_t *value = &x->cuda->value[var];
    if (*value == CUDA_NOWHERE) *value = CUDA_ZERO;
    return *value == CUDA_ZERO;
}

static void *var_at(const Exec *x, int var) {
    return x->arena + x->plan.var_offset[var];
}

/* What a function's kernels have done wrong is seen only when they have ended, and ends all use of
 * the GPU by this process. */
bool cuda_function_ended(CUresult code, PeftError *err) {
    PeftError why = {{0}, 0};
    if (cuda_ok(code, "run a function", &why)) return true;
    err->code = why.code;
    return peft_fail(
        err,
        "%.700s; --resume goes on from the last checkpoint; with CUDA_LAUNCH_BLOCKING=1 "
        "and " CUDA_GRAPH_VARIABLE "=off the message names the kernel",
        why.msg);
}

bool cuda_pull(Exec *x, PeftError *err) {
    cuda_warmed(x);
    if (!x->cuda->ahead) return true;
    for (int i = 0; i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        bool waits = x->cuda->value[i] == CUDA_HOST || x->cuda->value[i] == CUDA_ZERO;
        if (waits || !(v->trainable || v->is_state || v->derived)) continue;
        if (!download(x, var_at(x, i), var_bytes(x, i), err)) return false;
    }
    if (!cuda_wait(x, "copy the variables back", err)) return false;
    x->cuda->ahead = false;
    return true;
}

static bool push_variables(Exec *x, PeftError *err) {
    CudaExec *d = x->cuda;
    for (int i = 0; i < x->program->nvar; i++) {
        int64_t bytes = var_bytes(x, i);
        void *at = var_at(x, i);
        if (d->value[i] == CUDA_HOST && !upload(x, at, bytes, err)) return false;
        if (d->value[i] == CUDA_ZERO && !clear(x, at, bytes, err)) return false;
        if (d->value[i] != CUDA_NOWHERE) d->value[i] = CUDA_DEVICE;
    }
    return true;
}

bool cuda_push_batch(const Exec *x, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    const CudaExec *d = x->cuda;
    int64_t first = first_input(x);
    return upload(x, x->arena + first, x->plan.persistent - first, err) &&
           cuda_ok(d->api->cuMemcpyHtoDAsync(d->sym, sym, PEFT_SYM_COUNT * sizeof *sym, d->stream),
                   "copy to the GPU", err);
}

static bool fetch_outputs(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    for (int i = 0; i < f->nout; i++) {
        const PeftOutput *o = &f->out[i];
        void *host = (void *)exec_output(x, fn, o->name, NULL);
        if (PEFT_REF_KIND(o->ref) == PEFT_REF_TEMP &&
            !download(x, host, plan_bytes(DT_F32, o->rank, o->dim, sym), err))
            return false;
    }
    return cuda_function_ended(x->cuda->api->cuStreamSynchronize(x->cuda->stream), err);
}

/* ---- running ---- */

/* Everything of a run but its batch and what it gives back. */
static bool start(Exec *x, PeftFn fn, const int64_t *size, PeftError *err) {
    if (fn != PEFT_FN_EVAL && fn != PEFT_FN_GRADIENTS) x->cuda->ahead = true;
    return push_variables(x, err) && cuda_launch_function(x, fn, size, err);
}

bool cuda_run(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
              const int64_t size[PEFT_SYM_COUNT], PeftError *err) {
    cuda_warmed(x);
    return cuda_push_batch(x, sym, err) && start(x, fn, size, err) &&
           fetch_outputs(x, fn, sym, err);
}

bool cuda_submit(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                 const int64_t size[PEFT_SYM_COUNT], int at, PeftError *err) {
    CudaExec *d = x->cuda;
    cuda_warmed(x);
    if (!d->queue && !queue_open(x, err)) return false;
    char *slot = d->queue->slot + (size_t)at * d->queue->slot_bytes;
    size_t bytes = d->queue->slot_bytes - SLOT_INPUTS;
    memset(slot, 0, SLOT_INPUTS);
    memcpy(slot, sym, PEFT_SYM_COUNT * sizeof *sym);
    memcpy(slot + SLOT_INPUTS, x->arena + first_input(x), bytes);
    return cuda_receive(x, slot + SLOT_INPUTS, d->arena + (CUdeviceptr)first_input(x), bytes,
                        (const int64_t *)slot, err) &&
           start(x, fn, size, err) && cuda_send(x, fn, (float *)(slot + SLOT_SCALARS), err) &&
           cuda_ok(d->api->cuEventRecord(d->queue->done[at], d->stream), "mark a run", err);
}

bool cuda_collect(Exec *x, int at, float scalar[EXEC_SCALARS], PeftError *err) {
    const CudaQueue *q = x->cuda->queue;
    if (!cuda_function_ended(x->cuda->api->cuEventSynchronize(q->done[at]), err)) return false;
    memcpy(scalar, q->slot + (size_t)at * q->slot_bytes + SLOT_SCALARS,
           EXEC_SCALARS * sizeof *scalar);
    return true;
}
