/* See session.h. */
#include "session.h"
#include "../cuda/code.h"
#include "../feed.h"
#include "../io/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- options that need more than parsing ---- */

static bool find_device(const char *name, Device *d) {
    for (*d = DEVICE_CPU; *d <= DEVICE_NULL; ++*d)
        if (!name || strcmp(name, device_name(*d)) == 0) return true;
    return false;
}

bool session_cuda_usable(const PeftProgram *p, Compute compute, CudaDevice *gpu, PeftError *err) {
    CudaApi *api;
    if (!cuda_api_open(&api, err)) return false;
    bool ok = cuda_device_open_first(api, gpu, err);
    if (ok) cuda_device_close(api, gpu);
    ok = ok && (cuda_code_is_built_in(p, compute, gpu->major, gpu->minor) ||
                cuda_api_need_compiler(api, err));
    cuda_api_close(api);
    return ok;
}

void session_choose_device(Options *o, const PeftProgram *p) {
    CudaDevice gpu;
    PeftError why = {{0}, 0};
    bool fp32 = o->compute && strcmp(o->compute, "fp32") == 0;
    if (!o->device || strcmp(o->device, "auto") != 0) return;
    if (session_cuda_usable(p, fp32 ? COMPUTE_FP32 : COMPUTE_BF16, &gpu, &why)) {
        o->device = device_name(DEVICE_CUDA);
        fprintf(stderr, "device: cuda; %s, compute capability %d.%d, %.0f MB free\n", gpu.name,
                gpu.major, gpu.minor, (double)gpu.free_bytes / 1e6);
    } else {
        o->device = device_name(DEVICE_CPU);
        fprintf(stderr, "device: cpu; %s\n", why.msg);
    }
}

bool session_check_device(const Options *o, PeftError *err) {
    Device d;
    err->code = 2;
    if (!find_device(o->device, &d))
        return peft_fail(err, "--device is cpu, cuda, auto or null, not '%s'", o->device);
    if (o->compute && strcmp(o->compute, "bf16") != 0 && strcmp(o->compute, "fp32") != 0)
        return peft_fail(err, "--compute is bf16 or fp32, not '%s'", o->compute);
    if (o->compute && strcmp(o->compute, "bf16") == 0 && d != DEVICE_CUDA)
        return peft_fail(err, "--compute bf16 needs --device cuda; %s computes in fp32",
                         device_name(d));
    err->code = 0;
    return true;
}

Device session_device(const Options *o) {
    Device d;
    return find_device(o->device, &d) ? d : DEVICE_CPU;
}

Compute session_compute(const Options *o) {
    bool fp32 = session_device(o) != DEVICE_CUDA || (o->compute && strcmp(o->compute, "fp32") == 0);
    return fp32 ? COMPUTE_FP32 : COMPUTE_BF16;
}

int session_threads(const Options *o) {
    long n = o->threads ? (long)o->threads : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 256 ? 256 : (int)n;
}

/* ---- base ---- */

static bool same_number(const char *base, const char *key, int64_t compiled, int64_t found,
                        PeftError *err) {
    if (compiled == found) return true;
    err->code = 2;
    return peft_fail(
        err,
        "%s/config.json has %s = %lld and the program was compiled for %lld; compile it again: "
        "peftc MODEL.bert --base %s -o run",
        base, key, (long long)found, (long long)compiled, base);
}

bool session_check_base(const PeftProgram *p, const char *base, PeftError *err) {
    BertConfig c;
    if (!config_read(base, &c, err)) return false;
    const PeftConfig *w = &p->config;
    return same_number(base, "hidden_size", w->hidden, c.hidden, err) &&
           same_number(base, "num_hidden_layers", w->layers, c.layers, err) &&
           same_number(base, "num_attention_heads", w->heads, c.heads, err) &&
           same_number(base, "intermediate_size", w->ffn, c.ffn, err) &&
           same_number(base, "vocab_size", w->vocab, c.vocab_size, err) &&
           same_number(base, "max_position_embeddings", w->positions, c.positions, err) &&
           same_number(base, "type_vocab_size", w->types, c.types, err);
}

WordPiece *session_vocabulary(const PeftProgram *p, const char *base, PeftError *err) {
    char path[4096];
    snprintf(path, sizeof path, "%s/vocab.txt", base);
    WordPiece *wp = wordpiece_load(path, err);
    if (!wp || wordpiece_size(wp) == p->config.vocab) return wp;
    peft_fail(
        err,
        "%s has %d tokens and config.json says vocab_size = %lld; the two do not belong together",
        path, wordpiece_size(wp), (long long)p->config.vocab);
    wordpiece_free(wp);
    return NULL;
}

/* ---- data ---- */

static bool check_classes(const Session *s, PeftError *err) {
    int64_t classes = s->program->config.classes;
    if (s->program->task == PEFT_TASK_MLM) return true;
    if (s->program->task == PEFT_TASK_REGRESS) {
        err->code = 2;
        return peft_fail(
            err,
            "%s predicts a number, and data files carry class labels; only replay runs it so far",
            s->program->name);
    }
    if (!s->data.train->label)
        return peft_fail(err, "%s has no labels, and %s is a classifier", s->data.train->path,
                         s->program->name);
    if (s->data.classes == classes) return true;
    err->code = 2;
    return peft_fail(
        err,
        "%s has %d classes and the program was compiled for %lld; compile it again with --set classes=%d",
        s->options->data, s->data.classes, (long long)classes, s->data.classes);
}

static void tell_about_rows(const Dataset *d) {
    if (d && d->truncated)
        fprintf(stderr, "%s: %d of %d texts are longer than the model's positions and were cut\n",
                d->path, d->truncated, d->n);
    if (d && d->invalid_utf8)
        fprintf(stderr,
                "%s: %d texts are not valid UTF-8; the bytes in question were read as U+FFFD\n",
                d->path, d->invalid_utf8);
}

static uint64_t hash_ints(uint64_t h, const int32_t *v, int64_t n) {
    for (int64_t i = 0; v && i < n; i++) h = (h ^ (uint32_t)v[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_data(const SplitSet *set) {
    uint64_t h = 0xcbf29ce484222325u;
    const Dataset *all[] = {set->train, set->validation, set->test};
    for (int i = 0; i < 3; i++) {
        if (!all[i]) continue;
        h = hash_ints(h, all[i]->offsets, all[i]->n + 1);
        h = hash_ints(h, all[i]->tokens, all[i]->offsets[all[i]->n]);
        h = hash_ints(h, all[i]->label, all[i]->n);
    }
    return h;
}

/* ---- worst batches: the shuffles of all epochs are known ---- */

static void bounds_symbols(const Session *s, const BatchBounds *b, int64_t sym[PEFT_SYM_COUNT]) {
    const Options *o = s->options;
    feed_symbols(b->tokens, b->sequences, b->masked, b->longest, sym);
    exec_device_symbols(session_device(o), session_compute(o), session_threads(o), sym);
}

bool session_worst(const Session *s, int32_t batch, int64_t train_sym[PEFT_SYM_COUNT],
                   int64_t eval_sym[PEFT_SYM_COUNT], int64_t *batch_tokens, PeftError *err) {
    const SplitSet *set = &s->data;
    const PeftFit *f = &s->fit;
    int32_t micro = batch / f->accumulate;
    const WordPiece *masker = s->program->task == PEFT_TASK_MLM ? s->vocabulary : NULL;
    BatchBounds train = {0}, eval = {0};
    if (!batch_worst(set->train, masker, f->seed, f->epochs, batch, micro, &train, err) ||
        !batch_worst(set->validation, masker, f->seed, 0, micro, micro, &eval, err) ||
        (set->test && !batch_worst(set->test, masker, f->seed, 0, micro, micro, &eval, err)))
        return false;
    bounds_symbols(s, &train, train_sym);
    bounds_symbols(s, &eval, eval_sym);
    if (batch_tokens) *batch_tokens = train.batch_tokens;
    return true;
}

/* ---- opening ---- */

static bool open_data(Session *s, PeftError *err) {
    const Options *o = s->options;
    if (!data_open(o->data, o->task, &s->data, err) || !check_classes(s, err) ||
        !splits_tokenize(&s->data, s->vocabulary, (int)s->program->config.positions, err))
        return false;
    tell_about_rows(s->data.train);
    tell_about_rows(s->data.validation);
    tell_about_rows(s->data.test);
    s->data_hash = hash_data(&s->data);
    s->steps_per_epoch = (s->data.train->n + s->fit.batch - 1) / s->fit.batch;
    s->total_steps = s->steps_per_epoch * s->fit.epochs;
    return session_worst(s, s->fit.batch, s->train_sym, s->eval_sym, &s->batch_tokens, err);
}

bool session_open(Session *s, const PeftProgram *p, const Options *o, const char *base,
                  PeftError *err) {
    memset(s, 0, sizeof *s);
    s->program = p;
    s->options = o;
    s->fit = p->fit;
    if (!base || !o->data) {
        err->code = 2;
        return peft_fail(err, "--%s DIR is missing; --help shows an example",
                         base ? "data" : "base");
    }
    s->budget = o->budget ? parse_bytes(o->budget, err) : 0;
    bool ok = s->budget >= 0 && session_check_device(o, err) && options_fit(o, &s->fit, err) &&
              session_check_base(p, base, err);
    s->vocabulary = ok ? session_vocabulary(p, base, err) : NULL;
    ok = s->vocabulary && open_data(s, err);
    if (!ok) session_close(s);
    return ok;
}

void session_close(Session *s) {
    splits_free(&s->data);
    wordpiece_free(s->vocabulary);
    memset(s, 0, sizeof *s);
}
