/* Which steps touch the same bytes, one of them writing, so that they keep their order. */
#ifndef PEFT_CUDA_CONFLICTS_H
#define PEFT_CUDA_CONFLICTS_H

#include "order.h"

bool order_conflict(const OrderStep *a, const OrderStep *b);

/* [n][n], of all pairs at once; to be freed. NULL is an error. */
bool *order_conflicts(const OrderStep *step, int n, PeftError *err);

#endif
