/* The text, JSON and CSV of a profile. */
#include "profile_rows.h"

#include "../memreport.h"
#include "../startup.h"

#include <stdlib.h>
#include <string.h>

enum { RANGES = 16, BAR = 32 }; /* of the memory timeline */

static const char *const fn_title[PEFT_FN_COUNT] = {
    [PEFT_FN_TRAIN] = "train", [PEFT_FN_UPDATE] = "update"};

/* ---- text ---- */

static void print_head(FILE *out, const Profile *p, double in_steps_us) {
    const Exec *x = p->x;
    fprintf(out, "%.3f ms a step (median of %lld measurements; %.3f to %.3f), ", 1e3 * p->median,
            (long long)p->rounds, 1e3 * p->least, 1e3 * p->most);
    if (x->device == DEVICE_CUDA)
        fprintf(out, "a GPU in %s", x->compute == COMPUTE_BF16 ? "bf16" : "fp32");
    else
        fprintf(out, "%d threads", x->threads);
    fprintf(out, ", arena %.1f MB\n", (double)x->plan.peak / 1e6);
    fprintf(out, "%.2f s to the end of the first step:", startup_total());
    for (int i = 0; i < STARTUP_PHASES; i++)
        fprintf(out, "%s %s %.2f", i ? "," : "", startup_name[i], startup_seconds((StartupPhase)i));
    fprintf(out, "\n%.3f ms on average in the kernels below, each timed apart\n",
            in_steps_us / 1e3);
}

static void print_rows(FILE *out, const ProfileRow *row, int n, View view) {
    fprintf(out, "\n%-42s %6s %10s %7s %9s %8s %8s\n", view_name[view], "calls", "us/step", "share",
            "MB/step", "GB/s", "TFLOP/s");
    for (int i = 0; i < n; i++) {
        const ProfileRow *r = &row[i];
        fprintf(out, "%-42.42s %6.4g %10.1f %6.1f%% %9.2f %8.1f %8.3f\n", r->key, r->calls, r->us,
                r->percent, r->bytes / 1e6, r->gb_s, r->tflop_s);
    }
}

static int64_t sum(const int64_t by_class[PEFT_MEM_CLASSES]) {
    int64_t all = 0;
    for (int c = 0; c < PEFT_MEM_CLASSES; c++) all += by_class[c];
    return all;
}

/* The step of a range at which most is alive. */
static int fullest(const int64_t *alive, int first, int last) {
    int best = first;
    for (int s = first; s <= last; s++)
        if (sum(alive + s * PEFT_MEM_CLASSES) > sum(alive + best * PEFT_MEM_CLASSES)) best = s;
    return best;
}

static void print_range(FILE *out, const int64_t *by_class, int64_t most, const PeftStep *s,
                        int at) {
    int stars = most ? (int)(BAR * sum(by_class) / most) : 0;
    fprintf(out, "%5d %-9s %9.2f", at, pass_name[s->pass], (double)sum(by_class) / 1e6);
    for (int c = 0; c < PEFT_MEM_CLASSES; c++) fprintf(out, " %11.2f", (double)by_class[c] / 1e6);
    fprintf(out, "  %.*s\n", stars, "################################");
}

/* The steps in at most RANGES ranges, each by its fullest step. */
static bool print_timeline(FILE *out, const Exec *x, PeftError *err) {
    const PeftFunction *f = &x->program->fn[PEFT_FN_TRAIN];
    int64_t *alive = memreport_timeline(x, PEFT_FN_TRAIN, err);
    if (!alive) return false;
    fprintf(out, "\nMB alive over the steps of the worst batch (the fullest step of each range)\n");
    fprintf(out, "%5s %-9s %9s", "step", "pass", "all");
    for (int c = 0; c < PEFT_MEM_CLASSES; c++) fprintf(out, " %11s", mem_class_name[c]);
    fputc('\n', out);
    int64_t most = sum(alive + fullest(alive, 0, f->nstep - 1) * PEFT_MEM_CLASSES);
    for (int i = 0; i < RANGES; i++) {
        int first = (int)((int64_t)f->nstep * i / RANGES);
        int last = (int)((int64_t)f->nstep * (i + 1) / RANGES) - 1;
        if (first > last) continue;
        int at = fullest(alive, first, last);
        print_range(out, alive + at * PEFT_MEM_CLASSES, most, &f->step[at], at);
    }
    free(alive);
    return true;
}

static double total_us(const ProfileRow *row, int n) {
    double us = 0;
    for (int i = 0; i < n; i++) us += row[i].us;
    return us;
}

bool profile_text(FILE *out, const Profile *p, PeftError *err) {
    for (View v = 0; v < VIEW_COUNT; v++) {
        int n;
        ProfileRow *row = profile_rows(p, v, &n, err);
        if (!row) return false;
        if (v == 0) print_head(out, p, total_us(row, n));
        print_rows(out, row, n, v);
        free(row);
    }
    if (!print_timeline(out, p->x, err)) return false;
    fprintf(out, "\nat the peak:\n");
    if (!memreport_peak(out, p->x, err)) return false;
    fputc('\n', out);
    memreport_used(out, p->x);
    return true;
}

/* ---- JSON ---- */

static json_t *json_rows(const ProfileRow *row, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        const ProfileRow *r = &row[i];
        json_array_append_new(list, json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "key", r->key,
                                              "calls", r->calls, "us_per_step", r->us, "percent",
                                              r->percent, "bytes", r->bytes, "gb_s", r->gb_s,
                                              "tflop_s", r->tflop_s));
    }
    return list;
}

static json_t *json_timeline(const Exec *x, PeftFn fn, PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    int64_t *alive = memreport_timeline(x, fn, err);
    json_t *list = alive ? json_array() : NULL;
    for (int s = 0; list && s < f->nstep; s++) {
        json_t *step = json_pack("{s:s, s:s, s:s, s:s}", "pass", pass_name[f->step[s].pass],
                                 "kernel", x->program->kernel[f->step[s].kernel].name, "nodes",
                                 f->step[s].label, "line", f->step[s].where);
        for (int c = 0; step && c < PEFT_MEM_CLASSES; c++)
            json_object_set_new(step, mem_class_name[c],
                                json_integer(alive[s * PEFT_MEM_CLASSES + c]));
        json_array_append_new(list, step);
    }
    free(alive);
    return list;
}

static bool add_memory(json_t *root, const Exec *x, PeftError *err) {
    json_t *plan = memreport_json(x, err);
    json_t *timeline = plan ? json_object() : NULL;
    if (!plan) return false;
    json_object_set_new(root, "memory", plan);
    json_object_set_new(root, "timeline", timeline);
    json_object_set_new(root, "reached_bytes", json_integer(x->high_water));
    if (exec_driver_bytes(x) >= 0)
        json_object_set_new(root, "driver_bytes", json_integer(exec_driver_bytes(x)));
    static const PeftFn fns[] = {PEFT_FN_TRAIN, PEFT_FN_UPDATE};
    for (int i = 0; i < 2; i++) {
        json_t *list = json_timeline(x, fns[i], err);
        if (!list) return false;
        json_object_set_new(timeline, fn_title[fns[i]], list);
    }
    return true;
}

static json_t *json_startup(void) {
    json_t *all = json_pack("{s:f}", "total", startup_total());
    for (int i = 0; i < STARTUP_PHASES; i++)
        json_object_set_new(all, startup_name[i], json_real(startup_seconds((StartupPhase)i)));
    return all;
}

bool profile_json(FILE *out, const Profile *p, PeftError *err) {
    const Exec *x = p->x;
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:I, s:i, s:f, s:f, s:f, s:I}", "program", x->program->name, "device",
        device_name(x->device), "compute", x->compute == COMPUTE_BF16 ? "bf16" : "fp32", "steps",
        (json_int_t)p->steps, "threads", x->threads, "ms_median", 1e3 * p->median, "ms_min",
        1e3 * p->least, "ms_max", 1e3 * p->most, "arena_bytes", (json_int_t)x->plan.peak);
    bool ok = root || peft_fail(err, "cannot make the profile as JSON");
    if (ok) json_object_set_new(root, "startup_s", json_startup());
    for (View v = 0; ok && v < VIEW_COUNT; v++) {
        int n;
        ProfileRow *row = profile_rows(p, v, &n, err);
        ok = row != NULL;
        if (ok && v == 0)
            json_object_set_new(root, "ms_in_kernels", json_real(total_us(row, n) / 1e3));
        if (ok) json_object_set_new(root, view_name[v], json_rows(row, n));
        free(row);
    }
    ok = ok && add_memory(root, x, err);
    if (ok && json_dumpf(root, out, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0)
        ok = peft_fail(err, "cannot write the profile as JSON");
    fputc('\n', out);
    json_decref(root);
    return ok;
}

/* ---- CSV ---- */

static void csv_text(FILE *out, const char *s) {
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"') fputc('"', out);
        fputc(*s, out);
    }
    fputc('"', out);
}

bool profile_csv(FILE *out, const Profile *p, PeftError *err) {
    fprintf(out, "view,key,calls,us,percent,bytes,gb_s,tflop_s\n");
    for (View v = 0; v < VIEW_COUNT; v++) {
        int n;
        ProfileRow *row = profile_rows(p, v, &n, err);
        if (!row) return false;
        for (int i = 0; i < n; i++) {
            const ProfileRow *r = &row[i];
            fprintf(out, "%s,", view_name[v]);
            csv_text(out, r->key);
            fprintf(out, ",%.9g,%.9g,%.9g,%.0f,%.9g,%.9g\n", r->calls, r->us, r->percent, r->bytes,
                    r->gb_s, r->tflop_s);
        }
        free(row);
    }
    return true;
}
