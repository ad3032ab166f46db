/* The bag-of-words baseline of a comparison: multinomial logistic regression on which word pieces
 * a text contains, whatever their order. What it reaches is what the words alone give away; a data
 * set on which it does as well as an encoder says nothing about encoders.
 *
 *   bow --vocab vocab.txt --data DIR [--task NAME] [--seed N] --out FILE.json
 *
 * Reads the same splits as a compiled program, takes the rows in the same order, keeps the epoch of
 * best validation macro F1 and scores that one on the test set. One thread, fixed order of
 * additions: the same bytes every time.
 */
#include "../runtime/io/file.h"
#include "../runtime/score.h"
#include "../runtime/text/batch.h"
#include "../runtime/text/splits.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POSITIONS = 512, EPOCHS = 10 };
static const double RATE = 0.05; /* small enough that the rare words of SST-2 do not overfit */

typedef struct Arguments {
    const char *vocab, *data, *task, *out;
    uint64_t seed;
} Arguments;

typedef struct Model {
    int classes;
    int32_t features;       /* word pieces and, last, the bias */
    double *weight, *sum;   /* [features, classes]; sum: of squared gradients */
    double *best;           /* weight at the best epoch */
    int32_t *seen, *active; /* [features]; the row that last had it, and the features of a row */
} Model;

/* ---- features: the distinct word pieces of a row, and the bias ---- */

/* Fills m->active and returns its length. `mark` differs from call to call. */
static int row_features(Model *m, const Dataset *d, int32_t row, int32_t mark) {
    int n = 0;
    for (int32_t i = d->offsets[row] + 1; i < d->offsets[row + 1] - 1; i++) { /* [CLS], [SEP] */
        int32_t token = d->tokens[i];
        if (m->seen[token] == mark) continue;
        m->seen[token] = mark;
        m->active[n++] = token;
    }
    m->active[n++] = m->features - 1;
    return n;
}

static void row_scores(const Model *m, const double *weight, int n, double *score) {
    for (int c = 0; c < m->classes; c++) score[c] = 0;
    for (int i = 0; i < n; i++)
        for (int c = 0; c < m->classes; c++)
            score[c] += weight[(size_t)m->active[i] * (size_t)m->classes + (size_t)c];
}

static void softmax(double *score, int classes) {
    double most = score[0], sum = 0;
    for (int c = 1; c < classes; c++) most = fmax(most, score[c]);
    for (int c = 0; c < classes; c++) sum += score[c] = exp(score[c] - most);
    for (int c = 0; c < classes; c++) score[c] /= sum;
}

/* ---- training: AdaGrad (Duchi, Hazan and Singer 2011) on one row at a time ---- */

static void train_row(Model *m, const Dataset *d, int32_t row, int32_t mark) {
    double p[SCORE_MAX_CLASSES];
    int n = row_features(m, d, row, mark);
    row_scores(m, m->weight, n, p);
    softmax(p, m->classes);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < m->classes; c++) {
            size_t at = (size_t)m->active[i] * (size_t)m->classes + (size_t)c;
            double g = p[c] - (c == d->label[row]);
            m->sum[at] += g * g;
            m->weight[at] -= RATE * g / sqrt(m->sum[at] + 1e-12);
        }
}

static void evaluate(Model *m, const double *weight, const Dataset *d, int32_t mark, Score *s) {
    score_start(s, m->classes);
    for (int32_t row = 0; row < d->n; row++) {
        double score[SCORE_MAX_CLASSES];
        float logits[SCORE_MAX_CLASSES];
        row_scores(m, weight, row_features(m, d, row, mark + row), score);
        for (int c = 0; c < m->classes; c++) logits[c] = (float)score[c];
        score_add(s, logits, d->label[row]);
    }
}

static bool model_open(Model *m, int classes, int32_t pieces, PeftError *err) {
    memset(m, 0, sizeof *m);
    m->classes = classes;
    m->features = pieces + 1;
    size_t n = (size_t)m->features * (size_t)classes;
    m->weight = peft_zalloc(n, sizeof *m->weight, err);
    m->sum = peft_zalloc(n, sizeof *m->sum, err);
    m->best = peft_zalloc(n, sizeof *m->best, err);
    m->seen = peft_zalloc((size_t)m->features, sizeof *m->seen, err);
    m->active = peft_zalloc((size_t)m->features, sizeof *m->active, err);
    return m->weight && m->sum && m->best && m->seen && m->active;
}

static void model_close(Model *m) {
    free(m->weight);
    free(m->sum);
    free(m->best);
    free(m->seen);
    free(m->active);
}

/* The validation score of the best epoch, whose weights stay in m->best. */
static bool train(Model *m, const SplitSet *set, uint64_t seed, Score *validation, PeftError *err) {
    const Dataset *d = set->train;
    int32_t *order = peft_alloc((size_t)d->n, sizeof *order, err);
    double most = -1;
    if (!order) return false;
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        Score s;
        memset(m->seen, 0xff, (size_t)m->features * sizeof *m->seen);
        epoch_order(seed, (uint64_t)epoch, d->n, order);
        for (int32_t i = 0; i < d->n; i++) train_row(m, d, order[i], i);
        evaluate(m, m->weight, set->validation, d->n, &s);
        if (!(score_macro_f1(&s) > most)) continue;
        most = score_macro_f1(&s);
        *validation = s;
        memcpy(m->best, m->weight, (size_t)m->features * (size_t)m->classes * sizeof *m->best);
    }
    free(order);
    return true;
}

/* ---- the command ---- */

static bool usage(void) {
    fprintf(stderr,
            "usage: bow --vocab vocab.txt --data DIR [--task NAME] [--seed N] --out FILE\n");
    return false;
}

static bool parse(Arguments *a, int argc, char **argv) {
    *a = (Arguments){.seed = 42};
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        char *end = NULL;
        if (!value) return usage();
        if (strcmp(name, "--vocab") == 0)
            a->vocab = value;
        else if (strcmp(name, "--data") == 0)
            a->data = value;
        else if (strcmp(name, "--task") == 0)
            a->task = value;
        else if (strcmp(name, "--out") == 0)
            a->out = value;
        else if (strcmp(name, "--seed") == 0)
            a->seed = strtoull(value, &end, 10);
        else
            return usage();
        if (end && (*end || end == value)) return usage();
    }
    return (a->vocab && a->data && a->out) || usage();
}

static bool write_result(const Arguments *a, const Model *m, const SplitSet *set,
                         const Score *validation, const Score *test, PeftError *err) {
    json_t *o = json_pack("{s:i, s:s, s:s, s:I, s:i, s:I, s:i, s:i, s:f, s:f, s:f}", "version", 1,
                          "model", "bag of words", "data", a->data, "seed", (json_int_t)a->seed,
                          "classes", m->classes, "trainable_params",
                          (json_int_t)m->features * m->classes, "train_rows", set->train->n,
                          "test_rows", (int)test->n, "val_f1_macro", score_macro_f1(validation),
                          "f1_macro", score_macro_f1(test), "accuracy", score_accuracy(test));
    char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) : NULL;
    bool ok = text ? file_write_atomic(a->out, text, strlen(text), err)
                   : peft_fail(err, "cannot write %s: out of memory", a->out);
    free(text);
    json_decref(o);
    return ok;
}

static bool run(const Arguments *a, PeftError *err) {
    SplitSet set = {0};
    Model m = {0};
    Score validation, test;
    WordPiece *wp = wordpiece_load(a->vocab, err);
    bool ok = wp && data_open(a->data, a->task, &set, err);
    if (ok && (!set.train->label || !set.test))
        ok = peft_fail(err, "%s has no %s; the baseline needs both", a->data,
                       set.train->label ? "test set" : "labels");
    if (ok && set.classes > SCORE_MAX_CLASSES)
        ok = peft_fail(err, "%s has %d classes, the limit is %d", a->data, set.classes,
                       SCORE_MAX_CLASSES);
    ok = ok && splits_tokenize(&set, wp, MAX_POSITIONS, err) &&
         model_open(&m, set.classes, wordpiece_size(wp), err) &&
         train(&m, &set, a->seed, &validation, err);
    if (ok) {
        evaluate(&m, m.best, set.test, set.train->n + set.validation->n, &test);
        ok = write_result(a, &m, &set, &validation, &test, err);
    }
    model_close(&m);
    splits_free(&set);
    wordpiece_free(wp);
    return ok;
}

int main(int argc, char **argv) {
    Arguments a;
    PeftError err = {{0}, 0};
    if (!parse(&a, argc, argv)) return 2;
    if (run(&a, &err)) return 0;
    fprintf(stderr, "bow: error: %s\n", err.msg);
    return 1;
}
