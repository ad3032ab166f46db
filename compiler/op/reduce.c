/* Sums over rows, columns or everything. Only the row sum has scalar code: the other two are kernel
 * kinds of their own. */
#include "rules.h"
#include "sample.h"

/* axis 0: [R, C] -> [C]; axis 1: [R, C] -> [R, 1]; axis -1: any -> scalar. */
bool infer_SUM(const Node *n, Type out[], char why[256]) {
    const Type x = n->in[0]->type;
    int axis = n->attr.sum.axis;
    if (axis == -1) {
        out[0] = type_scalar();
        return is_f32(n, 0, "sum's operand", why);
    }
    if (axis != 0 && axis != 1) return why_not(why, "a matrix has no axis %d", axis);
    out[0] = axis == 0 ? type_f32(1, x.dim[1], 0) : type_f32(2, x.dim[0], 1);
    return is_matrix(n, 0, "the operand of a sum over rows or columns", why);
}

/* Every summand has slope 1: dx = dy, repeated along the summed axes. */
void grad_SUM(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd_broadcast(g, dy[0], y->in[0]->type);
}

void ref_SUM(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c;
    int64_t cols = ref_cols(&in[0]);
    ref_fill(&out[0], 0);
    for (int64_t i = 0; i < in[0].count; i++) {
        int64_t to = n->attr.sum.axis == 0 ? i % cols : n->attr.sum.axis == 1 ? i / cols : 0;
        out[0].data[to] += in[0].data[i];
    }
}

void lower_SUM(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    if (n->attr.sum.axis != 1) PANIC(n, "only a sum over columns has scalar code");
    out[0] = lower_row_sum(b, n->in[0], in[0]);
}

Node *sample_SUM(Graph *g, int k) {
    static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 1}, {2, 7, 1}, {2, 1, 6}, {2, DIM_T, 9}};
    enum { COUNT = sizeof shapes / sizeof *shapes };
    static const SampleShape flat[] = {{1, 7, 0}, {0, 0, 0}};
    if (k < 3 * COUNT) {
        Node *x = sample_shape(g, SAMPLE_REAL, shapes, COUNT, k / 3);
        return nd_sum(g, x, k % 3 - 1);
    }
    Node *x = sample_shape(g, SAMPLE_REAL, flat, sizeof flat / sizeof *flat, k - 3 * COUNT);
    return x ? nd_sum(g, x, -1) : NULL;
}
