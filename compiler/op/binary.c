/* Elementwise functions of two operands, which broadcast by trailing dimensions, and the explicit
 * broadcast. Gradients are left in the result's shape: the autodiff driver sums them down. */
#include "rules.h"
#include "sample.h"

static bool infer_binary(const Node *n, Type out[], char why[256]) {
    char a[64], b[64];
    if (!is_f32(n, 0, "the left operand", why) || !is_f32(n, 1, "the right operand", why))
        return false;
    if (type_broadcast(n->in[0]->type, n->in[1]->type, &out[0])) return true;
    return why_not(why, "shapes %s and %s do not broadcast", type_str(n->in[0]->type, a),
                   type_str(n->in[1]->type, b));
}

static Node *sample_binary(Graph *g, OpCode op, int k) {
    static const SampleShape shapes[][2] = {
        {{2, 5, 3}, {2, 5, 3}}, {{2, 5, 3}, {1, 3, 0}}, {{2, 1, 3}, {2, 5, 3}},
        {{2, 5, 3}, {2, 5, 1}}, {{0, 0, 0}, {2, 5, 3}}, {{2, 5, 1}, {2, 1, 3}},
        {{1, 7, 0}, {1, 7, 0}}, {{1, 7, 0}, {0, 0, 0}}, {{2, 5, 1}, {1, 3, 0}},
        {{2, 1, 1}, {0, 0, 0}}, {{0, 0, 0}, {0, 0, 0}}, {{2, DIM_T, 3}, {2, DIM_T, 1}},
    };
    enum { COUNT = sizeof shapes / sizeof *shapes };
    SampleShape side[COUNT];
    Node *in[2];
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < COUNT; i++) side[i] = shapes[i][s];
        in[s] = sample_shape(g, SAMPLE_REAL, side, COUNT, k);
    }
    return in[0] ? nd2(g, op, in[0], in[1]) : NULL;
}

/* Everything but the gradient of an op whose value at (x, y) is `value`. */
#define BINARY(code, value)                                                                        \
    bool infer_##code(const Node *n, Type out[], char why[256]) {                                  \
        return infer_binary(n, out, why);                                                          \
    }                                                                                              \
    void ref_##code(const Node *n, const RefContext *ctx, const RefTensor in[], RefTensor out[]) { \
        (void)n, (void)ctx;                                                                        \
        int64_t cols = ref_cols(&out[0]);                                                          \
        for (int64_t i = 0; i < out[0].count; i++) {                                               \
            double x = ref_at(&in[0], i / cols, i % cols);                                         \
            double y = ref_at(&in[1], i / cols, i % cols);                                         \
            out[0].data[i] = (value);                                                              \
        }                                                                                          \
    }                                                                                              \
    void lower_##code(KBody *b, const Node *n, const KVal in[], KVal out[]) {                      \
        (void)n;                                                                                   \
        out[0] = kb_binary(b, K_##code, in[0], in[1]);                                             \
    }                                                                                              \
    Node *sample_##code(Graph *g, int k) {                                                         \
        return sample_binary(g, OP_##code, k);                                                     \
    }

BINARY(ADD, x + y)
BINARY(SUB, x - y)
BINARY(MUL, (x * y))
BINARY(DIV, x / y)
BINARY(MIN, y < x ? y : x)
BINARY(MAX, y > x ? y : x)

/* y = a + b: da = dy, db = dy. */
void grad_ADD(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    (void)g, (void)y;
    if (need[0]) dx[0] = dy[0];
    if (need[1]) dx[1] = dy[0];
}

/* y = a - b: da = dy, db = -dy. */
void grad_SUB(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    (void)y;
    if (need[0]) dx[0] = dy[0];
    if (need[1]) dx[1] = nd1(g, OP_NEG, dy[0]);
}

/* y = a b: da = dy b, db = dy a. */
void grad_MUL(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd2(g, OP_MUL, dy[0], y->in[1]);
    if (need[1]) dx[1] = nd2(g, OP_MUL, dy[0], y->in[0]);
}

/* y = a / b: da = dy / b, db = -dy y / b. */
void grad_DIV(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (!need[0] && !need[1]) return;
    Node *da = nd2(g, OP_DIV, dy[0], y->in[1]);
    if (need[0]) dx[0] = da;
    if (need[1]) dx[1] = nd1(g, OP_NEG, nd2(g, OP_MUL, da, y));
}

/* ---- broadcast ---- */

bool infer_BROADCAST(const Node *n, Type out[], char why[256]) {
    char from[64], to[64];
    Type both;
    out[0] = n->attr.reshape.to;
    if (!is_f32(n, 0, "the operand", why) || !is_sound(out[0], why)) return false;
    if (out[0].dt == DT_F32 && type_broadcast(n->in[0]->type, out[0], &both) &&
        type_same_shape(both, out[0]))
        return true;
    return why_not(why, "%s does not broadcast to %s", type_str(n->in[0]->type, from),
                   type_str(out[0], to));
}

/* dx = dy, summed down by the driver. */
void grad_BROADCAST(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    (void)g, (void)y;
    if (need[0]) dx[0] = dy[0];
}

void ref_BROADCAST(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t cols = ref_cols(&out[0]);
    for (int64_t i = 0; i < out[0].count; i++) out[0].data[i] = ref_at(&in[0], i / cols, i % cols);
}

/* A load broadcasts by its tensor's shape, so the value is the operand's own. */
void lower_BROADCAST(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    (void)b, (void)n;
    out[0] = in[0];
}

Node *sample_BROADCAST(Graph *g, int k) {
    static const SampleShape from[] = {{2, 5, 1}, {1, 3, 0}, {2, 1, 3},    {0, 0, 0},
                                       {0, 0, 0}, {2, 1, 1}, {2, DIM_T, 1}};
    const Type to[] = {type_f32(2, 5, 3),    type_f32(2, 5, 3), type_f32(2, 5, 3),
                       type_f32(2, 5, 3),    type_f32(1, 7, 0), type_f32(2, 3, 1),
                       type_f32(2, DIM_T, 4)};
    Node *x = sample_shape(g, SAMPLE_REAL, from, sizeof from / sizeof *from, k);
    return x ? nd_broadcast(g, x, to[k]) : NULL;
}
