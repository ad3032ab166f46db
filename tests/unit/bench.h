/* A graph whose variables are given as arrays, evaluated by the interpreter: what tests use to pin
 * a value to a number from elsewhere. */
#ifndef PEFT_TEST_BENCH_H
#define PEFT_TEST_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../compiler/interp.h"
#include "../../compiler/op/rules.h"

enum { BENCH_VARS = 24 };

typedef struct Bench {
    Graph *g;
    RefTensor var[BENCH_VARS], input[PEFT_IN_COUNT];
    InterpEnv env;
} Bench;

static inline void bench_open(Bench *b) {
    memset(b, 0, sizeof *b);
    b->g = graph_new();
    b->env.var = b->var;
    b->env.input = b->input;
    b->env.sym[PEFT_SYM_T] = 5;
    b->env.sym[PEFT_SYM_S] = 2;
    b->env.sym[PEFT_SYM_M] = 3;
    b->env.sym[PEFT_SYM_L] = 3;
    b->env.sym[PEFT_SYM_P] = 1;
}

static inline RefTensor bench_tensor(const Bench *b, Type t, const double *value) {
    RefTensor r = {.data = (double *)value, .rank = t.rank, .count = 1};
    for (int i = 0; i < t.rank; i++) r.count *= r.dim[i] = peft_dim(t.dim[i], b->env.sym);
    return r;
}

/* A variable bound to `value` (not copied). */
static inline Node *bench_var(Bench *b, Type t, const double *value) {
    assert_true(b->g->nvar < BENCH_VARS);
    Var v = {.type = t, .group = -1};
    v.name = graph_printf(b->g, "v%d", b->g->nvar);
    int32_t i = graph_var(b->g, v);
    b->var[i] = bench_tensor(b, t, value);
    return nd_var(b->g, i);
}

static inline Node *bench_input(Bench *b, PeftInputId id, const double *value) {
    Node *n = nd_input(b->g, id);
    b->input[id] = bench_tensor(b, n->type, value);
    return n;
}

/* The value of a node, in the graph's memory. */
static inline const double *bench_value(const Bench *b, Node *n) {
    RefTensor t;
    PeftError err = {0};
    if (!interp_roots(b->g, &b->env, &n, 1, &t, &err)) fail_msg("%s", err.msg);
    double *copy = graph_alloc(b->g, (size_t)(t.count + 1) * sizeof *copy);
    memcpy(copy, t.data, (size_t)t.count * sizeof *copy);
    interp_free(&t, 1);
    return copy;
}

/* |found - wanted| <= tolerance (1 + |wanted|); a NaN fails. */
static inline void bench_close(const char *what, const double *found, const double *wanted, int n,
                               double tolerance) {
    for (int i = 0; i < n; i++) {
        double err = found[i] - wanted[i], size = wanted[i] < 0 ? -wanted[i] : wanted[i];
        if (err < 0) err = -err;
        if (!(err <= tolerance * (1 + size)))
            fail_msg("%s[%d]: found %.15g, wanted %.15g", what, i, found[i], wanted[i]);
    }
}

#endif
