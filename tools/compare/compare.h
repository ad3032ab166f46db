/* The comparison of fine-tuning methods: what the run.json files of several trained programs say,
 * put side by side. A number is read once, here, with its range checked; table, comparison.json and
 * takeaways only arrange what this header holds, so they cannot disagree. A run that cannot be read
 * is reported and left out: the others stay usable. */
#ifndef COMPARE_H
#define COMPARE_H

#include <jansson.h>
#include <stdio.h>

#include "../../runtime/error.h"

enum {
    RUN_VERSION = 1,        /* of run.json, read */
    COMPARISON_VERSION = 1, /* of comparison.json, written */
    MAX_RUNS = 64,          /* seeds of one variant */
    MAX_VARIANTS = 32,
    MEMORY_CLASSES = 7,
    MAX_SENTENCES = 40,
};

extern const char *const memory_class[MEMORY_CLASSES]; /* in the order of the program's report */

typedef struct Run { /* one run.json */
    char *dir;
    json_t *root; /* owns the strings below */
    const char *program, *source, *base, *data, *device, *instructions;
    json_t *fit, *epochs;
    int64_t seed, threads, trainable, total, test_rows, best_epoch, nepoch;
    int64_t planned, reached, lower_bound, memory[MEMORY_CLASSES];
    int64_t saved_bytes;               /* safetensors files the run left: what one task costs */
    int64_t base_bytes;                /* those of the frozen base; 0 when nobody knows */
    int64_t finished;                  /* time of run.json's file, seconds since 1970 */
    double f1, accuracy, loss, val_f1; /* of the best epoch */
    double total_time;
    double epoch_seconds, epoch_seconds_square; /* sums over the epochs */
    /* Of the peftc and the machine that made it; "" in a run.json from before these were noted. */
    const char *version, *commit, *program_hash, *date, *processor, *gpu, *driver, *compute;
    int64_t driver_bytes; /* of the GPU's memory, all told; -1 when not measured */
} Run;

typedef struct Variant { /* all seeds of one program */
    char key[64];        /* in comparison.json: the brief's name, or the program's */
    Run run[MAX_RUNS];   /* by seed */
    int n;
    double f1, f1_spread, val_f1, accuracy; /* means; sample deviation over seeds, NAN for one */
    double noise; /* what a difference in F1 has to exceed: the larger of the standard error of a
                   * test set of this size and the spread over seeds */
    double epoch_time, epoch_time_spread;   /* over all epochs of all seeds */
    int64_t planned, reached, driver_bytes; /* most over seeds */
} Variant;

typedef struct Baseline { /* what tools/bow.c wrote */
    json_t *root;         /* NULL: there is none */
    double f1, val_f1, accuracy;
    int64_t trainable;
} Baseline;

typedef struct Comparison {
    const char *dir;
    Variant *variant[MAX_VARIANTS];
    int n;
    int broken; /* runs that could not be read */
    Baseline baseline;
    int64_t base_bytes; /* weights of the frozen base on disk; 0 when it is not there any more */
    char *sentence[MAX_SENTENCES];
    int nsentence;
} Comparison;

/* ---- read.c ---- */

/* Reads run.json of every dir/PROGRAM/seedN and dir/PROGRAM-N there is, and dir/baseline.json. The
 * weights need not be there where run.json says how large they were. Complains about unreadable
 * runs on stderr and counts them. False: nothing can be compared (the folder is not there, runs of
 * different data in it, no memory). */
bool comparison_read(Comparison *c, const char *dir, PeftError *err);
/* Reads dir/run.json. `run` is empty after a failure. */
bool run_read(Run *run, const char *dir, PeftError *err);

json_t *real_json(double v);         /* null for what is no number */
json_t *memory_json(const Run *run); /* bytes by class */
void run_free(Run *run);
/* Whether dir holds a finished run that can be read, with its weights. */
bool run_check(const char *dir, PeftError *err);
void comparison_free(Comparison *c);
const Variant *comparison_find(const Comparison *c, const char *key); /* NULL when absent */

/* ---- statistics.c ---- */

void variant_statistics(Variant *v);
/* Fills the sentences: what each variant loses and gains against full fine-tuning. */
bool comparison_takeaways(Comparison *c, PeftError *err);

/* ---- print.c ---- */

/* brief: only the lines of the table. */
void comparison_print(const Comparison *c, bool brief, FILE *out);

/* ---- write.c ---- */

/* Writes comparison.json. A file there that is no comparison of this version, or one of another
 * base or data, is only replaced when `replace` is set. */
bool comparison_write(const Comparison *c, const char *path, bool replace, PeftError *err);

#endif
