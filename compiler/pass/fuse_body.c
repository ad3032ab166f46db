/* From a group of ops to a kernel: strings the scalar code of its nodes together, lists what it
 * reads and what it stores. Invariant: a body names only nodes that have a buffer (variables,
 * inputs, stored values), and `in` and `out` list all of them. */
#include "fuse_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

static bool is_stored(const Fuser *f, const Node *n) {
    const NodeInfo *in = &f->info[n->id];
    return in->stored || op_info[n->op].class == CLASS_LEAF;
}

/* The operand's value inside the body: computed there, or loaded. */
static KVal operand_value(const Fuser *f, KBody *b, int32_t group, Node *n, const KVal *value) {
    int k;
    Node *at = producer_of(n, &k);
    const NodeInfo *from = &f->info[at->id];
    if (from->lowered_in == group) return value[at->id * FUSE_RESULTS + k];
    if (op_info[at->op].nout > 1) at = from->proj[k];
    if (!is_stored(f, buffer_of(at)) && at != f->group[group].anchor)
        PANIC(at, "read by another kernel, but never stored");
    return kb_load(b, at);
}

static void lower_node(Fuser *f, KBody *b, int32_t group, Node *n, KVal *value) {
    KVal in[16], out[FUSE_RESULTS] = {-1, -1, -1};
    for (int i = 0; i < n->nin; i++)
        in[i] = operand_mode(f, n, i) == OPERAND_VALUE ? operand_value(f, b, group, n->in[i], value)
                                                       : -1;
    op_rules[n->op].lower(b, n, in, out);
    memcpy(&value[n->id * FUSE_RESULTS], out, sizeof out);
    f->info[n->id].lowered_in = group;
}

/* ---- results ---- */

static void add_out(Kernel *k, Node *n, KVal value) {
    k->out[k->nout] = n;
    k->out_val[k->nout++] = value;
}

/* A runtime routine writes all its results, read or not; only a gradient leaves out what is not
 * asked for. */
static void add_routine_results(const Fuser *f, Kernel *k) {
    int n = op_info[k->anchor->op].nout;
    for (int r = 0; r < n; r++) {
        Node *proj = n == 1 ? k->anchor : f->info[k->anchor->id].proj[r];
        if (!proj && k->kind != PEFT_KERNEL_ATTENTION_GRAD) proj = nd_proj(f->g, k->anchor, r);
        if (proj) add_out(k, proj, -1);
    }
}

static void add_results(const Fuser *f, Kernel *k, int32_t group, Node *n, const KVal *value) {
    const NodeInfo *in = &f->info[n->id];
    if (in->home != group) return;
    const KVal *v = &value[n->id * FUSE_RESULTS];
    if (op_info[n->op].nout == 1 && in->stored) add_out(k, n, n == k->anchor ? -1 : v[0]);
    for (int r = 0; r < FUSE_RESULTS; r++)
        if (in->proj[r] && f->info[in->proj[r]->id].stored) add_out(k, in->proj[r], v[r]);
}

/* A GEMM's result buffer is its first output: the product itself where it is stored. */
static void put_product_first(Kernel *k) {
    for (int i = 1; i < k->nout; i++) {
        if (k->out[i] != k->anchor) continue;
        k->out[i] = k->out[0];
        k->out_val[i] = k->out_val[0];
        k->out[0] = k->anchor;
        k->out_val[0] = -1;
    }
}

static void store_results(const Fuser *f, Kernel *k, int32_t group, const KVal *value) {
    size_t room = (size_t)k->nnode * FUSE_RESULTS;
    k->out = graph_alloc(f->g, room * sizeof *k->out);
    k->out_val = graph_alloc(f->g, room * sizeof *k->out_val);
    if (k->anchor && k->kind != PEFT_KERNEL_GEMM)
        add_routine_results(f, k);
    else
        for (int i = 0; i < k->nnode; i++) add_results(f, k, group, k->node[i], value);
    if (k->kind == PEFT_KERNEL_GEMM) put_product_first(k);
    if (k->nout == 0) PANIC(k->node[k->nnode - 1], "a kernel without results");
}

/* ---- what a kernel reads ---- */

void kernel_live(const Kernel *k, bool *live) {
    memset(live, 0, (size_t)k->body->n * sizeof *live);
    for (int i = 0; i < k->nout; i++)
        if (k->out_val[i] >= 0) live[k->out_val[i]] = true;
    for (int i = k->body->n - 1; i >= 0; i--) { /* operands have smaller indices */
        const KInstr *in = &k->body->instr[i];
        const KVal operand[3] = {in->a, in->b, in->c};
        for (int j = 0; live[i] && j < 3; j++)
            if (operand[j] >= 0) live[operand[j]] = true;
    }
}

static void add_in(Kernel *k, Node *n) {
    n = buffer_of(n);
    if (n == k->anchor || n->op == OP_CONST) return;
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] == n) return;
    k->in[k->nin++] = n;
}

static void list_inputs(const Fuser *f, Kernel *k) {
    int n = k->body ? k->body->n : 0;
    k->in = graph_alloc(f->g, ((size_t)n + 16) * sizeof *k->in);
    for (int i = 0; k->anchor && i < k->anchor->nin; i++) {
        Node *in = k->anchor->in[i];
        if (operand_mode(f, k->anchor, i) == OPERAND_NONE) in = in->in[0]; /* the NF4 variable */
        add_in(k, in);
    }
    bool *live = graph_alloc(f->g, (size_t)n + 1);
    if (k->body) kernel_live(k, live);
    for (int i = 0; i < n; i++)
        if (live[i] && k->body->instr[i].tensor) add_in(k, (Node *)k->body->instr[i].tensor);
}

/* ---- kernels ---- */

/* The code of a group's scalar ops; NULL when it has none (a bare GEMM, a runtime routine). */
static KBody *group_body(Fuser *f, const Kernel *k, int32_t group, KVal *value) {
    const Group *from = &f->group[group];
    bool sums = k->kind == PEFT_KERNEL_COLUMN_SUM || k->kind == PEFT_KERNEL_FULL_SUM;
    if (k->anchor && k->nnode == 1) return NULL;
    KBody *b = kb_new(f->g, from->rows, from->cols);
    for (int i = 0; i < k->nnode; i++) {
        Node *n = k->node[i];
        if (n == k->anchor) continue;
        if (!sums || n->op != OP_SUM) {
            lower_node(f, b, group, n, value);
            continue;
        }
        value[n->id * FUSE_RESULTS] = operand_value(f, b, group, n->in[0], value);
        f->info[n->id].lowered_in = group;
    }
    return b;
}

Kernel *group_kernel(Fuser *f, int32_t group, KVal *value) {
    const Group *from = &f->group[group];
    Kernel *k = graph_alloc(f->g, sizeof *k);
    k->kind = from->kind;
    k->node = from->node;
    k->nnode = from->nnode;
    k->anchor = from->anchor;
    k->body = group_body(f, k, group, value);
    store_results(f, k, group, value);
    list_inputs(f, k);
    return k;
}
