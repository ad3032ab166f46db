/* The order in which a function's steps reach the GPU: one by one the first time that a batch of a
 * size comes, from then on as one CUDA graph of that size. */
#include "internal.h"
#include "../measure.h"

#include <string.h>

void cuda_drop_graphs(CudaExec *d) {
    for (int i = 0; i < d->ngraph; i++)
        if (d->graph[i].exec) d->api->cuGraphExecDestroy(d->graph[i].exec);
    d->ngraph = 0;
}

/* Launches every step; while profiling it waits for each and notes its time. */
static bool launch_steps(Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    void **arg = x->arg[fn];
    for (int i = 0; i < f->nstep; i++) {
        const PeftStep *s = &f->step[i];
        double t0 = x->time[fn] ? clock_seconds() : 0;
        bool ok = cuda_step(x, s, arg, x->workspace[fn][i], sym, err);
        if (ok && x->time[fn]) {
            ok = cuda_wait(x, "run a step", err);
            exec_note_time(x, fn, i, clock_seconds() - t0, sym);
        }
        if (!ok) {
            char why[sizeof err->msg];
            memcpy(why, err->msg, sizeof why);
            err->msg[0] = 0;
            return peft_fail(err, "%s (%s): %.800s", x->program->kernel[s->kernel].name, s->where,
                             why);
        }
        arg += s->narg;
    }
    return true;
}

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
    if (d->ngraph == CUDA_MAX_GRAPHS) cuda_drop_graphs(d);
    d->graph[d->ngraph] = key;
    return &d->graph[d->ngraph++];
}

static bool capture(Exec *x, PeftFn fn, const int64_t *sym, CUgraphExec *exec, PeftError *err) {
    CudaExec *d = x->cuda;
    CUgraph graph = NULL;
    if (!cuda_ok(d->api->cuStreamBeginCapture(d->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                 "capture a function", err))
        return false;
    bool ok = launch_steps(x, fn, sym, err);
    ok = cuda_ok(d->api->cuStreamEndCapture(d->stream, &graph), "capture a function", err) && ok;
    ok = ok && cuda_ok(d->api->cuGraphInstantiate(exec, graph, 0), "make a graph", err);
    if (graph) d->api->cuGraphDestroy(graph);
    return ok;
}

/* The first batch of a size is launched step by step, since libraries load their kernels then; the
 * second one is captured, and from then on the size is one graph launch. */
bool cuda_launch_function(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    CudaExec *d = x->cuda;
    if (x->time[fn]) return launch_steps(x, fn, sym, err);
    CudaGraph *g = find_graph(d, fn, sym);
    if (!g->launched) return g->launched = launch_steps(x, fn, sym, err);
    if (!g->exec && !capture(x, fn, sym, &g->exec, err)) return false;
    return cuda_ok(d->api->cuGraphLaunch(g->exec, d->stream), "launch a graph", err);
}
