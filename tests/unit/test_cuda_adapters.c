/* Programs with adapters on the emulated GPU, launched in the runtime's own order: two products
 * through a narrow middle are one kernel in bf16 where a block has the memory that it asks for, and
 * the library's in fp32, where it has not, and for long batches. What both ways compute is the same
 * but for roundings to bf16, gradients included, and an epilogue of the second product the same bit
 * for bit, as a kernel of its own and in that of both; the order of threads and blocks decides
 * nothing. */
#include "cuda_whole.h"

/* ---- runs ---- */

enum { ENOUGH = 232448, TOO_LITTLE = 32 << 10 };

/* Two parts of the columns; in the last layer, rows of sequences. */
static const BaseField base[] = {{"hidden", 128}, {"heads", 2},      {"ffn", 64}, {"layers", 2},
                                 {"vocab", 40},   {"positions", 16}, {"types", 2}};

/* Whether s is the first of two products and computes the second's epilogue, too. */
static bool finishes(const PeftProgram *p, const PeftStep *s) {
    const PeftStep *second = peft_second(p, s);
    return second && ((const PeftGemm *)second->desc)->finished;
}

/* Pairs of a function, those that are finished, and its products. */
static int count_pairs(const Run *r, PeftFn fn, int *finished, int *products) {
    const PeftProgram *p = &r->b->p->table;
    int pairs = 0;
    *finished = *products = 0;
    for (int i = 0; i < p->fn[fn].nstep; i++) {
        const PeftStep *s = &p->fn[fn].step[i];
        *products += p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
        pairs += peft_second(p, s) != NULL;
        *finished += finishes(p, s);
    }
    return pairs;
}

/* Every pair is one kernel and two products less, and both ways give the same; where it is finished
 * the second epilogue is no kernel either. */
static void compare(const Built *b, PeftFn fn, double tolerance) {
    Run apart, one;
    int products, finished, pairs;
    open_whole(&apart, b, FORWARD, TOO_LITTLE);
    pairs = count_pairs(&apart, fn, &finished, &products);
    assert_true(pairs > 0);
    assert_int_equal(finished > 0,
                     fn != PEFT_FN_EVAL); /* only a backward pass has such epilogues */
    run(&apart, fn);
    int kernels = launched;
    assert_int_equal(launched_narrow, 0);
    assert_int_equal(lt.products, products);
    for (int order = FORWARD; order <= SHUFFLED; order++) {
        Run again;
        open_whole(order == FORWARD ? &one : &again, b, order, ENOUGH);
        run(order == FORWARD ? &one : &again, fn);
        assert_int_equal(launched_narrow, pairs);
        assert_int_equal(lt.products, products - 2 * pairs);
        assert_int_equal(launched, kernels - finished); /* one in the place of the epilogue */
        if (order == FORWARD) continue;
        same_outputs(&one, &again, fn, 0);
        close_whole(&again);
    }
    same_outputs(&apart, &one, fn, tolerance);
    print_message("%d pairs of %d products, %d finished\n", pairs, products, finished);
    close_whole(&one);
    close_whole(&apart);
}

static void test_bf16(void **state) {
    (void)state;
    skip_without_compiler();
    Built b = build("models/adapters.bert", base, false, true);
    compare(&b, PEFT_FN_EVAL, 0.02);
    compare(&b, PEFT_FN_TRAIN, 0.02);
    compare(&b, PEFT_FN_GRADIENTS, 0.05);
    drop(&b);
}

/* ---- bits ---- */

static void *const *args_of(const Run *r, PeftFn fn, const PeftStep *s) {
    const PeftFunction *f = &r->b->p->table.fn[fn];
    void *const *arg = r->x.arg[fn];
    for (const PeftStep *k = f->step; k < s; k++) arg += k->narg;
    return arg;
}

/* The two products of a pair add up what bf16 holds in any order: in the first one whole numbers of
 * up to 128, in the second one value each. All else is random. */
static void fill_pair(Run *r, PeftFn fn, const PeftStep *s, const PeftStep *second) {
    const PeftGemm *g = s->desc, *h = second->desc;
    void *const *arg = args_of(r, fn, s), *const *to = args_of(r, fn, second);
    uint16_t *all = (uint16_t *)(r->x.arena + r->x.plan.persistent), *b2 = to[1];
    int64_t m = peft_dim(g->m, r->sym);
    random_state = 3;
    for (int64_t i = 0; i < (r->x.plan.peak - r->x.plan.persistent) / 2; i++)
        all[i] = to_bf16(uniform());
    for (int64_t i = 0; i < m * g->k; i++) ((uint16_t *)arg[0])[i] = to_bf16(rintf(uniform()));
    for (int64_t i = 0; i < g->k * g->n; i++) ((uint16_t *)arg[1])[i] = to_bf16(rintf(uniform()));
    for (int64_t j = 0; j < h->n; j++)
        for (int64_t k = 0; k < h->k; k++)
            b2[h->trans_b ? j * h->k + k : k * h->n + j] = to_bf16(k == j % h->k ? 0.5f : 0.0f);
}

/* Both steps of a pair; returns how many kernels were launched. */
static int run_pair(Run *r, PeftFn fn, const PeftStep *s, const PeftStep *second) {
    PeftError err = {{0}, 0};
    launching = r;
    launched = launched_narrow = lt.products = 0;
    for (const PeftStep *k = s;; k = second) {
        CudaMembers m = {.step = k, .arg = {args_of(r, fn, k)}, .n = 1, .part = ORDER_WHOLE};
        m.workspace[0] = r->x.workspace[fn][k - r->b->p->table.fn[fn].step];
        if (!cuda_step(&r->x, &m, r->sym, &err)) fail_msg("%s", err.msg);
        if (k == second) return launched;
    }
}

/* A result of a step: a matrix [m, n] in bf16, zero in few places but beyond the batch's rows. */
static void same_result(const Run *a, const Run *b, PeftFn fn, const PeftStep *s, int k) {
    const PeftGemm *g = s->desc;
    int64_t n = peft_dim(g->m, a->sym) * g->n, real = peft_dim(g->m, a->device_sym) * g->n;
    int64_t nonzero = 0;
    const uint16_t *x = args_of(a, fn, s)[k], *y = args_of(b, fn, s)[k];
    assert_int_equal(PEFT_REF_KIND(s->arg[k]), PEFT_REF_TEMP);
    assert_int_equal(a->b->p->table.fn[fn].temp[PEFT_REF_INDEX(s->arg[k])].dtype, DT_WORK);
    assert_memory_equal(x, y, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) nonzero += (x[i] & 0x7fff) != 0;
    assert_in_range(nonzero, real / 2, real);
}

/* Every finished pair of a training step; returns how many have further results. */
static int check_bits(const Built *b) {
    const PeftProgram *p = &b->p->table;
    const PeftFunction *f = &p->fn[PEFT_FN_TRAIN];
    int pairs = 0, more = 0;
    for (const PeftStep *s = f->step; s < f->step + f->nstep; s++) {
        const PeftStep *second = peft_second(p, s);
        if (!finishes(p, s)) continue;
        Run apart, one;
        open_whole(&apart, b, FORWARD, TOO_LITTLE);
        open_whole(&one, b, SHUFFLED, ENOUGH);
        fill_pair(&apart, PEFT_FN_TRAIN, s, second);
        fill_pair(&one, PEFT_FN_TRAIN, s, second);
        assert_int_equal(run_pair(&apart, PEFT_FN_TRAIN, s, second), 2);
        assert_int_equal(lt.products, 2);
        assert_int_equal(run_pair(&one, PEFT_FN_TRAIN, s, second), 1);
        assert_int_equal(lt.products, 0);
        same_result(&apart, &one, PEFT_FN_TRAIN, s, PEFT_GEMM_C);
        same_result(&apart, &one, PEFT_FN_TRAIN, second, PEFT_GEMM_C);
        for (int k = second->nread; k < second->narg; k++)
            same_result(&apart, &one, PEFT_FN_TRAIN, second, k);
        more += second->narg > second->nread;
        close_whole(&one);
        close_whole(&apart);
        pairs++;
    }
    assert_true(pairs > 1);
    return more;
}

static void test_finished(void **state) {
    (void)state;
    skip_without_compiler();
    Built b = build("models/adapters.bert", base, false, true);
    assert_int_equal(check_bits(&b), 0);
    drop(&b);
}

static void test_two_results(void **state) {
    (void)state;
    skip_without_compiler();
    Built b = build("tests/unit/scaled_adapters.bert", base, false, true);
    assert_true(check_bits(&b) > 1);
    compare(&b, PEFT_FN_GRADIENTS, 0.1); /* the three terms of the last bias nearly cancel out */
    drop(&b);
}

/* Blocks of the same rows compute their middle again and again: long batches are the library's. */
static void test_long_batch(void **state) {
    (void)state;
    skip_without_compiler();
    Built b = build("models/adapters.bert", base, false, true);
    const PeftProgram *p = &b.p->table;
    const PeftFunction *f = &p->fn[PEFT_FN_EVAL];
    int64_t sym[PEFT_SYM_COUNT];
    int i = 0;
    Run r;
    open_whole(&r, &b, FORWARD, ENOUGH);
    memcpy(sym, r.sym, sizeof sym);
    while (!peft_second(p, &f->step[i])) i++;
    sym[PEFT_SYM_T] = 1024;
    assert_true(cuda_is_narrow(&r.x, &f->step[i], sym));
    sym[PEFT_SYM_T] = 1088;
    assert_false(cuda_is_narrow(&r.x, &f->step[i], sym));
    close_whole(&r);
    drop(&b);
}

/* The library alone, whatever a block may have. */
static void test_fp32(void **state) {
    (void)state;
    skip_without_compiler();
    Built together = build("models/adapters.bert", base, false, false);
    Built skipped = build("models/adapters.bert", base, true, false);
    Run a, b;
    int products, finished;
    open_whole(&a, &together, FORWARD, ENOUGH);
    open_whole(&b, &skipped, FORWARD, ENOUGH);
    assert_true(count_pairs(&a, PEFT_FN_GRADIENTS, &finished, &products) > 0);
    assert_int_equal(count_pairs(&b, PEFT_FN_GRADIENTS, &finished, &products), 0);
    run(&a, PEFT_FN_GRADIENTS);
    assert_int_equal(launched_narrow, 0);
    assert_int_equal(lt.products, products);
    run(&b, PEFT_FN_GRADIENTS);
    assert_int_equal(lt.products, products);
    same_outputs(&a, &b, PEFT_FN_GRADIENTS, 0);
    close_whole(&a);
    close_whole(&b);
    drop(&together);
    drop(&skipped);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16), cmocka_unit_test(test_finished),
                                       cmocka_unit_test(test_two_results),
                                       cmocka_unit_test(test_long_batch),
                                       cmocka_unit_test(test_fp32)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
