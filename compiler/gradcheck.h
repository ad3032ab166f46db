/* Checks of the op table against itself, one test instance (sample_) at a time: the symbolic
 * gradient against differences of the reference, scalar code against the reference. There is no
 * list of cases: a test loops over the ops and over k until opcase_open says that there is no k-th.
 */
#ifndef PEFTC_GRADCHECK_H
#define PEFTC_GRADCHECK_H

#include "interp.h"

typedef struct OpCase { /* the k-th sample of an op with a value for every leaf */
    Graph *g;
    Node *node;
    uint64_t seed;
    InterpEnv env;
} OpCase;

bool opcase_open(OpCase *c, OpCode op, int k, uint64_t seed);
void opcase_close(OpCase *c);

typedef struct CheckResult {
    int64_t compared; /* numbers compared */
    double worst;     /* largest |a - b| / (|b| + floor); NaN when one of them is */
    char what[160];   /* where that was, or what is wrong with the structure */
    bool sound;       /* false: `what` is a violated rule, not a number */
} CheckResult;

/* For every subset of the f32 variables among the inputs: the gradients that the op's rule builds
 * for loss = sum(w y), against four-point central differences of the double-precision reference.
 * Also that the rule gives nothing for an input that needs nothing and builds no node in vain. An
 * op without a gradient compares nothing. */
CheckResult gradcheck_rule(OpCode op, int k, uint64_t seed);

/* The same differences against the autodiff driver's gradients, all at once. */
CheckResult gradcheck_driver(OpCode op, int k, uint64_t seed);

/* The op's scalar code, evaluated over its index space, against the reference of each result; and
 * that row and uniform values really do not vary. An op without scalar code compares nothing. */
CheckResult lowercheck(OpCode op, int k, uint64_t seed);

#endif
