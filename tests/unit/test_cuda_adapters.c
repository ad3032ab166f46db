/* Programs with adapters on the emulated GPU, launched in the runtime's own order: two products
 * through a narrow middle are one kernel in bf16 where a block has the memory that it asks for, and
 * the library's in fp32, where it has not, and for long batches. What both ways compute is the same
 * but for roundings to bf16, gradients included; the order of threads and blocks decides nothing.
 */
#include "cuda_whole.h"

/* ---- runs ---- */

enum { ENOUGH = 232448, TOO_LITTLE = 32 << 10 };

/* Two parts of the columns; in the last layer, rows of sequences. */
static const BaseField base[] = {{"hidden", 128}, {"heads", 2},      {"ffn", 64}, {"layers", 2},
                                 {"vocab", 40},   {"positions", 16}, {"types", 2}};

/* Pairs of a function, and its products. */
static int count_pairs(const Run *r, PeftFn fn, int *products) {
    const PeftProgram *p = &r->b->p->table;
    int pairs = 0;
    *products = 0;
    for (int i = 0; i < p->fn[fn].nstep; i++) {
        const PeftStep *s = &p->fn[fn].step[i];
        *products += p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
        pairs += peft_second(p, s) != NULL;
    }
    return pairs;
}

/* Every pair is one kernel and two products less, and both ways give the same. */
static void compare(const Built *b, PeftFn fn, double tolerance) {
    Run apart, one;
    int products, pairs;
    open_whole(&apart, b, FORWARD, TOO_LITTLE);
    pairs = count_pairs(&apart, fn, &products);
    assert_true(pairs > 0);
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
        assert_int_equal(launched, kernels); /* in the place of the epilogue */
        if (order == FORWARD) continue;
        same_outputs(&one, &again, fn, 0);
        close_whole(&again);
    }
    same_outputs(&apart, &one, fn, tolerance);
    print_message("%d pairs of %d products\n", pairs, products);
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
    int products;
    open_whole(&a, &together, FORWARD, ENOUGH);
    open_whole(&b, &skipped, FORWARD, ENOUGH);
    assert_true(count_pairs(&a, PEFT_FN_GRADIENTS, &products) > 0);
    assert_int_equal(count_pairs(&b, PEFT_FN_GRADIENTS, &products), 0);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_long_batch),
                                       cmocka_unit_test(test_fp32)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
