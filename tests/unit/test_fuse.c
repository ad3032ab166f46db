/* Fusion and scheduling: which ops share a kernel in the cases that matter for speed and memory,
 * that updates come after the last reader, and, for random graphs, that running the kernels in
 * order (their scalar code in double precision) gives what the interpreter gives. */
#include "mini_bert.h"
#include "random_graph.h"

#include "../../compiler/kbody_eval.h"
#include "../../compiler/pass.h"
#include "../../compiler/pass/schedule.h"

/* ---- running a schedule in double precision ---- */

typedef struct Run {
    Graph *g;
    PeftFn fn;
    const Schedule *schedule;
    const InterpEnv *env;
    RefContext c;
    double rng[4];
    RefTensor *buffer; /* by node id; data NULL: not written yet */
} Run;

static RefTensor tensor_of(const Run *r, Type t) {
    RefTensor x = {.rank = t.rank, .count = 1};
    for (int d = 0; d < t.rank; d++) x.count *= x.dim[d] = peft_dim(t.dim[d], r->env->sym);
    x.data = graph_alloc(r->g, (size_t)x.count * sizeof(double) + 1);
    return x;
}

static RefTensor read_buffer(const Run *r, const Node *n) {
    const Node *at = buffer_of(n);
    if (at->op == OP_DEQUANT && !r->buffer[at->id].data) at = at->in[0];
    RefTensor x = r->buffer[at->id];
    if (at->op == OP_VAR) x = r->env->var[at->attr.leaf.index];
    if (at->op == OP_INPUT) x = r->env->input[at->attr.leaf.index];
    if (at->op == OP_INPUT && at->attr.leaf.index == PEFT_IN_rng) x.data = (double *)r->rng;
    int32_t updated = x.data ? -1 : updated_var(r->g, r->fn, r->schedule, at);
    if (updated >= 0) x = r->env->var[updated];
    if (!x.data) fail_msg("%s is read before it is written", op_info[at->op].name);
    RefTensor shaped = tensor_of(r, n->type);
    shaped.data = x.data;
    return shaped;
}

static void write_buffer(Run *r, const Node *n, RefTensor value) {
    if (n->op != OP_VAR)
        r->buffer[n->id] = value;
    else
        memcpy(r->env->var[n->attr.leaf.index].data, value.data,
               (size_t)value.count * sizeof(double));
}

/* What the runtime routine of a kernel computes: all results of its node. */
static void run_anchor(Run *r, const Kernel *k) {
    RefTensor in[16], out[MAX_RESULTS];
    Type type[MAX_RESULTS] = {{0}};
    char why[256];
    for (int i = 0; i < k->anchor->nin; i++) in[i] = read_buffer(r, k->anchor->in[i]);
    assert_true(op_rules[k->anchor->op].infer(k->anchor, type, why));
    for (int i = 0; i < op_info[k->anchor->op].nout; i++) out[i] = tensor_of(r, type[i]);
    op_rules[k->anchor->op].ref(k->anchor, &r->c, in, out);
    if (k->kind == PEFT_KERNEL_GEMM) r->buffer[k->anchor->id] = out[0];
    for (int i = 0; i < k->nout; i++)
        if (k->out_val[i] < 0)
            write_buffer(r, k->out[i], out[k->out[i]->op == OP_PROJ ? k->out[i]->attr.proj.k : 0]);
}

/* Element (row, column) of a result from its value over the kernel's space, or its sum. */
static void reduce_value(const Kernel *k, const double *v, int64_t rows, RefTensor *out) {
    int64_t cols = k->body->cols, orows = ref_rows(out), ocols = ref_cols(out);
    if (out->rank == 1 && k->kind == PEFT_KERNEL_MAP && k->body->cols == 1) {
        orows = out->count; /* i32 [R] */
        ocols = 1;
    }
    if (k->kind == PEFT_KERNEL_COLUMN_SUM || k->kind == PEFT_KERNEL_FULL_SUM) {
        for (int64_t i = 0; i < out->count; i++) out->data[i] = 0;
        for (int64_t i = 0; i < rows * cols; i++) out->data[out->count == 1 ? 0 : i % cols] += v[i];
        return;
    }
    for (int64_t row = 0; row < orows; row++)
        for (int64_t c = 0; c < ocols; c++) out->data[row * ocols + c] = v[row * cols + c];
}

static void run_body(Run *r, const Kernel *k) {
    const KBody *b = k->body;
    int64_t rows = peft_dim(b->rows, r->env->sym);
    RefTensor *tensor = graph_alloc(r->g, (size_t)b->n * sizeof *tensor + 1);
    bool *live = graph_alloc(r->g, (size_t)b->n + 1);
    double *value = graph_alloc(r->g, (size_t)(b->n * rows * b->cols) * sizeof *value + 1);
    RefTensor *out = graph_alloc(r->g, (size_t)k->nout * sizeof *out + 1);
    kernel_live(k, live);
    for (int i = 0; i < b->n; i++)
        if (b->instr[i].tensor && live[i]) tensor[i] = read_buffer(r, b->instr[i].tensor);
    for (int i = 0; i < b->n; i++) { /* dead code may load what this kernel has no business with */
        if (b->instr[i].tensor && !live[i]) tensor[i] = tensor_of(r, b->instr[i].tensor->type);
    }
    kbody_eval(b, rows, tensor, value);
    for (int i = 0; i < k->nout; i++) {
        if (k->out_val[i] < 0) continue;
        out[i] = tensor_of(r, k->out[i]->type);
        reduce_value(k, value + (int64_t)k->out_val[i] * rows * b->cols, rows, &out[i]);
    }
    for (int i = 0; i < k->nout; i++)
        if (k->out_val[i] >= 0) write_buffer(r, k->out[i], out[i]);
}

static Schedule *make_schedule(Graph *g, PeftFn fn, bool skip) {
    FuseOptions options = {.skip = skip};
    int32_t n;
    Kernel **k = fuse_function(g, fn, &options, &n);
    return schedule_function(g, fn, k, n);
}

static void run_schedule(Run *r, Graph *g, PeftFn fn, const Schedule *s, const InterpEnv *env) {
    *r = (Run){.g = g, .fn = fn, .schedule = s, .env = env};
    r->c = (RefContext){env->sym, env->seed, env->step, env->dropout};
    r->rng[0] = (double)(int32_t)env->seed;
    r->rng[1] = (double)(int32_t)(env->seed >> 32);
    r->rng[2] = env->step;
    r->rng[3] = env->dropout;
    r->buffer = graph_alloc(g, (size_t)g->n * sizeof *r->buffer + 1);
    for (int i = 0; i < s->n; i++) {
        if (s->kernel[i]->anchor) run_anchor(r, s->kernel[i]);
        if (s->kernel[i]->body) run_body(r, s->kernel[i]);
    }
}

/* Runs a function both ways and compares outputs and updated variables. */
static void check_schedule(Graph *g, PeftFn fn, bool skip, const InterpEnv *env) {
    const Function *f = &g->fn[fn];
    RefTensor *want = calloc((size_t)(f->nout + f->nupdate) + 1, sizeof *want);
    RefTensor *var = graph_alloc(g, (size_t)g->nvar * sizeof *var + 1);
    PeftError err = {{0}, 0};
    Run r;
    if (!interp_function(g, fn, env, want, want + f->nout, &err)) fail_msg("%s", err.msg);
    InterpEnv own = *env; /* updates change variables */
    own.var = var;
    for (int i = 0; i < g->nvar; i++) {
        var[i] = env->var[i];
        var[i].data = graph_alloc(g, (size_t)var[i].count * sizeof(double) + 1);
        memcpy(var[i].data, env->var[i].data, (size_t)var[i].count * sizeof(double));
    }
    run_schedule(&r, g, fn, make_schedule(g, fn, skip), &own);
    for (int i = 0; i < f->nout; i++) {
        RefTensor found = read_buffer(&r, f->out[i].node);
        mini_assert_close(&found, &want[i], f->out[i].name);
    }
    for (int i = 0; i < f->nupdate; i++)
        mini_assert_close(&var[f->update[i].var], &want[f->nout + i], "update");
    interp_free(want, f->nout + f->nupdate);
    free(want);
}

/* ---- random graphs ---- */

static void bind_random(Graph *g, InterpEnv *env) {
    *env = (InterpEnv){.seed = 7, .step = 3, .dropout = true};
    sample_symbols(env->sym);
    RefTensor *var = graph_alloc(g, (size_t)g->nvar * sizeof *var + 1);
    RefTensor *input = graph_alloc(g, PEFT_IN_COUNT * sizeof *input);
    Run r = {.g = g, .env = env};
    for (int i = 0; i < g->nvar; i++) {
        var[i] = tensor_of(&r, g->var[i].type);
        sample_fill(&g->var[i], 1, var[i].data, var[i].count);
    }
    for (int i = 0; i < PEFT_IN_COUNT; i++) {
        input[i] = tensor_of(&r, nd_input(g, (PeftInputId)i)->type);
        sample_batch((PeftInputId)i, input[i].data, input[i].count);
    }
    env->var = var;
    env->input = input;
}

static void random_graphs(void **state) {
    (void)state;
    int kernels[2] = {0, 0};
    for (uint64_t seed = 1; seed <= 300; seed++) {
        Graph *g = random_graph(seed, 20 + (int)seed % 160);
        InterpEnv env;
        bind_random(g, &env);
        check_schedule(g, PEFT_FN_TRAIN, false, &env);
        check_schedule(g, PEFT_FN_TRAIN, true, &env);
        for (int skip = 0; skip < 2; skip++)
            kernels[skip] += make_schedule(g, PEFT_FN_TRAIN, skip)->n;
        graph_free(g);
    }
    print_message("%d kernels, %d without fusion\n", kernels[0], kernels[1]);
    assert_true(kernels[0] * 3 < kernels[1] * 2);
}

/* ---- the small BERT ---- */

static Graph *mini_program(MiniKind kind) {
    static const PeftFit fit = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    PassOptions options = {.fit = &fit};
    Graph *g = mini_bert(kind, 0.1);
    passes_run(g, &options);
    return g;
}

static void mini_bert_in_order(void **state) {
    (void)state;
    for (int kind = 0; kind < MINI_KINDS; kind++) {
        Graph *g = mini_program(kind);
        MiniBatch b;
        mini_batch(&b, g, true);
        for (int fn = 0; fn < PEFT_FN_COUNT; fn++)
            for (int skip = 0; skip < 2 && g->fn[fn].nout; skip++)
                check_schedule(g, (PeftFn)fn, skip, &b.env);
        mini_batch_free(&b);
        graph_free(g);
    }
}

static int count_kind(const Schedule *s, PeftKernelKind kind) {
    int n = 0;
    for (int i = 0; i < s->n; i++) n += s->kernel[i]->kind == kind;
    return n;
}

/* A step of the mini BERT, kernel by kernel: 2 layers, the second one on first tokens only. */
static void mini_bert_kernels(void **state) {
    (void)state;
    Graph *g = mini_program(MINI_FULL);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(count_kind(s, PEFT_KERNEL_GEMM), 2 * 6 + 2);
    assert_int_equal(count_kind(s, PEFT_KERNEL_ATTENTION), 2);
    /* embeddings with their norm, four norms, the gathered query rows, loss, mean */
    assert_int_equal(count_kind(s, PEFT_KERNEL_MAP), 1 + 4 + 1 + 1 + 1);
    assert_int_equal(count_kind(s, PEFT_KERNEL_FULL_SUM), 1);
    assert_int_equal(s->n, 14 + 2 + 8 + 1);
    graph_free(g);
}

/* ---- single cases ---- */

static const Kernel *kernel_of(const Schedule *s, const Node *n) {
    for (int i = 0; i < s->n; i++)
        for (int k = 0; k < s->kernel[i]->nnode; k++)
            if (s->kernel[i]->node[k] == n) return s->kernel[i];
    return NULL;
}

static bool stores(const Kernel *k, const Node *n) {
    for (int i = 0; i < k->nout; i++)
        if (k->out[i] == n) return true;
    return false;
}

static Node *real(Graph *g, int64_t rows, int64_t cols) {
    return sample_real(g, 2, rows, cols);
}

static void output(Graph *g, const char *name, Node *n) {
    graph_output(g, PEFT_FN_EVAL, name, n);
}

static Node *norm(Graph *g, Node *x, int64_t cols) {
    Attr a = attr_zero();
    a.norm.eps = 1e-5;
    return NODE(g, OP_LAYER_NORM, a, x, sample_real(g, 1, cols, 0), sample_real(g, 1, cols, 0));
}

/* dense + bias + residual is the GEMM's epilogue; the norm reads its result. The pre-activation,
 * kept for the backward pass, and the activation leave one GEMM together. */
static void epilogues(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *x = real(g, DIM_T, 8), *mm = nd_matmul(g, x, real(g, 8, 8), false, true);
    Node *sum = nd2(g, OP_ADD, nd2(g, OP_ADD, mm, sample_real(g, 1, 8, 0)), x);
    Node *y = norm(g, sum, 8), *y0 = nd_proj(g, y, 0);
    Node *pre = nd_matmul(g, y0, real(g, 16, 8), false, true), *act = nd1(g, OP_GELU, pre);
    output(g, "y", y0);
    output(g, "pre", pre);
    output(g, "act", act);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 3);
    assert_ptr_equal(kernel_of(s, sum), kernel_of(s, mm));
    assert_int_equal(kernel_of(s, sum)->kind, PEFT_KERNEL_GEMM);
    assert_ptr_equal(kernel_of(s, sum)->out[0], sum); /* C of the GEMM, overwritten in place */
    assert_ptr_equal(kernel_of(s, act), kernel_of(s, pre));
    assert_ptr_equal(kernel_of(s, act)->out[0], pre);
    assert_true(stores(kernel_of(s, act), act));
    assert_int_equal(kernel_of(s, y)->kind, PEFT_KERNEL_MAP);
    assert_int_equal(kernel_of(s, y)->nnode, 1);
    graph_free(g);
}

/* Two products that are added: the later one's epilogue reads the earlier one's result, which has
 * its own bias inside. */
static void sum_of_products(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *x = real(g, DIM_T, 8), *a = nd_matmul(g, x, real(g, 8, 8), false, true);
    Node *base = nd2(g, OP_ADD, a, sample_real(g, 1, 8, 0));
    Node *b = nd_matmul(g, real(g, DIM_T, 2), real(g, 8, 2), false, true);
    Node *y = nd2(g, OP_ADD, base, nd_scale(g, b, 2));
    output(g, "y", y);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 2);
    assert_ptr_equal(kernel_of(s, base), kernel_of(s, a));
    assert_ptr_equal(kernel_of(s, y), kernel_of(s, b));
    assert_ptr_equal(s->kernel[1]->out[0], y);
    graph_free(g);
}

/* Loads and broadcasts are computed where they are used, and stored only for runtime routines. */
static void loads_are_repeated(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *index = sample_index(g, DIM_T, 5), *rows = nd2(g, OP_GATHER, real(g, 5, 8), index);
    Node *a = nd1(g, OP_TANH, rows), *b = nd_sum(g, nd1(g, OP_SQUARE, rows), 0);
    output(g, "a", a);
    output(g, "b", b);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 2);
    for (int i = 0; i < 2; i++) assert_false(stores(s->kernel[i], rows));
    output(g, "c", nd_matmul(g, rows, real(g, 8, 8), false, false));
    s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 4); /* and the gather that the product reads */
    graph_free(g);
}

/* B of a product is dequantised while it is packed, A cannot be. */
static void quantised_operands(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *w = sample_nf4(g, 8, 8, false), *d = nd1(g, OP_DEQUANT, w);
    output(g, "b", nd_matmul(g, real(g, DIM_T, 8), d, false, true));
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 1);
    assert_ptr_equal(s->kernel[0]->in[1], w);
    output(g, "a", nd_matmul(g, d, real(g, 8, 4), false, false));
    s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 3);
    assert_non_null(kernel_of(s, d));
    graph_free(g);
}

/* Sums over rows of values that share an operand run together, those that share none do not. */
static void column_sums_share(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *dy = real(g, DIM_T, 8), *x = real(g, DIM_T, 8);
    Node *beta = nd_sum(g, dy, 0), *gamma = nd_sum(g, nd2(g, OP_MUL, dy, x), 0);
    Node *other = nd_sum(g, real(g, DIM_T, 8), 0);
    output(g, "beta", beta);
    output(g, "gamma", gamma);
    output(g, "other", other);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 2);
    assert_ptr_equal(kernel_of(s, beta), kernel_of(s, gamma));
    assert_ptr_not_equal(kernel_of(s, beta), kernel_of(s, other));
    graph_free(g);
}

/* ---- remarks ---- */

typedef struct Remarks {
    const Node *producer, *consumer;
    const char *why;
} Remarks;

static void note(void *ctx, const Node *producer, const Node *consumer, const char *why) {
    Remarks *r = ctx;
    if (r->producer == producer && r->consumer == consumer) r->why = why;
}

/* e -> product -> last and e -> last: with e inside last's kernel, that kernel would have to run
 * both before and after the product. */
static void no_circle(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *e = nd1(g, OP_TANH, real(g, DIM_T, 8)), *w = real(g, 8, 8);
    Node *mm = nd_matmul(g, e, w, false, false), *row = nd1(g, OP_SOFTMAX, mm);
    Node *last = nd2(g, OP_MUL, row, e);
    output(g, "last", last);
    Remarks r = {e, last, NULL};
    FuseOptions options = {.remark = note, .ctx = &r};
    int32_t n;
    Kernel **k = fuse_function(g, PEFT_FN_EVAL, &options, &n);
    Schedule *s = schedule_function(g, PEFT_FN_EVAL, k, n);
    assert_int_equal(s->n, 3);
    assert_int_equal(kernel_of(s, e)->nnode, 1);
    assert_ptr_equal(kernel_of(s, row), kernel_of(s, last));
    assert_non_null(r.why);
    assert_string_equal(r.why, "another user of it must run before this one");
    graph_free(g);
}

/* ---- updates ---- */

static int step_of(const Schedule *s, const Node *n) {
    for (int i = 0; i < s->n; i++)
        if (s->kernel[i] == kernel_of(s, n)) return i;
    return -1;
}

static void update(Graph *g, const Node *var, Node *value) {
    graph_update(g, PEFT_FN_EVAL, var->attr.leaf.index, value);
}

/* A variable is overwritten by the kernel that computes its new value, after everybody has read the
 * old one. */
static void updates_in_place(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *p = real(g, 8, 8), *x = real(g, DIM_T, 8);
    Node *next = nd2(g, OP_SUB, p, nd_const(g, 1));
    Node *y = nd_matmul(g, x, p, false, false); /* made after `next`, must run before it */
    update(g, p, next);
    output(g, "y", y);
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 2);
    assert_true(step_of(s, y) < step_of(s, next));
    assert_ptr_equal(kernel_of(s, next)->out[0], p);
    assert_int_equal(updated_var(g, PEFT_FN_EVAL, s, next), p->attr.leaf.index);
    graph_free(g);
}

/* p' = f(q), q' = f(p): whoever goes first destroys what the other reads, so one is copied at the
 * end. A kernel that reads p at other elements than it writes cannot overwrite it either. */
static void updates_by_copy(void **state) {
    (void)state;
    Graph *g = graph_new();
    Node *p = real(g, 8, 8), *q = real(g, 8, 8);
    update(g, p, nd1(g, OP_TANH, q));
    update(g, q, nd1(g, OP_NEG, p));
    Schedule *s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 3);
    assert_int_equal(s->kernel[2]->nnode, 0);
    InterpEnv env;
    bind_random(g, &env);
    check_schedule(g, PEFT_FN_EVAL, false, &env);
    graph_free(g);

    g = graph_new();
    p = real(g, 8, 8);
    update(g, p, nd1(g, OP_TANH, nd2(g, OP_GATHER, p, sample_index(g, 8, 8))));
    s = make_schedule(g, PEFT_FN_EVAL, false);
    assert_int_equal(s->n, 2);
    bind_random(g, &env);
    check_schedule(g, PEFT_FN_EVAL, false, &env);
    graph_free(g);
}

/* ---- order ---- */

/* The parts of a gradient's norm come right after the gradient; what only the backward pass reads
 * of the forward pass's leaves is made when it is read. */
static void order_keeps_little_alive(void **state) {
    (void)state;
    Graph *g = mini_program(MINI_FULL);
    Schedule *s = make_schedule(g, PEFT_FN_TRAIN, false);
    int loss = step_of(s, buffer_of(graph_find_output(g, PEFT_FN_TRAIN, "loss")));
    for (int i = 0; i < s->n; i++) {
        const Kernel *k = s->kernel[i];
        if (k->kind == PEFT_KERNEL_INDEX) assert_true(i > loss);
        if (k->kind != PEFT_KERNEL_FULL_SUM || i < loss) continue;
        int made = -1; /* what it sums up comes from one of the few steps before it */
        for (int j = i - 1; j >= 0 && made < 0; j--)
            for (int o = 0; o < s->kernel[j]->nout; o++)
                if (s->kernel[j]->out[o] == k->in[0]) made = j;
        assert_true(i - made <= 4);
    }
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs),      cmocka_unit_test(mini_bert_in_order),
        cmocka_unit_test(mini_bert_kernels),  cmocka_unit_test(epilogues),
        cmocka_unit_test(sum_of_products),    cmocka_unit_test(loads_are_repeated),
        cmocka_unit_test(quantised_operands), cmocka_unit_test(column_sums_share),
        cmocka_unit_test(no_circle),          cmocka_unit_test(updates_in_place),
        cmocka_unit_test(updates_by_copy),    cmocka_unit_test(order_keeps_little_alive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
