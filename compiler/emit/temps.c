/* Lifetimes of temporaries: the first step that writes a buffer, the last that reads it, and which
 * results may lie over an operand that dies in the same step. What an epilogue reads and writes
 * lives until a GPU has computed it, whoever runs the program; of two products through a narrow
 * middle, and of epilogues that one kernel computes with them, all results live from the first on,
 * and lie over no operand. Invariant: two values share
 * a temporary only when the second is written by a kernel that reads the first for the last time,
 * element by element, wherever the kernel runs. */
#include "internal.h"

#include <string.h>

typedef struct Live {
    Graph *g;
    PeftFn fn;
    const Schedule *s;
    const Storage *storage;
    Sources *sources;
    const NodePass *pass;
    Joins joins;
    Pairs pairs;
    int32_t *read;  /* by temporary: the last step that names it, whenever a GPU reads it */
    bool *gradient; /* by node id: the gradient of a trainable parameter */
    bool *pinned;   /* by node id: an output of the function, alive to its end */
    Temps out;
} Live;

const char *where_of(Graph *g, Sources *sources, Span span) {
    return sources && span.file >= 0 ? graph_printf(g, "%s", source_where(sources, span)) : "";
}

/* ---- classes ---- */

static void mark_gradient(Live *l, const Node *n) {
    const Node *at = buffer_of(n);
    if (op_info[at->op].class == CLASS_LEAF) return;
    l->gradient[at->id] = true;
    if (at->op == OP_SCATTER) mark_gradient(l, at->in[0]); /* an embedding's touched rows */
}

static void find_gradients(Live *l) {
    int32_t n;
    Node **live = graph_live(l->g, l->fn, &n);
    for (int i = 0; i < n; i++)
        if (live[i]->op == OP_ADAMW) mark_gradient(l, live[i]->in[1]);
    const Function *f = &l->g->fn[l->fn];
    for (int i = 0; i < f->nout; i++)
        if (strncmp(f->out[i].name, "grad.", 5) == 0) mark_gradient(l, f->out[i].node);
    for (int i = 0; i < f->nupdate; i++) { /* gradients that are added to an accumulator */
        const Node *v = f->update[i].value;
        if (v->op != OP_ADD) continue;
        for (int k = 0; k < 2; k++)
            if (v->in[k]->op == OP_VAR && v->in[k]->attr.leaf.index == f->update[i].var)
                mark_gradient(l, v->in[1 - k]);
    }
}

static PeftClass class_of(const Live *l, const Node *n) {
    if (l->gradient[n->id]) return PEFT_MEM_GRADIENT;
    return l->pass[n->id].pass == PASS_FORWARD ? PEFT_MEM_ACTIVATION : PEFT_MEM_BACKWARD;
}

/* ---- lifetimes ---- */

/* The op that a result is shown by. */
static const Node *shown(const Node *n) {
    return n->op == OP_PROJ ? n->in[0] : n;
}

static void add_temp(Live *l, const Node *n, int step) {
    PeftTemp *t = &l->out.temp[l->out.n];
    *t = (PeftTemp){.label = op_info[shown(n)->op].name,
                    .where = where_of(l->g, l->sources, shown(n)->span),
                    .dtype = storage_of(l->storage, n),
                    .rank = n->type.rank,
                    .mem_class = class_of(l, n),
                    .first = step,
                    .last = step};
    memcpy(t->dim, n->type.dim, sizeof t->dim);
    l->out.of[n->id] = l->out.n++;
}

static void keep_until(Live *l, const Node *n, int step) {
    int32_t t = l->out.of[n->id];
    if (t >= 0 && l->out.temp[t].last < step) l->out.temp[t].last = step;
}

/* A joined epilogue reads its operands, but not those of the product, and writes its results later
 * on a GPU. */
static void await_joins(Live *l) {
    l->read = graph_alloc(l->g, (size_t)l->out.n * sizeof *l->read + 1);
    for (int32_t t = 0; t < l->out.n; t++) l->read[t] = l->out.temp[t].last;
    for (int i = 0; i < l->s->n; i++) {
        const Kernel *k = l->s->kernel[i];
        if (l->joins.rows[i] < 0) continue;
        for (int j = 0; j < k->nin; j++)
            if (body_reads(k, k->in[j])) keep_until(l, k->in[j], l->joins.rows[i]);
        for (int j = 0; j < k->nout; j++) keep_until(l, k->out[j], l->joins.rows[i]);
    }
}

static void find_lifetimes(Live *l) {
    for (int i = 0; i < l->s->n; i++) {
        const Kernel *k = l->s->kernel[i];
        for (int j = 0; j < k->nin; j++) {
            int32_t t = l->out.of[k->in[j]->id];
            if (t >= 0) l->out.temp[t].last = i;
        }
        for (int j = 0; j < k->nout; j++)
            if (k->out[j]->op != OP_VAR) add_temp(l, k->out[j], i);
        if (l->pairs.first[i] < 0) continue;
        for (int j = 0; j < (l->pairs.finished[i] ? k->nout : 1); j++)
            l->out.temp[l->out.of[k->out[j]->id]].first = l->pairs.first[i];
    }
    const Function *f = &l->g->fn[l->fn];
    for (int i = 0; i < f->nout; i++) {
        const Node *n = buffer_of(f->out[i].node);
        l->pinned[n->id] = true;
        if (l->out.of[n->id] >= 0) l->out.temp[l->out.of[n->id]].last = l->s->n - 1;
    }
}

/* ---- results over operands ---- */

static bool same_bytes(const Live *l, const Node *a, const Node *b) {
    uint8_t s = storage_of(l->storage, a), t = storage_of(l->storage, b);
    bool four = s <= DT_I32 && t <= DT_I32;
    return type_same_shape(a->type, b->type) && (four || (s == t && s == DT_WORK));
}

/* Whether step i reads the buffer in place, with the epilogue that its kernel may compute. */
static bool read_in_place(const Live *l, int i, const Node *n) {
    const Kernel *k = l->s->kernel[i];
    int32_t product = l->joins.product[i];
    for (int j = 0; k->anchor && j < k->anchor->nin; j++)
        if (buffer_of(k->anchor->in[j]) == n) return false;
    return body_reads_in_place(k, n) &&
           (product < 0 || body_reads_in_place(l->s->kernel[product], n));
}

/* Nothing reads temporary t after step i's kernel, an epilogue that waits for another step's
 * included. */
static bool dies(const Live *l, int i, int32_t t) {
    int32_t last = l->out.temp[t].last;
    return last == i || (l->read[t] == i && last == l->joins.rows[i]);
}

/* A temporary that dies in step i and can hold the kernel's result, or -1. */
static int32_t dying_operand(const Live *l, int i, const Node *result, const int32_t *taken) {
    const Kernel *k = l->s->kernel[i];
    for (int j = 0; j < k->nin; j++) {
        const Node *n = k->in[j];
        int32_t t = l->out.of[n->id];
        if (t >= 0 && dies(l, i, t) && !l->pinned[n->id] && taken[t] != i &&
            same_bytes(l, n, result) && read_in_place(l, i, n))
            return t;
    }
    return -1;
}

/* One temporary for both values, shown as the longer-lived one. */
static void merge(Live *l, int32_t into, const Node *result) {
    PeftTemp *a = &l->out.temp[into], *b = &l->out.temp[l->out.of[result->id]];
    PeftTemp both = b->last - b->first >= a->last - a->first ? *b : *a;
    both.first = a->first;
    both.last = b->last;
    l->read[into] = l->read[l->out.of[result->id]];
    *a = both;
    b->first = -1; /* dropped below */
    l->out.of[result->id] = into;
}

/* A GEMM writes its product before the epilogue reads anything, so its first result stays apart. */
static void share_temps(Live *l) {
    int32_t *taken = graph_alloc(l->g, (size_t)l->out.n * sizeof *taken + 1); /* in which step */
    memset(taken, -1, (size_t)l->out.n * sizeof *taken);
    for (int i = 0; i < l->s->n; i++) {
        const Kernel *k = l->s->kernel[i];
        if ((k->kind != PEFT_KERNEL_MAP && k->kind != PEFT_KERNEL_GEMM) || !k->body) continue;
        if (l->pairs.second[i] >= 0 || l->pairs.finished[i])
            continue; /* blocks read the operands of others' rows */
        for (int j = k->kind == PEFT_KERNEL_GEMM; j < k->nout; j++) {
            if (k->out[j]->op == OP_VAR) continue;
            int32_t t = dying_operand(l, i, k->out[j], taken);
            if (t < 0) continue;
            taken[t] = i;
            merge(l, t, k->out[j]);
        }
    }
}

static void drop_merged(Live *l) {
    int32_t *to = graph_alloc(l->g, (size_t)l->out.n * sizeof *to + 1);
    int32_t n = 0;
    for (int32_t i = 0; i < l->out.n; i++) {
        to[i] = n;
        if (l->out.temp[i].first >= 0) l->out.temp[n++] = l->out.temp[i];
    }
    for (int32_t i = 0; i < l->g->n; i++)
        if (l->out.of[i] >= 0) l->out.of[i] = to[l->out.of[i]];
    l->out.n = n;
}

/* ---- workspace ---- */

static void add_workspaces(Live *l) {
    for (int i = 0; i < l->s->n; i++) {
        PeftKernelKind kind = l->s->kernel[i]->kind;
        l->out.workspace[i] = -1;
        if (kind != PEFT_KERNEL_GEMM && kind != PEFT_KERNEL_ATTENTION &&
            kind != PEFT_KERNEL_ATTENTION_GRAD)
            continue;
        l->out.workspace[i] = l->out.n;
        l->out.temp[l->out.n++] =
            (PeftTemp){.label = kind == PEFT_KERNEL_GEMM ? "gemm workspace" : "attention workspace",
                       .where = "",
                       .mem_class = PEFT_MEM_WORKSPACE,
                       .first = i,
                       .last = i};
    }
}

Temps find_temps(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, Joins joins,
                 Pairs pairs, Sources *sources) {
    Live l = {.g = g, .fn = fn, .s = s, .storage = storage, .joins = joins, .pairs = pairs};
    l.sources = sources;
    l.pass = node_passes(g, fn);
    size_t room = (size_t)s->n + 1;
    for (int i = 0; i < s->n; i++) room += (size_t)s->kernel[i]->nout;
    l.gradient = graph_alloc(g, (size_t)g->n + 1);
    l.pinned = graph_alloc(g, (size_t)g->n + 1);
    l.out.temp = graph_alloc(g, room * sizeof *l.out.temp);
    l.out.workspace = graph_alloc(g, room * sizeof *l.out.workspace);
    l.out.of = graph_alloc(g, (size_t)g->n * sizeof *l.out.of + 1);
    memset(l.out.of, -1, (size_t)g->n * sizeof *l.out.of);
    find_gradients(&l);
    find_lifetimes(&l);
    await_joins(&l);
    share_temps(&l);
    drop_merged(&l);
    add_workspaces(&l);
    return l.out;
}
