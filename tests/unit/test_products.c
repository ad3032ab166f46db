/* How matrix products are prepared for a GPU: sums of products that can run side by side (balance),
 * products whose epilogue the library computes (plain_product), and kernels that work on eight
 * elements at a time (cuda_vector). */
#include "bench.h"

#include "../../compiler/emit/emit.h"
#include "../../compiler/emit/internal.h"
#include "../../compiler/pass.h"
#include "../../compiler/pass/fuse.h"
#include "../../compiler/pass/schedule.h"
#include "../../compiler/verify.h"

enum { ROWS = 3, COLS = 32, DEPTH = 4 };

static const PassContext context;

/* A trained matrix or vector of values that no two variables share. */
static Node *var(Bench *b, int rank, int64_t rows, int64_t cols) {
    double *x = graph_alloc(b->g, (size_t)(rows * (cols ? cols : 1)) * sizeof *x);
    for (int64_t i = 0; i < rows * (cols ? cols : 1); i++)
        x[i] = ((double)((i * 37 + b->g->nvar * 101) % 64) - 31.5) / 17;
    return bench_var(b, type_f32(rank, rows, cols), x);
}

static Node *product(Bench *b) {
    return nd_matmul(b->g, var(b, 2, ROWS, DEPTH), var(b, 2, DEPTH, COLS), false, false);
}

static Node *add(Bench *b, Node *x, Node *y) {
    return nd2(b->g, OP_ADD, x, y);
}

/* ---- balance ---- */

static const Node *product_of(const Node *n) {
    if (n->op == OP_MUL) n = n->in[n->in[0]->op == OP_CONST];
    return n->op == OP_MATMUL ? n : NULL;
}

static bool is_product(const Node *n) {
    return product_of(n) != NULL;
}

/* A product that waits for another one. */
static bool is_late(const Node *n) {
    const Node *p = product_of(n);
    return p && (is_product(p->in[0]) || is_product(p->in[1]));
}

static Node *late_product(Bench *b) {
    return nd2(b->g, OP_MATMUL, product(b), var(b, 2, COLS, COLS));
}

/* Products that are added to each other with a late one among them. */
static int count_pairs(const Node *n) {
    if (n->op != OP_ADD) return 0;
    if (is_product(n->in[0]) && is_product(n->in[1])) return is_late(n->in[0]) || is_late(n->in[1]);
    return count_pairs(n->in[0]) + count_pairs(n->in[1]);
}

static int count_products(const Node *n) {
    if (is_product(n)) return 1;
    return n->op == OP_ADD ? count_products(n->in[0]) + count_products(n->in[1]) : 0;
}

/* Balances EVAL's only output and compares its values with those from before. */
static Node *balanced(Bench *b, Node *sum, bool changes) {
    int64_t n = ROWS * COLS;
    const double *want = bench_value(b, sum);
    graph_output(b->g, PEFT_FN_EVAL, "sum", sum);
    assert_int_equal(pass_balance(b->g, &context), changes);
    verify_graph(b->g, "balance");
    Node *now = b->g->fn[PEFT_FN_EVAL].out[0].node;
    bench_close("sum", bench_value(b, now), want, (int)n, 1e-12);
    assert_false(pass_balance(b->g, &context));
    return now;
}

static void products_and_a_term(void **state) {
    (void)state;
    for (int at = 0; at <= 5; at++) /* where the other term comes */
        for (int late = 0; late < 32; late++) {
            Bench b;
            bench_open(&b);
            Node *sum = NULL;
            int nlate = 0, early = 0;
            for (int i = 0; i < 6; i++) {
                bool is_term = i == at, waits = late >> (i - (i > at)) & 1;
                Node *x = is_term ? var(&b, 2, ROWS, COLS) : waits ? late_product(&b) : product(&b);
                if (i == 2 && !is_term) x = nd_scale(b.g, x, 0.25);
                nlate += !is_term && waits;
                early += !is_term && !waits;
                sum = sum ? add(&b, sum, x) : x;
            }
            graph_output(b.g, PEFT_FN_EVAL, "sum", sum);
            const double *want = bench_value(&b, sum);
            pass_balance(b.g, &context);
            verify_graph(b.g, "balance");
            Node *now = b.g->fn[PEFT_FN_EVAL].out[0].node;
            bench_close("sum", bench_value(&b, now), want, ROWS * COLS, 1e-12);
            assert_false(pass_balance(b.g, &context));
            assert_int_equal(count_products(now), 5);
            int behind = nlate < early ? nlate : early + (nlate - early) / 2;
            assert_int_equal(count_pairs(now), behind);
            graph_free(b.g);
        }
}

static void two_products_stay(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *sum = add(&b, add(&b, var(&b, 2, ROWS, COLS), product(&b)), product(&b));
    assert_ptr_equal(balanced(&b, sum, false), sum);
    graph_free(b.g);
}

/* A partial sum that is an output, too, is computed as it was, and is one term of the rest. */
static void partial_sums_with_readers_stay(void **state) {
    (void)state;
    Bench b;
    bench_open(&b);
    Node *part = add(&b, product(&b), product(&b)), *sum = part;
    for (int i = 0; i < 3; i++) sum = add(&b, sum, product(&b));
    graph_output(b.g, PEFT_FN_EVAL, "part", part);
    const double *want = bench_value(&b, part), *all = bench_value(&b, sum);
    graph_output(b.g, PEFT_FN_EVAL, "sum", sum);
    assert_true(pass_balance(b.g, &context));
    const Function *f = &b.g->fn[PEFT_FN_EVAL];
    assert_ptr_equal(f->out[0].node, part);
    bench_close("part", bench_value(&b, f->out[0].node), want, ROWS * COLS, 1e-12);
    bench_close("sum", bench_value(&b, f->out[1].node), all, ROWS * COLS, 1e-12);
    int found = 0; /* the kept sum among the terms */
    for (const Node *n = f->out[1].node; n->op == OP_ADD; n = n->in[0])
        found += n->in[0] == part || n->in[1] == part ||
                 (n->in[1]->op == OP_ADD && (n->in[1]->in[0] == part || n->in[1]->in[1] == part));
    assert_int_equal(found, 1);
    graph_free(b.g);
}

/* ---- plain products ---- */

static const Program *tables(Bench *b, Node *out) {
    static const PeftFit fit = {.epochs = 1, .batch = 3, .accumulate = 1, .lr = 0.01};
    ProgramInfo info = {.name = "test", .source = "test.bert", .text = "", .fit = fit};
    FuseOptions fuse = {.skip = false};
    Schedule *sched[PEFT_FN_COUNT] = {NULL};
    int32_t n;
    graph_output(b->g, PEFT_FN_EVAL, "out", out);
    Kernel **k = fuse_function(b->g, PEFT_FN_EVAL, &fuse, &n);
    sched[PEFT_FN_EVAL] = schedule_function(b->g, PEFT_FN_EVAL, k, n);
    return program_build(b->g, &info, sched);
}

/* The step of the first product, whose description says whether it is plain. */
static const PeftStep *first_product(const Program *p) {
    const PeftFunction *f = &p->table.fn[PEFT_FN_EVAL];
    for (int i = 0; i < f->nstep; i++)
        if (p->table.kernel[f->step[i].kernel].kind == PEFT_KERNEL_GEMM) return &f->step[i];
    fail_msg("no product");
    return NULL;
}

/* Another product reads the result: it is a matrix of the work type, not an output's floats. */
static Node *read_by_product(Bench *b, Node *result) {
    return nd_matmul(b->g, result, var(b, 2, COLS, DEPTH), false, false);
}

/* scale A B, addend and bias in every order, each there or not. */
static void check_plain(int which, const int *order) {
    Bench b;
    bench_open(&b);
    double scale = which & 1 ? -0.5 : 1;
    Node *addend = var(&b, 2, ROWS, COLS), *bias = var(&b, 1, COLS, 0), *sum = NULL;
    Node *term[3] = {nd_scale(b.g, product(&b), scale), which & 2 ? addend : NULL,
                     which & 4 ? bias : NULL};
    for (int i = 0; i < 3; i++)
        if (term[order[i]]) sum = sum ? add(&b, sum, term[order[i]]) : term[order[i]];
    const PeftStep *s = first_product(tables(&b, read_by_product(&b, sum)));
    const PeftGemm *d = s->desc;
    assert_true(d->plain);
    assert_true(d->scale == scale);
    assert_int_equal(d->addend >= 0, (which & 2) != 0);
    assert_int_equal(d->bias >= 0, (which & 4) != 0);
    if (d->addend >= 0) assert_int_equal(s->arg[d->addend], PEFT_REF_VAR | addend->attr.leaf.index);
    if (d->bias >= 0) assert_int_equal(s->arg[d->bias], PEFT_REF_VAR | bias->attr.leaf.index);
    graph_free(b.g);
}

static void plain_in_any_order(void **state) {
    (void)state;
    static const int order[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                   {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int which = 0; which < 8; which++)
        for (size_t i = 0; i < sizeof order / sizeof *order; i++) check_plain(which, order[i]);
}

/* The k-th epilogue that no library computes; NULL after the last. */
static Node *not_plain(Bench *b, int k, const char **what) {
    Node *x = product(b), *a = var(b, 2, ROWS, COLS), *c = var(b, 1, COLS, 0), *sum = add(b, x, a);
#define CASE(n, text, expr) \
    case n: *what = text; return expr
    switch (k) {
        CASE(0, "a function", nd1(b->g, OP_GELU, x));
        CASE(1, "a function of the addend", add(b, x, nd1(b->g, OP_TANH, a)));
        CASE(2, "two addends", add(b, sum, var(b, 2, ROWS, COLS)));
        CASE(3, "two biases", add(b, add(b, x, c), var(b, 1, COLS, 0)));
        CASE(4, "a scaled addend", add(b, x, nd_scale(b->g, a, 2)));
        CASE(5, "a value for each row", add(b, x, var(b, 2, ROWS, 1)));
        CASE(6, "a factor for each column", nd2(b->g, OP_MUL, x, c));
        CASE(7, "the product twice", add(b, x, nd_scale(b->g, x, 2)));
        CASE(8, "a difference", nd2(b->g, OP_SUB, a, x));
        CASE(9, "a scalar addend", add(b, x, nd_const(b->g, 3)));
    default: return NULL;
    }
#undef CASE
}

static void other_epilogues_are_not_plain(void **state) {
    (void)state;
    for (int k = 0;; k++) {
        const char *what;
        Bench b;
        bench_open(&b);
        Node *n = not_plain(&b, k, &what);
        if (!n) {
            assert_int_equal(k, 10);
            graph_free(b.g);
            return;
        }
        const PeftGemm *d = first_product(tables(&b, read_by_product(&b, n)))->desc;
        if (d->plain) fail_msg("%s is called plain", what);
        assert_true(d->addend == -1 && d->bias == -1 && d->scale == 1);
        graph_free(b.g);
    }
}

/* An output is stored as floats, which libraries cannot add work values to. */
static void outputs_have_no_plain_sums(void **state) {
    (void)state;
    for (int with = 0; with < 2; with++) {
        Bench b;
        bench_open(&b);
        Node *x = product(&b);
        if (with) x = add(&b, x, var(&b, 2, ROWS, COLS));
        const PeftGemm *d = first_product(tables(&b, x))->desc;
        assert_int_equal(d->c_dtype, DT_F32);
        assert_int_equal(d->plain, !with);
        graph_free(b.g);
    }
}

/* ---- vectors ---- */

/* Elements at a time of the only generated kernel. */
static int vector_of(Bench *b, Node *out) {
    const Program *p = tables(b, out);
    assert_int_equal(p->ncode, 1);
    int vector = p->code[0].vector;
    bool in_source = strstr(p->table.cuda_source, "pk_put8(") != NULL;
    assert_int_equal(in_source, vector == CUDA_VECTOR);
    graph_free(b->g);
    return vector;
}

static int elementwise(int64_t cols, int which) {
    Bench b;
    bench_open(&b);
    Node *x = nd1(b.g, OP_TANH, var(&b, 2, ROWS, cols));
    if (which == 1) x = add(&b, x, var(&b, 1, cols, 0));
    if (which == 2) x = nd2(b.g, OP_MUL, x, var(&b, 2, ROWS, 1));
    if (which == 3) x = nd1(b.g, OP_SOFTMAX, x);
    if (which == 4) x = nd_sum(b.g, x, 0);
    return vector_of(&b, x);
}

static void width_decides(void **state) {
    (void)state;
    for (int which = 0; which < 4; which++)
        for (int64_t cols = 1; cols <= 40; cols++)
            assert_int_equal(elementwise(cols, which), cols % CUDA_VECTOR ? 1 : CUDA_VECTOR);
    assert_int_equal(elementwise(32, 4), 1); /* threads of a column sum have a column each */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_and_a_term),
        cmocka_unit_test(two_products_stay),
        cmocka_unit_test(partial_sums_with_readers_stay),
        cmocka_unit_test(plain_in_any_order),
        cmocka_unit_test(other_epilogues_are_not_plain),
        cmocka_unit_test(outputs_have_no_plain_sums),
        cmocka_unit_test(width_decides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
