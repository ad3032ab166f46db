/* The gradient driver and the training step built on it: which gradients exist at all, that they
 * are right, and that clip, schedule, AdamW and accumulation compute what their formulas say. */
#include "mini_bert.h"

#include "../../compiler/autodiff.h"
#include "../../compiler/optimizer.h"
#include "../../compiler/text.h"
#include "../../compiler/verify.h"

static const PeftFit fit_plain = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};

static Graph *trained(MiniKind kind, double p, const PeftFit *fit) {
    Graph *g = mini_bert(kind, p);
    build_train(g, fit);
    verify_graph(g, "train");
    return g;
}

static int output_index(const Graph *g, PeftFn fn, const char *name) {
    for (int i = 0; i < g->fn[fn].nout; i++)
        if (!strcmp(g->fn[fn].out[i].name, name)) return i;
    fail_msg("no output %s", name);
    return -1;
}

static double output_value(const Graph *g, PeftFn fn, const MiniBatch *b, const char *name) {
    MiniValues v = mini_run(g, fn, b);
    double value = v.value[output_index(g, fn, name)].data[0];
    mini_values_free(&v);
    return value;
}

/* ---- values ---- */

/* Fourth-order central difference of the loss in one element of one variable. */
static double loss_slope(const Graph *g, MiniBatch *b, int var, int64_t at) {
    double *x = &b->var[var].data[at], x0 = *x, h = 1e-3, f[4];
    static const double step[] = {-2, -1, 1, 2};
    for (int i = 0; i < 4; i++) {
        *x = x0 + step[i] * h;
        f[i] = output_value(g, PEFT_FN_GRADIENTS, b, "loss");
    }
    *x = x0;
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h);
}

/* Every trainable variable, three elements each, dropout on: the mask is a function of the element.
 */
static void check_gradients(MiniKind kind) {
    Graph *g = trained(kind, 0.1, &fit_plain);
    MiniBatch b;
    mini_batch(&b, g, true);
    MiniValues v = mini_run(g, PEFT_FN_GRADIENTS, &b);
    int checked = 0;
    for (int i = 0; i < g->nvar; i++) {
        if (!g->var[i].trainable) continue;
        const char *name = graph_printf(g, "grad.%s", g->var[i].name);
        const RefTensor *grad = &v.value[output_index(g, PEFT_FN_GRADIENTS, name)];
        assert_int_equal(grad->count, b.var[i].count);
        for (int64_t k = 0; k < 3; k++) {
            int64_t at = k * (grad->count - 1) / 2;
            double want = loss_slope(g, &b, i, at);
            if (!(fabs(grad->data[at] - want) <= 1e-8))
                fail_msg("%s[%d]: %.12g, not %.12g", name, (int)at, grad->data[at], want);
            checked++;
        }
    }
    assert_true(checked >= 18);
    mini_values_free(&v);
    mini_batch_free(&b);
    graph_free(g);
}

static void gradients_of_full_match_differences(void **state) {
    (void)state;
    check_gradients(MINI_FULL);
}

static void gradients_of_lora_match_differences(void **state) {
    (void)state;
    check_gradients(MINI_LORA);
}

static void gradients_of_adapters_match_differences(void **state) {
    (void)state;
    check_gradients(MINI_HOULSBY);
}

/* A gradient has its input's shape however the op broadcast it; values by hand. */
static void broadcast_is_summed_once(void **state) {
    (void)state;
    static const struct {
        int rank;
        int64_t d0, d1;
        double want; /* of every element: the number of times it was used, times 2 */
    } shape[] = {{2, 3, 5, 2},  {1, 5, 0, 6},  {2, 1, 5, 6}, {2, 3, 1, 10},
                 {0, 0, 0, 30}, {2, 1, 1, 30}, {1, 1, 0, 30}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        Graph *g = graph_new();
        Var v = {.name = "x", .trainable = true, .group = -1, .span = SPAN_NONE};
        v.type = type_f32(shape[i].rank, shape[i].d0, shape[i].d1);
        Var w = {.name = "w", .group = -1, .span = SPAN_NONE, .type = type_f32(2, 3, 5)};
        Node *x = nd_var(g, graph_var(g, v)), *grad;
        Node *twice = nd2(g, OP_MUL, nd2(g, OP_ADD, nd_var(g, graph_var(g, w)), x), nd_const(g, 2));
        autodiff(g, nd_sum(g, twice, -1), &x, 1, &grad);
        assert_true(type_equal(grad->type, v.type));
        MiniBatch b;
        mini_batch(&b, g, false);
        RefTensor out;
        PeftError err = {0};
        assert_true(interp_roots(g, &b.env, &grad, 1, &out, &err));
        for (int64_t k = 0; k < out.count; k++) assert_true(out.data[k] == shape[i].want);
        interp_free(&out, 1);
        mini_batch_free(&b);
        graph_free(g);
    }
}

/* ---- what is not built ---- */

static int count_op(Graph *g, PeftFn fn, OpCode op) {
    int32_t n;
    int count = 0;
    Node **live = graph_live(g, fn, &n);
    for (int32_t i = 0; i < n; i++) count += live[i]->op == op;
    return count;
}

/* Products that sum over tokens or sequences: weight gradients. */
static int count_weight_gradients(Graph *g) {
    int32_t n;
    int count = 0;
    Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
    for (int32_t i = 0; i < n; i++)
        count += live[i]->op == OP_MATMUL && live[i]->attr.matmul.trans_a &&
                 live[i]->in[0]->type.dim[0] < 0;
    return count;
}

/* The attention gradients in order of creation: the last layer's first. */
static uint32_t attention_need(Graph *g, int which) {
    for (int32_t id = 0; id < g->n; id++)
        if (g->node[id]->op == OP_ATTENTION_GRAD && which-- == 0)
            return g->node[id]->attr.attention.need;
    return 0;
}

static void lora_builds_no_frozen_gradient(void **state) {
    (void)state;
    Graph *g = trained(MINI_LORA, 0.1, &fit_plain);
    /* two modules a layer with A and B, and the classifier */
    assert_int_equal(count_weight_gradients(g), 2 * MINI_LAYERS * 2 + 1);
    /* loss, logits, A and B of four modules, the classifier's weight and bias */
    assert_int_equal(g->fn[PEFT_FN_GRADIENTS].nout, 2 + 2 * MINI_LAYERS * 2 + 2);
    /* the upper layer needs dq, dk, dv to reach the lower; the lower only its own dq and dv */
    assert_int_equal(attention_need(g, 0), 7);
    assert_int_equal(attention_need(g, 1), 5);
    /* both layer norms of both layers but not the embedding's; layer 0 stops at its attention */
    assert_int_equal(count_op(g, PEFT_FN_TRAIN, OP_LAYER_NORM_GRAD), 2 * MINI_LAYERS);
    assert_int_equal(count_op(g, PEFT_FN_TRAIN, OP_SEGMENT_SUM), 0);
    assert_int_equal(count_op(g, PEFT_FN_TRAIN, OP_ADAMW), 2 * MINI_LAYERS * 2 + 2);
    graph_free(g);
}

/* The highest forward id that any gradient differentiates below the lowest trainable's first user.
 */
static void nothing_below_the_lowest_trainable(void **state) {
    (void)state;
    static const MiniKind kinds[] = {MINI_LORA, MINI_QLORA, MINI_HOULSBY};
    for (int k = 0; k < 3; k++) {
        Graph *g = trained(kinds[k], 0.1, &fit_plain);
        int32_t n, lowest = INT32_MAX;
        Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
        for (int32_t i = 0; i < n; i++)
            for (int in = 0; in < live[i]->nin && !live[i]->of; in++) {
                const Node *leaf = live[i]->in[in];
                if (leaf->op == OP_VAR && g->var[leaf->attr.leaf.index].trainable &&
                    live[i]->id < lowest)
                    lowest = live[i]->id;
            }
        for (int32_t i = 0; i < n; i++)
            if (live[i]->of && live[i]->of->id < lowest)
                fail_msg("%s differentiates %%%d, below %%%d", op_info[live[i]->op].name,
                         live[i]->of->id, lowest);
        graph_free(g);
    }
}

/* A quantised weight is never differentiated, and only reached through its dequantised form. */
static void qlora_has_lora_gradients(void **state) {
    (void)state;
    Graph *lora = trained(MINI_LORA, 0.1, &fit_plain),
          *qlora = trained(MINI_QLORA, 0.1, &fit_plain);
    MiniBatch b, c;
    mini_batch(&b, lora, true);
    mini_batch(&c, qlora, true);
    MiniValues x = mini_run(lora, PEFT_FN_TRAIN, &b), y = mini_run(qlora, PEFT_FN_TRAIN, &c);
    mini_assert_same_values(&x, &y, "lora, qlora");
    mini_values_free(&x);
    mini_values_free(&y);
    mini_batch_free(&b);
    mini_batch_free(&c);
    graph_free(lora);
    graph_free(qlora);
}

static void no_variable_asked_for_builds_nothing(void **state) {
    (void)state;
    Graph *g = mini_bert(MINI_FULL, 0.1);
    int32_t before = g->n;
    autodiff(g, graph_find_output(g, PEFT_FN_EVAL, "loss"), NULL, 0, NULL);
    assert_int_equal(g->n, before);
    graph_free(g);
}

static void gradient_nodes_carry_their_forward_line(void **state) {
    (void)state;
    Graph *g = mini_bert(MINI_LORA, 0.1);
    for (int32_t i = 0; i < g->n; i++) g->node[i]->span = (Span){0, i, i + 1};
    int32_t forward = g->n;
    build_train(g, &fit_plain);
    int gradients = 0;
    for (int32_t i = forward; i < g->n; i++) {
        const Node *n = g->node[i];
        if (!n->of) continue;
        assert_true(n->of->id < forward);
        assert_int_equal(n->span.begin, n->of->id);
        gradients++;
    }
    assert_true(gradients > 50);
    graph_free(g);
}

static int unreached(Graph *g, int32_t var[]) {
    return autodiff_unreached(g, graph_find_output(g, PEFT_FN_EVAL, "loss"), var);
}

static void unreached_parameters_are_named(void **state) {
    (void)state;
    Graph *g = mini_bert(MINI_LORA, 0.1);
    int32_t var[64];
    assert_int_equal(unreached(g, var), 0);
    Var v = {.name = "bert.unused.weight", .type = type_f32(1, 4, 0), .trainable = true};
    int32_t unused = graph_var(g, v);
    v.name = "bert.detached.weight";
    v.type = type_scalar();
    int32_t detached = graph_var(g, v);
    assert_int_equal(unreached(g, var), 2);
    assert_int_equal(var[0], unused);
    assert_int_equal(var[1], detached);
    /* used, but behind a detach: still no gradient reaches it */
    Node *loss = graph_find_output(g, PEFT_FN_EVAL, "loss");
    loss = nd2(g, OP_ADD, loss, nd1(g, OP_DETACH, nd_var(g, detached)));
    assert_int_equal(autodiff_unreached(g, loss, var), 2);
    loss = nd2(g, OP_ADD, loss, nd_var(g, detached));
    assert_int_equal(autodiff_unreached(g, loss, var), 1);
    /* whole numbers and quantised weights have no gradient, however they are used */
    v.name = "rows";
    v.type = type_i32(4);
    Node *rows = nd_var(g, graph_var(g, v));
    v.name = "codes";
    v.type = (Type){.dt = DT_NF4, .rank = 2, .dim = {5, 8}};
    Node *codes = nd1(g, OP_DEQUANT, nd_var(g, graph_var(g, v)));
    loss = nd2(g, OP_ADD, loss, nd_sum(g, nd2(g, OP_GATHER, codes, rows), -1));
    assert_int_equal(autodiff_unreached(g, loss, var), 3);
    graph_free(g);
}

static char *graph_text(Graph *g) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    text_print(f, g, true);
    fclose(f);
    return text;
}

static void the_same_program_gives_the_same_graph(void **state) {
    (void)state;
    Graph *a = trained(MINI_FULL, 0.1, &fit_plain), *b = trained(MINI_FULL, 0.1, &fit_plain);
    char *x = graph_text(a), *y = graph_text(b);
    assert_string_equal(x, y);
    free(x);
    free(y);
    graph_free(a);
    graph_free(b);
}

/* ---- clip, schedule, AdamW ---- */

/* Transformers' linear schedule, branches and all. */
static double schedule(double t, double warmup, double total) {
    if (t < warmup) return t / fmax(1, warmup);
    return fmax(0, (total - t) / fmax(1, total - warmup));
}

static void schedule_is_exact_for_every_step(void **state) {
    (void)state;
    static const double cases[][2] = {{0, 1}, {0, 10}, {1, 10},  {4, 10},    {10, 10},
                                      {0, 0}, {5, 0},  {20, 10}, {632, 6315}};
    Graph *g = trained(MINI_LORA, 0, &fit_plain);
    Node *lr = graph_find_output(g, PEFT_FN_TRAIN, "lr");
    int step = graph_find_var(g, "optimizer.step");
    MiniBatch b;
    mini_batch(&b, g, false);
    mini_scalar(&b, PEFT_IN_lr, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double warmup = cases[i][0], total = cases[i][1];
        mini_scalar(&b, PEFT_IN_warmup_steps, warmup);
        mini_scalar(&b, PEFT_IN_total_steps, total);
        for (double t = 0; t <= total + 3; t++) {
            RefTensor out;
            PeftError err = {0};
            b.var[step].data[0] = t;
            assert_true(interp_roots(g, &b.env, &lr, 1, &out, &err));
            if (!(out.data[0] == schedule(t, warmup, total)))
                fail_msg("W %g, T %g, t %g: %g", warmup, total, t, out.data[0]);
            interp_free(&out, 1);
        }
    }
    mini_batch_free(&b);
    graph_free(g);
}

/* Runs one function and writes its updates back, as the runtime does. */
static MiniValues run_step(const Graph *g, PeftFn fn, MiniBatch *b) {
    MiniValues v = mini_run(g, fn, b);
    const Function *f = &g->fn[fn];
    for (int i = 0; i < f->nupdate; i++) {
        const RefTensor *value = &v.value[f->nout + i];
        memcpy(b->var[f->update[i].var].data, value->data, (size_t)value->count * sizeof(double));
    }
    return v;
}

/* torch's AdamW for one element, written out here independently of the graph. */
static void adamw(double *p, double *m, double *v, double g, double lr, double wd, int t) {
    *p *= 1 - lr * wd;
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.999 * *v + 0.001 * g * g;
    double denominator = sqrt(*v) / sqrt(1 - pow(0.999, t)) + 1e-8;
    *p -= lr / (1 - pow(0.9, t)) * *m / denominator;
}

/* Five steps: gradients from GRADIENTS, everything after them recomputed here. */
static void train_step_is_clip_and_adamw(void **state) {
    (void)state;
    Graph *g = trained(MINI_FULL, 0.1, &fit_plain);
    MiniBatch b;
    mini_batch(&b, g, true);
    mini_scalar(&b, PEFT_IN_warmup_steps, 2);
    mini_scalar(&b, PEFT_IN_clip_norm, 0.5);
    int nvar = g->nvar;
    double(*want)[3][128] = calloc((size_t)nvar, sizeof *want);
    for (int i = 0; i < nvar; i++)
        if (g->var[i].trainable) memcpy(want[i][0], b.var[i].data, (size_t)b.var[i].count * 8);
    bool clipped = false;
    for (int t = 0; t < 5; t++) {
        b.env.step = t;
        MiniValues grads = mini_run(g, PEFT_FN_GRADIENTS, &b);
        double squares = 0;
        for (int i = 2; i < grads.n; i++)
            for (int64_t k = 0; k < grads.value[i].count; k++)
                squares += grads.value[i].data[k] * grads.value[i].data[k];
        double norm = sqrt(squares), clip = fmin(1, 0.5 / (norm + 1e-6));
        double lr = 0.01 * schedule(t, 2, 10);
        clipped |= clip < 1;
        MiniValues out = run_step(g, PEFT_FN_TRAIN, &b);
        assert_true(fabs(out.value[output_index(g, PEFT_FN_TRAIN, "grad_norm")].data[0] - norm) <
                    1e-12);
        assert_true(fabs(out.value[output_index(g, PEFT_FN_TRAIN, "lr")].data[0] - lr) < 1e-15);
        int grad = 2;
        for (int i = 0; i < nvar; i++) {
            if (!g->var[i].trainable) continue;
            double wd = g->var[i].decay ? 0.1 : 0;
            for (int64_t k = 0; k < b.var[i].count; k++) {
                adamw(&want[i][0][k], &want[i][1][k], &want[i][2][k],
                      clip * grads.value[grad].data[k], lr, wd, t + 1);
                if (!(fabs(b.var[i].data[k] - want[i][0][k]) <= 1e-10))
                    fail_msg("%s after step %d", g->var[i].name, t + 1);
            }
            grad++;
        }
        assert_int_equal(grad, grads.n);
        mini_values_free(&grads);
        mini_values_free(&out);
    }
    assert_true(clipped);
    assert_true(b.var[graph_find_var(g, "optimizer.step")].data[0] == 5);
    free(want);
    mini_batch_free(&b);
    graph_free(g);
}

/* An embedding's gradient takes part in the norm by its touched rows, never in dense form. */
static void norm_reads_embedding_gradients_compactly(void **state) {
    (void)state;
    Graph *g = trained(MINI_FULL, 0.1, &fit_plain);
    int32_t n;
    int scattered = 0;
    Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
    for (int32_t i = 0; i < n; i++)
        for (int k = 0; k < live[i]->nin; k++) {
            const Node *in = live[i]->in[k];
            if (in->op != OP_SCATTER || in->type.dim[0] < 0) continue;
            assert_int_equal(live[i]->op, OP_ADAMW);
            scattered++;
        }
    assert_int_equal(scattered, 3);
    graph_free(g);
}

/* ---- accumulation ---- */

/* Cuts the batch to the sequences [from, to). */
static void cut_batch(MiniBatch *b, const MiniBatch *whole, int from, int to) {
    int begin = (int)whole->input[PEFT_IN_offsets].data[from];
    int end = (int)whole->input[PEFT_IN_offsets].data[to], tokens = end - begin;
    static const PeftInputId by_token[] = {PEFT_IN_tokens, PEFT_IN_token_types, PEFT_IN_positions,
                                           PEFT_IN_token_sample};
    static const PeftInputId by_sequence[] = {PEFT_IN_seq_sample, PEFT_IN_labels};
    double offsets[MINI_S + 1];
    for (int i = from; i <= to; i++)
        offsets[i - from] = whole->input[PEFT_IN_offsets].data[i] - begin;
    mini_sizes(b, tokens, to - from, 0);
    for (int i = 0; i < 4; i++)
        mini_set(b, by_token[i], whole->input[by_token[i]].data + begin, tokens);
    for (int i = 0; i < 2; i++)
        mini_set(b, by_sequence[i], whole->input[by_sequence[i]].data + from, to - from);
    mini_set(b, PEFT_IN_offsets, offsets, to - from + 1);
    mini_set(b, PEFT_IN_first, offsets, to - from);
}

/* Two optimizer steps of two micro-batches each (one sequence, then two) equal two whole batches.
 */
static void accumulation_equals_the_whole_batch(void **state) {
    (void)state;
    PeftFit parts = fit_plain;
    parts.accumulate = 2;
    Graph *g = trained(MINI_FULL, 0.1, &fit_plain), *acc = trained(MINI_FULL, 0.1, &parts);
    MiniBatch b, part, whole;
    mini_batch(&b, g, true);
    mini_batch(&part, acc, true);
    mini_batch(&whole, g, true);
    for (int t = 0; t < 2; t++) {
        b.env.step = part.env.step = t;
        MiniValues want = run_step(g, PEFT_FN_TRAIN, &b);
        double loss = 0;
        for (int micro = 0; micro < 2; micro++) {
            cut_batch(&part, &whole, micro, micro == 0 ? 1 : 3);
            MiniValues v = run_step(acc, PEFT_FN_TRAIN, &part);
            loss += v.value[output_index(acc, PEFT_FN_TRAIN, "loss")].data[0];
            mini_values_free(&v);
        }
        assert_true(fabs(loss - want.value[0].data[0]) < 1e-12);
        MiniValues got = run_step(acc, PEFT_FN_UPDATE, &part);
        mini_assert_close(&got.value[output_index(acc, PEFT_FN_UPDATE, "grad_norm")],
                          &want.value[output_index(g, PEFT_FN_TRAIN, "grad_norm")], "grad_norm");
        for (int i = 0; i < acc->nvar; i++) {
            int other = graph_find_var(g, acc->var[i].name);
            if (other >= 0)
                mini_assert_close(&part.var[i], &b.var[other], acc->var[i].name);
            else /* accumulators are back at zero */
                for (int64_t k = 0; k < part.var[i].count; k++)
                    assert_true(part.var[i].data[k] == 0);
        }
        mini_values_free(&want);
        mini_values_free(&got);
    }
    mini_batch_free(&b);
    mini_batch_free(&part);
    mini_batch_free(&whole);
    graph_free(g);
    graph_free(acc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_of_full_match_differences),
        cmocka_unit_test(gradients_of_lora_match_differences),
        cmocka_unit_test(gradients_of_adapters_match_differences),
        cmocka_unit_test(broadcast_is_summed_once),
        cmocka_unit_test(lora_builds_no_frozen_gradient),
        cmocka_unit_test(nothing_below_the_lowest_trainable),
        cmocka_unit_test(qlora_has_lora_gradients),
        cmocka_unit_test(no_variable_asked_for_builds_nothing),
        cmocka_unit_test(gradient_nodes_carry_their_forward_line),
        cmocka_unit_test(unreached_parameters_are_named),
        cmocka_unit_test(the_same_program_gives_the_same_graph),
        cmocka_unit_test(schedule_is_exact_for_every_step),
        cmocka_unit_test(train_step_is_clip_and_adamw),
        cmocka_unit_test(norm_reads_embedding_gradients_compactly),
        cmocka_unit_test(accumulation_equals_the_whole_batch),
    };
    return cmocka_run_group_tests_name("autodiff", tests, NULL, NULL);
}
