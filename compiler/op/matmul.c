/* The matrix product C = op(A) op(B), where op transposes as the attribute says, and the transpose.
 * Gradients are again products with flags: no transpose is ever built. */
#include "rules.h"
#include "sample.h"

/* op(A) is [m, k], op(B) is [k, n]. */
bool infer_MATMUL(const Node *n, Type out[], char why[256]) {
    char inner[2][64];
    if (!is_matrix(n, 0, "the left operand", why) || !is_matrix(n, 1, "the right operand", why))
        return false;
    const int64_t *a = n->in[0]->type.dim, *b = n->in[1]->type.dim;
    bool ta = n->attr.matmul.trans_a, tb = n->attr.matmul.trans_b;
    int64_t k = a[ta ? 0 : 1], k2 = b[tb ? 1 : 0];
    if (k != k2)
        return why_not(why, "inner dimensions differ, %s and %s", dim_str(k, inner[0]),
                       dim_str(k2, inner[1]));
    out[0] = type_f32(2, a[ta ? 1 : 0], b[tb ? 0 : 1]);
    return is_sound(out[0], why);
}

/* With D the gradient of C:
 *   C = A B     dA = D B'     dB = A' D
 *   C = A B'    dA = D B      dB = D' A
 *   C = A' B    dA = B D'     dB = A D
 *   C = A' B'   dA = B' D'    dB = D' A' */
void grad_MATMUL(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    Node *a = y->in[0], *b = y->in[1], *d = dy[0];
    bool ta = y->attr.matmul.trans_a, tb = y->attr.matmul.trans_b;
    if (need[0]) dx[0] = ta ? nd_matmul(g, b, d, tb, true) : nd_matmul(g, d, b, false, !tb);
    if (need[1]) dx[1] = tb ? nd_matmul(g, d, a, true, ta) : nd_matmul(g, a, d, !ta, false);
}

static double element(const RefTensor *t, bool transposed, int64_t r, int64_t c) {
    return transposed ? t->data[c * t->dim[1] + r] : t->data[r * t->dim[1] + c];
}

void ref_MATMUL(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c;
    bool ta = n->attr.matmul.trans_a, tb = n->attr.matmul.trans_b;
    int64_t inner = in[0].dim[ta ? 0 : 1];
    for (int64_t i = 0; i < out[0].dim[0]; i++)
        for (int64_t j = 0; j < out[0].dim[1]; j++) {
            double sum = 0;
            for (int64_t k = 0; k < inner; k++)
                sum += element(&in[0], ta, i, k) * element(&in[1], tb, k, j);
            out[0].data[i * out[0].dim[1] + j] = sum;
        }
}

/* Each of the shapes [m, k, n] with each pair of flags; token rows where they are legal. */
Node *sample_MATMUL(Graph *g, int k) {
    static const int64_t shape[][3] = {{5, 3, 4}, {1, 1, 1}, {1, 7, 2}, {3, 1, 5}};
    enum { PLAIN = 4 * (sizeof shape / sizeof *shape) };
    bool ta = k & 1, tb = k & 2;
    if (k < PLAIN) {
        const int64_t *s = shape[k / 4];
        Node *a = sample_real(g, 2, s[ta ? 1 : 0], s[ta ? 0 : 1]);
        Node *b = sample_real(g, 2, s[tb ? 2 : 1], s[tb ? 1 : 2]);
        return nd_matmul(g, a, b, ta, tb);
    }
    if (k == PLAIN) /* a linear layer */
        return nd_matmul(g, sample_real(g, 2, DIM_T, 3), sample_real(g, 2, 4, 3), false, true);
    if (k == PLAIN + 1) /* a weight gradient */
        return nd_matmul(g, sample_real(g, 2, DIM_T, 3), sample_real(g, 2, DIM_T, 4), true, false);
    return NULL;
}

/* ---- transpose: [R, C] -> [C, R] ---- */

bool infer_TRANSPOSE(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "the operand of a transpose", why)) return false;
    out[0] = type_f32(2, n->in[0]->type.dim[1], n->in[0]->type.dim[0]);
    return is_sound(out[0], why);
}

/* dx = dy' */
void grad_TRANSPOSE(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    (void)y;
    if (need[0]) dx[0] = nd1(g, OP_TRANSPOSE, dy[0]);
}

void ref_TRANSPOSE(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    for (int64_t i = 0; i < out[0].count; i++)
        out[0].data[i] = element(&in[0], true, i / out[0].dim[1], i % out[0].dim[1]);
}

Node *sample_TRANSPOSE(Graph *g, int k) {
    static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 1}, {2, 1, 6}, {2, 7, 1}};
    Node *x = sample_shape(g, SAMPLE_REAL, shapes, sizeof shapes / sizeof *shapes, k);
    return x ? nd1(g, OP_TRANSPOSE, x) : NULL;
}
