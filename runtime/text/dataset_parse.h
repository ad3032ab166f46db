/* The file formats of dataset.h, for dataset.c only. */
#ifndef PEFT_DATASET_PARSE_H
#define PEFT_DATASET_PARSE_H

#include "dataset.h"

/* Turns the len bytes in ds->arena (and a NUL behind them) into rows, in place. */
bool dataset_parse_rows(Dataset *ds, const char *name, size_t len, DataFormat format,
                        PeftError *err);

/* Whether the header at the beginning of bytes (len of them, and a NUL) names a `label` column. */
bool tsv_labelled(const char *name, char *bytes, size_t len, bool *labelled, PeftError *err);

#endif
