/* Random graphs of all op classes, for properties that hold for every graph: leaves are those of
 * compiler/op/sample.h, so sample_fill and sample_batch give their values. */
#ifndef PEFTC_TEST_RANDOM_GRAPH_H
#define PEFTC_TEST_RANDOM_GRAPH_H

#include "../../compiler/op/rules.h"
#include "../../compiler/op/sample.h"
#include "../../compiler/pass/fuse.h"

typedef struct Random {
    Graph *g;
    uint64_t state;
    Node *node[256];
    int n;
} Random;

static inline int below(Random *r, int n) { /* xorshift64 */
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (int)(r->state % (uint64_t)n);
}

static inline void keep(Random *r, Node *n) {
    if (n && r->n < 256) r->node[r->n++] = n;
}

static inline Node *pick(Random *r) { /* rather a late one: deep graphs */
    int a = below(r, r->n), b = below(r, r->n);
    return r->node[a > b ? a : b];
}

static inline void add_leaves(Random *r) {
    Graph *g = r->g;
    for (int i = 0; i < 2; i++) {
        keep(r, sample_real(g, 2, DIM_T, 8));
        keep(r, sample_real(g, 2, DIM_T, 1));
        keep(r, sample_real(g, 1, 8, 0));
        keep(r, sample_real(g, 2, 8, 8));
        keep(r, sample_real(g, 2, 8, 1));
    }
    keep(r, sample_real(g, 0, 0, 0));
    keep(r, sample_real(g, 2, 5, 8));
    keep(r, nd1(g, OP_DEQUANT, sample_nf4(g, 8, 8, false)));
    keep(r, sample_index(g, DIM_T, 5));
}

static inline Node *try_node(Random *r, OpCode op, Attr attr, Node **in) {
    char why[256];
    return graph_try(r->g, op, attr, in, op_info[op].nin, SPAN_NONE, why);
}

static inline Node *random_node(Random *r) {
    static const OpCode ops[] = {OP_ADD,       OP_SUB,     OP_MUL,     OP_MAX,        OP_ADD,
                                 OP_TANH,      OP_NEG,     OP_SIGMOID, OP_GELU,       OP_SOFTMAX,
                                 OP_SUM,       OP_SUM,     OP_MATMUL,  OP_MATMUL,     OP_MATMUL,
                                 OP_GATHER,    OP_RESHAPE, OP_DROPOUT, OP_LAYER_NORM, OP_TRANSPOSE,
                                 OP_BROADCAST, OP_DETACH};
    OpCode op = ops[below(r, sizeof ops / sizeof *ops)];
    Node *in[4] = {pick(r), pick(r), pick(r), pick(r)};
    Attr a = attr_zero();
    if (op == OP_SUM) a.sum.axis = below(r, 3) - 1;
    if (op == OP_MATMUL) a.matmul.trans_a = below(r, 2), a.matmul.trans_b = below(r, 2);
    if (op == OP_RESHAPE) a = attr_to(type_f32(2, 8, 1));
    if (op == OP_BROADCAST) a = attr_to(type_f32(2, DIM_T, 8));
    if (op == OP_LAYER_NORM) a.norm.eps = 1e-3;
    if (op == OP_DROPOUT) {
        a.dropout = (__typeof__(a.dropout)){.p = 0.25, .site = r->g->nsite++};
        in[1] = nd_input(r->g, PEFT_IN_rng);
        in[2] = nd_input(r->g, PEFT_IN_token_sample);
        in[3] = nd_input(r->g, PEFT_IN_positions);
    }
    Node *n = try_node(r, op, a, in);
    if (n && op == OP_MATMUL) n = nd_scale(r->g, n, 0.1);
    if (n && (op == OP_SUM || op == OP_MUL)) n = nd1(r->g, OP_TANH, n);
    if (n && op == OP_LAYER_NORM) {
        keep(r, nd_proj(r->g, n, 1));
        n = nd_proj(r->g, n, 0);
    }
    return n;
}

/* About `size` nodes; the later half pretends to differentiate the earlier one. */
static inline Graph *random_graph(uint64_t seed, int size) {
    Random r = {.g = graph_new(), .state = seed * 0x9e3779b97f4a7c15u + 1};
    add_leaves(&r);
    for (int i = 0; i < 40 * size && r.n < size; i++) {
        bool later = r.n > size / 2;
        Origin old = graph_set_origin(r.g, (Origin){SPAN_NONE, later ? r.node[0] : NULL});
        keep(&r, random_node(&r));
        graph_set_origin(r.g, old);
    }
    for (int i = 0; i < 6; i++) {
        Node *n = pick(&r);
        if (op_info[buffer_of(n)->op].class == CLASS_LEAF) continue;
        graph_output(r.g, PEFT_FN_TRAIN, graph_printf(r.g, "out.%d", i), n);
    }
    uint64_t updated = 0;
    for (int i = 0; i < 200; i++) { /* updates of a few variables by values of their type */
        int32_t v = below(&r, r.g->nvar);
        Node *n = pick(&r);
        if (updated >> v & 1 || buffer_of(n)->op == OP_VAR ||
            !type_equal(n->type, r.g->var[v].type))
            continue;
        updated |= (uint64_t)1 << v;
        graph_update(r.g, PEFT_FN_TRAIN, v, n);
    }
    return r.g;
}

#endif
