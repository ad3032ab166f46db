/* Rows that nothing reads are not computed: a gather of rows moves towards the leaves, past every
 * op that treats rows independently, as long as all users want the same rows. A classifier reads
 * the first token of each sequence, so the last layer computes keys and values for all tokens, and
 * everything else for [S, ...] rows only; the backward pass, built afterwards, is as small.
 *
 * requires: a forward graph (run before autodiff, so that gradients are of the sliced graph).
 * gives: for gather(x, index) with fewer rows than x: x computed on those rows up to the first op
 * that mixes rows. Attention mixes them, but its queries are independent: it can be asked for the
 * first token of each sequence only. Indices other than "first" stop there. leaves alone: values of
 * which some user wants all rows or other rows, and their bits: each row that is still computed is
 * computed as before. */
#include "../op/rules.h"
#include "../pass.h"

typedef enum Demand { DEMAND_NONE, DEMAND_SLICE, DEMAND_ALL } Demand;

/* One index vector at a time; made of batch inputs alone, it is itself never rewritten. Arrays are
 * by id in the graph as it was before. */
typedef struct Slice {
    Graph *g;
    Node *index;     /* the index vector looked at */
    int64_t rows;    /* rows of what it indexes: a symbol */
    uint8_t *demand; /* which rows of a node its users want */
    Node **full;     /* the rewritten node, all rows */
    Node **sliced;   /* the node computed on the indexed rows only, where that is done */
} Slice;

static bool is_first(const Node *index) {
    return index->op == OP_INPUT && index->attr.leaf.index == PEFT_IN_first;
}

/* A gather from a computed tensor of tokens that gives fewer rows than it has. */
static bool is_slice(const Node *n) {
    if (n->op != OP_GATHER || op_info[n->in[0]->op].class == CLASS_LEAF) return false;
    int64_t to = n->in[1]->type.dim[0];
    return n->in[0]->type.rank == 2 && n->in[0]->type.dim[0] == DIM_T &&
           (to == DIM_S || to == DIM_M);
}

static bool has_rows(const Slice *s, const Node *n) {
    int64_t rows, cols;
    type_space(n->type, &rows, &cols);
    return rows == s->rows;
}

/* Whether row r of the result depends on row r alone of those inputs for which slices_input holds.
 */
static bool row_wise(const Slice *s, const Node *n) {
    if (!has_rows(s, n)) return false;
    switch (n->op) {
    case OP_MATMUL: return !n->attr.matmul.trans_a;
    case OP_SUM: return n->attr.sum.axis == 1;
    case OP_ATTENTION: return is_first(s->index);
    case OP_GATHER:
    case OP_PROJ:
    case OP_DETACH: return true;
    default: return op_info[n->op].class == CLASS_EW || op_info[n->op].class == CLASS_ROW;
    }
}

/* Whether input i of a row-wise op has a row for each row of the result. */
static bool slices_input(const Slice *s, const Node *n, int i) {
    switch (n->op) {
    case OP_MATMUL:
    case OP_ATTENTION: return i == 0;
    case OP_GATHER: return i == 1;
    default: return has_rows(s, n->in[i]);
    }
}

static void want(Slice *s, const Node *n, Demand d) {
    if (s->demand[n->id] < d) s->demand[n->id] = d;
}

static void want_inputs(Slice *s, const Node *n) {
    bool slices = s->demand[n->id] == DEMAND_SLICE && row_wise(s, n);
    if (!slices) s->demand[n->id] = DEMAND_ALL;
    bool gathers = is_slice(n) && n->in[1] == s->index;
    for (int i = 0; i < n->nin; i++) {
        bool rows = slices ? slices_input(s, n, i) : gathers && i == 0;
        want(s, n->in[i], rows ? DEMAND_SLICE : DEMAND_ALL);
    }
}

/* Which rows of each node are wanted, from the roots down. */
static void find_demand(Slice *s) {
    const Function *f = &s->g->fn[PEFT_FN_EVAL];
    for (int i = 0; i < f->nout; i++) want(s, f->out[i].node, DEMAND_ALL);
    for (int32_t id = s->g->n - 1; id >= 0; id--)
        if (s->demand[id] != DEMAND_NONE) want_inputs(s, s->g->node[id]);
}

/* The indexed rows of an input: computed on those rows, or picked from all of them. */
static Node *slice_input(Slice *s, const Node *n) {
    Node *made = s->sliced[n->id];
    if (made) return made;
    Origin saved = graph_set_origin(s->g, (Origin){n->span, n->of});
    made = NODE(s->g, OP_GATHER, attr_zero(), s->full[n->id], s->index);
    graph_set_origin(s->g, saved);
    return made;
}

/* The op itself over sliced inputs. NULL when the rows are picked from its full result: some user
 * wants all of them, or (PROJ) all rows of another result of the same op. */
static Node *slice_op(Slice *s, const Node *n) {
    if (s->demand[n->id] != DEMAND_SLICE) return NULL;
    if (n->op == OP_PROJ && s->demand[n->in[0]->id] == DEMAND_ALL) return NULL;
    Node *in[16];
    for (int i = 0; i < n->nin; i++)
        in[i] = slices_input(s, n, i) ? slice_input(s, n->in[i]) : s->full[n->in[i]->id];
    Node like = *n;
    if (n->op == OP_BROADCAST) like.attr.reshape.to.dim[0] = s->index->type.dim[0];
    return graph_stream(s->g, &like, in, n->stream);
}

static Node *rewrite(Graph *g, const Node *old, Node *const *in, void *ctx) {
    Slice *s = ctx;
    s->sliced[old->id] = slice_op(s, old);
    Node *n = graph_stream(g, old, in, old->stream);
    if (is_slice(old) && old->in[1] == s->index) n = slice_input(s, old->in[0]);
    return s->full[old->id] = n;
}

static bool slice_by(Graph *g, Node *index) {
    size_t n = (size_t)g->n;
    Slice s = {.g = g, .index = index, .rows = DIM_T};
    s.demand = graph_alloc(g, n);
    s.full = graph_alloc(g, n * sizeof *s.full);
    s.sliced = graph_alloc(g, n * sizeof *s.sliced);
    find_demand(&s);
    return graph_rewrite(g, 1u << PEFT_FN_EVAL, rewrite, &s);
}

/* Moves all gathers by one index to where they stop; gathers only ever move towards the leaves, so
 * repeating this ends. */
static bool slice_once(Graph *g) {
    int32_t n;
    Node **live = graph_live(g, PEFT_FN_EVAL, &n);
    for (int32_t i = 0; i < n; i++)
        if (is_slice(live[i]) && slice_by(g, live[i]->in[1])) return true;
    return false;
}

bool pass_slice_rows(Graph *g, const PassContext *c) {
    (void)c;
    bool changed = false;
    while (slice_once(g)) changed = true;
    return changed;
}
