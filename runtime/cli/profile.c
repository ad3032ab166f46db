/* profile: real training steps with every step timed; by kernel, by model line and by pass. */
#include "session.h"
#include "verbs.h"

#include "../feed.h"
#include "../measure.h"
#include "progress.h"
#include "train_step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Row {
    const char *key;
    int64_t calls;
    double seconds, flop, bytes;
} Row;

static Row *find_row(Row *rows, int *n, const char *key) {
    for (int i = 0; i < *n; i++)
        if (strcmp(rows[i].key, key) == 0) return &rows[i];
    rows[*n] = (Row){.key = key};
    return &rows[(*n)++];
}

static int by_time(const void *a, const void *b) {
    double x = ((const Row *)a)->seconds, y = ((const Row *)b)->seconds;
    if (x != y) return x < y ? 1 : -1;
    return strcmp(((const Row *)a)->key, ((const Row *)b)->key);
}

typedef const char *(*KeyFn)(const PeftProgram *p, const PeftStep *s);

static const char *key_kernel(const PeftProgram *p, const PeftStep *s) {
    return p->kernel[s->kernel].name;
}

static const char *key_line(const PeftProgram *p, const PeftStep *s) {
    (void)p;
    return s->where;
}

static const char *key_pass(const PeftProgram *p, const PeftStep *s) {
    (void)p;
    return s->pass == 0 ? "forward" : s->pass == 1 ? "backward" : "optimizer";
}

static void add_rows(const Exec *x, PeftFn fn, KeyFn key, Row *rows, int *n, double *total) {
    const PeftFunction *f = &x->program->fn[fn];
    if (!x->time[fn]) return;
    for (int i = 0; i < f->nstep; i++) {
        const StepTime *t = &x->time[fn][i];
        Row *r = find_row(rows, n, key(x->program, &f->step[i]));
        r->calls += t->calls;
        r->seconds += t->seconds;
        r->flop += t->flop;
        r->bytes += t->bytes;
        *total += t->seconds;
    }
}

static void print_rows(const Row *rows, int n, double total, int64_t steps, bool json,
                       const char *what) {
    if (json)
        printf("\"%s\": [", what);
    else
        printf("\n%-44s %7s %10s %7s %8s %8s\n", what, "calls", "us/step", "share", "GB/s",
               "GFLOP/s");
    for (int i = 0; i < n; i++) {
        const Row *r = &rows[i];
        double us = 1e6 * r->seconds / (double)steps,
               share = total > 0 ? 100 * r->seconds / total : 0;
        double gbs = r->seconds > 0 ? r->bytes / r->seconds / 1e9 : 0;
        double gflops = r->seconds > 0 ? r->flop / r->seconds / 1e9 : 0;
        if (json)
            printf("%s{\"key\": \"%s\", \"calls\": %lld, \"us_per_step\": %.3f, \"percent\": %.3f, "
                   "\"gb_s\": %.3f, \"gflop_s\": %.3f}",
                   i ? ", " : "", r->key, (long long)r->calls, us, share, gbs, gflops);
        else
            printf("%-44.44s %7lld %10.1f %6.1f%% %8.1f %8.1f\n", r->key,
                   (long long)(r->calls / steps), us, share, gbs, gflops);
    }
    if (json) printf("]");
}

typedef struct StepTimes {
    double median, least, most;
} StepTimes;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Runs the steps one by one; times are of whole steps, batching included. */
static bool timed_steps(Trainer *t, int64_t n, StepTimes *out, PeftError *err) {
    double *seconds = peft_alloc((size_t)n, sizeof *seconds, err);
    bool ok = seconds != NULL;
    for (int64_t i = 0; ok && i < n; i++) {
        double start = clock_seconds();
        ok = trainer_steps(t, 1, err);
        seconds[i] = clock_seconds() - start;
    }
    if (ok) {
        qsort(seconds, (size_t)n, sizeof *seconds, by_value);
        *out = (StepTimes){seconds[n / 2], seconds[0], seconds[n - 1]};
    }
    free(seconds);
    return ok;
}

/* On a GPU, waiting for every kernel slows the step down: its whole time is taken before, from
 * batches of sizes that it has seen. */
static bool warm_up(Trainer *t, const Exec *x, int64_t steps, StepTimes *whole, PeftError *err) {
    if (x->device != DEVICE_CUDA) return trainer_steps(t, 2, err);
    for (int pass = 0; pass < 2; pass++) /* launched, then captured */
        if (!trainer_steps(t, steps, err) || !trainer_seek(t, 0, 0, err)) return false;
    return timed_steps(t, steps, whole, err);
}

static bool report(const Exec *x, int64_t steps, const StepTimes *times, bool json,
                   PeftError *err) {
    static const struct {
        const char *what;
        KeyFn key;
    } views[] = {{"pass", key_pass}, {"kernel", key_kernel}, {"line", key_line}};
    int most = x->program->fn[PEFT_FN_TRAIN].nstep + x->program->fn[PEFT_FN_UPDATE].nstep;
    Row *rows = peft_alloc((size_t)most, sizeof *rows, err);
    if (!rows) return false;
    if (json)
        printf(
            "{\"program\": \"%s\", \"steps\": %lld, \"threads\": %d, \"ms_median\": %.3f, \"ms_min\": %.3f, "
            "\"ms_max\": %.3f, \"arena_bytes\": %lld, ",
            x->program->name, (long long)steps, x->threads, 1e3 * times->median, 1e3 * times->least,
            1e3 * times->most, (long long)x->plan.peak);
    else
        printf("%.2f ms a step (median of %lld; %.2f to %.2f), %d threads, arena %.1f MB\n",
               1e3 * times->median, (long long)steps, 1e3 * times->least, 1e3 * times->most,
               x->threads, (double)x->plan.peak / 1e6);
    for (int v = 0; v < 3; v++) {
        int n = 0;
        double total = 0;
        add_rows(x, PEFT_FN_TRAIN, views[v].key, rows, &n, &total);
        add_rows(x, PEFT_FN_UPDATE, views[v].key, rows, &n, &total);
        qsort(rows, (size_t)n, sizeof *rows, by_time);
        if (v && json) printf(", ");
        print_rows(rows, n, total, steps, json, views[v].what);
    }
    if (json) printf("}\n");
    free(rows);
    return true;
}

bool verb_profile(const PeftProgram *p, const Options *o, PeftError *err) {
    Session s;
    Exec x;
    int64_t steps = o->steps ? o->steps : 20;
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE;
    if (!session_open(&s, p, o, o->base, err)) return false;
    bool ok = exec_open(&x, p, fns, session_device(o), session_compute(o), session_threads(o),
                        s.train_sym, s.eval_sym, 0, err);
    if (ok) {
        ModelSource src = {.path = {o->base}, .n = o->scratch ? 0 : 1, .scratch = o->scratch};
        ModelReport loaded;
        Trainer t;
        StepTimes times, apart;
        ok = model_load(&x, &src, s.fit.seed, &loaded, err) && trainer_open(&t, &s, &x, err);
        if (ok) {
            ok = warm_up(&t, &x, steps, &times, err) && exec_profile(&x, PEFT_FN_TRAIN, err) &&
                 exec_profile(&x, PEFT_FN_UPDATE, err) &&
                 timed_steps(&t, steps, x.device == DEVICE_CUDA ? &apart : &times, err) &&
                 report(&x, steps, &times, o->json, err);
            trainer_close(&t);
        }
        exec_close(&x);
    }
    session_close(&s);
    return ok;
}
