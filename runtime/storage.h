/* How a variable's values lie in memory (DType of peftrt.h), seen as floats. A work value of two
 * bytes is bf16: the upper half of a float, rounded to nearest even. A master is then two planes:
 * its bf16 and the 16 bits, signed, that are missing to the float; halves are rounded up, so that
 * they fit. NaN stays NaN. The device's side is in cuda/kernel_cuda.h. */
#ifndef PEFT_STORAGE_H
#define PEFT_STORAGE_H

#include "peftrt.h"

bool storage_is_float(DType dtype, int work); /* an array of floats as it lies */

/* Values [first, first + n) of a buffer of `count`; work: bytes of a work value, 4 or 2. Not for
 * NF4 (cpu/nf4.h) and integers. */
void storage_put(void *buffer, DType dtype, int work, int64_t count, int64_t first, int64_t n,
                 const float *value);
void storage_get(const void *buffer, DType dtype, int work, int64_t count, int64_t first, int64_t n,
                 float *value);

#endif
