/* The interpreter: evaluates a graph in double precision by the ref_ functions of the op table. It
 * is the oracle that every kernel and every backend is compared with. */
#ifndef PEFTC_INTERP_H
#define PEFTC_INTERP_H

#include "../runtime/error.h"
#include "graph.h"

/* What the leaves are bound to. Values are row-major doubles; an i32 tensor holds whole numbers, an
 * NF4 variable its dequantised values. Unbound ones have data NULL. The batch's `rng` is not bound:
 * it is made from seed, step and dropout. */
typedef struct InterpEnv {
    int64_t sym[PEFT_SYM_COUNT];
    const RefTensor *var;   /* [g->nvar], or NULL: none is bound */
    const RefTensor *input; /* [PEFT_IN_COUNT], or NULL: none is bound */
    uint64_t seed;
    int32_t step;
    bool dropout;
} InterpEnv;

/* Values of n roots (result 0 of a multi-result op). False with a message when a leaf is unbound or
 * bound to another size, or memory runs out; out is then empty. Free with interp_free. */
bool interp_roots(const Graph *g, const InterpEnv *env, Node *const root[], int n, RefTensor out[],
                  PeftError *err);

/* The same for a function: out[nout] in the order of its outputs, update[nupdate] of its updates.
 * Variables are not changed: an update is the value that would be written. */
bool interp_function(const Graph *g, PeftFn fn, const InterpEnv *env, RefTensor out[],
                     RefTensor update[], PeftError *err);

void interp_free(RefTensor t[], int n);

#endif
