/* Elaboration: the programs of models/ against the counts and names of the libraries they follow,
 * and the rules of the language on small programs. */
#include "program.h"

#include <ctype.h>
#include <glob.h>
#include <jansson.h>
#include <math.h>

#include "compiler/text.h"
#include "compiler/verify.h"

static const Settings no_settings;

/* A program that must elaborate without a message. */
static void run(Program *p, const char *text) {
    if (!program_run(p, text, &no_settings)) fail_msg("%s", p->said);
    assert_quiet(p);
    verify_graph(p->g, "test");
}

static void run_file(Program *p, const char *path, const char *const *set) {
    if (!program_file(p, path, set)) fail_msg("%s", p->said);
    assert_quiet(p);
    verify_graph(p->g, "test");
}

static const Var *var(const Program *p, const char *name) {
    int32_t i = graph_find_var(p->g, name);
    if (i < 0) fail_msg("there is no parameter %s", name);
    return &p->g->var[i];
}

static int count_op(const Graph *g, OpCode op) {
    int n = 0;
    for (int i = 0; i < g->n; i++) n += g->node[i]->op == op;
    return n;
}

/* ---- counts ---- */

/* Trainable parameters of bert-base with 2 and 4 classes, and all of them with 2, by arithmetic and
 * by transformers, peft and AdapterHub (tests/golden/counts.json). */
static const struct Counts {
    const char *program, *set;
    int64_t trainable[2], total;
} counts[] = {
    {"full_ft", NULL, {109483778, 109485316}, 109483778},
    {"lora_r8", NULL, {296450, 297988}, 109778690},
    {"lora_r16", NULL, {591362, 592900}, 110073602},
    {"lora_r16", "rank=8", {296450, 297988}, 109778690},
    {"qlora_r16", NULL, {591362, 592900}, 110073602},
    {"qlora_embedding", NULL, {591362, 592900}, 110073602},
    {"rslora", "rank=8", {296450, 297988}, 109778690},
    {"lora_all", "rank=8", {1328642, 1330180}, 110810882},
    {"lora_all", NULL, {2655746, 2657284}, 112137986},
    {"dora", NULL, {314882, 316420}, 109797122},
    {"ia3", NULL, {66050, 67588}, 109548290},
    {"bitfit", NULL, {104450, 105988}, 109483778},
    {"vera", NULL, {26114, 27652}, 109508354 + 2 * 256 * 768}, /* the frozen pair counts, too */
    {"adapters", NULL, {2380802, 2382340}, 111863042},
    {"adapters", "houlsby.bottleneck=96", {3561218, 3562756}, 113043458},
    {"adapters", "bottleneck=48", {1790594, 1792132}, 111272834},
    {"pfeiffer", NULL, {1191170, 1192708}, 110673410},
    {"pfeiffer", "bottleneck=96", {1781378, 1782916}, 111263618},
    {"pfeiffer", "bottleneck=48", {896066, 897604}, 110378306},
    {"parallel", NULL, {7093250, 7094788}, 116575490},
};

/* The value of "24 x 16 x (768 + 768) + 1,538". */
static int64_t sum(const char **at);

static int64_t factor(const char **at) {
    while (**at == ' ') (*at)++;
    int64_t n = 0;
    if (**at == '(') {
        (*at)++;
        n = sum(at);
        (*at)++;
        return n;
    }
    for (; isdigit((unsigned char)**at) || **at == ','; (*at)++)
        if (**at != ',') n = 10 * n + (**at - '0');
    return n;
}

static int64_t sum(const char **at) {
    int64_t total = 0;
    for (;;) {
        int64_t product = factor(at);
        while (strncmp(*at, " x ", 3) == 0) {
            *at += 3;
            product *= factor(at);
        }
        total += product;
        if (strncmp(*at, " + ", 3) != 0) return total;
        *at += 3;
    }
}

static void check_derivation(const Program *p, int64_t trainable) {
    const char *text = params_derivation(p->g, &p->info), *at = text;
    if (sum(&at) != trainable || strncmp(at, " = ", 3) != 0) fail_msg("wrong arithmetic: %s", text);
    at += 3;
    assert_int_equal(factor(&at), trainable);
}

static void bert_base_has_the_published_counts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int c = 0; c < 2; c++) {
            char path[64];
            const char *set[] = {c ? "classes=4" : "classes=2", counts[i].set, NULL};
            snprintf(path, sizeof path, "models/%s.bert", counts[i].program);
            Program p = program_new();
            run_file(&p, path, set);
            ParamCounts found = params_count(p.g);
            if (found.trainable != counts[i].trainable[c])
                fail_msg("%s %s: %lld", path, counts[i].set ? counts[i].set : "",
                         (long long)found.trainable);
            if (c == 0) assert_int_equal(found.total, counts[i].total);
            assert_int_equal(p.info.config.classes, c ? 4 : 2);
            check_derivation(&p, found.trainable);
            program_free(&p);
        }
}

static void derivations_read_as_one_would_write_them(void **state) {
    (void)state;
    static const char *const expected[][2] = {
        {"models/lora_r16.bert", "24 x 16 x (768 + 768) + 768 x 2 + 2 = 591,362"},
        {"models/adapters.bert", "24 x (768 x 64 + 64 + 768 x 64 + 768) + 768 x 2 + 2 = 2,380,802"},
        {"models/vera.bert", "24 x (256 + 768) + 768 x 2 + 2 = 26,114"},
    };
    for (int i = 0; i < 3; i++) {
        Program p = program_new();
        run_file(&p, expected[i][0], NULL);
        assert_string_equal(params_derivation(p.g, &p.info), expected[i][1]);
        program_free(&p);
    }
}

/* ---- every program ---- */

static char *graph_text(Graph *g) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    text_print(f, g, true);
    fclose(f);
    return text;
}

static void check_spans(const Program *p) {
    for (int i = 0; i < p->g->n; i++) {
        const Node *n = p->g->node[i];
        if (n->op == OP_CONST || n->op == OP_INPUT) continue;
        assert_in_range(n->span.file, 0, p->sources->nfile - 1);
        assert_in_range(n->span.begin, 0, n->span.end);
        assert_in_range(n->span.end, 1, p->sources->file[n->span.file].length);
    }
}

/* Each random operation has a number of its own. */
static void check_sites(const Graph *g) {
    bool *seen = calloc((size_t)g->nsite + 1, sizeof *seen);
    for (int i = 0; i < g->n; i++) {
        const Node *n = g->node[i];
        int32_t site = n->op == OP_DROPOUT ? n->attr.dropout.site : -1;
        if (n->op == OP_ATTENTION && n->attr.attention.p > 0) site = n->attr.attention.site;
        if (site < 0) continue;
        assert_in_range(site, 0, g->nsite - 1);
        assert_false(seen[site]);
        seen[site] = true;
    }
    free(seen);
}

static void check_report(Program *p) {
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    params_print(f, p->g, &p->info, true);
    fclose(f);
    json_error_t error;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!root) fail_msg("%s\n%s", error.text, text);
    ParamCounts c = params_count(p->g);
    assert_int_equal(json_integer_value(json_object_get(root, "trainable")), c.trainable);
    int64_t total = 0;
    size_t i;
    json_t *kind;
    json_array_foreach(json_object_get(root, "kinds"), i, kind) {
        total += json_integer_value(json_object_get(kind, "total"));
    }
    assert_int_equal(total, c.total);
    json_decref(root);
    free(text);
}

static void check_program(const char *path) {
    Program p = program_new(), again = program_new();
    run_file(&p, path, NULL);
    assert_non_null(graph_find_output(p.g, PEFT_FN_EVAL, "loss"));
    check_spans(&p);
    check_sites(p.g);
    check_report(&p);
    assert_int_equal(count_op(p.g, OP_TRANSPOSE), 0); /* all are part of a product, or views */
    assert_int_equal(p.info.nparam, p.g->nvar);
    assert_true(strlen(p.info.settings) > 0);
    run_file(&again, path, NULL);
    char *a = graph_text(p.g), *b = graph_text(again.g);
    assert_string_equal(a, b);
    free(a);
    free(b);
    program_free(&p);
    program_free(&again);
}

static void every_program_elaborates(void **state) {
    (void)state;
    glob_t found;
    assert_int_equal(glob("models/*.bert", 0, NULL, &found), 0);
    assert_int_equal(glob("examples/*.bert", GLOB_APPEND, NULL, &found), 0);
    assert_true(found.gl_pathc >= 18);
    for (size_t i = 0; i < found.gl_pathc; i++) check_program(found.gl_pathv[i]);
    globfree(&found);
}

/* ---- names ---- */

static void check_var(const Program *p, const char *name, const char *type, bool trainable,
                      bool fresh, bool decay) {
    char buf[64];
    const Var *v = var(p, name);
    if (strcmp(type_str(v->type, buf), type) != 0) fail_msg("%s is %s, not %s", name, buf, type);
    if (v->trainable != trainable || v->fresh != fresh || v->decay != decay)
        fail_msg("%s: trainable %d fresh %d decay %d", name, v->trainable, v->fresh, v->decay);
}

#define QUERY  "bert.encoder.layer.11.attention.self.query."
#define OUTPUT "bert.encoder.layer.11.output."

static void names_are_those_of_weight_files(void **state) {
    (void)state;
    static const struct {
        const char *program, *name, *type;
        bool trainable, fresh, decay;
    } vars[] = {
        {"full_ft", "bert.embeddings.word_embeddings.weight", "f32[30522, 768]", true, false, true},
        {"full_ft", "bert.embeddings.token_type_embeddings.weight", "f32[2, 768]", true, false,
         true},
        {"full_ft", "bert.embeddings.position_embeddings.weight", "f32[512, 768]", true, false,
         true},
        {"full_ft", "bert.embeddings.LayerNorm.weight", "f32[768]", true, false, false},
        {"full_ft", QUERY "weight", "f32[768, 768]", true, false, true},
        {"full_ft", QUERY "bias", "f32[768]", true, false, false},
        {"full_ft", "bert.encoder.layer.0.intermediate.dense.weight", "f32[3072, 768]", true, false,
         true},
        {"full_ft", OUTPUT "dense.weight", "f32[768, 3072]", true, false, true},
        {"full_ft", OUTPUT "LayerNorm.bias", "f32[768]", true, false, false},
        {"full_ft", "bert.pooler.dense.weight", "f32[768, 768]", true, false, true},
        {"full_ft", "classifier.weight", "f32[2, 768]", true, true, true},
        {"lora_r16", QUERY "weight", "f32[768, 768]", false, false, true},
        {"lora_r16", QUERY "lora_A.weight", "f32[16, 768]", true, true, true},
        {"lora_r16", QUERY "lora_B.weight", "f32[768, 16]", true, true, true},
        {"qlora_r16", QUERY "weight", "nf4[768, 768]", false, false, true},
        {"qlora_r16", QUERY "bias", "f32[768]", false, false, false},
        {"qlora_r16", "classifier.weight", "f32[2, 768]", true, true, true},
        {"qlora_r16", "bert.embeddings.word_embeddings.weight", "f32[30522, 768]", false, false,
         true},
        {"qlora_embedding", "bert.embeddings.word_embeddings.weight", "nf4[30522, 768]", false,
         false, true},
        {"dora", QUERY "lora_magnitude_vector", "f32[768]", true, true, true},
        {"vera", "vera_A", "f32[256, 768]", false, true, true},
        {"vera", "vera_B", "f32[768, 256]", false, true, true},
        {"vera", QUERY "vera_lambda_d", "f32[256]", true, true, true},
        {"vera", QUERY "vera_lambda_b", "f32[768]", true, true, true},
        {"ia3", "bert.encoder.layer.3.attention.self.key.ia3_l", "f32[768, 1]", true, true, true},
        {"ia3", "bert.encoder.layer.3.attention.output.dense.ia3_l", "f32[1, 768]", true, true,
         true},
        {"ia3", OUTPUT "dense.ia3_l", "f32[1, 3072]", true, true, true},
        {"adapters", "bert.encoder.layer.11.attention.output.adapter_down.0.weight", "f32[64, 768]",
         true, true, true},
        {"adapters", OUTPUT "adapter_up.weight", "f32[768, 64]", true, true, true},
        {"adapters", OUTPUT "adapter_up.bias", "f32[768]", true, true, false},
        {"adapters", OUTPUT "LayerNorm.weight", "f32[768]", false, false, false},
        {"mlm", "cls.predictions.transform.dense.weight", "f32[768, 768]", true, true, true},
        {"mlm", "cls.predictions.transform.LayerNorm.weight", "f32[768]", true, true, false},
        {"mlm", "cls.predictions.bias", "f32[30522]", true, true, false},
    };
    for (size_t i = 0; i < sizeof vars / sizeof *vars; i++) {
        char path[64];
        snprintf(path, sizeof path, "models/%s.bert", vars[i].program);
        Program p = program_new();
        run_file(&p, path, NULL);
        check_var(&p, vars[i].name, vars[i].type, vars[i].trainable, vars[i].fresh, vars[i].decay);
        program_free(&p);
    }
}

static void initial_values_are_torchs(void **state) {
    (void)state;
    Program p = program_new();
    run_file(&p, "models/lora_r8.bert", NULL);
    Init a = var(&p, QUERY "lora_A.weight")->init;
    assert_int_equal(a.kind, PEFT_UNIFORM);
    assert_true(fabs(a.a - 0.03608439182435161) < 1e-15);
    assert_int_equal(var(&p, QUERY "lora_B.weight")->init.kind, PEFT_ZEROS);
    Init head = var(&p, "classifier.weight")->init;
    assert_true(head.kind == PEFT_NORMAL && head.a == 0.02);
    program_free(&p);
    p = program_new();
    run_file(&p, "models/vera.bert", NULL);
    Init d = var(&p, QUERY "vera_lambda_d")->init, b = var(&p, "vera_B")->init;
    assert_true(d.kind == PEFT_CONSTANT && d.a == 0.1);
    assert_true(b.kind == PEFT_UNIFORM && fabs(b.a - sqrt(6.0 / 256)) < 1e-15);
    program_free(&p);
}

/* ---- structure ---- */

static void quantised_weights_are_read_through_dequant(void **state) {
    (void)state;
    static const char *const path[] = {"models/qlora_r16.bert", "models/qlora_embedding.bert"};
    for (int k = 0; k < 2; k++) {
        Program p = program_new();
        run_file(&p, path[k], NULL);
        assert_int_equal(count_op(p.g, OP_DEQUANT), 73 + k);
        for (int i = 0; i < p.g->n; i++)
            for (int j = 0; j < p.g->node[i]->nin; j++)
                if (p.g->node[i]->in[j]->type.dt == DT_NF4)
                    assert_int_equal(p.g->node[i]->op, OP_DEQUANT);
        program_free(&p);
    }
}

static void stores_can_be_changed(void **state) {
    (void)state;
    Program p = program_new();
    run(&p, "use \"models/qlora_r16.bert\"\n"
            "model m = qlora_r16(c = bert_tiny) {\n"
            "  store **.query as nf4(double_quant = false)\n"
            "  store **.layer.0.** as f32\n}\n");
    assert_int_equal(var(&p, "bert.encoder.layer.1.attention.self.query.weight")->type.dt,
                     DT_NF4_PLAIN);
    assert_int_equal(var(&p, "bert.encoder.layer.1.attention.self.key.weight")->type.dt, DT_NF4);
    assert_int_equal(var(&p, "bert.encoder.layer.0.attention.self.query.weight")->type.dt, DT_F32);
    program_free(&p);
}

static void dropout_zero_leaves_nothing(void **state) {
    (void)state;
    const char *const set[] = {"config.dropout=0", "config.attention_dropout=0", NULL};
    Program p = program_new();
    run_file(&p, "models/adapters.bert", set);
    assert_int_equal(count_op(p.g, OP_DROPOUT), 0);
    assert_int_equal(p.g->nsite, 0);
    program_free(&p);
    p = program_new();
    run_file(&p, "models/lora_r8.bert", (const char *const[]){"lora.dropout=0.05", NULL});
    assert_int_equal(count_op(p.g, OP_DROPOUT),
                     1 + 24 + 1 + 24); /* embeddings, layers, head, lora */
    program_free(&p);
}

static void a_magnitude_starts_from_its_weight(void **state) {
    (void)state;
    Program p = program_new();
    run_file(&p, "models/dora.bert", NULL);
    assert_int_equal(p.info.nstart, 24);
    for (int i = 0; i < 24; i++) {
        const Var *v = &p.g->var[p.info.start[i].var];
        assert_non_null(strstr(v->name, "lora_magnitude_vector"));
        assert_true(type_equal(p.info.start[i].value->type, v->type));
    }
    program_free(&p);
}

static void shared_and_tied_parameters_are_one(void **state) {
    (void)state;
    Program p = program_new();
    run_file(&p, "models/vera.bert", NULL);
    int n = 0;
    for (int i = 0; i < p.g->nvar; i++) n += strstr(p.g->var[i].name, "vera_A") != NULL;
    assert_int_equal(n, 1);
    program_free(&p);
    p = program_new();
    run_file(&p, "models/mlm.bert", NULL);
    int users = 0;
    for (int i = 0; i < p.g->n; i++)
        for (int k = 0; k < p.g->node[i]->nin; k++) {
            const Node *in = p.g->node[i]->in[k];
            users += in->op == OP_VAR && strcmp(p.g->var[in->attr.leaf.index].name,
                                                "bert.embeddings.word_embeddings.weight") == 0;
        }
    assert_int_equal(users, 2); /* the look-up, and the decoder's product */
    assert_int_equal(p.info.task, PEFT_TASK_MLM);
    assert_null(graph_find_output(p.g, PEFT_FN_EVAL, "logits"));
    program_free(&p);
}

/* A block of one linear layer, for what follows. */
#define SMALL                                                           \
    "use \"models/lib/bert.bert\"\n"                                    \
    "config small { vocab = 20  hidden = 4  two = 2 * hidden }\n"       \
    "block top(c, classes = 2) {\n"                                     \
    "  words = embedding(c.vocab, c.hidden)\n"                          \
    "  new head = linear(c.hidden, classes)\n"                          \
    "  (text, labels) {\n"                                              \
    "    logits = head(first_token(words(text.tokens)))\n"              \
    "    loss = batch_mean(cross_entropy(logits, labels))\n"            \
    "    return loss, logits\n  }\n}\n"                                 \
    "patch twice(by = 2) on linear(a, b) {\n  (x) -> base(x) * by\n}\n" \
    "patch plus(n = 1) on linear(a, b) {\n  param n1[b] = n\n  (x) -> base(x) + n1\n}\n"

static void later_patches_wrap_earlier_ones(void **state) {
    (void)state;
    Program p = program_new();
    run(&p,
        SMALL "model m = top(small) {\n  patch head with twice\n  patch head with plus(5)\n}\n");
    const Node *logits = graph_find_output(p.g, PEFT_FN_EVAL, "logits");
    assert_int_equal(logits->op, OP_ADD);
    assert_true(logits->in[0]->op == OP_MUL || logits->in[1]->op == OP_MUL);
    Init n1 = var(&p, "head.n1")->init;
    assert_true(n1.kind == PEFT_CONSTANT && n1.a == 5);
    program_free(&p);
    p = program_new();
    run(&p,
        SMALL "model m = top(small) {\n  patch head with plus(5)\n  patch head with twice\n}\n");
    assert_int_equal(graph_find_output(p.g, PEFT_FN_EVAL, "logits")->op, OP_MUL);
    program_free(&p);
}

static void check_trained(const char *model, const char *trained) {
    Program p = program_new();
    Settings s = {.model = model};
    if (!program_run(&p,
                     SMALL
                     "model a = top(small) {\n  freeze **\n  patch head with plus\n"
                     "  train head.bias\n}\n"
                     "model b = a {\n  freeze head.n1\n  train words\n}\n"
                     "model c = b(classes = 3) {\n  train linear(**)\n  freeze **.{bias,n1}\n}\n",
                     &s))
        fail_msg("%s", p.said);
    char found[256] = "";
    for (int i = 0; i < p.g->nvar; i++) {
        if (!p.g->var[i].trainable) continue;
        strcat(found, p.g->var[i].name);
        strcat(found, " ");
    }
    assert_string_equal(found, trained);
    assert_string_equal(p.info.name, model);
    assert_int_equal(p.info.config.classes, *model == 'c' ? 3 : 2);
    program_free(&p);
}

static void statements_are_carried_out_in_order(void **state) {
    (void)state;
    check_trained("a", "head.bias head.n1 ");
    check_trained("b", "words.weight head.bias ");
    check_trained("c", "words.weight head.weight ");
}

static void reports_say_what_paths_matched(void **state) {
    (void)state;
    Program p = program_new();
    run_file(&p, "models/qlora_r16.bert", NULL);
    static const struct {
        const char *text, *unit;
        int64_t count;
    } expected[] = {
        {"freeze **", "tensors", 201},
        {"patch **.attention.self.{query,value} with lora(rank = 16, alpha = 32)", "blocks", 24},
        {"train classifier", "tensors", 2},
        {"store linear(bert.**) as nf4(block = 64, double_quant = true)", "tensors", 73},
    };
    assert_int_equal(p.info.nstmt, 4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(p.info.stmt[i].text, expected[i].text);
        assert_string_equal(p.info.stmt[i].unit, expected[i].unit);
        assert_int_equal(p.info.stmt[i].count, expected[i].count);
    }
    assert_int_equal(p.info.nmethod, 2);
    const PeftMethod *m = &p.info.method[1];
    assert_string_equal(m->patch, "lora");
    assert_string_equal(m->target, "value");
    assert_int_equal(m->count, 12);
    assert_int_equal(m->nparam, 3);
    assert_string_equal(m->param_name[1], "alpha");
    assert_true(m->param_value[1] == 32);
    program_free(&p);
}

static void an_unused_parameter_is_a_warning(void **state) {
    (void)state;
    Program p = program_new();
    bool ok = program_run(&p,
                          SMALL "block more(c) {\n  top = top(c)\n  spare = linear(2, 2)\n"
                                "  (text, labels) {\n    x = top.words(text.tokens)\n"
                                "    logits = top.head(first_token(x))\n"
                                "    loss = batch_mean(cross_entropy(logits, labels))\n"
                                "    return loss, logits\n  }\n}\n"
                                "model m = more(small) {\n  freeze spare\n}\n",
                          &no_settings);
    assert_true(ok);
    assert_said(&p, "warning: this parameter is never used");
    assert_int_equal(p.diag.nerror, 0);
    program_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bert_base_has_the_published_counts),
        cmocka_unit_test(derivations_read_as_one_would_write_them),
        cmocka_unit_test(every_program_elaborates),
        cmocka_unit_test(names_are_those_of_weight_files),
        cmocka_unit_test(initial_values_are_torchs),
        cmocka_unit_test(quantised_weights_are_read_through_dequant),
        cmocka_unit_test(stores_can_be_changed),
        cmocka_unit_test(dropout_zero_leaves_nothing),
        cmocka_unit_test(a_magnitude_starts_from_its_weight),
        cmocka_unit_test(shared_and_tied_parameters_are_one),
        cmocka_unit_test(later_patches_wrap_earlier_ones),
        cmocka_unit_test(statements_are_carried_out_in_order),
        cmocka_unit_test(reports_say_what_paths_matched),
        cmocka_unit_test(an_unused_parameter_is_a_warning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
