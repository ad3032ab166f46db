/* The builder of kernel bodies: equal values are one instruction, levels are as low as they can be,
 * and misuse is caught where it happens. */
#include "bench.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../compiler/kernel.h"

typedef struct Body {
    Graph *g;
    KBody *b; /* [T, 8] */
    Node *x, *row, *column, *scalar, *ids, *table, *vector;
} Body;

static Node *var(Graph *g, Type t) {
    Var v = {.type = t};
    v.name = graph_printf(g, "v%d", g->nvar);
    return nd_var(g, graph_var(g, v));
}

static Body body_new(void) {
    Graph *g = graph_new();
    return (Body){
        .g = g,
        .b = kb_new(g, DIM_T, 8),
        .x = var(g, type_f32(2, DIM_T, 8)),
        .row = var(g, type_f32(2, DIM_T, 1)),
        .column = var(g, type_f32(1, 8, 0)),
        .scalar = var(g, type_scalar()),
        .ids = var(g, type_i32(DIM_T)),
        .table = var(g, type_f32(2, 100, 8)),
        .vector = var(g, type_f32(1, DIM_T, 0)),
    };
}

static KLevel level(const Body *t, KVal v) {
    return t->b->instr[v].level;
}

static void equal_values_are_one_instruction(void **state) {
    (void)state;
    Body t = body_new();
    KBody *b = t.b;
    KVal x = kb_load(b, t.x), r = kb_load(b, t.row);
    assert_int_equal(kb_load(b, t.x), x);
    assert_int_equal(kb_const(b, 2), kb_const(b, 2));
    assert_int_not_equal(kb_const(b, 0), kb_const(b, -0.0));
    assert_int_equal(kb_load(b, nd_const(t.g, 2)), kb_const(b, 2));
    assert_int_equal(kb_binary(b, K_ADD, x, r), kb_binary(b, K_ADD, r, x));
    assert_int_equal(kb_binary(b, K_MAX, x, r), kb_binary(b, K_MAX, r, x));
    assert_int_not_equal(kb_binary(b, K_SUB, x, r), kb_binary(b, K_SUB, r, x));
    assert_int_not_equal(kb_binary(b, K_DIV, x, r), kb_binary(b, K_DIV, r, x));
    assert_int_equal(kb_row_sum(b, x), kb_row_sum(b, x));
    assert_int_not_equal(kb_row_sum(b, x), kb_row_max(b, x));
    assert_int_equal(kb_column(b), kb_column(b));
    KVal ids = kb_load(b, t.ids);
    assert_int_equal(kb_gather(b, t.table, ids), kb_gather(b, t.table, ids));
    assert_int_not_equal(kb_gather(b, t.table, ids), kb_scatter(b, t.table, ids));
    Node *rng = nd_input(t.g, PEFT_IN_rng);
    assert_int_equal(kb_keep(b, rng, 0.1, 1, ids, ids), kb_keep(b, rng, 0.1, 1, ids, ids));
    assert_int_not_equal(kb_keep(b, rng, 0.1, 1, ids, ids), kb_keep(b, rng, 0.1, 2, ids, ids));
    assert_int_not_equal(kb_keep(b, rng, 0.1, 1, ids, ids), kb_keep(b, rng, 0.2, 1, ids, ids));
    assert_int_not_equal(kb_bias_correction(b, 0.9, kb_load(b, t.scalar)),
                         kb_bias_correction(b, 0.8, kb_load(b, t.scalar)));
    for (int i = 0; i < b->n; i++) /* operands come first */
        assert_true(b->instr[i].a < i && b->instr[i].b < i && b->instr[i].c < i);
    graph_free(t.g);
}

static void levels_are_the_lowest_possible(void **state) {
    (void)state;
    Body t = body_new();
    KBody *b = t.b;
    KVal x = kb_load(b, t.x), r = kb_load(b, t.row), c = kb_load(b, t.column);
    KVal s = kb_load(b, t.scalar), ids = kb_load(b, t.ids), one = kb_const(b, 1);
    assert_int_equal(level(&t, x), LEVEL_ELEMENT);
    assert_int_equal(level(&t, r), LEVEL_ROW);
    assert_int_equal(level(&t, c), LEVEL_ELEMENT);
    assert_int_equal(level(&t, s), LEVEL_UNIFORM);
    assert_int_equal(level(&t, one), LEVEL_UNIFORM);
    assert_int_equal(level(&t, ids), LEVEL_ROW);
    assert_int_equal(level(&t, kb_load(b, t.vector)), LEVEL_ROW);
    assert_true(b->instr[ids].integer && !b->instr[r].integer);
    assert_int_equal(level(&t, kb_binary(b, K_MUL, s, one)), LEVEL_UNIFORM);
    assert_int_equal(level(&t, kb_binary(b, K_MUL, s, r)), LEVEL_ROW);
    assert_int_equal(level(&t, kb_binary(b, K_MUL, r, c)), LEVEL_ELEMENT);
    assert_int_equal(level(&t, kb_unary(b, K_EXP, r)), LEVEL_ROW);
    assert_int_equal(level(&t, kb_row_sum(b, x)), LEVEL_ROW);
    assert_int_equal(level(&t, kb_row_max(b, x)), LEVEL_ROW);
    assert_int_equal(level(&t, kb_gather(b, t.table, ids)), LEVEL_ELEMENT);
    KVal id_of_id = kb_gather(b, t.ids, ids);
    assert_int_equal(level(&t, id_of_id), LEVEL_ROW);
    assert_true(b->instr[id_of_id].integer);
    assert_int_equal(level(&t, kb_eq_select(b, ids, id_of_id, s)), LEVEL_ROW);
    assert_int_equal(level(&t, kb_eq_select(b, kb_column(b), ids, s)), LEVEL_ELEMENT);
    Node *rng = nd_input(t.g, PEFT_IN_rng);
    assert_int_equal(level(&t, kb_keep(b, rng, 0.5, 0, ids, ids)), LEVEL_ELEMENT);
    graph_free(t.g);
}

/* The sum along a row of what does not vary along it needs no loop. */
static void reductions_of_row_values_fold(void **state) {
    (void)state;
    Body t = body_new();
    KBody *b = t.b;
    KVal r = kb_load(b, t.row);
    assert_int_equal(kb_row_max(b, r), r);
    assert_int_equal(kb_row_sum(b, r), kb_binary(b, K_MUL, r, kb_const(b, 8)));
    KBody *narrow = kb_new(t.g, DIM_T, 1);
    r = kb_load(narrow, t.row);
    assert_int_equal(kb_row_sum(narrow, r), r);

    /* an op over [T, 1] keeps its own width in a wider body */
    KVal out[MAX_RESULTS];
    Node *sum = nd_sum(t.g, t.row, 1);
    r = kb_load(b, t.row);
    op_rules[OP_SUM].lower(b, sum, &r, out);
    assert_int_equal(out[0], r);
    graph_free(t.g);
}

/* Rows of a quantised table are read from its codes. */
static void gather_reads_quantised_tables(void **state) {
    (void)state;
    Body t = body_new();
    Type nf4 = {.dt = DT_NF4, .rank = 2, .dim = {100, 8}};
    Node *table = var(t.g, nf4), *y = nd2(t.g, OP_GATHER, nd1(t.g, OP_DEQUANT, table), t.ids);
    KVal in[] = {-1, kb_load(t.b, t.ids)}, out[MAX_RESULTS];
    op_rules[OP_GATHER].lower(t.b, y, in, out);
    assert_int_equal(t.b->instr[out[0]].op, K_GATHER);
    assert_ptr_equal(t.b->instr[out[0]].tensor, table);
    graph_free(t.g);
}

/* ---- misuse: each case aborts with a message, in a process of its own ---- */

static void bad_load(Body *t) {
    kb_load(t->b, t->table);
}
static void bad_width(Body *t) {
    KBody *narrow = kb_new(t->g, DIM_T, 7);
    kb_gather(narrow, t->table, kb_load(narrow, t->ids));
}
static void bad_index(Body *t) {
    kb_gather(t->b, t->table, kb_load(t->b, t->row));
}
static void bad_row(Body *t) {
    kb_gather(t->b, t->table, kb_column(t->b));
}
static void bad_float(Body *t) {
    kb_unary(t->b, K_EXP, kb_load(t->b, t->ids));
}
static void bad_value(Body *t) {
    kb_unary(t->b, K_EXP, 0);
}
static void bad_columns(Body *t) {
    kb_new(t->g, 8, DIM_T);
}
static void bad_dropout(Body *t) {
    Attr a = attr_zero();
    Node *n = NODE(t->g, OP_DROPOUT, a, t->row, nd_input(t->g, PEFT_IN_rng), t->ids, t->ids);
    KVal ids = kb_load(t->b, t->ids), in[] = {kb_load(t->b, t->row), -1, ids, ids}, out[1];
    op_rules[OP_DROPOUT].lower(t->b, n, in, out);
}
static void bad_sum(Body *t) {
    KVal in = kb_load(t->b, t->x), out[1];
    op_rules[OP_SUM].lower(t->b, nd_sum(t->g, t->x, 0), &in, out);
}

typedef struct Misuse {
    void (*run)(Body *);
    const char *message;
} Misuse;

/* In the child: stderr into the file, then the misuse. */
static _Noreturn void misuse_child(const Misuse *m, FILE *to) {
    signal(SIGABRT, SIG_DFL); /* not cmocka's handler */
    if (dup2(fileno(to), STDERR_FILENO) < 0) _exit(2);
    Body t = body_new();
    m->run(&t);
    _exit(0);
}

static void misuse_aborts(void **state) {
    (void)state;
    static const Misuse list[] = {
        {bad_load, "does not fit a kernel of -1 x 8"},
        {bad_width, "does not fit a kernel of 7 columns"},
        {bad_index, "is not an integer"},
        {bad_row, "indexed by a value that varies along the row"},
        {bad_float, "is an integer"},
        {bad_value, "kernel value 0 of 0"},
        {bad_columns, "a constant number of columns, not -1"},
        {bad_dropout, "needs a body of its own width, not 8"},
        {bad_sum, "only a sum over columns has scalar code"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        FILE *said = tmpfile();
        assert_non_null(said);
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) misuse_child(&list[i], said);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        char text[1024] = "";
        rewind(said);
        text[fread(text, 1, sizeof text - 1, said)] = '\0';
        fclose(said);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(text, list[i].message))
            fail_msg("wanted '%s', found '%s'", list[i].message, text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_values_are_one_instruction),
        cmocka_unit_test(levels_are_the_lowest_possible),
        cmocka_unit_test(reductions_of_row_values_fold),
        cmocka_unit_test(gather_reads_quantised_tables),
        cmocka_unit_test(misuse_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
