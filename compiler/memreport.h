/* The memory report of --emit=plan: what a program needs for batches of a given size, before it
 * runs. */
#ifndef PEFTC_MEMREPORT_H
#define PEFTC_MEMREPORT_H

#include <stdio.h>

#include "../runtime/error.h"
#include "../runtime/peftrt.h"

/* Plans evaluation and training together for these batches and prints peak, lower bound and their
 * ratio, bytes by class, and the largest buffers alive at the peak with the model lines they come
 * from. False when a size overflows or memory runs out. */
bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err);

#endif
