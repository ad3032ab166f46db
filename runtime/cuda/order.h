/* Which steps of a function may run at the same time on a GPU. A program lists its steps in an
 * order that is right on one stream. Two steps keep that order only when they conflict: when one
 * writes bytes that the other reads or writes. Since bytes are compared, not buffers, memory that
 * the planner gave to one buffer after another is respected, too. Nothing here calls CUDA. */
#ifndef PEFT_CUDA_ORDER_H
#define PEFT_CUDA_ORDER_H

#include "../plan.h"

#define ORDER_START (-1) /* in Order.wait: what came before the function */

typedef struct OrderRange { /* bytes that a step touches */
    int64_t begin, end;     /* offsets, the end is not included */
    bool written;
} OrderRange;

typedef struct OrderStep {
    const OrderRange *range;
    int n;
} OrderStep;

typedef enum OrderPart { /* of its members that a step stands for */
                         ORDER_WHOLE,
                         ORDER_PREPARES, /* what cuda_prepare does */
                         ORDER_PRODUCTS, /* a batch, without the kernels behind its products */
                         ORDER_EPILOGUE  /* such a kernel */
} OrderPart;

/* Steps on streams. A step runs after the one before it on its stream and after the steps that it
 * waits for, which are on other streams. Entry nstep of first_wait is the end of the function, on
 * stream 0, which waits for everything. In order_function's results a step may stand for several of
 * the program's, which are then launched together. */
typedef struct Order {
    int nstep, nwait;
    int32_t *member;       /* step i stands for the program's steps member[first_member[i]] to
                              member[first_member[i + 1] - 1]; NULL: for step i alone */
    int32_t *first_member; /* nstep + 1 entries */
    uint8_t *part;         /* OrderPart, by step */
    int32_t *stream;       /* by step */
    int32_t *wait;         /* step i waits for wait[first_wait[i]] to wait[first_wait[i + 1] - 1] */
    int32_t *first_wait;   /* nstep + 2 entries */
    int32_t longest;       /* steps of the longest chain that must run one after the other */
} Order;

/* Puts n steps on at most `streams` (> 0) streams. Every conflict is ordered, no wait follows from
 * the others, and equal steps give equal results. */
bool order_steps(const OrderStep *step, int n, int streams, Order *out, PeftError *err);

/* The steps of a planned function, those of a kernel for several steps gathered behind the last of
 * them where nothing in between forbids it. sym: the sizes it was planned for, so that the order
 * holds for every batch that fits. */
bool order_function(const PeftProgram *p, const ProgramPlan *plan, PeftFn fn,
                    const int64_t sym[PEFT_SYM_COUNT], int streams, Order *out, PeftError *err);

void order_free(Order *o); /* zeros are fine */

#endif
