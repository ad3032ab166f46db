/* profile: real training steps with every step of the program timed. */
#include "profile.h"
#include "room.h"
#include "verbs.h"

#include "../measure.h"
#include "../startup.h"
#include "train_step.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Times of whole optimizer steps, batching included: of `rounds` rounds of `each` steps, from
 * where the trainer is. */
static bool timed_rounds(Trainer *t, int64_t rounds, int64_t each, Profile *out, PeftError *err) {
    double *seconds = peft_alloc((size_t)rounds, sizeof *seconds, err);
    bool ok = seconds != NULL;
    for (int64_t i = 0; ok && i < rounds; i++) {
        double start = clock_seconds();
        ok = trainer_steps(t, each, err);
        seconds[i] = (clock_seconds() - start) / (double)each;
        if (ok && each > 1) ok = trainer_seek(t, 0, 0, err); /* batches of sizes it has seen */
    }
    if (ok) {
        qsort(seconds, (size_t)rounds, sizeof *seconds, by_value);
        out->rounds = rounds;
        out->median = seconds[rounds / 2];
        out->least = seconds[0];
        out->most = seconds[rounds - 1];
    }
    free(seconds);
    return ok;
}

static bool time_apart(Exec *x, PeftError *err) {
    return exec_profile(x, PEFT_FN_TRAIN, err) && exec_profile(x, PEFT_FN_UPDATE, err);
}

enum { GPU_ROUNDS = 5 };

/* On a GPU the host runs ahead of the steps, and timing each kernel slows them down: whole steps
 * are timed before, many at a time, after every size of batch was launched and captured. */
static bool measure_gpu(Trainer *t, Profile *p, Exec *x, PeftError *err) {
    for (int pass = 0; pass < 2; pass++)
        if (!trainer_steps(t, p->steps, err) || !trainer_seek(t, 0, 0, err)) return false;
    return timed_rounds(t, GPU_ROUNDS, p->steps, p, err) && time_apart(x, err) &&
           trainer_steps(t, p->steps, err);
}

static bool measure(Trainer *t, Profile *p, Exec *x, PeftError *err) {
    if (!trainer_steps(t, 1, err)) return false;
    startup_end(STARTUP_STEP);
    if (!trainer_seek(t, 0, 0, err)) return false;
    if (x->device == DEVICE_CUDA) return measure_gpu(t, p, x, err);
    return trainer_steps(t, 1, err) && time_apart(x, err) && timed_rounds(t, p->steps, 1, p, err);
}

/* ---- files ---- */

typedef struct Files { /* NULL: not asked for */
    FILE *csv, *trace;
} Files;

/* Before the measuring, so that a name which cannot be written costs no time. */
static bool open_file(const char *path, FILE **out, PeftError *err) {
    if (!path || (*out = fopen(path, "w"))) return true;
    return peft_fail(err, "cannot write %s: %s", path, strerror(errno));
}

static bool close_file(const char *path, FILE *f, bool ok, PeftError *err) {
    if (!f) return ok;
    bool bad = ferror(f) != 0;
    bad |= fclose(f) != 0;
    return bad && ok ? peft_fail(err, "cannot write %s: %s", path, strerror(errno)) : ok;
}

static bool write_all(const Options *o, const Files *f, const Profile *p, PeftError *err) {
    return (!f->csv || profile_csv(f->csv, p, err)) &&
           (!f->trace || profile_trace(f->trace, p, err)) &&
           (o->json ? profile_json(stdout, p, err) : profile_text(stdout, p, err));
}

/* ---- the verb ---- */

static bool run(const Session *s, Exec *x, const Files *files, PeftError *err) {
    const Options *o = s->options;
    ModelSource src = {.path = {o->base}, .n = o->scratch ? 0 : 1, .scratch = o->scratch};
    ModelReport loaded;
    Trainer t;
    Profile p = {.x = x, .steps = o->steps ? o->steps : 20};
    if (p.steps > s->total_steps)
        p.steps = s->total_steps; /* memory is planned for these batches */
    startup_end(STARTUP_DEVICE);
    if (!trainer_open(&t, s, x, err)) return false;
    bool ok = trainer_warm_up(&t, err) && model_load(x, &src, s->fit.seed, &loaded, err);
    startup_end(STARTUP_WEIGHTS);
    ok = ok && measure(&t, &p, x, err) && write_all(o, files, &p, err);
    trainer_close(&t);
    return ok;
}

bool verb_profile(const PeftProgram *p, const Options *o, PeftError *err) {
    Session s;
    Exec x;
    Files files = {NULL, NULL};
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE;
    if (!session_open(&s, p, o, o->base, err)) return false;
    startup_end(STARTUP_DATA);
    bool ok = open_file(o->csv, &files.csv, err) && open_file(o->trace, &files.trace, err);
    if (ok && (ok = room_exec_open(&x, &s, fns, err))) {
        ok = run(&s, &x, &files, err);
        exec_close(&x);
    }
    ok = close_file(o->csv, files.csv, ok, err);
    ok = close_file(o->trace, files.trace, ok, err);
    session_close(&s);
    return ok;
}
