/* The figures of a comparison: comparison.json read into numbers, and numbers written as gnuplot
 * data and scripts and as a Markdown table. A number is checked once, on reading; what the scripts
 * plot is in the data files beside them, so that a test can compare it with the JSON. Text of the
 * file (names, folders) reaches a script only through script_text, which makes it a plain string.
 */
#ifndef FIGURES_H
#define FIGURES_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "../../runtime/error.h"

enum {
    COMPARISON_VERSION = 1, /* of comparison.json, read */
    MAX_METHODS = 32,
    MAX_SEEDS = 1000,
    MAX_EPOCHS = 10000,
    CLASSES = 8,       /* of memory: the schema's seven; then all others and the gaps of the plan */
    CURVES = 3,        /* training loss, validation loss, validation macro F1 */
    CONDITIONS = 1000, /* bytes of a line of small type */
    NAME_SHOWN = 24,
    NAME_BYTES = 4 * NAME_SHOWN + 4,
};

extern const char *const class_name[CLASSES];

typedef struct Point { /* mean and sample deviation over seeds; NAN where there is none */
    double mean, spread;
} Point;

typedef struct Method {
    const char *key;       /* in the JSON */
    char name[NAME_BYTES]; /* the same, at most NAME_SHOWN characters, without control characters */
    int style;             /* colour, dashes and point, by the key: the same in every figure */
    int64_t trainable, planned, reached, saved, memory[CLASSES];
    double percent, f1, f1_spread, noise, epoch_time, time_spread; /* spreads: NAN for one value */
    int seeds, epochs;
    Point (*curve)[CURVES]; /* (epochs) */
    double *seconds;        /* of every epoch of every seed */
    int nseconds;
} Method;

typedef struct Figures {
    json_t *root;
    Method method[MAX_METHODS];
    int n;
    const char *base, *data, *device, *date, *commit, *compute, *processor, *gpu, *driver;
    const char *instructions;
    int64_t test_rows, threads;
    bool cpu;           /* figures then say memory, not VRAM */
    bool baseline;      /* there is one: */
    double baseline_f1; /* of a bag of words */
    int64_t baseline_parameters;
    double byte_unit;      /* 1e6 or 1e9 */
    const char *unit_name; /* MB or GB */
} Figures;

/* ---- read.c ---- */

/* Reads comparison.json. False with a message that names the file and the field. */
bool figures_read(Figures *f, const char *path, PeftError *err);
void figures_free(Figures *f);

/* ---- script.c ---- */

/* NAME in dir opened for writing and closed; every failure names it. */
FILE *script_open(const char *dir, const char *name, PeftError *err);
bool script_close(FILE *out, const char *dir, const char *name, PeftError *err);
/* One gnuplot string in quotes. Nothing in it is a command, an escape or a format. */
void script_text(FILE *out, const char *text);
/* Terminal, fonts, line styles, and the last two lines of every figure: where and when. */
void script_head(FILE *out, const Figures *f, int width, int height, const char *title);
/* A strip above those two lines that names every method; call before the first plot. */
void script_legend(FILE *out, const Figures *f, int width, int height);
/* Pixels below the figure proper: the small type and, if there is one, the legend. */
int script_foot(const Figures *f, int width, bool legend);
/* After the first plot: what is drawn once must not be drawn with the next. */
void script_first_done(FILE *out);
/* The plot's frame, in pixels from the left and from the bottom of a width x height picture. */
void script_frame(FILE *out, int width, int height, const int frame[4]);
/* "device cpu, AMD EPYC, avx512, 1 thread; 2026-11-24" and "base ..., data ..., ...". */
void script_conditions(const Figures *f, char where[CONDITIONS], char what[CONDITIONS]);
/* `text` cut to `most` characters of UTF-8 ("..." in place of the rest, or of the beginning), each
 * control character a "?". Room: 4 * most + 4 bytes. */
void script_shorten(const char *text, int most, bool keep_end, char *out);

/* ---- plots.c, table.c ---- */

/* Each writes NAME.dat and NAME.gp, table_write also table.md, into dir. */
bool curves_write(const Figures *f, const char *dir, PeftError *err);
bool memory_write(const Figures *f, const char *dir, PeftError *err);
bool time_write(const Figures *f, const char *dir, PeftError *err);
bool quality_write(const Figures *f, const char *dir, PeftError *err);
bool table_write(const Figures *f, const char *dir, PeftError *err);

#endif
