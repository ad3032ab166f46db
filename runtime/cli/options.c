/* See options.h. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum OptionKind { OPT_TEXT, OPT_COUNT, OPT_FLAG, OPT_WEIGHTS, OPT_SET } OptionKind;

#define V(verb)    (1u << VERB_##verb)
#define DATA_VERBS (V(TRAIN) | V(EVAL) | V(PLAN) | V(PROFILE))

typedef struct OptionRow {
    const char *name, *value;
    OptionKind kind;
    size_t at;
    unsigned verbs;
    const char *help;
} OptionRow;

static const OptionRow rows[] = {
    {"--base", "DIR", OPT_TEXT, offsetof(Options, base),
     DATA_VERBS | V(PREDICT) | V(REPLAY) | V(TOKENIZE),
     "pretrained encoder: config.json, model.safetensors, vocab.txt"},
    {"--data", "DIR", OPT_TEXT, offsetof(Options, data), DATA_VERBS,
     "train.tsv and dev.tsv, or AG News CSV, or train.txt for pre-training"},
    {"--out", "DIR", OPT_TEXT, offsetof(Options, out), V(TRAIN), "where results go"},
    {"--from", "DIR", OPT_TEXT, offsetof(Options, from), V(EVAL) | V(PREDICT),
     "a folder that train wrote"},
    {"--task", "NAME", OPT_TEXT, offsetof(Options, task), DATA_VERBS,
     "sst2 or agnews; default: by the files found"},
    {"--set", "K=V", OPT_SET, 0, DATA_VERBS | V(REPLAY),
     "fit.epochs, fit.batch, fit.accumulate, fit.lr, fit.warmup, fit.weight_decay, fit.clip, fit.seed"},
    {"--device", "NAME", OPT_TEXT, offsetof(Options, device), DATA_VERBS | V(PREDICT) | V(REPLAY),
     "cpu (default), cuda, auto: cuda where it can be used, or null: compute nothing, only check"},
    {"--compute", "TYPE", OPT_TEXT, offsetof(Options, compute), DATA_VERBS | V(PREDICT) | V(REPLAY),
     "cuda only: bf16 (default; sums and master weights in fp32) or fp32"},
    {"--threads", "N", OPT_COUNT, offsetof(Options, threads), DATA_VERBS | V(PREDICT) | V(REPLAY),
     "default: all processors; the result does not depend on it"},
    {"--memory", "SIZE", OPT_TEXT, offsetof(Options, budget), DATA_VERBS,
     "refuse a plan larger than this, e.g. 1.5G"},
    {"--resume", NULL, OPT_FLAG, offsetof(Options, resume), V(TRAIN),
     "go on from the checkpoint in --out"},
    {"--overwrite", NULL, OPT_FLAG, offsetof(Options, overwrite), V(TRAIN),
     "replace the finished run in --out"},
    {"--checkpoint-every", "N", OPT_COUNT, offsetof(Options, checkpoint_every), V(TRAIN),
     "steps between checkpoints; default: one a minute"},
    {"--scratch", NULL, OPT_FLAG, offsetof(Options, scratch), V(TRAIN) | V(PLAN) | V(PROFILE),
     "initialise every tensor instead of loading it (pre-training)"},
    {"--weights", "FILE", OPT_WEIGHTS, 0, V(REPLAY),
     "initial tensors by name; repeatable, later files win"},
    {"--batch", "FILE", OPT_TEXT, offsetof(Options, batch), V(REPLAY),
     "tokens, offsets, labels as safetensors"},
    {"--dump", "FILE", OPT_TEXT, offsetof(Options, dump), V(REPLAY),
     "where results go, as safetensors"},
    {"--steps", "N", OPT_COUNT, offsetof(Options, steps), V(REPLAY) | V(PROFILE) | V(TRAIN),
     "optimizer steps (train: stop early after N)"},
    {"--csv", "FILE", OPT_TEXT, offsetof(Options, csv), V(PROFILE),
     "the tables by pass, kernel and model line, as CSV"},
    {"--trace", "FILE", OPT_TEXT, offsetof(Options, trace), V(PROFILE),
     "an average step for chrome://tracing or ui.perfetto.dev"},
    {"--json", NULL, OPT_FLAG, offsetof(Options, json),
     V(ABOUT) | V(PLAN) | V(PROFILE) | V(EVAL) | V(PREDICT) | V(TOKENIZE) | V(DEVICES),
     "machine-readable output"},
    {"--help", NULL, OPT_FLAG, offsetof(Options, help), ~0u, "this text"},
};
enum { NROWS = sizeof rows / sizeof *rows };

static const struct {
    const char *name, *summary, *example;
} verbs[VERB_COUNT] = {
    [VERB_ABOUT] = {"", "what this program is", ""},
    [VERB_TRAIN] = {"train", "fine-tune", "train --base BASE --data DATA --out out"},
    [VERB_EVAL] = {"eval", "score a trained folder on the test set", "eval --from out --data DATA"},
    [VERB_PREDICT] = {"predict", "classify phrases",
                      "predict --from out \"a delight from start to finish\""},
    [VERB_PLAN] = {"plan", "memory before anything runs", "plan --base BASE --data DATA"},
    [VERB_PROFILE] = {"profile", "time and bytes per kernel and model line",
                      "profile --base BASE --data DATA --steps 20"},
    [VERB_REPLAY] =
        {"replay", "gradients and steps on a fixed batch",
         "replay --weights base.safetensors --weights lora.safetensors --batch b.safetensors --dump out.safetensors"},
    [VERB_TOKENIZE] = {"tokenize", "lines on stdin, token ids on stdout",
                       "tokenize --base BASE < lines.txt"},
    [VERB_DEVICES] = {"devices", "what this machine can run on", "devices"},
};

void options_help(Verb verb, const char *program) {
    if (verb == VERB_ABOUT) {
        for (int v = 1; v < VERB_COUNT; v++) printf("  %s %s\n", program, verbs[v].example);
        printf("\n`%s VERB --help` explains a verb's options.\n", program);
        return;
    }
    printf("%s %s\n\n%s: %s\n\n", program, verbs[verb].example, verbs[verb].name,
           verbs[verb].summary);
    for (int i = 0; i < NROWS; i++) {
        if (!(rows[i].verbs >> verb & 1)) continue;
        char left[40];
        snprintf(left, sizeof left, "%s %s", rows[i].name, rows[i].value ? rows[i].value : "");
        printf("  %-22s %s\n", left, rows[i].help);
    }
}

/* ---- "did you mean" ---- */

/* Optimal string alignment distance of two short words, 9 when it is larger than 8. */
static int distance(const char *a, const char *b) {
    enum { MAX = 32 };
    size_t n = strlen(a), m = strlen(b);
    int d[MAX + 1][MAX + 1];
    if (n > MAX || m > MAX) return 9;
    for (size_t i = 0; i <= n; i++) d[i][0] = (int)i;
    for (size_t j = 0; j <= m; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m] > 8 ? 9 : d[n][m];
}

static void keep_nearest(const char *word, const char *candidate, const char **best, int *best_d) {
    int d = distance(word, candidate);
    if (d <= 2 && d < *best_d) {
        *best = candidate;
        *best_d = d;
    }
}

static bool usage(PeftError *err, const char *what, const char *word, const char *nearest) {
    err->code = 2;
    if (nearest) return peft_fail(err, "%s '%s'; did you mean %s?", what, word, nearest);
    return peft_fail(err, "%s '%s'; --help lists what there is", what, word);
}

static bool find_verb(Options *o, const char *word, PeftError *err) {
    const char *nearest = NULL;
    int d = 9;
    for (int v = 1; v < VERB_COUNT; v++) {
        if (strcmp(verbs[v].name, word) == 0) {
            o->verb = (Verb)v;
            return true;
        }
        keep_nearest(word, verbs[v].name, &nearest, &d);
    }
    return usage(err, "unknown verb", word, nearest);
}

static const OptionRow *find_option(const char *word, Verb verb, PeftError *err) {
    const char *nearest = NULL;
    int d = 9;
    for (int i = 0; i < NROWS; i++) {
        if (strcmp(rows[i].name, word) == 0) {
            if (rows[i].verbs >> verb & 1) return &rows[i];
            err->code = 2;
            peft_fail(err, "%s does not go with '%s'; `%s --help` lists what does", word,
                      verbs[verb].name, verbs[verb].name);
            return NULL;
        }
        if (rows[i].verbs >> verb & 1) keep_nearest(word, rows[i].name, &nearest, &d);
    }
    usage(err, "unknown option", word, nearest);
    return NULL;
}

/* ---- values ---- */

static bool parse_count(const char *name, const char *text, int64_t *out, PeftError *err) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || *end || end == text || v < 1 || v > 1000000000) {
        err->code = 2;
        return peft_fail(err, "%s takes a whole number from 1 to 1000000000, not '%s'", name, text);
    }
    *out = v;
    return true;
}

int64_t parse_bytes(const char *text, PeftError *err) {
    char *end;
    double v = strtod(text, &end);
    static const struct {
        const char *unit;
        double by;
    } units[] = {
        {"", 1},    {"K", 1e3},  {"KB", 1e3},   {"M", 1e6},       {"MB", 1e6},
        {"G", 1e9}, {"GB", 1e9}, {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824},
    };
    for (size_t i = 0; end != text && i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].unit) == 0 && v > 0 && v * units[i].by < 9e15)
            return (int64_t)(v * units[i].by);
    err->code = 2;
    peft_fail(err, "'%s' is not a size; write for example 1.5G, 300MB or 512MiB", text);
    return -1;
}

static bool store(Options *o, const OptionRow *r, const char *value, PeftError *err) {
    char *at = (char *)o + r->at;
    switch (r->kind) {
    case OPT_TEXT: *(const char **)at = value; return true;
    case OPT_FLAG: *(bool *)at = true; return true;
    case OPT_COUNT: return parse_count(r->name, value, (int64_t *)at, err);
    case OPT_WEIGHTS:
        if (o->nweights == MODEL_MAX_SOURCES)
            return usage(err, "too many --weights at", value, NULL);
        o->weights[o->nweights++] = value;
        return true;
    case OPT_SET:
        if (o->nset == MAX_SETS) return usage(err, "too many --set at", value, NULL);
        o->set[o->nset++] = value;
        return true;
    }
    return false;
}

static bool stray(Verb verb, const char *word, PeftError *err) {
    err->code = 2;
    if (verb == VERB_ABOUT)
        return peft_fail(err, "unexpected argument '%s'; a verb comes before its options", word);
    return peft_fail(err, "unexpected argument '%s'; %s takes options only, `%s --help` lists them",
                     word, verbs[verb].name, verbs[verb].name);
}

bool options_parse(Options *o, int argc, char **argv, PeftError *err) {
    memset(o, 0, sizeof *o);
    int i = 1;
    if (i < argc && argv[i][0] != '-' && !find_verb(o, argv[i++], err)) return false;
    for (; i < argc; i++) {
        const char *word = argv[i];
        if (word[0] != '-' && o->verb == VERB_PREDICT) {
            o->text = argv + i; /* the phrases are the rest of the line */
            o->ntext = argc - i;
            break;
        }
        if (word[0] != '-') return stray(o->verb, word, err);
        char name[64];
        const char *eq = strchr(word, '=');
        size_t n = eq && strncmp(word, "--", 2) == 0 ? (size_t)(eq - word) : strlen(word);
        if (n >= sizeof name) return usage(err, "unknown option", word, NULL);
        memcpy(name, word, n);
        name[n] = 0;
        if (strcmp(name, "-h") == 0) memcpy(name, "--help", 7);
        const OptionRow *r = find_option(name, o->verb, err);
        if (!r) return false;
        const char *value = word[n] == '=' ? word + n + 1 : NULL;
        if (r->kind != OPT_FLAG && !value && ++i < argc) value = argv[i];
        if ((r->kind == OPT_FLAG) != (value == NULL)) {
            err->code = 2;
            return peft_fail(err,
                             r->kind == OPT_FLAG ? "%s takes no value" : "%s needs a value: %s",
                             r->name, r->value);
        }
        if (!store(o, r, value, err)) return false;
    }
    return true;
}

/* ---- --set fit.NAME=VALUE ---- */

static bool set_number(const char *key, const char *text, double low, double high, bool whole,
                       double *out, PeftError *err) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= low && v <= high) || (whole && v != floor(v))) {
        err->code = 2;
        return peft_fail(err, "--set %s takes a %s from %g to %g, not '%s'", key,
                         whole ? "whole number" : "number", low, high, text);
    }
    *out = v;
    return true;
}

static bool set_warmup(PeftFit *fit, const char *key, const char *text, PeftError *err) {
    char *end;
    double v = strtod(text, &end);
    if (end != text && strcmp(end, "%") == 0 && v >= 0 && v <= 100) {
        fit->warmup_ratio = v / 100;
        fit->warmup_steps = -1;
        return true;
    }
    if (!set_number(key, text, 0, 1e9, true, &v, err)) return false;
    fit->warmup_steps = (int64_t)v;
    return true;
}

static bool set_one(PeftFit *fit, const char *pair, PeftError *err) {
    static const char *const names[] = {"fit.epochs", "fit.batch",  "fit.accumulate",
                                        "fit.lr",     "fit.warmup", "fit.weight_decay",
                                        "fit.clip",   "fit.seed"};
    char key[64];
    const char *eq = strchr(pair, '=');
    if (!eq || (size_t)(eq - pair) >= sizeof key)
        return usage(err, "--set takes NAME=VALUE, not", pair, NULL);
    memcpy(key, pair, (size_t)(eq - pair));
    key[eq - pair] = 0;
    const char *text = eq + 1, *nearest = NULL;
    int which = -1, d = 9;
    for (int i = 0; i < 8; i++) {
        if (strcmp(key, names[i]) == 0) which = i;
        keep_nearest(key, names[i], &nearest, &d);
    }
    double v = 0;
    switch (which) {
    case 0:
        if (!set_number(key, text, 1, 100000, true, &v, err)) return false;
        fit->epochs = (int32_t)v;
        return true;
    case 1:
        if (!set_number(key, text, 1, 1e6, true, &v, err)) return false;
        fit->batch = (int32_t)v;
        return true;
    case 2:
        if (!set_number(key, text, 1, 1e6, true, &v, err)) return false;
        if ((v > 1) != (fit->accumulate > 1)) {
            err->code = 2;
            return peft_fail(
                err, "accumulation is compiled in: give --set fit.accumulate=%s to peftc", text);
        }
        fit->accumulate = (int32_t)v;
        return true;
    case 3: return set_number(key, text, 0, 1e3, false, &fit->lr, err);
    case 4: return set_warmup(fit, key, text, err);
    case 5: return set_number(key, text, 0, 1e3, false, &fit->weight_decay, err);
    case 6: return set_number(key, text, 0, 1e30, false, &fit->clip_norm, err);
    case 7:
        if (!set_number(key, text, 0, 9007199254740992.0, true, &v, err)) return false;
        fit->seed = (uint64_t)v;
        return true;
    default: return usage(err, "this program cannot --set", key, nearest);
    }
}

bool options_fit(const Options *o, PeftFit *fit, PeftError *err) {
    for (int i = 0; i < o->nset; i++)
        if (!set_one(fit, o->set[i], err)) return false;
    if (fit->batch % fit->accumulate) {
        err->code = 2;
        return peft_fail(err, "fit.batch = %d is not a multiple of fit.accumulate = %d", fit->batch,
                         fit->accumulate);
    }
    return true;
}
