/* See tune.h. The candidates of a shape are captured as one small graph each, since launched one by
 * one such short kernels would be timed at the pace of the host, and the graphs are replayed in
 * turn, so that a clock that changes meanwhile favours none of them. */
#include "tune.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../measure.h"
#include "cubin_cache.h"
#include "tune_cache.h"

enum {
    MAX_LAUNCHES = 24, /* timed of a shape: an encoder has one or two a layer */
    REPLAYS = 5,       /* of a candidate, the fastest counts */
    SURE_REPLAYS = 2,  /* after which a candidate may be out of the race */
    ENOUGH_US = 20000, /* spent on a shape: large products need no repetition to be told apart */
    KEY = 384,
    NOTE = 96,
    OPERAND_ALIGN = 256
};

static const double race_factor = 1.15; /* times the fastest: out of the race */
static const double tie_factor = 1.02;

struct CudaTuner {
    const CudaApi *api;
    CudaGemm *gemm;
    char *dir; /* NULL: neither looked up nor measured */
    TuneCache cache;
    char machine[256]; /* a key's second part */
    size_t l2_bytes;
    CUevent from, to;
    CudaTuneStats stats;
};

/* A shape that was measured; its choice is not stored yet. */
typedef struct Measured {
    CudaGemmPlan *plan;
    char key[KEY], name[CUDA_GEMM_NAME], note[NOTE];
} Measured;

/* The products that are timed together: all of one shape. */
typedef struct Batch {
    CudaMatmul product[MAX_LAUNCHES];
    int n;
    CudaRange dead;
    CUstream stream;
} Batch;

/* ---- opening ---- */

static bool read_switch(CudaTuner *t, PeftError *err) {
    const char *tune = getenv("PEFTC_TUNE");
    if (tune && strcmp(tune, "off") != 0 && strcmp(tune, "on") != 0) {
        err->code = 2;
        return peft_fail(err, "PEFTC_TUNE is '%.100s': expected on or off", tune);
    }
    if (tune && strcmp(tune, "off") == 0)
        snprintf(t->stats.off, sizeof t->stats.off, "PEFTC_TUNE=off");
    else if (!(t->dir = cubin_cache_dir()))
        snprintf(t->stats.off, sizeof t->stats.off, "there is no cache folder (PEFTC_CACHE)");
    return true;
}

bool cuda_tuner_open(CudaTuner **out, const CudaApi *api, const CudaDevice *gpu, CudaGemm *gemm,
                     PeftError *err) {
    CudaTuner *t = *out = peft_zalloc(1, sizeof *t, err);
    if (!t) return false;
    t->api = api;
    t->gemm = gemm;
    t->l2_bytes = gpu->l2_bytes > 0 ? (size_t)gpu->l2_bytes : 0;
    snprintf(t->machine, sizeof t->machine, "%s, sm_%d%d, %d SMs, driver %d, cuBLASLt %zu",
             gpu->name, gpu->major, gpu->minor, gpu->multiprocessors, api->driver_version,
             api->cublaslt_version);
    bool ok = read_switch(t, err) &&
              cuda_ok(api->cuEventCreate(&t->from, CU_EVENT_DEFAULT), "make an event", err) &&
              cuda_ok(api->cuEventCreate(&t->to, CU_EVENT_DEFAULT), "make an event", err);
    if (ok && t->dir) tune_cache_read(&t->cache, t->dir);
    if (ok) return true;
    cuda_tuner_close(t);
    *out = NULL;
    return false;
}

void cuda_tuner_close(CudaTuner *t) {
    if (!t) return;
    if (t->from) t->api->cuEventDestroy(t->from);
    if (t->to) t->api->cuEventDestroy(t->to);
    tune_cache_free(&t->cache);
    free(t->dir);
    free(t);
}

const CudaTuneStats *cuda_tuner_stats(const CudaTuner *t) {
    return &t->stats;
}

/* ---- pure parts ---- */

int64_t cuda_tune_size(int64_t size) {
    int64_t unit = size <= 64 ? 8 : 64;
    return (size + unit - 1) / unit * unit;
}

int cuda_tune_fastest(const double *us, int n) {
    double least = INFINITY;
    for (int i = 0; i < n; i++)
        if (us[i] > 0 && us[i] < least) least = us[i];
    for (int i = 0; i < n; i++)
        if (us[i] > 0 && us[i] <= least * tie_factor && isfinite(us[i])) return i;
    return 0;
}

static const char *type_name(CudaGemmType t) {
    return t == CUDA_GEMM_F32 ? "fp32" : "bf16";
}

/* The shape comes first, since it is where keys differ. */
static void make_key(const CudaTuner *t, const CudaMatmul *s, char key[KEY]) {
    snprintf(
        key, KEY,
        "%d C[%lld, %lld] = A%s B%s, k %lld, strides %lld %lld %lld, %s%s to %s, workspace %zu; %s",
        s->batch, (long long)s->m, (long long)s->n, s->trans_a ? "^T" : "", s->trans_b ? "^T" : "",
        (long long)s->k, (long long)s->lda, (long long)s->ldb, (long long)s->ldc,
        s->batch > 1 && !s->stride_a ? "one A, " : "", type_name(s->in), type_name(s->out),
        s->workspace_bytes, t->machine);
}

/* ---- where a product may be run for its time alone ---- */

/* Of a batch's operand: from its first element to behind the last. */
static size_t matrix_bytes(int64_t rows, int64_t row_stride, int batch, int64_t stride,
                           CudaGemmType type) {
    return ((size_t)(batch - 1) * (size_t)stride + (size_t)rows * (size_t)row_stride) *
           (type == CUDA_GEMM_F32 ? 4 : 2);
}

static bool within(CudaRange r, CUdeviceptr at, size_t bytes) {
    return at >= r.begin && bytes <= r.bytes && at - r.begin <= r.bytes - bytes;
}

static bool meets(CUdeviceptr a, size_t a_bytes, CUdeviceptr b, size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

/* Where C may be written: in dead memory and not over the workspace, in which a kernel may wait for
 * counters. 0: nowhere. */
static CUdeviceptr place_result(const CudaMatmul *x, size_t bytes, CudaRange dead) {
    CUdeviceptr behind = x->workspace + x->workspace_bytes;
    const CUdeviceptr place[] = {x->c, dead.begin,
                                 (behind + OPERAND_ALIGN - 1) / OPERAND_ALIGN * OPERAND_ALIGN};
    for (size_t i = 0; i < sizeof place / sizeof *place; i++)
        if (within(dead, place[i], bytes) &&
            !meets(place[i], bytes, x->workspace, x->workspace_bytes))
            return place[i];
    return 0;
}

/* A rounded product may reach beyond its buffers: into the neighbours, which are read or dead, but
 * not beyond the arena. False when it cannot be run. */
static bool make_safe(CudaMatmul *x, const CudaMatmul *shape, CudaRange dead) {
    int n = shape->batch;
    size_t a =
        matrix_bytes(shape->trans_a ? shape->k : shape->m, shape->lda, n, x->stride_a, shape->in);
    size_t b =
        matrix_bytes(shape->trans_b ? shape->n : shape->k, shape->ldb, n, x->stride_b, shape->in);
    size_t c = matrix_bytes(shape->m, shape->ldc, n, x->stride_c, shape->out);
    size_t added = matrix_bytes(shape->m, shape->ldc, n, x->stride_addend, shape->out);
    CUdeviceptr end = dead.begin + dead.bytes;
    if (x->a + a > end) x->a = dead.begin;
    if (x->b + b > end) x->b = dead.begin;
    bool in_place = x->addend == x->c;
    x->c = place_result(x, c, dead);
    if (in_place) x->addend = x->c;
    if (x->addend + added > end) x->addend = dead.begin;
    return x->c && a <= dead.bytes && b <= dead.bytes && added <= dead.bytes;
}

/* The products of the plan among those given. */
static bool gather(const CudaTuner *t, const CudaGemmPlan *plan, const CudaMatmul *product, int n,
                   Batch *b, PeftError *err) {
    b->n = 0;
    for (int i = 0; i < n && b->n < MAX_LAUNCHES; i++) {
        const CudaGemmPlan *p = cuda_gemm_plan(t->gemm, &product[i], err);
        if (!p) return false;
        b->product[b->n] = product[i];
        if (p == plan && make_safe(&b->product[b->n], cuda_gemm_shape(plan), b->dead)) b->n++;
    }
    return true;
}

/* ---- measuring ---- */

/* The batch with the selected candidate as a graph; NULL when it cannot be launched. One product is
 * launched before: the library loads a kernel when it is first used, which a capture forbids. */
static CUgraphExec capture(const CudaTuner *t, const Batch *b) {
    const CudaApi *api = t->api;
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    if (!cuda_gemm_run(t->gemm, &b->product[0], b->stream, NULL) ||
        api->cuStreamBeginCapture(b->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) != CUDA_SUCCESS)
        return NULL;
    bool ok = true;
    for (int i = 0; ok && i < b->n; i++)
        ok = cuda_gemm_run(t->gemm, &b->product[i], b->stream, NULL);
    ok = api->cuStreamEndCapture(b->stream, &graph) == CUDA_SUCCESS && ok;
    if (ok && api->cuGraphInstantiate(&exec, graph, 0) != CUDA_SUCCESS) exec = NULL;
    if (graph) api->cuGraphDestroy(graph);
    return exec;
}

/* Memory set before the time starts takes the L2 cache from the weights, and lasts longer than the
 * launch of the graph, so that the GPU does not wait for the host. */
static bool replay(const CudaTuner *t, const Batch *b, CUgraphExec exec, double *us,
                   PeftError *err) {
    const CudaApi *api = t->api;
    size_t flush = b->dead.bytes < t->l2_bytes ? b->dead.bytes : t->l2_bytes;
    float ms = 0;
    bool ok = (!flush || cuda_ok(api->cuMemsetD8Async(b->dead.begin, 0, flush, b->stream),
                                 "cuMemsetD8", err)) &&
              cuda_ok(api->cuEventRecord(t->from, b->stream), "cuEventRecord", err) &&
              cuda_ok(api->cuGraphLaunch(exec, b->stream), "cuGraphLaunch", err) &&
              cuda_ok(api->cuEventRecord(t->to, b->stream), "cuEventRecord", err) &&
              cuda_ok(api->cuEventSynchronize(t->to), "time a matrix product", err) &&
              cuda_ok(api->cuEventElapsedTime(&ms, t->from, t->to), "cuEventElapsedTime", err);
    *us = 1e3 * (double)ms;
    return ok;
}

/* Fills in the candidates' times, infinite for one that does not run. */
static bool race(const CudaTuner *t, const Batch *b, CUgraphExec *exec, double *us, int n,
                 PeftError *err) {
    double least = INFINITY, spent = 0, now;
    for (int round = 0; round < REPLAYS; round++) {
        if (round >= SURE_REPLAYS && spent > ENOUGH_US) return true;
        for (int i = 0; i < n; i++) {
            if (!exec[i] || (round >= SURE_REPLAYS && us[i] > least * race_factor)) continue;
            if (!replay(t, b, exec[i], &now, err)) return false;
            spent += now;
            if (now > 0 && now < us[i]) us[i] = now;
            if (us[i] < least) least = us[i];
        }
    }
    return true;
}

/* Selects the plan's fastest candidate. */
static bool measure(CudaTuner *t, CudaGemmPlan *plan, const Batch *b, char note[NOTE],
                    PeftError *err) {
    CUgraphExec exec[CUDA_GEMM_CANDIDATES] = {NULL};
    double us[CUDA_GEMM_CANDIDATES];
    int n = cuda_gemm_candidates(plan);
    for (int i = 0; i < n; i++) {
        us[i] = INFINITY;
        cuda_gemm_select(plan, i);
        exec[i] = capture(t, b);
        if (exec[i]) t->api->cuGraphUpload(exec[i], b->stream);
    }
    bool ok = race(t, b, exec, us, n, err);
    for (int i = 0; i < n; i++)
        if (exec[i]) t->api->cuGraphExecDestroy(exec[i]);
    int best = cuda_tune_fastest(us, n);
    cuda_gemm_select(plan, best);
    snprintf(note, NOTE, "%d launches: %.1f us, candidate %d of %d; first: %.1f us", b->n, us[best],
             best + 1, n, us[0]);
    if (isfinite(us[0])) {
        t->stats.first_us += us[0];
        t->stats.chosen_us += us[best];
    }
    t->stats.measured++;
    return ok;
}

/* ---- settling ---- */

/* A stored name that the library does not offer (somebody wrote it there) leaves the heuristic's
 * first: measuring again would make the choice depend on who comes first. False: not stored. */
static bool take_stored(CudaTuner *t, CudaGemmPlan *plan, const char *key) {
    const char *choice = tune_cache_find(&t->cache, key);
    if (!choice) return false;
    char name[CUDA_GEMM_NAME];
    cuda_gemm_select(plan, 0);
    for (int i = 0; i < cuda_gemm_candidates(plan); i++) {
        cuda_gemm_name(t->gemm, plan, i, name);
        if (strcmp(name, choice) == 0) {
            cuda_gemm_select(plan, i);
            break;
        }
    }
    cuda_gemm_settle(plan);
    return true;
}

/* What cannot be stored must not take effect. */
static bool store(CudaTuner *t, const Measured *m, int n, PeftError *err) {
    TuneEntry *entry = peft_alloc((size_t)n, sizeof *entry, err);
    if (!entry) return false;
    for (int i = 0; i < n; i++) entry[i] = (TuneEntry){m[i].key, m[i].name, m[i].note};
    PeftError why = {0};
    if (!tune_cache_add(&t->cache, t->dir, entry, n, &why))
        snprintf(t->stats.off, sizeof t->stats.off, "choices cannot be stored: %.450s", why.msg);
    for (int i = 0; i < n; i++)
        if (!take_stored(t, m[i].plan, m[i].key)) cuda_gemm_select(m[i].plan, 0);
    free(entry);
    return true;
}

static bool is_among(const Measured *m, int n, const CudaGemmPlan *plan) {
    for (int i = 0; i < n; i++)
        if (m[i].plan == plan) return true;
    return false;
}

/* Looks one shape up, or measures it on its products (those given from the first one on) and adds
 * it to the measured ones. */
static bool settle_shape(CudaTuner *t, CudaGemmPlan *plan, const CudaMatmul *product, int n,
                         Batch *b, Measured *m, int *measured, PeftError *err) {
    Measured *new = &m[*measured];
    make_key(t, cuda_gemm_shape(plan), new->key);
    if (take_stored(t, plan, new->key)) {
        t->stats.stored++;
        return true;
    }
    if (t->stats.off[0]) return true;
    if (!gather(t, plan, product, n, b, err)) return false;
    if (b->n == 0) return true;
    if (!measure(t, plan, b, new->note, err)) return false;
    new->plan = plan;
    cuda_gemm_name(t->gemm, plan, cuda_gemm_selected(plan), new->name);
    ++*measured;
    return true;
}

static bool settle_all(CudaTuner *t, const CudaMatmul *product, int n, Batch *b, PeftError *err) {
    Measured *m = peft_alloc((size_t)n, sizeof *m, err);
    bool ok = m != NULL;
    int measured = 0;
    for (int i = 0; ok && i < n; i++) {
        CudaGemmPlan *plan = cuda_gemm_plan(t->gemm, &product[i], err);
        ok = plan && (cuda_gemm_settled(plan) || is_among(m, measured, plan) ||
                      settle_shape(t, plan, product + i, n - i, b, m, &measured, err));
    }
    if (measured) {
        ok = cuda_ok(t->api->cuStreamSynchronize(b->stream), "time matrix products", err) && ok;
        ok = ok && store(t, m, measured, err);
    }
    free(m);
    return ok;
}

bool cuda_tune_products(CudaTuner *t, const CudaMatmul *exact, const CudaMatmul *rounded, int n,
                        CudaRange dead, CUstream stream, PeftError *err) {
    if (!t->dir || n < 1) return true;
    double start = clock_seconds();
    Batch b = {.dead = dead, .stream = stream};
    bool ok = settle_all(t, rounded, n, &b, err);
    for (int i = 0; ok && i < n; i++) {
        CudaGemmPlan *plan = cuda_gemm_plan(t->gemm, &exact[i], err);
        const CudaGemmPlan *like = cuda_gemm_plan(t->gemm, &rounded[i], err);
        ok = plan && like;
        if (!ok || !cuda_gemm_settled(like)) continue;
        cuda_gemm_adopt(t->gemm, plan, like);
        cuda_gemm_settle(plan);
    }
    t->stats.seconds += clock_seconds() - start;
    return ok;
}
