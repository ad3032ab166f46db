/* Layer normalisation over the columns of each row, and its gradient.
 *   mean = sum x / C,  var = sum (x - mean)^2 / C,  rstd = 1 / sqrt(var + eps)
 *   y = (x - mean) rstd gamma + beta
 * The variance is taken from the differences (two passes over the row): sum x^2 / C - mean^2
 * cancels badly in f32. Ba, Kiros and Hinton, Layer Normalization, 2016. */
#include "rules.h"
#include "sample.h"

#include <math.h>

/* x [R, C], gamma [C], beta [C] -> y [R, C], mean [R, 1], rstd [R, 1] */
bool infer_LAYER_NORM(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "layer_norm's operand", why)) return false;
    const Type x = n->in[0]->type, row = type_f32(1, x.dim[1], 0);
    if (!(n->attr.norm.eps >= 0))
        return why_not(why, "eps must not be negative, found %g", n->attr.norm.eps);
    out[0] = x;
    out[1] = out[2] = type_f32(2, x.dim[0], 1);
    return is_type(n, 1, "gamma", row, why) && is_type(n, 2, "beta", row, why);
}

/* With xhat = (x - mean) rstd:
 *   dx by LAYER_NORM_GRAD,  dgamma = sum over rows of dy xhat,  dbeta = sum over rows of dy. */
void grad_LAYER_NORM(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (dy[1] || dy[2]) PANIC(y, "no gradient through a layer norm's statistics");
    Node *x = y->in[0], *gamma = y->in[1];
    if (need[0])
        dx[0] = NODE(g, OP_LAYER_NORM_GRAD, attr_zero(), dy[0], x, gamma, nd_proj(g, y, 1),
                     nd_proj(g, y, 2));
    if (need[1]) {
        Node *centred = nd2(g, OP_SUB, x, nd_proj(g, y, 1));
        Node *xhat = nd2(g, OP_MUL, centred, nd_proj(g, y, 2));
        dx[1] = nd_sum(g, nd2(g, OP_MUL, dy[0], xhat), 0);
    }
    if (need[2]) dx[2] = nd_sum(g, dy[0], 0);
}

void ref_LAYER_NORM(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c;
    int64_t rows = ref_rows(&in[0]), cols = ref_cols(&in[0]);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = in[0].data + r * cols;
        double mean = 0, var = 0;
        for (int64_t i = 0; i < cols; i++) mean += x[i] / (double)cols;
        for (int64_t i = 0; i < cols; i++) var += (x[i] - mean) * (x[i] - mean) / (double)cols;
        double rstd = 1 / sqrt(var + n->attr.norm.eps);
        for (int64_t i = 0; i < cols; i++)
            out[0].data[r * cols + i] = (x[i] - mean) * rstd * in[1].data[i] + in[2].data[i];
        out[1].data[r] = mean;
        out[2].data[r] = rstd;
    }
}

static KVal row_mean(KBody *b, const Node *operand, KVal x) {
    double scale = 1.0 / (double)operand->type.dim[1];
    return kb_binary(b, K_MUL, lower_row_sum(b, operand, x), kb_const(b, scale));
}

void lower_LAYER_NORM(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    const Node *x = n->in[0];
    KVal mean = row_mean(b, x, in[0]);
    KVal centred = kb_binary(b, K_SUB, in[0], mean);
    KVal var = row_mean(b, x, kb_unary(b, K_SQUARE, centred));
    KVal inside = kb_binary(b, K_ADD, var, kb_const(b, n->attr.norm.eps));
    KVal rstd = kb_unary(b, K_RECIP, kb_unary(b, K_SQRT, inside));
    KVal scaled = kb_binary(b, K_MUL, kb_binary(b, K_MUL, centred, rstd), in[1]);
    out[0] = kb_binary(b, K_ADD, scaled, in[2]);
    out[1] = mean;
    out[2] = rstd;
}

static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 6}, {2, 3, 1}, {2, DIM_T, 9}};

Node *sample_LAYER_NORM(Graph *g, int k) {
    Node *x = sample_shape(g, SAMPLE_REAL, shapes, sizeof shapes / sizeof *shapes, k);
    if (!x) return NULL;
    Attr a = attr_zero();
    a.norm.eps = k == 0 ? 1e-12 : 1e-2; /* a row of one column has variance 0 */
    int64_t cols = x->type.dim[1];
    return NODE(g, OP_LAYER_NORM, a, x, sample_real(g, 1, cols, 0), sample_real(g, 1, cols, 0));
}

/* ---- its gradient: (dy [R, C], x [R, C], gamma [C], mean [R, 1], rstd [R, 1]) -> dx [R, C] ----
 */

bool infer_LAYER_NORM_GRAD(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 1, "x", why)) return false;
    const Type x = n->in[1]->type, stat = type_f32(2, x.dim[0], 1);
    out[0] = x;
    return is_type(n, 0, "dy", x, why) && is_type(n, 2, "gamma", type_f32(1, x.dim[1], 0), why) &&
           is_type(n, 3, "mean", stat, why) && is_type(n, 4, "rstd", stat, why);
}

/* u = dy gamma is the gradient of xhat; the row's mean and variance depend on every x of the row:
 *   dx = rstd (u - sum u / C - xhat sum (u xhat) / C). */
void ref_LAYER_NORM_GRAD(const Node *n, const RefContext *c, const RefTensor in[],
                         RefTensor out[]) {
    (void)n, (void)c;
    int64_t rows = ref_rows(&in[1]), cols = ref_cols(&in[1]);
    for (int64_t r = 0; r < rows; r++) {
        const double *dy = in[0].data + r * cols, *x = in[1].data + r * cols;
        double mean = in[3].data[r], rstd = in[4].data[r], u_mean = 0, u_xhat_mean = 0;
        for (int64_t i = 0; i < cols; i++) {
            double u = dy[i] * in[2].data[i];
            u_mean += u / (double)cols;
            u_xhat_mean += u * (x[i] - mean) * rstd / (double)cols;
        }
        for (int64_t i = 0; i < cols; i++) {
            double u = dy[i] * in[2].data[i], xhat = (x[i] - mean) * rstd;
            out[0].data[r * cols + i] = rstd * (u - u_mean - xhat * u_xhat_mean);
        }
    }
}

void lower_LAYER_NORM_GRAD(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    const Node *x = n->in[1];
    KVal u = kb_binary(b, K_MUL, in[0], in[2]);
    KVal xhat = kb_binary(b, K_MUL, kb_binary(b, K_SUB, in[1], in[3]), in[4]);
    KVal u_mean = row_mean(b, x, u);
    KVal u_xhat_mean = row_mean(b, x, kb_binary(b, K_MUL, u, xhat));
    KVal along = kb_binary(b, K_MUL, xhat, u_xhat_mean);
    KVal inside = kb_binary(b, K_SUB, kb_binary(b, K_SUB, u, u_mean), along);
    out[0] = kb_binary(b, K_MUL, in[4], inside);
}

Node *sample_LAYER_NORM_GRAD(Graph *g, int k) {
    Node *x = sample_shape(g, SAMPLE_REAL, shapes, sizeof shapes / sizeof *shapes, k);
    if (!x) return NULL;
    int64_t rows = x->type.dim[0], cols = x->type.dim[1];
    Node *dy = sample_real(g, 2, rows, cols), *gamma = sample_real(g, 1, cols, 0);
    Node *mean = sample_real(g, 2, rows, 1);
    Node *rstd = sample_var(g, SAMPLE_POSITIVE, type_f32(2, rows, 1));
    return NODE(g, OP_LAYER_NORM_GRAD, attr_zero(), dy, x, gamma, mean, rstd);
}
