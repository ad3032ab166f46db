/* The graph passes: what each gives, that it changes no value, and that it finishes in one run. */
#include "mini_bert.h"

#include "../../compiler/optimizer.h"
#include "../../compiler/pass.h"
#include "../../compiler/text.h"
#include "../../compiler/verify.h"

static const PeftFit fit_plain = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
static const PassContext context = {&fit_plain};

/* All passes but those in `skip`. */
static void run_passes(Graph *g, const char *skip) {
    passes_run(g, &(PassOptions){.fit = &fit_plain, .skip = skip, .log = stderr});
}

static Graph *compiled(MiniKind kind, double p, const char *skip) {
    Graph *g = mini_bert(kind, p);
    run_passes(g, skip);
    return g;
}

static int count_op(Graph *g, PeftFn fn, OpCode op) {
    int32_t n;
    int count = 0;
    Node **live = graph_live(g, fn, &n);
    for (int32_t i = 0; i < n; i++) count += live[i]->op == op;
    return count;
}

static char *graph_text(Graph *g) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    text_print(f, g, false);
    fclose(f);
    return text;
}

/* ---- whole pipeline ---- */

/* Every function computes the same with a pass and without it, for every kind of model. */
static void assert_pass_changes_no_value(const char *skip) {
    for (int kind = 0; kind < MINI_KINDS; kind++) {
        Graph *on = compiled((MiniKind)kind, 0.1, NULL), *off = compiled((MiniKind)kind, 0.1, skip);
        MiniBatch b, c;
        mini_batch(&b, on, true);
        mini_batch(&c, off, true);
        for (PeftFn fn = 0; fn < PEFT_FN_COUNT; fn++) {
            MiniValues x = mini_run(on, fn, &b), y = mini_run(off, fn, &c);
            mini_assert_same_values(&x, &y, skip);
            mini_values_free(&x);
            mini_values_free(&y);
        }
        mini_batch_free(&b);
        mini_batch_free(&c);
        graph_free(on);
        graph_free(off);
    }
}

static void each_pass_off_equals_on(void **state) {
    (void)state;
    static const char *const skip[] = {"slice_rows",          "simplify", "remat", "dce",
                                       "slice_rows,simplify", "all"};
    for (size_t i = 0; i < sizeof skip / sizeof *skip; i++) assert_pass_changes_no_value(skip[i]);
}

static bool (*const optional[])(Graph *, const PassContext *) = {
    pass_slice_rows, pass_inference, pass_simplify, pass_remat, pass_dce};

/* Running any pass on the finished graph changes nothing and makes no node. */
static void a_second_run_changes_nothing(void **state) {
    (void)state;
    for (int kind = 0; kind < MINI_KINDS; kind++) {
        Graph *g = compiled((MiniKind)kind, 0.1, NULL);
        char *before = graph_text(g);
        for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) {
            int32_t n = g->n;
            assert_false(optional[i](g, &context));
            assert_int_equal(g->n, n);
        }
        char *after = graph_text(g);
        assert_string_equal(before, after);
        free(before);
        free(after);
        graph_free(g);
    }
}

static void options_are_checked(void **state) {
    (void)state;
    PeftError err = {0};
    assert_true(passes_check(&(PassOptions){.skip = "remat,simplify", .dump_after = "all"}, &err));
    assert_false(passes_check(&(PassOptions){.skip = "remat,fold"}, &err));
    assert_string_equal(err.msg,
                        "--skip: there is no pass 'fold'; passes are slice_rows, simplify, "
                        "train, inference, balance, remat, dce");
    err = (PeftError){0};
    assert_false(passes_check(&(PassOptions){.skip = "train"}, &err));
    assert_non_null(strstr(err.msg, "'train' cannot be skipped"));
    err = (PeftError){0};
    assert_false(passes_check(&(PassOptions){.dump_after = "simplif"}, &err));
    assert_non_null(strstr(err.msg, "--dump-after: there is no pass 'simplif'"));
}

static void dumps_and_times_are_reported(void **state) {
    (void)state;
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    Graph *g = mini_bert(MINI_LORA, 0.1);
    passes_run(g, &(PassOptions){.fit = &fit_plain,
                                 .dump_after = "remat,simplify",
                                 .time = true,
                                 .skip = "slice_rows",
                                 .log = f});
    fclose(f);
    assert_null(strstr(text, "slice_rows"));
    assert_null(strstr(text, "# after dce"));
    const char *first = strstr(text, "# after simplify"), *second = NULL;
    assert_non_null(first);
    second = strstr(first + 1, "# after simplify");
    assert_non_null(second);
    assert_non_null(strstr(second, "# after remat"));
    free(text);
    graph_free(g);
}

/* Without anything to train only evaluation is built. */
static void evaluation_only(void **state) {
    (void)state;
    Graph *g = mini_bert(MINI_LORA, 0.1);
    passes_run(g, &(PassOptions){.log = stderr});
    assert_int_equal(g->fn[PEFT_FN_TRAIN].nout, 0);
    assert_int_equal(count_op(g, PEFT_FN_EVAL, OP_DROPOUT), 0);
    graph_free(g);
}

/* ---- slice_rows ---- */

/* The rows of the product with each weight of a layer; 0 when there is no such product. */
static int64_t product_rows(Graph *g, PeftFn fn, const char *weight) {
    int32_t n, var = graph_find_var(g, weight);
    Node **live = graph_live(g, fn, &n);
    assert_true(var >= 0);
    for (int32_t i = 0; i < n; i++) {
        if (live[i]->op != OP_MATMUL || live[i]->of) continue;
        const Node *w = live[i]->in[1];
        while (w->nin) w = w->in[0];
        if (w->op == OP_VAR && w->attr.leaf.index == var) return live[i]->type.dim[0];
    }
    return 0;
}

static void last_layer_computes_first_tokens_only(void **state) {
    (void)state;
    static const struct {
        const char *weight;
        int64_t rows;
    } want[] = {
        {"bert.encoder.layer.0.attention.self.query.weight", DIM_T},
        {"bert.encoder.layer.0.output.dense.weight", DIM_T},
        {"bert.encoder.layer.1.attention.self.query.weight", DIM_S},
        {"bert.encoder.layer.1.attention.self.key.weight", DIM_T},
        {"bert.encoder.layer.1.attention.self.value.weight", DIM_T},
        {"bert.encoder.layer.1.attention.output.dense.weight", DIM_S},
        {"bert.encoder.layer.1.intermediate.dense.weight", DIM_S},
        {"bert.encoder.layer.1.output.dense.weight", DIM_S},
        {"bert.pooler.dense.weight", DIM_S},
    };
    for (int kind = 0; kind < MINI_KINDS; kind++) {
        Graph *g = compiled((MiniKind)kind, 0.1, NULL);
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
            assert_int_equal(product_rows(g, PEFT_FN_EVAL, want[i].weight), want[i].rows);
            assert_int_equal(product_rows(g, PEFT_FN_TRAIN, want[i].weight), want[i].rows);
        }
        graph_free(g);
    }
}

/* Tokens of the last layer appear in the backward pass only as gradients of keys and values. */
static void backward_of_the_last_layer_is_sliced_too(void **state) {
    (void)state;
    Graph *g = compiled(MINI_FULL, 0.1, NULL), *all = compiled(MINI_FULL, 0.1, "slice_rows");
    int64_t rows[2] = {0};
    Graph *graph[] = {g, all};
    for (int k = 0; k < 2; k++) {
        int32_t n;
        Node **live = graph_live(graph[k], PEFT_FN_TRAIN, &n);
        for (int32_t i = 0; i < n; i++)
            rows[k] += live[i]->op == OP_MATMUL && live[i]->of && live[i]->type.dim[0] == DIM_T;
    }
    /* dx of 6 linears in layer 0; in layer 1 of six, then of key and value alone */
    assert_int_equal(rows[1], 12);
    assert_int_equal(rows[0], 8);
    graph_free(g);
    graph_free(all);
}

/* A second output that shows every token keeps the last layer whole, and stays what it was. */
static void a_reader_of_all_rows_prevents_slicing(void **state) {
    (void)state;
    Graph *g = mini_bert(MINI_FULL, 0);
    Node *first = NULL;
    for (int32_t i = 0; i < g->n; i++)
        if (g->node[i]->op == OP_GATHER && g->node[i]->in[1]->attr.leaf.index == PEFT_IN_first &&
            g->node[i]->type.rank == 2)
            first = g->node[i];
    assert_non_null(first);
    graph_output(g, PEFT_FN_EVAL, "tokens", first->in[0]);
    assert_false(pass_slice_rows(g, &context));
    assert_int_equal(product_rows(g, PEFT_FN_EVAL, "bert.encoder.layer.1.output.dense.weight"),
                     DIM_T);
    graph_free(g);
}

static void masked_positions_stop_at_attention(void **state) {
    (void)state;
    Graph *g = mini_mlm(0.1), *off = mini_mlm(0.1);
    run_passes(g, NULL);
    run_passes(off, "slice_rows");
    assert_int_equal(product_rows(g, PEFT_FN_TRAIN, "bert.encoder.layer.1.output.dense.weight"),
                     DIM_M);
    assert_int_equal(
        product_rows(g, PEFT_FN_TRAIN, "bert.encoder.layer.1.attention.output.dense.weight"),
        DIM_M);
    assert_int_equal(
        product_rows(g, PEFT_FN_TRAIN, "bert.encoder.layer.1.attention.self.query.weight"), DIM_T);
    MiniBatch b, c;
    mini_batch(&b, g, true);
    mini_batch(&c, off, true);
    for (PeftFn fn = 0; fn < PEFT_FN_COUNT; fn++) {
        MiniValues x = mini_run(g, fn, &b), y = mini_run(off, fn, &c);
        mini_assert_same_values(&x, &y, "mlm");
        mini_values_free(&x);
        mini_values_free(&y);
    }
    mini_batch_free(&b);
    mini_batch_free(&c);
    graph_free(g);
    graph_free(off);
}

/* A gather that makes [T, ...] of [S, ...] or of [T, ...] is not less work, and stays where it is.
 */
static void a_gather_of_no_fewer_rows_stays(void **state) {
    (void)state;
    static const PeftInputId from[] = {PEFT_IN_labels, PEFT_IN_tokens};
    for (int i = 0; i < 2; i++) {
        Graph *g = graph_new();
        Var v = {.name = "w", .type = type_f32(2, 4, 4), .group = -1, .span = SPAN_NONE};
        Node *w = nd_var(g, graph_var(g, v));
        Node *x = nd2(g, OP_GATHER, w, nd_input(g, from[i]));
        x = nd1(g, OP_TANH, nd_matmul(g, x, w, false, false));
        x = nd2(g, OP_GATHER, x, nd_input(g, PEFT_IN_positions));
        graph_output(g, PEFT_FN_EVAL, "logits", x);
        assert_false(pass_slice_rows(g, &context));
        graph_free(g);
    }
}

/* ---- simplify ---- */

/* Writes a node as a small expression: the test's expectations read like algebra. */
static void write_expr(FILE *f, const Graph *g, const Node *n) {
    char type[64];
    switch (n->op) {
    case OP_CONST: fprintf(f, "%g", n->attr.constant.value); return;
    case OP_VAR: fputs(g->var[n->attr.leaf.index].name, f); return;
    case OP_INPUT: fprintf(f, "in%d", n->attr.leaf.index); return;
    default: break;
    }
    fprintf(f, "%s", op_info[n->op].name);
    if (n->op == OP_MATMUL)
        fprintf(f, "%s%s", n->attr.matmul.trans_a ? "_ta" : "",
                n->attr.matmul.trans_b ? "_tb" : "");
    if (n->op == OP_RESHAPE || n->op == OP_BROADCAST) fprintf(f, ":%s", type_str(n->type, type));
    /* a constant last, whichever of the two was made first */
    bool swap = (op_info[n->op].flags & OPF_COMMUTES) && n->in[0]->op == OP_CONST;
    fputc('(', f);
    for (int i = 0; i < n->nin; i++) {
        if (i) fputs(", ", f);
        write_expr(f, g, n->in[swap ? 1 - i : i]);
    }
    fputc(')', f);
}

typedef struct Algebra { /* x [3, 5], y [3, 5], r [5], c [3, 1], s scalar, w [5, 3] */
    Graph *g;
    Node *x, *y, *r, *c, *s, *w;
} Algebra;

static Node *algebra_var(Graph *g, const char *name, int rank, int64_t d0, int64_t d1) {
    Var v = {.name = name, .type = type_f32(rank, d0, d1), .group = -1, .span = SPAN_NONE};
    return nd_var(g, graph_var(g, v));
}

static Algebra algebra(void) {
    Algebra a = {.g = graph_new()};
    a.x = algebra_var(a.g, "x", 2, 3, 5);
    a.y = algebra_var(a.g, "y", 2, 3, 5);
    a.r = algebra_var(a.g, "r", 1, 5, 0);
    a.c = algebra_var(a.g, "c", 2, 3, 1);
    a.s = algebra_var(a.g, "s", 0, 0, 0);
    a.w = algebra_var(a.g, "w", 2, 5, 3);
    return a;
}

#define MUL(p, q)   nd2(a->g, OP_MUL, p, q)
#define ADD(p, q)   nd2(a->g, OP_ADD, p, q)
#define SUB(p, q)   nd2(a->g, OP_SUB, p, q)
#define DIV(p, q)   nd2(a->g, OP_DIV, p, q)
#define NEG(p)      nd1(a->g, OP_NEG, p)
#define T(p)        nd1(a->g, OP_TRANSPOSE, p)
#define K(v)        nd_const(a->g, v)
#define TO(p, type) nd_broadcast(a->g, p, type)

/* The k-th case: an expression and what it becomes. NULL after the last. */
static Node *simplify_case(const Algebra *a, int k, const char **want) {
#define CASE(n, expr, text) \
    case n: *want = text; return expr
    switch (k) {
        CASE(0, MUL(a->x, K(1)), "x");
        CASE(1, MUL(K(-1), a->x), "neg(x)");
        CASE(2, ADD(a->x, K(0)), "x");
        CASE(3, SUB(a->x, K(0)), "x");
        CASE(4, SUB(K(0), a->x), "neg(x)");
        CASE(5, DIV(a->x, K(1)), "x");
        CASE(6, NEG(NEG(a->x)), "x");
        CASE(7, NEG(NEG(NEG(a->x))), "neg(x)");
        CASE(8, MUL(K(2), MUL(K(3), a->x)), "mul(x, 6)");
        CASE(9, MUL(K(0.5), MUL(K(2), a->x)), "x");
        CASE(10, NEG(MUL(K(3), a->x)), "mul(x, -3)");
        CASE(11, MUL(K(3), NEG(a->x)), "mul(x, -3)");
        CASE(12, MUL(NEG(a->x), NEG(a->y)), "mul(x, y)");
        CASE(13, ADD(a->x, NEG(a->y)), "sub(x, y)");
        CASE(14, ADD(NEG(a->x), a->y), "sub(y, x)");
        CASE(15, SUB(a->x, NEG(a->y)), "add(x, y)");
        CASE(16, NEG(SUB(a->x, a->y)), "sub(y, x)");
        CASE(17, ADD(MUL(K(2), K(3)), K(4)), "10");
        CASE(18, MUL(a->x, nd1(a->g, OP_SQRT, K(16))), "mul(x, 4)");
        CASE(19, DIV(K(1), K(0)), "div(1, 0)"); /* not finite: stays */
        CASE(20, MUL(a->s, K(0)), "mul(s, 0)"); /* s may be NaN */
        CASE(21, nd_matmul(a->g, a->x, T(a->y), false, false), "matmul_tb(x, y)");
        CASE(22, nd_matmul(a->g, T(a->x), a->y, false, false), "matmul_ta(x, y)");
        CASE(23, nd_matmul(a->g, T(a->x), T(a->y), true, false), "matmul_tb(x, y)");
        CASE(24, nd_matmul(a->g, MUL(K(2), a->x), a->w, false, false), "mul(matmul(x, w), 2)");
        CASE(25, nd_matmul(a->g, MUL(K(2), a->x), T(MUL(K(3), a->y)), false, false),
             "mul(matmul_tb(x, y), 6)");
        CASE(26, T(T(a->x)), "x");
        CASE(27, T(a->c), "reshape:f32[1, 3](c)");
        CASE(28, nd_reshape(a->g, nd_reshape(a->g, a->x, type_f32(2, 5, 3)), type_f32(1, 15, 0)),
             "reshape:f32[15](x)");
        CASE(29, nd_reshape(a->g, nd_reshape(a->g, a->x, type_f32(1, 15, 0)), type_f32(2, 3, 5)),
             "x");
        CASE(30, MUL(a->x, TO(a->r, type_f32(2, 3, 5))), "mul(x, r)");
        CASE(31, ADD(TO(a->c, type_f32(2, 3, 5)), a->x), "add(x, c)");
        CASE(32, SUB(TO(a->c, type_f32(2, 3, 5)), TO(a->s, type_f32(2, 3, 5))),
             "sub(c, broadcast:f32[3, 5](s))");
        CASE(33, TO(TO(a->s, type_f32(2, 3, 1)), type_f32(2, 3, 5)), "broadcast:f32[3, 5](s)");
        CASE(34, MUL(TO(a->c, type_f32(2, 3, 5)), a->r), "mul(r, c)");
        CASE(35, nd2(a->g, OP_GATHER, TO(a->r, type_f32(2, 3, 5)), nd_input(a->g, PEFT_IN_labels)),
             "broadcast:f32[S, 5](r)");
        CASE(36, nd2(a->g, OP_GATHER, TO(a->c, type_f32(2, 3, 5)), nd_input(a->g, PEFT_IN_labels)),
             "gather(broadcast:f32[3, 5](c), in7)");
        CASE(37, ADD(MUL(a->x, K(1)), K(0)), "x");
    default: return NULL;
    }
#undef CASE
}

static void simplify_rules(void **state) {
    (void)state;
    const char *want;
    for (int k = 0;; k++) {
        Algebra a = algebra();
        Node *n = simplify_case(&a, k, &want);
        if (!n) {
            graph_free(a.g);
            assert_true(k > 30);
            return;
        }
        graph_output(a.g, PEFT_FN_EVAL, "before", n);
        graph_output(a.g, PEFT_FN_EVAL, "after", n);
        (void)pass_simplify(a.g, &context);
        int32_t nodes = a.g->n;
        assert_false(pass_simplify(a.g, &context));
        assert_int_equal(a.g->n, nodes);
        a.g->fn[PEFT_FN_EVAL].out[0].node = n;
        char *got;
        size_t size;
        FILE *f = open_memstream(&got, &size);
        write_expr(f, a.g, a.g->fn[PEFT_FN_EVAL].out[1].node);
        fclose(f);
        if (strcmp(got, want)) fail_msg("case %d: %s, not %s", k, got, want);
        free(got);
        MiniBatch b;
        mini_batch(&b, a.g, false);
        MiniValues v = mini_run(a.g, PEFT_FN_EVAL, &b);
        if (isfinite(v.value[0].data[0])) mini_assert_close(&v.value[0], &v.value[1], want);
        mini_values_free(&v);
        mini_batch_free(&b);
        graph_free(a.g);
    }
}

/* A recomputed value is apart from the value it repeats: it must not be simplified into it. */
static void clones_are_left_alone(void **state) {
    (void)state;
    Algebra a = algebra();
    Node *sum = nd2(a.g, OP_ADD, a.x, nd_const(a.g, 0));
    graph_output(a.g, PEFT_FN_EVAL, "logits", graph_stream(a.g, sum, sum->in, 1));
    assert_false(pass_simplify(a.g, &context));
    graph_free(a.g);
}

/* ---- inference ---- */

static void evaluation_has_no_dropout(void **state) {
    (void)state;
    Graph *g = compiled(MINI_LORA, 0.1, "simplify");
    assert_int_equal(count_op(g, PEFT_FN_EVAL, OP_DROPOUT), 0);
    assert_true(count_op(g, PEFT_FN_TRAIN, OP_DROPOUT) > 10);
    int32_t n;
    Node **live = graph_live(g, PEFT_FN_EVAL, &n);
    for (int32_t i = 0; i < n; i++)
        if (live[i]->op == OP_ATTENTION) assert_true(live[i]->attr.attention.p == 0);
    live = graph_live(g, PEFT_FN_TRAIN, &n);
    for (int32_t i = 0; i < n; i++)
        if (live[i]->op == OP_ATTENTION) assert_true(live[i]->attr.attention.p == 0.1);
    graph_free(g);
}

/* ---- golden texts: tests/ir/NAME.ir is a graph, "---- PASS", and what the pass makes of it ----
 */

static char *read_file(const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is missing; run the tests from the top folder", path);
    char *text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    assert_true(n < (1 << 20) - 1);
    return text;
}

static void run_named(Graph *g, const char *name) {
    static const struct {
        const char *name;
        bool (*run)(Graph *, const PassContext *);
    } pass[] = {
#define PASS(name, what, required) {#name, pass_##name},
#include "../../compiler/pass.def"
#undef PASS
    };
    for (size_t i = 0; i < sizeof pass / sizeof *pass; i++)
        if (!strcmp(pass[i].name, name)) {
            pass[i].run(g, &context);
            return;
        }
    fail_msg("no pass %s", name);
}

static void check_golden(const char *path) {
    static const char mark[] = "\n---- ";
    char *text = read_file(path), *cut = strstr(text, mark), name[32] = "";
    if (!cut || sscanf(cut + strlen(mark), "%31s", name) != 1) fail_msg("%s: no mark", path);
    const char *want = strchr(cut + 1, '\n') + 1;
    PeftError err = {0};
    Graph *g = text_read(text, (size_t)(cut - text) + 1, path, &err);
    if (!g) fail_msg("%s", err.msg);
    run_named(g, name);
    verify_graph(g, name);
    char *got = graph_text(g);
    if (strcmp(got, want)) {
        size_t at = strspn(got, "\n");
        for (at = 0; got[at] && got[at] == want[at]; at++) {}
        while (at > 0 && got[at - 1] != '\n') at--;
        fail_msg("%s: got\n%.300s\nnot\n%.300s", path, got + at, want + at);
    }
    free(got);
    free(text);
    graph_free(g);
}

static void golden_texts(void **state) {
    (void)state;
    static const char *const name[] = {"simplify",  "slice_rows", "train",
                                       "inference", "remat",      "dce"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char path[64];
        snprintf(path, sizeof path, "tests/ir/%s.ir", name[i]);
        check_golden(path);
    }
}

/* ---- the verifier ---- */

typedef enum Damage {
    DAMAGE_TYPE,
    DAMAGE_ORDER,
    DAMAGE_VARIABLE,
    DAMAGE_FROZEN_UPDATE,
    DAMAGE_TWO_UPDATES,
    DAMAGE_UPDATE_TYPE,
    DAMAGE_EVAL_UPDATE,
    DAMAGE_LOSS,
    DAMAGE_TWO_OUTPUTS,
    DAMAGE_SITE,
    DAMAGE_MULTI,
    DAMAGE_COUNT
} Damage;

static Node *first_of(Graph *g, OpCode op) {
    for (int32_t i = 0; i < g->n; i++)
        if (g->node[i]->op == op) return g->node[i];
    fail_msg("no %s", op_info[op].name);
    return NULL;
}

/* Breaks one invariant; gives the words that the report must contain. */
static const char *break_graph(Graph *g, Damage d) {
    Function *train = &g->fn[PEFT_FN_TRAIN];
    int32_t frozen = graph_find_var(g, "bert.pooler.dense.bias");
    int32_t bias = graph_find_var(g, "classifier.bias");
    switch (d) {
    case DAMAGE_TYPE: first_of(g, OP_GELU)->type.dim[1]++; return "inference gives";
    case DAMAGE_ORDER: {
        Node *gelu = first_of(g, OP_GELU), **in = graph_alloc(g, sizeof *in);
        in[0] = train->out[0].node;
        gelu->in = in;
        return "is a later node";
    }
    case DAMAGE_VARIABLE: first_of(g, OP_VAR)->attr.leaf.index = g->nvar; return "no variable";
    case DAMAGE_FROZEN_UPDATE: train->update[0].var = frozen; return "frozen bert.pooler";
    case DAMAGE_TWO_UPDATES: train->update[0].var = train->update[1].var; return "updated twice";
    case DAMAGE_UPDATE_TYPE: train->update[0].value = train->out[0].node; return "another type";
    case DAMAGE_EVAL_UPDATE:
        graph_update(g, PEFT_FN_EVAL, bias, nd_var(g, bias));
        return "evaluation updates";
    case DAMAGE_LOSS: g->fn[PEFT_FN_EVAL].out[0].node = nd_var(g, bias); return "wrong type";
    case DAMAGE_TWO_OUTPUTS: train->out[1] = train->out[0]; return "two outputs named loss";
    case DAMAGE_SITE: g->nsite = 1; return "handed out";
    case DAMAGE_MULTI: train->out[1].node = first_of(g, OP_LAYER_NORM); return "several results";
    case DAMAGE_COUNT: break;
    }
    return NULL;
}

static void the_verifier_names_each_damage(void **state) {
    (void)state;
    for (int d = 0; d < DAMAGE_COUNT; d++) {
        Graph *g = compiled(MINI_LORA, 0.1, NULL);
        const Node *bad;
        char why[256] = "";
        assert_true(verify_check(g, &bad, why));
        const char *want = break_graph(g, (Damage)d);
        assert_false(verify_check(g, &bad, why));
        if (!strstr(why, want)) fail_msg("damage %d: %s", d, why);
        assert_true(bad || d == DAMAGE_EVAL_UPDATE);
        graph_free(g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_pass_off_equals_on),
        cmocka_unit_test(a_second_run_changes_nothing),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(dumps_and_times_are_reported),
        cmocka_unit_test(evaluation_only),
        cmocka_unit_test(last_layer_computes_first_tokens_only),
        cmocka_unit_test(backward_of_the_last_layer_is_sliced_too),
        cmocka_unit_test(a_reader_of_all_rows_prevents_slicing),
        cmocka_unit_test(masked_positions_stop_at_attention),
        cmocka_unit_test(a_gather_of_no_fewer_rows_stays),
        cmocka_unit_test(simplify_rules),
        cmocka_unit_test(clones_are_left_alone),
        cmocka_unit_test(evaluation_has_no_dropout),
        cmocka_unit_test(golden_texts),
        cmocka_unit_test(the_verifier_names_each_damage),
    };
    return cmocka_run_group_tests_name("passes", tests, NULL, NULL);
}
