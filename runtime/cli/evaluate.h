/* Scoring a data set with the evaluation function. */
#ifndef PEFT_CLI_EVALUATE_H
#define PEFT_CLI_EVALUATE_H

#include "../score.h"
#include "session.h"

/* Called for every row with its logits, when not NULL. */
typedef void (*RowFn)(void *ctx, int32_t row, const float *logits);

/* Runs all rows in order. Classifiers: score and mean loss; MLM: only the mean loss. */
bool evaluate(const Session *s, Exec *x, const Dataset *d, const char *what, Score *score,
              double *loss, RowFn each, void *ctx, PeftError *err);

#endif
