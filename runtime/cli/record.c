/* See record.h. */
#include "record.h"
#include "../io/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool file_trouble(const RunRecord *r, PeftError *err) {
    return peft_fail(err, "cannot write %s/metrics.jsonl: %s", r->dir, strerror(errno));
}

bool record_open(RunRecord *r, const char *dir, int64_t resume_at, PeftError *err) {
    char path[4096];
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    r->dir = dir;
    if (resume_at < 0) {
        r->nepoch = 0;
        r->best = -1;
    }
    FILE *f = fopen(path, resume_at < 0 ? "w" : "r+");
    if (!f) return file_trouble(r, err);
    setvbuf(f, NULL, _IOLBF, 0); /* others read the file while the run writes it */
    r->steps = f;
    r->steps_bytes = resume_at < 0 ? 0 : resume_at;
    if (resume_at < 0) return true;
    if (fseek(f, 0, SEEK_END) || ftell(f) < resume_at)
        return peft_fail(
            err, "%s is shorter than when the checkpoint was made; train again with --overwrite",
            path);
    if (ftruncate(fileno(f), (off_t)resume_at) || fseek(f, 0, SEEK_END))
        return file_trouble(r, err);
    return true;
}

static bool put(RunRecord *r, int n, PeftError *err) {
    if (n < 0) return file_trouble(r, err);
    r->steps_bytes += n;
    return true;
}

/* JSON has no NaN: a loss that is not finite is written as null. */
static const char *number(double v, char buf[32]) {
    if (v - v != 0) return "null";
    snprintf(buf, 32, "%.9g", v);
    return buf;
}

bool record_step(RunRecord *r, int64_t step, double loss, double lr, double norm, PeftError *err) {
    char a[32], b[32], c[32];
    return put(r,
               fprintf(r->steps, "{\"step\": %lld, \"loss\": %s, \"lr\": %s, \"grad_norm\": %s}\n",
                       (long long)step, number(loss, a), number(lr, b), number(norm, c)),
               err);
}

bool record_epoch(RunRecord *r, int64_t step, const EpochRecord *e, PeftError *err) {
    char a[32], b[32], c[32], d[32];
    if (r->nepoch == RECORD_MAX_EPOCHS)
        return peft_fail(err, "more than %d epochs; use fewer", RECORD_MAX_EPOCHS);
    r->epoch[r->nepoch++] = *e;
    bool better = r->best < 0 || e->val_f1 > r->epoch[r->best].val_f1;
    if (better) r->best = r->nepoch - 1;
    return put(r,
               fprintf(r->steps,
                       "{\"epoch\": %d, \"step\": %lld, \"train_loss\": %s, \"val_loss\": %s, "
                       "\"val_f1_macro\": %s, \"val_accuracy\": %s, \"tokens\": %lld}\n",
                       r->nepoch, (long long)step, number(e->train_loss, a), number(e->val_loss, b),
                       number(e->val_f1, c), number(e->val_accuracy, d), (long long)e->tokens),
               err);
}

bool record_flush(RunRecord *r, PeftError *err) {
    if (fflush(r->steps) || fsync(fileno((FILE *)r->steps))) return file_trouble(r, err);
    return true;
}

bool record_csv(const RunRecord *r, PeftError *err) {
    size_t size = 128 + (size_t)r->nepoch * 160, at = 0;
    char path[4096], *text = peft_alloc(size, 1, err);
    if (!text) return false;
    at += (size_t)snprintf(text, size,
                           "epoch,steps,tokens,train_loss,val_loss,val_f1_macro,val_accuracy\n");
    for (int i = 0; i < r->nepoch; i++) {
        const EpochRecord *e = &r->epoch[i];
        at += (size_t)snprintf(text + at, size - at, "%d,%lld,%lld,%.9g,%.9g,%.9g,%.9g\n", i + 1,
                               (long long)e->steps, (long long)e->tokens, e->train_loss,
                               e->val_loss, e->val_f1, e->val_accuracy);
    }
    snprintf(path, sizeof path, "%s/metrics.csv", r->dir);
    bool ok = file_write_atomic(path, text, at, err);
    free(text);
    return ok;
}

void record_close(RunRecord *r) {
    if (r->steps) fclose(r->steps);
    r->steps = NULL;
}
