/* Every gradient rule against central differences of the double-precision reference, over all
 * samples of the op table and all subsets of the inputs: there is no list of cases to forget an op
 * in. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../compiler/gradcheck.h"

/* Differences with step h = 1e-3 |x| leave an error of about h^4 f''''' plus 1e-16 / h: below 1e-8
 * for the sample values; a wrong term is of order 1. */
static const double tolerance = 1e-7;

typedef CheckResult Check(OpCode op, int k, uint64_t seed);

static void check_all(Check *check) {
    double worst = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        int64_t compared = 0;
        OpCase c;
        for (int k = 0; opcase_open(&c, op, k, 1); k++) {
            opcase_close(&c);
            for (uint64_t seed = 1; seed <= 2; seed++) {
                CheckResult r = check(op, k, seed);
                if (!r.sound || !(r.worst <= tolerance))
                    fail_msg("%s, sample %d: error %g, %s", op_info[op].name, k, r.worst, r.what);
                compared += r.compared;
                worst = fmax(worst, r.worst);
            }
        }
        if (op_rules[op].grad && !compared) fail_msg("no gradient of %s", op_info[op].name);
    }
    print_message("worst error %.1e, %.1f%% of the tolerance\n", worst, 100 * worst / tolerance);
}

static void rules_agree_with_differences(void **state) {
    (void)state;
    check_all(gradcheck_rule);
}

static void driver_agrees_with_differences(void **state) {
    (void)state;
    check_all(gradcheck_driver);
}

/* An op whose gradient is declared absent compares nothing: it does not pass as zero. */
static void absent_gradients_are_not_compared(void **state) {
    (void)state;
    CheckResult r = gradcheck_rule(OP_STEP, 0, 1);
    assert_true(r.sound);
    assert_int_equal(r.compared, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_agree_with_differences),
        cmocka_unit_test(driver_agrees_with_differences),
        cmocka_unit_test(absent_gradients_are_not_compared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
