/* Packing copies; shuffling and masking are pure functions, which is what makes the worst batch of
 * a run computable before it starts. */
#include "batch.h"

#include <stdlib.h>
#include <string.h>

#include "torch_rng.h"

void epoch_order(uint64_t seed, uint64_t epoch, int32_t n, int32_t *perm) {
    TorchRng rng;
    torch_rng_seed(&rng, seed + epoch);
    torch_rng_randperm(&rng, n, perm);
}

/* ---- packing ---- */

void batch_free(Batch *b) {
    free(b->tokens);
    free(b->positions);
    free(b->token_sample);
    free(b->offsets);
    free(b->seq_sample);
    free(b->labels);
    free(b->masked_positions);
    free(b->masked_ids);
    *b = (Batch){0};
}

/* Replaces the arrays by larger ones; nothing in them is kept. */
static bool reserve(Batch *b, int32_t T, int32_t S, PeftError *err) {
    if (T <= b->room_T && S <= b->room_S) return true;
    if (T < b->room_T) T = b->room_T;
    if (S < b->room_S) S = b->room_S;
    batch_free(b);
    b->tokens = peft_alloc((size_t)T, sizeof(int32_t), err);
    b->positions = peft_alloc((size_t)T, sizeof(int32_t), err);
    b->token_sample = peft_alloc((size_t)T, sizeof(int32_t), err);
    b->masked_positions = peft_alloc((size_t)T, sizeof(int32_t), err);
    b->masked_ids = peft_alloc((size_t)T, sizeof(int32_t), err);
    b->offsets = peft_alloc((size_t)S + 1, sizeof(int32_t), err);
    b->seq_sample = peft_alloc((size_t)S, sizeof(int32_t), err);
    b->labels = peft_alloc((size_t)S, sizeof(int32_t), err);
    if (b->tokens && b->positions && b->token_sample && b->masked_positions && b->masked_ids &&
        b->offsets && b->seq_sample && b->labels) {
        b->room_T = T;
        b->room_S = S;
        return true;
    }
    batch_free(b);
    return false;
}

static int32_t row_len(const Dataset *ds, int32_t row) {
    return ds->offsets[row + 1] - ds->offsets[row];
}

bool batch_pack(Batch *b, const Dataset *ds, const int32_t *rows, int32_t n, PeftError *err) {
    int64_t total = 0;
    for (int32_t s = 0; s < n; s++) total += row_len(ds, rows[s]);
    if (total > INT32_MAX)
        return peft_fail(err, "a batch of %lld tokens is too large; use fewer rows in a batch",
                         (long long)total);
    if (!reserve(b, (int32_t)total, n, err)) return false;
    b->T = b->M = b->longest = 0;
    b->S = n;
    for (int32_t s = 0; s < n; s++) {
        int32_t row = rows[s], len = row_len(ds, row), at = b->T;
        memcpy(b->tokens + at, ds->tokens + ds->offsets[row], (size_t)len * sizeof *b->tokens);
        for (int32_t i = 0; i < len; i++) {
            b->positions[at + i] = i;
            b->token_sample[at + i] = ds->sample[row];
        }
        b->offsets[s] = at;
        b->seq_sample[s] = ds->sample[row];
        b->labels[s] = ds->label ? ds->label[row] : 0;
        if (len > b->longest) b->longest = len;
        b->T += len;
    }
    b->offsets[n] = b->T;
    return true;
}

/* ---- masking ---- */

/* Stafford's mix13: every input bit changes every output bit with probability near one half. */
static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t sample_key(uint64_t seed, uint64_t epoch, int32_t sample) {
    const uint64_t golden = 0x9E3779B97F4A7C15u; /* so that no argument 0 is a fixed point */
    return mix(mix(mix(seed + golden) + epoch + golden) + (uint32_t)sample + golden);
}

/* 64 random bits of one token: the upper half selects it, the lower half says what becomes of it.
 */
static uint64_t token_bits(uint64_t key, int32_t position) {
    return mix(key ^ mix((uint64_t)position + 1));
}

static const uint32_t select_below = 644245094;  /* 0.15 * 2^32 */
static const uint32_t mask_below = 3435973836;   /* 0.8 * 2^32 */
static const uint32_t random_below = 3865470566; /* 0.9 * 2^32 */

static int32_t corrupt(const WordPiece *wp, uint64_t bits, int32_t id) {
    uint32_t action = (uint32_t)bits;
    if (action < mask_below) return wordpiece_special(wp, SPECIAL_MASK);
    if (action >= random_below) return id;
    return (int32_t)((mix(bits) >> 32) * (uint64_t)wordpiece_size(wp) >> 32);
}

int32_t batch_mask(const WordPiece *wp, uint64_t seed, uint64_t epoch, int32_t *tokens,
                   const int32_t *offsets, const int32_t *seq_sample, int32_t S,
                   int32_t *masked_positions, int32_t *masked_ids) {
    int32_t M = 0, nearest = 0;
    uint64_t nearest_bits = UINT64_MAX;
    for (int32_t s = 0; s < S; s++) {
        uint64_t key = sample_key(seed, epoch, seq_sample[s]);
        for (int32_t t = offsets[s]; t < offsets[s + 1]; t++) {
            if (wordpiece_is_special(wp, tokens[t])) continue;
            uint64_t bits = token_bits(key, t - offsets[s]);
            if (bits < nearest_bits) {
                nearest_bits = bits;
                nearest = t;
            }
            if (bits >> 32 >= select_below) continue;
            masked_positions[M] = t;
            masked_ids[M++] = tokens[t];
            tokens[t] = corrupt(wp, bits, tokens[t]);
        }
    }
    if (M > 0 || S == 0) return M;
    masked_positions[0] = nearest;
    masked_ids[0] = tokens[nearest];
    if (nearest_bits != UINT64_MAX) tokens[nearest] = corrupt(wp, nearest_bits, tokens[nearest]);
    return 1;
}

/* ---- the worst batch ---- */

/* Tokens that batch_mask selects in a row. */
static int32_t count_masked(const Dataset *ds, int32_t row, const WordPiece *wp, uint64_t seed,
                            uint64_t epoch) {
    uint64_t key = sample_key(seed, epoch, ds->sample[row]);
    const int32_t *tokens = ds->tokens + ds->offsets[row];
    int32_t masked = 0;
    for (int32_t i = 0; i < row_len(ds, row); i++)
        masked += !wordpiece_is_special(wp, tokens[i]) && token_bits(key, i) >> 32 < select_below;
    return masked;
}

static void raise_to(int64_t *bound, int64_t value) {
    if (value > *bound) *bound = value;
}

typedef struct Masker {
    const WordPiece *wp; /* NULL: nothing is masked */
    uint64_t seed, epoch;
} Masker;

/* One whole batch, rows[0..n), cut into micro-batches. */
static void cover_batch(const Dataset *ds, const int32_t *rows, int32_t n, int32_t micro,
                        const Masker *masker, BatchBounds *bounds) {
    int64_t whole = 0;
    for (int32_t begin = 0, end; begin < n; begin = end) {
        int64_t tokens = 0, masked = 0;
        end = n - begin < micro ? n : begin + micro;
        for (int32_t i = begin; i < end; i++) {
            tokens += row_len(ds, rows[i]);
            raise_to(&bounds->longest, row_len(ds, rows[i]));
            if (masker->wp)
                masked += count_masked(ds, rows[i], masker->wp, masker->seed, masker->epoch);
        }
        whole += tokens;
        raise_to(&bounds->tokens, tokens);
        raise_to(&bounds->sequences, end - begin);
        if (masker->wp) raise_to(&bounds->masked, masked > 0 ? masked : 1);
    }
    raise_to(&bounds->batch_tokens, whole);
}

bool batch_worst(const Dataset *ds, const WordPiece *masker, uint64_t seed, int epochs,
                 int32_t batch, int32_t micro, BatchBounds *bounds, PeftError *err) {
    if (batch < 1 || micro < 1)
        return peft_fail(err, "batches of %d rows in parts of %d: both must be 1 or more", batch,
                         micro);
    int32_t *order = peft_alloc((size_t)ds->n, sizeof *order, err);
    if (!order) return false;
    for (int32_t i = 0; i < ds->n; i++) order[i] = i;
    for (int epoch = 0; epoch < (epochs ? epochs : 1); epoch++) {
        const Masker m = {masker, seed, (uint64_t)epoch};
        if (epochs) epoch_order(seed, (uint64_t)epoch, ds->n, order);
        for (int32_t at = 0, n; at < ds->n; at += n) {
            n = ds->n - at < batch ? ds->n - at : batch;
            cover_batch(ds, order + at, n, micro, &m, bounds);
        }
    }
    free(order);
    return true;
}
