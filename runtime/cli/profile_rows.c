/* See profile_rows.h. Only what the runtime multiplies counts as arithmetic (2 m n k of a matrix
 * product); bytes are those of the buffers a step is given, each once. */
#include "profile_rows.h"

#include <stdlib.h>
#include <string.h>

const char *const view_name[VIEW_COUNT] = {"pass", "kernel", "line"};
const char *const pass_name[3] = {"forward", "backward", "optimizer"};

static const PeftFn profiled[] = {PEFT_FN_TRAIN, PEFT_FN_UPDATE};
enum { PROFILED = sizeof profiled / sizeof *profiled };

static const char *key_of(const PeftProgram *p, const PeftStep *s, View view) {
    switch (view) {
    case VIEW_PASS: return pass_name[s->pass];
    case VIEW_KERNEL: return p->kernel[s->kernel].name;
    default: return s->where;
    }
}

static ProfileRow *find_row(ProfileRow *row, int *n, const char *key) {
    for (int i = 0; i < *n; i++)
        if (strcmp(row[i].key, key) == 0) return &row[i];
    row[*n] = (ProfileRow){.key = key};
    return &row[(*n)++];
}

static void add(ProfileRow *r, const StepTime *t, double per) {
    r->calls += (double)t->calls / per;
    r->us += 1e6 * t->seconds / per;
    r->bytes += t->bytes / per;
    r->flop += t->flop / per;
}

static void rate(ProfileRow *r, double total_us) {
    r->percent = total_us > 0 ? 100 * r->us / total_us : 0;
    r->gb_s = r->us > 0 ? r->bytes / r->us / 1e3 : 0;
    r->tflop_s = r->us > 0 ? r->flop / r->us / 1e6 : 0;
}

static int by_time(const void *a, const void *b) {
    const ProfileRow *x = a, *y = b;
    if (x->us != y->us) return x->us < y->us ? 1 : -1;
    return strcmp(x->key, y->key);
}

ProfileRow *profile_rows(const Profile *p, View view, int *n, PeftError *err) {
    const PeftProgram *program = p->x->program;
    int most = 0;
    double total = 0;
    for (int i = 0; i < PROFILED; i++) most += program->fn[profiled[i]].nstep;
    ProfileRow *row = peft_alloc((size_t)most, sizeof *row, err);
    *n = 0;
    for (int i = 0; row && i < PROFILED; i++) {
        const PeftFunction *f = &program->fn[profiled[i]];
        const StepTime *time = p->x->time[profiled[i]];
        for (int s = 0; time && s < f->nstep; s++) {
            add(find_row(row, n, key_of(program, &f->step[s], view)), &time[s], (double)p->steps);
            total += 1e6 * time[s].seconds / (double)p->steps;
        }
    }
    for (int i = 0; i < *n; i++) rate(&row[i], total);
    if (row) qsort(row, (size_t)*n, sizeof *row, by_time);
    return row;
}

ProfileRow profile_step(const Profile *p, PeftFn fn, int step) {
    const PeftStep *s = &p->x->program->fn[fn].step[step];
    const StepTime *t = &p->x->time[fn][step];
    ProfileRow r = {.key = p->x->program->kernel[s->kernel].name};
    if (t->calls) add(&r, t, (double)t->calls);
    rate(&r, 0);
    return r;
}
