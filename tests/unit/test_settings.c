/* What can be set from outside a program, and what `fit` and configs make of it. */
#include "program.h"

#include <math.h>

/* Compiles lora_r8 with --set options and fields of a config.json. */
static bool compile(Program *p, const char *const *set, const BaseField *base, int nbase) {
    Settings s = {.set = set, .base = base, .nbase = nbase, .base_path = "BASE/config.json"};
    while (set && set[s.nset]) s.nset++;
    return program_run(p,
                       "use \"models/lora_r8.bert\"\nuse \"models/lib/houlsby.bert\"\n"
                       "model m = lora_r8 {\n  patch **.output with houlsby(bottleneck = 8)\n}\n",
                       &s);
}

static void compiled(Program *p, const char *const *set, const BaseField *base, int nbase) {
    *p = program_new();
    if (!compile(p, set, base, nbase)) fail_msg("%s", p->said);
    assert_quiet(p);
}

#define SET(...) ((const char *const[]){__VA_ARGS__, NULL})

static int64_t dim(const Program *p, const char *name, int i) {
    int32_t v = graph_find_var(p->g, name);
    if (v < 0) fail_msg("there is no %s", name);
    return p->g->var[v].type.dim[i];
}

static void the_last_of_program_base_and_set_wins(void **state) {
    (void)state;
    const BaseField base[] = {{"hidden", 60}, {"layers", 3}, {"vocab", 99}, {"unknown", 1}};
    Program p;
    compiled(&p, SET("config.layers=5", "config.layers=2"), base, 4);
    assert_int_equal(dim(&p, "bert.embeddings.word_embeddings.weight", 0), 99);
    assert_int_equal(dim(&p, "bert.embeddings.word_embeddings.weight", 1), 60);
    assert_int_equal(dim(&p, "bert.embeddings.position_embeddings.weight", 0), 512);
    assert_int_equal(p.info.config.layers, 2);
    assert_int_equal(p.info.config.hidden, 60);
    assert_int_equal(graph_find_var(p.g, "bert.encoder.layer.2.output.dense.weight"), -1);
    assert_non_null(strstr(p.info.settings, "BASE/config.json"));
    assert_non_null(strstr(p.info.settings, "--set    config.layers=2"));
    program_free(&p);
}

static void a_config_is_chosen_by_name(void **state) {
    (void)state;
    Program p;
    compiled(&p, SET("config=bert_tiny", "config.ffn=100"), NULL, 0);
    assert_int_equal(p.info.config.hidden, 128);
    assert_int_equal(dim(&p, "bert.encoder.layer.1.intermediate.dense.weight", 0), 100);
    program_free(&p);
}

static void arguments_are_set_by_name(void **state) {
    (void)state;
    Program p;
    compiled(&p, SET("classes=7", "rank=3", "bottleneck=5", "config=bert_tiny"), NULL, 0);
    assert_int_equal(dim(&p, "classifier.weight", 0), 7);
    assert_int_equal(dim(&p, "bert.encoder.layer.0.attention.self.query.lora_A.weight", 0), 3);
    assert_int_equal(dim(&p, "bert.encoder.layer.0.output.adapter_up.weight", 1), 5);
    program_free(&p);
    compiled(&p, SET("lora.rank=4", "rank=3", "config=bert_tiny"), NULL, 0); /* the nearer one */
    assert_int_equal(dim(&p, "bert.encoder.layer.0.attention.self.query.lora_A.weight", 0), 4);
    program_free(&p);
}

static void unknown_keys_are_errors(void **state) {
    (void)state;
    Program p = program_new();
    assert_false(compile(
        &p, SET("fit.epoch=1", "lora.rnk=2", "config.hiddn=3", "clases=4", "nonsense=1"), NULL, 0));
    assert_said(&p, "no setting `fit.epoch`; did you mean `fit.epochs`?");
    assert_said(&p, "no setting `lora.rnk`; did you mean `lora.rank`?");
    assert_said(&p, "no setting `config.hiddn`; did you mean `config.hidden`?");
    assert_said(&p, "no setting `clases`; did you mean `classes`?");
    assert_said(&p, "no setting `nonsense`\n");
    assert_int_equal(p.diag.nerror, 5);
    program_free(&p);
}

static void broken_options_are_errors(void **state) {
    (void)state;
    static const char *const broken[] = {"",
                                         "=",
                                         "fit.lr",
                                         "fit.lr=",
                                         "fit.lr=1 2",
                                         "fit..lr=1",
                                         "fit.lr=1\nfit.lr=2",
                                         "rank=2)",
                                         "config={",
                                         "\"a\"=1",
                                         "rank=x"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        Program p = program_new();
        assert_false(compile(&p, SET(broken[i]), NULL, 0));
        assert_true(p.diag.nerror > 0);
        program_free(&p);
    }
}

static void a_derived_field_follows(void **state) {
    (void)state;
    const char *text =
        "use \"models/lib/bert.bert\"\n"
        "config a = bert_tiny { hidden = 64  heads = hidden / 32  ffn = 2 * hidden }\n"
        "config b = a { hidden = 96 }\n"
        "model m = bert_classifier(b)\n";
    Program p = program_new();
    assert_true(program_run(&p, text, &(Settings){0}));
    assert_int_equal(p.info.config.heads, 3);
    assert_int_equal(p.info.config.ffn, 192);
    program_free(&p);
    p = program_new();
    const char *const set[] = {"config.hidden=32"};
    assert_true(program_run(&p, text, &(Settings){.set = set, .nset = 1}));
    assert_int_equal(p.info.config.heads, 1);
    assert_int_equal(p.info.config.ffn, 64);
    program_free(&p);
}

/* ---- fit ---- */

static PeftFit fit(const char *settings, const char *const *set) {
    char text[512];
    snprintf(text, sizeof text,
             "use \"models/lib/bert.bert\"\nmodel m = bert_classifier(bert_tiny) {\n%s\n}\n",
             settings);
    Program p = program_new();
    Settings s = {.set = set};
    while (set && set[s.nset]) s.nset++;
    if (!program_run(&p, text, &s)) fail_msg("%s", p.said);
    PeftFit f = p.info.fit;
    program_free(&p);
    return f;
}

static void fit_has_defaults(void **state) {
    (void)state;
    PeftFit f = fit("", NULL);
    assert_int_equal(f.epochs, 3);
    assert_int_equal(f.batch, 32);
    assert_int_equal(f.accumulate, 1);
    assert_true(f.lr == 5e-5 && f.warmup_ratio == 0 && f.weight_decay == 0 && f.clip_norm == 1);
    assert_true(f.beta1 == 0.9 && f.beta2 == 0.999 && f.eps == 1e-8);
    assert_int_equal(f.warmup_steps, -1);
    assert_int_equal(f.seed, 42);
}

static void fit_reads_every_setting(void **state) {
    (void)state;
    PeftFit f =
        fit("fit { epochs = 2 batch = 8 accumulate = 4 lr = 1e-3 warmup = 10% weight_decay = 0.01\n"
            "clip = none seed = 7 optimizer = adamw(beta1 = 0.8, eps = 1e-6) }",
            NULL);
    assert_int_equal(f.epochs, 2);
    assert_int_equal(f.batch, 8);
    assert_int_equal(f.accumulate, 4);
    assert_true(f.lr == 1e-3 && f.warmup_ratio == 0.1 && f.weight_decay == 0.01 &&
                isinf(f.clip_norm));
    assert_true(f.beta1 == 0.8 && f.beta2 == 0.999 && f.eps == 1e-6);
    assert_int_equal(f.seed, 7);
    f = fit("fit { warmup = 100 steps clip = 0.5 }", NULL);
    assert_int_equal(f.warmup_steps, 100);
    assert_true(f.clip_norm == 0.5);
}

static void later_fits_change_only_what_they_name(void **state) {
    (void)state;
    PeftFit f = fit("fit { lr = 1e-3 warmup = 5% }\nfit { warmup = 3 steps }",
                    SET("fit.epochs=1", "fit.optimizer=adamw(beta2=0.99)"));
    assert_true(f.lr == 1e-3 && f.beta2 == 0.99);
    assert_int_equal(f.warmup_steps, 3);
    assert_int_equal(f.epochs, 1);
    f = fit("fit { warmup = 3 steps }", SET("fit.warmup=20%"));
    assert_int_equal(f.warmup_steps, -1);
    assert_true(f.warmup_ratio == 0.2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_of_program_base_and_set_wins),
        cmocka_unit_test(a_config_is_chosen_by_name),
        cmocka_unit_test(arguments_are_set_by_name),
        cmocka_unit_test(unknown_keys_are_errors),
        cmocka_unit_test(broken_options_are_errors),
        cmocka_unit_test(a_derived_field_follows),
        cmocka_unit_test(fit_has_defaults),
        cmocka_unit_test(fit_reads_every_setting),
        cmocka_unit_test(later_fits_change_only_what_they_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
