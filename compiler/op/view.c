/* Views: the same elements in the same order under another type or another name. They cost nothing
 * at run time; reference values are copies. */
#include "rules.h"
#include "sample.h"

/* ---- proj: result k of a multi-result op ---- */

bool infer_PROJ(const Node *n, Type out[], char why[256]) {
    Type all[MAX_RESULTS] = {{0}};
    int results = op_info[n->in[0]->op].nout, k = n->attr.proj.k;
    if (k < 0 || k >= results)
        return why_not(why, "%s has %d results, there is no result %d", op_info[n->in[0]->op].name,
                       results, k);
    if (!op_rules[n->in[0]->op].infer(n->in[0], all, why)) return false;
    out[0] = all[k];
    return true;
}

void ref_PROJ(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c;
    ref_copy(&in[n->attr.proj.k], &out[0]);
}

Node *sample_PROJ(Graph *g, int k) {
    if (k >= 3) return NULL;
    Node *index = sample_index(g, 6, 4);
    Attr rows = attr_zero();
    rows.index.rows = 4;
    return nd_proj(g, NODE(g, OP_INDEX, rows, index), k);
}

/* ---- reshape ---- */

/* Shapes without their ones are the same list, or both counts are known and equal. */
static bool same_elements(Type a, Type b) {
    int64_t x[PEFT_MAX_RANK] = {0}, y[PEFT_MAX_RANK] = {0};
    int nx = 0, ny = 0;
    for (int i = 0; i < a.rank; i++)
        if (a.dim[i] != 1) x[nx++] = a.dim[i];
    for (int i = 0; i < b.rank; i++)
        if (b.dim[i] != 1) y[ny++] = b.dim[i];
    bool same = nx == ny;
    for (int i = 0; i < PEFT_MAX_RANK; i++) same &= x[i] == y[i];
    return same || (type_count(a) > 0 && type_count(a) == type_count(b));
}

bool infer_RESHAPE(const Node *n, Type out[], char why[256]) {
    char from[64], to[64];
    out[0] = n->attr.reshape.to;
    if (!is_sound(out[0], why)) return false;
    if (out[0].dt != n->in[0]->type.dt || !same_elements(n->in[0]->type, out[0]))
        return why_not(why, "%s and %s do not have the same elements",
                       type_str(n->in[0]->type, from), type_str(out[0], to));
    return true;
}

/* dx = dy in x's shape. */
void grad_RESHAPE(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (need[0]) dx[0] = nd_reshape(g, dy[0], y->in[0]->type);
}

void ref_RESHAPE(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    ref_copy(&in[0], &out[0]);
}

Node *sample_RESHAPE(Graph *g, int k) {
    const Type pair[][2] = {
        {type_f32(1, 5, 0), type_f32(2, 1, 5)},         {type_f32(2, 1, 5), type_f32(1, 5, 0)},
        {type_f32(2, 5, 1), type_f32(2, 1, 5)},         {type_f32(1, 5, 0), type_f32(2, 5, 1)},
        {type_f32(2, DIM_T, 1), type_f32(1, DIM_T, 0)}, {type_f32(2, 1, 1), type_scalar()},
        {type_f32(2, 3, 4), type_f32(2, 6, 2)},
    };
    if (k >= (int)(sizeof pair / sizeof *pair)) return NULL;
    return nd_reshape(g, sample_var(g, SAMPLE_REAL, pair[k][0]), pair[k][1]);
}

/* ---- detach: the identity; gradients end here ---- */

bool infer_DETACH(const Node *n, Type out[], char why[256]) {
    out[0] = n->in[0]->type;
    return is_f32(n, 0, "detach's operand", why);
}

void ref_DETACH(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    ref_copy(&in[0], &out[0]);
}

Node *sample_DETACH(Graph *g, int k) {
    return k == 0 ? NODE(g, OP_DETACH, attr_zero(), sample_real(g, 2, 3, 5)) : NULL;
}
