/* Construction of the graph: hash-consing, roots, liveness and rebuilding. A node's type is
 * inferred before the node exists, so an untyped node cannot be seen. */
#include "graph.h"
#include "pool.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local Origin origin = {{-1, 0, 0}, NULL};

_Noreturn void peftc_panic(const char *file, int line, const Node *n, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "peftc: internal error at %s:%d: ", file, line);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    if (n) {
        char t[64];
        fprintf(stderr, "  node %%%d = %s : %s\n", n->id, op_info[n->op].name,
                type_str(n->type, t));
        for (int i = 0; i < n->nin; i++) {
            const Node *in = n->in[i];
            fprintf(stderr, "    input %d: %%%d = %s : %s\n", i, in->id, op_info[in->op].name,
                    type_str(in->type, t));
        }
    }
    abort();
}

/* ---- memory ---- */

Graph *graph_new(void) {
    Pool *p = pool_new();
    Graph *g = pool_alloc(p, sizeof *g);
    g->pool = p;
    g->nbucket = 1024;
    g->bucket = pool_alloc(p, (size_t)g->nbucket * sizeof(Node *));
    return g;
}

void graph_free(Graph *g) {
    if (g) pool_free(g->pool);
}

void *graph_alloc(Graph *g, size_t bytes) {
    return pool_alloc(g->pool, bytes);
}

char *graph_printf(Graph *g, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = pool_alloc(g->pool, (size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

/* Makes room for one more element of an array in the pool. */
#define PUSH(g, array, count, cap)                                                 \
    ((array) = pool_grow((g)->pool, (array), (size_t)(count), (size_t)(count) + 1, \
                         sizeof *(array), (cap)),                                  \
     &(array)[(count)++])

/* ---- hash-consing ---- */

static uint64_t mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static uint64_t node_hash(const Node *n) {
    uint64_t h = 0xcbf29ce484222325u;
    h = mix(h, &n->op, sizeof n->op);
    h = mix(h, &n->stream, sizeof n->stream);
    h = mix(h, &n->attr, sizeof n->attr);
    for (int i = 0; i < n->nin; i++) h = mix(h, &n->in[i]->id, sizeof n->in[i]->id);
    return h ^ h >> 29;
}

static bool node_same(const Node *a, const Node *b) {
    return a->op == b->op && a->stream == b->stream && a->nin == b->nin &&
           memcmp(&a->attr, &b->attr, sizeof a->attr) == 0 &&
           memcmp(a->in, b->in, (size_t)a->nin * sizeof *a->in) == 0;
}

static Node **bucket_of(Graph *g, const Node *n) {
    uint32_t mask = (uint32_t)g->nbucket - 1;
    uint32_t at = (uint32_t)node_hash(n) & mask;
    while (g->bucket[at] && !node_same(g->bucket[at], n)) at = (at + 1) & mask;
    return &g->bucket[at];
}

static void rehash(Graph *g) {
    g->nbucket *= 2;
    g->bucket = pool_alloc(g->pool, (size_t)g->nbucket * sizeof(Node *));
    for (int i = 0; i < g->n; i++) *bucket_of(g, g->node[i]) = g->node[i];
}

/* A commutative op's inputs in id order: a + b and b + a are one node. */
static void order_inputs(Node *key) {
    if (!(op_info[key->op].flags & OPF_COMMUTES) || key->in[0]->id <= key->in[1]->id) return;
    Node *t = key->in[0];
    key->in[0] = key->in[1];
    key->in[1] = t;
}

static Node *intern(Graph *g, const Node *key, char why[256]) {
    Node **slot = bucket_of(g, key);
    if (*slot) return *slot;
    Type out[4] = {{0}};
    Node *n = graph_alloc(g, sizeof *n);
    *n = *key;
    if (!op_rules[n->op].infer(n, out, why)) return NULL;
    n->type = out[0];
    n->in = graph_alloc(g, (size_t)n->nin * sizeof *n->in);
    memcpy(n->in, key->in, (size_t)n->nin * sizeof *n->in);
    n->id = g->n;
    *PUSH(g, g->node, g->n, &g->cap) = n;
    *slot = n;
    if (g->n * 2 > g->nbucket) rehash(g);
    return n;
}

#define MAX_INPUTS 16

Node *graph_try(Graph *g, OpCode op, Attr attr, Node *const *in, int nin, Span span,
                char why[256]) {
    Node *copy[MAX_INPUTS];
    if (nin > MAX_INPUTS || (op_info[op].nin >= 0 && nin != op_info[op].nin)) {
        snprintf(why, 256, "%s takes %d inputs, not %d", op_info[op].name, op_info[op].nin, nin);
        return NULL;
    }
    if (nin) memcpy(copy, in, (size_t)nin * sizeof *in);
    Node key = {.op = op, .attr = attr, .in = copy, .nin = nin, .span = span, .of = origin.of};
    order_inputs(&key);
    return intern(g, &key, why);
}

Node *graph_node(Graph *g, OpCode op, Attr attr, Node *const *in, int nin) {
    char why[256] = "";
    Node *n = graph_try(g, op, attr, in, nin, origin.span, why);
    if (!n) PANIC(nin ? in[0] : NULL, "cannot build %s: %s", op_info[op].name, why);
    return n;
}

Node *graph_stream(Graph *g, const Node *like, Node *const *in, int32_t stream) {
    Node *copy[MAX_INPUTS];
    memcpy(copy, in, (size_t)like->nin * sizeof *in);
    Node key = *like;
    key.in = copy;
    key.stream = stream;
    order_inputs(&key);
    char why[256] = "";
    Node *n = intern(g, &key, why);
    if (!n) PANIC(like, "cannot clone: %s", why);
    return n;
}

Origin graph_set_origin(Graph *g, Origin o) {
    (void)g;
    Origin old = origin;
    origin = o;
    return old;
}

/* ---- variables and roots ---- */

int32_t graph_var(Graph *g, Var v) {
    if ((g->nvar & (g->nvar - 1)) == 0) { /* grow at powers of two */
        int cap = g->nvar;
        g->var =
            pool_grow(g->pool, g->var, (size_t)g->nvar, (size_t)g->nvar + 1, sizeof *g->var, &cap);
    }
    g->var[g->nvar] = v;
    return g->nvar++;
}

int32_t graph_find_var(const Graph *g, const char *name) {
    for (int32_t i = 0; i < g->nvar; i++)
        if (strcmp(g->var[i].name, name) == 0) return i;
    return -1;
}

void graph_output(Graph *g, PeftFn fn, const char *name, Node *node) {
    Function *f = &g->fn[fn];
    Output *grown = graph_alloc(g, (size_t)(f->nout + 1) * sizeof *grown);
    if (f->nout) memcpy(grown, f->out, (size_t)f->nout * sizeof *grown);
    grown[f->nout] = (Output){name, node};
    f->out = grown;
    f->nout++;
}

Node *graph_find_output(const Graph *g, PeftFn fn, const char *name) {
    const Function *f = &g->fn[fn];
    for (int i = 0; i < f->nout; i++)
        if (strcmp(f->out[i].name, name) == 0) return f->out[i].node;
    return NULL;
}

void graph_update(Graph *g, PeftFn fn, int32_t var, Node *value) {
    Function *f = &g->fn[fn];
    Update *grown = graph_alloc(g, (size_t)(f->nupdate + 1) * sizeof *grown);
    if (f->nupdate) memcpy(grown, f->update, (size_t)f->nupdate * sizeof *grown);
    grown[f->nupdate] = (Update){var, value};
    f->update = grown;
    f->nupdate++;
}

/* ---- shorthands ---- */

static Attr attr_none(void) {
    Attr a;
    memset(&a, 0, sizeof a);
    return a;
}

Node *nd_const(Graph *g, double value) {
    Attr a = attr_none();
    a.constant.value = value;
    return graph_node(g, OP_CONST, a, NULL, 0);
}

/* A leaf carries its type in its attributes: inference sees nodes, not the graph. */
Node *nd_var(Graph *g, int32_t var) {
    Attr a = attr_none();
    a.leaf.index = var;
    a.leaf.type = g->var[var].type;
    return graph_node(g, OP_VAR, a, NULL, 0);
}

static Type input_type(PeftInputId id) {
    static const Type types[PEFT_IN_COUNT] = {
#define X(name, dtype, r, d0, d1) [PEFT_IN_##name] = {.dt = dtype, .rank = r, .dim = {d0, d1}},
        PEFT_INPUTS(X)
#undef X
    };
    return types[id];
}

Node *nd_input(Graph *g, PeftInputId id) {
    Attr a = attr_none();
    a.leaf.index = id;
    a.leaf.type = input_type(id);
    return graph_node(g, OP_INPUT, a, NULL, 0);
}

Node *nd1(Graph *g, OpCode op, Node *a) {
    return graph_node(g, op, attr_none(), &a, 1);
}

Node *nd2(Graph *g, OpCode op, Node *a, Node *b) {
    return graph_node(g, op, attr_none(), (Node *[]){a, b}, 2);
}

Node *nd_scale(Graph *g, Node *a, double by) {
    return nd2(g, OP_MUL, a, nd_const(g, by));
}

Node *nd_matmul(Graph *g, Node *a, Node *b, bool trans_a, bool trans_b) {
    Attr at = attr_none();
    at.matmul.trans_a = trans_a;
    at.matmul.trans_b = trans_b;
    return graph_node(g, OP_MATMUL, at, (Node *[]){a, b}, 2);
}

Node *nd_sum(Graph *g, Node *a, int axis) {
    Attr at = attr_none();
    at.sum.axis = axis;
    return graph_node(g, OP_SUM, at, &a, 1);
}

Node *nd_proj(Graph *g, Node *multi, int k) {
    Attr at = attr_none();
    at.proj.k = k;
    return graph_node(g, OP_PROJ, at, &multi, 1);
}

Node *nd_reshape(Graph *g, Node *a, Type to) {
    if (type_equal(a->type, to)) return a;
    Attr at = attr_none();
    at.reshape.to = to;
    return graph_node(g, OP_RESHAPE, at, &a, 1);
}

/* ---- traversal ---- */

static void mark(const Node *n, uint8_t *live) {
    live[n->id] = 1;
}

static uint8_t *live_set(Graph *g, unsigned mask) {
    uint8_t *live = graph_alloc(g, (size_t)g->n + 1);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        if (!(mask >> f & 1)) continue;
        for (int i = 0; i < g->fn[f].nout; i++) mark(g->fn[f].out[i].node, live);
        for (int i = 0; i < g->fn[f].nupdate; i++) mark(g->fn[f].update[i].value, live);
    }
    for (int i = g->n - 1; i >= 0; i--) /* inputs have smaller ids: one sweep down suffices */
        if (live[i])
            for (int k = 0; k < g->node[i]->nin; k++) mark(g->node[i]->in[k], live);
    return live;
}

Node **graph_live(Graph *g, PeftFn fn, int32_t *n) {
    uint8_t *live = live_set(g, 1u << fn);
    Node **list = graph_alloc(g, (size_t)g->n * sizeof *list + 1);
    *n = 0;
    for (int i = 0; i < g->n; i++)
        if (live[i]) list[(*n)++] = g->node[i];
    return list;
}

static bool replace_roots(Graph *g, unsigned mask, Node *const *map) {
    bool changed = false;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        if (!(mask >> f & 1)) continue;
        for (int i = 0; i < g->fn[f].nout; i++) {
            Node **at = &g->fn[f].out[i].node;
            changed |= *at != map[(*at)->id];
            *at = map[(*at)->id];
        }
        for (int i = 0; i < g->fn[f].nupdate; i++) {
            Node **at = &g->fn[f].update[i].value;
            changed |= *at != map[(*at)->id];
            *at = map[(*at)->id];
        }
    }
    return changed;
}

/* The same node over rewritten inputs; the old one itself when none of them changed. */
static Node *rebuild(Graph *g, Node *old, Node *const *in) {
    bool same = true;
    for (int i = 0; i < old->nin; i++) same &= in[i] == old->in[i];
    return same ? old : graph_stream(g, old, in, old->stream);
}

bool graph_rewrite(Graph *g, unsigned mask, RewriteFn rewrite, void *ctx) {
    int n = g->n;
    uint8_t *live = live_set(g, mask);
    Node **map = graph_alloc(g, (size_t)n * sizeof *map + 1);
    for (int i = 0; i < n; i++) {
        if (!live[i]) continue;
        Node *old = g->node[i], *in[MAX_INPUTS];
        for (int k = 0; k < old->nin; k++) in[k] = map[old->in[k]->id];
        Origin saved = graph_set_origin(g, (Origin){old->span, old->of});
        Node *fresh = rewrite(g, old, in, ctx);
        map[i] = fresh ? fresh : rebuild(g, old, in);
        graph_set_origin(g, saved);
    }
    return replace_roots(g, mask, map);
}
