/* Softmax and cross entropy over the columns of each row. All of them shift by the row's maximum,
 * so that exp cannot overflow. */
#include "rules.h"
#include "sample.h"

#include <math.h>

static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 2}, {2, 3, 11}, {2, DIM_S, 4}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* After the shapes the last one again, with values whose exponentials overflow. */
static Node *sample_logits(Graph *g, int k) {
    if (k == SHAPES) return sample_shape(g, SAMPLE_LARGE, shapes, SHAPES, SHAPES - 1);
    return sample_shape(g, SAMPLE_REAL, shapes, SHAPES, k);
}

/* log sum exp x, as max + log sum exp(x - max). */
static double log_sum_exp(const double *x, int64_t n) {
    double max = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        if (!(x[i] <= max)) max = x[i];
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

/* ---- softmax: y = exp(x) / sum exp(x) ---- */

bool infer_SOFTMAX(const Node *n, Type out[], char why[256]) {
    out[0] = n->in[0]->type;
    return is_matrix(n, 0, "softmax's operand", why);
}

/* dx = y (dy - sum over columns of dy y) */
void grad_SOFTMAX(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (!need[0]) return;
    Node *mean = nd_sum(g, nd2(g, OP_MUL, dy[0], y), 1);
    dx[0] = nd2(g, OP_MUL, y, nd2(g, OP_SUB, dy[0], mean));
}

void ref_SOFTMAX(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t rows = ref_rows(&in[0]), cols = ref_cols(&in[0]);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = in[0].data + r * cols;
        double lse = log_sum_exp(x, cols);
        for (int64_t i = 0; i < cols; i++) out[0].data[r * cols + i] = exp(x[i] - lse);
    }
}

void lower_SOFTMAX(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    const Node *x = n->in[0];
    KVal shifted = kb_binary(b, K_SUB, in[0], lower_row_max(b, x, in[0]));
    KVal e = kb_unary(b, K_EXP, shifted);
    out[0] = kb_binary(b, K_DIV, e, lower_row_sum(b, x, e));
}

Node *sample_SOFTMAX(Graph *g, int k) {
    if (k == SHAPES + 1) return nd1(g, OP_SOFTMAX, sample_real(g, 2, 5, 1));
    Node *x = sample_logits(g, k);
    return x ? nd1(g, OP_SOFTMAX, x) : NULL;
}

/* ---- cross entropy of row r: loss = lse - x[label], lse = log sum exp x ---- */

/* logits [R, C], label i32 [R] -> loss [R, 1], lse [R, 1] */
bool infer_CROSS_ENTROPY(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "the logits", why)) return false;
    const Type x = n->in[0]->type;
    if (x.dim[1] < 2) return why_not(why, "cross entropy needs two classes or more, found 1");
    out[0] = out[1] = type_f32(2, x.dim[0], 1);
    return is_type(n, 1, "the labels", type_i32(x.dim[0]), why);
}

/* dx = dloss (exp(x - lse) - [column = label]), by CROSS_ENTROPY_GRAD. */
void grad_CROSS_ENTROPY(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (dy[1]) PANIC(y, "no gradient through a cross entropy's log-sum-exp");
    if (need[0])
        dx[0] = NODE(g, OP_CROSS_ENTROPY_GRAD, attr_zero(), dy[0], y->in[0], y->in[1],
                     nd_proj(g, y, 1));
}

void ref_CROSS_ENTROPY(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t rows = ref_rows(&in[0]), cols = ref_cols(&in[0]);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = in[0].data + r * cols;
        int64_t label = ref_index(in[1].data[r], cols);
        out[1].data[r] = log_sum_exp(x, cols);
        out[0].data[r] = label < 0 ? NAN : out[1].data[r] - x[label];
    }
}

void lower_CROSS_ENTROPY(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    (void)n; /* two columns or more: the row is never a single value */
    KVal max = kb_row_max(b, in[0]);
    KVal e = kb_unary(b, K_EXP, kb_binary(b, K_SUB, in[0], max));
    KVal lse = kb_binary(b, K_ADD, max, kb_unary(b, K_LOG, kb_row_sum(b, e)));
    KVal picked = kb_eq_select(b, kb_column(b), in[1], in[0]);
    out[0] = kb_binary(b, K_SUB, lse, kb_row_sum(b, picked));
    out[1] = lse;
}

Node *sample_CROSS_ENTROPY(Graph *g, int k) {
    Node *x = sample_logits(g, k);
    if (!x) return NULL;
    Node *label = sample_index(g, x->type.dim[0], x->type.dim[1]);
    return NODE(g, OP_CROSS_ENTROPY, attr_zero(), x, label);
}

/* ---- its gradient: (dloss [R, 1], logits [R, C], label i32 [R], lse [R, 1]) -> [R, C] ---- */

bool infer_CROSS_ENTROPY_GRAD(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 1, "the logits", why)) return false;
    const Type x = n->in[1]->type, row = type_f32(2, x.dim[0], 1);
    if (x.dim[1] < 2) return why_not(why, "cross entropy needs two classes or more, found 1");
    out[0] = x;
    return is_type(n, 0, "dloss", row, why) &&
           is_type(n, 2, "the labels", type_i32(x.dim[0]), why) && is_type(n, 3, "lse", row, why);
}

void ref_CROSS_ENTROPY_GRAD(const Node *n, const RefContext *c, const RefTensor in[],
                            RefTensor out[]) {
    (void)n, (void)c;
    int64_t rows = ref_rows(&in[1]), cols = ref_cols(&in[1]);
    for (int64_t r = 0; r < rows; r++) {
        int64_t label = ref_index(in[2].data[r], cols);
        for (int64_t i = 0; i < cols; i++) {
            double p = label < 0 ? NAN : exp(in[1].data[r * cols + i] - in[3].data[r]);
            out[0].data[r * cols + i] = in[0].data[r] * (p - (i == label));
        }
    }
}

void lower_CROSS_ENTROPY_GRAD(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    (void)n;
    KVal p = kb_unary(b, K_EXP, kb_binary(b, K_SUB, in[1], in[3]));
    KVal hit = kb_eq_select(b, kb_column(b), in[2], kb_const(b, 1));
    out[0] = kb_binary(b, K_MUL, in[0], kb_binary(b, K_SUB, p, hit));
}

Node *sample_CROSS_ENTROPY_GRAD(Graph *g, int k) {
    Node *x = sample_shape(g, SAMPLE_REAL, shapes, SHAPES, k);
    if (!x) return NULL;
    int64_t rows = x->type.dim[0];
    Node *dloss = sample_real(g, 2, rows, 1), *lse = sample_real(g, 2, rows, 1);
    Node *label = sample_index(g, rows, x->type.dim[1]);
    return NODE(g, OP_CROSS_ENTROPY_GRAD, attr_zero(), dloss, x, label, lse);
}
