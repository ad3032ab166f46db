/* The memory report of peftc --emit=plan and ./run plan: what a program needs for batches of a
 * given size, before it runs. */
#ifndef PEFT_MEMREPORT_H
#define PEFT_MEMREPORT_H

#include <jansson.h>
#include <stdio.h>

#include "error.h"
#include "exec.h"
#include "peftrt.h"

/* Names of the memory classes, as every report and JSON file writes them. */
extern const char *const mem_class_name[PEFT_MEM_CLASSES];

/* Plans evaluation and training together for these batches and prints peak, lower bound and their
 * ratio, bytes by class, and the largest buffers alive at the peak with the model lines they come
 * from. False when a size overflows or memory runs out. */
bool memreport_print(FILE *out, const PeftProgram *p, const int64_t train_sym[PEFT_SYM_COUNT],
                     const int64_t eval_sym[PEFT_SYM_COUNT], bool json, PeftError *err);

/* What an open program was planned for: classes and largest buffers at the peak as text, or the
 * whole report as a JSON object (NULL with a message). */
bool memreport_peak(FILE *out, const Exec *x, PeftError *err);
json_t *memreport_json(const Exec *x, PeftError *err);

/* Bytes of each class alive at each step of a function in the worst batch, as the plan counts
 * them: the largest sum is the function's lower bound. [nstep][PEFT_MEM_CLASSES], to be freed. */
int64_t *memreport_timeline(const Exec *x, PeftFn fn, PeftError *err);

/* What a run reached beside what was planned; on a GPU three lines: the plan's peak, the arena's
 * high-water mark (the same bytes once the worst batch has run) and what the driver counts. */
void memreport_used(FILE *out, const Exec *x);

#endif
