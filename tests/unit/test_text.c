/* The textual graph: printing and reading back loses nothing, and the reader survives any input
 * with an error that names the line. */
#include "mini_bert.h"

#include <float.h>

#include "../../compiler/dot.h"
#include "../../compiler/op/sample.h"
#include "../../compiler/pass.h"
#include "../../compiler/text.h"
#include "../../compiler/verify.h"

static char *graph_text(Graph *g, bool spans) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    text_print(f, g, spans);
    fclose(f);
    return text;
}

/* Reads the printed graph, which must print the same again; gives the graph read. */
static Graph *round_trip(Graph *g, bool spans) {
    char *text = graph_text(g, spans);
    PeftError err = {0};
    Graph *copy = text_read(text, strlen(text), "graph", &err);
    if (!copy) fail_msg("%s\n%s", err.msg, text);
    char *again = graph_text(copy, spans);
    assert_string_equal(text, again);
    free(text);
    free(again);
    return copy;
}

static void all_functions_round_trip(void **state) {
    (void)state;
    for (int kind = 0; kind < MINI_KINDS; kind++)
        for (int32_t accumulate = 0; accumulate < 3; accumulate++) { /* 0: before the passes */
            PeftFit fit = {.accumulate = accumulate, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
            Graph *g = mini_bert((MiniKind)kind, 0.1);
            if (accumulate) passes_run(g, &(PassOptions){.fit = &fit, .log = stderr});
            Graph *plain = round_trip(g, false), *copy = round_trip(g, true);
            assert_int_equal(copy->nvar, g->nvar);
            assert_int_equal(copy->nsite, g->nsite);
            MiniBatch b, c;
            mini_batch(&b, g, true);
            mini_batch(&c, copy, true);
            for (PeftFn fn = 0; fn < PEFT_FN_COUNT; fn++) {
                MiniValues x = mini_run(g, fn, &b), y = mini_run(copy, fn, &c);
                mini_assert_same_values(&x, &y, "text");
                mini_values_free(&x);
                mini_values_free(&y);
            }
            mini_batch_free(&b);
            mini_batch_free(&c);
            graph_free(g);
            graph_free(plain);
            graph_free(copy);
        }
}

/* A dump between any two passes is valid input as well: rewritten graphs have dead nodes, and
 * gradient nodes that name some of them. */
static void dumps_after_each_pass_read_back(void **state) {
    (void)state;
    PeftFit fit = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    static bool (*const pass[])(Graph *, const PassContext *) = {
#define PASS(name, what, required) pass_##name,
#include "../../compiler/pass.def"
#undef PASS
    };
    Graph *g = mini_bert(MINI_QLORA, 0.1);
    for (size_t i = 0; i < sizeof pass / sizeof *pass; i++) {
        pass[i](g, &(PassContext){&fit});
        graph_free(round_trip(g, true));
    }
    graph_free(g);
}

/* Every sample of every op, as far as its results may be outputs. */
static void every_op_round_trips(void **state) {
    (void)state;
    int covered = 0;
    for (int op = 0; op < OP_COUNT; op++) {
        bool any = false;
        for (int k = 0; op_rules[op].sample; k++) {
            Graph *g = graph_new();
            Node *n = op_rules[op].sample(g, k);
            const Node *bad;
            char why[256];
            if (n) {
                g->nsite = 1 << 10; /* samples use sites without asking for them */
                for (int r = 0; r < op_info[op].nout; r++) {
                    Node *result = op_info[op].nout > 1 ? nd_proj(g, n, r) : n;
                    if (result->type.dt == DT_F32)
                        graph_output(g, PEFT_FN_EVAL, graph_printf(g, "result%d", r), result);
                }
                if (g->fn[PEFT_FN_EVAL].nout && verify_check(g, &bad, why)) {
                    graph_free(round_trip(g, true));
                    any = true;
                }
            }
            graph_free(g);
            if (!n) break;
        }
        covered += any;
        if (!any) print_message("not covered alone: %s\n", op_info[op].name);
    }
    assert_true(covered >= OP_COUNT - 8);
}

static void constants_keep_every_bit(void **state) {
    (void)state;
    static const double values[] = {0.1,      1.0 / 3, 1e-300,   DBL_MAX,   DBL_MIN,
                                    -0.0,     1e-12,   768,      123456789, 0.044715,
                                    4.9e-324, -2.5,    HUGE_VAL, -HUGE_VAL};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        Graph *g = graph_new();
        graph_output(g, PEFT_FN_EVAL, "loss", nd_const(g, values[i]));
        Graph *copy = round_trip(g, false);
        double got = copy->fn[PEFT_FN_EVAL].out[0].node->attr.constant.value;
        assert_memory_equal(&got, &values[i], sizeof got);
        graph_free(g);
        graph_free(copy);
    }
}

static void names_may_hold_anything(void **state) {
    (void)state;
    static const char *const names[] = {"a\"b", "back\\slash", "line\nbreak\t\x7f", "größe.重み",
                                        "",     "\\x41"};
    Graph *g = graph_new();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Var v = {.name = names[i], .type = type_f32(1, 3, 0), .group = (int)i, .block = names[i]};
        v.init = (Init){PEFT_UNIFORM, 1 / sqrt(768)};
        graph_output(g, PEFT_FN_EVAL, names[i], nd_var(g, graph_var(g, v)));
    }
    Graph *copy = round_trip(g, true);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_string_equal(copy->var[i].name, names[i]);
        assert_string_equal(copy->var[i].block, names[i]);
        assert_true(copy->var[i].init.a == g->var[i].init.a);
    }
    graph_free(g);
    graph_free(copy);
}

/* ---- malformed input ---- */

static void errors_name_the_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"sites -1", "g:1: -1 is not from 0 to 1048576"},
        {"\n\nfoo", "g:3: unknown variable, node or function 'foo'"},
        {"# comment\n%1 = const 1 : f32", "g:2: expected %0, found %1"},
        {"%0 = const 1 : f32[2]", "g:1: %0 is f32, not f32[2]"},
        {"%0 = const one : f32", "g:1: expected a number, found 'one : f32'"},
        {"%0 = cast %0 : f32", "g:1: there is no op 'cast'"},
        {"%0 = neg %0 : f32", "g:1: %0 is not defined before"},
        {"%0 = const 1 : f32\n%1 = add %0 : f32", "g:2: add takes 2 inputs, not 1"},
        {"%0 = const 1 : f32\n%1 = matmul %0, %0 : f32",
         "g:2: matmul: the left operand must be an f32 matrix, found f32"},
        {"%0 = const 1 : f32\n%1 = neg %0 p=1 : f32", "g:2: neg has no attribute 'p'"},
        {"%0 = input tokens : i32[S]", "g:1: %0 is i32[T], not i32[S]"},
        {"%0 = input token : i32[T]", "g:1: unknown batch input 'token'"},
        {"%0 = var \"w\" : f32[2]", "g:1: there is no variable \"w\""},
        {"var \"w\" : f32[0] = zeros", "g:1: 0 is not from 1 to 2147483647"},
        {"var \"w\" : f32[2, T] = zeros", "g:1: only rows may be symbolic, found f32[2, T]"},
        {"var \"w\" : f32[2, 2, 2] = zeros", "g:1: more than 2 dimensions"},
        {"var \"w\" : f16[2] = zeros", "g:1: unknown type 'f16'"},
        {"var \"w\" : f32[2] = random", "g:1: unknown initial value 'random'"},
        {"var \"w\" : f32[2] = zeros\nvar \"w\" : f32 = zeros", "g:2: a second variable \"w\""},
        {"var \"w : f32[2] = zeros", "g:1: expected '\"', found the end of the file"},
        {"var \"w\\q\" : f32 = zeros", "g:1: malformed string"},
        {"eval { output \"loss\" %0 }", "g:1: %0 is not defined before"},
        {"%0 = const 1 : f32\neval { print %0 }",
         "g:2: expected output, update or '}', found 'print %0 }'"},
        {"%0 = const 1 : f32\neval { output \"a\" %0",
         "g:2: expected output, update or '}', found the end of the file"},
        {"%0 = const 1 : f32\neval { output \"a\" %0 output \"a\" %0 }",
         "g:2: the graph is not sound: function 0 has two outputs named a"},
        {"%0 = const 1 : f32\neval { output \"a\" %0 }\neval { }", "g:3: a second function eval"},
        {"%0 = const 1 : f32 of %3", "g:1: %3 is not defined before"},
        {"%0 = const 1 : f32 stream -1", "g:1: -1 is not from 0 to 2147483647"},
        {"%99999999999 = const 1 : f32", "g:1: 99999999999 is not from 0 to 2147483647"},
        {"\x01", "g:1: expected variable, node or function, found a byte that is not text"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        PeftError err = {0};
        Graph *g = text_read(cases[i].text, strlen(cases[i].text), "g", &err);
        if (g) fail_msg("accepted: %s", cases[i].text);
        assert_string_equal(err.msg, cases[i].message);
    }
}

/* Every prefix of a graph, and every byte of it replaced: an error or a sound graph, never a crash.
 */
static void damaged_texts_never_crash(void **state) {
    (void)state;
    static const char replacement[] = {'0', '9', '-', '%', '"', '[', ' ', 'T', '\n', 0};
    PeftFit fit = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    Graph *g = mini_bert(MINI_QLORA, 0.1);
    passes_run(g, &(PassOptions){.fit = &fit, .log = stderr});
    char *text = graph_text(g, true);
    size_t n = strlen(text);
    int rejected = 0, tried = 0;
    for (size_t at = 0; at < n; at += 31) {
        PeftError err = {0};
        Graph *prefix = text_read(text, at, "g", &err);
        graph_free(prefix);
        char kept = text[at];
        text[at] = replacement[at / 31 % sizeof replacement];
        err = (PeftError){0};
        Graph *copy = text_read(text, n, "g", &err);
        rejected += !copy;
        tried++;
        assert_true(copy || strncmp(err.msg, "g:", 2) == 0);
        graph_free(copy);
        text[at] = kept;
    }
    assert_true(rejected > tried / 2);
    free(text);
    graph_free(g);
}

/* ---- drawings ---- */

static char *drawing(Graph *g, DotView view, const char *module) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    dot_print(f, g, &(DotOptions){.fn = PEFT_FN_TRAIN, .view = view, .module = module});
    fclose(f);
    return text;
}

static int count_of(const char *text, const char *what) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

static void drawings_box_modules_and_hide_plumbing(void **state) {
    (void)state;
    PeftFit fit = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    Graph *g = mini_bert(MINI_LORA, 0.1);
    passes_run(g, &(PassOptions){.fit = &fit, .log = stderr});
    char *forward = drawing(g, DOT_FORWARD, NULL);
    assert_int_equal(count_of(forward, "label=\"bert.encoder.layer.0\""), 1);
    assert_int_equal(count_of(forward, "label=\"attention.self.query\""), MINI_LAYERS);
    assert_int_equal(count_of(forward, "{"), count_of(forward, "}"));
    assert_int_equal(count_of(forward, "penwidth=2.5 fillcolor=\"#e69f00\" label="),
                     2 * 2 * MINI_LAYERS + 2 + 1); /* the trainable ones and the legend */
    assert_null(strstr(forward, "rng"));
    assert_null(strstr(forward, "token_sample"));
    assert_null(strstr(forward, "layer_norm_grad"));
    char *backward = drawing(g, DOT_BACKWARD, "bert.encoder.layer.0");
    /* two of its own, and the one of layer 1 that feeds it */
    assert_int_equal(count_of(backward, "label=\"layer_norm_grad"), 3);
    assert_int_equal(count_of(backward, "label=\"attention_grad"), 1);
    assert_null(strstr(backward, "adamw"));
    assert_non_null(strstr(backward, "[label=\"dv\"]"));
    assert_null(strstr(backward, "[label=\"dk\"]"));
    free(forward);
    free(backward);
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_functions_round_trip),
        cmocka_unit_test(dumps_after_each_pass_read_back),
        cmocka_unit_test(every_op_round_trips),
        cmocka_unit_test(constants_keep_every_bit),
        cmocka_unit_test(names_may_hold_anything),
        cmocka_unit_test(errors_name_the_line),
        cmocka_unit_test(damaged_texts_never_crash),
        cmocka_unit_test(drawings_box_modules_and_hide_plumbing),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
