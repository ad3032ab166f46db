/* AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), in the order of
 * torch: g' = clip g,   p1 = p (1 - lr wd) m' = beta1 m + (1 - beta1) g',   v' = beta2 v + (1 -
 * beta2) g'^2 p' = p1 - lr / bc1 m' / (sqrt(v') / sqrt(bc2) + eps),   bc = 1 - beta^t and the bias
 * correction bc. All scalars are nodes: a schedule changes without recompiling. */
#include "rules.h"
#include "sample.h"

#include <math.h>

enum { P, G, M, V, LR, CLIP, BC1, BC2, WD }; /* adamw's inputs */

/* Nine inputs, the first four of one type -> p', m', v' of that type. */
bool infer_ADAMW(const Node *n, Type out[], char why[256]) {
    static const char *const name[] = {"p", "g", "m", "v", "lr", "clip", "bc1", "bc2", "wd"};
    const Type p = n->in[P]->type;
    if (!is_f32(n, P, name[P], why)) return false;
    for (int i = G; i <= WD; i++)
        if (!is_type(n, i, name[i], i <= V ? p : type_scalar(), why)) return false;
    out[0] = out[1] = out[2] = p;
    return true;
}

void ref_ADAMW(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c;
    double beta1 = n->attr.adamw.beta1, beta2 = n->attr.adamw.beta2, eps = n->attr.adamw.eps;
    double lr = in[LR].data[0], clip = in[CLIP].data[0], wd = in[WD].data[0];
    double bc1 = in[BC1].data[0], bc2 = in[BC2].data[0];
    for (int64_t i = 0; i < out[0].count; i++) {
        double g = in[G].data[i] * clip, p = in[P].data[i] - lr * wd * in[P].data[i];
        double m = beta1 * in[M].data[i] + (1 - beta1) * g;
        double v = beta2 * in[V].data[i] + (1 - beta2) * g * g;
        out[0].data[i] = p - lr / bc1 * m / (sqrt(v) / sqrt(bc2) + eps);
        out[1].data[i] = m;
        out[2].data[i] = v;
    }
}

/* beta x + (1 - beta) y */
static KVal moving_average(KBody *b, double beta, KVal x, KVal y) {
    KVal old = kb_binary(b, K_MUL, kb_const(b, beta), x);
    return kb_binary(b, K_ADD, old, kb_binary(b, K_MUL, kb_const(b, 1 - beta), y));
}

void lower_ADAMW(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    KVal g = kb_binary(b, K_MUL, in[G], in[CLIP]);
    KVal m = moving_average(b, n->attr.adamw.beta1, in[M], g);
    KVal v = moving_average(b, n->attr.adamw.beta2, in[V], kb_unary(b, K_SQUARE, g));
    KVal rate = kb_binary(b, K_MUL, in[LR], in[WD]);
    KVal decayed = kb_binary(b, K_MUL, in[P], kb_binary(b, K_SUB, kb_const(b, 1), rate));
    KVal root = kb_binary(b, K_DIV, kb_unary(b, K_SQRT, v), kb_unary(b, K_SQRT, in[BC2]));
    KVal below = kb_binary(b, K_ADD, root, kb_const(b, n->attr.adamw.eps));
    KVal step = kb_binary(b, K_DIV, in[LR], in[BC1]);
    KVal move = kb_binary(b, K_MUL, step, kb_binary(b, K_DIV, m, below));
    out[0] = kb_binary(b, K_SUB, decayed, move);
    out[1] = m;
    out[2] = v;
}

Node *sample_ADAMW(Graph *g, int k) {
    static const SampleShape shapes[] = {{2, 5, 3}, {1, 7, 0}, {2, 1, 1}, {0, 0, 0}};
    Node *in[9] = {sample_shape(g, SAMPLE_REAL, shapes, sizeof shapes / sizeof *shapes, k)};
    if (!in[P]) return NULL;
    for (int i = G; i <= WD; i++) {
        SampleDomain domain = i == G || i == M ? SAMPLE_REAL : SAMPLE_POSITIVE;
        in[i] = sample_var(g, domain, i <= V ? in[P]->type : type_scalar());
    }
    Attr a = attr_zero();
    a.adamw.beta1 = 0.9;
    a.adamw.beta2 = 0.999;
    a.adamw.eps = k == 0 ? 1e-8 : 0.3; /* large enough to see where it stands */
    return graph_node(g, OP_ADAMW, a, in, 9);
}

/* ---- bias correction: 1 - beta^t, in double precision even in f32 kernels (beta2^t is close to 1)
 */

bool infer_BIAS_CORRECTION(const Node *n, Type out[], char why[256]) {
    double beta = n->attr.decay.beta;
    out[0] = type_scalar();
    if (!(beta >= 0 && beta < 1))
        return why_not(why, "beta must be at least 0 and less than 1, found %g", beta);
    return is_type(n, 0, "the step", type_scalar(), why);
}

void ref_BIAS_CORRECTION(const Node *n, const RefContext *c, const RefTensor in[],
                         RefTensor out[]) {
    (void)c;
    out[0].data[0] = 1 - pow(n->attr.decay.beta, in[0].data[0]);
}

void lower_BIAS_CORRECTION(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    out[0] = kb_bias_correction(b, n->attr.decay.beta, in[0]);
}

Node *sample_BIAS_CORRECTION(Graph *g, int k) {
    static const double beta[] = {0.9, 0.999, 0};
    if (k >= (int)(sizeof beta / sizeof *beta)) return NULL;
    Attr a = attr_zero();
    a.decay.beta = beta[k];
    return NODE(g, OP_BIAS_CORRECTION, a, sample_var(g, SAMPLE_STEP, type_scalar()));
}
