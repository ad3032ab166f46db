/* See model_config.h. The LoRA family is written with the keys that every release of peft reads,
 * the bottleneck family as AdapterHub does; other methods (which peft may not know) as a plain
 * record. */
#include "model_config.h"
#include "io/config_write.h"
#include "io/file.h"
#include "model.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TARGETS = 64 };

static double method_value(const PeftMethod *m, const char *name, double otherwise) {
    for (int i = 0; i < m->nparam; i++)
        if (strcmp(m->param_name[i], name) == 0) return m->param_value[i];
    return otherwise;
}

/* The distinct targets of the program's patches, in program order. */
static int method_targets(const PeftProgram *p, const char *targets[MAX_TARGETS + 1]) {
    int n = 0;
    for (int i = 0; i < p->nmethod && n < MAX_TARGETS; i++) {
        bool seen = false;
        for (int k = 0; k < n; k++) seen |= strcmp(targets[k], p->method[i].target) == 0;
        if (!seen) targets[n++] = p->method[i].target;
    }
    targets[n] = NULL;
    return n;
}

static bool is_lora(const PeftProgram *p) {
    if (!p->nmethod) return false;
    for (int i = 0; i < p->nmethod; i++)
        if (!strstr(p->method[i].patch, "lora") && strcmp(p->method[i].patch, "dora") != 0)
            return false;
    return true;
}

static bool write_lora(const PeftProgram *p, const char *path, const char *base, PeftError *err) {
    static const char *const head[] = {"classifier", NULL};
    const char *targets[MAX_TARGETS + 1];
    const PeftMethod *m = &p->method[0];
    method_targets(p, targets);
    LoraAdapter a = {.r = (int64_t)method_value(m, "rank", 0),
                     .alpha = method_value(m, "alpha", 0),
                     .dropout = method_value(m, "dropout", 0),
                     .use_rslora = strcmp(m->patch, "rslora") == 0,
                     .use_dora = strcmp(m->patch, "dora") == 0,
                     .target_modules = targets,
                     .modules_to_save = p->task == PEFT_TASK_MLM ? NULL : head,
                     .base_model = base,
                     .task_type = p->task == PEFT_TASK_MLM ? "FEATURE_EXTRACTION" : "SEQ_CLS"};
    return adapter_config_write(path, &a, err);
}

static json_t *method_json(const PeftMethod *m) {
    json_t *o =
        json_pack("{s:s, s:s, s:i}", "patch", m->patch, "target", m->target, "count", m->count);
    for (int i = 0; o && i < m->nparam; i++)
        json_object_set_new(o, m->param_name[i], json_real(m->param_value[i]));
    return o;
}

/* AdapterHub's record: config, hidden_size, model_class, model_type, name. */
static json_t *bottleneck_json(const PeftProgram *p) {
    const PeftMethod *m = &p->method[0];
    bool houlsby = strcmp(m->patch, "houlsby") == 0, parallel = strcmp(m->patch, "parallel") == 0;
    double width = method_value(m, "bottleneck", 1);
    json_t *config =
        json_pack("{s:b, s:b, s:b, s:s, s:f, s:s, s:b}", "mh_adapter", houlsby, "output_adapter", 1,
                  "is_parallel", parallel, "non_linearity", houlsby ? "swish" : "relu",
                  "reduction_factor", (double)p->config.hidden / width, "init_weights",
                  parallel ? "mam_adapter" : "bert", "original_ln_before", !houlsby && !parallel);
    return json_pack("{s:o, s:I, s:s, s:s, s:s}", "config", config, "hidden_size",
                     (json_int_t)p->config.hidden, "model_class", "BertForSequenceClassification",
                     "model_type", "bert", "name", p->name);
}

static json_t *other_json(const PeftProgram *p, const char *base) {
    json_t *methods = json_array();
    for (int i = 0; i < p->nmethod; i++) json_array_append_new(methods, method_json(&p->method[i]));
    char type[64];
    snprintf(type, sizeof type, "%s", p->nmethod ? p->method[0].patch : p->name);
    for (char *c = type; *c; c++) *c = (char)toupper((unsigned char)*c);
    return json_pack("{s:s, s:s, s:s, s:o}", "peft_type", type, "base_model_name_or_path", base,
                     "task_type", "SEQ_CLS", "methods", methods);
}

static bool write_json(json_t *o, const char *path, PeftError *err) {
    char *text =
        o ? json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(10)) : NULL;
    bool ok = text ? file_write_atomic(path, text, strlen(text), err)
                   : peft_fail(err, "cannot write %s: out of memory", path);
    free(text);
    json_decref(o);
    return ok;
}

bool model_config_write(const PeftProgram *p, const char *dir, const char *base, PeftError *err) {
    char path[4096];
    ModelLayout layout = model_layout(p);
    if (layout == LAYOUT_MODEL) {
        if (!base) return true; /* trained from scratch: the program's own text says everything */
        snprintf(path, sizeof path, "%s/config.json", dir);
        return classifier_config_write(path, base, NULL, p->config.classes, err);
    }
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    if (layout == LAYOUT_ADAPTER) return write_json(bottleneck_json(p), path, err);
    if (is_lora(p)) return write_lora(p, path, base, err);
    return write_json(other_json(p, base ? base : ""), path, err);
}
