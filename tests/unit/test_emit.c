/* Generated C against the double-precision interpreter: every op of the table by its samples, whole
 * training steps of a small BERT in several variants, fused and not, on every instruction set;
 * results over operands; wide rows; equal bytes for any number of threads and for two emissions. */
#include "compiled.h"

#include "../../compiler/op/sample.h"
#include "../../compiler/pass.h"
#include "mini_bert.h"
#include "random_graph.h"

/* ---- a small BERT ---- */

static PeftFit fit_of(int accumulate) {
    return (PeftFit){.epochs = 1,
                     .batch = 3,
                     .accumulate = accumulate,
                     .lr = 0.01,
                     .clip_norm = 1,
                     .beta1 = 0.9,
                     .beta2 = 0.999,
                     .eps = 1e-8,
                     .warmup_steps = -1,
                     .seed = 42};
}

static Graph *mini_program(MiniKind kind, int accumulate, const char *skip) {
    Graph *g = mini_bert(kind, 0.1);
    PeftFit fit = fit_of(accumulate);
    PassOptions options = {.fit = &fit, .skip = skip};
    passes_run(g, &options);
    return g;
}

/* Moments as after some steps: with all of them zero, AdamW would turn the rounding noise of a zero
 * gradient into a step. */
static void warm_state(const Graph *g, MiniBatch *m) {
    for (int i = 0; i < g->nvar; i++) {
        const char *name = g->var[i].name;
        if (g->var[i].kind != VAR_STATE) continue;
        mini_fill(name, m->var[i].data, m->var[i].count);
        for (int64_t k = 0; k < m->var[i].count; k++) {
            double *x = &m->var[i].data[k];
            if (strcmp(name, "optimizer.step") == 0) *x = 4;
            if (strncmp(name, "optimizer.v.", 12) == 0) *x = 0.02 + *x * *x;
        }
    }
}

static Bindings bind_mini(const Graph *g, MiniBatch *m) {
    mini_batch(m, g, true);
    warm_state(g, m);
    Bindings b = {.env = m->env, .var = m->var, .input = m->input};
    store_vars(g, &b);
    return b;
}

static void check_mini(MiniKind kind, int accumulate, bool skip_fusion, const char *skip,
                       int level) {
    Graph *g = mini_program(kind, accumulate, skip);
    MiniBatch m;
    Bindings b = bind_mini(g, &m);
    Compiled c = compiled_open(g, skip_fusion, level);
    Worst w = {0};
    if (skip_fusion)
        compare_all(&w, &c, &b, 2);
    else
        compare_isas(&w, &c, &b);
    print_message("%d kernels; worst: %s, %.1f%% of the tolerance\n", c.program->nkernel, w.what,
                  100 * w.share);
    compiled_close(&c);
    bindings_close(g, &b);
    mini_batch_free(&m);
    graph_free(g);
}

static void full_fine_tuning(void **state) {
    (void)state;
    check_mini(MINI_FULL, 1, false, NULL, 3);
}

static void full_fine_tuning_unfused(void **state) {
    (void)state;
    check_mini(MINI_FULL, 1, true, NULL, 1);
}

static void accumulated_gradients(void **state) {
    (void)state;
    check_mini(MINI_FULL, 2, false, NULL, 1);
}

static void lora(void **state) {
    (void)state;
    check_mini(MINI_LORA, 1, false, NULL, 1);
}

static void qlora(void **state) {
    (void)state;
    check_mini(MINI_QLORA, 1, false, NULL, 1);
}

static void qlora_unfused(void **state) {
    (void)state;
    check_mini(MINI_QLORA, 1, true, NULL, 1);
}

static void adapters_without_passes(void **state) {
    (void)state;
    check_mini(MINI_HOULSBY, 1, false, "all", 1);
}

/* ---- the op table ---- */

static Bindings bind_samples(Graph *g) {
    Bindings b = {.env = {.seed = 7, .step = 3, .dropout = true}};
    sample_symbols(b.env.sym);
    b.var = graph_alloc(g, (size_t)g->nvar * sizeof *b.var + 1);
    b.input = graph_alloc(g, PEFT_IN_COUNT * sizeof *b.input);
    for (int i = 0; i < g->nvar + PEFT_IN_COUNT; i++) {
        bool var = i < g->nvar;
        Type t = var ? g->var[i].type : nd_input(g, (PeftInputId)(i - g->nvar))->type;
        RefTensor *r = var ? &b.var[i] : &b.input[i - g->nvar];
        *r = (RefTensor){.rank = t.rank, .count = 1};
        for (int d = 0; d < t.rank; d++) r->count *= r->dim[d] = peft_dim(t.dim[d], b.env.sym);
        r->data = graph_alloc(g, (size_t)r->count * sizeof *r->data + 1);
        if (var)
            sample_fill(&g->var[i], 1, r->data, r->count);
        else
            sample_batch((PeftInputId)(i - g->nvar), r->data, r->count);
    }
    b.env.var = b.var;
    b.env.input = b.input;
    store_vars(g, &b);
    return b;
}

static void output_results(Graph *g, Node *n, int k) {
    for (int r = 0; r < op_info[n->op].nout; r++) {
        const char *name = graph_printf(g, "%s.%d.%d", op_info[n->op].name, k, r);
        graph_output(g, PEFT_FN_EVAL, name, op_info[n->op].nout > 1 ? nd_proj(g, n, r) : n);
    }
}

static void check_samples(bool skip_fusion) {
    Graph *g = graph_new();
    for (int op = 0; op < OP_COUNT; op++) {
        /* The sample of ATTENTION_GRAD has a log-sum-exp that is not that of its q and k. */
        if (!op_rules[op].sample || op == OP_ATTENTION_GRAD) continue;
        for (int k = 0;; k++) {
            Node *n = op_rules[op].sample(g, k);
            if (!n) break;
            output_results(g, n, k);
        }
    }
    Bindings b = bind_samples(g);
    Compiled c = compiled_open(g, skip_fusion, 1);
    Worst w = {0};
    compare_isas(&w, &c, &b);
    print_message("%d outputs, %d kernels; worst: %s, %.1f%% of the tolerance\n",
                  g->fn[PEFT_FN_EVAL].nout, c.program->nkernel, w.what, 100 * w.share);
    compiled_close(&c);
    bindings_close(g, &b);
    graph_free(g);
}

static void every_op(void **state) {
    (void)state;
    check_samples(false);
}

static void every_op_unfused(void **state) {
    (void)state;
    check_samples(true);
}

/* ---- shapes of bodies ---- */

enum { WIDE = 5000, VERY_WIDE = 40000 }; /* rows in blocks; rows too wide to be kept in scratch */

static void check_graph(Graph *g) {
    Bindings b = bind_samples(g);
    Compiled c = compiled_open(g, false, 3);
    Worst w = {0};
    compare_isas(&w, &c, &b);
    print_message("%d kernels; worst: %s, %.1f%% of the tolerance\n", c.program->nkernel, w.what,
                  100 * w.share);
    compiled_close(&c);
    bindings_close(g, &b);
    graph_free(g);
}

static Node *real(Graph *g, int64_t rows, int64_t cols) {
    return sample_real(g, 2, rows, cols);
}

static Node *dropped(Graph *g, Node *x) {
    Attr a = attr_zero();
    a.dropout.p = 0.25;
    a.dropout.site = g->nsite++;
    return NODE(g, OP_DROPOUT, a, x, nd_input(g, PEFT_IN_rng), nd_input(g, PEFT_IN_token_sample),
                nd_input(g, PEFT_IN_positions));
}

static Node *normed(Graph *g, Node *x, int64_t cols) {
    Attr a = attr_zero();
    a.norm.eps = 1e-5;
    return NODE(g, OP_LAYER_NORM, a, x, sample_real(g, 1, cols, 0), sample_real(g, 1, cols, 0));
}

static void wide_rows(void **state) {
    (void)state;
    Graph *g = graph_new();
    for (int i = 0; i < 2; i++) {
        int64_t cols = i ? VERY_WIDE : WIDE;
        Node *x = dropped(
            g, nd2(g, OP_ADD, nd1(g, OP_TANH, real(g, DIM_T, cols)), sample_real(g, 1, cols, 0)));
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "softmax.%d", i), nd1(g, OP_SOFTMAX, x));
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "norm.%d", i),
                     nd_proj(g, normed(g, x, cols), 0));
        Node *label = sample_index(g, DIM_T, cols);
        Node *loss = NODE(g, OP_CROSS_ENTROPY, attr_zero(), real(g, DIM_T, cols), label);
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "loss.%d", i), nd_proj(g, loss, 0));
        Node *square = nd1(g, OP_SQUARE, real(g, DIM_T, cols));
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "columns.%d", i), nd_sum(g, square, 0));
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "all.%d", i), nd_sum(g, square, -1));
        Node *w = nd1(g, OP_DEQUANT, sample_nf4(g, 6, cols, i));
        Node *rows = nd2(g, OP_GATHER, w, sample_index(g, DIM_T, 6));
        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "nf4.%d", i), nd2(g, OP_ADD, rows, x));
    }
    check_graph(g);
}

/* Scalars, rows and columns meet: every level of value inside one kernel, and several results. */
static void mixed_levels(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *x = real(g, DIM_T, 33), *row = real(g, DIM_T, 1), *column = sample_real(g, 1, 33, 0);
    Node *scalar = sample_real(g, 0, 0, 0);
    Node *a = nd2(g, OP_MUL, nd2(g, OP_ADD, row, scalar), nd2(g, OP_SUB, x, column));
    Node *b = nd2(g, OP_ADD, dropped(g, a), nd1(g, OP_EXP, row));
    Node *total = nd_sum(g, b, 1),
         *c = nd2(g, OP_DIV, b, nd2(g, OP_ADD, nd1(g, OP_SQUARE, total), nd_const(g, 1)));
    Node *max = nd1(g, OP_SOFTMAX, c);
    graph_output(g, PEFT_FN_EVAL, "a", a);
    graph_output(g, PEFT_FN_EVAL, "b", b);
    graph_output(g, PEFT_FN_EVAL, "total", total);
    graph_output(g, PEFT_FN_EVAL, "c", c);
    graph_output(g, PEFT_FN_EVAL, "softmax", max);
    graph_output(g, PEFT_FN_EVAL, "columns", nd_sum(g, nd2(g, OP_MUL, max, row), 0));
    graph_output(g, PEFT_FN_EVAL, "all", nd_sum(g, nd2(g, OP_MUL, max, scalar), -1));
    graph_output(g, PEFT_FN_EVAL, "rows", nd_sum(g, nd2(g, OP_MUL, total, scalar), -1));
    graph_output(g, PEFT_FN_EVAL, "dropped rows", dropped(g, nd1(g, OP_SQUARE, row)));
    graph_output(g, PEFT_FN_EVAL, "squares",
                 nd_sum(g, nd_sum(g, nd1(g, OP_SQUARE, nd_sum(g, a, 1)), 1), -1));
    graph_output(g, PEFT_FN_EVAL, "reshaped",
                 nd2(g, OP_ADD, nd_reshape(g, column, type_f32(2, 33, 1)), nd_const(g, 1)));
    Node *one = nd_matmul(g, x, real(g, 1, 33), false, true); /* a product of one column */
    graph_output(g, PEFT_FN_EVAL, "one column",
                 nd1(g, OP_TANH, nd2(g, OP_ADD, one, sample_real(g, 1, 1, 0))));
    graph_output(g, PEFT_FN_EVAL, "constant", nd_const(g, 3));
    graph_output(g, PEFT_FN_EVAL, "filled", nd_broadcast(g, nd_const(g, 2), type_f32(2, DIM_T, 5)));
    check_graph(g);
}

/* Two results over one another's operands: each must be computed before the first is stored. */
static void results_over_operands(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *w = real(g, 16, 16), *p = real(g, DIM_T, 16), *q = real(g, DIM_T, 16);
    Node *x = nd_matmul(g, p, w, false, false), *y = nd_matmul(g, q, w, false, true);
    Node *sum = nd2(g, OP_ADD, nd1(g, OP_TANH, nd_sum(g, nd2(g, OP_MUL, x, y), 1)), y);
    Node *difference = nd2(g, OP_SUB, x, sum); /* reads x and y once more */
    Node *u = nd_matmul(g, sum, w, false, false), *v = nd_matmul(g, difference, w, false, false);
    graph_output(g, PEFT_FN_EVAL, "u", u);
    graph_output(g, PEFT_FN_EVAL, "v", v);
    Program *t = build_tables(g, false);
    const PeftFunction *f = &t->table.fn[PEFT_FN_EVAL];
    int shared = 0; /* steps that write a buffer they read */
    for (int i = 0; i < f->nstep; i++)
        for (int a = 0; a < f->step[i].narg; a++)
            for (int b = 0; b < a; b++) shared += f->step[i].arg[a] == f->step[i].arg[b];
    assert_int_equal(shared, 2);
    check_graph(g);
}

/* m = row norms of W, as DoRA starts: computed as [R, 1], stored as [R]. */
static void update_through_view(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *m = sample_real(g, 1, 33, 0), *w = real(g, 33, 7);
    Node *norms = nd1(g, OP_SQRT, nd_sum(g, nd1(g, OP_SQUARE, w), 1));
    graph_update(g, PEFT_FN_EVAL, m->attr.leaf.index, nd_reshape(g, norms, m->type));
    check_graph(g);
}

/* All of it together, with results over operands as the lifetimes of random graphs allow. */
static void random_graphs(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        Graph *g = random_graph(seed * 100, 150);
        Bindings b = bind_samples(g);
        Compiled c = compiled_open(g, false, 1);
        Worst w = {0};
        compare_all(&w, &c, &b, 2);
        print_message("%d kernels; worst: %s, %.1f%% of the tolerance\n", c.program->nkernel,
                      w.what, 100 * w.share);
        compiled_close(&c);
        bindings_close(g, &b);
        graph_free(g);
    }
}

/* ---- sameness ---- */

static void big_batch(MiniBatch *m, const Graph *g) {
    enum { S = 117, L = 6, T = S * L };
    double v[T];
    mini_batch(m, g, true);
    mini_sizes(m, T, S, 4);
    for (int i = 0; i < T; i++) v[i] = i * 7 % MINI_VOCAB;
    mini_set(m, PEFT_IN_tokens, v, T);
    for (int i = 0; i < T; i++) v[i] = i % 2;
    mini_set(m, PEFT_IN_token_types, v, T);
    mini_set(m, PEFT_IN_labels, v, S);
    for (int i = 0; i < T; i++) v[i] = i % L;
    mini_set(m, PEFT_IN_positions, v, T);
    for (int i = 0; i < T; i++) v[i] = 1000 - i / L;
    mini_set(m, PEFT_IN_token_sample, v, T);
    for (int i = 0; i <= S; i++) v[i] = i * L;
    mini_set(m, PEFT_IN_offsets, v, S + 1);
    mini_set(m, PEFT_IN_first, v, S);
    for (int i = 0; i < S; i++) v[i] = 1000 - i;
    mini_set(m, PEFT_IN_seq_sample, v, S);
    mini_scalar(m, PEFT_IN_sequences, S);
}

/* Bytes of all variables after a training step. */
static char *train_bytes(const Compiled *c, const Bindings *b, int threads, size_t *n) {
    Exec x;
    open_exec(&x, c, b, PEFT_FN_TRAIN, threads);
    *n = 0;
    for (int i = 0; i < c->program->nvar; i++) *n += (size_t)var_bytes(&x, i);
    char *all = malloc(*n), *at = all;
    for (int i = 0; i < c->program->nvar; i++) {
        size_t bytes = (size_t)var_bytes(&x, i);
        memcpy(at, exec_var(&x, i), bytes);
        at += bytes;
    }
    exec_close(&x);
    return all;
}

static void threads_change_no_bit(void **state) {
    (void)state;
    Graph *g = mini_program(MINI_FULL, 1, NULL);
    MiniBatch m;
    big_batch(&m, g);
    warm_state(g, &m);
    Bindings b = {.env = m.env, .var = m.var, .input = m.input};
    store_vars(g, &b);
    Compiled c = compiled_open(g, false, 1);
    size_t n, k;
    char *one = train_bytes(&c, &b, 1, &n);
    for (int threads = 1; threads <= 3; threads++) {
        char *more = train_bytes(&c, &b, threads, &k);
        assert_int_equal(n, k);
        assert_memory_equal(one, more, n);
        free(more);
    }
    free(one);
    compiled_close(&c);
    mini_batch_free(&m);
    graph_free(g);
}

static char *emitted(MiniKind kind) {
    Graph *g = mini_program(kind, 1, NULL);
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    assert_true(emit_c(f, build_tables(g, false)));
    fclose(f);
    graph_free(g);
    return text;
}

static void emission_is_deterministic(void **state) {
    (void)state;
    char *a = emitted(MINI_LORA), *b = emitted(MINI_LORA), *other = emitted(MINI_FULL);
    assert_string_equal(a, b);
    assert_string_not_equal(a, other);
    free(a);
    free(b);
    free(other);
}

/* The tables in memory, which the memory report reads, are those that the C text has. */
static void tables_equal_text(void **state) {
    (void)state;
    Graph *g = mini_program(MINI_LORA, 1, NULL);
    Compiled c = compiled_open(g, false, 1);
    const PeftProgram *a = &c.tables->table, *b = c.program;
    assert_int_equal(a->hash, b->hash);
    assert_string_equal(a->text, b->text);
    assert_int_equal(a->nvar, b->nvar);
    assert_int_equal(a->nkernel, b->nkernel);
    for (int i = 0; i < a->nvar; i++) {
        assert_string_equal(a->var[i].name, b->var[i].name);
        assert_memory_equal(a->var[i].dim, b->var[i].dim, sizeof a->var[i].dim);
        assert_int_equal(a->var[i].trainable, b->var[i].trainable);
        assert_true(a->var[i].init_value == b->var[i].init_value);
    }
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        const PeftFunction *x = &a->fn[f], *y = &b->fn[f];
        assert_int_equal(x->nstep, y->nstep);
        assert_int_equal(x->ntemp, y->ntemp);
        for (int i = 0; i < x->nstep; i++) {
            assert_int_equal(x->step[i].kernel, y->step[i].kernel);
            assert_int_equal(x->step[i].narg, y->step[i].narg);
            assert_memory_equal(x->step[i].arg, y->step[i].arg,
                                sizeof(int32_t) * (size_t)x->step[i].narg);
            assert_int_equal(x->step[i].workspace, y->step[i].workspace);
        }
        for (int i = 0; i < x->ntemp; i++) {
            assert_int_equal(x->temp[i].first, y->temp[i].first);
            assert_int_equal(x->temp[i].last, y->temp[i].last);
            assert_int_equal(x->temp[i].mem_class, y->temp[i].mem_class);
            assert_memory_equal(x->temp[i].dim, y->temp[i].dim, sizeof x->temp[i].dim);
        }
    }
    compiled_close(&c);
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_fine_tuning),
        cmocka_unit_test(full_fine_tuning_unfused),
        cmocka_unit_test(accumulated_gradients),
        cmocka_unit_test(lora),
        cmocka_unit_test(qlora),
        cmocka_unit_test(qlora_unfused),
        cmocka_unit_test(adapters_without_passes),
        cmocka_unit_test(every_op),
        cmocka_unit_test(every_op_unfused),
        cmocka_unit_test(wide_rows),
        cmocka_unit_test(mixed_levels),
        cmocka_unit_test(results_over_operands),
        cmocka_unit_test(update_through_view),
        cmocka_unit_test(random_graphs),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(emission_is_deterministic),
        cmocka_unit_test(tables_equal_text),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
