/* The order in which a function's steps reach the GPU: over several streams as order.h has put
 * them, the first time that a batch of a size comes; from then on as one CUDA graph of that size,
 * captured from the same launches. What waits for what becomes the graph's edges. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static void drop_graphs(CudaExec *d) {
    for (int i = 0; i < d->ngraph; i++)
        if (d->graph[i].exec) d->api->cuGraphExecDestroy(d->graph[i].exec);
    d->ngraph = 0;
}

void cuda_close_functions(CudaExec *d) {
    drop_graphs(d);
    free(d->graph);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        CudaOrder *o = &d->order[fn];
        for (int i = 0; o->event && i <= o->order.nstep; i++)
            if (o->event[i]) d->api->cuEventDestroy(o->event[i]);
        free(o->event);
        free(o->arg);
        order_free(&o->order);
        cuda_timing_close(&d->timing[fn], d->api);
    }
    for (int s = 0; s < CUDA_MAX_STREAMS - 1; s++)
        if (d->side[s]) d->api->cuStreamDestroy(d->side[s]);
}

/* ---- streams and events ---- */

static bool stream_limit(int *limit, PeftError *err) {
    const char *text = getenv(CUDA_STREAMS_VARIABLE);
    *limit = CUDA_STREAMS;
    if (!text || !*text) return true;
    char *end;
    long n = strtol(text, &end, 10);
    if (*end || n < 1 || n > CUDA_MAX_STREAMS) {
        err->code = 2;
        return peft_fail(
            err, CUDA_STREAMS_VARIABLE " is '%s': expected 1 (a step after the other) to %d", text,
            CUDA_MAX_STREAMS);
    }
    *limit = (int)n;
    return true;
}

bool cuda_graph_switch(bool *plain, PeftError *err) {
    const char *text = getenv(CUDA_GRAPH_VARIABLE);
    *plain = text && strcmp(text, "off") == 0;
    if (*plain || !text || !*text || strcmp(text, "on") == 0) return true;
    err->code = 2;
    return peft_fail(err, CUDA_GRAPH_VARIABLE " is '%s': expected on or off", text);
}

static CUstream stream_of(const CudaExec *d, int s) {
    return s == 0 ? d->stream : d->side[s - 1];
}

/* The event of a step, or of the function's start. */
static CUevent *event_of(const CudaOrder *o, int32_t step) {
    return &o->event[step == ORDER_START ? o->order.nstep : step];
}

static bool make_streams(CudaExec *d, const CudaOrder *o, PeftError *err) {
    for (int i = 0; i < o->order.nstep; i++) {
        int s = o->order.stream[i];
        if (s == 0 || d->side[s - 1]) continue;
        if (!cuda_ok(d->api->cuStreamCreate(&d->side[s - 1], CU_STREAM_NON_BLOCKING),
                     "make a stream", err))
            return false;
    }
    for (int k = 0; k < o->order.nwait; k++) {
        CUevent *e = event_of(o, o->order.wait[k]);
        if (!*e &&
            !cuda_ok(d->api->cuEventCreate(e, CU_EVENT_DISABLE_TIMING), "make an event", err))
            return false;
    }
    return true;
}

/* Puts the function's steps in order, when that is not done yet. */
static bool make_order(Exec *x, PeftFn fn, PeftError *err) {
    CudaOrder *o = &x->cuda->order[fn];
    int limit;
    if (o->event) return true;
    if (!stream_limit(&limit, err) || !cuda_graph_switch(&x->cuda->plain, err) ||
        !order_function(x->program, &x->plan, fn, fn == PEFT_FN_EVAL ? x->eval_sym : x->train_sym,
                        limit, &o->order, err))
        return false;
    const PeftFunction *f = &x->program->fn[fn];
    void **arg = x->arg[fn];
    o->arg = peft_alloc((size_t)f->nstep, sizeof *o->arg, err);
    for (int i = 0; o->arg && i < f->nstep; arg += f->step[i++].narg) o->arg[i] = arg;
    o->event = peft_zalloc((size_t)o->order.nstep + 1, sizeof(CUevent), err);
    return o->arg && o->event && make_streams(x->cuda, o, err);
}

/* What comes next on the stream comes after all that step i, or the function's end, waits for. */
static bool wait_for_steps(const CudaExec *d, const CudaOrder *o, int i, CUstream stream,
                           PeftError *err) {
    bool ok = true;
    for (int k = o->order.first_wait[i]; ok && k < o->order.first_wait[i + 1]; k++)
        ok = cuda_ok(d->api->cuStreamWaitEvent(stream, *event_of(o, o->order.wait[k]), 0),
                     "order the steps", err);
    return ok;
}

static bool record(const CudaExec *d, const CudaOrder *o, int32_t step, CUstream stream,
                   PeftError *err) {
    CUevent event = *event_of(o, step);
    return !event || cuda_ok(d->api->cuEventRecord(event, stream), "order the steps", err);
}

/* ---- launching ---- */

CudaMembers cuda_members(const Exec *x, PeftFn fn, int i) {
    const CudaOrder *o = &x->cuda->order[fn];
    const int32_t *member = &o->order.member[o->order.first_member[i]];
    CudaMembers m = {.step = &x->program->fn[fn].step[*member],
                     .part = (OrderPart)o->order.part[i]};
    int32_t first = *member; /* in the program: its workspace is there now */
    for (; m.n < o->order.first_member[i + 1] - o->order.first_member[i]; m.n++) {
        m.arg[m.n] = o->arg[member[m.n]];
        m.workspace[m.n] = x->workspace[fn][member[m.n]];
        if (member[m.n] < first) first = member[m.n];
    }
    const PeftGemm *g = m.step->desc;
    bool gemm = x->program->kernel[m.step->kernel].kind == PEFT_KERNEL_GEMM;
    for (int k = 0; gemm && !peft_is_nf4(g->b_dtype) && k < m.n; k++)
        m.workspace[k] = x->workspace[fn][first];
    return m;
}

/* Step i of the order, or what can be prepared for one; a failure names the program's step. */
static bool launch_step(Exec *x, PeftFn fn, int i, const int64_t *sym, PeftError *err) {
    CudaMembers m = cuda_members(x, fn, i);
    if (m.part == ORDER_PREPARES ? cuda_prepare(x, &m, sym, err) : cuda_step(x, &m, sym, err))
        return true;
    char why[sizeof err->msg];
    memcpy(why, err->msg, sizeof why);
    err->msg[0] = 0;
    return peft_fail(err, "%s (%s): %.800s", x->program->kernel[m.step->kernel].name, m.step->where,
                     why);
}

/* One after the other on one stream, the time of each between two marks. */
static bool launch_marked_steps(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    CudaExec *d = x->cuda;
    int n = d->order[fn].order.nstep;
    d->current = d->stream;
    for (int i = 0; i < n; i++)
        if (!cuda_timing_mark(&d->timing[fn], d->api, i, d->stream, err) ||
            !launch_step(x, fn, i, sym, err))
            return false;
    return cuda_timing_mark(&d->timing[fn], d->api, n, d->stream, err);
}

static bool launch_steps(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    CudaExec *d = x->cuda;
    const CudaOrder *o = &d->order[fn];
    const Order *order = &o->order;
    if (!record(d, o, ORDER_START, d->stream, err)) return false;
    for (int i = 0; i < order->nstep; i++) {
        d->current = stream_of(d, order->stream[i]);
        if (!wait_for_steps(d, o, i, d->current, err) || !launch_step(x, fn, i, sym, err) ||
            !record(d, o, i, d->current, err))
            return false;
    }
    return wait_for_steps(d, o, order->nstep, d->stream, err);
}

/* ---- graphs ---- */

/* The entry for this size of batch. */
static CudaGraph *find_graph(CudaExec *d, PeftFn fn, const int64_t *sym) {
    CudaGraph key = {.fn = fn,
                     .tokens = sym[PEFT_SYM_T],
                     .sequences = sym[PEFT_SYM_S],
                     .masked = sym[PEFT_SYM_M]};
    for (int i = 0; i < d->ngraph; i++) {
        const CudaGraph *g = &d->graph[i];
        if (g->fn == key.fn && g->tokens == key.tokens && g->sequences == key.sequences &&
            g->masked == key.masked)
            return &d->graph[i];
    }
    if (d->ngraph == CUDA_MAX_GRAPHS) drop_graphs(d);
    d->graph[d->ngraph] = key;
    return &d->graph[d->ngraph++];
}

typedef bool (*LaunchFn)(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err);

/* Streams join the capture with the first event of it that they wait for. */
static bool capture(Exec *x, PeftFn fn, const int64_t *sym, LaunchFn launch, CUgraphExec *exec,
                    PeftError *err) {
    CudaExec *d = x->cuda;
    CUgraph graph = NULL;
    if (!cuda_ok(d->api->cuStreamBeginCapture(d->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                 "capture a function", err))
        return false;
    bool ok = launch(x, fn, sym, err);
    ok = cuda_ok(d->api->cuStreamEndCapture(d->stream, &graph), "capture a function", err) && ok;
    ok = ok && cuda_ok(d->api->cuGraphInstantiate(exec, graph, 0), "make a graph", err);
    if (graph) d->api->cuGraphDestroy(graph);
    return ok;
}

/* Profiling: a graph of its own, for this run alone. */
static bool time_steps(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    CudaExec *d = x->cuda;
    CUgraphExec exec = NULL;
    bool ok = cuda_timing_open(&d->timing[fn], d->api, d->order[fn].order.nstep, err) &&
              capture(x, fn, sym, launch_marked_steps, &exec, err) &&
              cuda_ok(d->api->cuGraphLaunch(exec, d->stream), "launch a graph", err) &&
              cuda_function_ended(d->api->cuStreamSynchronize(d->stream), err) &&
              cuda_timing_note(&d->timing[fn], x, fn, sym, err);
    if (exec) d->api->cuGraphExecDestroy(exec);
    return ok;
}

/* The first batch of a size is launched step by step, since libraries load their kernels then; the
 * second one is captured, and from then on the size is one graph launch. */
bool cuda_launch_function(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    CudaExec *d = x->cuda;
    if (!make_order(x, fn, err)) return false;
    CudaGraph *g = find_graph(d, fn, sym);
    if (!g->tuned && !(g->tuned = cuda_tune_function(x, fn, sym, err))) return false;
    if (!g->launched) return g->launched = launch_steps(x, fn, sym, err);
    if (x->time[fn]) return time_steps(x, fn, sym, err);
    if (d->plain) return launch_steps(x, fn, sym, err);
    if (!g->exec && !capture(x, fn, sym, launch_steps, &g->exec, err)) return false;
    return cuda_ok(d->api->cuGraphLaunch(g->exec, d->stream), "launch a graph", err);
}
