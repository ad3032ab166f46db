/* The CUDA device of exec.c: the program's kernels compiled, its arena in the GPU's memory, its
 * steps launched. The host's arena mirrors variables, inputs and outputs: variables that exec_var
 * handed out are copied to the device before the next run, outputs back after it, variables on
 * exec_pull. Of submitted runs only scalars come back. */
#ifndef PEFT_CUDA_DEVICE_H
#define PEFT_CUDA_DEVICE_H

#include <stdio.h>

#include "../exec.h"

/* Opens the libraries and the first usable GPU, compiles what the planned functions run and
 * allocates plan.peak bytes. Exit code 3 when they are not free. */
bool cuda_open(Exec *x, PeftError *err);
void cuda_close(Exec *x);

void cuda_touch(const Exec *x, int var); /* the host may write the variable */
bool cuda_zero(const Exec *x, int var);  /* see exec_zero */
bool cuda_pull(Exec *x, PeftError *err); /* variables that the device changed, to the host */
/* See exec_warm_up; cuda_warmed waits for it, as everything that uses the GPU does. */
bool cuda_warm_up(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                  const int64_t size[PEFT_SYM_COUNT], PeftError *err);
void cuda_warmed(const Exec *x);
/* sym: the batch's sizes; size: the same as the device rounds them up, which is what is launched.
 */
bool cuda_run(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
              const int64_t size[PEFT_SYM_COUNT], PeftError *err);

/* Starts a function on a copy of the batch, in slot `at` of EXEC_QUEUE; cuda_collect waits until it
 * has run and gives its scalars. A slot is free when it has been collected. */
bool cuda_submit(Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT],
                 const int64_t size[PEFT_SYM_COUNT], int at, PeftError *err);
bool cuda_collect(Exec *x, int at, float scalar[EXEC_SCALARS], PeftError *err);

/* GPU memory taken since the context was made, as the driver counts it: the arena, kernels, graphs,
 * the library's own. -1 when the driver does not tell. */
int64_t cuda_driver_bytes(const Exec *x);

/* Scratch that a step's GEMM asks for: the library's, and a dequantised operand. */
int64_t cuda_workspace_bytes(const PeftStep *s, const int64_t sym[PEFT_SYM_COUNT]);

#endif
