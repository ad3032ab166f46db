/* Local algebra on values, views and matrix products.
 *
 * requires: nothing.
 * gives: no operation on constants alone, no factor 1 or term 0, no double negation, at most one
 *   constant factor in a row and none on an operand of a matrix product, no transposed matmul
 * operand, no view of a view, no broadcast that its user would do itself. Running it again changes
 * nothing. leaves alone: clones made by remat (another stream), and the value of every node: all
 * rules are exact but for moving a constant factor, which may round differently.
 *
 * Each rule looks at one node over already simplified inputs. Nodes that a rule builds go through
 * the rules again, so one sweep reaches the fixed point. */
#include <math.h>

#include "../op/rules.h"
#include "../pass.h"

static Node *build(Graph *g, OpCode op, Attr attr, Node *const *in, int nin);

static Node *build1(Graph *g, OpCode op, Node *a) {
    return build(g, op, attr_zero(), &a, 1);
}

static Node *build2(Graph *g, OpCode op, Node *a, Node *b) {
    return build(g, op, attr_zero(), (Node *[]){a, b}, 2);
}

static bool is_const(const Node *n, double value) {
    return n->op == OP_CONST && n->attr.constant.value == value;
}

/* n = c x for a constant c: gives x and sets c. NULL when n is no such product. */
static Node *factor(const Node *n, double *c) {
    if (n->op != OP_MUL) return NULL;
    for (int i = 0; i < 2; i++)
        if (n->in[i]->op == OP_CONST && n->in[1 - i]->op != OP_CONST) {
            *c = n->in[i]->attr.constant.value;
            return n->in[1 - i];
        }
    return NULL;
}

static Node *scaled(Graph *g, Node *x, double c) {
    return build2(g, OP_MUL, x, nd_const(g, c));
}

/* ---- rules: the simpler form of op(in), or NULL ---- */

/* An elementwise op of constants: computed by its reference in double precision. Results that are
 * not finite are left to the program, where they show up in its values. */
static Node *fold_constants(Graph *g, OpCode op, Attr attr, Node *const *in, int nin) {
    if (op_info[op].class != CLASS_EW || nin > 2 || op == OP_BROADCAST) return NULL;
    double value[2], result = NAN;
    RefTensor operand[2] = {{0}}, out = {.data = &result, .count = 1};
    for (int i = 0; i < nin; i++) {
        if (in[i]->op != OP_CONST) return NULL;
        value[i] = in[i]->attr.constant.value;
        operand[i] = (RefTensor){.data = &value[i], .count = 1};
    }
    Node node = {.op = op, .attr = attr, .in = (Node **)in, .nin = nin};
    op_rules[op].ref(&node, &(RefContext){0}, operand, &out);
    return isfinite(result) ? nd_const(g, result) : NULL;
}

/* op(x, broadcast(y)) = op(x, y) when x alone has the result's shape. */
static Node *drop_broadcast(Graph *g, OpCode op, Node *const *in) {
    Type both;
    for (int i = 0; i < 2; i++) {
        if (in[i]->op != OP_BROADCAST) continue;
        Node *bare[2] = {in[0], in[1]};
        bare[i] = in[i]->in[0];
        if (type_broadcast(bare[0]->type, bare[1]->type, &both) && type_equal(both, in[i]->type))
            return build2(g, op, bare[0], bare[1]);
    }
    return NULL;
}

/* 1 x = x, -1 x = -x, c1 (c2 x) = (c1 c2) x, c (-x) = (-c) x, (-x)(-y) = x y */
static Node *simplify_mul(Graph *g, Node *const *in) {
    double inner;
    for (int i = 0; i < 2; i++) {
        Node *x = in[1 - i];
        if (in[i]->op != OP_CONST) continue;
        double c = in[i]->attr.constant.value;
        if (c == 1) return x;
        if (c == -1) return build1(g, OP_NEG, x);
        Node *rest = factor(x, &inner);
        if (rest) return scaled(g, rest, c * inner);
        if (x->op == OP_NEG) return scaled(g, x->in[0], -c);
    }
    if (in[0]->op == OP_NEG && in[1]->op == OP_NEG)
        return build2(g, OP_MUL, in[0]->in[0], in[1]->in[0]);
    return NULL;
}

/* x + 0 = x, x + (-y) = x - y */
static Node *simplify_add(Graph *g, Node *const *in) {
    for (int i = 0; i < 2; i++) {
        if (is_const(in[i], 0)) return in[1 - i];
        if (in[i]->op == OP_NEG) return build2(g, OP_SUB, in[1 - i], in[i]->in[0]);
    }
    return NULL;
}

/* x - 0 = x, 0 - x = -x, x - (-y) = x + y */
static Node *simplify_sub(Graph *g, Node *const *in) {
    if (is_const(in[1], 0)) return in[0];
    if (is_const(in[0], 0)) return build1(g, OP_NEG, in[1]);
    if (in[1]->op == OP_NEG) return build2(g, OP_ADD, in[0], in[1]->in[0]);
    return NULL;
}

/* -(-x) = x, -(c x) = (-c) x, -(x - y) = y - x */
static Node *simplify_neg(Graph *g, Node *x) {
    double c;
    Node *rest = factor(x, &c);
    if (rest) return scaled(g, rest, -c);
    if (x->op == OP_NEG) return x->in[0];
    if (x->op == OP_SUB) return build2(g, OP_SUB, x->in[1], x->in[0]);
    return NULL;
}

/* A' B = A B with the flag flipped; (c A) B = c (A B): the product's epilogue scales for free,
 * while a scaled operand would be a buffer of its own. */
static Node *simplify_matmul(Graph *g, Attr attr, Node *const *in) {
    double c;
    for (int i = 0; i < 2; i++) {
        Node *operand[2] = {in[0], in[1]};
        Node *rest = factor(in[i], &c);
        if (rest && type_equal(rest->type, in[i]->type)) {
            operand[i] = rest;
            return scaled(g, build(g, OP_MATMUL, attr, operand, 2), c);
        }
        if (in[i]->op != OP_TRANSPOSE) continue;
        operand[i] = in[i]->in[0];
        int32_t *flag = i == 0 ? &attr.matmul.trans_a : &attr.matmul.trans_b;
        *flag = !*flag;
        return build(g, OP_MATMUL, attr, operand, 2);
    }
    return NULL;
}

/* (x')' = x; a row or a column transposed is the same bytes under another type. */
static Node *simplify_transpose(Graph *g, Node *x) {
    if (x->op == OP_TRANSPOSE) return x->in[0];
    if (x->type.dim[0] != 1 && x->type.dim[1] != 1) return NULL;
    return build(g, OP_RESHAPE, attr_to(type_f32(2, x->type.dim[1], x->type.dim[0])), &x, 1);
}

/* View of a view; a view that changes nothing. The same holds for broadcasts. */
static Node *simplify_to(Graph *g, OpCode op, Attr attr, Node *x) {
    if (type_equal(attr.reshape.to, x->type)) return x;
    return x->op == op ? build(g, op, attr, x->in, 1) : NULL;
}

/* Every row of a broadcast row vector is that vector. */
static Node *simplify_gather(Graph *g, Node *const *in) {
    if (in[0]->op != OP_BROADCAST) return NULL;
    Node *x = in[0]->in[0];
    int64_t rows, cols;
    type_space(x->type, &rows, &cols);
    if (rows != 1 || in[0]->type.rank != 2) return NULL;
    Type to = type_f32(2, in[1]->type.dim[0], in[0]->type.dim[1]);
    return build(g, OP_BROADCAST, attr_to(to), &x, 1);
}

static Node *apply_rules(Graph *g, OpCode op, Attr attr, Node *const *in, int nin) {
    Node *folded = fold_constants(g, op, attr, in, nin);
    if (folded) return folded;
    switch (op) {
    case OP_NEG: return simplify_neg(g, in[0]);
    case OP_MUL: return simplify_mul(g, in);
    case OP_ADD: return simplify_add(g, in);
    case OP_SUB: return simplify_sub(g, in);
    case OP_DIV: return is_const(in[1], 1) ? in[0] : NULL;
    case OP_MATMUL: return simplify_matmul(g, attr, in);
    case OP_TRANSPOSE: return simplify_transpose(g, in[0]);
    case OP_RESHAPE:
    case OP_BROADCAST: return simplify_to(g, op, attr, in[0]);
    case OP_GATHER: return simplify_gather(g, in);
    case OP_DROPOUT: return attr.dropout.p == 0 ? in[0] : NULL;
    default: return NULL;
    }
}

static Node *simplify(Graph *g, OpCode op, Attr attr, Node *const *in, int nin) {
    Node *simple = apply_rules(g, op, attr, in, nin);
    if (!simple && op_info[op].class == CLASS_EW && nin == 2) simple = drop_broadcast(g, op, in);
    return simple;
}

static Node *build(Graph *g, OpCode op, Attr attr, Node *const *in, int nin) {
    Node *simple = simplify(g, op, attr, in, nin);
    return simple ? simple : graph_node(g, op, attr, in, nin);
}

/* ---- the pass ---- */

static Node *rewrite(Graph *g, const Node *old, Node *const *in, void *ctx) {
    (void)ctx;
    if (old->stream || op_info[old->op].class == CLASS_LEAF) return NULL;
    return simplify(g, old->op, old->attr, in, old->nin);
}

bool pass_simplify(Graph *g, const PassContext *c) {
    (void)c;
    return graph_rewrite(g, (1u << PEFT_FN_COUNT) - 1, rewrite, NULL);
}
