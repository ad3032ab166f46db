/* Drawings of a graph for Graphviz: what is frozen, what is trained, what a gradient costs. */
#ifndef PEFTC_DOT_H
#define PEFTC_DOT_H

#include <stdio.h>

#include "kernel.h"

typedef enum DotView {
    DOT_FORWARD,  /* what the loss and the logits need */
    DOT_BACKWARD, /* the gradients, and the forward values they read */
    DOT_FUSED     /* kernels and the buffers between them; needs a schedule */
} DotView;

typedef struct DotOptions {
    PeftFn fn;
    DotView view;
    const Schedule *schedule; /* of fn; DOT_FUSED only */
    const char *module; /* draw this part of the model only ("bert.encoder.layer.0"), or NULL */
} DotOptions;

/* Constants, random keys, sample numbers and views are not drawn. Nodes are boxed by module. */
void dot_print(FILE *to, Graph *g, const DotOptions *o);

#endif
