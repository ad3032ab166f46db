/* A data file in memory: the texts of its rows, their labels and, once tokenised, their token ids,
 * packed. A row's `sample` is its index among the rows of the file it came from; it stays with the
 * row when a split takes it elsewhere, and keys everything random that happens to the row. */
#ifndef PEFT_DATASET_H
#define PEFT_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"
#include "wordpiece.h"

typedef enum DataFormat {
    DATA_AUTO, /* by the name: .tsv, .csv or .txt, each with or without .gz behind it */
    DATA_TSV,  /* a header line names the columns; `sentence` (or `text`) and `label` are used */
    DATA_CSV,  /* AG News: no header, "class","title","description" with "" for a quote; classes
                * from 1, here labels from 0; the text is title and description joined by a space */
    DATA_TEXT, /* a text a line, no labels */
} DataFormat;

enum {
    DATASET_MAX_LINE = 1 << 20, /* bytes in one row; more is a damaged file */
    DATASET_MAX_LABEL = 9999,
    DATASET_MAX_ROWS = 200000000, /* below the bound where torch's randperm changes its method */
};

typedef struct Dataset {
    char *path; /* the file, for messages */
    int32_t n;
    int32_t classes;      /* largest label + 1; 0 without labels */
    int32_t classes_line; /* a line with the largest label */
    char *arena;          /* the texts, NUL-terminated, one behind the other */
    size_t *text_at;      /* [n + 1] offsets into arena */
    int32_t *label;       /* [n], or NULL without labels */
    int32_t *sample;      /* [n] */

    /* set by dataset_tokenize */
    int32_t *offsets;     /* [n + 1] first token of each row, or NULL before */
    int32_t *tokens;      /* [offsets[n]] ids with [CLS] and [SEP] */
    int32_t truncated;    /* rows that were cut to max_len */
    int32_t invalid_utf8; /* rows with bytes that are not UTF-8, read as U+FFFD */
} Dataset;

/* Reads a file, plain or gzip. Blank lines are skipped, LF and CRLF accepted. NULL with
 * FILE:LINE for whatever makes a row unusable: a missing column, too few or too many columns, a
 * label that is not an integer in range, a NUL byte, an unclosed quote, an overlong line; also for
 * a file without rows. Gaps between the labels are the business of data_open. */
Dataset *dataset_read(const char *path, DataFormat format, PeftError *err);

/* The same from memory (format not DATA_AUTO); name stands for the file in messages. Takes over
 * bytes (from malloc, with a NUL at bytes[len]), also on failure. */
Dataset *dataset_parse(const char *name, char *bytes, size_t len, DataFormat format,
                       PeftError *err);

/* Fills offsets, tokens and the two counts; max_len (at least 2) is the model's number of
 * positions. Replaces an earlier tokenisation. */
bool dataset_tokenize(Dataset *ds, const WordPiece *wp, int max_len, PeftError *err);

static inline const char *dataset_text(const Dataset *ds, int32_t row) {
    return ds->arena + ds->text_at[row];
}

static inline size_t dataset_text_len(const Dataset *ds, int32_t row) {
    return ds->text_at[row + 1] - ds->text_at[row] - 1;
}

/* Moves the rows with index i % period == period - 1 into a new set; both keep file order. NULL
 * when memory is short; ds is then unchanged. Must come before dataset_tokenize. */
Dataset *dataset_split_every(Dataset *ds, int32_t period, PeftError *err);

/* Whether the header line of a TSV file names a `label` column. */
bool dataset_has_labels(const char *tsv_path, bool *labelled, PeftError *err);

void dataset_free(Dataset *ds);

#endif
