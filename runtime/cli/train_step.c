/* See train_step.h. */
#include "train_step.h"

#include <stdlib.h>
#include <string.h>

bool pack_rows(Batch *b, const Session *s, const Dataset *data, const int32_t *rows, int n,
               int64_t mask_key, FeedBatch *feed, PeftError *err) {
    if (!batch_pack(b, data, rows, n, err)) return false;
    b->M = 0;
    if (s->program->task == PEFT_TASK_MLM)
        b->M = batch_mask(s->vocabulary, s->fit.seed, (uint64_t)mask_key, b->tokens, b->offsets,
                          b->seq_sample, b->S, b->masked_positions, b->masked_ids);
    *feed = (FeedBatch){.tokens = b->tokens,
                        .offsets = b->offsets,
                        .sample = b->seq_sample,
                        .labels = data->label ? b->labels : NULL,
                        .sequences = b->S,
                        .masked_positions = b->masked_positions,
                        .masked_ids = b->masked_ids,
                        .masked = b->M};
    return true;
}

/* ---- training ---- */

bool trainer_open(Trainer *t, const Session *s, Exec *x, PeftError *err) {
    memset(t, 0, sizeof *t);
    t->s = s;
    t->x = x;
    /* The planned micro-batch times their number bounds the whole batch. */
    int64_t tokens = s->batch_tokens, sequences = s->fit.batch;
    t->order = peft_alloc((size_t)s->data.train->n, sizeof *t->order, err);
    t->part_offsets = peft_alloc((size_t)sequences + 1, sizeof *t->part_offsets, err);
    t->part_positions = peft_alloc((size_t)tokens, sizeof *t->part_positions, err);
    if (!t->order || !t->part_offsets || !t->part_positions || !trainer_seek(t, 0, 0, err)) {
        trainer_close(t);
        return false;
    }
    feed_schedule(x, &s->fit, s->total_steps);
    return true;
}

void trainer_close(Trainer *t) {
    batch_free(&t->batch);
    free(t->order);
    free(t->part_offsets);
    free(t->part_positions);
    memset(t, 0, sizeof *t);
}

bool trainer_seek(Trainer *t, int64_t epoch, int64_t step_in_epoch, PeftError *err) {
    if (step_in_epoch >= t->s->steps_per_epoch || step_in_epoch < 0 || epoch < 0)
        return peft_fail(err, "there is no step %lld in epoch %lld", (long long)step_in_epoch,
                         (long long)epoch);
    t->epoch = epoch;
    t->step_in_epoch = step_in_epoch;
    t->global_step = t->known = epoch * t->s->steps_per_epoch + step_in_epoch;
    epoch_order(t->s->fit.seed, (uint64_t)epoch, t->s->data.train->n, t->order);
    return true;
}

bool trainer_seek_next(Trainer *t, PeftError *err) {
    t->epoch_loss = 0;
    t->epoch_tokens = 0;
    return trainer_seek(t, t->epoch + 1, 0, err);
}

/* Takes in the oldest run under way. A step ends with the update, where that is a function apart.
 */
static bool collect(Trainer *t, PeftError *err) {
    ExecResult r;
    if (!exec_collect(t->x, &r, err)) return false;
    bool update = t->x->program->fn[PEFT_FN_UPDATE].nstep;
    if (r.fn == PEFT_FN_TRAIN) {
        t->step_loss += (double)r.scalar[EXEC_LOSS];
        t->epoch_tokens += r.tokens;
    }
    if (update && r.fn != PEFT_FN_UPDATE) return true;
    TrainedStep step = {.number = ++t->known,
                        .loss = (float)t->step_loss,
                        .lr = r.scalar[EXEC_LR],
                        .grad_norm = r.scalar[EXEC_GRAD_NORM]};
    t->epoch_loss += t->step_loss;
    t->step_loss = 0;
    return !t->each || t->each(t->ctx, &step, err);
}

static bool submit(Trainer *t, PeftFn fn, const int64_t *sym, PeftError *err) {
    if (!exec_submit(t->x, fn, sym, err)) return false;
    return !exec_queue_full(t->x) || collect(t, err);
}

/* Sequences s0 to s1 of the batch into the inputs. */
static bool feed_micro_batch(Trainer *t, int s0, int s1, int64_t sym[PEFT_SYM_COUNT],
                             PeftError *err) {
    FeedBatch part;
    feed_part(&t->feed, s0, s1, t->part_offsets, t->part_positions, &part);
    return feed_batch(t->x, &part, sym, err);
}

static bool micro_batch(Trainer *t, int s0, int s1, PeftError *err) {
    int64_t sym[PEFT_SYM_COUNT];
    if (!feed_micro_batch(t, s0, s1, sym, err) || !submit(t, PEFT_FN_TRAIN, sym, err)) return false;
    if (s1 < t->feed.sequences || !t->x->program->fn[PEFT_FN_UPDATE].nstep) return true;
    return submit(t, PEFT_FN_UPDATE, sym, err);
}

/* The next step's batch, and what all its parts have in common into the inputs. */
static bool pack_step(Trainer *t, PeftError *err) {
    const Session *s = t->s;
    int64_t first = t->step_in_epoch * s->fit.batch, left = s->data.train->n - first;
    int n = (int)(left < s->fit.batch ? left : s->fit.batch);
    if (!pack_rows(&t->batch, s, s->data.train, t->order + first, n, t->epoch, &t->feed, err))
        return false;
    feed_rng(t->x, s->fit.seed, t->global_step, true);
    feed_counts(t->x, n, t->feed.masked);
    return true;
}

static int end_of_part(const Trainer *t, int s0) {
    int end = s0 + t->s->fit.batch / t->s->fit.accumulate;
    return end < t->feed.sequences ? end : t->feed.sequences;
}

bool trainer_warm_up(Trainer *t, PeftError *err) {
    int64_t sym[PEFT_SYM_COUNT];
    return pack_step(t, err) && feed_micro_batch(t, 0, end_of_part(t, 0), sym, err) &&
           exec_warm_up(t->x, PEFT_FN_TRAIN, sym, err);
}

bool trainer_step(Trainer *t, PeftError *err) {
    if (!pack_step(t, err)) return false;
    for (int s0 = 0; s0 < t->feed.sequences; s0 = end_of_part(t, s0))
        if (!micro_batch(t, s0, end_of_part(t, s0), err)) return false;
    t->global_step++;
    t->step_in_epoch++;
    return true;
}

bool trainer_drain(Trainer *t, PeftError *err) {
    while (t->x->pending)
        if (!collect(t, err)) return false;
    return true;
}

bool trainer_steps(Trainer *t, int64_t n, PeftError *err) {
    for (int64_t i = 0; i < n; i++) {
        bool ended = t->step_in_epoch == t->s->steps_per_epoch;
        if (ended && (!trainer_drain(t, err) || !trainer_seek_next(t, err))) return false;
        if (!trainer_step(t, err)) return false;
    }
    return trainer_drain(t, err);
}
