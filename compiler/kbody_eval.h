/* Evaluates a kernel body in double precision: what a kernel that prints it must compute. */
#ifndef PEFTC_KBODY_EVAL_H
#define PEFTC_KBODY_EVAL_H

#include "kernel.h"

/* tensor[v] is the value of the tensor that instruction v reads (unused for other instructions).
 * value[(v * rows + r) * cols + c] becomes the value of instruction v at element (r, c); a row or
 * uniform value is repeated. rows: the body's rows in numbers. */
void kbody_eval(const KBody *b, int64_t rows, const RefTensor tensor[], double value[]);

#endif
