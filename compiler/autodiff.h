/* Reverse-mode differentiation: builds the gradient of a scalar as more graph. */
#ifndef PEFTC_AUTODIFF_H
#define PEFTC_AUTODIFF_H

#include "graph.h"

/* grad_out[i] becomes d loss / d wrt[i], of wrt[i]'s type, or NULL when no differentiable path
 * leads from wrt[i] to the loss. `loss` is an f32 scalar. No node is built that none of the n
 * gradients needs. New nodes carry the span of the forward node they differentiate and point to it
 * (`of`). */
void autodiff(Graph *g, Node *loss, Node *const wrt[], int n, Node *grad_out[]);

/* The trainable parameters from which no differentiable path leads to the loss: a mistake in the
 * user's program. Writes their indices into var[] (room for g->nvar) and returns how many. */
int autodiff_unreached(Graph *g, const Node *loss, int32_t var[]);

#endif
