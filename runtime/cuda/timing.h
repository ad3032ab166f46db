/* When the steps of a function ran, by the GPU's own clock: events between the steps, recorded
 * inside a graph, so that neither the host's launches nor its waits are in the times. What an event
 * itself costs is (about a microsecond a step). */
#ifndef PEFT_CUDA_TIMING_H
#define PEFT_CUDA_TIMING_H

#include "../exec.h"
#include "api.h"

typedef struct CudaTiming { /* zero: no events yet */
    CUevent *event;         /* before each step, and behind the last one */
    int nevent;
} CudaTiming;

/* Makes the events for a function of nstep launches, when that is not done yet. */
bool cuda_timing_open(CudaTiming *t, const CudaApi *api, int nstep, PeftError *err);
void cuda_timing_close(CudaTiming *t, const CudaApi *api);

/* Captures "here step `step` begins" (nstep: the end) into the graph that the stream captures. */
bool cuda_timing_mark(const CudaTiming *t, const CudaApi *api, int step, CUstream stream,
                      PeftError *err);

/* Adds the times of a finished run to the function's rows (exec_note_time); steps that are launched
 * together have equal shares, and what is prepared for a step is part of it. */
bool cuda_timing_note(const CudaTiming *t, Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                      PeftError *err);

#endif
