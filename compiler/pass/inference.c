/* Evaluation has no dropout.
 *
 * requires: the training functions, if any, are built: they keep the dropout nodes.
 * gives: PEFT_FN_EVAL without DROPOUT nodes and with every ATTENTION at p = 0.
 * leaves alone: all other functions. */
#include "../pass.h"

static Node *without_dropout(Graph *g, const Node *old, Node *const *in, void *ctx) {
    (void)ctx;
    if (old->op == OP_DROPOUT) return in[0];
    if (old->op != OP_ATTENTION) return NULL;
    Attr attr = old->attr;
    attr.attention.p = 0;
    attr.attention.site = 0; /* no draw is made: equal calls become one node */
    return graph_node(g, OP_ATTENTION, attr, in, old->nin);
}

bool pass_inference(Graph *g, const PassContext *c) {
    (void)c;
    return graph_rewrite(g, 1u << PEFT_FN_EVAL, without_dropout, NULL);
}
