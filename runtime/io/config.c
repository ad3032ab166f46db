/* Reads config.json, see config.h. One table row per field gives its key, place, range and default;
 * sizes have no default (a missing one is an error), the others have that of transformers'
 * BertConfig. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"
#include "json.h"

enum { MAX_CONFIG = 16 << 20, MAX_LABELS = 1000000 };

typedef struct SizeField {
    const char *key;
    size_t at; /* offset in BertConfig */
    int64_t most;
} SizeField;

/* The upper limits are far beyond any published encoder and keep all products within int64. */
static const SizeField SIZES[] = {
    {"vocab_size", offsetof(BertConfig, vocab_size), 10000000},
    {"hidden_size", offsetof(BertConfig, hidden), 65536},
    {"num_hidden_layers", offsetof(BertConfig, layers), 1024},
    {"num_attention_heads", offsetof(BertConfig, heads), 1024},
    {"intermediate_size", offsetof(BertConfig, ffn), 1000000},
    {"max_position_embeddings", offsetof(BertConfig, positions), 1000000},
    {"type_vocab_size", offsetof(BertConfig, types), 1024},
};

typedef struct RealField {
    const char *key;
    size_t at;
    double least, most; /* inclusive */
    double fallback;
} RealField;

static const RealField REALS[] = {
    {"layer_norm_eps", offsetof(BertConfig, eps), 1e-30, 0.1, 1e-12},
    {"hidden_dropout_prob", offsetof(BertConfig, hidden_dropout), 0, 0.999, 0.1},
    {"attention_probs_dropout_prob", offsetof(BertConfig, attention_dropout), 0, 0.999, 0.1},
    {"initializer_range", offsetof(BertConfig, initializer_range), 0, 10, 0.02},
};

static bool read_size(const json_t *root, const char *name, const SizeField *f, BertConfig *c,
                      PeftError *err) {
    const json_t *v = json_object_get(root, f->key);
    char shown[JSON_SHOWN];
    if (!v) return peft_fail(err, "%s: the field %s is missing", name, f->key);
    if (!json_is_integer(v))
        return peft_fail(err, "%s: %s: expected an integer, found %s %s", name, f->key,
                         json_kind(v), json_show(v, shown));
    int64_t value = json_integer_value(v);
    if (value < 1 || value > f->most)
        return peft_fail(err, "%s: %s: expected 1 to %lld, found %s", name, f->key,
                         (long long)f->most, json_show(v, shown));
    memcpy((char *)c + f->at, &value, sizeof value);
    return true;
}

static bool read_real(const json_t *root, const char *name, const RealField *f, BertConfig *c,
                      PeftError *err) {
    const json_t *v = json_object_get(root, f->key);
    char shown[JSON_SHOWN];
    if (v && !json_is_number(v))
        return peft_fail(err, "%s: %s: expected a number, found %s %s", name, f->key, json_kind(v),
                         json_show(v, shown));
    double value = v ? json_number_value(v) : f->fallback;
    if (!(value >= f->least && value <= f->most))
        return peft_fail(err, "%s: %s: expected %g to %g, found %s", name, f->key, f->least,
                         f->most, json_show(v, shown));
    memcpy((char *)c + f->at, &value, sizeof value);
    return true;
}

/* A field that has to have one value, the only one implemented; `fallback` when it is absent. */
static bool require_word(const json_t *root, const char *name, const char *key, const char *only,
                         const char *fallback, PeftError *err) {
    const json_t *v = json_object_get(root, key);
    const char *s = v ? json_string_value(v) : fallback;
    char shown[JSON_SHOWN];
    if (s && strcmp(s, only) == 0) return true;
    if (!v) return peft_fail(err, "%s: the field %s is missing", name, key);
    return peft_fail(err, "%s: %s is %s; supported: \"%s\"", name, key, json_show(v, shown), only);
}

static bool read_architecture(const json_t *root, const char *name, BertConfig *c, PeftError *err) {
    if (!require_word(root, name, "model_type", "bert", NULL, err) ||
        !require_word(root, name, "hidden_act", "gelu", "gelu", err) ||
        !require_word(root, name, "position_embedding_type", "absolute", "absolute", err))
        return false;
    if (json_is_true(json_object_get(root, "is_decoder")) ||
        json_is_true(json_object_get(root, "add_cross_attention")))
        return peft_fail(err, "%s describes a decoder; supported: encoders", name);
    strcpy(c->model_type, "bert");
    strcpy(c->hidden_act, "gelu");
    return true;
}

/* classifier_dropout may be absent or null, which both mean hidden_dropout_prob. */
static bool read_classifier_dropout(const json_t *root, const char *name, BertConfig *c,
                                    PeftError *err) {
    c->classifier_dropout = c->hidden_dropout;
    if (!json_object_get(root, "classifier_dropout") ||
        json_is_null(json_object_get(root, "classifier_dropout")))
        return true;
    const RealField f = {"classifier_dropout", offsetof(BertConfig, classifier_dropout), 0, 0.999,
                         0};
    return read_real(root, name, &f, c, err);
}

static bool read_labels(const json_t *root, const char *name, BertConfig *c, PeftError *err) {
    const json_t *labels = json_object_get(root, "id2label");
    if (labels && !json_is_null(labels) && !json_is_object(labels))
        return peft_fail(err, "%s: id2label: expected an object, found %s", name,
                         json_kind(labels));
    c->num_labels = (int64_t)json_object_size(labels);
    const SizeField f = {"num_labels", offsetof(BertConfig, num_labels), MAX_LABELS};
    int64_t from_names = c->num_labels;
    if (json_object_get(root, "num_labels") && !read_size(root, name, &f, c, err)) return false;
    if (from_names && from_names != c->num_labels)
        return peft_fail(err, "%s: num_labels is %lld but id2label names %lld", name,
                         (long long)c->num_labels, (long long)from_names);
    return true;
}

static bool read_fields(const json_t *root, const char *name, BertConfig *c, PeftError *err) {
    if (!read_architecture(root, name, c, err)) return false;
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++)
        if (!read_size(root, name, &SIZES[i], c, err)) return false;
    for (size_t i = 0; i < sizeof REALS / sizeof *REALS; i++)
        if (!read_real(root, name, &REALS[i], c, err)) return false;
    if (c->hidden % c->heads)
        return peft_fail(err, "%s: hidden_size %lld is not a multiple of num_attention_heads %lld",
                         name, (long long)c->hidden, (long long)c->heads);
    return read_classifier_dropout(root, name, c, err) && read_labels(root, name, c, err);
}

bool config_parse(const char *text, size_t n, const char *name, BertConfig *c, PeftError *err) {
    *c = (BertConfig){0};
    json_t *root = json_parse(text, n, name, err);
    if (!root) return false;
    bool ok = read_fields(root, name, c, err);
    json_decref(root);
    return ok;
}

static bool read_file(const char *path, BertConfig *c, PeftError *err) {
    size_t n;
    char *text = file_read(path, MAX_CONFIG, &n, err);
    bool ok = text && config_parse(text, n, path, c, err);
    free(text);
    return ok;
}

static bool no_base(const char *folder, PeftError *err) {
    return peft_fail(err,
                     "cannot open %s/config.json: No such file; a base is a folder with "
                     "config.json, vocab.txt and model.safetensors",
                     folder);
}

bool config_read(const char *path, BertConfig *c, PeftError *err) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return read_file(path, c, err);
    char *inside = path_join(path, "config.json", err);
    bool ok = inside && (file_exists(inside) || no_base(path, err)) && read_file(inside, c, err);
    free(inside);
    return ok;
}
