/* The memory report: what a program's plan says, for a reader and for a program. Used by
 * peftc --emit=plan (sizes from the command line) and ./run plan (sizes from the data). */
#ifndef PEFT_MEMREPORT_H
#define PEFT_MEMREPORT_H

#include <stdio.h>

#include "error.h"
#include "peftrt.h"

/* Names of the memory classes, as every report and JSON file writes them. */
extern const char *const mem_class_name[PEFT_MEM_CLASSES];

/* Plans training with evaluation for these worst batches and prints peak, lower bound, the bytes of
 * each class at the peak and the largest buffers alive there with their model lines. */
bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err);

#endif
