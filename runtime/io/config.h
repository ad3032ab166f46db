/* A Hugging Face config.json as the description of a BERT encoder. What comes out is safe to size
 * buffers with: every number is in a sane range, heads divide hidden, and the architecture is one
 * the model library implements; anything else is an error that names the field. Linked into the
 * compiler and into the programs it makes. */
#ifndef PEFT_IO_CONFIG_H
#define PEFT_IO_CONFIG_H

#include <stdint.h>

#include "../error.h"

typedef struct BertConfig {
    char model_type[32];
    char hidden_act[32];
    int64_t vocab_size;
    int64_t hidden;    /* hidden_size */
    int64_t layers;    /* num_hidden_layers */
    int64_t heads;     /* num_attention_heads; divides hidden */
    int64_t ffn;       /* intermediate_size */
    int64_t positions; /* max_position_embeddings */
    int64_t types;     /* type_vocab_size */
    double eps;        /* layer_norm_eps */
    double hidden_dropout;
    double attention_dropout;
    double classifier_dropout; /* hidden_dropout when the file gives none */
    double initializer_range;
    int64_t num_labels; /* from num_labels or id2label, 0 when the file has neither */
} BertConfig;

/* Reads a config.json, or the one in a folder. */
bool config_read(const char *path, BertConfig *c, PeftError *err);

/* The same from n bytes of text; `name` is for messages. */
bool config_parse(const char *text, size_t n, const char *name, BertConfig *c, PeftError *err);

#endif
