/* One model's tensors wherever they lie: a safetensors file, a folder with model.safetensors, a
 * folder with model.safetensors.index.json and its shards, or an adapter's folder
 * (adapter_model.safetensors of peft, adapter.safetensors of AdapterHub). One lookup by the name in
 * the file, each name in one file only. Names are as saved; weights_map.h knows about prefixes. */
#ifndef PEFT_IO_WEIGHTS_H
#define PEFT_IO_WEIGHTS_H

#include "safetensors.h"

typedef struct Weights Weights;

Weights *weights_open(const char *path, PeftError *err);
void weights_close(Weights *w);

const char *weights_path(const Weights *w); /* as given to weights_open */
size_t weights_count(const Weights *w);
const StTensor *weights_get(const Weights *w, size_t i);
const StTensor *weights_find(const Weights *w, const char *name); /* NULL when absent */

#endif
