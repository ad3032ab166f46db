/* Evaluates nodes in id order and keeps a value until its last user has read it. */
#include "interp.h"

#include <stdlib.h>
#include <string.h>

#include "op/rules.h"

enum { MAX_INPUTS = 16 };

typedef struct Value { /* results of one node */
    RefTensor result[MAX_RESULTS];
    int32_t users; /* nodes and roots that have not read it yet */
    bool live;
} Value;

typedef struct Run {
    const Graph *g;
    const InterpEnv *env;
    RefContext context;
    Value *value; /* [g->n] */
    PeftError *err;
} Run;

static bool tensor_new(const Run *r, Type t, RefTensor *out) {
    int64_t count = 1;
    for (int i = 0; i < t.rank; i++) {
        out->dim[i] = peft_dim(t.dim[i], r->env->sym);
        if (out->dim[i] < 0 || __builtin_mul_overflow(count, out->dim[i], &count)) {
            char name[64];
            return peft_fail(r->err, "interpreter: a tensor of type %s has no valid size",
                             type_str(t, name));
        }
    }
    out->rank = t.rank;
    out->count = count;
    out->data = peft_alloc(count ? (size_t)count : 1, sizeof *out->data, r->err);
    return out->data != NULL;
}

void interp_free(RefTensor t[], int n) {
    for (int i = 0; i < n; i++) {
        free(t[i].data);
        t[i] = (RefTensor){0};
    }
}

/* ---- leaves ---- */

static const char *leaf_name(const Run *r, const Node *n) {
    static const char *const input[PEFT_IN_COUNT] = {
#define X(name, dtype, rank, d0, d1) #name,
        PEFT_INPUTS(X)
#undef X
    };
    return n->op == OP_VAR ? r->g->var[n->attr.leaf.index].name : input[n->attr.leaf.index];
}

/* Seed in two halves, step, dropout: as the runtime fills the field. */
static bool bind_rng(const Run *r, const Node *n, const RefTensor *out) {
    if (out->count != 4) PANIC(n, "rng has four entries");
    out->data[0] = (int32_t)(uint32_t)r->env->seed;
    out->data[1] = (int32_t)(uint32_t)(r->env->seed >> 32);
    out->data[2] = r->env->step;
    out->data[3] = r->env->dropout;
    return true;
}

static bool bind_leaf(const Run *r, const Node *n, RefTensor *out) {
    if (n->op == OP_INPUT && n->attr.leaf.index == PEFT_IN_rng) return bind_rng(r, n, out);
    const RefTensor *table = n->op == OP_VAR ? r->env->var : r->env->input;
    const RefTensor *bound = table ? &table[n->attr.leaf.index] : NULL;
    const char *kind = n->op == OP_VAR ? "variable" : "input";
    if (!bound || !bound->data)
        return peft_fail(r->err, "interpreter: %s %s is not bound to a value", kind,
                         leaf_name(r, n));
    if (bound->count != out->count)
        return peft_fail(r->err, "interpreter: %s %s needs %lld values, it is bound to %lld", kind,
                         leaf_name(r, n), (long long)out->count, (long long)bound->count);
    op_rules[n->op].ref(n, &r->context, bound, out);
    return true;
}

/* ---- evaluation ---- */

static void release(Run *r, const Node *n) {
    Value *v = &r->value[n->id];
    if (--v->users == 0) interp_free(v->result, MAX_RESULTS);
}

/* proj alone sees every result of its input. */
static void collect_inputs(const Run *r, const Node *n, RefTensor in[]) {
    for (int i = 0; i < n->nin; i++) in[i] = r->value[n->in[i]->id].result[0];
    if (n->op == OP_PROJ)
        for (int k = 0; k < MAX_RESULTS; k++) in[k] = r->value[n->in[0]->id].result[k];
}

static bool eval_node(Run *r, const Node *n) {
    Type type[MAX_RESULTS] = {{0}};
    RefTensor in[MAX_INPUTS], *out = r->value[n->id].result;
    char why[256] = "";
    if (!op_rules[n->op].infer(n, type, why)) PANIC(n, "badly typed: %s", why);
    for (int k = 0; k < op_info[n->op].nout; k++)
        if (!tensor_new(r, type[k], &out[k])) return false;
    if (n->op == OP_VAR || n->op == OP_INPUT) return bind_leaf(r, n, out);
    collect_inputs(r, n, in);
    op_rules[n->op].ref(n, &r->context, in, out);
    for (int i = 0; i < n->nin; i++) release(r, n->in[i]);
    return true;
}

/* Marks what the roots need and counts the users of each value. */
static void mark_live(Run *r, Node *const root[], int n) {
    for (int i = 0; i < n; i++) {
        r->value[root[i]->id].live = true;
        r->value[root[i]->id].users++;
    }
    for (int32_t id = r->g->n - 1; id >= 0; id--) {
        const Node *node = r->g->node[id];
        for (int i = 0; i < node->nin && r->value[id].live; i++) {
            r->value[node->in[i]->id].live = true;
            r->value[node->in[i]->id].users++;
        }
    }
}

/* Hands over a root's value: the last root that shares a node takes it, earlier ones copy. */
static bool take_root(Run *r, const Node *n, RefTensor *out) {
    Value *v = &r->value[n->id];
    *out = v->result[0];
    if (--v->users == 0) {
        v->result[0].data = NULL;
        return true;
    }
    out->data = peft_alloc(out->count ? (size_t)out->count : 1, sizeof *out->data, r->err);
    if (out->data) ref_copy(&v->result[0], out);
    return out->data != NULL;
}

bool interp_roots(const Graph *g, const InterpEnv *env, Node *const root[], int n, RefTensor out[],
                  PeftError *err) {
    Run r = {g, env, {env->sym, env->seed, env->step, env->dropout}, NULL, err};
    if (n) memset(out, 0, (size_t)n * sizeof *out);
    r.value = peft_zalloc((size_t)g->n + 1, sizeof *r.value, err);
    if (!r.value) return false;
    mark_live(&r, root, n);
    bool ok = true;
    for (int32_t id = 0; id < g->n && ok; id++)
        if (r.value[id].live) ok = eval_node(&r, g->node[id]);
    for (int i = 0; i < n && ok; i++) ok = take_root(&r, root[i], &out[i]);
    for (int32_t id = 0; id < g->n; id++) interp_free(r.value[id].result, MAX_RESULTS);
    free(r.value);
    if (!ok) interp_free(out, n);
    return ok;
}

bool interp_function(const Graph *g, PeftFn fn, const InterpEnv *env, RefTensor out[],
                     RefTensor update[], PeftError *err) {
    const Function *f = &g->fn[fn];
    size_t n = (size_t)f->nout + (size_t)f->nupdate;
    Node **root = peft_alloc(n + 1, sizeof(Node *), err);
    RefTensor *value = peft_zalloc(n + 1, sizeof *value, err);
    bool ok = root && value;
    if (ok) {
        for (int i = 0; i < f->nout; i++) root[i] = f->out[i].node;
        for (int i = 0; i < f->nupdate; i++) root[f->nout + i] = f->update[i].value;
        ok = interp_roots(g, env, root, (int)n, value, err);
    }
    for (int i = 0; i < f->nout; i++) out[i] = ok ? value[i] : (RefTensor){0};
    for (int i = 0; i < f->nupdate; i++) update[i] = ok ? value[f->nout + i] : (RefTensor){0};
    free(root);
    free(value);
    return ok;
}
