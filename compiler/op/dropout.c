/* Dropout with counter-based random bits: whether an element is kept depends on (seed, step, site,
 * sample, position, column) alone, so on nothing that packing, threads or a resumed run change. The
 * backward pass draws the same bits again instead of storing a mask. */
#include "rules.h"
#include "sample.h"

#include "../../runtime/cpu/philox.h"

/* x [R, C], rng i32 [4], sample i32 [R], position i32 [R] -> [R, C] */
bool infer_DROPOUT(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "dropout's operand", why) || !is_dropout(n->attr.dropout.p, why))
        return false;
    const Type row = type_i32(n->in[0]->type.dim[0]);
    out[0] = n->in[0]->type;
    return is_type(n, 1, "rng", type_i32(4), why) && is_type(n, 2, "sample", row, why) &&
           is_type(n, 3, "position", row, why);
}

/* y = keep x, keep a constant of the element: dx = keep dy. */
void grad_DROPOUT(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = NODE(g, OP_DROPOUT, y->attr, dy[0], y->in[1], y->in[2], y->in[3]);
}

/* The bits, threshold and scale of philox.h; the scale in double precision. */
double ref_keep(const RefContext *c, double p, int32_t site, double sample, double position,
                int64_t column) {
    uint32_t threshold = philox_threshold((float)p);
    if (!c->dropout) return 1;
    uint32_t lane =
        philox_lane(c->seed, (uint32_t)c->step, (uint32_t)site, (uint32_t)(int64_t)sample,
                    (uint32_t)(int64_t)position, (uint64_t)column);
    return lane < threshold ? 0 : 65536.0 / (65536.0 - threshold);
}

void ref_DROPOUT(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    int64_t cols = in[0].dim[1];
    for (int64_t i = 0; i < in[0].count; i++) {
        double keep = ref_keep(c, n->attr.dropout.p, n->attr.dropout.site, in[2].data[i / cols],
                               in[3].data[i / cols], i % cols);
        out[0].data[i] = keep * in[0].data[i];
    }
}

void lower_DROPOUT(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    if (n->type.dim[1] != b->cols)
        PANIC(n, "dropout counts columns: it needs a body of its own width, not %lld",
              (long long)b->cols);
    KVal keep = kb_keep(b, n->in[1], n->attr.dropout.p, n->attr.dropout.site, in[2], in[3]);
    out[0] = kb_binary(b, K_MUL, in[0], keep);
}

Node *sample_DROPOUT(Graph *g, int k) {
    static const SampleShape shapes[] = {{2, 5, 3}, {2, 1, 1}, {2, 6, 1}, {2, DIM_T, 9}};
    Node *x = sample_shape(g, SAMPLE_REAL, shapes, sizeof shapes / sizeof *shapes, k);
    if (!x) return NULL;
    Attr a = attr_zero();
    a.dropout.p = k == 1 ? 0 : 0.3;
    a.dropout.site = k + 1;
    int64_t rows = x->type.dim[0];
    return NODE(g, OP_DROPOUT, a, x, nd_input(g, PEFT_IN_rng), sample_index(g, rows, 100000),
                sample_index(g, rows, 512));
}
