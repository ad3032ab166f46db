/* What must hold of every graph, whichever pass made it:
 *  - a node is where its id says, its inputs precede it, and no two live nodes are the same;
 *  - inference gives the type that the node has;
 *  - leaves name an existing variable or batch field, of the type they claim;
 *  - a multi-result op is read through PROJ nodes only, a gradient's results only as asked for;
 *  - attention reads the batch's sequence offsets, random key and sample numbers;
 *  - roots have the types that the runtime expects, and each variable is updated at most once.
 * The check is complete: it never stops at what the present passes happen to produce. */
#include "verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "op/rules.h"

typedef struct Verify {
    Graph *g;
    const Node *bad;
    char *why;
} Verify;

static bool fail(Verify *v, const Node *n, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static bool fail(Verify *v, const Node *n, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(v->why, 256, fmt, ap);
    va_end(ap);
    v->bad = n;
    return false;
}

/* ---- one node ---- */

static bool check_place(Verify *v, const Node *n) {
    if (n->id < 0 || n->id >= v->g->n || v->g->node[n->id] != n)
        return fail(v, n, "node %%%d is not in the graph", n->id);
    if (n->of && n->of->id >= n->id)
        return fail(v, n, "differentiates a later node, %%%d", n->of->id);
    if (op_info[n->op].nin >= 0 && n->nin != op_info[n->op].nin)
        return fail(v, n, "%d inputs, not %d", n->nin, op_info[n->op].nin);
    for (int i = 0; i < n->nin; i++) {
        const Node *in = n->in[i];
        if (in->id >= n->id) return fail(v, n, "input %d is a later node, %%%d", i, in->id);
        if (n->op != OP_PROJ && op_info[in->op].nout > 1)
            return fail(v, n, "input %d has several results but is not read through proj", i);
    }
    return true;
}

static bool check_type(Verify *v, const Node *n) {
    char why[256] = "", have[64], want[64];
    Type out[MAX_RESULTS] = {{0}};
    if (!op_rules[n->op].infer(n, out, why))
        return fail(v, n, "%s: %.200s", op_info[n->op].name, why);
    if (!type_equal(out[0], n->type))
        return fail(v, n, "%s has type %s, but inference gives %s", op_info[n->op].name,
                    type_str(n->type, have), type_str(out[0], want));
    return true;
}

static bool check_leaf(Verify *v, const Node *n) {
    int32_t at = n->attr.leaf.index;
    if (n->op == OP_VAR) {
        if (at < 0 || at >= v->g->nvar) return fail(v, n, "there is no variable %d", at);
        if (!type_equal(n->type, v->g->var[at].type))
            return fail(v, n, "is not of the type of its variable, %s", v->g->var[at].name);
    }
    if (n->op == OP_INPUT) {
        if (at < 0 || at >= PEFT_IN_COUNT) return fail(v, n, "there is no batch input %d", at);
        if (!type_equal(n->type, nd_input(v->g, (PeftInputId)at)->type))
            return fail(v, n, "is not of the type of batch input %d", at);
    }
    return true;
}

static bool is_input(const Node *n, PeftInputId id) {
    return n->op == OP_INPUT && n->attr.leaf.index == (int32_t)id;
}

static bool check_random(Verify *v, const Node *n) {
    bool attends = n->op == OP_ATTENTION || n->op == OP_ATTENTION_GRAD;
    double p = attends ? n->attr.attention.p : n->attr.dropout.p;
    int32_t site = attends ? n->attr.attention.site : n->attr.dropout.site;
    if (p > 0 && (site < 0 || site >= v->g->nsite))
        return fail(v, n, "dropout site %d, but only %d were handed out", site, v->g->nsite);
    if (n->op == OP_DROPOUT && !is_input(n->in[1], PEFT_IN_rng))
        return fail(v, n, "dropout does not read the batch's random key");
    return true;
}

static bool check_attention(Verify *v, const Node *n) {
    int at = n->op == OP_ATTENTION ? 3 : 5; /* offsets, rng, sample follow q, k, v (, lse) */
    static const PeftInputId want[] = {PEFT_IN_offsets, PEFT_IN_rng, PEFT_IN_seq_sample};
    static const char *const name[] = {"offsets", "rng", "seq_sample"};
    for (int i = 0; i < 3; i++)
        if (!is_input(n->in[at + i], want[i]))
            return fail(v, n, "input %d of %s must be the batch's %s", at + i, op_info[n->op].name,
                        name[i]);
    return true;
}

static bool check_proj(Verify *v, const Node *n) {
    const Node *from = n->in[0];
    if (op_info[from->op].nout < 2) return fail(v, n, "proj of an op with one result");
    if (from->op == OP_ATTENTION_GRAD && !(from->attr.attention.need >> n->attr.proj.k & 1))
        return fail(v, n, "result %d of this attention_grad was not asked for", n->attr.proj.k);
    return true;
}

static bool check_node(Verify *v, const Node *n) {
    if (!check_place(v, n) || !check_type(v, n)) return false;
    switch (n->op) {
    case OP_VAR:
    case OP_INPUT: return check_leaf(v, n);
    case OP_PROJ: return check_proj(v, n);
    case OP_DROPOUT: return check_random(v, n);
    case OP_ATTENTION:
    case OP_ATTENTION_GRAD: return check_random(v, n) && check_attention(v, n);
    default: return true;
    }
}

/* ---- functions ---- */

static bool check_outputs(Verify *v, int fn) {
    const Function *f = &v->g->fn[fn];
    for (int i = 0; i < f->nout; i++) {
        const Output *o = &f->out[i];
        bool scalar =
            !strcmp(o->name, "loss") || !strcmp(o->name, "grad_norm") || !strcmp(o->name, "lr");
        if (o->node->type.dt != DT_F32 || (scalar && o->node->type.rank))
            return fail(v, o->node, "output %s has the wrong type", o->name);
        if (op_info[o->node->op].nout > 1)
            return fail(v, o->node, "output %s has several results", o->name);
        for (int k = 0; k < i; k++)
            if (!strcmp(f->out[k].name, o->name))
                return fail(v, o->node, "function %d has two outputs named %s", fn, o->name);
    }
    return true;
}

static bool check_updates(Verify *v, int fn) {
    const Function *f = &v->g->fn[fn];
    uint8_t *seen = graph_alloc(v->g, (size_t)v->g->nvar + 1);
    for (int i = 0; i < f->nupdate; i++) {
        const Update *u = &f->update[i];
        if (u->var < 0 || u->var >= v->g->nvar)
            return fail(v, u->value, "update of variable %d, which does not exist", u->var);
        const Var *var = &v->g->var[u->var];
        if (seen[u->var]++) return fail(v, u->value, "%s is updated twice", var->name);
        if (var->kind == VAR_PARAM && !var->trainable && fn != PEFT_FN_START)
            return fail(v, u->value, "update of the frozen %s", var->name);
        if (!type_equal(u->value->type, var->type) || op_info[u->value->op].nout > 1)
            return fail(v, u->value, "the update of %s has another type", var->name);
    }
    return fn != PEFT_FN_EVAL || !f->nupdate || fail(v, NULL, "evaluation updates variables");
}

/* No two live nodes are equal: hash-consing was not bypassed. */
static bool check_unique(Verify *v, Node *const *live, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const Node *same = graph_stream(v->g, live[i], live[i]->in, live[i]->stream);
        if (same != live[i]) return fail(v, live[i], "equals node %%%d", same->id);
    }
    return true;
}

static bool check_function(Verify *v, int fn) {
    if (!check_outputs(v, fn) || !check_updates(v, fn)) return false;
    int32_t n;
    Node **live = graph_live(v->g, (PeftFn)fn, &n);
    for (int32_t i = 0; i < n; i++)
        if (!check_node(v, live[i])) return false;
    return check_unique(v, live, n);
}

bool verify_check(Graph *g, const Node **bad, char why[256]) {
    Verify v = {.g = g, .why = why};
    bool sound = true;
    for (int fn = 0; sound && fn < PEFT_FN_COUNT; fn++) sound = check_function(&v, fn);
    *bad = v.bad;
    return sound;
}

void verify_graph(Graph *g, const char *after) {
    const Node *bad;
    char why[256];
    if (!verify_check(g, &bad, why)) PANIC(bad, "after pass %s: %s", after, why);
}
