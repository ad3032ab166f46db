/* Rematerialisation: which values of the forward pass the backward pass keeps, and which it
 * computes again. Hash-consing shares a node between both passes, and a shared node's result has to
 * live from one to the other: every dequantised weight, every GELU output next to its own input.
 *
 * The rule: keep the set of forward values that has the fewest bytes, given that the backward pass
 * may recompute cheap ops (OPF_CHEAP, indexed loads, views) from kept values, variables and the
 * batch, but nothing else. That set is a minimum cut between the producers of the forward pass and
 * the readers of the backward pass; among equal cuts the one nearest to the readers recomputes
 * least.
 *
 * requires: PEFT_FN_TRAIN and PEFT_FN_GRADIENTS are built; runs after simplify.
 * gives: backward nodes that read clones (stream 1, `of` the node cloned) of whatever is not kept.
 * leaves alone: the forward pass, PEFT_FN_EVAL, and the value of every node. */
#include <string.h>

#include "../pass.h"
#include "../pool.h"

#define FN_MASK (1u << PEFT_FN_TRAIN | 1u << PEFT_FN_GRADIENTS)

enum { SOURCE = 0, SINK = 1, STREAM_BACKWARD = 1 };

typedef struct Edge {
    int32_t to, next; /* next edge that leaves the same vertex, or -1 */
    int64_t room;     /* residual capacity; the reverse of edge e is e ^ 1 */
} Edge;

typedef struct Remat {
    Graph *g;
    int32_t n;        /* nodes of the graph before cloning */
    uint8_t *forward; /* by id: needed for the loss or the logits */
    Node **clone;     /* by id: what the backward pass reads in its place, or NULL: itself */
    int32_t *first;   /* by vertex: first edge, or -1 */
    int32_t *via;     /* by vertex: edge that the search came by, or -1 */
    int32_t *queue;
    Edge *edge;
    int32_t nedge;
    int edge_cap;
} Remat;

/* A node's value flows from its vertex `made` to its vertex `kept`; that edge's capacity is what
 * keeping it costs. */
static int32_t made(const Node *n) {
    return 2 + 2 * n->id;
}

static int32_t kept(const Node *n) {
    return 3 + 2 * n->id;
}

/* ---- costs ---- */

static const int64_t unlimited = (int64_t)1 << 60;

/* Bytes at a nominal batch; only ratios matter. An op with several results is kept by result. */
static int64_t bytes(const Node *n) {
    static const int64_t batch[PEFT_SYM_COUNT] = {0, 1024, 64, 128, 64, 1, 4};
    if (op_info[n->op].nout > 1) return unlimited;
    int64_t size = 4;
    for (int i = 0; i < n->type.rank; i++)
        if (__builtin_mul_overflow(size, peft_dim(n->type.dim[i], batch), &size) ||
            size > (int64_t)1 << 40)
            return (int64_t)1 << 40;
    return size;
}

/* Leaves are there anyway, and a scalar is not worth a second computation. */
static bool is_free(const Node *n) {
    return op_info[n->op].class == CLASS_LEAF ||
           (op_info[n->op].nout == 1 && type_count(n->type) == 1);
}

static bool is_cheap(const Node *n) {
    OpClass class = op_info[n->op].class;
    return (op_info[n->op].flags & OPF_CHEAP) || class == CLASS_LOAD || class == CLASS_VIEW;
}

/* ---- the flow network ---- */

static void add_arc(Remat *r, int32_t from, int32_t to, int64_t room) {
    r->edge = pool_grow(r->g->pool, r->edge, (size_t)r->nedge, (size_t)r->nedge + 1,
                        sizeof *r->edge, &r->edge_cap);
    r->edge[r->nedge] = (Edge){to, r->first[from], room};
    r->first[from] = r->nedge++;
}

static void add_edge(Remat *r, int32_t from, int32_t to, int64_t room) {
    add_arc(r, from, to, room);
    add_arc(r, to, from, 0);
}

static void find_forward(Remat *r) {
    static const char *const roots[] = {"loss", "logits"};
    for (int i = 0; i < 2; i++) {
        const Node *root = graph_find_output(r->g, PEFT_FN_TRAIN, roots[i]);
        if (root) r->forward[root->id] = 1;
    }
    for (int32_t id = r->n - 1; id >= 0; id--)
        for (int i = 0; r->forward[id] && i < r->g->node[id]->nin; i++)
            r->forward[r->g->node[id]->in[i]->id] = 1;
    for (int32_t id = 0; id < r->n; id++) { /* results that only the backward pass reads */
        const Node *node = r->g->node[id];
        if (node->op == OP_PROJ && r->forward[node->in[0]->id]) r->forward[id] = 1;
    }
}

static void add_node(Remat *r, const Node *n, bool backward) {
    for (int i = 0; i < n->nin; i++) {
        const Node *in = n->in[i];
        if (!r->forward[in->id] || is_free(in)) continue;
        if (backward)
            add_edge(r, kept(in), SINK, unlimited);
        else if (is_cheap(n))
            add_edge(r, kept(in), made(n), unlimited);
    }
    if (backward || is_free(n)) return;
    add_edge(r, made(n), kept(n), bytes(n));
    if (!is_cheap(n)) add_edge(r, SOURCE, made(n), unlimited);
}

static void build_network(Remat *r) {
    size_t vertices = 2 + 2 * (size_t)r->n;
    r->first = graph_alloc(r->g, vertices * sizeof *r->first);
    r->via = graph_alloc(r->g, vertices * sizeof *r->via);
    r->queue = graph_alloc(r->g, vertices * sizeof *r->queue);
    memset(r->first, -1, vertices * sizeof *r->first);
    uint8_t *seen = graph_alloc(r->g, (size_t)r->n);
    for (PeftFn fn = PEFT_FN_TRAIN; fn < PEFT_FN_COUNT; fn++) {
        int32_t n;
        Node **live = graph_live(r->g, fn, &n);
        for (int32_t i = 0; FN_MASK >> fn & 1 && i < n; i++)
            if (!seen[live[i]->id]++) add_node(r, live[i], !r->forward[live[i]->id]);
    }
}

/* Breadth-first from a vertex: along edges with room (backwards: against them). Leaves in via[] the
 * edge by which each vertex was reached, -1 for none. */
static bool search(Remat *r, int32_t from, int32_t to, bool backwards) {
    int32_t head = 0, tail = 0;
    memset(r->via, -1, (2 + 2 * (size_t)r->n) * sizeof *r->via);
    r->queue[tail++] = from;
    while (head < tail) {
        int32_t at = r->queue[head++];
        for (int32_t e = r->first[at]; e >= 0; e = r->edge[e].next) {
            int32_t next = r->edge[e].to;
            int64_t room = r->edge[backwards ? e ^ 1 : e].room;
            if (room == 0 || r->via[next] >= 0 || next == from) continue;
            r->via[next] = e;
            if (next == to) return true;
            r->queue[tail++] = next;
        }
    }
    return false;
}

/* Edmonds and Karp: augment along shortest paths until none is left. */
static void saturate(Remat *r) {
    while (search(r, SOURCE, SINK, false)) {
        int64_t room = unlimited;
        for (int32_t v = SINK; v != SOURCE; v = r->edge[r->via[v] ^ 1].to)
            if (r->edge[r->via[v]].room < room) room = r->edge[r->via[v]].room;
        for (int32_t v = SINK; v != SOURCE; v = r->edge[r->via[v] ^ 1].to) {
            r->edge[r->via[v]].room -= room;
            r->edge[r->via[v] ^ 1].room += room;
        }
    }
}

/* ---- the rewrite ---- */

/* A value is recomputed when it still reaches a reader from above its own capacity edge. A view of
 * kept bytes is those bytes. */
static void make_clones(Remat *r) {
    search(r, SINK, -1, true);
    for (int32_t id = 0; id < r->n; id++) {
        Node *n = r->g->node[id], *in[16];
        if (!r->forward[id] || is_free(n) || r->via[made(n)] < 0) continue;
        bool same = true;
        for (int i = 0; i < n->nin; i++) {
            Node *other = r->clone[n->in[i]->id];
            in[i] = other ? other : n->in[i];
            same &= !other;
        }
        if (same && op_info[n->op].class == CLASS_VIEW) continue;
        Node like = *n;
        like.of = n;
        r->clone[id] = graph_stream(r->g, &like, in, STREAM_BACKWARD);
    }
}

static Node *read_clones(Graph *g, const Node *old, Node *const *in, void *ctx) {
    Remat *r = ctx;
    Node *read[16];
    if (r->forward[old->id] || op_info[old->op].class == CLASS_LEAF) return NULL;
    bool same = true;
    for (int i = 0; i < old->nin; i++) {
        Node *clone = r->clone[old->in[i]->id];
        read[i] = clone ? clone : in[i];
        same &= read[i] == old->in[i];
    }
    return same ? NULL : graph_stream(g, old, read, old->stream);
}

bool pass_remat(Graph *g, const PassContext *c) {
    (void)c;
    Remat r = {.g = g, .n = g->n};
    r.forward = graph_alloc(g, (size_t)g->n + 1);
    r.clone = graph_alloc(g, (size_t)g->n * sizeof *r.clone + 1);
    find_forward(&r);
    build_network(&r);
    saturate(&r);
    make_clones(&r);
    return graph_rewrite(g, FN_MASK, read_clones, &r);
}
