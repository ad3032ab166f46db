/* Models in one file, in shards and in adapter folders, and the map from program names to whatever
 * the saving library called the tensors. The saved names here are those that transformers, peft and
 * AdapterHub write. */
#include "scratch.h"

#include "../../runtime/io/file.h"
#include "../../runtime/io/weights_map.h"

/* A file of tensors [2] with the given names; tensor i holds {base + i, 0}. */
static const char *file_of(const char *path, float base, int n, const char *const *names) {
    PeftError err = {0};
    int64_t dims[] = {2};
    StWriter *w = st_writer_new(path, &err);
    for (int i = 0; i < n; i++)
        assert_int_equal(st_writer_add(w, names[i], ST_F32, 1, dims, &err), i);
    assert_true(st_writer_begin(w, &err));
    for (int i = 0; i < n; i++)
        assert_true(st_writer_put(w, i, (float[]){base + (float)i, 0}, 8, &err));
    assert_true(st_writer_finish(w, &err));
    return path;
}

#define NAMES(...)                                                                    \
    (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *[]) { \
        __VA_ARGS__                                                                   \
    }

static float first_value(const StTensor *t) {
    PeftError err = {0};
    float x;
    assert_non_null(t);
    assert_true(st_read_f32(t, &x, 0, 1, &err));
    return x;
}

static const char *folder(const char *name) {
    PeftError err = {0};
    const char *path = scratch_path(name);
    assert_true(dir_make(path, &err));
    return path;
}

static Weights *opened(const char *path) {
    PeftError err = {0};
    Weights *w = weights_open(path, &err);
    if (!w) fail_msg("%s", err.msg);
    return w;
}

/* ---- files and folders ---- */

static void test_file_and_folders(void **state) {
    (void)state;
    static const char *const INSIDE[] = {"model.safetensors", "adapter_model.safetensors",
                                         "adapter.safetensors"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "single%d", i);
        const char *dir = folder(name);
        snprintf(name, sizeof name, "single%d/%s", i, INSIDE[i]);
        file_of(scratch_path(name), 3, NAMES("b", "a"));
        const char *paths[] = {dir, scratch_path(name)};
        for (int k = 0; k < 2; k++) {
            Weights *w = opened(paths[k]);
            assert_string_equal(weights_path(w), paths[k]);
            assert_int_equal(weights_count(w), 2);
            assert_true(first_value(weights_find(w, "a")) == 4);
            assert_true(first_value(weights_find(w, "b")) == 3);
            assert_null(weights_find(w, "c"));
            assert_null(weights_get(w, 2));
            weights_close(w);
        }
    }
}

static const char *sharded_folder(const char *index) {
    const char *dir = folder("sharded");
    file_of(scratch_path("sharded/m-00001-of-00002.safetensors"), 10, NAMES("x", "y"));
    file_of(scratch_path("sharded/m-00002-of-00002.safetensors"), 20, NAMES("z", "x"));
    scratch_file("sharded/model.safetensors.index.json", index, strlen(index));
    return dir;
}

static void test_shards(void **state) {
    (void)state;
    Weights *w = opened(sharded_folder("{\"metadata\": {\"total_size\": 24}, \"weight_map\": {"
                                       "\"z\": \"m-00002-of-00002.safetensors\","
                                       "\"y\": \"m-00001-of-00002.safetensors\","
                                       "\"x\": \"m-00001-of-00002.safetensors\"}}"));
    assert_int_equal(weights_count(w), 3);
    assert_true(first_value(weights_find(w, "x")) == 10); /* the one the index points at */
    assert_true(first_value(weights_find(w, "y")) == 11);
    assert_true(first_value(weights_find(w, "z")) == 20);
    weights_close(w);
}

static void test_bad_index(void **state) {
    (void)state;
    static const char *const CASES[][3] = {
        {"{", "not valid JSON", "index.json"},
        {"{}", "expected weight_map", "nothing"},
        {"{\"weight_map\": []}", "expected weight_map", "a list"},
        {"{\"weight_map\": {\"x\": 3}}", "expected the name of a file", "3"},
        {"{\"weight_map\": {\"x\": \"../x.safetensors\"}}", "in the same folder", "../x"},
        {"{\"weight_map\": {\"x\": \"..\"}}", "in the same folder", ".."},
        {"{\"weight_map\": {\"x\": \"a\\u0001\"}}", "in the same folder", "\\u0001"},
        {"{\"weight_map\": {\"x\": \"gone.safetensors\"}}", "cannot open", "gone.safetensors"},
        {"{\"weight_map\": {\"q\": \"m-00001-of-00002.safetensors\"}}", "\"q\" should be in",
         "m-00001-of-00002.safetensors"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        PeftError err = {0};
        assert_null(weights_open(sharded_folder(CASES[i][0]), &err));
        assert_message(&err, CASES[i][1], CASES[i][2], NULL);
    }
}

static void test_folder_without_weights(void **state) {
    (void)state;
    PeftError err = {0};
    const char *dir = folder("pickle");
    assert_null(weights_open(dir, &err));
    assert_message(&err, dir, "model.safetensors", "no weights", NULL);
    err.msg[0] = 0;
    scratch_file("pickle/pytorch_model.bin", "PK", 2);
    assert_null(weights_open(dir, &err));
    assert_message(&err, dir, "pytorch_model.bin", "python -c", "'model.safetensors')", NULL);
    err.msg[0] = 0;
    assert_null(weights_open(scratch_path("absent"), &err));
    assert_message(&err, "absent", "No such file", NULL);
}

/* ---- names ---- */

static void test_canonical_names(void **state) {
    (void)state;
#define Q "bert.encoder.layer.0.attention.self.query."
#define P "base_model.model."
    static const char *const CASES[][2] = {
        /* peft's files */
        {P Q "lora_A.weight", Q "lora_A.weight"},
        {P Q "lora_magnitude_vector", Q "lora_magnitude_vector"},
        {P Q "ia3_l", Q "ia3_l"},
        {P Q "vera_lambda_b", Q "vera_lambda_b"},
        {"base_model.vera_A", "vera_A"},
        {P "classifier.bias", "classifier.bias"},
        {P "bert.embeddings.word_embeddings.lora_embedding_A",
         "bert.embeddings.word_embeddings.lora_embedding_A"},
        /* peft's state dict */
        {P Q "lora_A.default.weight", Q "lora_A.weight"},
        {P Q "lora_B.mine.weight", Q "lora_B.weight"},
        {P Q "lora_magnitude_vector.default.weight", Q "lora_magnitude_vector"},
        {P Q "ia3_l.default", Q "ia3_l"},
        {P Q "vera_lambda_d.default", Q "vera_lambda_d"},
        {"base_model.vera_B.default", "vera_B"},
        {P Q "base_layer.weight", Q "weight"},
        {P "classifier.modules_to_save.default.weight", "classifier.weight"},
        {P "classifier.original_module.weight", "classifier.weight"},
        /* AdapterHub */
        {"bert.encoder.layer.0.output.adapters.sst.adapter_down.0.weight",
         "bert.encoder.layer.0.output.adapter_down.0.weight"},
        {"bert.encoder.layer.0.attention.output.adapters.sst.adapter_up.bias",
         "bert.encoder.layer.0.attention.output.adapter_up.bias"},
        /* TensorFlow checkpoints */
        {"bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"},
        {"bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"},
        /* nothing to do */
        {Q "weight", Q "weight"},
        {"embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"},
        {"x.gamma", "x.gamma"},
        {"modules_to_save", "modules_to_save"},
        {"adapters.x", "adapters.x"},
        {"lora_A", "lora_A"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        PeftError err = {0};
        char *once = name_strip(CASES[i][0], &err), *twice = name_strip(once, &err);
        assert_string_equal(once, CASES[i][1]);
        assert_string_equal(twice, once);
        free(once);
        free(twice);
    }
}

static WeightMap *map_of(int n, Weights **w) {
    PeftError err = {0};
    WeightMap *m = weight_map_new(&err);
    for (int i = 0; i < n; i++)
        if (!weight_map_add(m, w[i], &err)) fail_msg("%s", err.msg);
    return m;
}

static void test_bert_prefix(void **state) {
    (void)state;
    Weights *w[] = {opened(file_of(scratch_path("bare"), 1, NAMES("embeddings.x", "pooler.y"))),
                    opened(file_of(scratch_path("full"), 5, NAMES("bert.embeddings.x", "cls.z")))};
    for (int i = 0; i < 2; i++) {
        WeightMap *m = map_of(1, &w[i]);
        assert_true(first_value(weight_map_find(m, "bert.embeddings.x")) == (i ? 5 : 1));
        assert_true(first_value(weight_map_find(m, "embeddings.x")) == (i ? 5 : 1));
        assert_null(weight_map_find(m, "bert.embeddings"));
        weight_map_free(m);
    }
    /* the later model wins, with and without the prefix */
    WeightMap *m = map_of(2, w);
    assert_true(first_value(weight_map_find(m, "embeddings.x")) == 5);
    assert_true(first_value(weight_map_find(m, "bert.pooler.y")) == 2);
    weight_map_free(m);
    Weights *reversed[] = {w[1], w[0]};
    m = map_of(2, reversed);
    assert_true(first_value(weight_map_find(m, "bert.embeddings.x")) == 1);
    weight_map_free(m);
    weights_close(w[0]);
    weights_close(w[1]);
}

static void test_base_and_adapter(void **state) {
    (void)state;
    Weights *w[] = {opened(file_of(scratch_path("base"), 0,
                                   NAMES("bert.l.query.weight", "classifier.weight",
                                         "bert.l.LayerNorm.gamma"))),
                    opened(file_of(scratch_path("adapter"), 10,
                                   NAMES("base_model.model.bert.l.query.lora_A.weight",
                                         "base_model.model.classifier.weight")))};
    WeightMap *m = map_of(2, w);
    assert_true(first_value(weight_map_find(m, "bert.l.query.weight")) == 0);
    assert_true(first_value(weight_map_find(m, "bert.l.LayerNorm.weight")) == 2);
    assert_true(first_value(weight_map_find(m, "bert.l.query.lora_A.weight")) == 10);
    assert_true(first_value(weight_map_find(m, "classifier.weight")) == 11);
    assert_int_equal(weight_map_unused(m, NULL, 0), 0); /* the overridden head is not left over */
    weight_map_free(m);
    weights_close(w[0]);
    weights_close(w[1]);
}

static void test_trained_copy_wins(void **state) {
    (void)state;
    Weights *w = opened(file_of(scratch_path("state_dict"), 0,
                                NAMES("base_model.model.classifier.original_module.weight",
                                      "base_model.model.classifier.modules_to_save.default.weight",
                                      "base_model.model.score.original_module.weight")));
    WeightMap *m = map_of(1, &w);
    assert_true(first_value(weight_map_find(m, "classifier.weight")) == 1);
    assert_true(first_value(weight_map_find(m, "score.weight")) == 2);
    weight_map_free(m);
    weights_close(w);
}

static void test_clash(void **state) {
    (void)state;
    PeftError err = {0};
    Weights *w = opened(file_of(scratch_path("clash"), 0,
                                NAMES("bert.x.adapters.one.up.weight", "bert.y",
                                      "bert.x.adapters.two.up.weight", "bert.z")));
    WeightMap *m = weight_map_new(&err);
    assert_false(weight_map_add(m, w, &err));
    assert_message(&err, "clash", "adapters.one.up", "adapters.two.up", "both bert.x.up.weight",
                   NULL);
    assert_null(weight_map_find(m, "bert.y")); /* nothing was added */
    weight_map_free(m);
    weights_close(w);
}

static void test_left_over(void **state) {
    (void)state;
    Weights *w =
        opened(file_of(scratch_path("left"), 0,
                       NAMES("bert.embeddings.position_ids", "cls.predictions.bias",
                             "bert.pooler.dense.weight", "bert.extra", "bert.used", "another")));
    WeightMap *m = map_of(1, &w);
    weight_map_find(m, "bert.used");
    const StTensor *left[1] = {NULL};
    assert_int_equal(weight_map_unused(m, left, 1), 2);
    assert_string_equal(left[0]->name, "another");
    weight_map_free(m);
    weights_close(w);
}

static void test_missing(void **state) {
    (void)state;
    PeftError err = {0};
    Weights *w = opened(file_of(scratch_path("some"), 0, NAMES("a", "bert.b")));
    WeightMap *m = map_of(1, &w);
    static const char *const WANTED[] = {"bert.a", "b", "m1", "m2", "m3", "m4", "m5"};
    assert_true(weight_map_require(m, WANTED, 2, &err));
    assert_false(weight_map_require(m, WANTED, 3, &err));
    assert_message(&err, "1 of 3 tensors", ": m1", NULL);
    assert_int_equal(err.msg[strlen(err.msg) - 1], '1');
    err.msg[0] = 0;
    assert_false(weight_map_require(m, WANTED, 7, &err));
    assert_message(&err, "5 of 7 tensors", ": m1, m2, m3, m4, ...", NULL);
    weight_map_free(m);
    weights_close(w);
}

static void test_resolve(void **state) {
    (void)state;
    PeftError err = {0};
    const char *path = scratch_path("shapes");
    StWriter *f = st_writer_new(path, &err);
    st_writer_add(f, "w", ST_F16, 2, (int64_t[]){2, 3}, &err);
    st_writer_add(f, "k.ia3_l", ST_F32, 2, (int64_t[]){3, 1}, &err);
    st_writer_add(f, "ids", ST_I64, 1, (int64_t[]){1}, &err);
    st_writer_add(f, "nf4.weight", ST_U8, 2, (int64_t[]){3, 1}, &err);
    assert_true(st_writer_begin(f, &err));
    assert_true(st_writer_put(f, 0, "123456789012", 12, &err));
    assert_true(st_writer_put(f, 1, "123456789012", 12, &err));
    assert_true(st_writer_put(f, 2, "12345678", 8, &err));
    assert_true(st_writer_put(f, 3, "123", 3, &err));
    assert_true(st_writer_finish(f, &err));
    Weights *w = opened(path);
    WeightMap *m = map_of(1, &w);
    assert_non_null(weight_map_resolve(m, "w", 2, (int64_t[]){2, 3}, &err));
    assert_non_null(weight_map_resolve(m, "bert.w", 3, (int64_t[]){2, 1, 3}, &err));
    assert_non_null(weight_map_resolve(m, "k.ia3_l", 1, (int64_t[]){3}, &err));
    static const struct {
        const char *name;
        int rank;
        int64_t dims[2];
        const char *expected[2];
    } BAD[] = {
        {"w", 2, {3, 2}, {"tensor w: expected shape [3, 2], found [2, 3]", "shapes"}},
        {"w", 1, {6}, {"expected shape [6], found [2, 3]", "shapes"}},
        {"w", 1, {2}, {"expected shape [2], found [2, 3]", "shapes"}},
        {"w", 0, {0}, {"expected shape [], found [2, 3]", "shapes"}},
        {"v", 2, {3, 2}, {"tensor v, expected with shape [3, 2]", "none of the weight files"}},
        {"ids", 1, {1}, {"tensor ids: expected dtype F32", "found I64"}},
        {"nf4.weight", 2, {2, 3}, {"found U8", "quantised"}},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_null(weight_map_resolve(m, BAD[i].name, BAD[i].rank, BAD[i].dims, &err));
        assert_message(&err, BAD[i].expected[0], BAD[i].expected[1], NULL);
        err.msg[0] = 0;
    }
    weight_map_free(m);
    weights_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_and_folders),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_bad_index),
        cmocka_unit_test(test_folder_without_weights),
        cmocka_unit_test(test_canonical_names),
        cmocka_unit_test(test_bert_prefix),
        cmocka_unit_test(test_base_and_adapter),
        cmocka_unit_test(test_trained_copy_wins),
        cmocka_unit_test(test_clash),
        cmocka_unit_test(test_left_over),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_resolve),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_drop);
}
