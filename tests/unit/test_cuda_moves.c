/* Moves of products: after every one, whatever touches the same bytes, with a write on either side,
 * runs in the program's order. Random programs of a few buffers, so that most moves are wrong. */
#include "runtime/cuda/conflicts.h"
#include "runtime/cuda/moves.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { STEPS = 14, BUFFERS = 12, TOUCHES = 3, ROUNDS = 3000, MOST = 4 };

static uint32_t seed = 1;

static int draw(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((seed >> 8) % (uint32_t)n);
}

/* Of each step the product, in its first TOUCHES ranges, and what may stay behind it. */
typedef struct Case {
    OrderRange range[STEPS][2 * TOUCHES];
    OrderStep step[STEPS], product[STEPS], epilogue[STEPS];
    PeftStep table[STEPS];
    PeftFunction function;
} Case;

static void make_case(Case *c, bool grouped) {
    for (int i = 0; i < STEPS; i++) {
        for (int k = 0; k < 2 * TOUCHES; k++) {
            int64_t at = draw(BUFFERS);
            c->range[i][k] = (OrderRange){at, at + 1, k % TOUCHES == 0};
        }
        bool stays = draw(3) == 0;
        c->table[i] = (PeftStep){.kernel = grouped && !stays && draw(3) == 0};
        c->step[i] = (OrderStep){c->range[i], stays ? 2 * TOUCHES : TOUCHES};
        c->product[i] = (OrderStep){c->range[i], TOUCHES};
        c->epilogue[i] = (OrderStep){c->range[i] + TOUCHES, stays ? TOUCHES : 0};
    }
    c->function = (PeftFunction){.step = c->table, .nstep = STEPS};
}

/* Parts that run at the same time, as those of one batch do, must not conflict. */
static void check_parts(const OrderStep *first, int32_t at, const OrderStep *then, int32_t later) {
    if (order_conflict(first, then)) assert_true(at < later);
}

/* A part's time: products at their place, what stays behind one right after its own step. */
static void check_order(const Case *c, const Moves *m) {
    for (int i = 0; i < STEPS; i++) {
        check_parts(&c->product[i], 2 * m->place[i], &c->epilogue[i], 4 * i + 1);
        for (int j = i + 1; j < STEPS; j++) {
            check_parts(&c->product[i], 2 * m->place[i], &c->product[j], 2 * m->place[j]);
            check_parts(&c->product[i], 2 * m->place[i], &c->epilogue[j], 4 * j + 1);
            check_parts(&c->epilogue[i], 4 * i + 1, &c->product[j], 2 * m->place[j]);
        }
    }
}

static bool is_among(const int32_t *chosen, int n, int32_t step) {
    for (int i = 0; i < n; i++)
        if (chosen[i] == step) return true;
    return false;
}

/* Two to four steps that are in no batch yet, to the place of one of them. */
static bool try_move(const Case *c, Moves *m, bool *taken) {
    int32_t step[MOST];
    OrderStep product[MOST];
    int n = 2 + draw(MOST - 1), found = 0;
    for (int tries = 0; tries < 50 && found < n; tries++) {
        int32_t s = draw(STEPS);
        if (taken[s] || c->table[s].kernel || is_among(step, found, s)) continue;
        product[found] = c->product[s];
        step[found++] = s;
    }
    if (found < 2) return false;
    int32_t before[STEPS];
    for (int i = 0; i < STEPS; i++) before[i] = m->place[i];
    bool moved = moves_try(m, step, product, found, step[draw(found)]);
    for (int i = 0; i < found; i++) taken[step[i]] = moved;
    for (int i = 0; i < STEPS && !moved; i++) assert_int_equal(m->place[i], before[i]);
    return moved;
}

static int moved_of(bool grouped) {
    static const PeftKernel kernel[] = {{.name = "product"}, {.name = "gathered", .group = 1}};
    static const PeftProgram program = {.kernel = kernel, .nkernel = 2};
    int moved = 0;
    for (int round = 0; round < ROUNDS; round++) {
        Case c;
        Moves m;
        bool taken[STEPS] = {false};
        PeftError err = {{0}, 0};
        make_case(&c, grouped);
        assert_true(moves_open(&m, &program, &c.function, c.step, c.epilogue, &err));
        check_order(&c, &m);
        for (int tries = 0; tries < 20; tries++) {
            moved += try_move(&c, &m, taken);
            check_order(&c, &m);
        }
        moves_close(&m);
    }
    return moved;
}

static void test_order_is_kept(void **state) {
    (void)state;
    assert_in_range(moved_of(false), ROUNDS / 4, ROUNDS * 10);
}

static void test_order_is_kept_with_waiting_kernels(void **state) {
    (void)state;
    assert_in_range(moved_of(true), ROUNDS / 4, ROUNDS * 10);
}

/* Three steps: the second reads what the first writes, the third neither. */
static void test_simple_moves(void **state) {
    (void)state;
    static const OrderRange range[] = {{0, 8, true}, {0, 8, false}, {8, 16, true}};
    const OrderStep step[] = {{&range[0], 1}, {&range[1], 1}, {&range[2], 1}};
    const OrderStep none[3] = {{NULL, 0}};
    const PeftKernel kernel = {.name = "product"};
    const PeftProgram program = {.kernel = &kernel, .nkernel = 1};
    const PeftStep table[3] = {{0}};
    const PeftFunction f = {.step = table, .nstep = 3};
    const int32_t ends[] = {0, 2};
    const OrderStep end_touches[] = {step[0], step[2]};
    PeftError err = {{0}, 0};
    Moves m;
    assert_true(moves_open(&m, &program, &f, step, none, &err));
    assert_false(moves_try(&m, ends, end_touches, 2, 2)); /* the second would read too early */
    assert_true(moves_try(&m, ends, end_touches, 2, 0));
    assert_int_equal(m.place[2], moves_place(0));
    moves_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simple_moves),
        cmocka_unit_test(test_order_is_kept),
        cmocka_unit_test(test_order_is_kept_with_waiting_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
