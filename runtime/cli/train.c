/* train: epochs of optimizer steps, validation after each, the best epoch kept and scored on the
 * test set. Checkpoints make an interrupted run go on where it was, to the same bytes. */
#include "evaluate.h"
#include "progress.h"
#include "record.h"
#include "room.h"
#include "summary.h"
#include "train_step.h"
#include "verbs.h"

#include "../io/checkpoint.h"
#include "../io/file.h"
#include "../measure.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_signal(int sig) {
    (void)sig;
    interrupted = 1;
}

typedef struct Run {
    const PeftProgram *p;
    const Options *o;
    Session s;
    Exec x;
    Trainer t;
    RunRecord record;
    Progress progress;                   /* of the running epoch */
    int64_t steps_before, tokens_before; /* when it was shown first */
    double started, epoch_started;
    double epoch_seconds; /* of the running epoch before it was interrupted */
    double kept;          /* when the last checkpoint was written, or the run began */
} Run;

/* ---- checkpoints ---- */

typedef struct Cursor { /* what a checkpoint keeps beside tensors */
    double epoch_loss, epoch_seconds;
    int64_t epoch_tokens, steps_bytes;
    int32_t nepoch, best;
} Cursor;

static void checkpoint_path(const Run *r, char *path, size_t size) {
    snprintf(path, size, "%s/checkpoint", r->o->out);
}

static bool is_mutable(const PeftVar *v) {
    return v->is_state || v->trainable;
}

/* A checkpoint belongs to a program and to the settings that decide its arithmetic. */
static uint64_t run_hash(const Run *r) {
    const PeftFit *f = &r->s.fit;
    double numbers[] = {f->epochs,       f->batch,        f->accumulate, f->lr,
                        f->warmup_ratio, f->weight_decay, f->clip_norm,  (double)f->warmup_steps,
                        (double)f->seed, r->x.compute};
    uint64_t h = r->p->hash;
    const unsigned char *bytes = (const unsigned char *)numbers;
    for (size_t i = 0; i < sizeof numbers; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

/* Between two steps: what is under way ends first. */
static bool checkpoint_write(Run *r, PeftError *err) {
    char path[4096], (*name)[CKPT_NAME];
    const PeftProgram *p = r->p;
    size_t n = 0;
    if (!trainer_drain(&r->t, err)) return false;
    CkptHeader h = {.program_hash = run_hash(r),
                    .dataset_hash = r->s.data_hash,
                    .epoch = r->t.epoch,
                    .step_in_epoch = r->t.step_in_epoch,
                    .global_step = r->t.global_step};
    double running = r->epoch_seconds + clock_seconds() - r->epoch_started;
    if (!record_flush(&r->record, err)) return false;
    Cursor cursor = {.epoch_loss = r->t.epoch_loss,
                     .epoch_seconds = running,
                     .epoch_tokens = r->t.epoch_tokens,
                     .steps_bytes = r->record.steps_bytes,
                     .nepoch = r->record.nepoch,
                     .best = r->record.best};
    CkptSection *section = peft_alloc((size_t)p->nvar + 2, sizeof *section, err);
    name = peft_alloc((size_t)p->nvar, sizeof *name, err);
    bool ok = section && name;
    if (ok) {
        section[n++] = (CkptSection){"cursor", &cursor, sizeof cursor};
        section[n++] = (CkptSection){"epochs", r->record.epoch,
                                     sizeof(EpochRecord) * (size_t)r->record.nepoch};
    }
    ok = ok && exec_pull(&r->x, err);
    for (int i = 0; ok && i < p->nvar; i++) {
        if (!is_mutable(&p->var[i])) continue;
        snprintf(name[i], sizeof name[i], "var.%d", i);
        section[n++] = (CkptSection){name[i], exec_value(&r->x, i), (uint64_t)var_bytes(&r->x, i)};
    }
    checkpoint_path(r, path, sizeof path);
    ok = ok && ckpt_write(path, &h, section, n, err);
    r->kept = clock_seconds();
    free(section);
    free(name);
    return ok;
}

static bool checkpoint_read(Run *r, PeftError *err) {
    char path[4096], name[CKPT_NAME];
    Cursor cursor;
    checkpoint_path(r, path, sizeof path);
    Checkpoint *c = ckpt_open(path, run_hash(r), r->s.data_hash, err);
    if (!c) return false;
    bool ok = ckpt_section(c, "cursor", &cursor, sizeof cursor, err);
    if (ok && (cursor.nepoch < 0 || cursor.nepoch > RECORD_MAX_EPOCHS))
        ok = peft_fail(err, "%s is damaged: it counts %d epochs", path, cursor.nepoch);
    ok = ok && ckpt_section(c, "epochs", r->record.epoch,
                            sizeof(EpochRecord) * (size_t)cursor.nepoch, err);
    for (int i = 0; ok && i < r->p->nvar; i++) {
        if (!is_mutable(&r->p->var[i])) continue;
        snprintf(name, sizeof name, "var.%d", i);
        ok = ckpt_section(c, name, exec_var(&r->x, i), (uint64_t)var_bytes(&r->x, i), err);
    }
    if (ok) {
        const CkptHeader *h = ckpt_header(c);
        /* A checkpoint at the end of an epoch goes on with the next one. */
        bool whole = h->step_in_epoch == r->s.steps_per_epoch;
        r->record.nepoch = cursor.nepoch;
        r->record.best = cursor.best;
        ok = record_open(&r->record, r->o->out, cursor.steps_bytes, err) &&
             trainer_seek(&r->t, h->epoch + whole, whole ? 0 : h->step_in_epoch, err);
        r->t.epoch_loss = whole ? 0 : cursor.epoch_loss;
        r->t.epoch_tokens = whole ? 0 : cursor.epoch_tokens;
        r->epoch_seconds = whole ? 0 : cursor.epoch_seconds;
    }
    ckpt_close(c);
    return ok;
}

/* ---- epochs ---- */

static bool save_best(Run *r, PeftError *err) {
    return exec_pull(&r->x, err) && model_save(&r->x, r->o->out, r->o->base, err);
}

static bool end_epoch(Run *r, PeftError *err) {
    Score score;
    double loss;
    EpochRecord e = {.steps = r->s.steps_per_epoch,
                     .tokens = r->t.epoch_tokens,
                     .train_loss = r->t.epoch_loss / (double)r->s.steps_per_epoch,
                     .seconds = r->epoch_seconds + clock_seconds() - r->epoch_started};
    if (!evaluate(&r->s, &r->x, r->s.data.validation, "validation", &score, &loss, NULL, NULL, err))
        return false;
    e.val_loss = loss;
    /* Without classes the best epoch is the one of least validation loss. */
    bool classes = r->p->task == PEFT_TASK_CLASSIFY;
    e.val_f1 = classes ? score_macro_f1(&score) : -loss;
    e.val_accuracy = classes ? score_accuracy(&score) : NAN;
    if (!record_epoch(&r->record, r->t.global_step, &e, err)) return false;
    fprintf(stderr, "epoch %d: train loss %.4f, validation loss %.4f", r->record.nepoch,
            e.train_loss, loss);
    if (classes) fprintf(stderr, ", macro F1 %.4f, accuracy %.4f", e.val_f1, e.val_accuracy);
    fprintf(stderr, ", %.1f s, %.0f tokens/s%s\n", e.seconds, (double)e.tokens / e.seconds,
            r->record.best == r->record.nepoch - 1 ? ", best so far" : "");
    if (r->record.best == r->record.nepoch - 1 && !save_best(r, err)) return false;
    return checkpoint_write(r, err);
}

static bool interrupt(Run *r, PeftError *err) {
    if (!checkpoint_write(r, err)) return false;
    err->code = interrupted ? 130 : PEFT_STOPPED;
    fprintf(stderr, "%s at step %lld of %lld; the same command with --resume goes on\n",
            interrupted ? "interrupted" : "stopped", (long long)r->t.global_step,
            (long long)r->s.total_steps);
    return false;
}

enum { RECORD_EVERY = 10 };

/* A step's results are there: they go to the record and the progress line. */
static bool note_step(void *ctx, const TrainedStep *step, PeftError *err) {
    Run *r = ctx;
    char detail[128], a[32];
    if (!(step->loss - step->loss == 0))
        return peft_fail(
            err, "the loss is %f at step %lld; use a smaller fit.lr (the last checkpoint is whole)",
            (double)step->loss, (long long)step->number);
    bool last = step->number % r->s.steps_per_epoch == 0;
    if ((step->number % RECORD_EVERY == 0 || last) &&
        !record_step(&r->record, step->number, (double)step->loss, (double)step->lr,
                     (double)step->grad_norm, err))
        return false;
    double seconds = clock_seconds() - r->progress.start;
    snprintf(detail, sizeof detail, "loss %.4f | lr %.2e | %s tokens/s", (double)step->loss,
             (double)step->lr,
             with_commas((int64_t)((double)(r->t.epoch_tokens - r->tokens_before) / seconds), a));
    progress_step(&r->progress, step->number - r->steps_before, detail);
    return true;
}

/* A time and not a number of steps by default: a step takes a millisecond or many seconds. */
static bool checkpoint_due(const Run *r) {
    enum { SECONDS = 60 };
    int64_t every = r->o->checkpoint_every;
    return every ? r->t.global_step % every == 0 : clock_seconds() - r->kept >= SECONDS;
}

static bool train_epoch(Run *r, PeftError *err) {
    while (r->t.step_in_epoch < r->s.steps_per_epoch) {
        if (!trainer_step(&r->t, err)) return false;
        if (r->t.step_in_epoch == r->s.steps_per_epoch) break;
        if (interrupted || (r->o->steps && r->t.global_step >= r->o->steps)) {
            if (!trainer_drain(&r->t, err)) return false;
            progress_end(&r->progress);
            return interrupt(r, err);
        }
        if (checkpoint_due(r) && !checkpoint_write(r, err)) return false;
    }
    return trainer_drain(&r->t, err);
}

static bool run_epoch(Run *r, PeftError *err) {
    char what[64];
    snprintf(what, sizeof what, "%s epoch %lld/%d", r->p->name, (long long)r->t.epoch + 1,
             r->s.fit.epochs);
    progress_start(&r->progress, what, r->s.steps_per_epoch - r->t.step_in_epoch);
    r->steps_before = r->t.global_step;
    r->tokens_before = r->t.epoch_tokens;
    r->epoch_started = clock_seconds();
    if (!train_epoch(r, err)) return false;
    progress_end(&r->progress);
    if (!end_epoch(r, err)) return false;
    r->epoch_seconds = 0;
    bool more = r->t.epoch + 1 < r->s.fit.epochs;
    if (more && (interrupted || (r->o->steps && r->t.global_step >= r->o->steps)))
        return interrupt(r, err);
    return !more || trainer_seek_next(&r->t, err);
}

/* ---- the run ---- */

static bool test_best(Run *r, RunSummary *summary, PeftError *err) {
    if (!r->s.data.test || r->p->task != PEFT_TASK_CLASSIFY) return true;
    ModelSource src = {.path = {r->o->base, r->o->out}, .n = 2};
    ModelReport report;
    /* From scratch, what an adapter's file lacks is what the seed gave before. */
    if (r->o->scratch) src = (ModelSource){.path = {r->o->out}, .n = 1, .scratch = true};
    summary->tested = true;
    return model_load(&r->x, &src, r->s.fit.seed, &report, err) &&
           evaluate(&r->s, &r->x, r->s.data.test, "test", &summary->test, &summary->test_loss, NULL,
                    NULL, err);
}

/* Whether results may go to --out. Nothing is made or removed before the run is about to begin. */
static bool check_out(const Options *o, PeftError *err) {
    char path[4096];
    if (!o->out) {
        err->code = 2;
        return peft_fail(err, "--out DIR is missing: where results go");
    }
    snprintf(path, sizeof path, "%s/run.json", o->out);
    bool finished = access(path, F_OK) == 0;
    snprintf(path, sizeof path, "%s/checkpoint", o->out);
    bool started = access(path, F_OK) == 0;
    if (o->resume && !started)
        return peft_fail(err,
                         finished ? "%s holds a finished run; --overwrite trains it again"
                                  : "%s has no checkpoint to resume from",
                         o->out);
    if ((finished || started) && !o->resume && !o->overwrite)
        return peft_fail(err, "%s holds %s run; %s, or give another --out", o->out,
                         finished ? "a finished" : "an interrupted",
                         started ? "--resume goes on with it, --overwrite starts again"
                                 : "--overwrite trains it again");
    return true;
}

static bool prepare_out(const Options *o, PeftError *err) {
    static const char *const file[] = {"checkpoint", "run.json"};
    char path[4096];
    for (int i = 0; o->overwrite && !o->resume && i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", o->out, file[i]);
        unlink(path);
    }
    return dir_make(o->out, err);
}

static bool load(Run *r, PeftError *err) {
    ModelSource src = {.path = {r->o->base}, .n = r->o->scratch ? 0 : 1, .scratch = r->o->scratch};
    ModelReport report;
    if (!model_load(&r->x, &src, r->s.fit.seed, &report, err)) return false;
    fprintf(stderr, "weights: %d tensors loaded from %s, %d new ones initialised with seed %llu\n",
            report.loaded, r->o->scratch ? "nowhere" : r->o->base, report.initialised,
            (unsigned long long)r->s.fit.seed);
    if (report.unused)
        fprintf(stderr,
                "weights: %d tensors of the base are not part of this program, for example %s\n",
                report.unused, report.unused_name);
    return true;
}

static bool train_all(Run *r, PeftError *err) {
    if (!trainer_open(&r->t, &r->s, &r->x, err)) return false;
    r->t.each = note_step;
    r->t.ctx = r;
    bool ok = trainer_warm_up(&r->t, err) && load(r, err) && prepare_out(r->o, err);
    if (ok)
        ok = r->o->resume ? checkpoint_read(r, err) : record_open(&r->record, r->o->out, -1, err);
    while (ok && r->record.nepoch < r->s.fit.epochs) ok = run_epoch(r, err);
    if (ok) {
        RunSummary summary = {.exec = &r->x, .session = &r->s, .record = &r->record};
        char path[4096];
        ok = test_best(r, &summary, err);
        summary.seconds = clock_seconds() - r->started;
        ok = ok && record_flush(&r->record, err) && record_csv(&r->record, err) &&
             summary_write(&summary, err);
        if (ok) {
            checkpoint_path(r, path, sizeof path);
            unlink(path); /* only now: everything it could bring back is on disk */
            summary_print(&summary);
        }
    }
    record_close(&r->record);
    trainer_close(&r->t);
    return ok;
}

bool verb_train(const PeftProgram *p, const Options *o, PeftError *err) {
    Run *r = peft_zalloc(1, sizeof *r, err);
    if (!r) return false;
    r->p = p;
    r->o = o;
    r->started = r->kept = clock_seconds();
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE | 1u << PEFT_FN_EVAL;
    bool ok = check_out(o, err) && session_open(&r->s, p, o, o->base, err);
    if (ok) {
        struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        ok = room_exec_open(&r->x, &r->s, fns, err);
        if (ok) {
            summary_announce(&r->s, &r->x);
            ok = train_all(r, err);
            exec_close(&r->x);
        }
        session_close(&r->s);
    }
    free(r);
    return ok;
}
