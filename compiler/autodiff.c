/* The driver of reverse-mode differentiation. What an op's own rule need not know is done here,
 * once: which inputs need a gradient at all (freezing), the sum over several users of a value, and
 * the reduction of a gradient to the shape its input had before broadcasting.
 *
 * Freezing is decided before the first rule runs: a node gets a gradient only if it lies on a
 * differentiable path from a variable asked for to the loss. Rules therefore never build, and a
 * forward pass never saves, anything for a frozen weight. All sums are built in descending id order
 * of the users, so the same program always gives the same graph and the same rounding. */
#include "autodiff.h"

#include "op/rules.h"

enum { MAX_INPUTS = 16 };

typedef struct Reverse {
    Graph *g;
    const uint8_t *need;        /* by id: on a differentiable path from a variable to the loss */
    Node *(*grad)[MAX_RESULTS]; /* by id: gradient of each result so far, NULL for none */
} Reverse;

/* PROJ hands its gradient to the op it belongs to and needs no rule. */
static bool differentiable(const Node *n) {
    return n->op == OP_PROJ || op_rules[n->op].grad;
}

/* Nodes that the loss depends on through differentiable ops and float inputs. */
static uint8_t *mark_reaching(Graph *g, const Node *loss) {
    uint8_t *mark = graph_alloc(g, (size_t)g->n);
    mark[loss->id] = 1;
    for (int32_t id = loss->id; id >= 0; id--) {
        const Node *n = g->node[id];
        if (!mark[id] || !differentiable(n)) continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i]->type.dt == DT_F32) mark[n->in[i]->id] = 1;
    }
    return mark;
}

/* Of those, the ones that depend on a variable asked for. */
static uint8_t *mark_needed(Graph *g, const Node *loss, Node *const wrt[], int n) {
    const uint8_t *reaches = mark_reaching(g, loss);
    uint8_t *need = graph_alloc(g, (size_t)g->n);
    for (int i = 0; i < n; i++) need[wrt[i]->id] = reaches[wrt[i]->id];
    for (int32_t id = 0; id <= loss->id; id++) {
        const Node *node = g->node[id];
        if (!reaches[id] || !differentiable(node)) continue;
        for (int i = 0; i < node->nin; i++) need[id] |= need[node->in[i]->id];
    }
    return need;
}

int autodiff_unreached(Graph *g, const Node *loss, int32_t var[]) {
    const uint8_t *reaches = mark_reaching(g, loss);
    uint8_t *found = graph_alloc(g, (size_t)g->nvar + 1);
    for (int32_t id = 0; id <= loss->id; id++)
        if (reaches[id] && g->node[id]->op == OP_VAR) found[g->node[id]->attr.leaf.index] = 1;
    int n = 0;
    for (int32_t i = 0; i < g->nvar; i++)
        if (g->var[i].kind == VAR_PARAM && g->var[i].trainable && !found[i]) var[n++] = i;
    return n;
}

/* The gradient of an input that was broadcast: summed over each dimension that the input does not
 * have, in row order. A gradient that is itself uniform along a dimension is spread out instead. */
static Node *fit_shape(Graph *g, Node *d, Type to) {
    int64_t rows, cols, to_rows, to_cols;
    type_space(d->type, &rows, &cols);
    type_space(to, &to_rows, &to_cols);
    bool sum_rows = to_rows == 1 && rows != 1, sum_cols = to_cols == 1 && cols != 1;
    bool all = (sum_rows && sum_cols) || d->type.rank < 2;
    if (sum_rows || sum_cols) d = nd_sum(g, d, all ? -1 : sum_rows ? 0 : 1);
    type_space(d->type, &rows, &cols);
    if (rows == to_rows && cols == to_cols) return nd_reshape(g, d, to);
    return nd_broadcast(g, d, to);
}

static void accumulate(Reverse *r, Node *at, int result, Node *d) {
    Node **sum = &r->grad[at->id][result];
    *sum = *sum ? nd2(r->g, OP_ADD, *sum, d) : d;
}

/* Runs the rule of one node and adds what it gives to the gradients of the inputs; an input that it
 * leaves out has gradient zero. */
static void step_back(Reverse *r, Node *n) {
    Node **dy = r->grad[n->id];
    if (!dy[0] && !dy[1] && !dy[2]) return;
    if (n->op == OP_PROJ) {
        accumulate(r, n->in[0], n->attr.proj.k, dy[0]);
        return;
    }
    bool need[MAX_INPUTS] = {false};
    Node *dx[MAX_INPUTS] = {NULL};
    for (int i = 0; i < n->nin; i++) need[i] = r->need[n->in[i]->id];
    op_rules[n->op].grad(r->g, n, dy, need, dx);
    for (int i = 0; i < n->nin; i++) {
        if (dx[i] && !need[i]) PANIC(n, "gradient of input %d, which needs none", i);
        if (dx[i]) accumulate(r, n->in[i], 0, fit_shape(r->g, dx[i], n->in[i]->type));
    }
}

void autodiff(Graph *g, Node *loss, Node *const wrt[], int n, Node *grad_out[]) {
    if (!type_equal(loss->type, type_scalar())) PANIC(loss, "the loss is not a scalar");
    Reverse r = {.g = g, .need = mark_needed(g, loss, wrt, n)};
    r.grad = graph_alloc(g, (size_t)g->n * sizeof *r.grad);
    Origin saved = graph_set_origin(g, (Origin){loss->span, loss});
    if (r.need[loss->id]) r.grad[loss->id][0] = nd_const(g, 1);
    for (int32_t id = loss->id; id >= 0; id--) {
        Node *node = g->node[id];
        if (!r.need[id] || op_info[node->op].class == CLASS_LEAF) continue;
        graph_set_origin(g, (Origin){node->span, node});
        step_back(&r, node);
    }
    graph_set_origin(g, saved);
    for (int i = 0; i < n; i++) {
        Node *d = r.grad[wrt[i]->id][0];
        if (r.need[wrt[i]->id] && !d) d = nd_broadcast(g, nd_const(g, 0), wrt[i]->type);
        grad_out[i] = d;
    }
}
