/* The invariants of a graph, checked between passes and on every graph read from text. */
#ifndef PEFTC_VERIFY_H
#define PEFTC_VERIFY_H

#include "graph.h"

/* True when the graph is sound; otherwise false, with what is wrong in `why` and the node it
 * concerns in *bad (NULL when it concerns a function or a variable). */
bool verify_check(Graph *g, const Node **bad, char why[256]);

/* The same for our own passes, where an unsound graph is a bug: PANICs, naming the pass. */
void verify_graph(Graph *g, const char *after);

#endif
