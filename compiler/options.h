/* peftc's options. */
#ifndef PEFTC_OPTIONS_H
#define PEFTC_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../runtime/error.h"

#define MAX_SETS 64

typedef struct Options {
    const char *program, *from_graph, *out, *base, *model, *emit, *dump_after, *skip, *view,
        *module, *cc, *arch;
    const char *set[MAX_SETS];
    int nset;
    int64_t tokens, sequences, longest, masked, threads, level;
    bool json, time_passes, remarks, help;
} Options;

bool options_parse(Options *o, int argc, char **argv, PeftError *err);
void options_help(FILE *to);

#endif
