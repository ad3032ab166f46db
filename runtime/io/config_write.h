/* The JSON files beside saved weights, as transformers and peft read them back: adapter_config.json
 * for an adapter, config.json for a whole model. Written like json.dumps(indent=2, sort_keys=True),
 * through a temporary file. Only keys that old peft releases know are written, because an unknown
 * one makes them fail. */
#ifndef PEFT_IO_CONFIG_WRITE_H
#define PEFT_IO_CONFIG_WRITE_H

#include <stdint.h>

#include "../error.h"

/* A LoRA adapter; lists end with NULL, a NULL list or string is written as null. */
typedef struct LoraAdapter {
    int64_t r;
    double alpha;
    double dropout;
    bool use_rslora;
    bool use_dora;
    const char *const *target_modules;
    const char *const *modules_to_save;
    const char *base_model; /* base_model_name_or_path */
    const char *task_type;  /* "SEQ_CLS" */
} LoraAdapter;

bool adapter_config_write(const char *path, const LoraAdapter *a, PeftError *err);

/* Copies the base's config.json (a file or its folder) with architectures
 * ["BertForSequenceClassification"] and the labels of the new head. labels[n] are their names; NULL
 * gives LABEL_0, LABEL_1, ... as transformers does. */
bool classifier_config_write(const char *path, const char *base_config, const char *const *labels,
                             int64_t n, PeftError *err);

#endif
