/* The three files a training run leaves beside its weights. The first two are the same bytes
 * whenever the same program is trained on the same data with the same seed:
 *   metrics.jsonl  a line per recorded step and per epoch: loss, lr, gradient norm, scores
 *   metrics.csv    the epochs as a table
 *   run.json       settings, counts, planned and reached bytes, scores; and what differs from run
 * to run: times, date, machine, commit (summary.c, origin.c) */
#ifndef PEFT_CLI_RECORD_H
#define PEFT_CLI_RECORD_H

#include "../error.h"
#include "../exec.h"

#define RECORD_MAX_EPOCHS 1000

typedef struct EpochRecord {
    int64_t steps, tokens;
    double train_loss, val_loss, val_f1, val_accuracy;
    double seconds; /* training steps only: not reproducible, kept out of metrics.* */
} EpochRecord;

typedef struct RunRecord {
    const char *dir;
    void *steps;         /* FILE of metrics.jsonl */
    int64_t steps_bytes; /* written and flushed so far: a checkpoint keeps it */
    EpochRecord epoch[RECORD_MAX_EPOCHS];
    int nepoch, best; /* best: index of the best epoch so far, -1 */
} RunRecord;

/* resume_at >= 0: cut metrics.jsonl back to that many bytes and go on; -1: a new file. */
bool record_open(RunRecord *r, const char *dir, int64_t resume_at, PeftError *err);
bool record_step(RunRecord *r, int64_t step, double loss, double lr, double grad_norm,
                 PeftError *err);
bool record_epoch(RunRecord *r, int64_t step, const EpochRecord *e, PeftError *err);
bool record_flush(RunRecord *r, PeftError *err);
bool record_csv(const RunRecord *r, PeftError *err);
void record_close(RunRecord *r);

#endif
