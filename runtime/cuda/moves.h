/* Where steps may run instead of their place in the program. A move is right when nothing that a
 * step touches is touched by what it now passes, with a write on either side; a kernel that is a
 * product's epilogue stays where it was, and so the product must not pass that. Nothing is said
 * about what a touch is counted in: the finder of batches compares buffers, the order bytes. */
#ifndef PEFT_CUDA_MOVES_H
#define PEFT_CUDA_MOVES_H

#include "order.h"

typedef struct Moves {
    const OrderStep *step;     /* by step of the program: all that it touches */
    const OrderStep *epilogue; /* by step: what the kernel behind its product touches; n = 0: there
                                  is none */
    int32_t *place;            /* by step: where it runs, without its epilogue */
    int32_t *moved;            /* those that have not their own place */
    int32_t nstep, nmoved;
} Moves;

/* Step i's own place. Odd numbers are between two steps. */
static inline int32_t moves_place(int32_t i) {
    return 2 * i;
}

/* At first each step has its own place, but one of a kernel for several steps waits for others of
 * its kind until the first step that needs it. */
bool moves_open(Moves *m, const PeftProgram *p, const PeftFunction *f, const OrderStep *step,
                const OrderStep *epilogue, PeftError *err);
void moves_close(Moves *m); /* zeros are fine */

/* Moves the products of n steps, which touch `product`, to the place of step `to`, one of them, as
 * one; false, without a change, when that would not be right. None of them is in a batch yet. */
bool moves_try(Moves *m, const int32_t *step, const OrderStep *product, int n, int32_t to);

#endif
