/* Writes a batch into a program's inputs: packed tokens and everything derived from them. */
#ifndef PEFT_FEED_H
#define PEFT_FEED_H

#include "error.h"
#include "exec.h"

typedef struct FeedBatch {  /* S sequences, packed */
    const int32_t *tokens;  /* [offsets[S]] */
    const int32_t *offsets; /* [S + 1], from 0 */
    const int32_t *sample;  /* [S] data-set row of each sequence: keys its random numbers */
    const int32_t *labels;  /* [S], or NULL */
    const float *targets;   /* [S] of a regression, or NULL */
    int32_t sequences;
    const int32_t *masked_positions, *masked_ids; /* [masked], or NULL */
    int32_t masked;
} FeedBatch;

/* Checks every id against the program's tables (a batch may come from a file), copies, derives
 * positions and first tokens, and returns the batch's symbol values. The batch must fit the plan.
 */
bool feed_batch(Exec *x, const FeedBatch *b, int64_t sym[PEFT_SYM_COUNT], PeftError *err);

/* Sequences s0 to s1 (exclusive) of a batch as a batch of their own. offsets: room for s1 - s0 + 1;
 * positions: room for b->masked (masked positions must ascend). */
void feed_part(const FeedBatch *b, int s0, int s1, int32_t *offsets, int32_t *positions,
               FeedBatch *part);

/* Symbol values of a batch of these sizes, without feeding it. */
void feed_symbols(int64_t tokens, int64_t sequences, int64_t masked, int64_t longest,
                  int64_t sym[PEFT_SYM_COUNT]);

/* Scalars: the whole batch's counts (over all its micro-batches), the schedule, the random key. */
void feed_counts(Exec *x, int64_t sequences, int64_t masked);
void feed_schedule(Exec *x, const PeftFit *fit, int64_t total_steps);
void feed_rng(Exec *x, uint64_t seed, int64_t step, bool dropout);

/* Warm-up steps of a fit: given, or the ratio of the total rounded up as transformers does. */
int64_t fit_warmup(const PeftFit *fit, int64_t total_steps);

#endif
