/* Elementwise functions of one operand. Each has the form y = f(x) in f32 of any shape; the operand
 * checks, the scalar code and the sample shapes are the same for all of them. */
#include "rules.h"
#include "sample.h"

#include <math.h>

static bool infer_unary(const Node *n, Type out[], char why[256]) {
    out[0] = n->in[0]->type;
    return is_f32(n, 0, "the operand", why);
}

static Node *sample_unary(Graph *g, OpCode op, SampleDomain domain, int k) {
    static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 1}, {1, 7, 0}, {0, 0, 0}, {2, DIM_T, 9}};
    Node *x = sample_shape(g, domain, shapes, sizeof shapes / sizeof *shapes, k);
    return x ? nd1(g, op, x) : NULL;
}

/* Everything but the gradient of an op whose value at x is `value`. */
#define UNARY(code, domain, value)                                                               \
    bool infer_##code(const Node *n, Type out[], char why[256]) {                                \
        return infer_unary(n, out, why);                                                         \
    }                                                                                            \
    void ref_##code(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) { \
        (void)n, (void)c;                                                                        \
        for (int64_t i = 0; i < out[0].count; i++) {                                             \
            double x = in[0].data[i];                                                            \
            out[0].data[i] = (value);                                                            \
        }                                                                                        \
    }                                                                                            \
    void lower_##code(KBody *b, const Node *n, const KVal in[], KVal out[]) {                    \
        (void)n;                                                                                 \
        out[0] = kb_unary(b, K_##code, in[0]);                                                   \
    }                                                                                            \
    Node *sample_##code(Graph *g, int k) {                                                       \
        return sample_unary(g, OP_##code, domain, k);                                            \
    }

#define SQRT2        1.41421356237309504880
#define SQRT_2_PI    0.79788456080286535588 /* sqrt(2 / pi) */
#define INV_SQRT_2PI 0.39894228040143267794 /* 1 / sqrt(2 pi) */
#define TANH_CUBIC   0.044715               /* Hendrycks and Gimpel, GELUs, 2016 */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* y = x Phi(x), Phi the normal distribution function: y' = Phi(x) + x phi(x), phi its density. */
static double gelu_slope(double x) {
    return 0.5 * (1 + erf(x / SQRT2)) + x * INV_SQRT_2PI * exp(-0.5 * x * x);
}

/* y = 0.5 x (1 + t), t = tanh u, u = sqrt(2/pi) (x + c x^3):
 * y' = 0.5 (1 + t) + 0.5 x (1 - t^2) sqrt(2/pi) (1 + 3 c x^2). */
static double gelu_tanh_slope(double x) {
    double t = tanh(SQRT_2_PI * (x + TANH_CUBIC * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SQRT_2_PI * (1 + 3 * TANH_CUBIC * x * x);
}

/* y = x s, s = sigmoid(x), s' = s (1 - s): y' = s + x s (1 - s). */
static double silu_slope(double x) {
    double s = sigmoid(x);
    return s + x * s * (1 - s);
}

UNARY(NEG, SAMPLE_REAL, -x)
UNARY(EXP, SAMPLE_REAL, exp(x))
UNARY(LOG, SAMPLE_POSITIVE, log(x))
UNARY(SQRT, SAMPLE_POSITIVE, sqrt(x))
UNARY(RECIP, SAMPLE_REAL, 1 / x)
UNARY(SQUARE, SAMPLE_REAL, (x * x))
UNARY(TANH, SAMPLE_REAL, tanh(x))
UNARY(SIGMOID, SAMPLE_REAL, sigmoid(x))
UNARY(RELU, SAMPLE_REAL, x < 0 ? 0 : x) /* a NaN stays one */
UNARY(GELU, SAMPLE_REAL, 0.5 * x * (1 + erf(x / SQRT2)))
UNARY(GELU_TANH, SAMPLE_REAL, 0.5 * x * (1 + tanh(SQRT_2_PI * (x + TANH_CUBIC * x * x * x))))
UNARY(SILU, SAMPLE_REAL, (x * sigmoid(x)))
UNARY(STEP, SAMPLE_REAL, x > 0 ? 1 : 0)
UNARY(GELU_GRAD, SAMPLE_REAL, gelu_slope(x))
UNARY(GELU_TANH_GRAD, SAMPLE_REAL, gelu_tanh_slope(x))
UNARY(SILU_GRAD, SAMPLE_REAL, silu_slope(x))

/* dx = -dy */
void grad_NEG(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    (void)y;
    if (need[0]) dx[0] = nd1(g, OP_NEG, dy[0]);
}

/* dx = dy y */
void grad_EXP(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], y);
}

/* dx = dy / x */
void grad_LOG(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_DIV, dy[0], y->in[0]);
}

/* dx = dy / (2 y) */
void grad_SQRT(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_DIV, dy[0], nd_scale(g, y, 2));
}

/* dx = -dy y^2 */
void grad_RECIP(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd1(g, OP_NEG, nd2(g, OP_MUL, dy[0], nd1(g, OP_SQUARE, y)));
}

/* dx = 2 dy x */
void grad_SQUARE(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], nd_scale(g, y->in[0], 2));
}

/* dx = dy (1 - y^2) */
void grad_TANH(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (!need[0]) return;
    Node *slope = nd2(g, OP_SUB, nd_const(g, 1), nd1(g, OP_SQUARE, y));
    dx[0] = nd2(g, OP_MUL, dy[0], slope);
}

/* dx = dy y (1 - y) */
void grad_SIGMOID(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (!need[0]) return;
    Node *slope = nd2(g, OP_MUL, y, nd2(g, OP_SUB, nd_const(g, 1), y));
    dx[0] = nd2(g, OP_MUL, dy[0], slope);
}

/* dx = dy [x > 0] */
void grad_RELU(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], nd1(g, OP_STEP, y->in[0]));
}

/* dx = dy gelu'(x) */
void grad_GELU(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], nd1(g, OP_GELU_GRAD, y->in[0]));
}

/* dx = dy gelu_tanh'(x) */
void grad_GELU_TANH(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], nd1(g, OP_GELU_TANH_GRAD, y->in[0]));
}

/* dx = dy silu'(x) */
void grad_SILU(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], nd1(g, OP_SILU_GRAD, y->in[0]));
}
