/* See feed.h. */
#include "feed.h"

#include <math.h>
#include <string.h>

void feed_symbols(int64_t tokens, int64_t sequences, int64_t masked, int64_t longest,
                  int64_t sym[PEFT_SYM_COUNT]) {
    memset(sym, 0, PEFT_SYM_COUNT * sizeof *sym);
    sym[PEFT_SYM_T] = tokens;
    sym[PEFT_SYM_S] = sequences;
    sym[PEFT_SYM_M] = masked;
    sym[PEFT_SYM_L] = longest;
}

static bool check_range(const char *what, const int32_t *v, int64_t n, int64_t limit,
                        PeftError *err) {
    for (int64_t i = 0; i < n; i++)
        if (v[i] < 0 || v[i] >= limit)
            return peft_fail(err, "%s %lld of the batch is %d; the model knows 0 to %lld", what,
                             (long long)i, v[i], (long long)limit - 1);
    return true;
}

static bool check_offsets(const Exec *x, const FeedBatch *b, int64_t *longest, PeftError *err) {
    int64_t limit = x->program->config.positions;
    *longest = 0;
    if (b->sequences < 1 || b->offsets[0] != 0)
        return peft_fail(err, "a batch needs at least one sequence and offsets that start at 0");
    for (int s = 0; s < b->sequences; s++) {
        int64_t n = (int64_t)b->offsets[s + 1] - b->offsets[s];
        if (n < 1 || n > limit)
            return peft_fail(err,
                             "sequence %d of the batch has %lld tokens; the model takes 1 to %lld",
                             s, (long long)n, (long long)limit);
        if (n > *longest) *longest = n;
    }
    return true;
}

static bool check_ids(const Exec *x, const FeedBatch *b, PeftError *err) {
    const PeftConfig *c = &x->program->config;
    return check_range("token", b->tokens, b->offsets[b->sequences], c->vocab, err) &&
           (!b->labels || !c->classes ||
            check_range("label", b->labels, b->sequences, c->classes, err)) &&
           check_range("masked position", b->masked_positions, b->masked, b->offsets[b->sequences],
                       err) &&
           check_range("masked id", b->masked_ids, b->masked, c->vocab, err);
}

/* Inputs are planned for the larger of the two kinds of batch; each function checks its own. */
static bool fits_inputs(const Exec *x, const int64_t *sym, PeftError *err) {
    for (int s = PEFT_SYM_T; s <= PEFT_SYM_M; s++)
        if (sym[s] > x->train_sym[s] && sym[s] > x->eval_sym[s])
            return peft_fail(err, "the batch is larger than the plan: %lld tokens, %lld sequences",
                             (long long)sym[PEFT_SYM_T], (long long)sym[PEFT_SYM_S]);
    return true;
}

static void copy_in(Exec *x, PeftInputId id, const int32_t *v, int64_t n) {
    if (v && n) memcpy(exec_input(x, id), v, (size_t)n * sizeof *v);
}

static void derive(Exec *x, const FeedBatch *b) {
    int32_t *position = exec_input(x, PEFT_IN_positions),
            *sample = exec_input(x, PEFT_IN_token_sample);
    int32_t *first = exec_input(x, PEFT_IN_first), *type = exec_input(x, PEFT_IN_token_types);
    for (int s = 0; s < b->sequences; s++) {
        first[s] = b->offsets[s];
        for (int32_t t = b->offsets[s]; t < b->offsets[s + 1]; t++) {
            position[t] = t - b->offsets[s];
            sample[t] = b->sample[s];
            type[t] = 0;
        }
    }
}

bool feed_batch(Exec *x, const FeedBatch *b, int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    int64_t longest;
    if (!check_offsets(x, b, &longest, err) || !check_ids(x, b, err)) return false;
    int64_t tokens = b->offsets[b->sequences];
    feed_symbols(tokens, b->sequences, b->masked, longest, sym);
    if (!fits_inputs(x, sym, err)) return false;
    copy_in(x, PEFT_IN_tokens, b->tokens, tokens);
    copy_in(x, PEFT_IN_offsets, b->offsets, b->sequences + 1);
    copy_in(x, PEFT_IN_seq_sample, b->sample, b->sequences);
    copy_in(x, PEFT_IN_labels, b->labels, b->sequences);
    if (b->targets)
        memcpy(exec_input(x, PEFT_IN_targets), b->targets, (size_t)b->sequences * sizeof(float));
    copy_in(x, PEFT_IN_masked_positions, b->masked_positions, b->masked);
    copy_in(x, PEFT_IN_masked_ids, b->masked_ids, b->masked);
    derive(x, b);
    return true;
}

void feed_part(const FeedBatch *b, int s0, int s1, int32_t *offsets, int32_t *positions,
               FeedBatch *part) {
    int32_t begin = b->offsets[s0], end = b->offsets[s1], m0 = 0, m = 0;
    for (int s = s0; s <= s1; s++) offsets[s - s0] = b->offsets[s] - begin;
    while (m0 < b->masked && b->masked_positions[m0] < begin) m0++;
    for (; m0 + m < b->masked && b->masked_positions[m0 + m] < end; m++)
        positions[m] = b->masked_positions[m0 + m] - begin;
    *part = (FeedBatch){.tokens = b->tokens + begin,
                        .offsets = offsets,
                        .sample = b->sample + s0,
                        .labels = b->labels ? b->labels + s0 : NULL,
                        .targets = b->targets ? b->targets + s0 : NULL,
                        .sequences = s1 - s0,
                        .masked_positions = positions,
                        .masked_ids = b->masked ? b->masked_ids + m0 : NULL,
                        .masked = m};
}

static void put_scalar(Exec *x, PeftInputId id, double v) {
    *(float *)exec_input(x, id) = (float)v;
}

void feed_counts(Exec *x, int64_t sequences, int64_t masked) {
    put_scalar(x, PEFT_IN_sequences, (double)sequences);
    put_scalar(x, PEFT_IN_masked, (double)masked);
}

int64_t fit_warmup(const PeftFit *fit, int64_t total_steps) {
    if (fit->warmup_steps >= 0) return fit->warmup_steps;
    return (int64_t)ceil((double)total_steps * fit->warmup_ratio);
}

void feed_schedule(Exec *x, const PeftFit *fit, int64_t total_steps) {
    put_scalar(x, PEFT_IN_lr, fit->lr);
    put_scalar(x, PEFT_IN_warmup_steps, (double)fit_warmup(fit, total_steps));
    put_scalar(x, PEFT_IN_total_steps, (double)total_steps);
    put_scalar(x, PEFT_IN_weight_decay, fit->weight_decay);
    put_scalar(x, PEFT_IN_clip_norm, fit->clip_norm);
}

void feed_rng(Exec *x, uint64_t seed, int64_t step, bool dropout) {
    uint32_t *rng = exec_input(x, PEFT_IN_rng);
    rng[0] = (uint32_t)seed;
    rng[1] = (uint32_t)(seed >> 32);
    rng[2] = (uint32_t)step;
    rng[3] = dropout;
}
