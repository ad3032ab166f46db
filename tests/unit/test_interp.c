/* The interpreter: what it refuses, what it hands over, what it binds by itself. */
#include "bench.h"

#include <math.h>

static const double two_by_three[] = {1, 2, 3, 4, 5, 6};

static void refuses(const Bench *b, Node *n, const char *message) {
    RefTensor out;
    PeftError err = {0};
    assert_false(interp_roots(b->g, &b->env, &n, 1, &out, &err));
    assert_string_equal(err.msg, message);
    assert_null(out.data);
}

static void unbound_leaves_are_named(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *x = bench_var(&b, type_f32(2, 2, 3), NULL);
    refuses(&b, nd1(b.g, OP_EXP, x), "interpreter: variable v0 is not bound to a value");
    refuses(&b, nd_input(b.g, PEFT_IN_labels), "interpreter: input labels is not bound to a value");
    b.env.var = b.env.input = NULL;
    refuses(&b, x, "interpreter: variable v0 is not bound to a value");
    graph_free(b.g);
}

static void sizes_must_match(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *x = bench_var(&b, type_f32(2, DIM_T, 3), two_by_three);
    b.var[0].count = 6;
    refuses(&b, x, "interpreter: variable v0 needs 15 values, it is bound to 6");
    b.env.sym[PEFT_SYM_T] = 2;
    assert_true(bench_value(&b, x)[5] == 6);
    b.env.sym[PEFT_SYM_T] = -1;
    refuses(&b, x, "interpreter: a tensor of type f32[T, 3] has no valid size");
    b.env.sym[PEFT_SYM_T] = INT64_MAX / 2;
    refuses(&b, x, "interpreter: a tensor of type f32[T, 3] has no valid size");
    graph_free(b.g);
}

/* An empty batch has no rows, and its sums are zero. */
static void no_rows_are_fine(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *x = bench_var(&b, type_f32(2, DIM_M, 3), two_by_three);
    b.env.sym[PEFT_SYM_M] = 0;
    b.var[0].count = 0;
    assert_true(bench_value(&b, nd_sum(b.g, nd1(b.g, OP_EXP, x), -1))[0] == 0);
    graph_free(b.g);
}

/* Roots may repeat, and one may be an operand of another. */
static void roots_are_independent(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *x = bench_var(&b, type_f32(2, 2, 3), two_by_three), *y = nd1(b.g, OP_NEG, x);
    Node *root[] = {y, x, y, nd2(b.g, OP_ADD, y, y)};
    RefTensor out[4];
    PeftError err = {0};
    assert_true(interp_roots(b.g, &b.env, root, 4, out, &err));
    assert_ptr_not_equal(out[0].data, out[2].data);
    for (int i = 0; i < 6; i++) {
        assert_true(out[0].data[i] == -two_by_three[i] && out[2].data[i] == -two_by_three[i]);
        assert_true(out[1].data[i] == two_by_three[i] && out[3].data[i] == -2 * two_by_three[i]);
    }
    interp_free(out, 4);
    assert_null(out[0].data);
    assert_true(interp_roots(b.g, &b.env, root, 0, out, &err));
    graph_free(b.g);
}

static void functions_give_outputs_and_updates(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *x = bench_var(&b, type_f32(2, 2, 3), two_by_three);
    Node *loss = nd_sum(b.g, nd1(b.g, OP_SQUARE, x), -1);
    graph_output(b.g, PEFT_FN_TRAIN, "loss", loss);
    graph_update(b.g, PEFT_FN_TRAIN, 0, nd_scale(b.g, x, 0.5));
    graph_output(b.g, PEFT_FN_EVAL, "unbound", nd_input(b.g, PEFT_IN_labels));
    RefTensor out[1], update[1];
    PeftError err = {0};
    assert_true(interp_function(b.g, PEFT_FN_TRAIN, &b.env, out, update, &err));
    assert_int_equal(out[0].rank, 0);
    assert_true(out[0].data[0] == 91);
    assert_int_equal(update[0].dim[1], 3);
    assert_true(update[0].data[5] == 3);
    assert_true(two_by_three[5] == 6); /* variables stay as they are */
    interp_free(out, 1);
    interp_free(update, 1);
    assert_false(interp_function(b.g, PEFT_FN_EVAL, &b.env, out, update, &err));
    assert_null(out[0].data);
    graph_free(b.g);
}

/* Seed halves as signed words, then step and dropout switch. */
static void rng_comes_from_the_environment(void **state) {
    (void)state;
    static const double wanted[] = {-1, 2, 41, 1};
    Bench b;
    bench_open(&b);
    b.env.seed = 0x2ffffffffu;
    b.env.step = 41;
    b.env.dropout = true;
    bench_close("rng", bench_value(&b, nd_input(b.g, PEFT_IN_rng)), wanted, 4, 0);
    graph_free(b.g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unbound_leaves_are_named),
        cmocka_unit_test(sizes_must_match),
        cmocka_unit_test(no_rows_are_fine),
        cmocka_unit_test(roots_are_independent),
        cmocka_unit_test(functions_give_outputs_and_updates),
        cmocka_unit_test(rng_comes_from_the_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
