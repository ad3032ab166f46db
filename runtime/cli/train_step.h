/* One optimizer step after another over the training rows in the order of each epoch's shuffle. */
#ifndef PEFT_CLI_TRAIN_STEP_H
#define PEFT_CLI_TRAIN_STEP_H

#include "session.h"

#include "../feed.h"

/* Packs rows of a data set into b and shows it as a feed. MLM programs mask here; mask_key tells
 * epochs apart (evaluation always uses the same masks). */
bool pack_rows(Batch *b, const Session *s, const Dataset *data, const int32_t *rows, int n,
               int64_t mask_key, FeedBatch *feed, PeftError *err);

typedef struct Trainer {
    const Session *s;
    Exec *x;
    Batch batch;
    FeedBatch feed; /* the whole batch */
    int32_t *order; /* this epoch's permutation of the training rows */
    int32_t *part_offsets, *part_positions;
    int64_t epoch, step_in_epoch, global_step; /* cursor: the next step to run */
    double epoch_loss;                         /* sum over the epoch's steps so far */
    int64_t epoch_tokens;
    float loss, lr, grad_norm; /* of the last step */
} Trainer;

bool trainer_open(Trainer *t, const Session *s, Exec *x, PeftError *err);
void trainer_close(Trainer *t);
/* Goes to a cursor (resume). */
bool trainer_seek(Trainer *t, int64_t epoch, int64_t step_in_epoch, PeftError *err);
bool trainer_seek_next(Trainer *t, PeftError *err); /* the start of the next epoch */
bool trainer_step(Trainer *t, PeftError *err);
bool trainer_steps(Trainer *t, int64_t n, PeftError *err);

#endif
