/* Writes the JSON files of config_write.h. Reals keep 15 significant digits, so that 0.1 reads 0.1;
 * integral ones are written as integers, as Python would have them. */
#include "config_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"
#include "json.h"

enum { MAX_CONFIG = 16 << 20 };

/* Sets key to value (whose reference it takes); NULL means that making the value failed. */
static bool set(json_t *root, const char *key, json_t *value, PeftError *err) {
    if (json_object_set_new(root, key, value) == 0) return true;
    return peft_fail(err, "cannot write %s: out of memory, or a name that is no valid UTF-8", key);
}

static json_t *text_or_null(const char *s) {
    return s ? json_string(s) : json_null();
}

static json_t *whole_or_real(double x) {
    bool whole = fabs(x) < 1e15 && x == floor(x);
    return whole ? json_integer((json_int_t)x) : json_real(x);
}

static json_t *list_or_null(const char *const *names) {
    if (!names) return json_null();
    json_t *list = json_array();
    for (; list && *names; names++) {
        if (json_array_append_new(list, json_string(*names)) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

static bool save(const char *path, const json_t *root, PeftError *err) {
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    if (!text) return peft_fail(err, "out of memory while writing %s", path);
    bool ok = file_write_atomic(path, text, strlen(text), err);
    free(text);
    return ok;
}

static bool fill_adapter(json_t *j, const LoraAdapter *a, PeftError *err) {
    return set(j, "auto_mapping", json_null(), err) &&
           set(j, "base_model_name_or_path", text_or_null(a->base_model), err) &&
           set(j, "bias", json_string("none"), err) &&
           set(j, "fan_in_fan_out", json_false(), err) &&
           set(j, "inference_mode", json_true(), err) &&
           set(j, "init_lora_weights", json_true(), err) &&
           set(j, "lora_alpha", whole_or_real(a->alpha), err) &&
           set(j, "lora_dropout", json_real(a->dropout), err) &&
           set(j, "modules_to_save", list_or_null(a->modules_to_save), err) &&
           set(j, "peft_type", json_string("LORA"), err) && set(j, "r", json_integer(a->r), err) &&
           set(j, "revision", json_null(), err) &&
           set(j, "target_modules", list_or_null(a->target_modules), err) &&
           set(j, "task_type", text_or_null(a->task_type), err) &&
           (!a->use_rslora || set(j, "use_rslora", json_true(), err)) &&
           (!a->use_dora || set(j, "use_dora", json_true(), err));
}

bool adapter_config_write(const char *path, const LoraAdapter *a, PeftError *err) {
    json_t *j = json_object();
    bool ok = fill_adapter(j, a, err) && save(path, j, err);
    json_decref(j);
    return ok;
}

/* ---- config.json ---- */

static json_t *load_base(const char *path, PeftError *err) {
    struct stat st;
    bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    char *inside = folder ? path_join(path, "config.json", err) : NULL;
    if (folder && !inside) return NULL;
    const char *name = folder ? inside : path;
    size_t n;
    char *text = file_read(name, MAX_CONFIG, &n, err);
    json_t *root = text ? json_parse(text, n, name, err) : NULL;
    free(text);
    free(inside);
    return root;
}

static bool set_labels(json_t *root, const char *const *labels, int64_t n, PeftError *err) {
    json_t *names = json_object(), *ids = json_object();
    bool ok = set(root, "id2label", names, err) && set(root, "label2id", ids, err);
    for (int64_t i = 0; ok && i < n; i++) {
        char id[32], fallback[40];
        snprintf(id, sizeof id, "%lld", (long long)i);
        snprintf(fallback, sizeof fallback, "LABEL_%lld", (long long)i);
        const char *label = labels ? labels[i] : fallback;
        ok = set(names, id, json_string(label), err) && set(ids, label, json_integer(i), err);
    }
    return ok;
}

bool classifier_config_write(const char *path, const char *base_config, const char *const *labels,
                             int64_t n, PeftError *err) {
    json_t *root = load_base(base_config, err);
    if (!root) return false;
    bool ok = set(root, "architectures", json_pack("[s]", "BertForSequenceClassification"), err) &&
              set(root, "num_labels", json_integer(n), err) && set_labels(root, labels, n, err) &&
              save(path, root, err);
    json_decref(root);
    return ok;
}
