/* The command line of a compiled program: one table of options, which verbs take them, and help
 * that starts with examples. */
#ifndef PEFT_CLI_OPTIONS_H
#define PEFT_CLI_OPTIONS_H

#include "../error.h"
#include "../exec.h"
#include "../model.h"

typedef enum Verb {
    VERB_ABOUT, /* no verb: what this program is */
    VERB_TRAIN,
    VERB_EVAL,
    VERB_PREDICT,
    VERB_PLAN,
    VERB_PROFILE,
    VERB_REPLAY,
    VERB_TOKENIZE,
    VERB_DEVICES,
    VERB_COUNT
} Verb;

#define MAX_SETS 32

typedef struct Options {
    Verb verb;
    const char *base, *data, *out, *from, *task, *batch, *dump, *device, *compute, *budget, *csv,
        *trace;
    const char *weights[MODEL_MAX_SOURCES];
    int nweights;
    const char *set[MAX_SETS];
    int nset;
    int64_t threads, steps, checkpoint_every;
    bool resume, json, scratch, help, overwrite;
    char *const *text; /* predict: the phrases */
    int ntext;
} Options;

/* Exit code 2 in err on a mistake of the user's, with the nearest known name when there is one. */
bool options_parse(Options *o, int argc, char **argv, PeftError *err);
void options_help(Verb verb, const char *program);

/* "--set fit.NAME=VALUE" onto the program's fit. */
bool options_fit(const Options *o, PeftFit *fit, PeftError *err);

/* "1.5G", "300MB", "4096" -> bytes; -1 with a message. */
int64_t parse_bytes(const char *text, PeftError *err);

#endif
