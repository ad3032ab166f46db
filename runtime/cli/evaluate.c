/* See evaluate.h. */
#include "evaluate.h"
#include "progress.h"
#include "train_step.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct Evaluation {
    const Session *s;
    Exec *x;
    const Dataset *d;
    Score *score;
    double loss_sum, weight; /* sum of losses and of what each was divided by */
    RowFn each;
    void *ctx;
} Evaluation;

static bool eval_batch(Evaluation *e, Batch *b, const int32_t *rows, int n, PeftError *err) {
    int64_t sym[PEFT_SYM_COUNT];
    FeedBatch feed;
    if (!pack_rows(b, e->s, e->d, rows, n, 0, &feed, err)) return false;
    feed_counts(e->x, n, b->M);
    feed_rng(e->x, e->s->fit.seed, 0, false);
    if (!feed_batch(e->x, &feed, sym, err) || !exec_run(e->x, PEFT_FN_EVAL, sym, err)) return false;
    double parts = e->s->program->task == PEFT_TASK_MLM ? b->M : n;
    const float *loss = exec_output(e->x, PEFT_FN_EVAL, "loss", NULL);
    const float *logits = exec_output(e->x, PEFT_FN_EVAL, "logits", NULL);
    if (loss) e->loss_sum += (double)*loss * parts;
    e->weight += parts;
    for (int i = 0; i < n && logits && e->s->program->task == PEFT_TASK_CLASSIFY; i++) {
        const float *row = logits + (int64_t)i * e->score->classes;
        if (e->d->label) score_add(e->score, row, e->d->label[rows[i]]);
        if (e->each) e->each(e->ctx, rows[i], row);
    }
    return true;
}

bool evaluate(const Session *s, Exec *x, const Dataset *d, const char *what, Score *score,
              double *loss, RowFn each, void *ctx, PeftError *err) {
    int size = s->fit.batch / s->fit.accumulate;
    Batch b = {0};
    Progress progress;
    Evaluation e = {.s = s, .x = x, .d = d, .score = score, .each = each, .ctx = ctx};
    int32_t *rows = peft_alloc((size_t)size, sizeof *rows, err);
    if (!rows) return false;
    bool ok = true;
    score_start(score, (int)s->program->config.classes);
    progress_start(&progress, what, d->n);
    for (int32_t at = 0; ok && at < d->n; at += size) {
        int n = d->n - at < size ? d->n - at : size;
        for (int i = 0; i < n; i++) rows[i] = at + i;
        ok = eval_batch(&e, &b, rows, n, err);
        progress_step(&progress, at + n, "evaluating");
    }
    progress_end(&progress);
    *loss = e.weight > 0 ? e.loss_sum / e.weight : 0;
    batch_free(&b);
    free(rows);
    return ok;
}
