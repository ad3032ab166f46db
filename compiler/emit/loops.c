/* Lays a body out in loops over the columns of a row. Invariant: every value that a loop reads is
 * computed in it, kept in a scratch row by an earlier one, or known before it begins. */
#include "internal.h"

enum {
    CHEAP_COST = 4, /* loads and arithmetic that a later loop rather repeats */
    EXPENSIVE = 1 << 20,
    WIDEST_KEPT = 16 * 1024, /* columns of a scratch row; wider rows are computed again */
};

bool is_reduction(const KInstr *in) {
    return in->op == K_ROW_SUM || in->op == K_ROW_MAX;
}

bool stored_in_loop(const Kernel *k, int out) {
    if (k->out_val[out] < 0) return false;
    int64_t rows, cols;
    type_space(k->out[out]->type, &rows, &cols);
    return cols != 1 || k->body->instr[k->out_val[out]].level == LEVEL_ELEMENT;
}

bool is_sum_kernel(const Kernel *k) {
    return k->kind == PEFT_KERNEL_COLUMN_SUM || k->kind == PEFT_KERNEL_FULL_SUM;
}

static int32_t operand_phase(const Loops *l, KVal v) {
    return v < 0 ? 0 : l->phase[v];
}

static int32_t later(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static void find_phases(const KBody *b, Loops *l) {
    for (int i = 0; i < b->n; i++) {
        const KInstr *in = &b->instr[i];
        int32_t p =
            later(operand_phase(l, in->a), later(operand_phase(l, in->b), operand_phase(l, in->c)));
        l->phase[i] = is_reduction(in) ? p + 1 : p;
        if (is_reduction(in) && l->n < p + 1) l->n = p + 1;
    }
}

static int own_cost(const KInstr *in) {
    if (in->tensor && in->op != K_KEEP && in->tensor->type.dt != DT_F32) return EXPENSIVE; /* NF4 */
    switch (in->op) {
    case K_CONST:
    case K_COLUMN: return 0;
    case K_EXP:
    case K_LOG:
    case K_TANH:
    case K_SIGMOID:
    case K_GELU:
    case K_GELU_TANH:
    case K_SILU:
    case K_GELU_GRAD:
    case K_GELU_TANH_GRAD:
    case K_SILU_GRAD:
    case K_KEEP: return EXPENSIVE;
    default: return 1;
    }
}

/* Operations to compute an element value from scratch: shared operands count each time. */
static int cost(const KBody *b, KVal v) {
    if (v < 0 || b->instr[v].level != LEVEL_ELEMENT) return 0;
    const KInstr *in = &b->instr[v];
    int sum = own_cost(in);
    const KVal operand[3] = {in->a, in->b, in->c};
    for (int i = 0; i < 3 && sum <= CHEAP_COST; i++) sum += cost(b, operand[i]);
    return sum;
}

/* A row of a float buffer needs no scratch row to be reduced. */
bool reduces_buffer(const KBody *b, const KInstr *in) {
    const KInstr *of = &b->instr[in->a];
    return of->op == K_LOAD && of->tensor->type.dt == DT_F32;
}

/* Counts one reading of v in loop `at`, and what computing it there reads. The first loop that
 * reads a value computes it; a later one takes it from its scratch row when that is cheaper. */
static void use(const KBody *b, Loops *l, int at, KVal v) {
    if (v < 0 || b->instr[v].level != LEVEL_ELEMENT) return;
    const KInstr *in = &b->instr[v];
    if (l->phase[v] < 0) l->phase[v] = at;
    if (l->phase[v] < at && !in->integer && b->cols <= WIDEST_KEPT && cost(b, v) > CHEAP_COST)
        l->kept[v] = true;
    if (l->uses[v]++ || (l->kept[v] && l->phase[v] < at)) return;
    use(b, l, at, in->a);
    use(b, l, at, in->b);
    use(b, l, at, in->c);
}

void loop_uses(const Kernel *k, Loops *l, int at) {
    const KBody *b = k->body;
    for (int i = 0; i < b->n; i++) l->uses[i] = 0;
    for (int i = 0; i < b->n; i++)
        if (is_reduction(&b->instr[i]) && l->phase[i] == at + 1 && !reduces_buffer(b, &b->instr[i]))
            use(b, l, at, b->instr[i].a);
    for (int i = 0; i < k->nout && at == l->n - 1; i++)
        if (stored_in_loop(k, i) || is_sum_kernel(k)) use(b, l, at, k->out_val[i]);
    for (int i = 0; i < b->n; i++) /* its scratch row reads it once more */
        l->uses[i] += l->kept[i] && l->phase[i] == at;
}

Loops find_loops(Graph *g, const Kernel *k) {
    size_t n = (size_t)k->body->n + 1;
    Loops l = {.phase = graph_alloc(g, n * sizeof *l.phase),
               .kept = graph_alloc(g, n * sizeof *l.kept),
               .uses = graph_alloc(g, n * sizeof *l.uses)};
    find_phases(k->body, &l);
    for (int i = 0; i < k->nout;
         i++) /* a loop after the last reduction, if anything is stored there */
        if ((stored_in_loop(k, i) || is_sum_kernel(k)) && l.n < l.phase[k->out_val[i]] + 1)
            l.n = l.phase[k->out_val[i]] + 1;
    for (int i = 0; i < k->body->n; i++) /* from the first loop that could to the first that does */
        if (k->body->instr[i].level == LEVEL_ELEMENT) l.phase[i] = -1;
    for (int at = 0; at < l.n; at++) loop_uses(k, &l, at);
    return l;
}
