/* Type inference of every op family on what it must refuse: the message says what is wrong. */
#include "bench.h"

#define N(array) ((int)(sizeof(array) / sizeof *(array)))

typedef struct BadNode {
    OpCode op;
    int nin;
    Type in[3];
    const char *why;
} BadNode;

#define F2(r, c)                                 \
    {                                            \
        .dt = DT_F32, .rank = 2, .dim = { r, c } \
    }
#define F1(c)                                 \
    {                                         \
        .dt = DT_F32, .rank = 1, .dim = { c } \
    }
#define I1(n)                                 \
    {                                         \
        .dt = DT_I32, .rank = 1, .dim = { n } \
    }
#define F0 \
    { .dt = DT_F32 }

static void type_errors_say_why(void **state) {
    (void)state;
    static const BadNode list[] = {
        {OP_MATMUL, 2, {F2(DIM_T, 768), F2(3072, 768)}, "inner dimensions differ, 768 and 3072"},
        {OP_MATMUL, 2, {F1(3), F2(3, 5)}, "the left operand must be an f32 matrix, found f32[3]"},
        {OP_TRANSPOSE, 1, {F2(DIM_T, 3)}, "only rows may be symbolic, found f32[3, T]"},
        {OP_GELU, 1, {I1(DIM_T)}, "the operand must be f32, found i32[T]"},
        {OP_ADD, 2, {F2(5, 3), F1(4)}, "shapes f32[5, 3] and f32[4] do not broadcast"},
        {OP_ADD,
         2,
         {F2(DIM_T, 3), F2(DIM_S, 3)},
         "shapes f32[T, 3] and f32[S, 3] do not broadcast"},
        {OP_MUL, 2, {F0, I1(4)}, "the right operand must be f32, found i32[4]"},
        {OP_LAYER_NORM, 3, {F2(DIM_T, 8), F1(4), F1(8)}, "gamma must be f32[8], found f32[4]"},
        {OP_LAYER_NORM, 3, {F2(DIM_T, 8), F1(8), F2(1, 8)}, "beta must be f32[8], found f32[1, 8]"},
        {OP_SOFTMAX, 1, {F1(4)}, "softmax's operand must be an f32 matrix, found f32[4]"},
        {OP_CROSS_ENTROPY,
         2,
         {F2(DIM_S, 1), I1(DIM_S)},
         "cross entropy needs two classes or more, found 1"},
        {OP_CROSS_ENTROPY, 2, {F2(DIM_S, 4), I1(DIM_T)}, "the labels must be i32[S], found i32[T]"},
        {OP_GATHER,
         2,
         {F1(4), I1(2)},
         "the table must be an f32 matrix or an i32 vector, found f32[4]"},
        {OP_GATHER, 2, {F2(4, 4), F1(2)}, "the index must be an i32 vector, found f32[2]"},
        {OP_SCATTER, 2, {F2(4, 4), F2(2, 1)}, "the slots must be an i32 vector, found f32[2, 1]"},
        {OP_DEQUANT, 1, {F2(4, 4)}, "only an NF4 parameter is dequantised, found f32[4, 4]"},
        {OP_DETACH, 1, {I1(4)}, "detach's operand must be f32, found i32[4]"},
        {OP_RESHAPE, 1, {F2(4, 4)}, "f32[4, 4] and f32 do not have the same elements"},
        {OP_BROADCAST, 1, {F2(4, 4)}, "f32[4, 4] does not broadcast to f32"},
        {OP_SUM,
         1,
         {F1(4)},
         "the operand of a sum over rows or columns must be an f32 matrix, "
         "found f32[4]"},
        {OP_INDEX, 1, {I1(4)}, "a dimension must be from 1 to 2147483647, found 0"},
        {OP_SEGMENT_SUM, 3, {F2(4, 2), I1(4), I1(4)}, "start must be i32[5], found i32[4]"},
        {OP_SEGMENT_SUM,
         3,
         {F2(DIM_T, 2), I1(DIM_T), I1(DIM_T)},
         "start must be i32[T+1], found i32[T]"},
        {OP_BIAS_CORRECTION, 1, {F1(4)}, "the step must be f32, found f32[4]"},
    };
    for (int i = 0; i < N(list); i++) {
        Graph *g = graph_new();
        Node *in[3];
        for (int k = 0; k < list[i].nin; k++)
            in[k] = nd_var(g, graph_var(g, (Var){.name = "x", .type = list[i].in[k]}));
        char why[256] = "";
        Node *n = graph_try(g, list[i].op, attr_zero(), in, list[i].nin, SPAN_NONE, why);
        if (n) fail_msg("%s was accepted", op_info[list[i].op].name);
        assert_string_equal(why, list[i].why);
        graph_free(g);
    }
}

static Node *try1(Graph *g, OpCode op, Attr a, Node *x, char why[256]) {
    return graph_try(g, op, a, &x, x ? 1 : 0, SPAN_NONE, why);
}

static void attribute_errors_say_why(void **state) {
    (void)state;
    char why[256];
    Graph *g = graph_new();
    Node *x = nd_var(g, graph_var(g, (Var){.name = "x", .type = type_f32(2, DIM_T, 8)}));
    Node *i = nd_input(g, PEFT_IN_tokens);
    Attr a = attr_zero();
    a.sum.axis = 2;
    assert_null(try1(g, OP_SUM, a, x, why));
    assert_string_equal(why, "a matrix has no axis 2");

    a = attr_zero();
    a.proj.k = 3;
    Attr rows = attr_zero();
    rows.index.rows = 10;
    assert_null(try1(g, OP_PROJ, a, NODE(g, OP_INDEX, rows, i), why));
    assert_string_equal(why, "index has 3 results, there is no result 3");

    a = attr_zero();
    a.matmul.trans_b = 1;
    assert_null(graph_try(g, OP_MATMUL, a, (Node *[]){x, x}, 2, SPAN_NONE, why));
    assert_string_equal(why, "only rows may be symbolic, found f32[T, T]");

    a = attr_to(type_f32(2, 8, DIM_T));
    assert_null(try1(g, OP_RESHAPE, a, x, why));
    assert_string_equal(why, "only rows may be symbolic, found f32[8, T]");

    a = attr_zero();
    a.leaf.type = type_f32(2, (int64_t)1 << 40, 3);
    assert_null(try1(g, OP_VAR, a, NULL, why));
    assert_string_equal(why, "a dimension must be from 1 to 2147483647, found 1099511627776");
    a.leaf.type = type_f32(2, -9, 3);
    assert_null(try1(g, OP_VAR, a, NULL, why));
    assert_string_equal(why, "-9 is not a dimension symbol");
    a.leaf.type = (Type){.dt = DT_F32, .rank = -1};
    assert_null(try1(g, OP_VAR, a, NULL, why));
    assert_string_equal(why, "a tensor has 0 to 2 dimensions, found -1");
    a.leaf.type = (Type){.dt = 9};
    assert_null(try1(g, OP_VAR, a, NULL, why));
    assert_string_equal(why, "there is no data type number 9");

    a = attr_zero();
    a.dropout.p = 1;
    Node *in[] = {x, nd_input(g, PEFT_IN_rng), nd_input(g, PEFT_IN_token_sample),
                  nd_input(g, PEFT_IN_positions)};
    assert_null(graph_try(g, OP_DROPOUT, a, in, 4, SPAN_NONE, why));
    assert_string_equal(why, "the dropout probability must be at least 0 and less than 1, found 1");
    graph_free(g);
}

static void attention_errors_say_why(void **state) {
    (void)state;
    static const struct {
        int64_t q_rows, q_cols;
        int heads;
        const char *why;
    } list[] = {
        {DIM_T, 8, 3, "8 columns do not split into 3 heads"},
        {DIM_T, 8, 0, "8 columns do not split into 0 heads"},
        {DIM_T, 6, 2, "q has 6 columns, k has 8"},
        {DIM_M, 8, 2, "q needs a row for each of T tokens or S sequences"},
        {DIM_S, 8, 2, NULL},
    };
    for (int i = 0; i < N(list); i++) {
        char why[256];
        Graph *g = graph_new();
        Type tq = type_f32(2, list[i].q_rows, list[i].q_cols);
        Node *q = nd_var(g, graph_var(g, (Var){.name = "q", .type = tq}));
        Node *k = nd_var(g, graph_var(g, (Var){.name = "k", .type = type_f32(2, DIM_T, 8)}));
        Node *in[] = {q,
                      k,
                      k,
                      nd_input(g, PEFT_IN_offsets),
                      nd_input(g, PEFT_IN_rng),
                      nd_input(g, PEFT_IN_seq_sample)};
        Attr a = attr_zero();
        a.attention.heads = list[i].heads;
        a.attention.scale = 1;
        Node *n = graph_try(g, OP_ATTENTION, a, in, 6, SPAN_NONE, why);
        assert_true((n == NULL) == (list[i].why != NULL));
        if (list[i].why) assert_string_equal(why, list[i].why);
        graph_free(g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(type_errors_say_why),
        cmocka_unit_test(attribute_errors_say_why),
        cmocka_unit_test(attention_errors_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
