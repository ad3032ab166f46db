/* config.json of transformers in, config.json and adapter_config.json out. Each refusal names the
 * file, the field, what was found and what is supported. */
#include "scratch.h"

#include <jansson.h>

#include "../../runtime/io/config.h"
#include "../../runtime/io/config_write.h"

/* The fields of a valid file, each replaceable: a test removes or changes one. */
static const char *const FIELDS[][2] = {
    {"model_type", "\"bert\""},     {"hidden_act", "\"gelu\""},
    {"vocab_size", "30522"},        {"hidden_size", "384"},
    {"num_hidden_layers", "6"},     {"num_attention_heads", "12"},
    {"intermediate_size", "1536"},  {"max_position_embeddings", "512"},
    {"type_vocab_size", "2"},       {"layer_norm_eps", "1e-12"},
    {"hidden_dropout_prob", "0.1"}, {"attention_probs_dropout_prob", "0.2"},
    {"initializer_range", "0.02"},  {"position_embedding_type", "\"absolute\""},
};

/* The file with one field set to `value` (added if new), or left out when value is NULL. */
static const char *config_with(const char *key, const char *value) {
    static char text[4096];
    char *p = text;
    bool known = false;
    p += sprintf(p, "{\"_name_or_path\": \"x\"");
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        bool this = key && strcmp(FIELDS[i][0], key) == 0;
        const char *v = this ? value : FIELDS[i][1];
        if (v) p += sprintf(p, ", \"%s\": %s", FIELDS[i][0], v);
        known = known || this;
    }
    if (key && !known) p += sprintf(p, ", \"%s\": %s", key, value);
    strcpy(p, "}");
    return text;
}

static bool parse(const char *text, BertConfig *c, PeftError *err) {
    *err = (PeftError){0};
    return config_parse(text, strlen(text), "DIR/config.json", c, err);
}

static void test_valid(void **state) {
    (void)state;
    BertConfig c;
    PeftError err;
    assert_true(parse(config_with(NULL, NULL), &c, &err));
    assert_string_equal(c.model_type, "bert");
    assert_string_equal(c.hidden_act, "gelu");
    assert_int_equal(c.vocab_size, 30522);
    assert_int_equal(c.hidden, 384);
    assert_int_equal(c.layers, 6);
    assert_int_equal(c.heads, 12);
    assert_int_equal(c.ffn, 1536);
    assert_int_equal(c.positions, 512);
    assert_int_equal(c.types, 2);
    assert_true(c.eps == 1e-12 && c.hidden_dropout == 0.1 && c.attention_dropout == 0.2);
    assert_true(c.classifier_dropout == 0.1 && c.initializer_range == 0.02);
    assert_int_equal(c.num_labels, 0);
}

static void test_optional_fields(void **state) {
    (void)state;
    BertConfig c;
    PeftError err;
    assert_true(parse(config_with("layer_norm_eps", NULL), &c, &err));
    assert_true(c.eps == 1e-12);
    assert_true(parse(config_with("attention_probs_dropout_prob", NULL), &c, &err));
    assert_true(c.attention_dropout == 0.1);
    assert_true(parse(config_with("hidden_dropout_prob", "0"), &c, &err)); /* an integer is fine */
    assert_true(c.hidden_dropout == 0 && c.classifier_dropout == 0);
    assert_true(parse(config_with("classifier_dropout", "null"), &c, &err));
    assert_true(c.classifier_dropout == 0.1);
    assert_true(parse(config_with("classifier_dropout", "0.3"), &c, &err));
    assert_true(c.classifier_dropout == 0.3);
    assert_true(parse(config_with("num_labels", "4"), &c, &err));
    assert_int_equal(c.num_labels, 4);
    assert_true(parse(config_with("id2label", "{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\"}"), &c, &err));
    assert_int_equal(c.num_labels, 3);
    assert_true(parse(config_with("position_embedding_type", NULL), &c, &err));
    assert_true(parse(config_with("hidden_act", NULL), &c, &err));
    assert_true(parse(config_with("is_decoder", "false"), &c, &err));
}

static const struct {
    const char *key, *value, *expected[3];
} REFUSED[] = {
    {"model_type", NULL, {"model_type", "missing"}},
    {"model_type", "\"roberta\"", {"model_type is \"roberta\"", "supported: \"bert\""}},
    {"model_type", "7", {"model_type is 7", "supported: \"bert\""}},
    {"hidden_act", "\"gelu_new\"", {"hidden_act is \"gelu_new\"", "supported: \"gelu\""}},
    {"hidden_act", "\"a\\u0007b\"", {"hidden_act is \"a\\u0007b\""}},
    {"position_embedding_type", "\"relative_key\"", {"relative_key", "supported: \"absolute\""}},
    {"is_decoder", "true", {"decoder"}},
    {"add_cross_attention", "true", {"decoder"}},
    {"vocab_size", NULL, {"vocab_size", "missing"}},
    {"hidden_size", NULL, {"hidden_size", "missing"}},
    {"num_hidden_layers", NULL, {"num_hidden_layers", "missing"}},
    {"num_attention_heads", NULL, {"num_attention_heads", "missing"}},
    {"intermediate_size", NULL, {"intermediate_size", "missing"}},
    {"max_position_embeddings", NULL, {"max_position_embeddings", "missing"}},
    {"type_vocab_size", NULL, {"type_vocab_size", "missing"}},
    {"vocab_size", "\"30522\"", {"vocab_size", "expected an integer", "a string \"30522\""}},
    {"hidden_size", "384.0", {"hidden_size", "expected an integer", "a real number"}},
    {"hidden_size", "null", {"hidden_size", "expected an integer", "null"}},
    {"hidden_size", "0", {"hidden_size", "expected 1 to 65536", "found 0"}},
    {"hidden_size", "-384", {"hidden_size", "found -384"}},
    {"hidden_size", "1000000000000", {"hidden_size", "found 1000000000000"}},
    {"hidden_size", "385", {"385 is not a multiple of num_attention_heads 12"}},
    {"num_hidden_layers", "5000", {"num_hidden_layers", "1 to 1024"}},
    {"vocab_size", "99999999999999999999", {"not valid JSON"}},
    {"layer_norm_eps", "0", {"layer_norm_eps", "found 0"}},
    {"layer_norm_eps", "\"tiny\"", {"layer_norm_eps", "expected a number", "\"tiny\""}},
    {"hidden_dropout_prob", "1.0", {"hidden_dropout_prob", "found 1.0"}},
    {"hidden_dropout_prob", "-0.1", {"hidden_dropout_prob"}},
    {"classifier_dropout", "2", {"classifier_dropout"}},
    {"initializer_range", "1e400", {"not valid JSON"}},
    {"num_labels", "0", {"num_labels"}},
    {"id2label", "[]", {"id2label", "an object", "a list"}},
    {"id2label", "{\"0\":\"a\"}, \"num_labels\": 2", {"num_labels is 2 but id2label names 1"}},
    {"hidden_size", "384, \"hidden_size\": 384", {"duplicate"}},
};

static void test_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED; i++) {
        BertConfig c;
        PeftError err;
        if (parse(config_with(REFUSED[i].key, REFUSED[i].value), &c, &err))
            fail_msg("accepted: %s = %s", REFUSED[i].key, REFUSED[i].value);
        const char *const *e = REFUSED[i].expected;
        assert_message(&err, "DIR/config.json", e[0], e[1], e[2], NULL);
    }
}

static void test_no_config(void **state) {
    (void)state;
    BertConfig c;
    PeftError err;
    assert_false(parse("", &c, &err));
    assert_message(&err, "DIR/config.json is not valid JSON", NULL);
    assert_false(parse("{\n \"vocab_size\": 1,\n}", &c, &err));
    assert_message(&err, "not valid JSON: line 3", NULL);
    assert_false(parse("[]", &c, &err));
    assert_message(&err, "expected a JSON object, found a list", NULL);
    assert_false(config_read(scratch_path("absent"), &c, &(PeftError){0}));
    err.msg[0] = 0;
    assert_false(config_read(scratch, &c, &err));
    assert_message(&err, scratch, "config.json", "No such file", NULL);
}

static void test_file_and_folder(void **state) {
    (void)state;
    BertConfig c;
    PeftError err = {0};
    const char *text = config_with("num_labels", "2");
    const char *path = scratch_file("config.json", text, strlen(text));
    assert_true(config_read(path, &c, &err));
    assert_int_equal(c.num_labels, 2);
    assert_true(config_read(scratch, &c, &err));
    assert_int_equal(c.num_labels, 2);
    remove(path);
}

/* ---- writing ---- */

static void assert_file(const char *path, const char *expected) {
    size_t n;
    char *text = scratch_read(path, &n);
    assert_string_equal(text, expected);
    free(text);
}

/* Exactly what json.dumps(..., indent=2, sort_keys=True) gives in peft. */
static void test_adapter_config(void **state) {
    (void)state;
    PeftError err = {0};
    static const char *const targets[] = {"query", "value", NULL};
    static const char *const saved[] = {"classifier", "score", NULL};
    LoraAdapter a = {.r = 16,
                     .alpha = 32,
                     .dropout = 0.1,
                     .target_modules = targets,
                     .modules_to_save = saved,
                     .base_model = "base/\"x\"",
                     .task_type = "SEQ_CLS"};
    const char *path = scratch_path("adapter_config.json");
    assert_true(adapter_config_write(path, &a, &err));
    assert_file(path, "{\n"
                      "  \"auto_mapping\": null,\n"
                      "  \"base_model_name_or_path\": \"base/\\\"x\\\"\",\n"
                      "  \"bias\": \"none\",\n"
                      "  \"fan_in_fan_out\": false,\n"
                      "  \"inference_mode\": true,\n"
                      "  \"init_lora_weights\": true,\n"
                      "  \"lora_alpha\": 32,\n"
                      "  \"lora_dropout\": 0.1,\n"
                      "  \"modules_to_save\": [\n"
                      "    \"classifier\",\n"
                      "    \"score\"\n"
                      "  ],\n"
                      "  \"peft_type\": \"LORA\",\n"
                      "  \"r\": 16,\n"
                      "  \"revision\": null,\n"
                      "  \"target_modules\": [\n"
                      "    \"query\",\n"
                      "    \"value\"\n"
                      "  ],\n"
                      "  \"task_type\": \"SEQ_CLS\"\n"
                      "}");
    a = (LoraAdapter){.r = 8, .alpha = 12.5, .use_rslora = true, .use_dora = true};
    assert_true(adapter_config_write(path, &a, &err));
    assert_file(path, "{\n"
                      "  \"auto_mapping\": null,\n"
                      "  \"base_model_name_or_path\": null,\n"
                      "  \"bias\": \"none\",\n"
                      "  \"fan_in_fan_out\": false,\n"
                      "  \"inference_mode\": true,\n"
                      "  \"init_lora_weights\": true,\n"
                      "  \"lora_alpha\": 12.5,\n"
                      "  \"lora_dropout\": 0.0,\n"
                      "  \"modules_to_save\": null,\n"
                      "  \"peft_type\": \"LORA\",\n"
                      "  \"r\": 8,\n"
                      "  \"revision\": null,\n"
                      "  \"target_modules\": null,\n"
                      "  \"task_type\": null,\n"
                      "  \"use_dora\": true,\n"
                      "  \"use_rslora\": true\n"
                      "}");
}

static void test_classifier_config(void **state) {
    (void)state;
    PeftError err = {0};
    const char *base = config_with("id2label", "{\"0\": \"old\"}");
    base = scratch_file("base.json", base, strlen(base));
    const char *path = scratch_path("out.json");
    static const char *const labels[] = {"negative", "positive"};
    assert_true(classifier_config_write(path, base, labels, 2, &err));
    BertConfig c;
    assert_true(config_read(path, &c, &err));
    assert_int_equal(c.num_labels, 2);
    assert_int_equal(c.hidden, 384);
    assert_true(c.eps == 1e-12);
    json_t *j = json_load_file(path, 0, NULL);
    json_t *expected =
        json_pack("{s:[s], s:i, s:{s:s, s:s}, s:{s:i, s:i}}", "architectures",
                  "BertForSequenceClassification", "num_labels", 2, "id2label", "0", "negative",
                  "1", "positive", "label2id", "negative", 0, "positive", 1);
    const char *key;
    json_t *value;
    json_object_foreach(expected, key, value) {
        assert_true(json_equal(json_object_get(j, key), value));
    }
    assert_string_equal(json_string_value(json_object_get(j, "_name_or_path")), "x");
    json_decref(expected);
    json_decref(j);
    assert_true(classifier_config_write(path, base, NULL, 3, &err));
    j = json_load_file(path, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "label2id"), "LABEL_2")),
                     2);
    json_decref(j);
    assert_false(classifier_config_write(path, scratch_path("absent"), NULL, 2, &err));
    assert_message(&err, "absent", "No such file", NULL);
}

static void test_label_that_is_no_text(void **state) {
    (void)state;
    PeftError err = {0};
    const char *base = config_with(NULL, NULL);
    base = scratch_file("base.json", base, strlen(base));
    static const char *const labels[] = {"\xff", "b"};
    assert_false(classifier_config_write(scratch_path("bad.json"), base, labels, 2, &err));
    assert_message(&err, "UTF-8", NULL);
    assert_int_equal(scratch_count(scratch, "bad.json"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),
        cmocka_unit_test(test_optional_fields),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_config),
        cmocka_unit_test(test_file_and_folder),
        cmocka_unit_test(test_adapter_config),
        cmocka_unit_test(test_classifier_config),
        cmocka_unit_test(test_label_that_is_no_text),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
