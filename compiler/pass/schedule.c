/* Orders kernels. Owns the dependence graph between them: an edge leads from the writer of a buffer
 * to its readers, and from the readers of a variable's old value to the kernel that overwrites it.
 * An update whose write-after-read edges would close a cycle, or whose kernel cannot write in
 * place, is kept in a temporary and copied at the end. Invariant: the dependence graph has no
 * cycle, so the depth-first order below ends. */
#include "schedule.h"

#include <stdlib.h>

#include "../pool.h"

typedef struct Links {
    int32_t *to;
    int32_t n, cap;
} Links;

typedef struct Item { /* a kernel in the dependence graph */
    Kernel *kernel;
    Links before, after;
    int32_t waiting; /* of `before`, not yet in the order */
    int32_t next;    /* of `before`, visited next */
    bool lazy, eager, done;
} Item;

typedef struct Scheduler {
    Graph *g;
    PeftFn fn;
    Item *item;
    int32_t n;
    int32_t *producer; /* by node id, -1: none */
    Links *reader;     /* by variable: kernels that read its old value */
    int32_t *mark;     /* by item: search that saw it last */
    int32_t search;
    int32_t *stack; /* room for every item */
    Schedule *out;
} Scheduler;

/* ---- the dependence graph ---- */

static void push(Scheduler *s, Links *l, int32_t to) {
    l->to = pool_grow(s->g->pool, l->to, (size_t)l->n, (size_t)l->n + 1, sizeof *l->to, &l->cap);
    l->to[l->n++] = to;
}

static void add_edge(Scheduler *s, int32_t from, int32_t to) {
    if (from == to) return;
    push(s, &s->item[from].after, to);
    push(s, &s->item[to].before, from);
}

static void add_reads(Scheduler *s, int32_t k) {
    const Kernel *kernel = s->item[k].kernel;
    for (int i = 0; i < kernel->nin; i++) {
        const Node *in = kernel->in[i];
        if (in->op == OP_VAR)
            push(s, &s->reader[in->attr.leaf.index], k);
        else if (s->producer[in->id] >= 0)
            add_edge(s, s->producer[in->id], k);
    }
}

static int by_key(const void *a, const void *b) {
    const Kernel *x = *(Kernel *const *)a, *y = *(Kernel *const *)b;
    int32_t i = x->node[x->nnode - 1]->id, j = y->node[y->nnode - 1]->id;
    if (i != j) return i < j ? -1 : 1;
    return x->out[0]->id < y->out[0]->id ? -1 : x->out[0]->id > y->out[0]->id;
}

static void find_dependences(Scheduler *s, Kernel *const *kernel) {
    Kernel **sorted = graph_alloc(s->g, (size_t)s->n * sizeof *sorted + 1);
    for (int32_t i = 0; i < s->n; i++) sorted[i] = kernel[i];
    qsort(sorted, (size_t)s->n, sizeof *sorted, by_key);
    for (int32_t i = 0; i < s->g->n; i++) s->producer[i] = -1;
    for (int32_t i = 0; i < s->n; i++) {
        Kernel *k = sorted[i];
        s->item[i] = (Item){.kernel = k};
        for (int j = 0; j < k->nout; j++) s->producer[k->out[j]->id] = i;
    }
    for (int32_t i = 0; i < s->n; i++) add_reads(s, i);
}

/* ---- updates ---- */

/* Does a path lead from item k to one of the readers of the variable? */
static bool reaches_reader(Scheduler *s, int32_t k, int32_t var) {
    const Links *reader = &s->reader[var];
    int32_t *stack = s->stack, depth = 0, search = ++s->search;
    stack[depth++] = k;
    s->mark[k] = search;
    while (depth) {
        int32_t at = stack[--depth];
        for (int32_t i = 0; at != k && i < reader->n; i++)
            if (reader->to[i] == at) return true;
        const Links *after = &s->item[at].after;
        for (int32_t i = 0; i < after->n; i++) {
            if (s->mark[after->to[i]] == search) continue;
            s->mark[after->to[i]] = search;
            stack[depth++] = after->to[i];
        }
    }
    return false;
}

/* A kernel may write over a variable that it reads only at the very element it computes. */
static bool reads_in_place(const Kernel *k, int32_t var) {
    for (int i = 0; k->body && i < k->body->n; i++) {
        const KInstr *in = &k->body->instr[i];
        const Node *from = in->tensor ? buffer_of(in->tensor) : NULL;
        if (!from || from->op != OP_VAR || from->attr.leaf.index != var) continue;
        int64_t rows, cols;
        type_space(in->tensor->type, &rows, &cols);
        if (in->op != K_LOAD || rows != k->body->rows || cols != k->body->cols) return false;
    }
    return true;
}

static bool reads_var(const Kernel *k, int32_t var) {
    for (int i = 0; i < k->nin; i++)
        if (k->in[i]->op == OP_VAR && k->in[i]->attr.leaf.index == var) return true;
    return false;
}

static bool writes_in_place(const Kernel *k, int out, const Node *var_node) {
    int32_t var = var_node->attr.leaf.index;
    if (k->out[out]->op == OP_VAR) return false; /* it is the update of another variable already */
    if (!space_equal(k->out[out]->type, var_node->type)) return false; /* indexed differently */
    if (!reads_var(k, var)) return true;
    if (k->kind == PEFT_KERNEL_MAP) return reads_in_place(k, var);
    if (k->kind != PEFT_KERNEL_GEMM || out == 0) return false; /* the product itself comes first */
    for (int i = 0; i < k->anchor->nin; i++) {
        const Node *in = buffer_of(k->anchor->in[i]);
        if (in->op == OP_VAR && in->attr.leaf.index == var) return false;
    }
    return reads_in_place(k, var);
}

static void add_copy(Scheduler *s, Node *value, Node *var) {
    Kernel *k = graph_alloc(s->g, sizeof *k);
    int64_t rows, cols;
    type_space(var->type, &rows, &cols);
    k->kind = PEFT_KERNEL_MAP;
    k->body = kb_new(s->g, rows, cols);
    k->in = graph_alloc(s->g, sizeof *k->in);
    k->out = graph_alloc(s->g, sizeof *k->out);
    k->out_val = graph_alloc(s->g, sizeof *k->out_val);
    k->in[k->nin++] = buffer_of(value);
    k->out[k->nout] = var;
    k->out_val[k->nout++] = kb_load(k->body, value);
    s->item[s->n] = (Item){.kernel = k};
    add_reads(s, s->n++);
}

/* Everything that reads the variable's old value comes before item k. */
static void overwrite_last(Scheduler *s, int32_t k, int32_t var) {
    for (int32_t i = 0; i < s->reader[var].n; i++) add_edge(s, s->reader[var].to[i], k);
}

/* The output of kernel k that holds the value, or -1. */
static int output_index(const Kernel *k, const Node *value) {
    for (int i = 0; i < k->nout; i++)
        if (k->out[i] == value) return i;
    return -1;
}

/* An output is read when the function has ended: a variable would show its new value. */
static void check_outputs(const Scheduler *s) {
    const Function *f = &s->g->fn[s->fn];
    for (int i = 0; i < f->nout; i++) {
        const Node *n = buffer_of(f->out[i].node);
        for (int k = 0; n->op == OP_VAR && k < f->nupdate; k++)
            if (f->update[k].var == n->attr.leaf.index)
                PANIC(n, "output %s is a variable that the function updates", f->out[i].name);
    }
}

static void place_updates(Scheduler *s, Node *const *var_node) {
    const Function *f = &s->g->fn[s->fn];
    int32_t *copy = graph_alloc(s->g, (size_t)f->nupdate * sizeof *copy + 1);
    for (int i = 0; i < f->nupdate; i++) { /* copies of leaves read variables: before any write */
        Node *value = buffer_of(f->update[i].value);
        copy[i] = -1;
        if (s->producer[value->id] >= 0) continue;
        copy[i] = s->n;
        add_copy(s, f->update[i].value, var_node[i]);
    }
    for (int i = 0; i < f->nupdate; i++) {
        Node *value = buffer_of(f->update[i].value);
        int32_t var = f->update[i].var, k = s->producer[value->id];
        int out = k >= 0 ? output_index(s->item[k].kernel, value) : -1;
        if (copy[i] < 0 && out >= 0 && writes_in_place(s->item[k].kernel, out, var_node[i]) &&
            !reaches_reader(s, k, var)) {
            s->item[k].kernel->out[out] = var_node[i];
            copy[i] = k;
        } else if (copy[i] < 0) {
            copy[i] = s->n;
            add_copy(s, f->update[i].value, var_node[i]);
        }
        if (reaches_reader(s, copy[i], var))
            PANIC(value, "updates of variables depend on each other in a circle");
        overwrite_last(s, copy[i], var);
    }
}

/* Is the variable written by the kernel that computes its new value, not by a copy? */
static bool written_in_place(const Schedule *s, int32_t var) {
    for (int i = 0; i < s->n; i++) {
        const Kernel *k = s->kernel[i];
        for (int j = 0; k->nnode && j < k->nout; j++)
            if (k->out[j]->op == OP_VAR && k->out[j]->attr.leaf.index == var) return true;
    }
    return false;
}

int32_t updated_var(const Graph *g, PeftFn fn, const Schedule *s, const Node *value) {
    const Function *f = &g->fn[fn];
    for (int i = 0; i < f->nupdate; i++)
        if (buffer_of(f->update[i].value) == value && written_in_place(s, f->update[i].var))
            return f->update[i].var;
    return -1;
}

/* ---- order ---- */

static bool is_scalar(const Node *n) {
    return n->op == OP_VAR || type_count(n->type) == 1;
}

/* Reads no temporary, or consists of values put off to a later pass: runs right before its reader.
 */
static bool is_lazy(const Item *it, const NodePass *pass) {
    const Kernel *k = it->kernel;
    bool leaves = true, deferred = k->nnode > 0;
    for (int i = 0; i < k->nin; i++) leaves &= op_info[k->in[i]->op].class == CLASS_LEAF;
    for (int i = 0; i < k->nnode; i++)
        deferred &= k->node[i]->op == OP_CONST || pass[k->node[i]->id].deferred;
    return (leaves || deferred) && it->after.n > 0;
}

/* Frees what it reads and needs next to nothing: runs as soon as it can. */
static bool is_eager(const Item *it) {
    const Kernel *k = it->kernel;
    bool small = true, reads = false;
    for (int i = 0; i < k->nout; i++) small &= is_scalar(k->out[i]);
    for (int i = 0; i < k->nin; i++) reads |= op_info[k->in[i]->op].class != CLASS_LEAF;
    return small && reads;
}

static void emit(Scheduler *s, int32_t k) {
    Item *it = &s->item[k];
    it->done = true;
    s->out->kernel[s->out->n++] = it->kernel;
    for (int32_t i = 0; i < it->after.n; i++) {
        Item *next = &s->item[it->after.to[i]];
        if (--next->waiting == 0 && next->eager) emit(s, it->after.to[i]);
    }
}

/* Emits item k after everything it needs. */
static void visit(Scheduler *s, int32_t k) {
    int32_t *stack = s->stack, depth = 0;
    stack[depth++] = k;
    while (depth) {
        Item *it = &s->item[stack[depth - 1]];
        if (it->done) {
            depth--;
        } else if (it->next < it->before.n) {
            int32_t need = it->before.to[it->next++];
            if (!s->item[need].done) stack[depth++] = need;
        } else {
            emit(s, stack[--depth]);
        }
    }
}

static void order(Scheduler *s, const NodePass *pass) {
    for (int32_t i = 0; i < s->n; i++) {
        Item *it = &s->item[i];
        it->waiting = it->before.n;
        it->lazy = is_lazy(it, pass);
        it->eager = is_eager(it);
    }
    for (int32_t i = 0; i < s->n; i++)
        if (!s->item[i].lazy && !s->item[i].done) visit(s, i);
    for (int32_t i = 0; i < s->n; i++)
        if (!s->item[i].done) visit(s, i);
}

Schedule *schedule_function(Graph *g, PeftFn fn, Kernel *const *kernel, int32_t n) {
    const Function *f = &g->fn[fn];
    Node **var_node = graph_alloc(g, (size_t)f->nupdate * sizeof *var_node + 1);
    for (int i = 0; i < f->nupdate; i++) var_node[i] = nd_var(g, f->update[i].var);
    size_t room = (size_t)n + (size_t)f->nupdate + 1; /* each update may add a copy */
    Scheduler s = {.g = g, .fn = fn, .n = n};
    s.item = graph_alloc(g, room * sizeof *s.item);
    s.producer = graph_alloc(g, (size_t)g->n * sizeof *s.producer + 1);
    s.reader = graph_alloc(g, (size_t)g->nvar * sizeof *s.reader + 1);
    s.mark = graph_alloc(g, room * sizeof *s.mark);
    s.stack = graph_alloc(g, room * sizeof *s.stack);
    s.out = graph_alloc(g, sizeof *s.out);
    s.out->kernel = graph_alloc(g, room * sizeof *s.out->kernel);
    find_dependences(&s, kernel);
    check_outputs(&s);
    place_updates(&s, var_node);
    order(&s, node_passes(g, fn));
    return s.out;
}
