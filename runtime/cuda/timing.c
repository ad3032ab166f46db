/* See timing.h. */
#include "timing.h"
#include "internal.h"

#include <stdlib.h>

bool cuda_timing_open(CudaTiming *t, const CudaApi *api, int nstep, PeftError *err) {
    if (t->event) return true;
    t->event = peft_zalloc((size_t)nstep + 1, sizeof(CUevent), err);
    t->nevent = t->event ? nstep + 1 : 0;
    bool ok = t->event != NULL;
    for (int i = 0; ok && i < t->nevent; i++)
        ok = cuda_ok(api->cuEventCreate(&t->event[i], CU_EVENT_DEFAULT), "make an event", err);
    if (!ok) cuda_timing_close(t, api);
    return ok;
}

void cuda_timing_close(CudaTiming *t, const CudaApi *api) {
    for (int i = 0; i < t->nevent; i++)
        if (t->event[i]) api->cuEventDestroy(t->event[i]);
    free(t->event);
    *t = (CudaTiming){0};
}

bool cuda_timing_mark(const CudaTiming *t, const CudaApi *api, int step, CUstream stream,
                      PeftError *err) {
    return cuda_ok(api->cuEventRecordWithFlags(t->event[step], stream, CU_EVENT_RECORD_EXTERNAL),
                   "time a step", err);
}

bool cuda_timing_note(const CudaTiming *t, Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                      PeftError *err) {
    const Order *o = &x->cuda->order[fn].order;
    for (int i = 0; i + 1 < t->nevent; i++) {
        int first = o->first_member[i], n = o->first_member[i + 1] - first;
        bool extra = o->part[i] == ORDER_PREPARES || o->part[i] == ORDER_EPILOGUE;
        float ms = 0;
        if (!cuda_ok(x->cuda->api->cuEventElapsedTime(&ms, t->event[i], t->event[i + 1]),
                     "read a step's time", err))
            return false;
        for (int m = first; m < first + n; m++) {
            double seconds = 1e-3 * (double)ms / n;
            if (extra)
                x->time[fn][o->member[m]].seconds += seconds;
            else
                exec_note_time(x, fn, o->member[m], seconds, sym);
        }
    }
    return true;
}
