/* A program with NF4 weights on the emulated GPU, launched in the runtime's own order, against the
 * same program with the weights as they are dequantised: outputs and gradients have the same bits.
 * One launch dequantises what the products of a batch read. */
#include "cuda_whole.h"
#include "runtime/cpu/nf4.h"

static const BaseField base[] = {{"hidden", 128}, {"heads", 2},      {"ffn", 192}, {"layers", 2},
                                 {"vocab", 40},   {"positions", 16}, {"types", 2}};

enum { SHARED = 232448 };

static int dequantising, dequantised; /* launches, and the weights of all of them */

static CUresult count_launch(const CUlaunchConfig *c, CUfunction f, void **param, void **extra) {
    bool dequant = f == launching->cuda.dequant;
    dequantising += dequant;
    dequantised += dequant ? (int)c->grid_y : 0;
    return emulated_launch(c, f, param, extra);
}

/* ---- weights ---- */

static char *var_at(const Run *r, int var) {
    return r->x.arena + r->x.plan.var_offset[var];
}

/* Any codes; the absmax of blocks from -0.2 to 0.4. */
static void fill_nf4(char *at, int64_t n) {
    const Nf4Layout l = nf4_layout(n, true);
    for (size_t i = 0; i < l.bytes; i++) at[i] = (char)(uniform() * 128);
    for (int64_t i = 0; i < nf4_groups(n); i++) ((float *)(at + l.nested))[i] = 0.3f;
    *(float *)(at + l.offset) = 0.1f;
}

static void fill_dequantised(const Run *r, char *to, const char *from, int64_t n) {
    const Nf4View v = nf4_view(from, n, true);
    for (int64_t i = 0; i < n; i++) {
        float x = nf4_value(&v, i);
        if (r->b->bf16)
            ((uint16_t *)to)[i] = to_bf16(x);
        else
            ((float *)to)[i] = x;
    }
}

/* Gives both programs the same variables; returns how many are quantised. */
static int share_variables(const Run *quantised, const Run *plain) {
    const PeftProgram *p = &quantised->b->p->table, *q = &plain->b->p->table;
    int n = 0;
    assert_int_equal(p->nvar, q->nvar);
    for (int i = 0; i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        int j = 0;
        while (j < q->nvar && strcmp(q->var[j].name, v->name) != 0) j++;
        assert_true(j < q->nvar && var_count(v) == var_count(&q->var[j]));
        if (peft_is_nf4(v->dtype)) {
            assert_int_equal(v->dtype, DT_NF4);
            fill_nf4(var_at(quantised, i), var_count(v));
            fill_dequantised(plain, var_at(plain, j), var_at(quantised, i), var_count(v));
            n++;
        } else {
            assert_int_equal(v->dtype, q->var[j].dtype);
            memcpy(var_at(plain, j), var_at(quantised, i), (size_t)var_bytes(&plain->x, j));
        }
    }
    return n;
}

/* Products of a function that has run which read a quantised weight, and the launches that they
 * are.
 */
static int count_quantised(const Run *r, PeftFn fn, int *launches) {
    const PeftProgram *p = &r->b->p->table;
    const Order *o = &r->cuda.order[fn].order;
    int n = 0;
    *launches = 0;
    for (int i = 0; i < o->nstep; i++) {
        const PeftStep *s = &p->fn[fn].step[o->member[o->first_member[i]]];
        const PeftGemm *g = s->desc;
        bool product = p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM &&
                       (o->part[i] == ORDER_WHOLE || o->part[i] == ORDER_PRODUCTS);
        if (!product || !peft_is_nf4(g->b_dtype)) continue;
        n += o->first_member[i + 1] - o->first_member[i];
        ++*launches;
    }
    return n;
}

/* ---- both programs ---- */

static void compare(const Built *quantised, const Built *plain, PeftFn fn) {
    Run q, p;
    int launches;
    open_whole(&q, quantised, SHUFFLED, SHARED);
    open_whole(&p, plain, FORWARD, SHARED);
    q.api.cuLaunchKernelEx = count_launch;
    assert_int_equal(share_variables(&q, &p), 6 * 2 + 1); /* two layers, the pooler */
    dequantising = dequantised = 0;
    run(&q, fn);
    int products = lt.products;
    assert_int_equal(dequantised, count_quantised(&q, fn, &launches));
    assert_int_equal(dequantising, launches);
    assert_in_range(launches, 1, dequantised - 3); /* queries, keys and values; the last layer's
                                                      keys and values */
    run(&p, fn);
    assert_int_equal(lt.products, products);
    same_outputs(&p, &q, fn, 0);
    print_message("%d weights dequantised in %d launches\n", dequantised, dequantising);
    close_whole(&q);
    close_whole(&p);
}

static void compare_programs(bool bf16) {
    skip_without_compiler();
    Built quantised = build("models/qlora_r16.bert", base, false, bf16);
    Built plain = build("models/lora_r16.bert", base, false, bf16);
    compare(&quantised, &plain, PEFT_FN_EVAL);
    compare(&quantised, &plain, PEFT_FN_GRADIENTS);
    drop(&quantised);
    drop(&plain);
}

static void test_fp32(void **state) {
    (void)state;
    compare_programs(false);
}

static void test_bf16(void **state) {
    (void)state;
    compare_programs(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp32), cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
