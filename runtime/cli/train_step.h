/* One optimizer step after another over the training rows in the order of each epoch's shuffle.
 * Steps are submitted (exec.h): what came out of one is told when it is there, which on a GPU is
 * while later steps are already being made. */
#ifndef PEFT_CLI_TRAIN_STEP_H
#define PEFT_CLI_TRAIN_STEP_H

#include "session.h"

#include "../feed.h"

/* Packs rows of a data set into b and shows it as a feed. MLM programs mask here; mask_key tells
 * epochs apart (evaluation always uses the same masks). */
bool pack_rows(Batch *b, const Session *s, const Dataset *data, const int32_t *rows, int n,
               int64_t mask_key, FeedBatch *feed, PeftError *err);

typedef struct TrainedStep {
    int64_t number; /* from 1, over all epochs */
    float loss, lr, grad_norm;
} TrainedStep;

typedef bool (*StepFn)(void *ctx, const TrainedStep *step, PeftError *err);

typedef struct Trainer {
    const Session *s;
    Exec *x;
    StepFn each; /* called for every step in order, or NULL */
    void *ctx;
    Batch batch;
    FeedBatch feed; /* the whole batch */
    int32_t *order; /* this epoch's permutation of the training rows */
    int32_t *part_offsets, *part_positions;
    int64_t epoch, step_in_epoch, global_step; /* cursor: the next step to submit */
    int64_t known;                             /* steps whose results are there, over all epochs */
    double epoch_loss;                         /* sum over those of this epoch */
    int64_t epoch_tokens;
    double step_loss; /* of the next one's micro-batches so far */
} Trainer;

bool trainer_open(Trainer *t, const Session *s, Exec *x, PeftError *err);
void trainer_close(Trainer *t);
/* Goes to a cursor (resume). No step may be under way, here and in trainer_seek_next. */
bool trainer_seek(Trainer *t, int64_t epoch, int64_t step_in_epoch, PeftError *err);
bool trainer_seek_next(Trainer *t, PeftError *err); /* the start of the next epoch */
/* Before anything has run, and before or while variables are written (exec_warm_up). */
bool trainer_warm_up(Trainer *t, PeftError *err);
bool trainer_step(Trainer *t, PeftError *err);
bool trainer_drain(Trainer *t, PeftError *err);            /* waits for the steps under way */
bool trainer_steps(Trainer *t, int64_t n, PeftError *err); /* n steps, over epochs, and drains */

#endif
