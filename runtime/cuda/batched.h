/* Which matrix products of a function become one: the library computes products of one shape whose
 * operands lie at equal distances in a single launch, which fills the GPU where each alone would
 * not, and none waits for another's multiprocessors. Found from the program's tables alone, so that
 * the planner can put their results side by side (plan.c) before the order of the steps, which
 * compares bytes, decides what really runs together (order.c). */
#ifndef PEFT_CUDA_BATCHED_H
#define PEFT_CUDA_BATCHED_H

#include "../error.h"
#include "../peftrt.h"

enum {
    BATCH_MOST = 4,        /* products: an adapter's gradients of two layers */
    BATCH_REACH = 24,      /* steps of the program from the first to the last */
    BATCH_WAIT_REACH = 64, /* the same where the first waits for the last */
    BATCH_WAITS = 1 << 17, /* elements of a result that may wait */
    BATCH_OPERANDS = 5
};

/* Steps in the order of their operands in memory. They run where the first of them stands in the
 * program, or, small gradients, the last: what these touch has to live until then. */
typedef struct Batched {
    int32_t step[BATCH_MOST];
    int32_t n;  /* at least 2 */
    int32_t at; /* one of step */
} Batched;

typedef struct Batches {
    Batched *batch;
    int32_t n;
} Batches;

/* All batches of a function, each step in one at most. */
bool batches_find(const PeftProgram *p, PeftFn fn, Batches *out, PeftError *err);
void batches_free(Batches *b);

/* Whether products of the batch wait for the last of them. */
bool batch_waits(const Batched *b);

/* Whether a product's step ends with a kernel of its own, which is not part of a batch. */
bool batch_leaves_epilogue(const PeftGemm *g);

/* The buffer of operand k (A, B, C, addend, bias) of a product that is in a batch; PEFT_REF_NONE
 * when it has none. A quantised B is its workspace, behind whose library part it is dequantised. */
int32_t batch_operand(const PeftProgram *p, const PeftStep *s, int k);

#endif
