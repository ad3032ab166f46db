/* Which steps may run at the same time on a GPU: conflicts of random steps and of known ones
 * against a search over all pairs. */
#include "order_steps.h"

/* ---- random steps ---- */

/* A stream begins with a wait: for steps, or for what came before the function. */
static void check_starts(const Order *o, int streams) {
    bool seen[64] = {true};
    for (int i = 0; i < o->nstep; i++) {
        int waits = o->first_wait[i + 1] - o->first_wait[i];
        assert_in_range(o->stream[i], 0, streams - 1);
        assert_true(seen[o->stream[i]] || waits > 0);
        for (int k = o->first_wait[i]; k < o->first_wait[i + 1]; k++)
            assert_true(o->wait[k] != ORDER_START || (waits == 1 && !seen[o->stream[i]]));
        seen[o->stream[i]] = true;
    }
}

static void check_order(const Steps *s, const Order *o) {
    int n = s->n, width = n + 1;
    bool *before = all_pairs(o, -1);
    for (int i = 0; i < n; i++) {
        assert_true(before[n * width + i]); /* the end waits for all */
        for (int j = 0; j < i; j++)
            if (steps_conflict(&s->step[i], &s->step[j])) assert_true(before[i * width + j]);
    }
    free(before);
    for (int i = 0; i <= n; i++) /* no wait follows from the others */
        for (int k = o->first_wait[i]; k < o->first_wait[i + 1]; k++) {
            if (o->wait[k] == ORDER_START) continue;
            before = all_pairs(o, k);
            assert_false(before[i * width + o->wait[k]]);
            free(before);
        }
}

static void test_random_steps(void **state) {
    (void)state;
    for (int round = 0; round < 400; round++) {
        Steps s;
        int streams = 1 + round % 8;
        make_steps(&s, below(MOST_STEPS + 1), 10 + below(120));
        Order o = order_of(s.step, s.n, streams), again = order_of(s.step, s.n, streams);
        check_starts(&o, streams);
        check_order(&s, &o);
        assert_int_equal(o.nwait, again.nwait);
        assert_memory_equal(o.stream, again.stream, (size_t)s.n * sizeof *o.stream);
        assert_memory_equal(o.wait, again.wait, (size_t)o.nwait * sizeof *o.wait);
        if (streams == 1) {
            assert_int_equal(o.nwait, 0);
            assert_int_equal(o.longest, s.n);
        }
        order_free(&o);
        order_free(&again);
    }
}

/* With a stream for every step nothing is ordered that does not have to be. */
static void test_nothing_else_is_ordered(void **state) {
    (void)state;
    for (int round = 0; round < 100; round++) {
        Steps s;
        int depth[MOST_STEPS], longest = 0;
        make_steps(&s, 1 + below(MOST_STEPS), 10 + below(120));
        bool must[MOST_STEPS][MOST_STEPS] = {{false}};
        for (int i = 0; i < s.n; i++) {
            depth[i] = 1;
            for (int j = 0; j < i; j++) {
                if (!steps_conflict(&s.step[i], &s.step[j])) continue;
                must[i][j] = true;
                for (int x = 0; x < j; x++) must[i][x] = must[i][x] || must[j][x];
                if (depth[j] + 1 > depth[i]) depth[i] = depth[j] + 1;
            }
            if (depth[i] > longest) longest = depth[i];
        }
        Order o = order_of(s.step, s.n, MOST_STEPS);
        assert_int_equal(o.longest, longest);
        bool *before = all_pairs(&o, -1);
        for (int i = 0; i < s.n; i++) /* streams are shared only by steps that must be in order */
            for (int j = 0; j < i; j++) assert_int_equal(before[i * (s.n + 1) + j], must[i][j]);
        free(before);
        order_free(&o);
    }
}

/* ---- known cases ---- */

#define READ(at) \
    { (at), (at) + 1, false }
#define WRITE(at) \
    { (at), (at) + 1, true }
#define STEP(...) \
    { (const OrderRange[]){__VA_ARGS__}, sizeof((OrderRange[]){__VA_ARGS__}) / sizeof(OrderRange) }

static void check_waits(const Order *o, int step, int n, const int *wait) {
    assert_int_equal(o->first_wait[step + 1] - o->first_wait[step], n);
    for (int k = 0; k < n; k++) assert_int_equal(o->wait[o->first_wait[step] + k], wait[k]);
}

/* Queries, keys and values of one input, then what reads the three, then a fork in two. */
static void test_fork_and_join(void **state) {
    (void)state;
    const OrderStep step[] = {
        STEP(WRITE(0)),          STEP(READ(0), WRITE(1)), STEP(READ(0), WRITE(2)),
        STEP(READ(0), WRITE(3)), STEP(READ(2), WRITE(4)), STEP(READ(1), READ(3), READ(4), WRITE(5)),
        STEP(READ(5), WRITE(6)), STEP(READ(5), WRITE(7)),
    };
    /* The longest chain stays on its stream, and streams with nothing to do are used again. */
    static const int32_t stream[] = {0, 0, 1, 2, 1, 1, 1, 0};
    Order o = order_of(step, 8, 8);
    assert_memory_equal(o.stream, stream, sizeof stream);
    check_waits(&o, 0, 0, NULL);
    check_waits(&o, 1, 0, NULL);
    check_waits(&o, 2, 1, (int[]){0});
    check_waits(&o, 3, 1, (int[]){0});
    check_waits(&o, 4, 0, NULL);
    check_waits(&o, 5, 2, (int[]){3, 1});
    check_waits(&o, 6, 0, NULL);
    check_waits(&o, 7, 1, (int[]){5});
    check_waits(&o, 8, 1, (int[]){6});
    assert_int_equal(o.longest, 5);
    order_free(&o);
}

static void test_kinds_of_conflict(void **state) {
    (void)state;
    const struct {
        OrderStep step[2];
        bool ordered;
    } c[] = {
        {{STEP({0, 8, true}), STEP({7, 9, false})}, true}, /* read after write */
        {{STEP({0, 8, false}), STEP({7, 9, true})}, true}, /* write after read: reused memory */
        {{STEP({0, 8, true}), STEP({7, 9, true})}, true},  /* write after write */
        {{STEP({0, 8, false}), STEP({0, 8, false})}, false},
        {{STEP({0, 8, true}), STEP({8, 9, true})}, false}, /* neighbours */
        {{STEP({0, 8, true}), STEP({4, 4, true})}, false}, /* nothing */
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        Order o = order_of(c[i].step, 2, 2);
        assert_int_equal(o.stream[1], c[i].ordered ? 0 : 1);
        check_waits(&o, 1, c[i].ordered ? 0 : 1, (int[]){ORDER_START});
        check_waits(&o, 2, c[i].ordered ? 0 : 1, (int[]){1});
        order_free(&o);
    }
}

static void test_nothing_to_do(void **state) {
    (void)state;
    Order o = order_of(NULL, 0, 4);
    assert_int_equal(o.nwait, 0);
    assert_int_equal(o.longest, 0);
    check_waits(&o, 0, 0, NULL);
    order_free(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_steps),  cmocka_unit_test(test_nothing_else_is_ordered),
        cmocka_unit_test(test_fork_and_join), cmocka_unit_test(test_kinds_of_conflict),
        cmocka_unit_test(test_nothing_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
