/* How the buffers of a function lie in memory. The graph knows values; whether a matrix is stored
 * in fp32 or in the type that a device multiplies in is decided here, once, for the tables and the
 * CUDA printer. Invariant: one buffer has one storage, whoever reads it; both operands of a product
 * are DT_WORK, DT_MASTER or NF4, but in programs compiled without passes, where what a function
 * gives back may be multiplied too: those are marked, and refused where work values are not floats.
 *
 *   DT_WORK    matrices: activations, gradients, frozen weights; frozen biases, with which
 *              libraries end a product
 *   DT_MASTER  trained weights and biases, exact however the device multiplies
 *   DT_F32     vectors, scalars, statistics, optimizer state, narrow results such as logits, and
 *              what a function gives back */
#include "internal.h"

enum { NARROW = 16 }; /* matrices with fewer columns are not worth rounding */

static bool is_matrix(Type t) {
    return t.rank == 2 && t.dt == DT_F32;
}

/* Vectors that a product's epilogue reads by column: biases, mostly. */
static void mark_biases(const Graph *g, const Schedule *s, bool *bias) {
    for (int i = 0; i < s->n; i++) {
        const Kernel *k = s->kernel[i];
        for (int v = 0; k->kind == PEFT_KERNEL_GEMM && k->body && v < k->body->n; v++) {
            const KInstr *in = &k->body->instr[v];
            if (in->op != K_LOAD || access_of(k->body, in->tensor->type) != ACCESS_COLUMN) continue;
            const Node *n = buffer_of(in->tensor);
            if (n->op == OP_VAR && n->type.dt == DT_F32 && n->type.rank == 1 &&
                g->var[n->attr.leaf.index].kind == VAR_PARAM)
                bias[n->attr.leaf.index] = true;
        }
    }
}

Storage new_storage(Graph *g, Schedule *const sched[PEFT_FN_COUNT]) {
    bool *bias = graph_alloc(g, (size_t)g->nvar + 1);
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (sched[f]) mark_biases(g, sched[f], bias);
    return (Storage){.g = g, .bias = bias};
}

uint8_t var_storage(const Storage *s, int32_t var) {
    const Var *v = &s->g->var[var];
    if ((!is_matrix(v->type) && !s->bias[var]) || v->kind == VAR_STATE) return v->type.dt;
    return v->trainable ? DT_MASTER : DT_WORK;
}

bool is_output(const Function *f, const Node *n) {
    for (int i = 0; i < f->nout; i++)
        if (buffer_of(f->out[i].node) == n) return true;
    return false;
}

static bool is_log_sum(const Node *n) { /* attention's second result */
    return n->op == OP_PROJ && n->in[0]->op == OP_ATTENTION && n->attr.proj.k == 1;
}

/* Matrices among the operands and results of routines: products, attention, transposes, sums. */
static void mark_operands(const Schedule *s, bool *operand) {
    for (int i = 0; i < s->n; i++) {
        const Node *anchor = s->kernel[i]->anchor;
        for (int j = 0; anchor && j < anchor->nin; j++)
            operand[buffer_of(anchor->in[j])->id] = true;
        for (int j = 0; anchor && s->kernel[i]->kind != PEFT_KERNEL_GEMM && j < s->kernel[i]->nout;
             j++)
            operand[s->kernel[i]->out[j]->id] = true;
    }
}

static uint8_t temp_storage(const Function *f, const Node *n, bool operand) {
    if (!is_matrix(n->type) || is_log_sum(n)) return n->type.dt;
    if (is_output(f, n)) return DT_F32;
    return operand || n->type.dim[1] >= NARROW ? DT_WORK : DT_F32;
}

void function_storage(Storage *st, Graph *g, PeftFn fn, const Schedule *s, bool *needs_fp32) {
    bool *operand = graph_alloc(g, (size_t)g->n + 1);
    uint8_t *temp = graph_alloc(g, (size_t)g->n + 1);
    mark_operands(s, operand);
    for (int i = 0; i < s->n; i++) {
        const Kernel *k = s->kernel[i];
        for (int j = 0; j < k->nout; j++) {
            const Node *n = k->out[j];
            int32_t var = n->op == OP_VAR ? -1 : updated_var(g, fn, s, n);
            if (n->op == OP_VAR) continue;
            temp[n->id] =
                var >= 0 ? var_storage(st, var) : temp_storage(&g->fn[fn], n, operand[n->id]);
            *needs_fp32 |=
                operand[n->id] && temp[n->id] == DT_F32 && is_matrix(n->type) && !is_log_sum(n);
        }
    }
    st->temp = temp;
}

uint8_t storage_of(const Storage *s, const Node *n) {
    n = buffer_of(n);
    if (n->op == OP_VAR) return var_storage(s, n->attr.leaf.index);
    return n->op == OP_INPUT ? n->type.dt : s->temp[n->id];
}
