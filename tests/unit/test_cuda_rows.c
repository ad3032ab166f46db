/* Generated kernels that give each row a block, on the emulated GPU, against their bodies in double
 * precision: rows of whole vectors and not, that fill their block and not, in one vector or more of
 * a thread. Rows beyond the batch hold NaN and indices that lead nowhere, and must give zeros;
 * results may lie over operands; the order of threads must not show. */
#include "cuda_program.h"

#include "compiler/emit/internal.h"
#include "compiler/kbody_eval.h"
#include "compiler/op/rules.h"
#include "runtime/storage.h"

enum { GUARD = 64, MARK = 0xa5, STALE = 0x7ffffff0, MOST_ARGS = 64 };

static uint32_t random_state = 5;

static float positive(void) { /* in [0.25, 1.75) */
    random_state = random_state * 1664525u + 1013904223u;
    return 0.25f + 1.5f * (float)(random_state >> 8) / 16777216.0f;
}

static int choice(void) { /* 0 or 1 */
    random_state = random_state * 1664525u + 1013904223u;
    return (int)(random_state >> 31);
}

/* ---- arguments ---- */

typedef struct Batch {
    int64_t live[PEFT_SYM_COUNT], padded[PEFT_SYM_COUNT];
} Batch;

typedef struct Buffer {
    Type type;
    uint8_t storage;
    int64_t count, live, bytes; /* elements, of those the batch's; bytes */
    double *value;              /* before the launch; NaN beyond the batch */
    char *before, *at;          /* all bytes then; now, behind a guard zone */
} Buffer;

typedef struct Side { /* a kernel: the epilogue of a code of two, its rows, or a code of its own */
    const Kernel *kernel;
    Args args;
    Buffer buffer[MOST_ARGS];
    double *value[MAX_RESULTS]; /* what it must compute, by result; the first rows are set */
} Side;

static int64_t count_of(Type t, const int64_t *sym) {
    int64_t n = 1;
    for (int d = 0; d < t.rank; d++) n *= peft_dim(t.dim[d], sym);
    return n;
}

static const KInstr *reader(const Side *s, int arg, KOp op) {
    const KBody *b = s->kernel->body;
    for (int v = 0; v < b->n; v++)
        if (b->instr[v].op == op && arg_read(s->kernel, &s->args, b->instr[v].tensor) == arg)
            return &b->instr[v];
    return NULL;
}

/* An index that tells which row a K_SCATTER takes may be -1. */
static bool is_slot(const Side *s, int arg) {
    const KBody *b = s->kernel->body;
    bool slot = false;
    for (int v = 0; v < b->n; v++) {
        if (b->instr[v].op != K_SCATTER && b->instr[v].op != K_GATHER) continue;
        const KInstr *index = &b->instr[b->instr[v].a];
        if (!index->tensor || arg_read(s->kernel, &s->args, index->tensor) != arg) continue;
        if (b->instr[v].op == K_GATHER) return false;
        slot = true;
    }
    return slot;
}

static void fill_ints(const Side *s, int arg, Buffer *x) {
    int32_t *at = (int32_t *)x->before;
    int lowest = is_slot(s, arg) ? -1 : 0;
    for (int64_t i = 0; i < x->count; i++) {
        x->value[i] = reader(s, arg, K_KEEP) ? 1 + i : choice() ? 1 : lowest;
        at[i] = i < x->live ? (int32_t)x->value[i] : STALE;
    }
}

static void fill_floats(Buffer *x, int work) {
    float *f = malloc((size_t)x->count * sizeof *f + 1);
    assert_non_null(f);
    for (int64_t i = 0; i < x->count; i++) f[i] = i < x->live ? positive() : NAN;
    storage_put(x->before, x->storage, work, x->count, 0, x->count, f);
    storage_get(x->before, x->storage, work, x->count, 0, x->count, f);
    for (int64_t i = 0; i < x->count; i++) x->value[i] = f[i];
    free(f);
}

static void open_buffer(const Side *s, int arg, uint8_t storage, const Batch *batch, int work) {
    Buffer *x = (Buffer *)&s->buffer[arg];
    x->type = s->args.node[arg]->type;
    x->storage = storage;
    x->count = count_of(x->type, batch->padded);
    x->live = count_of(x->type, batch->live);
    x->bytes = x->count * (storage == DT_F32 || storage == DT_I32 || work == 4 ? 4
                           : storage == DT_MASTER                              ? 4
                                                                               : 2);
    x->value = calloc((size_t)x->count + 1, sizeof *x->value);
    x->before = aligned_alloc(GUARD, (size_t)(x->bytes + GUARD) / GUARD * GUARD);
    x->at = aligned_alloc(GUARD, (size_t)(x->bytes + 4 * GUARD) / GUARD * GUARD);
    assert_true(x->value && x->before && x->at);
    if (storage == DT_I32)
        fill_ints(s, arg, x);
    else
        fill_floats(x, work);
}

static void open_side(Side *s, Graph *g, const Code *code, const Batch *batch, int work, int from) {
    memset(s, 0, sizeof *s);
    s->kernel = code->kernel;
    s->args = kernel_args(g, code->kernel);
    assert_in_range(s->args.n, 1, MOST_ARGS);
    for (int i = from; i < s->args.n; i++) {
        assert_non_null(s->args.node[i]);
        assert_false(peft_is_nf4(s->args.node[i]->type.dt));
        open_buffer(s, i, s->args.node[i]->type.dt == DT_I32 ? DT_I32 : code->storage[i], batch,
                    work);
    }
}

static void close_side(Side *s) {
    for (int i = 0; i < s->args.n; i++) {
        free(s->buffer[i].value);
        free(s->buffer[i].before);
        free(s->buffer[i].at);
    }
    for (int i = 0; i < s->kernel->nout; i++) free(s->value[i]);
}

/* ---- what a kernel must compute ---- */

/* given: values that stand for what an argument holds, by argument; NULL: none do. */
static void evaluate(Side *s, const Batch *batch, double *const *given) {
    const KBody *b = s->kernel->body;
    int64_t rows = peft_dim(b->rows, batch->live), all = rows * b->cols;
    RefTensor *tensor = calloc((size_t)b->n + 1, sizeof *tensor);
    double *value = calloc((size_t)(b->n * all) + 1, sizeof *value);
    assert_true(tensor && value);
    for (int v = 0; v < b->n; v++) {
        if (!b->instr[v].tensor) continue;
        Type t = b->instr[v].tensor->type;
        int a = arg_read(s->kernel, &s->args, b->instr[v].tensor);
        tensor[v] = (RefTensor){.rank = (uint8_t)t.rank, .count = count_of(t, batch->live)};
        for (int d = 0; d < t.rank; d++) tensor[v].dim[d] = peft_dim(t.dim[d], batch->live);
        tensor[v].data = given && given[a] ? given[a] : s->buffer[a].value;
    }
    kbody_eval(b, rows, tensor, value);
    for (int i = 0; i < s->kernel->nout; i++) {
        if (s->kernel->out_val[i] < 0) continue;
        s->value[i] = malloc((size_t)all * sizeof(double) + 1);
        assert_non_null(s->value[i]);
        memcpy(s->value[i], value + s->kernel->out_val[i] * all, (size_t)all * sizeof(double));
    }
    free(tensor);
    free(value);
}

/* What the rows of a code of two read of the epilogue: values as they would have been stored. */
static void evaluate_join(Side *first, Side *then, const Code *code, const Batch *batch, int work) {
    double *given[MOST_ARGS] = {NULL};
    const KBody *b = first->kernel->body;
    int64_t all = peft_dim(b->rows, batch->live) * b->cols;
    evaluate(first, batch, NULL);
    for (int i = 0; i < first->kernel->nout; i++) {
        int a = arg_written(first->kernel, &first->args, i);
        bool narrow = first->buffer[a].storage == DT_WORK && work == 2;
        for (int64_t k = 0; k < all; k++) {
            float x = (float)first->value[i][k];
            first->value[i][k] = narrow ? from_bf16(to_bf16(x)) : x;
        }
    }
    for (int a = 0; a < then->args.n; a++)
        if (code->join->result[a] >= 0) given[a] = first->value[code->join->result[a]];
    evaluate(then, batch, given);
}

static void check_result(const Side *s, int i, const char *at, const Batch *batch, int work,
                         double tolerance, const char *name) {
    const KBody *b = s->kernel->body;
    const Buffer *x = &s->buffer[arg_written(s->kernel, &s->args, i)];
    int64_t rows, cols;
    float *got = malloc((size_t)x->count * sizeof *got + 1);
    assert_non_null(got);
    type_space(x->type, &rows, &cols);
    rows = peft_dim(b->rows, batch->live);
    assert_int_equal(rows * cols, x->live);
    storage_get(at, x->storage, work, x->count, 0, x->count, got);
    for (int64_t k = 0; k < x->count; k++) {
        double want = k < x->live ? s->value[i][k / cols * b->cols + k % cols] : 0;
        double error = fabs(got[k] - want), scale = fabs(want) > 1 ? fabs(want) : 1;
        if (!(error <= (k < x->live ? tolerance * scale : 0)))
            fail_msg("%s, result %d, row %lld, column %lld: %.9g, not %.9g", name, i,
                     (long long)(k / cols), (long long)(k % cols), (double)got[k], want);
    }
    free(got);
}

/* ---- launches ---- */

typedef struct Case {
    const Built *b;
    const Code *code;
    const Batch *batch;
    Side first, then; /* first: of a code of two */
    char *over[MAX_RESULTS];
    int overlaid;
} Case;

/* An operand of the same form, read in place, that a result lies over; or -1. */
static int operand_under(const Case *c, int out, const bool *taken) {
    const Side *s = &c->then;
    int to = arg_written(s->kernel, &s->args, out);
    for (int a = 0; a < s->args.nread; a++)
        if (!taken[a] && s->buffer[a].storage == s->buffer[to].storage &&
            type_same_shape(s->buffer[a].type, s->buffer[to].type) &&
            body_reads_in_place(s->kernel, s->args.node[a]) &&
            (!c->code->join || c->code->join->result[a] < 0))
            return a;
    return -1;
}

static void place_results(Case *c, bool overlay) {
    Side *s = &c->then;
    bool taken[MOST_ARGS] = {false};
    c->overlaid = 0;
    for (int i = 0; i < s->kernel->nout; i++) {
        int to = arg_written(s->kernel, &s->args, i), a = -1;
        if (overlay) a = operand_under(c, i, taken);
        if (a >= 0) taken[a] = true;
        c->overlaid += a >= 0;
        c->over[i] = s->buffer[a >= 0 ? a : to].at;
    }
}

static void pass_side(Side *s, int from, char **pointer, void **param, int *n) {
    for (int a = from; a < s->args.n; a++) {
        Buffer *x = &s->buffer[a];
        memset(x->at, MARK, (size_t)(x->bytes + 4 * GUARD) / GUARD * GUARD);
        memcpy(x->at + GUARD, x->before, (size_t)x->bytes);
        pointer[*n] = x->at + GUARD;
        param[*n] = &pointer[*n];
        ++*n;
    }
}

static void check_guards(const Side *s, int from) {
    for (int a = from; a < s->args.n; a++) {
        const Buffer *x = &s->buffer[a];
        for (int i = 0; i < GUARD; i++)
            assert_true((uint8_t)x->at[i] == MARK && (uint8_t)x->at[GUARD + x->bytes + i] == MARK);
    }
}

static int pass_sites(const KBody *b, int32_t *site, void **param, int *n, int nsite) {
    for (int v = 0; v < b->n; v++) {
        if (b->instr[v].op != K_KEEP) continue;
        assert_in_range(nsite, 0, 7);
        site[nsite] = b->instr[v].site;
        param[(*n)++] = &site[nsite++];
    }
    return nsite;
}

static void launch(Case *c, int order) {
    char *pointer[2 * MOST_ARGS];
    void *param[2 * MOST_ARGS + 10];
    int32_t site[8];
    int n = 0, at, sites = 0;
    int64_t rows = c->then.kernel->body->rows;
    const int64_t *sym = c->batch->live;
    if (c->code->join) pass_side(&c->first, PEFT_GEMM_C, pointer, param, &n);
    at = n;
    pass_side(&c->then, 0, pointer, param, &n);
    for (int i = 0; i < c->then.kernel->nout; i++)
        pointer[at + arg_written(c->then.kernel, &c->then.args, i)] = c->over[i] + GUARD;
    param[n++] = &sym;
    param[n++] = &rows;
    if (c->code->join) sites = pass_sites(c->first.kernel->body, site, param, &n, 0);
    pass_sites(c->then.kernel->body, site, param, &n, sites);
    const char *error =
        c->b->emulate(c->b->find(c->code->name), (unsigned)peft_dim(rows, c->batch->padded), 1,
                      (unsigned)cuda_block(c->code), order, param);
    if (*error) fail_msg("%s: %s", c->code->name, error);
    if (c->code->join) check_guards(&c->first, PEFT_GEMM_C);
    check_guards(&c->then, 0);
}

/* bf16 has 8 bits; a joined kernel goes on with one that may have been rounded the other way. */
static void check_results(const Case *c, int work) {
    double wide = c->code->join ? 0.06 : 0.012, tolerance = work == 2 ? wide : 1e-4;
    for (int i = 0; c->code->join && i < c->first.kernel->nout; i++) {
        const Side *s = &c->first;
        const char *at = s->buffer[arg_written(s->kernel, &s->args, i)].at + GUARD;
        if (c->code->join->stored[i])
            check_result(s, i, at, c->batch, work, tolerance, c->code->name);
    }
    for (int i = 0; i < c->then.kernel->nout; i++)
        check_result(&c->then, i, c->over[i] + GUARD, c->batch, work, tolerance, c->code->name);
}

/* In one order, results apart from operands; in all orders over them, where they may be. */
static int run_case(const Built *b, const Code *code, const Batch *batch) {
    static Case c;
    int work = b->bf16 ? 2 : 4, bytes = 0;
    char *want[MAX_RESULTS] = {NULL};
    c = (Case){.b = b, .code = code, .batch = batch};
    open_side(&c.then, b->g, code, batch, work, 0);
    if (code->join) {
        open_side(&c.first, b->g, code->join->epilogue, batch, work, PEFT_GEMM_C);
        evaluate_join(&c.first, &c.then, code, batch, work);
    } else {
        evaluate(&c.then, batch, NULL);
    }
    for (int run = -1; run <= SHUFFLED; run++) {
        place_results(&c, run >= 0);
        launch(&c, run < 0 ? FORWARD : run);
        check_results(&c, work);
        for (int i = 0; i < c.then.kernel->nout; i++) {
            bytes = (int)c.then.buffer[arg_written(c.then.kernel, &c.then.args, i)].bytes;
            if (!want[i]) memcpy(want[i] = malloc((size_t)bytes), c.over[i] + GUARD, (size_t)bytes);
            assert_memory_equal(want[i], c.over[i] + GUARD, (size_t)bytes);
        }
    }
    for (int i = 0; i < c.then.kernel->nout; i++) free(want[i]);
    close_side(&c.then);
    if (code->join) close_side(&c.first);
    return c.overlaid;
}

/* ---- programs ---- */

static bool has_rows(const Code *code) {
    return code->launched && code->kernel->kind == PEFT_KERNEL_MAP &&
           cuda_launch(code->kernel) == PEFT_LAUNCH_ROWS;
}

static void load_codes(Built *b, const Code *const *code, int n) {
    static int count;
    char root[512], name[64];
    snprintf(name, sizeof name, "rows%d", count++);
    FILE *f = open_source(name, root);
    fprintf(f,
            "#include \"%s/tests/unit/cuda_emulator.h\"\nnamespace device {\n"
            "#include \"%s/runtime/cuda/kernel_cuda.h\"\n",
            root, root);
    for (int i = 0; i < n; i++) emit_kernel_cuda(f, b->g, code[i]);
    fprintf(f, "}\n%s", harness);
    for (int i = 0; i < n; i++) print_entry(f, code[i]->name);
    fputs(entry_points, f);
    assert_int_equal(fclose(f), 0);
    load_object(b, name);
}

static const Batch part = {
    {[PEFT_SYM_T] = 9, [PEFT_SYM_S] = 3, [PEFT_SYM_M] = 5, [PEFT_SYM_L] = 4},
    {[PEFT_SYM_T] = 64, [PEFT_SYM_S] = 3, [PEFT_SYM_M] = 64, [PEFT_SYM_L] = 4}};
static const Batch full = {
    {[PEFT_SYM_T] = 64, [PEFT_SYM_S] = 3, [PEFT_SYM_M] = 64, [PEFT_SYM_L] = 40},
    {[PEFT_SYM_T] = 64, [PEFT_SYM_S] = 3, [PEFT_SYM_M] = 64, [PEFT_SYM_L] = 40}};

static Built open_program(const char *path, int hidden, bool bf16) {
    const BaseField base[] = {{"hidden", hidden}, {"heads", 2},      {"ffn", 32}, {"layers", 2},
                              {"vocab", 40},      {"positions", 64}, {"types", 2}};
    Built b = {.bf16 = bf16};
    make_tables(&b, path, base, false);
    return b;
}

static void check(const char *path, int hidden, bool bf16, const Batch *batch) {
    Built b = open_program(path, hidden, bf16);
    const Code **code = calloc((size_t)b.p->ncode + 1, sizeof *code);
    int n = 0, joined = 0, overlaid = 0;
    assert_non_null(code);
    for (int i = 0; i < b.p->ncode; i++)
        if (has_rows(&b.p->code[i])) code[n++] = &b.p->code[i];
    load_codes(&b, code, n);
    for (int i = 0; i < n; i++) {
        overlaid += run_case(&b, code[i], batch);
        joined += code[i]->join != NULL;
    }
    print_message("%s, %s, %d wide: %d kernels, %d joined, %d results over operands\n", path,
                  bf16 ? "bf16" : "fp32", hidden, n, joined, overlaid);
    assert_true(n >= 8 && joined >= 3 && overlaid >= 3);
    free(code);
    drop(&b);
}

/* ---- a kernel whose row result lies over an operand that the whole block reads ---- */

static Node *buffer_node(Graph *g, int64_t cols) { /* [T] or [T, cols] */
    Node *n = graph_alloc(g, sizeof *n);
    *n = (Node){.op = OP_ADD, .type = {DT_F32, cols ? 2 : 1, {DIM_T, cols}}};
    return n;
}

/* a [T], x [T, cols] to a (sum of the row, or a) and x a - that: a is read in every loop. */
static Code *scale_rows(Graph *g, int64_t cols, bool sums) {
    Kernel *k = graph_alloc(g, sizeof *k);
    Code *code = graph_alloc(g, sizeof *code);
    uint8_t *storage = graph_alloc(g, 4);
    KBody *b = kb_new(g, DIM_T, cols);
    *k = (Kernel){.kind = PEFT_KERNEL_MAP, .body = b, .nin = 2, .nout = 2};
    k->in = graph_alloc(g, 2 * sizeof *k->in);
    k->out = graph_alloc(g, 2 * sizeof *k->out);
    k->out_val = graph_alloc(g, 2 * sizeof *k->out_val);
    k->in[0] = buffer_node(g, 0);
    k->in[1] = buffer_node(g, cols);
    k->out[0] = buffer_node(g, 0);
    k->out[1] = buffer_node(g, cols);
    KVal a = kb_load(b, k->in[0]), x = kb_load(b, k->in[1]), y = kb_binary(b, K_MUL, x, a);
    KVal mean = kb_binary(b, K_MUL, kb_row_sum(b, y), kb_const(b, 1.0 / (double)cols));
    k->out_val[0] = kb_binary(b, K_MUL, a, sums ? mean : a);
    k->out_val[1] = kb_binary(b, K_SUB, y, k->out_val[0]);
    storage[0] = storage[2] = DT_F32;
    storage[1] = storage[3] = DT_WORK;
    *code = (Code){.where = "", .storage = storage, .launched = true, .steps = 1};
    code->kernel = compact_kernel(g, k);
    code->vector = cuda_vector(g, code);
    code->name = graph_printf(g, "scale%d_%lld", sums, (long long)cols);
    return code;
}

static void test_row_results(void **state) {
    (void)state;
    skip_without_compiler();
    static const int cols[] = {8, 30, 264, 768, 1032, 3072, 4100};
    enum { N = sizeof cols / sizeof *cols };
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Built b = open_program("models/lora_r16.bert", 8, bf16);
        const Code *code[2 * N];
        for (int i = 0; i < 2 * N; i++) code[i] = scale_rows(b.g, cols[i / 2], i % 2);
        load_codes(&b, code, 2 * N);
        for (int i = 0; i < 2 * N; i++) {
            assert_int_equal(cuda_launch(code[i]->kernel), PEFT_LAUNCH_ROWS);
            assert_int_equal(run_case(&b, code[i], &part), 2);
        }
        drop(&b);
    }
}

static void test_vectors(void **state) {
    (void)state;
    skip_without_compiler();
    static const int hidden[] = {8, 96, 384, 768, 1024, 1032, 3072};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        check("models/lora_r16.bert", hidden[i], true, &part);
    check("models/lora_r16.bert", 1032, false, &part);
    check("models/lora_r16.bert", 96, true, &full);
}

static void test_scalars(void **state) {
    (void)state;
    skip_without_compiler();
    check("models/lora_r16.bert", 30, true, &part);
    check("models/lora_r16.bert", 1030, false, &part);
}

/* Trained embeddings and layer norms. */
static void test_masters(void **state) {
    (void)state;
    skip_without_compiler();
    check("models/full_ft.bert", 96, true, &part);
    check("models/full_ft.bert", 30, false, &part);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors), cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_masters), cmocka_unit_test(test_row_results)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
