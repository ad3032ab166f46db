/* From the rows of a tokenised Dataset to the packed arrays a step reads. There is no padding: the
 * sequences of a batch lie one behind the other, cut by offsets. Order and masks are functions of
 * (seed, epoch, sample, position) only, so a run can be resumed, micro-batched or planned ahead
 * without replaying anything. */
#ifndef PEFT_BATCH_H
#define PEFT_BATCH_H

#include "dataset.h"

/* All zero is an empty batch without memory. */
typedef struct Batch {
    int32_t T, S, M;           /* tokens, sequences, masked tokens */
    int32_t longest;           /* tokens of the longest sequence */
    int32_t *tokens;           /* [T] */
    int32_t *positions;        /* [T] position within the sequence, from 0 */
    int32_t *token_sample;     /* [T] Dataset.sample of the token's row */
    int32_t *offsets;          /* [S + 1] */
    int32_t *seq_sample;       /* [S] */
    int32_t *labels;           /* [S]; 0 where the data has none */
    int32_t *masked_positions; /* [M] ascending indices into tokens */
    int32_t *masked_ids;       /* [M] the ids that stood there */
    int32_t room_T, room_S;    /* what the arrays hold at most */
} Batch;

/* The order in which epoch `epoch` visits n rows: torch.randperm(n) of a CPU generator seeded with
 * seed + epoch, as the seedable sampler of transformers' Trainer draws it. perm: [n]. */
void epoch_order(uint64_t seed, uint64_t epoch, int32_t n, int32_t *perm);

/* Packs these rows, in this order; grows the arrays as needed. ds must be tokenised. */
bool batch_pack(Batch *b, const Dataset *ds, const int32_t *rows, int32_t n, PeftError *err);

/* BERT's masked-language-model corruption of a packed batch, in place: each token that is not a
 * special one is selected with probability 15 %; of those, 80 % become [MASK], 10 % a random id of
 * the vocabulary, 10 % stay. A batch without a selected token gets the one nearest to selection,
 * and one that has only special tokens its first token, unchanged, so that a mean over the masked
 * tokens always exists. Arrays as in Batch; seq_sample: [S], masked_positions and masked_ids: room
 * for offsets[S]. Returns M. */
int32_t batch_mask(const WordPiece *wp, uint64_t seed, uint64_t epoch, int32_t *tokens,
                   const int32_t *offsets, const int32_t *seq_sample, int32_t S,
                   int32_t *masked_positions, int32_t *masked_ids);

/* Largest sizes over a set of batches. */
typedef struct BatchBounds {
    int64_t tokens, sequences, longest, masked; /* in one micro-batch */
    int64_t batch_tokens;                       /* in one whole batch */
} BatchBounds;

/* Raises *bounds to cover every batch of `batch` rows, each run as micro-batches of `micro` rows,
 * of epochs 0..epochs-1 in their shuffled order; epochs = 0 means once in file order, as evaluation
 * does. `masker` is the vocabulary when the batches are masked and NULL otherwise (masked stays as
 * it is). ds must be tokenised. */
bool batch_worst(const Dataset *ds, const WordPiece *masker, uint64_t seed, int epochs,
                 int32_t batch, int32_t micro, BatchBounds *bounds, PeftError *err);

void batch_free(Batch *b);

#endif
