/* The null device: no arithmetic, every check. A step may only touch buffers that are alive at it,
 * whole and inside the plan, and no two buffers alive together may overlap. */
#ifndef PEFT_NULL_H
#define PEFT_NULL_H

#include "../exec.h"

bool null_check(const Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err);

#endif
