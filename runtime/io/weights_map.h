/* From the tensor names of a program to tensors in files, whoever saved them. Names are compared in
 * a canonical form: without peft's and AdapterHub's prefixes and infixes, with LayerNorm.weight and
 * .bias instead of old gamma and beta. A map is an index over several opened models; a later one
 * overrides an earlier one. It remembers what was resolved, so what was missing or left over can be
 * reported: nothing is ever filled in silently. */
#ifndef PEFT_IO_WEIGHTS_MAP_H
#define PEFT_IO_WEIGHTS_MAP_H

#include "weights.h"

/* The canonical form of a saved name, to be freed; NULL when there is no memory. Examples:
 *   base_model.model.bert.x.query.lora_A.default.weight       bert.x.query.lora_A.weight
 *   base_model.model.bert.x.query.base_layer.weight           bert.x.query.weight
 *   base_model.model.classifier.modules_to_save.default.bias  classifier.bias
 *   bert.x.output.adapters.NAME.adapter_up.weight             bert.x.output.adapter_up.weight
 *   bert.x.output.LayerNorm.gamma                             bert.x.output.LayerNorm.weight
 * A canonical name is its own canonical form. */
char *name_strip(const char *name, PeftError *err);

typedef struct WeightMap WeightMap;

WeightMap *weight_map_new(PeftError *err);
void weight_map_free(WeightMap *m);

/* Adds all tensors of w, which must stay open. Within one model, two saved names with one canonical
 * form are an error, except peft's original_module beside its trained copy, which wins. */
bool weight_map_add(WeightMap *m, const Weights *w, PeftError *err);

/* The tensor of a canonical name; a leading "bert." may be in the program, in the file, in both or
 * in neither. NULL when absent. */
const StTensor *weight_map_find(WeightMap *m, const char *name);

/* One error for all of the n names that are absent: how many, and the first few. */
bool weight_map_require(const WeightMap *m, const char *const *names, size_t n, PeftError *err);

/* As weight_map_find, but absence, a dtype that is no float and a wrong shape are errors. Sizes of
 * 1 do not count in the comparison (peft saves the IA3 vector of n as [n, 1] or [1, n]). */
const StTensor *weight_map_resolve(WeightMap *m, const char *name, int rank, const int64_t *dims,
                                   PeftError *err);

/* Tensors nobody asked for, except those every BERT file may carry (heads of pre-training, the
 * pooler, position ids), in name order: the first `room` into out, their whole number returned. */
size_t weight_map_unused(const WeightMap *m, const StTensor **out, size_t room);

#endif
