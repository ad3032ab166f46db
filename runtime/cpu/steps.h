/* Executes one step of a program on the CPU: generated kernels over ranges of rows or columns,
 * runtime routines for the rest. */
#ifndef PEFT_CPU_STEPS_H
#define PEFT_CPU_STEPS_H

#include "../error.h"
#include "../peftrt.h"

/* Chooses the instruction set; false when the environment asks for one this machine lacks. */
bool cpu_ready(PeftError *err);

/* arg: the step's buffers; workspace: its scratch or NULL; sym: the batch's symbol values. */
void cpu_step(const PeftProgram *p, const PeftStep *s, void *const *arg, void *workspace,
              const int64_t sym[PEFT_SYM_COUNT], int threads);

#endif
