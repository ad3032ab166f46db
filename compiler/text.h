/* The textual form of a graph: what --emit=graph and --dump-after print, and peftc --from-graph
 * reads.
 *
 *   sites 3                                             dropout sites handed out
 *   var "classifier.weight" : f32[2, 768] = normal(0.02) trainable decay fresh
 *   %0 = input tokens : i32[T]                          nodes in id order, numbered from 0
 *   %1 = var "classifier.weight" : f32[2, 768]
 *   %7 = matmul %6, %1 trans_b : f32[T, 2]              inputs, attributes, type
 *   %9 = gelu %5 : f32[T, 64] stream 1 of %8 at 0:12-20 clone, differentiated node, source bytes
 *   eval {
 *     output "loss" %12
 *   }
 *   train {
 *     output "loss" %12
 *     update "classifier.weight" %40
 *   }
 *
 * Line breaks are blanks; # begins a comment. Printing, reading and printing again gives the same
 * text: nothing that a pass or the emitter looks at is lost. */
#ifndef PEFTC_TEXT_H
#define PEFTC_TEXT_H

#include <stdio.h>

#include "../runtime/error.h"
#include "graph.h"

/* Prints variables, the live nodes of all functions and the functions. Spans only when asked for.
 */
void text_print(FILE *to, Graph *g, bool spans);

/* Reads a graph; n bytes, not trusted. `name` is the file in error messages. NULL with "NAME:LINE:
 * reason" in err when it is malformed, ill-typed or fails verification. Free with graph_free. */
Graph *text_read(const char *text, size_t n, const char *name, PeftError *err);

#endif
