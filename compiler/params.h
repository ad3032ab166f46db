/* Parameter accounting: counts of logical elements, from the graph, with the arithmetic that gives
 * them.
 */
#ifndef PEFTC_PARAMS_H
#define PEFTC_PARAMS_H

#include "elaborate.h"

typedef struct ParamCounts {
    int64_t total, trainable; /* elements */
    int tensors, trainable_tensors;
} ParamCounts;

/* Parameters of the model; optimizer state does not count. */
ParamCounts params_count(const Graph *g);

/* "24 x 16 x (768 + 768) + 768 x 2 + 2 = 591,362": the trainable elements, equal applications of a
 * block or patch taken together, in the graph's memory. */
const char *params_derivation(Graph *g, const ModelInfo *info);

/* The whole report: table by kind of block, derivation, what each patch was applied to. */
void params_print(FILE *to, Graph *g, const ModelInfo *info, bool json);

#endif
