/* Builder of kernel bodies. Invariants: operands come before their users; no two instructions are
 * equal; a row reduction is taken of an element value only; every value has the lowest level that
 * its operands allow. */
#include "kernel.h"

#include <string.h>

KBody *kb_new(Graph *g, int64_t rows, int64_t cols) {
    if (cols < 1)
        PANIC(NULL, "a kernel needs a constant number of columns, not %lld", (long long)cols);
    KBody *b = graph_alloc(g, sizeof *b);
    b->g = g;
    b->rows = rows;
    b->cols = cols;
    return b;
}

static bool same(const KInstr *x, const KInstr *y) {
    return x->op == y->op && x->a == y->a && x->b == y->b && x->c == y->c &&
           memcmp(&x->number, &y->number, sizeof x->number) == 0 && /* tells 0 from -0 */
           x->site == y->site && x->tensor == y->tensor;
}

/* The value of an instruction: an equal earlier one, or a new one. */
static KVal add(KBody *b, KInstr i) {
    for (KVal v = 0; v < b->n; v++)
        if (same(&b->instr[v], &i)) return v;
    if (b->n == b->cap) {
        int32_t cap = b->cap ? b->cap * 2 : 16;
        KInstr *grown = graph_alloc(b->g, (size_t)cap * sizeof *grown);
        if (b->n) memcpy(grown, b->instr, (size_t)b->n * sizeof *grown);
        b->instr = grown;
        b->cap = cap;
    }
    b->instr[b->n] = i;
    return b->n++;
}

/* An operand: in range, integer exactly where an integer belongs. */
static const KInstr *operand(const KBody *b, KVal v, bool integer) {
    if (v < 0 || v >= b->n) PANIC(NULL, "kernel value %d of %d", v, b->n);
    if (b->instr[v].integer != integer)
        PANIC(b->instr[v].tensor, "kernel value %d is %s integer", v, integer ? "not an" : "an");
    return &b->instr[v];
}

static KLevel higher(KLevel x, KLevel y) {
    return x > y ? x : y;
}

KVal kb_const(KBody *b, double number) {
    return add(
        b, (KInstr){
               .op = K_CONST, .level = LEVEL_UNIFORM, .a = -1, .b = -1, .c = -1, .number = number});
}

KVal kb_column(KBody *b) {
    return add(
        b, (KInstr){
               .op = K_COLUMN, .integer = true, .level = LEVEL_ELEMENT, .a = -1, .b = -1, .c = -1});
}

KVal kb_load(KBody *b, const Node *tensor) {
    int64_t rows, cols;
    if (tensor->op == OP_CONST) return kb_const(b, tensor->attr.constant.value);
    type_space(tensor->type, &rows, &cols);
    if ((rows != 1 && rows != b->rows) || (cols != 1 && cols != b->cols))
        PANIC(tensor, "does not fit a kernel of %lld x %lld", (long long)b->rows,
              (long long)b->cols);
    KLevel level = cols != 1 ? LEVEL_ELEMENT : rows != 1 ? LEVEL_ROW : LEVEL_UNIFORM;
    return add(b, (KInstr){.op = K_LOAD,
                           .integer = tensor->type.dt == DT_I32,
                           .level = level,
                           .a = -1,
                           .b = -1,
                           .c = -1,
                           .tensor = tensor});
}

/* A load at an integer row value: gather and scatter. */
static KVal indexed(KBody *b, KOp op, const Node *tensor, KVal row) {
    KLevel level = operand(b, row, true)->level;
    if (level == LEVEL_ELEMENT) PANIC(tensor, "indexed by a value that varies along the row");
    bool wide = tensor->type.rank == 2 && tensor->type.dim[1] != 1;
    if (wide && tensor->type.dim[1] != b->cols)
        PANIC(tensor, "does not fit a kernel of %lld columns", (long long)b->cols);
    return add(b, (KInstr){.op = op,
                           .integer = tensor->type.dt == DT_I32,
                           .level = wide ? LEVEL_ELEMENT : level,
                           .a = row,
                           .b = -1,
                           .c = -1,
                           .tensor = tensor});
}

KVal kb_gather(KBody *b, const Node *table, KVal row) {
    return indexed(b, K_GATHER, table, row);
}

KVal kb_scatter(KBody *b, const Node *tensor, KVal slot) {
    return indexed(b, K_SCATTER, tensor, slot);
}

KVal kb_unary(KBody *b, KOp op, KVal x) {
    KLevel level = operand(b, x, false)->level;
    return add(b, (KInstr){.op = op, .level = level, .a = x, .b = -1, .c = -1});
}

KVal kb_bias_correction(KBody *b, double beta, KVal step) {
    KLevel level = operand(b, step, false)->level;
    return add(
        b,
        (KInstr){
            .op = K_BIAS_CORRECTION, .level = level, .a = step, .b = -1, .c = -1, .number = beta});
}

static bool commutes(KOp op) {
    return op == K_ADD || op == K_MUL || op == K_MIN || op == K_MAX;
}

KVal kb_binary(KBody *b, KOp op, KVal x, KVal y) {
    KLevel level = higher(operand(b, x, false)->level, operand(b, y, false)->level);
    if (commutes(op) && x > y) { /* one order: x + y and y + x are the same value */
        KVal t = x;
        x = y;
        y = t;
    }
    return add(b, (KInstr){.op = op, .level = level, .a = x, .b = y, .c = -1});
}

KVal kb_eq_select(KBody *b, KVal x, KVal y, KVal then) {
    KLevel level = higher(operand(b, x, true)->level, operand(b, y, true)->level);
    level = higher(level, operand(b, then, false)->level);
    return add(b, (KInstr){.op = K_EQ_SELECT, .level = level, .a = x, .b = y, .c = then});
}

KVal kb_keep(KBody *b, const Node *rng, double p, int32_t site, KVal sample, KVal position) {
    KLevel level = higher(operand(b, sample, true)->level, operand(b, position, true)->level);
    if (level == LEVEL_ELEMENT)
        PANIC(rng, "dropout is counted by a value that varies along the row");
    return add(b, (KInstr){.op = K_KEEP,
                           .level = LEVEL_ELEMENT,
                           .a = sample,
                           .b = position,
                           .c = -1,
                           .number = p,
                           .site = site,
                           .tensor = rng});
}

/* The sum of a value that does not vary along the row is a product, its maximum the value itself.
 */
KVal kb_row_sum(KBody *b, KVal x) {
    if (operand(b, x, false)->level != LEVEL_ELEMENT)
        return b->cols == 1 ? x : kb_binary(b, K_MUL, x, kb_const(b, (double)b->cols));
    return add(b, (KInstr){.op = K_ROW_SUM, .level = LEVEL_ROW, .a = x, .b = -1, .c = -1});
}

KVal kb_row_max(KBody *b, KVal x) {
    if (operand(b, x, false)->level != LEVEL_ELEMENT) return x;
    return add(b, (KInstr){.op = K_ROW_MAX, .level = LEVEL_ROW, .a = x, .b = -1, .c = -1});
}
