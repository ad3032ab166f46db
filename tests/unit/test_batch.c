/* Shuffles and batches: torch's random numbers bit for bit, packing, the worst batch against brute
 * force, and masking: its rates, and that it does not depend on batching. */
#include "dataset_fixture.h"

#include "../../runtime/text/batch.h"
#include "../../runtime/text/torch_rng.h"

/* ---- torch's numbers ---- */

static void check_randperm(const char *line) {
    unsigned long long seed, expected;
    int n, first[8], at = 0, given = 0;
    assert_int_equal(sscanf(line, "randperm %llu %d%n", &seed, &n, &at), 2);
    for (int step; given < 8 && sscanf(line + at, " %d%n", &first[given], &step) == 1; at += step)
        given++;
    assert_int_equal(sscanf(line + at, " hash %llx", &expected), 1);
    int32_t *perm = malloc((size_t)n * sizeof *perm);
    epoch_order(seed - seed / 2, seed / 2, n, perm);
    uint64_t hash = fnv_offset;
    for (int i = 0; i < n; i++) hash = fnv(hash, (uint64_t)perm[i]);
    for (int i = 0; i < given; i++) assert_int_equal(perm[i], first[i]);
    assert_int_equal(hash, expected);
    free(perm);
}

static void check_uniform(const char *line) {
    unsigned long long seed, expected;
    size_t skip, n;
    double low, high;
    unsigned first[4];
    assert_int_equal(sscanf(line, "uniform %llu %zu %zu %lf %lf %x %x %x %x hash %llx", &seed,
                            &skip, &n, &low, &high, &first[0], &first[1], &first[2], &first[3],
                            &expected),
                     10);
    float *values = malloc(n * sizeof *values);
    TorchRng rng;
    torch_rng_seed(&rng, seed);
    torch_rng_skip(&rng, skip);
    torch_rng_uniform(&rng, (float)low, (float)high, values, n);
    uint64_t hash = fnv_offset;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        if (i < 4) assert_int_equal(bits, first[i]);
        hash = fnv(hash, bits);
    }
    assert_int_equal(hash, expected);
    free(values);
}

static void random_numbers_are_those_of_torch(void **state) {
    (void)state;
    FILE *file = fopen(GOLDEN "torch_rng.txt", "r");
    assert_non_null(file);
    char line[1024];
    int checked = 0;
    while (fgets(line, sizeof line, file)) {
        if (line[0] == '#') continue;
        if (line[0] == 'r')
            check_randperm(line);
        else
            check_uniform(line);
        checked++;
    }
    fclose(file);
    assert_int_equal(checked, 12);
    int32_t perm[10];
    const int32_t expected[] = {2, 6, 1, 8, 4, 5, 0, 9, 3, 7};
    epoch_order(42, 0, 10, perm);
    assert_memory_equal(perm, expected, sizeof expected);
}

/* ---- batches ---- */

/* 300 rows of 0 to 36 words. */
static Dataset *sample_data(const WordPiece *wp) {
    static char text[300 * 40 * 4 + 300 * 8];
    char *to = stpcpy(text, "sentence\tlabel\n");
    for (int i = 0; i < 300; i++) {
        for (int k = i * 7919 % 37; k > 0; k--) to = stpcpy(to, k % 5 ? "the " : "ab ");
        to += sprintf(to, "%s\t%d\n", i % 50 ? "" : "[MASK] [UNK]", i % 3);
    }
    PeftError err = {0};
    Dataset *ds = parse(text, DATA_TSV);
    assert_true(dataset_tokenize(ds, wp, 32, &err));
    return ds;
}

static void batches_are_packed(void **state) {
    (void)state;
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *all = sample_data(wp);
    dataset_free(dataset_split_every(all, 64, &err)); /* so that samples are not row numbers */
    assert_true(dataset_tokenize(all, wp, 32, &err));
    Batch b = {0};
    const int32_t rows[] = {250, 3, 64, 3};
    const int32_t few[] = {7};
    for (int round = 0; round < 3; round++) {
        const int32_t *r = round == 1 ? few : rows;
        int n = round == 1 ? 1 : 4, t = 0;
        assert_true(batch_pack(&b, all, r, n, &err));
        assert_int_equal(b.S, n);
        for (int s = 0; s < n; s++) {
            assert_int_equal(b.offsets[s], t);
            assert_int_equal(b.seq_sample[s], all->sample[r[s]]);
            assert_int_equal(b.labels[s], all->label[r[s]]);
            for (int i = all->offsets[r[s]]; i < all->offsets[r[s] + 1]; i++, t++) {
                assert_int_equal(b.tokens[t], all->tokens[i]);
                assert_int_equal(b.positions[t], i - all->offsets[r[s]]);
                assert_int_equal(b.token_sample[t], all->sample[r[s]]);
            }
            assert_true(b.longest >= t - b.offsets[s]);
        }
        assert_int_equal(b.offsets[n], t);
        assert_int_equal(b.T, t);
    }
    assert_int_equal(all->sample[64], 65);
    batch_free(&b);
    dataset_free(all);
    wordpiece_free(wp);
}

static int32_t mask(Batch *b, const WordPiece *wp, uint64_t seed, uint64_t epoch) {
    b->M = batch_mask(wp, seed, epoch, b->tokens, b->offsets, b->seq_sample, b->S,
                      b->masked_positions, b->masked_ids);
    return b->M;
}

static void bounds_are_reached_and_never_passed(void **state) {
    (void)state;
    enum { BATCH = 32, MICRO = 12, EPOCHS = 3 };
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *ds = sample_data(wp);
    BatchBounds bounds = {0}, seen = {0}, plain = {0};
    assert_true(batch_worst(ds, wp, 42, EPOCHS, BATCH, MICRO, &bounds, &err));
    assert_true(batch_worst(ds, NULL, 42, EPOCHS, BATCH, MICRO, &plain, &err));
    assert_int_equal(plain.masked, 0);
    assert_int_equal(plain.tokens, bounds.tokens);
    Batch b = {0};
    int32_t perm[300];
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        epoch_order(42, (uint64_t)epoch, 300, perm);
        for (int at = 0; at < 300; at += BATCH) {
            int n = 300 - at < BATCH ? 300 - at : BATCH, whole = 0;
            for (int k = 0; k < n; k += MICRO) {
                assert_true(batch_pack(&b, ds, perm + at + k, n - k < MICRO ? n - k : MICRO, &err));
                mask(&b, wp, 42, (uint64_t)epoch);
                whole += b.T;
                if (b.T > seen.tokens) seen.tokens = b.T;
                if (b.S > seen.sequences) seen.sequences = b.S;
                if (b.M > seen.masked) seen.masked = b.M;
                if (b.longest > seen.longest) seen.longest = b.longest;
            }
            if (whole > seen.batch_tokens) seen.batch_tokens = whole;
        }
    }
    assert_memory_equal(&seen, &bounds, sizeof seen);
    BatchBounds eval = {0};
    assert_true(batch_worst(ds, NULL, 42, 0, 300, 300, &eval, &err));
    assert_int_equal(eval.tokens, ds->offsets[300]);
    assert_false(batch_worst(ds, NULL, 42, 1, 0, 1, &eval, &err));
    batch_free(&b);
    dataset_free(ds);
    wordpiece_free(wp);
}

static void masks_do_not_depend_on_batching(void **state) {
    (void)state;
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *ds = sample_data(wp);
    Batch all = {0}, one = {0};
    int32_t order[300], differ = 0;
    for (int i = 0; i < 300; i++) order[i] = 299 - i;
    assert_true(batch_pack(&all, ds, order, 300, &err));
    mask(&all, wp, 1, 2);
    for (int s = 0; s < 300; s++) {
        int32_t row = order[s];
        assert_true(batch_pack(&one, ds, &row, 1, &err));
        int32_t begin = all.offsets[s], selected = 0;
        for (int32_t m = 0; m < all.M; m++)
            selected += all.masked_positions[m] >= begin && all.masked_positions[m] < begin + one.T;
        mask(&one, wp, 1, 2);
        if (selected > 0) {
            assert_memory_equal(one.tokens, all.tokens + begin, (size_t)one.T * sizeof(int32_t));
            assert_int_equal(one.M, selected);
        } else {
            assert_int_equal(one.M, 1);
        }
        assert_true(batch_pack(&one, ds, &row, 1, &err));
        mask(&one, wp, 1, 3);
        differ += memcmp(one.tokens, all.tokens + begin, (size_t)one.T * sizeof(int32_t)) != 0;
    }
    assert_true(differ > 200); /* another epoch, other masks */
    batch_free(&all);
    batch_free(&one);
    dataset_free(ds);
    wordpiece_free(wp);
}

/* A count within five standard deviations of n * p. */
static void expect_rate(double count, double n, double p) {
    double distance = count - n * p;
    assert_true(distance * distance <= 25 * n * p * (1 - p));
}

static void masks_have_berts_rates(void **state) {
    (void)state;
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *ds = sample_data(wp);
    Batch b = {0};
    int32_t order[300];
    double candidates = 0, selected = 0, masked = 0, kept = 0;
    for (int i = 0; i < 300; i++) order[i] = i;
    for (uint64_t epoch = 0; epoch < 100; epoch++) {
        assert_true(batch_pack(&b, ds, order, 300, &err));
        for (int32_t t = 0; t < b.T; t++) candidates += !wordpiece_is_special(wp, b.tokens[t]);
        selected += mask(&b, wp, 7, epoch);
        for (int32_t m = 0, last = -1; m < b.M; last = b.masked_positions[m++]) {
            int32_t at = b.masked_positions[m], now = b.tokens[at];
            assert_true(at > last && at < b.T);
            assert_false(wordpiece_is_special(wp, b.masked_ids[m]));
            assert_true(now >= 0 && now < wordpiece_size(wp));
            masked += now == wordpiece_special(wp, SPECIAL_MASK);
            kept += now == b.masked_ids[m];
            b.tokens[at] = b.masked_ids[m];
        }
        /* the masked ids put back, nothing has changed */
        assert_memory_equal(b.tokens, ds->tokens, (size_t)b.T * sizeof *b.tokens);
    }
    assert_true(candidates > 400000);
    expect_rate(selected, candidates, 0.15);
    expect_rate(masked, selected, 0.8 + 0.1 / wordpiece_size(wp));
    expect_rate(kept, selected, 0.1 + 0.1 / wordpiece_size(wp));
    batch_free(&b);
    dataset_free(ds);
    wordpiece_free(wp);
}

static void every_batch_has_a_masked_token(void **state) {
    (void)state;
    WordPiece *wp = load_vocab();
    PeftError err = {0};
    Dataset *ds = parse("the\n[MASK]\n", DATA_TEXT);
    assert_true(dataset_tokenize(ds, wp, 32, &err));
    Batch b = {0};
    const int32_t rows[] = {0, 1};
    for (uint64_t epoch = 0; epoch < 50; epoch++) {
        assert_true(batch_pack(&b, ds, rows, 2, &err));
        assert_int_equal(mask(&b, wp, 0, epoch), 1);
        assert_int_equal(b.masked_positions[0], 1);
        assert_int_equal(b.masked_ids[0], ds->tokens[1]);
    }
    assert_true(batch_pack(&b, ds, rows + 1, 1, &err)); /* only special tokens */
    assert_int_equal(mask(&b, wp, 0, 0), 1);
    assert_int_equal(b.masked_positions[0], 0);
    assert_int_equal(b.tokens[0], wordpiece_special(wp, SPECIAL_CLS));
    assert_int_equal(b.masked_ids[0], b.tokens[0]);
    batch_free(&b);
    dataset_free(ds);
    wordpiece_free(wp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_numbers_are_those_of_torch),
        cmocka_unit_test(batches_are_packed),
        cmocka_unit_test(bounds_are_reached_and_never_passed),
        cmocka_unit_test(masks_do_not_depend_on_batching),
        cmocka_unit_test(masks_have_berts_rates),
        cmocka_unit_test(every_batch_has_a_masked_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
