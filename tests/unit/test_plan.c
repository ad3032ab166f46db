/* The memory planner: random lifetimes against its own brute-force check and an independent one,
 * the lower bound, known layouts, overflow, and the plan of a whole program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "../../runtime/plan.h"

/* ---- random items ---- */

static uint64_t state = 1;

static int64_t below(int64_t n) { /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int64_t)(state % (uint64_t)n);
}

/* Like a training step: most values die soon, some live until the mirrored step of the backward
 * pass, some to the end. */
static void random_items(PlanItem *item, int n) {
    for (int i = 0; i < n; i++) {
        int64_t kind = below(4);
        int32_t first = (int32_t)below(n);
        int32_t last = first + (int32_t)below(4);
        if (kind == 0 && first < n / 2) last = n - first;
        if (kind == 1) last = n;
        int64_t bytes = below(3) ? 1 + below(1 << 20) : 1 + below(200);
        item[i] = (PlanItem){.bytes = bytes, .first = first, .last = last};
    }
}

/* Independent of plan.c: walks every step. */
static int64_t live_bytes(const PlanItem *item, int n, int32_t step) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++)
        if (item[i].first <= step && step <= item[i].last) sum += (item[i].bytes + 63) / 64 * 64;
    return sum;
}

static void assert_disjoint(const PlanItem *item, int n, int64_t peak) {
    for (int i = 0; i < n; i++) {
        assert_int_equal(item[i].offset % PEFT_ALIGN, 0);
        assert_in_range(item[i].offset, 0, (uintmax_t)(peak - item[i].bytes));
        for (int j = 0; j < i; j++) {
            bool together = item[i].first <= item[j].last && item[j].first <= item[i].last;
            bool apart = item[i].offset + item[i].bytes <= item[j].offset ||
                         item[j].offset + item[j].bytes <= item[i].offset;
            if (together && !apart) fail_msg("items %d and %d overlap", j, i);
        }
    }
}

static void random_lifetimes(void **unused) {
    (void)unused;
    double worst = 0, sum = 0;
    enum { ROUNDS = 60, MOST = 250 };
    static PlanItem item[MOST];
    for (int round = 0; round < ROUNDS; round++) {
        int n = 1 + (int)below(MOST);
        PlanSummary s;
        PeftError err = {{0}, 0};
        random_items(item, n);
        assert_true(plan_offsets(item, n, &s, &err));
        assert_true(plan_check(item, n, &err));
        assert_disjoint(item, n, s.peak);
        int64_t bound = 0;
        for (int32_t step = 0; step <= 2 * n; step++) {
            int64_t live = live_bytes(item, n, step);
            if (live > bound) bound = live;
        }
        assert_int_equal(s.lower_bound, bound);
        assert_int_equal(live_bytes(item, n, s.peak_step), bound);
        assert_true(s.peak >= bound);
        double ratio = (double)s.peak / (double)bound;
        if (ratio > worst) worst = ratio;
        sum += ratio;
    }
    print_message("peak over lower bound: mean %.4f, worst %.4f\n", sum / ROUNDS, worst);
    assert_true(sum / ROUNDS < 1.02);
}

static void large_plans_take_milliseconds(void **unused) {
    (void)unused;
    enum { N = 2000 };
    static PlanItem item[N];
    PlanSummary s;
    PeftError err = {{0}, 0};
    random_items(item, N);
    clock_t start = clock();
    assert_true(plan_offsets(item, N, &s, &err));
    double ms = 1e3 * (double)(clock() - start) / CLOCKS_PER_SEC;
    assert_true(plan_check(item, N, &err));
    print_message("%d items: %.1f ms, ratio %.4f\n", N, ms, (double)s.peak / (double)s.lower_bound);
    assert_true(ms < 2000); /* a quadratic search, even under sanitizers */
}

/* ---- known plans ---- */

static void known_layouts(void **unused) {
    (void)unused;
    PlanSummary s;
    PeftError err = {{0}, 0};
    PlanItem apart[] = {{100, 0, 1, -1}, {100, 2, 3, -1}}; /* one place is enough */
    assert_true(plan_offsets(apart, 2, &s, &err));
    assert_int_equal(s.peak, 128);
    assert_int_equal(apart[0].offset, 0);
    assert_int_equal(apart[1].offset, 0);
    PlanItem meet[] = {{100, 0, 2, -1}, {100, 2, 3, -1}}; /* both are alive at step 2 */
    assert_true(plan_offsets(meet, 2, &s, &err));
    assert_int_equal(s.peak, 256);
    assert_int_equal(s.peak_step, 2);
    assert_true(plan_offsets(NULL, 0, &s, &err));
    assert_int_equal(s.peak, 0);
    /* First fit by start would put the last one on top (640); the bound is reachable. */
    PlanItem stairs[] = {{64, 0, 1, -1}, {128, 1, 2, -1}, {192, 2, 3, -1}, {256, 3, 4, -1}};
    assert_true(plan_offsets(stairs, 4, &s, &err));
    assert_int_equal(s.peak, s.lower_bound);
    assert_int_equal(s.peak, 448);
}

static void check_finds_mistakes(void **unused) {
    (void)unused;
    PeftError err = {{0}, 0};
    PlanItem overlap[] = {{100, 0, 5, 0}, {100, 5, 9, 64}};
    assert_false(plan_check(overlap, 2, &err));
    assert_string_equal(err.msg, "memory plan: items 0 and 1 overlap at 64");
    err = (PeftError){{0}, 0};
    PlanItem crooked[] = {{100, 0, 5, 32}};
    assert_false(plan_check(crooked, 1, &err));
    assert_non_null(strstr(err.msg, "not a multiple of 64"));
    PlanItem later[] = {{100, 0, 4, 0}, {100, 5, 9, 64}};
    assert_true(plan_check(later, 2, &err));
}

static void bad_items_are_refused(void **unused) {
    (void)unused;
    static const PlanItem bad[] = {{0, 0, 1, 0}, {-5, 0, 1, 0}, {8, 2, 1, 0}, {INT64_MAX, 0, 1, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        PlanItem item = bad[i];
        PlanSummary s;
        PeftError err = {{0}, 0};
        assert_false(plan_offsets(&item, 1, &s, &err));
        assert_non_null(strstr(err.msg, "memory plan: item 0"));
    }
    PlanItem huge[] = {
        {INT64_MAX / 2, 0, 1, 0}, {INT64_MAX / 2, 0, 1, 0}, {INT64_MAX / 2, 1, 1, 0}};
    PlanSummary s;
    PeftError err = {{0}, 0};
    assert_false(plan_offsets(huge, 3, &s, &err));
    assert_non_null(strstr(err.msg, "2^63"));
}

/* ---- sizes ---- */

static void sizes(void **unused) {
    (void)unused;
    int64_t sym[PEFT_SYM_COUNT] = {0, 714, 32, 0, 66, 2};
    assert_int_equal(plan_bytes(DT_F32, 0, (int64_t[]){0, 0}, sym), 4);
    assert_int_equal(plan_bytes(DT_F32, 2, (int64_t[]){DIM_T, 768}, sym), 714 * 768 * 4);
    assert_int_equal(plan_bytes(DT_I32, 1, (int64_t[]){DIM_PLUS_ONE(DIM_S), 0}, sym), 33 * 4);
    assert_int_equal(plan_bytes(DT_F32, 2, (int64_t[]){DIM_M, 768}, sym), 0);
    assert_int_equal(plan_bytes(DT_NF4, 2, (int64_t[]){768, 768}, sym),
                     768 * 768 / 2 + 9216 + 192 + 64); /* sections at multiples of 64 */
    assert_int_equal(plan_bytes(DT_F32, 2, (int64_t[]){INT64_MAX, 2}, sym), -1);
    assert_int_equal(plan_bytes(DT_F32, 2, (int64_t[]){INT64_MAX / 4, 1}, sym), -1);
    sym[PEFT_SYM_T] = INT64_MAX / 100;
    assert_int_equal(plan_bytes(DT_F32, 2, (int64_t[]){DIM_T, 768}, sym), -1);
}

/* ---- a program ---- */

static const PeftVar var[] = {
    {.name = "w", .block = "", .where = "", .rank = 2, .dim = {100, 10}},
    {.name = "m", .block = "", .where = "", .rank = 1, .dim = {10}, .is_state = true},
};
static const PeftKernel kernel[] = {{.name = "map", .kind = PEFT_KERNEL_MAP},
                                    {.name = "matmul", .kind = PEFT_KERNEL_GEMM}};
static const PeftGemm gemm = {.m = DIM_T, .n = 16, .k = 16, .addend = -1};
static const PeftStep step[] = {
    {.kernel = 0, .workspace = PEFT_REF_NONE, .label = "map", .where = ""},
    {.kernel = 1, .workspace = PEFT_REF_TEMP | 3, .desc = &gemm, .label = "matmul", .where = ""},
    {.kernel = 0, .workspace = PEFT_REF_NONE, .label = "map", .where = ""},
};
static PeftTemp temp[] = {
    {"a", "x.bert:1", DT_F32, 2, PEFT_MEM_ACTIVATION, 0, 0, 2, {DIM_T, 16}},
    {"b", "x.bert:2", DT_F32, 2, PEFT_MEM_BACKWARD, 0, 1, 2, {DIM_T, 16}},
    {"g", "x.bert:3", DT_F32, 1, PEFT_MEM_GRADIENT, 0, 2, 2, {10}},
    {"gemm workspace", "", DT_F32, 0, PEFT_MEM_WORKSPACE, 0, 1, 1, {0}},
};

static PeftProgram small_program(void) {
    PeftProgram p = {.var = var, .nvar = 2, .kernel = kernel, .nkernel = 2};
    p.fn[PEFT_FN_TRAIN] = (PeftFunction){step, temp, NULL, 3, 4, 0};
    p.fn[PEFT_FN_EVAL] = (PeftFunction){step, temp, NULL, 1, 1, 0};
    return p;
}

static void whole_program(void **unused) {
    (void)unused;
    PeftProgram p = small_program();
    int64_t train[PEFT_SYM_COUNT] = {0, 50, 4, 0, 20, 2},
            eval[PEFT_SYM_COUNT] = {0, 90, 4, 0, 30, 2};
    ProgramPlan plan;
    PeftError err = {{0}, 0};
    unsigned mask = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_EVAL;
    assert_true(program_plan(&p, mask, train, eval, &plan, &err));
    int64_t workspace = step_workspace_bytes(&p, &step[1], train);
    assert_true(workspace > 0);
    assert_int_equal(step_workspace_bytes(&p, &step[0], train), 0);
    assert_int_equal(plan.by_class[PEFT_MEM_WEIGHT], 4032); /* 4000 bytes */
    assert_int_equal(plan.by_class[PEFT_MEM_OPTIMIZER], 64);
    assert_int_equal(plan.fn[PEFT_FN_TRAIN].lower_bound, 3200 + 3200 + (workspace + 63) / 64 * 64);
    assert_int_equal(plan.fn[PEFT_FN_EVAL].peak, 90 * 16 * 4);
    assert_int_equal(plan.peak_fn, PEFT_FN_TRAIN);
    assert_int_equal(plan.peak, plan.persistent + plan.fn[PEFT_FN_TRAIN].peak);
    assert_null(plan.temp_offset[PEFT_FN_GRADIENTS]);
    int64_t sum = 0;
    for (int c = 0; c < PEFT_MEM_CLASSES; c++) sum += plan.by_class[c];
    assert_int_equal(sum, plan.lower_bound);
    /* The tokens of the larger batch fit before the next field. */
    int64_t tokens = plan.input_offset[PEFT_IN_token_types] - plan.input_offset[PEFT_IN_tokens];
    assert_int_equal(tokens, 384);
    program_plan_free(&plan);
}

static void overflow_names_the_buffer(void **unused) {
    (void)unused;
    PeftProgram p = small_program();
    int64_t sym[PEFT_SYM_COUNT] = {0, INT64_MAX / 4, 4, 0, 20, 2};
    ProgramPlan plan;
    PeftError err = {{0}, 0};
    assert_false(program_plan(&p, 1u << PEFT_FN_TRAIN, sym, sym, &plan, &err));
    assert_string_equal(err.msg, "tokens: its size overflows; use smaller dimensions");
    static const PeftVar huge[] = {{.name = "w", .rank = 2, .dim = {INT64_MAX / 2, 10}}};
    p.var = huge;
    p.nvar = 1;
    sym[PEFT_SYM_T] = 5;
    err = (PeftError){{0}, 0};
    assert_false(program_plan(&p, 1u << PEFT_FN_TRAIN, sym, sym, &plan, &err));
    assert_string_equal(err.msg, "w: its size overflows; use smaller dimensions");
    p = small_program();
    temp[0].dim[1] = INT64_MAX / 16;
    err = (PeftError){{0}, 0};
    assert_false(program_plan(&p, 1u << PEFT_FN_TRAIN, sym, sym, &plan, &err));
    assert_string_equal(err.msg, "a (x.bert:1): its size overflows; use smaller dimensions");
    temp[0].dim[1] = 16;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_lifetimes),      cmocka_unit_test(large_plans_take_milliseconds),
        cmocka_unit_test(known_layouts),         cmocka_unit_test(check_finds_mistakes),
        cmocka_unit_test(bad_items_are_refused), cmocka_unit_test(sizes),
        cmocka_unit_test(whole_program),         cmocka_unit_test(overflow_names_the_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
