/* Variables and weight files: loading a base and an adapter into the arena, initialising what is
 * new, saving what was trained. A tensor that is missing, extra or of another shape is an error;
 * only tensors the program marks as new (heads, patches) may be absent, and they are listed. */
#ifndef PEFT_MODEL_H
#define PEFT_MODEL_H

#include "error.h"
#include "exec.h"

#define MODEL_MAX_SOURCES 8

typedef struct ModelSource {
    const char *path[MODEL_MAX_SOURCES]; /* folders or safetensors files; later ones win */
    int n;
    bool scratch; /* pre-training: every tensor may be absent from the files */
} ModelSource;

typedef struct ModelReport {
    int loaded, initialised, unused;
    char unused_name[128]; /* one of them, for the message */
} ModelReport;

/* Fills all variables: from the sources where they have the tensor, else by the program's
 * initialisers with random numbers keyed by (seed, tensor name). State starts at its initial value.
 */
bool model_load(Exec *x, const ModelSource *src, uint64_t seed, ModelReport *report,
                PeftError *err);

typedef struct ModelCount { /* logical elements, however they are stored; state does not count */
    int64_t total, trainable;
    int tensors, trainable_tensors;
} ModelCount;

ModelCount model_count(const PeftProgram *p);

typedef enum ModelLayout {
    LAYOUT_MODEL,  /* a whole model: model.safetensors */
    LAYOUT_PEFT,   /* adapter_model.safetensors with peft's prefix */
    LAYOUT_ADAPTER /* adapter.safetensors in AdapterHub's naming */
} ModelLayout;

ModelLayout model_layout(const PeftProgram *p);

/* Writes what was trained (LAYOUT_MODEL: everything) into `dir`, with the configuration file that
 * belongs to the layout. base: the base folder, for its config.json and its name. */
bool model_save(const Exec *x, const char *dir, const char *base, PeftError *err);

/* The file model_save writes in `dir` (to load it again). */
void model_file(const PeftProgram *p, const char *dir, char *path, size_t size);

#endif
