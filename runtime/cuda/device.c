/* See device.h. Steps run in order on one stream; the host waits once per run, when it copies the
 * outputs back. A function's outputs and a batch's inputs lie at the same offsets in both arenas.
 */
#include "device.h"
#include "internal.h"
#include "module.h"

#include <stdlib.h>
#include <string.h>

enum { LONGEST = 512, WIDEST_HEAD = 128 };

extern const char cuda_text[]; /* kernel_cuda.h and templates.cu */

int64_t cuda_workspace_bytes(const PeftStep *s, const int64_t sym[PEFT_SYM_COUNT]) {
    const PeftGemm *g = s->desc;
    if (g->b_dtype == DT_F32) return CUDA_LIBRARY_WORKSPACE;
    return CUDA_LIBRARY_WORKSPACE +
           peft_dim(g->n, sym) * peft_dim(g->k, sym) * (int64_t)sizeof(float);
}

CUdeviceptr cuda_address(const Exec *x, const void *host) {
    return host ? x->cuda->arena + (CUdeviceptr)((const char *)host - x->arena) : 0;
}

/* ---- opening ---- */

static bool compile(Exec *x, PeftError *err) {
    CudaExec *d = x->cuda;
    static const char *const options[] = {"--fmad=true"};
    size_t a = strlen(cuda_text), b = strlen(x->program->cuda_source), n;
    char *source = peft_alloc(a + b + 1, 1, err), *cubin = NULL;
    if (!source) return false;
    memcpy(source, cuda_text, a);
    memcpy(source + a, x->program->cuda_source, b + 1);
    bool ok = cuda_compile(d->api, source, x->program->name, d->gpu.major, d->gpu.minor, options, 1,
                           &cubin, &n, err) &&
              cuda_module_load(d->api, cubin, &d->module, err);
    free(cubin);
    free(source);
    return ok;
}

static bool find_kernels(Exec *x, PeftError *err) {
    const PeftProgram *p = x->program;
    CudaExec *d = x->cuda;
    const struct {
        const char *name;
        CUfunction *to;
    } fixed[] = {{"peft_attention", &d->attention}, {"peft_attention_grad", &d->attention_grad},
                 {"peft_index", &d->index},         {"peft_segment_sum", &d->segment_sum},
                 {"peft_transpose", &d->transpose}, {"peft_nf4_dequant", &d->dequant}};
    d->kernel = peft_zalloc((size_t)p->nkernel, sizeof(CUfunction), err);
    bool ok = d->kernel != NULL;
    for (size_t i = 0; ok && i < sizeof fixed / sizeof *fixed; i++)
        ok = cuda_function(d->api, d->module, fixed[i].name, fixed[i].to, err);
    for (int i = 0; ok && i < p->nkernel; i++)
        if (p->kernel[i].launch != PEFT_LAUNCH_NONE)
            ok = cuda_function(d->api, d->module, p->kernel[i].name, &d->kernel[i], err);
    return ok;
}

static bool reserve(Exec *x, PeftError *err) {
    CudaExec *d = x->cuda;
    size_t need = (size_t)x->plan.peak;
    if (need > d->gpu.free_bytes) {
        err->code = 3;
        return peft_fail(err,
                         "the plan needs %.1f MB and %s has %.1f MB free of %.1f; use a smaller"
                         " fit.batch",
                         (double)need / 1e6, d->gpu.name, (double)d->gpu.free_bytes / 1e6,
                         (double)d->gpu.total_bytes / 1e6);
    }
    return cuda_ok(d->api->cuMemAlloc(&d->arena, need), "reserve the planned memory", err) &&
           cuda_ok(d->api->cuMemAlloc(&d->sym, PEFT_SYM_COUNT * sizeof(int64_t)), "reserve memory",
                   err);
}

/* What templates.cu has room for. */
static bool attention_fits(const Exec *x, PeftError *err) {
    const PeftConfig *c = &x->program->config;
    int64_t longest = x->train_sym[PEFT_SYM_L] > x->eval_sym[PEFT_SYM_L] ? x->train_sym[PEFT_SYM_L]
                                                                         : x->eval_sym[PEFT_SYM_L];
    if (longest > LONGEST)
        return peft_fail(err,
                         "a sequence has %lld tokens and --device cuda takes at most %d; use"
                         " --device cpu",
                         (long long)longest, LONGEST);
    if (c->heads > 0 && c->hidden / c->heads > WIDEST_HEAD)
        return peft_fail(err,
                         "the model's heads are %lld wide and --device cuda takes at most %d;"
                         " use --device cpu",
                         (long long)(c->hidden / c->heads), WIDEST_HEAD);
    return true;
}

bool cuda_open(Exec *x, PeftError *err) {
    if (!attention_fits(x, err)) return false;
    CudaExec *d = x->cuda = peft_zalloc(1, sizeof *x->cuda, err);
    if (!d || !cuda_api_open(&d->api, err) || !cuda_device_open(d->api, 0, &d->gpu, err))
        return false;
    if (!cuda_ok(d->api->cuStreamCreate(&d->stream, CU_STREAM_NON_BLOCKING), "make a stream", err))
        return false;
    d->touched = peft_zalloc((size_t)x->program->nvar, 1, err);
    d->graph = peft_zalloc(CUDA_MAX_GRAPHS, sizeof *d->graph, err);
    return d->touched && d->graph && reserve(x, err) && compile(x, err) && find_kernels(x, err) &&
           cuda_gemm_open(&d->gemm, d->api, err);
}

void cuda_close(Exec *x) {
    CudaExec *d = x->cuda;
    cuda_drop_graphs(d);
    free(d->graph);
    if (d->gemm) cuda_gemm_close(d->gemm);
    if (d->module) cuda_module_unload(d->api, d->module);
    if (d->arena) d->api->cuMemFree(d->arena);
    if (d->sym) d->api->cuMemFree(d->sym);
    if (d->stream) d->api->cuStreamDestroy(d->stream);
    if (d->gpu.context) cuda_device_close(d->api, &d->gpu);
    cuda_api_close(d->api);
    free(d->kernel);
    free(d->touched);
    free(d);
    x->cuda = NULL;
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

bool cuda_wait(const Exec *x, const char *what, PeftError *err) {
    return cuda_ok(x->cuda->api->cuStreamSynchronize(x->cuda->stream), what, err);
}

void cuda_touch(const Exec *x, int var) {
    x->cuda->touched[var] = true;
}

static void *var_at(const Exec *x, int var) {
    return x->arena + x->plan.var_offset[var];
}

bool cuda_pull(Exec *x, PeftError *err) {
    for (int i = 0; i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        if (x->cuda->touched[i] || !(v->trainable || v->is_state || v->derived)) continue;
        if (!download(x, var_at(x, i), var_bytes(v), err)) return false;
    }
    return cuda_wait(x, "copy the variables back", err);
}

static bool push(Exec *x, const int64_t *sym, PeftError *err) {
    CudaExec *d = x->cuda;
    for (int i = 0; i < x->program->nvar; i++) {
        if (d->touched[i] && !upload(x, var_at(x, i), var_bytes(&x->program->var[i]), err))
            return false;
        d->touched[i] = false;
    }
    int64_t first = x->plan.persistent;
    for (int i = 0; i < PEFT_IN_COUNT; i++)
        if (x->plan.input_offset[i] < first) first = x->plan.input_offset[i];
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
    return cuda_wait(x, "run a function", err);
}

/* ---- running ---- */

bool cuda_run(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    return push(x, sym, err) && cuda_launch_function(x, fn, sym, err) &&
           fetch_outputs(x, fn, sym, err);
}
