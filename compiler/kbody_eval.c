/* The scalar functions here are written apart from those of the ops' ref_ functions, so that a
 * mistake in either shows when the two are compared. */
#include "kbody_eval.h"

#include <math.h>

#include "op/rules.h"

typedef struct Eval {
    const KBody *b;
    const RefTensor *tensor;
    int64_t rows;
    double *value;
} Eval;

static double get(const Eval *e, KVal v, int64_t r, int64_t c) {
    return e->value[((int64_t)v * e->rows + r) * e->b->cols + c];
}

/* ---- reading tensors ---- */

/* Element at this place of the space: vectors of rows vary with r, vectors of columns with c. */
static double load(const Eval *e, const KInstr *i, KVal v, int64_t r, int64_t c) {
    int64_t rows, cols;
    type_space(i->tensor->type, &rows, &cols);
    return e->tensor[v].data[(rows == 1 ? 0 : r) * cols + (cols == 1 ? 0 : c)];
}

static double indexed(const Eval *e, const KInstr *i, KVal v, int64_t r, int64_t c) {
    const RefTensor *t = &e->tensor[v];
    double at = get(e, i->a, r, c);
    int64_t cols = t->rank == 2 ? t->dim[1] : 1, row = ref_index(at, t->dim[0]);
    if (row < 0) return i->op == K_SCATTER && at < 0 ? 0 : NAN;
    return t->data[row * cols + (cols == 1 ? 0 : c)];
}

static double leaf(const Eval *e, const KInstr *i, KVal v, int64_t r, int64_t c) {
    switch (i->op) {
    case K_CONST: return i->number;
    case K_COLUMN: return (double)c;
    case K_LOAD: return load(e, i, v, r, c);
    default: return indexed(e, i, v, r, c);
    }
}

/* ---- arithmetic ---- */

/* The normal distribution function by erfc, its density, and the logistic function by tanh. */
static double normal_cdf(double x) {
    return 0.5 * erfc(-x * sqrt(0.5));
}

static double normal_pdf(double x) {
    return exp(-x * x / 2) / sqrt(8 * atan(1));
}

static double logistic(double x) {
    return 0.5 + 0.5 * tanh(x / 2);
}

/* 0.5 (1 + tanh u) = logistic(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). */
static double gelu_gate(double x) {
    return logistic(2 * sqrt(0.5 / atan(1)) * (x + 0.044715 * pow(x, 3)));
}

/* (x gate(x))' = gate + x gate', gate' = gate (1 - gate) (2 u)'. */
static double gelu_tanh_grad(double x) {
    double gate = gelu_gate(x), slope = 2 * sqrt(0.5 / atan(1)) * (1 + 3 * 0.044715 * x * x);
    return gate + x * gate * (1 - gate) * slope;
}

static double unary(const KInstr *i, double x) {
    switch (i->op) {
    case K_NEG: return -x;
    case K_EXP: return exp(x);
    case K_LOG: return log(x);
    case K_SQRT: return sqrt(x);
    case K_RECIP: return 1 / x;
    case K_SQUARE: return x * x;
    case K_TANH: return tanh(x);
    case K_SIGMOID: return logistic(x);
    case K_RELU: return x > 0 || isnan(x) ? x : 0;
    case K_GELU: return x * normal_cdf(x);
    case K_GELU_TANH: return x * gelu_gate(x);
    case K_SILU: return x * logistic(x);
    case K_STEP: return x > 0;
    case K_GELU_GRAD: return normal_cdf(x) + x * normal_pdf(x);
    case K_GELU_TANH_GRAD: return gelu_tanh_grad(x);
    case K_SILU_GRAD: return logistic(x) * (1 + x * logistic(-x));
    case K_BIAS_CORRECTION: return -expm1(x * log(i->number));
    default: PANIC(i->tensor, "kernel op %d is not unary", (int)i->op);
    }
}

static double binary(const KInstr *i, double x, double y) {
    switch (i->op) {
    case K_ADD: return x + y;
    case K_SUB: return x - y;
    case K_MUL: return x * y;
    case K_DIV: return x / y;
    case K_MIN: return x < y ? x : y;
    case K_MAX: return x > y ? x : y;
    default: PANIC(i->tensor, "kernel op %d is not binary", (int)i->op);
    }
}

static double row_reduce(const Eval *e, const KInstr *i, int64_t r) {
    double all = i->op == K_ROW_SUM ? 0 : -INFINITY;
    for (int64_t c = 0; c < e->b->cols; c++) {
        double x = get(e, i->a, r, c);
        all = i->op == K_ROW_SUM ? all + x : x > all ? x : all;
    }
    return all;
}

/* The generator's state is what its tensor says: seed low, seed high, step, on or off. */
static double keep(const Eval *e, const KInstr *i, KVal v, int64_t r, int64_t c) {
    const double *rng = e->tensor[v].data;
    uint64_t low = (uint32_t)(int32_t)rng[0], high = (uint32_t)(int32_t)rng[1];
    RefContext state = {NULL, high << 32 | low, (int32_t)rng[2], rng[3] != 0};
    return ref_keep(&state, i->number, i->site, get(e, i->a, r, c), get(e, i->b, r, c), c);
}

static double element(const Eval *e, KVal v, int64_t r, int64_t c) {
    const KInstr *i = &e->b->instr[v];
    switch (i->op) {
    case K_CONST:
    case K_COLUMN:
    case K_LOAD:
    case K_GATHER:
    case K_SCATTER: return leaf(e, i, v, r, c);
    case K_EQ_SELECT: return get(e, i->a, r, c) == get(e, i->b, r, c) ? get(e, i->c, r, c) : 0;
    case K_KEEP: return keep(e, i, v, r, c);
    case K_ROW_SUM:
    case K_ROW_MAX: return row_reduce(e, i, r);
    default:
        return i->b < 0 ? unary(i, get(e, i->a, r, c))
                        : binary(i, get(e, i->a, r, c), get(e, i->b, r, c));
    }
}

void kbody_eval(const KBody *b, int64_t rows, const RefTensor tensor[], double value[]) {
    Eval e = {b, tensor, rows, value};
    for (KVal v = 0; v < b->n; v++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t col = 0; col < b->cols; col++)
                value[((int64_t)v * rows + r) * b->cols + col] = element(&e, v, r, col);
}
