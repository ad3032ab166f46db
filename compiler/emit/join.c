/* Which epilogues a GPU leaves to the kernel that follows. A library multiplies matrices there, so
 * an epilogue is a launch of its own, mostly followed by another one over the rows of just that
 * result, such as a layer norm: one kernel does both. Invariant: from the product to the kernel
 * that computes its epilogue no step reads what the epilogue writes, or writes what it reads. */
#include "internal.h"

#include <string.h>

static int32_t out_index(const Kernel *k, const Node *n) {
    for (int i = 0; i < k->nout; i++)
        if (k->out[i] == n) return i;
    return -1;
}

static bool reads_result(const Kernel *k, const Kernel *of) {
    for (int i = 0; i < k->nin; i++)
        if (out_index(of, k->in[i]) >= 0) return true;
    return false;
}

bool body_reads(const Kernel *k, const Node *buffer) {
    for (int i = 0; k->body && i < k->body->n; i++)
        if (k->body->instr[i].tensor && buffer_of(k->body->instr[i].tensor) == buffer) return true;
    return false;
}

bool body_reads_in_place(const Kernel *k, const Node *buffer) {
    for (int i = 0; i < k->body->n; i++) {
        const KInstr *in = &k->body->instr[i];
        if (!in->tensor || buffer_of(in->tensor) != buffer) continue;
        if (in->op != K_LOAD || !type_same_shape(in->tensor->type, buffer->type)) return false;
        Access access = access_of(k->body, buffer->type);
        if (access == ACCESS_COLUMN || (access == ACCESS_SCALAR && k->body->rows != 1))
            return false;
    }
    return true;
}

static PeftLaunch launch_of(Graph *g, const Kernel *k) {
    return cuda_launch(compact_kernel(g, k));
}

/* An epilogue that is a kernel over elements, all of whose results are temporaries over them, and
 * that reads none of the product's operands: those are not kept for it. */
static bool can_wait(Graph *g, const Kernel *k, const Storage *storage) {
    PeftGemm product;
    if (k->kind != PEFT_KERNEL_GEMM || !k->body) return false;
    Args args = kernel_args(g, k);
    args.storage = graph_alloc(g, (size_t)args.n + 1);
    for (int i = 0; i < args.n; i++) args.storage[i] = storage_of(storage, args.node[i]);
    if (plain_product(k, &args, &product)) return false;
    for (int i = 0; i < k->nout; i++)
        if (k->out[i]->op == OP_VAR || !stored_in_loop(k, i) ||
            access_of(k->body, k->out[i]->type) != ACCESS_ELEMENT)
            return false;
    for (int i = 0; i < k->anchor->nin; i++)
        if (body_reads(k, args.node[i])) return false;
    return launch_of(g, k) == PEFT_LAUNCH_ELEMENTS;
}

/* A kernel over the same rows, a block of threads for each, that reads the results where the same
 * thread has computed them. */
static bool takes_rows(Graph *g, const Kernel *k, const Kernel *product) {
    if (k->kind != PEFT_KERNEL_MAP || launch_of(g, k) != PEFT_LAUNCH_ROWS) return false;
    if (k->body->rows != product->body->rows || k->body->cols != product->body->cols) return false;
    for (int i = 0; i < k->body->n; i++) {
        const KInstr *in = &k->body->instr[i];
        if (!in->tensor || out_index(product, buffer_of(in->tensor)) < 0) continue;
        if (in->op != K_LOAD || access_of(k->body, in->tensor->type) != ACCESS_ELEMENT)
            return false;
    }
    return true;
}

static bool overwrites_operand(const Kernel *k, const Kernel *product) {
    for (int i = 0; i < k->nout; i++)
        for (int j = 0; k->out[i]->op == OP_VAR && j < product->nin; j++)
            if (product->in[j]->op == OP_VAR &&
                product->in[j]->attr.leaf.index == k->out[i]->attr.leaf.index)
                return true;
    return false;
}

/* The first step that reads a result of step i, when that can compute its epilogue; or -1. */
static int32_t find_rows(Graph *g, const Schedule *s, int32_t i) {
    const Kernel *product = s->kernel[i];
    for (int32_t j = i + 1; j < s->n; j++) {
        if (overwrites_operand(s->kernel[j], product)) return -1;
        if (reads_result(s->kernel[j], product))
            return takes_rows(g, s->kernel[j], product) ? j : -1;
    }
    return -1;
}

Joins find_joins(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, bool skip) {
    size_t bytes = (size_t)s->n * sizeof(int32_t);
    Joins j = {.product = graph_alloc(g, bytes + 1), .rows = graph_alloc(g, bytes + 1)};
    const NodePass *pass = node_passes(g, fn);
    memset(j.product, -1, bytes);
    memset(j.rows, -1, bytes);
    for (int32_t i = s->n - 1; i >= 0 && !skip; i--) { /* of several the last: it waits shortest */
        if (!can_wait(g, s->kernel[i], storage)) continue;
        int32_t to = find_rows(g, s, i);
        if (to < 0 || j.product[to] >= 0) continue;
        if (pass[s->kernel[to]->out[0]->id].pass != pass[s->kernel[i]->out[0]->id].pass) continue;
        j.product[to] = i;
        j.rows[i] = to;
    }
    return j;
}

CodeJoin *describe_join(Graph *g, PeftFn fn, const Schedule *s, int32_t product, int32_t rows) {
    const Kernel *first = s->kernel[product], *then = s->kernel[rows];
    Args args = kernel_args(g, then);
    int32_t *result = graph_alloc(g, (size_t)args.n * sizeof *result + 1);
    bool *stored = graph_alloc(g, (size_t)first->nout + 1);
    for (int i = 0; i < args.n; i++)
        result[i] = i < args.nread ? out_index(first, args.node[i]) : -1;
    for (int i = 0; i < first->nout; i++) {
        stored[i] = is_output(&g->fn[fn], first->out[i]);
        for (int j = rows + 1; j < s->n; j++)
            for (int k = 0; k < s->kernel[j]->nin; k++)
                stored[i] |= s->kernel[j]->in[k] == first->out[i];
    }
    CodeJoin *join = graph_alloc(g, sizeof *join);
    *join = (CodeJoin){.result = result, .stored = stored};
    return join;
}
