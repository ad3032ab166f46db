/* Scheduling: puts the kernels of a function in order and decides which updates are written in
 * place.
 *
 * requires     the kernels of fuse_function; no output that is a variable which the function
 * updates gives        an order in which every kernel comes after those it reads from, and every
 * kernel that writes a variable after all that read its old value; out[] of a kernel names the
 * variable (an OP_VAR node) where its result is written into the variable's storage leaves alone
 * the code of the kernels
 *
 * The order is stable: nodes' ids decide, so equal programs give equal schedules. It is meant to
 * keep few bytes alive: forward and backward as the graph was built; what variables and inputs
 * alone give, and what was put off to the backward pass, right before its first reader; kernels
 * that only turn a gradient into a scalar or a variable right after it. */
#ifndef PEFTC_SCHEDULE_H
#define PEFTC_SCHEDULE_H

#include "fuse.h"

Schedule *schedule_function(Graph *g, PeftFn fn, Kernel *const *kernel, int32_t n);

/* The variable in whose storage a value lies because it is the variable's update, or -1. Only
 * meaningful for values that no kernel of the schedule lists as its result. */
int32_t updated_var(const Graph *g, PeftFn fn, const Schedule *s, const Node *value);

#endif
