/* Whole functions on the emulated GPU, with and without joined kernels: a program's CUDA code is
 * built as C++ behind cuda_emulator.h and launched by the runtime's own launch code; only the
 * library's matrix products are the test's. Joining changes what is launched and in which registers
 * values wait, so every variable and every output must have the same bits, in fp32 and in bf16, in
 * whatever order threads and blocks run. */
#include "cuda_program.h"

extern const char cuda_text[]; /* what every program's kernels are compiled behind */

enum { TOKENS = 9, SEQUENCES = 3, MASKED = 4, LONGEST = 4, VOCAB = 40 };

static uint32_t random_state;

static float uniform(void) { /* in [-1, 1) */
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / 8388608.0f - 1.0f;
}

/* ---- a program, and its kernels as C++ ---- */

static const BaseField narrow[] = {{"hidden", 30}, {"heads", 3},      {"ffn", 44}, {"layers", 2},
                                   {"vocab", 40},  {"positions", 16}, {"types", 2}};
/* Two elements for most threads of a row. */
static const BaseField wide[] = {{"hidden", 264}, {"heads", 3},      {"ffn", 40}, {"layers", 1},
                                 {"vocab", 40},   {"positions", 16}, {"types", 2}};

static const char *const fixed_kernel[] = {"peft_attention", "peft_attention_grad",
                                           "peft_index",     "peft_segment_sum",
                                           "peft_transpose", "peft_nf4_dequant"};

static void write_source(const Program *p, const char *name) {
    char root[512];
    FILE *f = open_source(name, root);
    fprintf(f, "#include \"%s/tests/unit/cuda_emulator.h\"\nnamespace device {\n%s%s}\n%s", root,
            cuda_text, p->table.cuda_source, harness);
    for (size_t i = 0; i < sizeof fixed_kernel / sizeof *fixed_kernel; i++)
        print_entry(f, fixed_kernel[i]);
    for (int i = 0; i < p->ncode; i++)
        if (p->code[i].launched) print_entry(f, p->code[i].name);
    fputs(entry_points, f);
    assert_int_equal(fclose(f), 0);
}

static Built build(const char *path, const BaseField *base, bool skip_join, bool bf16) {
    static int count;
    Built b = {.bf16 = bf16};
    char name[64];
    make_tables(&b, path, base, skip_join);
    snprintf(name, sizeof name, "join%d", count++);
    write_source(b.p, name);
    load_object(&b, name);
    return b;
}

/* ---- launching ---- */

typedef struct Run { /* of a program, in its own arena */
    const Built *b;
    Exec x;
    CudaExec cuda;
    CudaApi api;
    PeftProgram table; /* whose products are maps: only the epilogue is launched */
    int64_t sym[PEFT_SYM_COUNT], device_sym[PEFT_SYM_COUNT]; /* made up to whole steps; as it is */
    int order;
} Run;

static const Run *launching;
static int launched;

static CUresult emulated_launch(const CUlaunchConfig *c, CUfunction f, void **param, void **extra) {
    assert_true(f && c->grid_z == 1 && c->block_y == 1 && c->block_z == 1 && !extra);
    assert_true(c->shared_bytes == 0 && c->nattribute == 0);
    const char *error =
        launching->b->emulate((void *)f, c->grid_x, c->grid_y, c->block_x, launching->order, param);
    if (*error) fail_msg("%s", error);
    launched++;
    return CUDA_SUCCESS;
}

static CUfunction find(const Built *b, const char *name) {
    void *k = b->find(name);
    if (!k) fail_msg("%s is not in the source", name);
    return k;
}

static void find_kernels(Run *r) {
    const PeftProgram *p = &r->b->p->table;
    CUfunction *const fixed[] = {&r->cuda.attention,   &r->cuda.attention_grad, &r->cuda.index,
                                 &r->cuda.segment_sum, &r->cuda.transpose,      &r->cuda.dequant};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        *fixed[i] = find(r->b, fixed_kernel[i]);
    r->cuda.kernel = calloc((size_t)p->nkernel, sizeof(CUfunction));
    assert_non_null(r->cuda.kernel);
    for (int i = 0; i < p->nkernel; i++)
        if (p->kernel[i].launch != PEFT_LAUNCH_NONE)
            r->cuda.kernel[i] = find(r->b, p->kernel[i].name);
}

/* The tables with every GEMM as a MAP that joins nothing. */
static void without_products(Run *r) {
    const PeftProgram *p = &r->b->p->table;
    PeftKernel *kernel = malloc((size_t)p->nkernel * sizeof *kernel);
    assert_non_null(kernel);
    memcpy(kernel, p->kernel, (size_t)p->nkernel * sizeof *kernel);
    r->table = *p;
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        size_t n = (size_t)p->fn[fn].nstep;
        PeftStep *step = malloc((n + 1) * sizeof *step);
        assert_non_null(step);
        for (size_t i = 0; i < n; i++) {
            step[i] = p->fn[fn].step[i];
            if (p->kernel[step[i].kernel].kind == PEFT_KERNEL_GEMM) step[i].desc = NULL;
        }
        r->table.fn[fn].step = step;
    }
    for (int i = 0; i < p->nkernel; i++)
        if (kernel[i].kind == PEFT_KERNEL_GEMM) kernel[i].kind = PEFT_KERNEL_MAP;
    r->table.kernel = kernel;
}

static float operand(const Run *r, const void *x, int64_t i) {
    return r->b->bf16 ? from_bf16(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

static void multiply(const Run *r, const PeftGemm *g, void *const *arg) {
    int64_t m = peft_dim(g->m, r->sym), n = peft_dim(g->n, r->sym), k = peft_dim(g->k, r->sym);
    bool narrow_c = r->b->bf16 && g->c_dtype == DT_WORK;
    assert_false(peft_is_nf4(g->b_dtype));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t t = 0; t < k; t++)
                sum += (double)operand(r, arg[0], g->trans_a ? t * m + i : i * k + t) *
                       (double)operand(r, arg[1], g->trans_b ? j * k + t : t * n + j);
            if (g->plain) sum *= g->scale;
            const void *add = g->plain && g->addend >= 0 ? arg[g->addend] : NULL;
            int64_t at = i * n + j;
            if (add) sum += (double)(narrow_c ? operand(r, add, at) : ((const float *)add)[at]);
            if (g->plain && g->bias >= 0) sum += (double)operand(r, arg[g->bias], j);
            if (narrow_c)
                ((uint16_t *)arg[2])[at] = to_bf16((float)sum);
            else
                ((float *)arg[2])[at] = (float)sum;
        }
}

static void run(Run *r, PeftFn fn) {
    const PeftFunction *f = &r->b->p->table.fn[fn];
    void **arg = r->x.arg[fn];
    launching = r;
    for (int i = 0; i < f->nstep; arg += f->step[i++].narg) {
        const PeftGemm *g = f->step[i].desc;
        PeftError err = {{0}, 0};
        if (r->b->p->table.kernel[f->step[i].kernel].kind == PEFT_KERNEL_GEMM) {
            multiply(r, g, arg);
            if (g->plain || g->joined) continue;
        }
        const CudaMembers one = {.step = &r->table.fn[fn].step[i], .arg = {arg}, .n = 1};
        if (!cuda_step(&r->x, &one, r->sym, &err)) fail_msg("%s: %s", f->step[i].label, err.msg);
    }
}

/* ---- state and batch ---- */

static void fill_vars(Run *r) {
    const PeftProgram *p = &r->b->p->table;
    random_state = 7;
    for (int i = 0; i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        char *at = r->x.arena + r->x.plan.var_offset[i];
        int64_t n = var_count(v);
        bool narrow_v = r->b->bf16 && (v->dtype == DT_WORK || v->dtype == DT_MASTER);
        memset(at, 0, (size_t)var_bytes(&r->x, i));
        for (int64_t k = 0; k < n && !v->is_state; k++) {
            float x = 0.3f * uniform();
            if (narrow_v)
                ((uint16_t *)at)[k] = to_bf16(x); /* the rest of a master is 0 */
            else
                ((float *)at)[k] = x;
        }
    }
}

static void fill_int(Run *r, PeftInputId id, int n, const int32_t *value) {
    memcpy(exec_input(&r->x, id), value, (size_t)n * sizeof *value);
}

static void fill_float(Run *r, PeftInputId id, float value) {
    *(float *)exec_input(&r->x, id) = value;
}

static void fill_inputs(Run *r) {
    fill_int(r, PEFT_IN_tokens, TOKENS, (int[]){1, 7, 39, 2, 1, 2, 1, 7, 2});
    fill_int(r, PEFT_IN_token_types, TOKENS, (int[]){0, 0, 1, 1, 0, 0, 0, 0, 1});
    fill_int(r, PEFT_IN_positions, TOKENS, (int[]){0, 1, 2, 3, 0, 1, 0, 1, 2});
    fill_int(r, PEFT_IN_token_sample, TOKENS, (int[]){5, 5, 5, 5, 2, 2, 9, 9, 9});
    fill_int(r, PEFT_IN_offsets, SEQUENCES + 1, (int[]){0, 4, 6, 9});
    fill_int(r, PEFT_IN_first, SEQUENCES, (int[]){0, 4, 6});
    fill_int(r, PEFT_IN_seq_sample, SEQUENCES, (int[]){5, 2, 9});
    fill_int(r, PEFT_IN_labels, SEQUENCES, (int[]){1, 0, 1});
    fill_int(r, PEFT_IN_masked_positions, MASKED, (int[]){1, 2, 5, 7});
    fill_int(r, PEFT_IN_masked_ids, MASKED, (int[]){3, 30, 11, 8});
    fill_int(r, PEFT_IN_rng, 4, (int[]){11, 22, 3, 1});
    fill_float(r, PEFT_IN_sequences, SEQUENCES);
    fill_float(r, PEFT_IN_masked, MASKED);
    fill_float(r, PEFT_IN_lr, 0.01f);
    fill_float(r, PEFT_IN_warmup_steps, 0);
    fill_float(r, PEFT_IN_total_steps, 100);
    fill_float(r, PEFT_IN_weight_decay, 0.01f);
    fill_float(r, PEFT_IN_clip_norm, 1);
}

static void open_run(Run *r, const Built *b, int order) {
    PeftError err = {{0}, 0};
    int64_t sym[PEFT_SYM_COUNT] = {[PEFT_SYM_T] = TOKENS,
                                   [PEFT_SYM_S] = SEQUENCES,
                                   [PEFT_SYM_M] = MASKED,
                                   [PEFT_SYM_L] = LONGEST};
    memset(r, 0, sizeof *r);
    r->b = b;
    r->order = order;
    memcpy(r->device_sym, sym, sizeof sym);
    exec_device_symbols(DEVICE_CUDA, b->bf16 ? COMPUTE_BF16 : COMPUTE_FP32, 0, sym);
    memcpy(r->sym, sym, sizeof sym);
    if (!exec_open(&r->x, &b->p->table, 1u << PEFT_FN_EVAL | 1u << PEFT_FN_TRAIN, DEVICE_NULL,
                   COMPUTE_FP32, 1, sym, sym, 0, &err))
        fail_msg("%s", err.msg);
    memset(r->x.arena, 0xff, (size_t)r->x.plan.peak); /* what is not written is NaN */
    fill_vars(r);
    fill_inputs(r);
    without_products(r);
    find_kernels(r);
    r->api.cuLaunchKernelEx = emulated_launch;
    r->cuda.api = &r->api;
    r->cuda.arena = (CUdeviceptr)(uintptr_t)r->x.arena;
    r->cuda.sym = (CUdeviceptr)(uintptr_t)r->device_sym;
    r->x.program = &r->table;
    r->x.cuda = &r->cuda;
}

static void close_run(Run *r) {
    r->x.cuda = NULL;
    exec_close(&r->x);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) free((void *)r->table.fn[fn].step);
    free((void *)r->table.kernel);
    free(r->cuda.kernel);
}

/* ---- comparison ---- */

static void same_outputs(const Run *a, const Run *b, PeftFn fn) {
    const PeftFunction *f = &a->b->p->table.fn[fn];
    for (int i = 0; i < f->nout; i++) {
        const PeftOutput *o = &f->out[i];
        int64_t n = 1;
        for (int k = 0; k < o->rank; k++) n *= peft_dim(o->dim[k], a->device_sym);
        const float *x = exec_output(&a->x, fn, o->name, NULL);
        const float *y = exec_output(&b->x, fn, o->name, NULL);
        for (int64_t k = 0; k < n; k++)
            if (!(fabsf(x[k]) < 1e6f) || memcmp(&x[k], &y[k], sizeof *x) != 0)
                fail_msg("%s[%lld]: %.9g apart, %.9g joined", o->name, (long long)k, (double)x[k],
                         (double)y[k]);
    }
}

static void same_vars(const Run *a, const Run *b) {
    const PeftProgram *p = &a->b->p->table;
    for (int i = 0; i < p->nvar; i++)
        if (memcmp(a->x.arena + a->x.plan.var_offset[i], b->x.arena + b->x.plan.var_offset[i],
                   (size_t)plan_bytes(p->var[i].dtype, p->var[i].rank, p->var[i].dim, a->sym)) != 0)
            fail_msg("%s differs", p->var[i].name);
}

/* What a step has trained is neither what it was nor NaN. */
static void check_trained(const Run *r) {
    const PeftProgram *p = &r->b->p->table;
    int changed = 0, trained = 0;
    Run before;
    open_run(&before, r->b, FORWARD);
    for (int i = 0; i < p->nvar; i++) {
        if (!p->var[i].trainable || p->var[i].is_state) continue;
        const char *x = r->x.arena + r->x.plan.var_offset[i];
        const char *y = before.x.arena + before.x.plan.var_offset[i];
        trained++;
        changed += memcmp(x, y, (size_t)var_bytes(&before.x, i)) != 0;
        if (p->var[i].dtype == DT_F32)
            for (int64_t k = 0; k < var_count(&p->var[i]); k++)
                assert_true(fabsf(((const float *)x)[k]) < 10.0f);
    }
    assert_true(trained > 0 && changed > trained * 9 / 10);
    close_run(&before);
}

/* An evaluation, then a training step: their losses, and how many kernels were launched. */
static int run_both(Run *r, float *loss) {
    static const PeftFn fn[] = {PEFT_FN_EVAL, PEFT_FN_TRAIN};
    launched = 0;
    for (int i = 0; i < 2; i++) {
        run(r, fn[i]);
        loss[i] = *(const float *)exec_output(&r->x, fn[i], "loss", NULL);
    }
    return launched;
}

static void compare(const char *path, const BaseField *base, bool bf16) {
    Built apart = build(path, base, true, bf16), joined = build(path, base, false, bf16);
    Run a, b;
    float want[2], loss[2];
    int most, least = 0;
    open_run(&a, &apart, FORWARD);
    most = run_both(&a, want);
    for (int order = FORWARD; order <= SHUFFLED; order++) {
        open_run(&b, &joined, order);
        least = run_both(&b, loss);
        assert_memory_equal(want, loss, sizeof want);
        same_outputs(&a, &b, PEFT_FN_TRAIN);
        same_vars(&a, &b);
        if (order == FORWARD) check_trained(&b);
        close_run(&b);
    }
    print_message("%s, %s, %g wide: %d launches, %d joined\n", path, bf16 ? "bf16" : "fp32",
                  base->value, most, least);
    assert_true(least <= most - 4);
    close_run(&a);
    drop(&apart);
    drop(&joined);
}

static void test_fp32(void **state) {
    (void)state;
    skip_without_compiler();
    compare("models/lora_r16.bert", wide, false);
    compare("models/full_ft.bert", narrow, false);
}

static void test_bf16(void **state) {
    (void)state;
    skip_without_compiler();
    compare("models/lora_r16.bert", narrow, true);
    compare("models/adapters.bert", wide, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp32), cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
