/* The Chrome trace of a profile: the format of chrome://tracing and Perfetto, times in
 * microseconds. Events lie one behind the other, as the steps do in the program. */
#include "profile_rows.h"

#include "../memreport.h"

#include <stdlib.h>

enum { PROCESS = 1 };

/* A row of its own for each pass. */
static void name_rows(json_t *events) {
    for (int pass = 0; pass < 3; pass++)
        json_array_append_new(events, json_pack("{s:s, s:s, s:i, s:i, s:{s:s}}", "name",
                                                "thread_name", "ph", "M", "pid", PROCESS, "tid",
                                                1 + pass, "args", "name", pass_name[pass]));
}

static json_t *step_event(const PeftStep *s, const ProfileRow *r, double at) {
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:{s:s, s:s, s:f, s:f, s:f}}", "name",
                     r->key, "cat", pass_name[s->pass], "ph", "X", "pid", PROCESS, "tid",
                     1 + s->pass, "ts", at, "dur", r->us, "args", "nodes", s->label, "line",
                     s->where, "bytes", r->bytes, "gb_s", r->gb_s, "tflop_s", r->tflop_s);
}

/* MB alive by class while the step runs, in the worst batch. */
static json_t *memory_event(const int64_t *by_class, double at) {
    json_t *mb = json_object();
    for (int c = 0; c < PEFT_MEM_CLASSES; c++)
        json_object_set_new(mb, mem_class_name[c], json_real((double)by_class[c] / 1e6));
    return json_pack("{s:s, s:s, s:i, s:f, s:o}", "name", "MB alive", "ph", "C", "pid", PROCESS,
                     "ts", at, "args", mb);
}

static bool add_function(json_t *events, const Profile *p, PeftFn fn, double *at, PeftError *err) {
    const PeftFunction *f = &p->x->program->fn[fn];
    if (!f->nstep) return true;
    int64_t *alive = memreport_timeline(p->x, fn, err);
    for (int s = 0; alive && s < f->nstep; s++) {
        ProfileRow r = profile_step(p, fn, s);
        json_array_append_new(events, memory_event(alive + s * PEFT_MEM_CLASSES, *at));
        json_array_append_new(events, step_event(&f->step[s], &r, *at));
        *at += r.us;
    }
    free(alive);
    return alive != NULL;
}

bool profile_trace(FILE *out, const Profile *p, PeftError *err) {
    double at = 0;
    json_t *events = json_array();
    name_rows(events);
    bool ok = add_function(events, p, PEFT_FN_TRAIN, &at, err) &&
              add_function(events, p, PEFT_FN_UPDATE, &at, err);
    json_t *root = json_pack("{s:s, s:o}", "displayTimeUnit", "ms", "traceEvents", events);
    if (ok && json_dumpf(root, out, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0)
        ok = peft_fail(err, "cannot write the trace");
    json_decref(root);
    return ok;
}
