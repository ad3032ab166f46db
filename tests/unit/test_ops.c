/* The op table as a whole: every op has samples, scalar code equals reference, reference equals
 * PyTorch's numbers. Values marked torch come from torch 2.15 in float64. */
#include "bench.h"

#include <math.h>
#include <stdio.h>

#include "../../compiler/gradcheck.h"
#include "../../runtime/cpu/philox.h"

#define N(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- the table ---- */

static void every_op_has_samples(void **state) {
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        OpCase c;
        bool leaf = op_info[op].class == CLASS_LEAF;
        if (opcase_open(&c, op, 0, 1)) {
            assert_false(leaf);
            opcase_close(&c);
        } else if (!leaf) {
            fail_msg("%s has no sample", op_info[op].name);
        }
    }
}

/* Classes say who has scalar code: EW, ROW and LOAD ops, row sums, and constants. */
static void classes_match_rules(void **state) {
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        OpClass class = op_info[op].class;
        bool scalar = class == CLASS_EW || class == CLASS_ROW || class == CLASS_LOAD ||
                      class == CLASS_SUM || op == OP_CONST;
        if (scalar != (op_rules[op].lower != NULL)) fail_msg("%s", op_info[op].name);
        assert_true(op_info[op].nout >= 1 && op_info[op].nout <= MAX_RESULTS);
        assert_non_null(op_rules[op].infer);
        assert_non_null(op_rules[op].ref);
    }
}

/* Both sides are the same formula in doubles, summed in the same order: rounding alone differs. */
static void scalar_code_equals_reference(void **state) {
    (void)state;
    const double tolerance = 1e-12;
    double worst = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        int64_t compared = 0;
        OpCase c;
        for (int k = 0; opcase_open(&c, op, k, 1); k++) {
            opcase_close(&c);
            CheckResult r = lowercheck(op, k, 3);
            if (!r.sound || !(r.worst <= tolerance))
                fail_msg("%s, sample %d: error %g, %s", op_info[op].name, k, r.worst, r.what);
            compared += r.compared;
            worst = fmax(worst, r.worst);
        }
        if (op_rules[op].lower && op != OP_CONST && !compared)
            fail_msg("scalar code of %s was never compared", op_info[op].name);
    }
    print_message("worst error %.1e, %.1f%% of the tolerance\n", worst, 100 * worst / tolerance);
}

/* ---- values ---- */

/* torch: y = f(x) and dy/dx at four points; the second row pins the *_GRAD ops. */
static void unary_values(void **state) {
    (void)state;
    static const double x[] = {-2, -0.5, 0.25, 1.5}, positive[] = {0.1, 0.5, 1, 3};
    static const struct {
        OpCode op;
        const double *x;
        double y[4];
    } list[] = {
        {OP_NEG, x, {2, 0.5, -0.25, -1.5}},
        {OP_EXP,
         x,
         {0.1353352832366127, 0.60653065971263342, 1.2840254166877414, 4.4816890703380645}},
        {OP_LOG, positive, {-2.3025850929940455, -0.69314718055994529, 0, 1.0986122886681098}},
        {OP_SQRT, positive, {0.31622776601683794, 0.70710678118654757, 1, 1.7320508075688772}},
        {OP_RECIP, x, {-0.5, -2, 4, 0.66666666666666663}},
        {OP_SQUARE, x, {4, 0.25, 0.0625, 2.25}},
        {OP_TANH,
         x,
         {-0.9640275800758169, -0.46211715726000974, 0.24491866240370913, 0.9051482536448664}},
        {OP_SIGMOID,
         x,
         {0.11920292202211755, 0.37754066879814541, 0.56217650088579807, 0.81757447619364365}},
        {OP_RELU, x, {0, 0, 0.25, 1.5}},
        {OP_STEP, x, {0, 0, 1, 1}},
        {OP_GELU,
         x,
         {-0.045500263896358417, -0.15426876936299344, 0.14967658142073093, 1.399789198096713}},
        {OP_GELU_GRAD,
         x,
         {-0.085231801078196917, 0.13250487534383712, 0.69537335488363605, 1.1274691922299795}},
        {OP_GELU_TANH,
         x,
         {-0.045402305912224938, -0.15428599017485606, 0.149675350701685, 1.3995715769802328}},
        {OP_GELU_TANH_GRAD,
         x,
         {-0.086099256623618295, 0.13263009646535764, 0.69535409515106039, 1.127710793151433}},
        {OP_SILU,
         x,
         {-0.23840584404423509, -0.1887703343990727, 0.14054412522144952, 1.2263617142904655}},
        {OP_SILU_GRAD,
         x,
         {-0.090784248784895466, 0.26003881269734819, 0.62371002157019773, 1.041294154299143}},
    };
    for (int i = 0; i < N(list); i++) {
        Bench b;
        bench_open(&b);
        Node *y = nd1(b.g, list[i].op, bench_var(&b, type_f32(1, 4, 0), list[i].x));
        bench_close(op_info[list[i].op].name, bench_value(&b, y), list[i].y, 4, 1e-14);
        graph_free(b.g);
    }
}

/* [2,1] against [3]: every pair, in row order. */
static void binary_values(void **state) {
    (void)state;
    static const double a[] = {2, -3}, c[] = {4, 0.5, -3};
    static const struct {
        OpCode op;
        double y[6];
    } list[] = {
        {OP_ADD, {6, 2.5, -1, 1, -2.5, -6}}, {OP_SUB, {-2, 1.5, 5, -7, -3.5, 0}},
        {OP_MUL, {8, 1, -6, -12, -1.5, 9}},  {OP_DIV, {0.5, 4, -2. / 3, -0.75, -6, 1}},
        {OP_MIN, {2, 0.5, -3, -3, -3, -3}},  {OP_MAX, {4, 2, 2, 4, 0.5, -3}},
    };
    Bench b;
    bench_open(&b);
    Node *na = bench_var(&b, type_f32(2, 2, 1), a), *nc = bench_var(&b, type_f32(1, 3, 0), c);
    for (int i = 0; i < N(list); i++) {
        Node *y = nd2(b.g, list[i].op, na, nc);
        assert_int_equal(y->type.rank, 2);
        bench_close(op_info[list[i].op].name, bench_value(&b, y), list[i].y, 6, 1e-15);
    }
    static const double columns[] = {2, 2, 2, -3, -3, -3};
    bench_close("detach", bench_value(&b, nd1(b.g, OP_DETACH, nc)), c, 3, 0);
    bench_close("broadcast", bench_value(&b, nd_broadcast(b.g, na, type_f32(2, 2, 3))), columns, 6,
                0);
    graph_free(b.g);
}

/* torch: layer_norm, softmax, cross_entropy without reduction, logsumexp. */
static void row_values(void **state) {
    (void)state;
    static const double x[] = {-1, 2, 0.5, 3, 3, -2}, gamma[] = {1, -2, 0.5},
                        beta[] = {0, 0.25, -1};
    static const double label[] = {2, 0};
    static const double norm[] = {-1.2247407889290967, -2.1994815778581933, -1.0,
                                  0.7071061447913037,  -1.1642122895826075, -1.7071061447913036};
    static const double soft[] = {0.039112573270687456, 0.7855970345892759, 0.1752903921400367,
                                  0.4983211691867487,   0.4983211691867487, 0.0033576616265026146};
    static const double loss[] = {1.7413112966571571, 0.6965104917820788};
    static const double lse[] = {2.241311296657157, 3.696510491782079};
    static const double by_row[] = {1.5, 4}, by_column[] = {2, 5, -1.5}, all[] = {5.5};
    Bench b;
    bench_open(&b);
    Type row = type_f32(1, 3, 0);
    Node *nx = bench_var(&b, type_f32(2, 2, 3), x);
    Attr a = attr_zero();
    a.norm.eps = 1e-5;
    Node *y = NODE(b.g, OP_LAYER_NORM, a, nx, bench_var(&b, row, gamma), bench_var(&b, row, beta));
    bench_close("layer_norm", bench_value(&b, nd_proj(b.g, y, 0)), norm, 6, 1e-14);
    bench_close("softmax", bench_value(&b, nd1(b.g, OP_SOFTMAX, nx)), soft, 6, 1e-14);
    Node *ce = NODE(b.g, OP_CROSS_ENTROPY, attr_zero(), nx, bench_var(&b, type_i32(2), label));
    bench_close("loss", bench_value(&b, nd_proj(b.g, ce, 0)), loss, 2, 1e-14);
    bench_close("lse", bench_value(&b, nd_proj(b.g, ce, 1)), lse, 2, 1e-14);
    bench_close("sum over columns", bench_value(&b, nd_sum(b.g, nx, 1)), by_row, 2, 1e-15);
    bench_close("sum over rows", bench_value(&b, nd_sum(b.g, nx, 0)), by_column, 3, 1e-15);
    bench_close("sum", bench_value(&b, nd_sum(b.g, nx, -1)), all, 1, 1e-15);
    graph_free(b.g);
}

/* Rows whose exponentials overflow or vanish on their own. */
static void large_logits_do_not_overflow(void **state) {
    (void)state;
    static const double x[] = {1e4, 1e4 + 1, -1e4, -1e4 + 1}, label[] = {0, 1};
    static const double soft[] = {0.2689414213699951, 0.7310585786300049, 0.2689414213699951,
                                  0.7310585786300049};
    static const double loss[] = {1.3132616875182228, 0.31326168751822286};
    Bench b;
    bench_open(&b);
    Node *nx = bench_var(&b, type_f32(2, 2, 2), x);
    Node *ce = NODE(b.g, OP_CROSS_ENTROPY, attr_zero(), nx, bench_var(&b, type_i32(2), label));
    bench_close("softmax", bench_value(&b, nd1(b.g, OP_SOFTMAX, nx)), soft, 4, 1e-11);
    bench_close("loss", bench_value(&b, nd_proj(b.g, ce, 0)), loss, 2, 1e-11);
    graph_free(b.g);
}

static void matmul_values(void **state) {
    (void)state;
    static const double a[] = {1, 2, 3, 4, 5, 6}, c[] = {7, 8, 9, 10, 11, 12};
    static const double plain[] = {58, 64, 139, 154};                  /* [2,3] [3,2] */
    static const double at_b[] = {47, 52, 57, 64, 71, 78, 81, 90, 99}; /* [2,3]' [2,3] */
    static const double a_bt[] = {50, 68, 122, 167};                   /* [2,3] [2,3]' */
    static const double at_bt[] = {76, 103, 100, 136};                 /* [3,2]' [2,3]' */
    Bench b;
    bench_open(&b);
    Node *a23 = bench_var(&b, type_f32(2, 2, 3), a), *a32 = bench_var(&b, type_f32(2, 3, 2), a);
    Node *c23 = bench_var(&b, type_f32(2, 2, 3), c), *c32 = bench_var(&b, type_f32(2, 3, 2), c);
    bench_close("a b", bench_value(&b, nd_matmul(b.g, a23, c32, false, false)), plain, 4, 0);
    bench_close("a' b", bench_value(&b, nd_matmul(b.g, a23, c23, true, false)), at_b, 9, 0);
    bench_close("a b'", bench_value(&b, nd_matmul(b.g, a23, c23, false, true)), a_bt, 4, 0);
    bench_close("a' b'", bench_value(&b, nd_matmul(b.g, a32, c23, true, true)), at_bt, 4, 0);
    Node *twice = nd1(b.g, OP_TRANSPOSE, nd1(b.g, OP_TRANSPOSE, a23));
    bench_close("transpose twice", bench_value(&b, twice), a, 6, 0);
    graph_free(b.g);
}

/* ---- indices ---- */

static void index_groups_equal_values(void **state) {
    (void)state;
    static const double index[] = {4, 0, 4, 2, 0, 4},
                        dy[] = {1, 10, 2, 20, 3, 30, 4, 40, 5, 50, 6, 60};
    static const double order[] = {1, 4, 3, 0, 2, 5}, start[] = {0, 2, 3, 6, 6, 6, 6};
    static const double slot[] = {0, -1, 1, -1, 2};
    static const double sums[] = {7, 70, 4, 40, 10, 100, 0, 0, 0, 0, 0, 0};
    static const double table[] = {7, 70, 0, 0, 4, 40, 0, 0, 10, 100};
    Bench b;
    bench_open(&b);
    Attr a = attr_zero();
    a.index.rows = 5;
    Node *groups = NODE(b.g, OP_INDEX, a, bench_var(&b, type_i32(6), index));
    Node *part[3];
    for (int k = 0; k < 3; k++) part[k] = nd_proj(b.g, groups, k);
    bench_close("order", bench_value(&b, part[0]), order, 6, 0);
    bench_close("start", bench_value(&b, part[1]), start, 7, 0);
    bench_close("slot", bench_value(&b, part[2]), slot, 5, 0);
    Node *ndy = bench_var(&b, type_f32(2, 6, 2), dy);
    Node *s = NODE(b.g, OP_SEGMENT_SUM, attr_zero(), ndy, part[0], part[1]);
    bench_close("segment_sum", bench_value(&b, s), sums, 12, 0);
    bench_close("scatter", bench_value(&b, nd2(b.g, OP_SCATTER, s, part[2])), table, 10, 0);
    graph_free(b.g);
}

/* A row number that the table does not have is no value at all, never another row's. */
static void bad_indices_give_nan(void **state) {
    (void)state;
    static const double table[] = {1, 2, 3}, index[] = {3, -1, 0.5, 1}, start[] = {0, 9, 1, 1, 1};
    Bench b;
    bench_open(&b);
    Node *nt = bench_var(&b, type_f32(2, 3, 1), table), *ni = bench_var(&b, type_i32(4), index);
    const double *y = bench_value(&b, nd2(b.g, OP_GATHER, nt, ni));
    assert_true(isnan(y[0]) && isnan(y[1]) && isnan(y[2]) && y[3] == 2);
    y = bench_value(&b, nd2(b.g, OP_SCATTER, nt, ni));
    assert_true(isnan(y[0]) && y[1] == 0 && isnan(y[2]) && y[3] == 2);
    Node *dy = bench_var(&b, type_f32(2, 4, 1), index), *ns = bench_var(&b, type_i32(5), start);
    y = bench_value(&b, NODE(b.g, OP_SEGMENT_SUM, attr_zero(), dy, ni, ns));
    assert_true(isnan(y[0]) && isnan(y[1]) && y[2] == 0);
    Node *logits = bench_var(&b, type_f32(2, 4, 2), (double[]){1, 2, 3, 4, 5, 6, 7, 8});
    Node *ce = NODE(b.g, OP_CROSS_ENTROPY, attr_zero(), logits, ni);
    y = bench_value(&b, nd_proj(b.g, ce, 0));
    assert_true(isnan(y[0]) && isnan(y[1]) && isnan(y[2]) && !isnan(y[3]));
    graph_free(b.g);
}

/* ---- attention ---- */

static const double att_q[] = {0.5, -1, 1, 2, -0.5, 0.25}, att_k[] = {1, 0, 0.5, -0.5, 2, 1};
static const double att_v[] = {1, 2, 3, -4, 0.5, 0};

static Node *attention(Bench *b, Node *q, Node *k, Node *v, Node *offsets, Node *sample, int heads,
                       double scale) {
    Attr a = attr_zero();
    a.attention.scale = scale;
    a.attention.heads = heads;
    return NODE(b->g, OP_ATTENTION, a, q, k, v, offsets, nd_input(b->g, PEFT_IN_rng), sample);
}

/* torch: scaled_dot_product_attention of one sequence and one head. */
/* An empty sequence before it changes nothing. */
static void attention_values(void **state) {
    (void)state;
    static const double offsets[] = {0, 3}, sample[] = {0};
    static const double context[] = {1.6445498744638327, -0.8697245751529585,
                                     0.7823145244624483, 0.018564453547845715,
                                     1.5726994956927751, -0.7661976431855776};
    static const double lse[] = {1.3188226975376511, 2.2840726046861715, 0.8307847724660409};
    Bench b;
    bench_open(&b);
    Type t = type_f32(2, 3, 2);
    Node *y =
        attention(&b, bench_var(&b, t, att_q), bench_var(&b, t, att_k), bench_var(&b, t, att_v),
                  bench_var(&b, type_i32(2), offsets), bench_var(&b, type_i32(1), sample), 1, 0.5);
    bench_close("context", bench_value(&b, nd_proj(b.g, y, 0)), context, 6, 1e-14);
    bench_close("lse", bench_value(&b, nd_proj(b.g, y, 1)), lse, 3, 1e-14);
    y = NODE(b.g, OP_ATTENTION, y->attr, y->in[0], y->in[1], y->in[2],
             bench_var(&b, type_i32(3), (double[]){0, 0, 3}), y->in[4],
             bench_var(&b, type_i32(2), (double[]){0, 1}));
    bench_close("after an empty one", bench_value(&b, nd_proj(b.g, y, 0)), context, 6, 1e-14);
    graph_free(b.g);
}

/* Sequences of 2 and 3 tokens, two heads of one column: each head of each sequence is
 * softmax(scale q k') v on its own, and first-token queries give the first rows. */
static void attention_equals_decomposition(void **state) {
    (void)state;
    static const double q[] = {0.5, -1, 1, 2, -0.5, 0.25, 1.5, -2, 0.75, 1};
    static const double k[] = {1, 0, 0.5, -0.5, 2, 1, -1, 1, 0.25, -2};
    static const double v[] = {1, 2, 3, -4, 0.5, 0, -1, 1, 2, 5};
    static const double offsets[] = {0, 2, 5}, sample[] = {0, 1}, q_first[] = {0.5, -1, -0.5, 0.25};
    Bench b;
    bench_open(&b);
    Type t = type_f32(2, 5, 2);
    Node *nk = bench_var(&b, t, k), *nv = bench_var(&b, t, v),
         *ns = bench_var(&b, type_i32(2), sample);
    Node *no = bench_var(&b, type_i32(3), offsets);
    Node *all = attention(&b, bench_var(&b, t, q), nk, nv, no, ns, 2, 0.6);
    Node *first = attention(&b, bench_var(&b, type_f32(2, 2, 2), q_first), nk, nv, no, ns, 2, 0.6);
    const double *y = bench_value(&b, nd_proj(b.g, all, 0));
    const double *y1 = bench_value(&b, nd_proj(b.g, first, 0));
    bench_close("first of sequence 0", y1, y, 2, 1e-15);
    bench_close("first of sequence 1", y1 + 2, y + 4, 2, 1e-15);

    for (int s = 0; s < 2; s++)
        for (int h = 0; h < 2; h++) {
            double part[3][3], wanted[3];
            int begin = (int)offsets[s], n = (int)offsets[s + 1] - begin;
            for (int i = 0; i < n; i++) {
                part[0][i] = q[(begin + i) * 2 + h];
                part[1][i] = k[(begin + i) * 2 + h];
                part[2][i] = v[(begin + i) * 2 + h];
                wanted[i] = y[(begin + i) * 2 + h];
            }
            Bench one;
            bench_open(&one);
            Node *in[3];
            for (int i = 0; i < 3; i++) in[i] = bench_var(&one, type_f32(2, n, 1), part[i]);
            Node *score = nd_scale(one.g, nd_matmul(one.g, in[0], in[1], false, true), 0.6);
            Node *p = nd1(one.g, OP_SOFTMAX, score);
            bench_close("head", bench_value(&one, nd_matmul(one.g, p, in[2], false, false)), wanted,
                        n, 1e-14);
            graph_free(one.g);
        }
    graph_free(b.g);
}

/* Offsets that are not a division of the tokens make every result a NaN, not a read elsewhere. */
static void bad_offsets_give_nan(void **state) {
    (void)state;
    static const double sample[] = {0, 1};
    static const double bad[][3] = {{0, 2, 9}, {0, -1, 3}, {1, 2, 2},
                                    {0, 1, 2}, {0, 2, 1},  {0, 0.5, 3}};
    for (int i = 0; i < N(bad); i++) {
        Bench b;
        bench_open(&b);
        Type t = type_f32(2, 3, 2);
        Node *y = attention(&b, bench_var(&b, t, att_q), bench_var(&b, t, att_k),
                            bench_var(&b, t, att_v), bench_var(&b, type_i32(3), bad[i]),
                            bench_var(&b, type_i32(2), sample), 1, 0.5);
        const double *c = bench_value(&b, nd_proj(b.g, y, 0));
        assert_true(isnan(c[0]) || isnan(c[2]) || isnan(c[4]));
        graph_free(b.g);
    }
}

/* ---- dropout ---- */

enum { DROP_ROWS = 64, DROP_COLS = 40 };

static Node *dropout(Bench *b, const double *x, const double *sample, const double *position,
                     double p, int site) {
    Attr a = attr_zero();
    a.dropout.p = p;
    a.dropout.site = site;
    return NODE(b->g, OP_DROPOUT, a, bench_var(b, type_f32(2, DROP_ROWS, DROP_COLS), x),
                nd_input(b->g, PEFT_IN_rng), bench_var(b, type_i32(DROP_ROWS), sample),
                bench_var(b, type_i32(DROP_ROWS), position));
}

static void dropout_follows_its_counter(void **state) {
    (void)state;
    static double x[DROP_ROWS * DROP_COLS], sample[DROP_ROWS], position[DROP_ROWS];
    static double sample2[DROP_ROWS], position2[DROP_ROWS];
    for (int i = 0; i < DROP_ROWS * DROP_COLS; i++) x[i] = 1;
    for (int r = 0; r < DROP_ROWS; r++) {
        sample[r] = r / 8 + 100;
        position[r] = r % 8;
        sample2[r] = (DROP_ROWS - 1 - r) / 8 + 100; /* the same rows, packed backwards */
        position2[r] = (DROP_ROWS - 1 - r) % 8;
    }
    Bench b;
    bench_open(&b);
    b.env.dropout = true;
    Node *y = dropout(&b, x, sample, position, 0.25, 1);
    const double *one = bench_value(&b, y), *other_site, *back, *next, *off;
    other_site = bench_value(&b, dropout(&b, x, sample, position, 0.25, 2));
    back = bench_value(&b, dropout(&b, x, sample2, position2, 0.25, 1));
    b.env.step = 1;
    next = bench_value(&b, y);
    b.env.dropout = false;
    off = bench_value(&b, y);

    int dropped = 0, site = 0, step = 0;
    for (int i = 0; i < DROP_ROWS * DROP_COLS; i++) {
        assert_true(one[i] == 0 || one[i] == 4.0 / 3);
        int mirrored = (DROP_ROWS - 1 - i / DROP_COLS) * DROP_COLS + i % DROP_COLS;
        assert_true(one[i] == back[mirrored]);
        assert_true(off[i] == 1);
        dropped += one[i] == 0;
        site += one[i] != other_site[i];
        step += one[i] != next[i];
    }
    /* 2560 draws of probability 1/4 and 3/8: five standard deviations are 110 and 123 */
    assert_in_range(dropped, 640 - 110, 640 + 110);
    assert_in_range(site, 960 - 123, 960 + 123);
    assert_in_range(step, 960 - 123, 960 + 123);

    /* dropped below the threshold, kept at it */
    uint16_t lane = philox_lane(b.env.seed, 0, 1, (uint32_t)sample[0], (uint32_t)position[0], 0);
    b.env.step = 0;
    b.env.dropout = true;
    y = dropout(&b, x, sample, position, lane / 65536.0, 1);
    assert_true(bench_value(&b, y)[0] != 0);
    y = dropout(&b, x, sample, position, (lane + 1) / 65536.0, 1);
    assert_true(bench_value(&b, y)[0] == 0);
    graph_free(b.g);
}

/* Values that are unit vectors make the context the weights themselves: keep_j p_j, with p_j = 1/n
 * for zero queries. Head h of token i of a sequence counts (sample, h << 16 | i, j). */
static void attention_dropout_follows_its_counter(void **state) {
    (void)state;
    static const double zero[5 * 6], offsets[] = {0, 2, 5}, sample[] = {40, 7};
    static const double v[5 * 6] = {1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0,
                                    1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1};
    Bench b;
    bench_open(&b);
    b.env.seed = 0x123456789abcdef;
    b.env.step = 12;
    b.env.dropout = true;
    Attr a = attr_zero();
    a.attention.scale = 1;
    a.attention.heads = 2;
    a.attention.p = 0.5;
    a.attention.site = 9;
    Node *z = bench_var(&b, type_f32(2, 5, 6), zero);
    Node *y = NODE(b.g, OP_ATTENTION, a, z, z, bench_var(&b, type_f32(2, 5, 6), v),
                   bench_var(&b, type_i32(3), offsets), nd_input(b.g, PEFT_IN_rng),
                   bench_var(&b, type_i32(2), sample));
    const double *context = bench_value(&b, nd_proj(b.g, y, 0));
    for (int row = 0; row < 5; row++)
        for (int head = 0; head < 2; head++)
            for (int j = 0; j < 3; j++) {
                int s = row >= 2, i = s ? row - 2 : row, n = s ? 3 : 2;
                uint32_t position = (uint32_t)(head << 16 | i);
                bool kept = philox_lane(b.env.seed, 12, 9, (uint32_t)sample[s], position,
                                        (uint64_t)j) >= 32768;
                double wanted = kept && j < n ? 2.0 / n : 0;
                bench_close("weight", &context[row * 6 + head * 3 + j], &wanted, 1, 1e-15);
            }
    graph_free(b.g);
}

/* ---- AdamW ---- */

/* torch: AdamW(lr 0.1, eps 1e-3, weight_decay 0.2) over three clipped gradients. */
static void adamw_follows_torch(void **state) {
    (void)state;
    static const double grad[] = {0.3, -1, 2};
    static const double wanted[3][3] = {
        {0.88049885536434047, -1.8601501810396228, 0.39007514694804529},
        {0.76338773299157703, -1.723097357865027, 0.28234879037157012},
        {0.64861883259862452, -1.5887855907060877, 0.17677696048307154}};
    static const Type t = {.dt = DT_F32, .rank = 1, .dim = {3}};
    double p[] = {1, -2, 0.5}, g[3], m[3] = {0}, v[3] = {0}, lr = 0.1, wd = 0.2, clip, step;
    Bench b;
    bench_open(&b);
    Type s = type_scalar();
    Node *n_step = bench_var(&b, s, &step), *bc[2];
    for (int i = 0; i < 2; i++) {
        Attr a = attr_zero();
        a.decay.beta = i ? 0.999 : 0.9;
        bc[i] = NODE(b.g, OP_BIAS_CORRECTION, a, n_step);
    }
    Attr a = attr_zero();
    a.adamw.beta1 = 0.9;
    a.adamw.beta2 = 0.999;
    a.adamw.eps = 1e-3;
    Node *y = NODE(b.g, OP_ADAMW, a, bench_var(&b, t, p), bench_var(&b, t, g), bench_var(&b, t, m),
                   bench_var(&b, t, v), bench_var(&b, s, &lr), bench_var(&b, s, &clip), bc[0],
                   bc[1], bench_var(&b, s, &wd));
    for (int i = 0; i < 3; i++) {
        double norm = sqrt(0.3 * 0.3 + 1 + 4) * (i + 1);
        step = i + 1;
        clip = fmin(1, 1.5 / (norm + 1e-6));
        for (int j = 0; j < 3; j++) g[j] = grad[j] * (i + 1);
        const double *result[3];
        for (int k = 0; k < 3; k++) result[k] = bench_value(&b, nd_proj(b.g, y, k));
        memcpy(p, result[0], sizeof p);
        memcpy(m, result[1], sizeof m);
        memcpy(v, result[2], sizeof v);
        bench_close("p", p, wanted[i], 3, 1e-14);
    }
    graph_free(b.g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_has_samples),
        cmocka_unit_test(classes_match_rules),
        cmocka_unit_test(scalar_code_equals_reference),
        cmocka_unit_test(unary_values),
        cmocka_unit_test(binary_values),
        cmocka_unit_test(row_values),
        cmocka_unit_test(large_logits_do_not_overflow),
        cmocka_unit_test(matmul_values),
        cmocka_unit_test(index_groups_equal_values),
        cmocka_unit_test(bad_indices_give_nan),
        cmocka_unit_test(attention_values),
        cmocka_unit_test(attention_equals_decomposition),
        cmocka_unit_test(bad_offsets_give_nan),
        cmocka_unit_test(dropout_follows_its_counter),
        cmocka_unit_test(attention_dropout_follows_its_counter),
        cmocka_unit_test(adamw_follows_torch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
