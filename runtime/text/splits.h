/* A data folder: which of its files is the training set, which validation, which test.
 *
 *   SST-2      train.tsv, dev.tsv                      [validation.tsv or val.tsv] [test.tsv]
 *   AG News    train.csv, test.csv, [classes.txt]      [the same]
 *   text only  train.txt, [dev.txt]                    [the same]
 *
 * each plain or with .gz behind it. With a validation file, the test set is test, else dev. With
 * dev and test but no validation file, dev is validation. Otherwise validation is the rows of train
 * with index i % 64 == 63, and test is the dev or test file there is. A test.tsv without labels, as
 * GLUE publishes it, is set aside. */
#ifndef PEFT_SPLITS_H
#define PEFT_SPLITS_H

#include "dataset.h"

enum { VALIDATION_PERIOD = 64 };

typedef struct SplitSet {
    DataFormat format;
    Dataset *train, *validation; /* never empty */
    Dataset *test;               /* NULL when the folder has none */
    Dataset *class_names;        /* the rows of classes.txt, or NULL */
    int32_t classes;             /* 0 for text only; labels of all splits are below it */
    bool validation_from_train;  /* validation was taken out of train */
    bool test_unlabelled;        /* test.tsv has no label column and was set aside */
} SplitSet;

/* Reads a folder. task is "sst2" or "tsv", "agnews" or "csv", "text", or NULL to go by the files.
 * Fails, with FILE:LINE where there is one, for a missing or ambiguous folder, for any row that
 * dataset_read refuses, for fewer than two classes, for a number below the largest label that no
 * row of train has (unless classes.txt names the classes), for a label of another split that train
 * lacks and for a train file too small to take a validation set from. On failure *out is all zero.
 */
bool data_open(const char *dir, const char *task, SplitSet *out, PeftError *err);

bool splits_tokenize(SplitSet *set, const WordPiece *wp, int max_len, PeftError *err);

void splits_free(SplitSet *set);

#endif
