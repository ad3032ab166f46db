/* The memory report of peftc --emit=plan and ./run plan: what a program needs for batches of a
 * given size, before it runs. */
#ifndef PEFT_MEMREPORT_H
#define PEFT_MEMREPORT_H

#include <stdio.h>

#include "error.h"
#include "peftrt.h"

/* Names of the memory classes, as every report and JSON file writes them. */
extern const char *const mem_class_name[PEFT_MEM_CLASSES];

/* Plans evaluation and training together for these batches and prints peak, lower bound and their
 * ratio, bytes by class, and the largest buffers alive at the peak with the model lines they come
 * from. False when a size overflows or memory runs out. */
bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err);

#endif
