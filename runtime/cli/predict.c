/* eval and predict: using what train left in a folder. Where the base lies is in its run.json. */
#include "evaluate.h"
#include "room.h"
#include "train_step.h"
#include "verbs.h"

#include "../io/file.h"
#include "../measure.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What run.json says about a trained folder. */
typedef struct Trained {
    char base[3072];
} Trained;

/* The same source compiled with other settings has another number of parameters. */
static bool same_program(const PeftProgram *p, const char *from, const json_t *run,
                         PeftError *err) {
    const json_t *total = json_object_get(run, "total_params");
    const json_t *trainable = json_object_get(run, "trainable_params");
    ModelCount c = model_count(p);
    char a[32], b[32], d[32], e[32];
    if (!total || !trainable ||
        (json_integer_value(total) == c.total && json_integer_value(trainable) == c.trainable))
        return true;
    err->code = 2;
    return peft_fail(
        err,
        "%s was trained by a '%s' of %s parameters, %s of them trainable, and this one "
        "has %s and %s; compile it with the same --base and --set (classes, rank, ...)",
        from, p->name, with_commas(json_integer_value(total), a),
        with_commas(json_integer_value(trainable), b), with_commas(c.total, d),
        with_commas(c.trainable, e));
}

static bool trained_read(const PeftProgram *p, const Options *o, Trained *t, PeftError *err) {
    char path[4096];
    if (!o->from) {
        err->code = 2;
        return peft_fail(err, "--from DIR is missing: a folder that train wrote");
    }
    snprintf(path, sizeof path, "%s/run.json", o->from);
    json_error_t e;
    json_t *o2 = json_load_file(path, 0, &e);
    if (!o2)
        return peft_fail(err, "cannot read %s (%s); is %s a folder that train finished?", path,
                         e.text, o->from);
    const char *program = json_string_value(json_object_get(o2, "program"));
    const char *base = json_string_value(json_object_get(o2, "base"));
    bool ok = true;
    if (!program || strcmp(program, p->name) != 0)
        ok = peft_fail(err, "%s was trained by the program '%s'; this is '%s'", o->from,
                       program ? program : "?", p->name);
    else if (!same_program(p, o->from, o2, err))
        ok = false;
    else if (!base && !o->base)
        ok = peft_fail(err, "%s does not name its base; give --base DIR", path);
    else
        snprintf(t->base, sizeof t->base, "%s", o->base ? o->base : base);
    json_decref(o2);
    return ok;
}

static bool load_trained(Exec *x, const Trained *t, const Options *o, PeftError *err) {
    /* A whole model carries every tensor; an adapter needs its base below it. */
    bool whole = model_layout(x->program) == LAYOUT_MODEL;
    ModelSource src = {.path = {whole ? o->from : t->base, o->from}, .n = whole ? 1 : 2};
    ModelReport report;
    return model_load(x, &src, 0, &report, err);
}

/* ---- eval ---- */

static void print_score(const Session *s, const Score *score, double loss, bool json) {
    if (s->program->task != PEFT_TASK_CLASSIFY)
        printf(json ? "{\"loss\": %.9g}\n" : "loss %.4f\n", loss);
    else if (json)
        printf("{\"f1_macro\": %.9g, \"accuracy\": %.9g, \"loss\": %.9g, \"rows\": %lld}\n",
               score_macro_f1(score), score_accuracy(score), loss, (long long)score->n);
    else
        printf("macro F1 %.4f, accuracy %.4f, loss %.4f on %lld rows\n", score_macro_f1(score),
               score_accuracy(score), loss, (long long)score->n);
}

bool verb_eval(const PeftProgram *p, const Options *o, PeftError *err) {
    Trained t;
    Session s;
    Exec x;
    if (!trained_read(p, o, &t, err) || !session_open(&s, p, o, t.base, err)) return false;
    bool ok = room_exec_open(&x, &s, 1u << PEFT_FN_EVAL, err);
    if (ok) {
        Score score;
        double loss;
        const Dataset *d = s.data.test ? s.data.test : s.data.validation;
        ok = load_trained(&x, &t, o, err) &&
             evaluate(&s, &x, d, "evaluating", &score, &loss, NULL, NULL, err);
        if (ok) print_score(&s, &score, loss, o->json);
        exec_close(&x);
    }
    session_close(&s);
    return ok;
}

/* ---- predict ---- */

static void print_escaped(const char *s) {
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 32)
            printf("\\u%04x", *s);
        else
            putchar(*s);
    }
}

static void print_prediction(const char *text, const float *logits, int classes, bool json) {
    double sum = 0, top = (double)logits[0];
    int best = score_argmax(logits, classes);
    for (int c = 1; c < classes; c++) top = fmax(top, (double)logits[c]);
    for (int c = 0; c < classes; c++) sum += exp((double)logits[c] - top);
    double p = best < 0 ? NAN : exp((double)logits[best] - top) / sum;
    if (!json) {
        printf("%d  %.4f  %s\n", best, p, text);
        return;
    }
    printf("{\"text\": \"");
    print_escaped(text);
    printf("\", \"label\": %d, \"probabilities\": [", best);
    for (int c = 0; c < classes; c++)
        printf("%s%.6f", c ? ", " : "", exp((double)logits[c] - top) / sum);
    printf("]}\n");
}

static bool predict_one(Exec *x, const WordPiece *wp, const char *text, int32_t *ids, bool json,
                        PeftError *err) {
    bool cut = false;
    int32_t sample = 0;
    int64_t sym[PEFT_SYM_COUNT];
    int n = wordpiece_encode(wp, text, strlen(text), ids, (int)x->program->config.positions, &cut);
    int32_t offsets[2] = {0, n}, label = 0;
    if (cut)
        fprintf(stderr, "a text is longer than the model's %lld positions and was cut\n",
                (long long)x->program->config.positions);
    FeedBatch b = {
        .tokens = ids, .offsets = offsets, .sample = &sample, .labels = &label, .sequences = 1};
    feed_counts(x, 1, 0);
    feed_rng(x, 0, 0, false);
    if (!feed_batch(x, &b, sym, err) || !exec_run(x, PEFT_FN_EVAL, sym, err)) return false;
    print_prediction(text, exec_output(x, PEFT_FN_EVAL, "logits", NULL),
                     (int)x->program->config.classes, json);
    return true;
}

/* Phrases from the command line, or one a line from stdin. */
static bool predict_all(Exec *x, const Options *o, const WordPiece *wp, PeftError *err) {
    int32_t *ids = peft_alloc((size_t)x->program->config.positions, sizeof *ids, err);
    bool ok = ids != NULL;
    for (int i = 0; ok && i < o->ntext; i++) ok = predict_one(x, wp, o->text[i], ids, o->json, err);
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    while (ok && !o->ntext && (n = getline(&line, &room, stdin)) >= 0) {
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        ok = predict_one(x, wp, line, ids, o->json, err);
        fflush(stdout);
    }
    free(line);
    free(ids);
    return ok;
}

bool verb_predict(const PeftProgram *p, const Options *o, PeftError *err) {
    Trained t;
    Exec x;
    int64_t sym[PEFT_SYM_COUNT];
    if (p->task != PEFT_TASK_CLASSIFY) {
        err->code = 2;
        return peft_fail(err, "%s is not a classifier: there is nothing to predict", p->name);
    }
    if (!trained_read(p, o, &t, err) || !session_check_device(o, err) ||
        !session_check_base(p, t.base, err))
        return false;
    WordPiece *wp = session_vocabulary(p, t.base, err);
    if (!wp) return false;
    feed_symbols(p->config.positions, 1, 0, p->config.positions, sym);
    bool ok = exec_open(&x, p, 1u << PEFT_FN_EVAL, session_device(o), session_compute(o),
                        session_threads(o), sym, sym, 0, err);
    if (ok) {
        ok = load_trained(&x, &t, o, err) && predict_all(&x, o, wp, err);
        exec_close(&x);
    }
    wordpiece_free(wp);
    return ok;
}

/* ---- tokenize ---- */

bool verb_tokenize(const PeftProgram *p, const Options *o, PeftError *err) {
    if (!o->base) {
        err->code = 2;
        return peft_fail(err, "--base DIR is missing: the folder with vocab.txt");
    }
    WordPiece *wp = session_vocabulary(p, o->base, err);
    if (!wp) return false;
    int max = (int)p->config.positions;
    int32_t *ids = peft_alloc((size_t)max, sizeof *ids, err);
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    while (ids && (n = getline(&line, &room, stdin)) >= 0) {
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        int k = wordpiece_encode(wp, line, (size_t)n, ids, max, NULL);
        if (o->json) putchar('[');
        for (int i = 0; i < k; i++) printf("%s%d", i ? (o->json ? ", " : " ") : "", ids[i]);
        puts(o->json ? "]" : "");
    }
    bool ok = ids && !ferror(stdin) && fflush(stdout) == 0;
    if (ids && !ok) peft_fail(err, "cannot read lines from stdin or write to stdout");
    free(line);
    free(ids);
    wordpiece_free(wp);
    return ok;
}
