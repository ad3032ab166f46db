/* See summary.h. */
#include "summary.h"
#include "origin.h"

#include "../cpu/isa.h"
#include "../feed.h"
#include "../io/file.h"
#include "../memreport.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void summary_announce(const Session *s, const Exec *x) {
    const PeftProgram *p = s->program;
    const PeftFit *f = &s->fit;
    char a[32], b[32];
    ModelCount c = model_count(p);
    fprintf(stderr, "%s: %s of %s parameters train (%.4f %%)\n", p->name,
            with_commas(c.trainable, a), with_commas(c.total, b),
            100.0 * (double)c.trainable / (double)c.total);
    fprintf(stderr, "data: %d train, %d validation, %d test rows", s->data.train->n,
            s->data.validation->n, s->data.test ? s->data.test->n : 0);
    fprintf(stderr, "%s\n",
            s->data.validation_from_train ? " (validation: every 64th row of train)" : "");
    fprintf(stderr, "fit: %d epochs of %lld steps, batch %d", f->epochs,
            (long long)s->steps_per_epoch, f->batch);
    if (f->accumulate > 1) fprintf(stderr, " in %d parts", f->accumulate);
    fprintf(stderr, ", lr %g, warm-up %lld steps, weight decay %g, clip %g, seed %llu\n", f->lr,
            (long long)fit_warmup(f, s->total_steps), f->weight_decay, f->clip_norm,
            (unsigned long long)f->seed);
    fprintf(stderr,
            "memory: %.1f MB planned for the worst batch (%lld tokens; lower bound %.1f MB)\n",
            (double)x->plan.peak / 1e6, (long long)s->train_sym[PEFT_SYM_T],
            (double)x->plan.lower_bound / 1e6);
}

static json_t *memory_json(const Exec *x) {
    json_t *classes = json_object();
    int64_t driver = exec_driver_bytes(x);
    for (int c = 0; c < PEFT_MEM_CLASSES; c++)
        json_object_set_new(classes, mem_class_name[c], json_integer(x->plan.by_class[c]));
    json_t *memory = json_pack("{s:I, s:I, s:I, s:o}", "planned_bytes", (json_int_t)x->plan.peak,
                               "reached_bytes", (json_int_t)x->high_water, "lower_bound_bytes",
                               (json_int_t)x->plan.lower_bound, "planned_by_class", classes);
    if (driver >= 0) json_object_set_new(memory, "driver_bytes", json_integer(driver));
    return memory;
}

static json_t *fit_json(const PeftFit *f, int64_t total_steps) {
    return json_pack("{s:i, s:i, s:i, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I}", "epochs",
                     f->epochs, "batch", f->batch, "accumulate", f->accumulate, "lr", f->lr,
                     "warmup_steps", (json_int_t)fit_warmup(f, total_steps), "total_steps",
                     (json_int_t)total_steps, "weight_decay", f->weight_decay, "clip_norm",
                     f->clip_norm, "beta1", f->beta1, "beta2", f->beta2, "eps", f->eps, "seed",
                     (json_int_t)f->seed);
}

static json_t *real_or_null(double v) {
    return v - v == 0 ? json_real(v) : json_null();
}

static json_t *epochs_json(const RunRecord *r, double *mean_seconds) {
    json_t *list = json_array();
    *mean_seconds = 0;
    for (int i = 0; i < r->nepoch; i++) {
        const EpochRecord *e = &r->epoch[i];
        *mean_seconds += e->seconds / r->nepoch;
        json_array_append_new(list, json_pack("{s:i, s:o, s:o, s:o, s:o, s:I, s:f}", "epoch", i + 1,
                                              "train_loss", real_or_null(e->train_loss), "val_loss",
                                              real_or_null(e->val_loss), "val_f1_macro",
                                              real_or_null(e->val_f1), "val_accuracy",
                                              real_or_null(e->val_accuracy), "tokens",
                                              (json_int_t)e->tokens, "seconds", e->seconds));
    }
    return list;
}

bool summary_write(const RunSummary *r, PeftError *err) {
    const Session *s = r->session;
    const PeftProgram *p = s->program;
    ModelCount c = model_count(p);
    double mean;
    char path[4096];
    json_t *o =
        json_pack("{s:i, s:s, s:s, s:s?, s:s, s:s, s:s, s:i, s:I, s:I, s:f, s:o, s:o, s:o, s:i}",
                  "version", 1, "program", p->name, "source", p->source, "base", s->options->base,
                  "data", s->options->data, "device", device_name(r->exec->device), "instructions",
                  isa_name(isa_current()), "threads", r->exec->threads, "trainable_params",
                  (json_int_t)c.trainable, "total_params", (json_int_t)c.total, "trainable_percent",
                  100.0 * (double)c.trainable / (double)c.total, "fit",
                  fit_json(&s->fit, s->total_steps), "memory", memory_json(r->exec), "epochs",
                  epochs_json(r->record, &mean), "best_epoch", r->record->best + 1);
    json_object_set_new(o, "epoch_time_s", json_real(mean));
    json_object_set_new(o, "total_time_s", json_real(r->seconds));
    json_object_set_new(o, "saved_bytes", json_integer(weights_on_disk(s->options->out)));
    json_object_set_new(o, "base_bytes",
                        json_integer(s->options->scratch ? 0 : weights_on_disk(s->options->base)));
    origin_add(o, r->exec);
    if (r->tested) {
        json_object_set_new(o, "test_f1_macro", json_real(score_macro_f1(&r->test)));
        json_object_set_new(o, "test_accuracy", json_real(score_accuracy(&r->test)));
        json_object_set_new(o, "test_loss", real_or_null(r->test_loss));
        json_object_set_new(o, "test_rows", json_integer(r->test.n));
    }
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(10));
    json_decref(o);
    snprintf(path, sizeof path, "%s/run.json", s->options->out);
    bool ok = text ? file_write_atomic(path, text, strlen(text), err)
                   : peft_fail(err, "cannot write %s: out of memory", path);
    free(text);
    return ok;
}

void summary_print(const RunSummary *r) {
    const RunRecord *rec = r->record;
    const EpochRecord *best = &rec->epoch[rec->best];
    const char *out = r->session->options->out;
    printf("%s: best epoch %d of %d", r->session->program->name, rec->best + 1, rec->nepoch);
    if (r->tested)
        printf(", validation macro F1 %.4f; test macro F1 %.4f, accuracy %.4f on %lld rows",
               best->val_f1, score_macro_f1(&r->test), score_accuracy(&r->test),
               (long long)r->test.n);
    else
        printf(", validation loss %.4f", best->val_loss);
    printf("; peak %.1f MB of %.1f MB planned; %.1f s\n", (double)r->exec->high_water / 1e6,
           (double)r->exec->plan.peak / 1e6, r->seconds);
    if (r->exec->device == DEVICE_CUDA) memreport_used(stdout, r->exec);
    printf("results in %s; try: ./run predict --from %s \"some text\"\n", out, out);
}
