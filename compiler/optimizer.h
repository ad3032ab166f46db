/* Training as graph: gradients, clipping, the learning-rate schedule and AdamW. */
#ifndef PEFTC_OPTIMIZER_H
#define PEFTC_OPTIMIZER_H

#include "graph.h"

/* From the forward graph of PEFT_FN_EVAL (outputs "loss", an f32 scalar, and possibly "logits"):
 *
 *   PEFT_FN_GRADIENTS  loss, logits, "grad.<variable>" for every trainable parameter, unclipped
 *   PEFT_FN_TRAIN      loss, logits, "grad_norm" (before clipping), "lr" (the rate used), and the
 *                      updates of parameters, moments and step counter
 *
 * and with fit->accumulate > 1 instead: TRAIN adds the gradients of a micro-batch to accumulators
 * and gives loss and logits; PEFT_FN_UPDATE gives "grad_norm" and "lr", applies the accumulators
 * and zeroes them. The loss of a micro-batch must already be its share of the whole batch's.
 *
 * Adds the variables optimizer.step (f32 scalar: optimizer steps completed),
 * optimizer.m.<variable>, optimizer.v.<variable> and optimizer.g.<variable>. Learning rate,
 * warm-up, total steps, weight decay and clipping norm are batch inputs, so that they can change
 * without recompiling; an infinite clip_norm never clips. Every trainable parameter must reach the
 * loss (autodiff_unreached). */
void build_train(Graph *g, const PeftFit *fit);

#endif
