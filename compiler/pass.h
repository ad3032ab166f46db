/* The pass manager: runs the graph passes of pass.def in order, verifying the graph after each. */
#ifndef PEFTC_PASS_H
#define PEFTC_PASS_H

#include <stdio.h>

#include "../runtime/error.h"
#include "graph.h"

/* What passes may look at besides the graph. */
typedef struct PassContext {
    const PeftFit *fit; /* NULL: the program is only evaluated, no training functions are built */
} PassContext;

/* Every pass: true when it changed the graph. The comment that opens its file says what it
 * requires, what it gives and what it leaves alone. */
#define PASS(name, what, required) bool pass_##name(Graph *g, const PassContext *c);
#include "pass.def"
#undef PASS

typedef struct PassOptions {
    const PeftFit *fit;
    const char *dump_after; /* pass names separated by commas, or "all"; NULL: none */
    const char *skip;       /* pass names separated by commas, or "all" that may be; NULL: none */
    bool time;              /* report milliseconds and node counts of each pass */
    FILE *log;              /* where dumps and reports go */
} PassOptions;

/* Checks --dump-after and --skip: false with the reason when they name an unknown pass, or a pass
 * that a program cannot do without. */
bool passes_check(const PassOptions *o, PeftError *err);

/* Runs them all. Options must have been checked. A broken graph is a PANIC naming the pass. */
void passes_run(Graph *g, const PassOptions *o);

/* The list of passes with what they do, for --help. */
void passes_list(FILE *to);

#endif
