/* Random initial values, counter-based: value i of a variable depends on its key and on i alone, so
 * that any thread can draw any part. The numbers are those of splitmix64's output function (Steele,
 * Lea and Flood, 2014) on a counter, and of Box and Muller's transform with libm's log and cos: bit
 * for bit, on every instruction set. */
#ifndef PEFT_CPU_DRAW_H
#define PEFT_CPU_DRAW_H

#include <stdint.h>

/* Values [first, first + n): uniform in [-bound, bound]; normal with mean 0 and this deviation. */
void draw_uniform(uint64_t key, int64_t first, int64_t n, double bound, float *out);
void draw_normal(uint64_t key, int64_t first, int64_t n, double deviation, float *out);

#endif
