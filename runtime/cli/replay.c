/* replay: the parity door. One fixed batch, given initial tensors, dropout off; writes logits, loss
 * and every gradient of the first step, or the losses and final parameters of N optimizer steps. */
#include "session.h"
#include "verbs.h"

#include "../feed.h"
#include "../storage.h"
#include "../io/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct FixedBatch {
    FeedBatch feed;
    int32_t *tokens, *offsets, *labels, *sample, *positions, *ids;
    float *targets;
} FixedBatch;

static void fixed_free(FixedBatch *b) {
    free(b->tokens);
    free(b->offsets);
    free(b->labels);
    free(b->targets);
    free(b->sample);
    free(b->positions);
    free(b->ids);
}

static bool read_ids(const SafeTensors *st, const char *name, bool required, int32_t **out,
                     int64_t *n, PeftError *err) {
    const StTensor *t = st_find(st, name);
    *n = 0;
    if (!t && required)
        return peft_fail(err,
                         "%s has no tensor '%s'; a batch is tokens [T], offsets [S+1], labels [S]",
                         st_path(st), name);
    if (!t) return true;
    if (t->rank != 1 || t->count > 1 << 24)
        return peft_fail(err, "%s: '%s' must be a vector of at most 16777216 numbers", st_path(st),
                         name);
    *n = t->count;
    *out = peft_alloc((size_t)t->count, sizeof **out, err);
    return *out && st_read_i32(t, *out, 0, t->count, err);
}

static bool read_targets(const SafeTensors *st, int64_t sequences, float **out, PeftError *err) {
    const StTensor *t = st_find(st, "targets");
    if (!t) return true;
    if (t->count != sequences)
        return peft_fail(err, "%s: %lld targets for %lld sequences", st_path(st),
                         (long long)t->count, (long long)sequences);
    *out = peft_alloc((size_t)t->count, sizeof **out, err);
    return *out && st_read_f32(t, *out, 0, t->count, err);
}

static bool fixed_read(FixedBatch *b, const char *path, PeftError *err) {
    int64_t tokens = 0, offsets = 0, labels = 0, positions = 0, ids = 0;
    memset(b, 0, sizeof *b);
    SafeTensors *st = st_open(path, err);
    if (!st) return false;
    bool ok = read_ids(st, "tokens", true, &b->tokens, &tokens, err) &&
              read_ids(st, "offsets", true, &b->offsets, &offsets, err) &&
              read_ids(st, "labels", false, &b->labels, &labels, err) &&
              read_ids(st, "masked_positions", false, &b->positions, &positions, err) &&
              read_ids(st, "masked_ids", false, &b->ids, &ids, err);
    if (ok && (offsets < 2 || b->offsets[offsets - 1] != tokens))
        ok = peft_fail(err, "%s: offsets must have S + 1 entries and end at the %lld tokens", path,
                       (long long)tokens);
    if (ok && ((b->labels && labels != offsets - 1) || positions != ids))
        ok = peft_fail(
            err, "%s: %lld labels for %lld sequences, %lld masked positions for %lld ids", path,
            (long long)labels, (long long)offsets - 1, (long long)positions, (long long)ids);
    ok = ok && read_targets(st, offsets - 1, &b->targets, err);
    b->sample = ok ? peft_zalloc((size_t)offsets, sizeof *b->sample, err) : NULL;
    for (int64_t s = 0; b->sample && s + 1 < offsets; s++) b->sample[s] = (int32_t)s;
    b->feed = (FeedBatch){.tokens = b->tokens,
                          .offsets = b->offsets,
                          .sample = b->sample,
                          .labels = b->labels,
                          .targets = b->targets,
                          .sequences = (int32_t)(offsets - 1),
                          .masked_positions = b->positions,
                          .masked_ids = b->ids,
                          .masked = (int32_t)positions};
    st_close(st);
    return ok && b->sample;
}

static void fixed_symbols(const FixedBatch *b, int64_t sym[PEFT_SYM_COUNT]) {
    int64_t longest = 1;
    for (int s = 0; s < b->feed.sequences; s++) {
        int64_t n = (int64_t)b->offsets[s + 1] - b->offsets[s];
        if (n > longest) longest = n;
    }
    feed_symbols(b->offsets[b->feed.sequences], b->feed.sequences, b->feed.masked, longest, sym);
}

/* ---- writing ---- */

typedef struct Dump {
    StWriter *w;
    struct {
        int handle;
        const void *data;
        uint64_t bytes;
    } * item;
    int n;
} Dump;

static bool dump_add(Dump *d, const char *name, int rank, const int64_t *dims, const void *data,
                     PeftError *err) {
    uint64_t count = 1;
    for (int i = 0; i < rank; i++) count *= (uint64_t)dims[i];
    int h = st_writer_add(d->w, name, ST_F32, rank, dims, err);
    d->item[d->n].handle = h;
    d->item[d->n].data = data;
    d->item[d->n++].bytes = count * sizeof(float);
    return h >= 0;
}

static bool dump_outputs(Dump *d, const Exec *x, PeftFn fn, const int64_t *sym, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    for (int i = 0; i < f->nout; i++) {
        const PeftOutput *out = &f->out[i];
        int64_t dims[PEFT_MAX_RANK] = {1, 1};
        for (int k = 0; k < out->rank; k++) dims[k] = peft_dim(out->dim[k], sym);
        if (!dump_add(d, out->name, out->rank ? out->rank : 1, dims,
                      exec_output(x, fn, out->name, NULL), err))
            return false;
    }
    return true;
}

/* A variable as floats, in its own place: nothing runs any more. */
static bool widen(Exec *x, int var, PeftError *err) {
    const PeftVar *v = &x->program->var[var];
    int64_t n = var_count(v);
    float *value = peft_alloc((size_t)n, sizeof *value, err);
    if (!value) return false;
    storage_get(exec_var(x, var), v->dtype, (int)x->train_sym[PEFT_SYM_W], n, 0, n, value);
    memcpy(exec_var(x, var), value, (size_t)n * sizeof *value);
    free(value);
    return true;
}

static bool dump_params(Dump *d, Exec *x, PeftError *err) {
    if (!exec_pull(x, err)) return false;
    for (int i = 0; i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        char name[512];
        if (v->is_state || !v->trainable) continue;
        snprintf(name, sizeof name, "param.%s", v->name);
        if (!widen(x, i, err) || !dump_add(d, name, v->rank, v->dim, exec_var(x, i), err))
            return false;
    }
    return true;
}

static bool dump_finish(Dump *d, PeftError *err) {
    if (!st_writer_begin(d->w, err)) return false;
    for (int i = 0; i < d->n; i++)
        if (!st_writer_put(d->w, d->item[i].handle, d->item[i].data, d->item[i].bytes, err))
            return false;
    StWriter *w = d->w;
    d->w = NULL;
    return st_writer_finish(w, err);
}

/* ---- running ---- */

/* One optimizer step, in the program's micro-batches; *loss is the whole batch's. */
static bool one_step(Exec *x, const FixedBatch *b, int64_t step, int parts, float *loss,
                     PeftError *err) {
    const FeedBatch *f = &b->feed;
    feed_rng(x, 0, step, false);
    feed_counts(x, f->sequences, f->masked);
    double sum = 0;
    int64_t sym[PEFT_SYM_COUNT];
    int32_t *offsets = peft_alloc((size_t)f->sequences + 1, sizeof *offsets, err);
    int32_t *positions = peft_alloc((size_t)f->masked, sizeof *positions, err);
    bool ok = offsets && positions;
    for (int i = 0; ok && i < parts; i++) {
        int s0 = (int)((int64_t)f->sequences * i / parts);
        int s1 = (int)((int64_t)f->sequences * (i + 1) / parts);
        FeedBatch part;
        if (s0 == s1) continue;
        feed_part(f, s0, s1, offsets, positions, &part);
        ok = feed_batch(x, &part, sym, err) && exec_run(x, PEFT_FN_TRAIN, sym, err);
        if (ok) sum += *(const float *)exec_output(x, PEFT_FN_TRAIN, "loss", NULL);
    }
    if (ok && x->program->fn[PEFT_FN_UPDATE].nstep) ok = exec_run(x, PEFT_FN_UPDATE, sym, err);
    free(offsets);
    free(positions);
    *loss = (float)sum;
    return ok;
}

static bool replay(Exec *x, const Options *o, const FixedBatch *b, const PeftFit *fit,
                   const int64_t *worst, PeftError *err) {
    const PeftProgram *p = x->program;
    bool train = o->steps > 0;
    int64_t sym[PEFT_SYM_COUNT], n = o->steps;
    float *losses = peft_alloc((size_t)(train ? n : 1), sizeof *losses, err);
    Dump d = {.w = st_writer_new(o->dump, err)};
    d.item = peft_zalloc((size_t)p->nvar + (size_t)p->fn[PEFT_FN_GRADIENTS].nout + 1,
                         sizeof *d.item, err);
    bool ok = losses && d.w && d.item;
    feed_schedule(x, fit, train ? n : 1);
    for (int64_t i = 0; ok && train && i < n; i++)
        ok = one_step(x, b, i, fit->accumulate, &losses[i], err);
    if (ok && !train) {
        feed_rng(x, 0, 0, false);
        feed_counts(x, b->feed.sequences, b->feed.masked);
        ok = feed_batch(x, &b->feed, sym, err) && exec_run(x, PEFT_FN_GRADIENTS, sym, err) &&
             dump_outputs(&d, x, PEFT_FN_GRADIENTS, worst, err);
    }
    if (ok && train) ok = dump_add(&d, "losses", 1, &n, losses, err) && dump_params(&d, x, err);
    ok = ok && dump_finish(&d, err);
    st_writer_abort(d.w);
    free(d.item);
    free(losses);
    return ok;
}

bool verb_replay(const PeftProgram *p, const Options *o, PeftError *err) {
    err->code = 2;
    if (!o->batch || !o->dump) return peft_fail(err, "replay needs --batch FILE and --dump FILE");
    if (!o->nweights && !o->base)
        return peft_fail(err, "replay needs --weights FILE or --base DIR");
    PeftFit fit = p->fit;
    if (!session_check_device(o, err) || !options_fit(o, &fit, err)) return false;
    err->code = 0;
    FixedBatch b;
    Exec x;
    bool ok = fixed_read(&b, o->batch, err);
    if (ok) {
        int64_t sym[PEFT_SYM_COUNT];
        fixed_symbols(&b, sym);
        unsigned fns =
            o->steps ? 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE : 1u << PEFT_FN_GRADIENTS;
        ok = exec_open(&x, p, fns, session_device(o), session_compute(o), session_threads(o), sym,
                       sym, 0, err);
        if (ok) {
            ModelSource src = {.n = 0};
            ModelReport report;
            if (o->base) src.path[src.n++] = o->base;
            for (int i = 0; i < o->nweights && src.n < MODEL_MAX_SOURCES; i++)
                src.path[src.n++] = o->weights[i];
            ok = model_load(&x, &src, fit.seed, &report, err) && replay(&x, o, &b, &fit, sym, err);
            exec_close(&x);
        }
    }
    fixed_free(&b);
    return ok;
}
