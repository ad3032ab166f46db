/* Whole functions on the emulated GPU, with and without joined kernels: a program's CUDA code is
 * built as C++ behind cuda_emulator.h and launched by the runtime's own launch code; only the
 * library's matrix products are the test's. Joining changes what is launched and in which registers
 * values wait, so every variable and every output must have the same bits, in fp32 and in bf16, in
 * whatever order threads and blocks run. */
#include "cuda_run.h"

static const BaseField narrow[] = {{"hidden", 30}, {"heads", 3},      {"ffn", 44}, {"layers", 2},
                                   {"vocab", 40},  {"positions", 16}, {"types", 2}};
/* Two elements for most threads of a row. */
static const BaseField wide[] = {{"hidden", 264}, {"heads", 3},      {"ffn", 40}, {"layers", 1},
                                 {"vocab", 40},   {"positions", 16}, {"types", 2}};

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
    r->x.program = &r->table;
}

static void open_apart(Run *r, const Built *b, int order) {
    open_run(r, b, order, 48 << 10);
    without_products(r);
}

static void close_apart(Run *r) {
    close_run(r);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) free((void *)r->table.fn[fn].step);
    free((void *)r->table.kernel);
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
    open_apart(&before, r->b, FORWARD);
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
    close_apart(&before);
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
    open_apart(&a, &apart, FORWARD);
    most = run_both(&a, want);
    for (int order = FORWARD; order <= SHUFFLED; order++) {
        open_apart(&b, &joined, order);
        least = run_both(&b, loss);
        assert_memory_equal(want, loss, sizeof want);
        same_outputs(&a, &b, PEFT_FN_TRAIN);
        same_vars(&a, &b);
        if (order == FORWARD) check_trained(&b);
        close_apart(&b);
    }
    print_message("%s, %s, %g wide: %d launches, %d joined\n", path, bf16 ? "bf16" : "fp32",
                  base->value, most, least);
    assert_true(least <= most - 4);
    close_apart(&a);
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
