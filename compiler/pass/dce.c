/* Drops dead nodes and numbers the rest in execution order.
 *
 * Ids are a topological order before and after, but rewriting gives fresh, late ids to what it
 * touches and leaves the rest early, and executing in that order would keep values alive for no
 * reason. The new order is: the forward pass as it was; then the backward pass from the last
 * forward node to the first, each gradient with the node it differentiates; a value that remat
 * recomputes right before its first user; and at the end the optimizer.
 *
 * requires: nothing.
 * gives: only live nodes and the forward nodes that they name as differentiated; ids in that order.
 * leaves alone: what every function computes. Pointers to nodes held elsewhere become stale. */
#include <stdlib.h>
#include <string.h>

#include "../pass.h"

typedef struct Place {
    Node *node;
    int64_t rank;
} Place;

typedef struct Order {
    Graph *g;
    uint8_t *live, *forward; /* by id: needed by a root; needed by the loss or the logits */
    int64_t *rank;           /* by id: when to run */
} Order;

static void mark_inputs(const Graph *g, uint8_t *mark) {
    for (int32_t id = g->n - 1; id >= 0; id--)
        for (int i = 0; mark[id] && i < g->node[id]->nin; i++) mark[g->node[id]->in[i]->id] = 1;
}

static void find_live(Order *o) {
    Graph *g = o->g;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        for (int i = 0; i < g->fn[f].nout; i++) {
            const Output *out = &g->fn[f].out[i];
            o->live[out->node->id] = 1;
            if (!strcmp(out->name, "loss") || !strcmp(out->name, "logits"))
                o->forward[out->node->id] = 1;
        }
        for (int i = 0; i < g->fn[f].nupdate; i++) o->live[g->fn[f].update[i].value->id] = 1;
    }
    mark_inputs(g, o->live);
    mark_inputs(g, o->forward);
}

/* When a node would like to run, given when the last of its inputs does. Another result of a
 * forward op belongs to that op. */
static int64_t wish(const Order *o, const Node *n, int64_t inputs) {
    int64_t count = o->g->n;
    if (o->forward[n->id]) return n->id;
    if (n->op == OP_PROJ && o->forward[n->in[0]->id]) return n->in[0]->id;
    if (n->of) return 2 * count - n->of->id;
    return inputs >= count ? inputs : 2 * count + 1;
}

/* What is not tied to a place runs right before its first user: recomputed values, leaves, and what
 * is loaded or cheaply computed from leaves alone (a dequantised weight). */
static bool is_late(const Node *n) {
    OpClass class = op_info[n->op].class;
    bool cheap = (op_info[n->op].flags & OPF_CHEAP) || class == CLASS_LOAD;
    for (int i = 0; i < n->nin; i++) cheap &= op_info[n->in[i]->op].class == CLASS_LEAF;
    return n->stream || class == CLASS_LEAF || cheap;
}

/* Wishes made consistent: nothing before its inputs. */
static void rank_nodes(Order *o) {
    Graph *g = o->g;
    for (int32_t id = 0; id < g->n; id++) {
        const Node *n = g->node[id];
        int64_t inputs = -1;
        for (int i = 0; i < n->nin; i++)
            if (!is_late(n->in[i]) && inputs < o->rank[n->in[i]->id])
                inputs = o->rank[n->in[i]->id];
        int64_t own = wish(o, n, inputs);
        o->rank[id] = is_late(n) ? INT64_MAX : own > inputs ? own : inputs;
    }
    for (int32_t id = g->n - 1; id >= 0; id--) {
        const Node *n = g->node[id];
        for (int i = 0; o->live[id] && i < n->nin; i++)
            if (is_late(n->in[i]) && o->rank[n->in[i]->id] > o->rank[id])
                o->rank[n->in[i]->id] = o->rank[id];
    }
}

static int compare_places(const void *a, const void *b) {
    const Place *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return (x->node->id > y->node->id) - (x->node->id < y->node->id);
}

/* The live nodes in execution order; *changed says whether that is not what the graph is already.
 */
static Place *sort_nodes(const Order *o, int32_t *n, bool *changed) {
    Graph *g = o->g;
    Place *list = graph_alloc(g, (size_t)g->n * sizeof *list + 1);
    *n = 0;
    for (int32_t id = 0; id < g->n; id++)
        if (o->live[id]) list[(*n)++] = (Place){g->node[id], o->rank[id]};
    qsort(list, (size_t)*n, sizeof *list, compare_places);
    *changed = *n != g->n;
    for (int32_t i = 0; i < *n; i++) *changed |= list[i].node->id != i;
    return list;
}

/* The forward node that a gradient node should name: its own, or when a rewrite replaced that one
 * the live forward node before it. */
static Node *origin_of(const Order *o, const Node *n, Node *const *map) {
    if (!n->of || o->forward[n->id]) return NULL;
    int32_t id = n->of->id;
    while (id > 0 && !(o->live[id] && o->forward[id])) id--;
    return map[id];
}

static void rebuild(const Order *o, const Place *list, int32_t n) {
    Graph *g = o->g;
    Node **map = graph_alloc(g, (size_t)g->n * sizeof *map + 1);
    g->n = 0;
    memset(g->bucket, 0, (size_t)g->nbucket * sizeof *g->bucket);
    for (int32_t i = 0; i < n; i++) {
        const Node *old = list[i].node;
        Node like = *old, *in[16];
        for (int k = 0; k < old->nin; k++) in[k] = map[old->in[k]->id];
        like.of = origin_of(o, old, map);
        map[old->id] = graph_stream(g, &like, in, old->stream);
    }
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        Function *fn = &g->fn[f];
        for (int i = 0; i < fn->nout; i++) fn->out[i].node = map[fn->out[i].node->id];
        for (int i = 0; i < fn->nupdate; i++) fn->update[i].value = map[fn->update[i].value->id];
    }
}

bool pass_dce(Graph *g, const PassContext *c) {
    (void)c;
    Order o = {.g = g};
    o.live = graph_alloc(g, (size_t)g->n + 1);
    o.forward = graph_alloc(g, (size_t)g->n + 1);
    o.rank = graph_alloc(g, (size_t)g->n * sizeof *o.rank + 1);
    find_live(&o);
    rank_nodes(&o);
    int32_t n;
    bool changed;
    Place *list = sort_nodes(&o, &n, &changed);
    if (changed) rebuild(&o, list, n);
    return changed;
}
