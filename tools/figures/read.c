/* Reads comparison.json, as docs/comparison.schema.json describes it. The file may come from
 * anywhere: kind and range of every field that is drawn are checked, and the first that is wrong
 * ends the reading, since a figure with a bar left out would mislead. */
#include "figures.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/io/file.h"
#include "../../runtime/io/json.h"

enum { MAX_JSON = 64 << 20, FIRST_FREE_STYLE = 5 };

const char *const class_name[CLASSES] = {"weights",  "gradients", "optimizer", "activations",
                                         "backward", "workspace", "inputs",    "gaps and other"};

typedef struct Reader {
    const char *path; /* of the file */
    char where[160];  /* of the object inside it: "lora_r8.runs[0]." */
    PeftError *err;
} Reader;

/* ---- fields ---- */

/* Keys reach messages through json_show, which escapes them. */
static void at(Reader *r, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void at(Reader *r, const char *key, const char *fmt, ...) {
    char shown[JSON_SHOWN];
    json_t *text = json_string(key);
    int n = snprintf(r->where, sizeof r->where, "%s", text ? json_show(text, shown) : "?");
    json_decref(text);
    va_list ap;
    va_start(ap, fmt);
    if (n > 0 && (size_t)n < sizeof r->where)
        vsnprintf(r->where + n, sizeof r->where - (size_t)n, fmt, ap);
    va_end(ap);
}

static bool wrong(const Reader *r, const json_t *v, const char *name, const char *expected) {
    char shown[JSON_SHOWN];
    if (!v)
        return peft_fail(r->err, "%s: %s%s is missing; `make compare` writes the file anew",
                         r->path, r->where, name);
    return peft_fail(r->err, "%s: %s%s: expected %s, found %s", r->path, r->where, name, expected,
                     json_show(v, shown));
}

static bool get_count(const Reader *r, json_t *o, const char *name, int64_t least, int64_t *out) {
    json_t *v = json_object_get(o, name);
    if (!json_is_integer(v) || json_integer_value(v) < least)
        return wrong(r, v, name, least ? "a whole number from 1" : "a whole number from 0");
    *out = json_integer_value(v);
    return true;
}

static bool get_real(const Reader *r, json_t *o, const char *name, double most, double *out) {
    json_t *v = json_object_get(o, name);
    *out = json_is_number(v) ? json_number_value(v) : NAN;
    if (*out >= 0 && *out <= most) return true;
    return wrong(r, v, name,
                 most == 1     ? "a number from 0 to 1"
                 : most == 100 ? "a number from 0 to 100"
                               : "a number from 0");
}

/* A number from 0, or null: NAN. */
static bool get_optional(const Reader *r, json_t *o, const char *name, double *out) {
    if (!json_is_null(json_object_get(o, name))) return get_real(r, o, name, INFINITY, out);
    *out = NAN;
    return true;
}

static bool get_text(const Reader *r, json_t *o, const char *name, const char **out) {
    json_t *v = json_object_get(o, name);
    *out = json_string_value(v);
    return *out || wrong(r, v, name, "a string");
}

static bool get_object(const Reader *r, json_t *o, const char *name, json_t **out) {
    *out = json_object_get(o, name);
    return json_is_object(*out) || wrong(r, *out, name, "an object");
}

static bool get_list(const Reader *r, json_t *o, const char *name, int most, json_t **out) {
    *out = json_object_get(o, name);
    size_t n = json_array_size(*out);
    if (n >= 1 && n <= (size_t)most) return true;
    char expected[48];
    snprintf(expected, sizeof expected, "a list of 1 to %d", most);
    return wrong(r, *out, name, expected);
}

/* ---- a method ---- */

static int style_of(const char *key, int *next) {
    static const char *const known[FIRST_FREE_STYLE] = {"full_ft", "lora_r8", "lora_r16", "qlora",
                                                        "adapters"};
    for (int i = 0; i < FIRST_FREE_STYLE; i++)
        if (strcmp(key, known[i]) == 0) return i + 1;
    return ++*next;
}

static bool read_memory(Reader *r, json_t *o, Method *m) {
    json_t *memory, *v;
    const char *key;
    if (!get_object(r, o, "memory_bytes", &memory)) return false;
    at(r, m->key, ".memory_bytes.");
    for (int i = 0; i < CLASSES - 1; i++)
        if (!get_count(r, memory, class_name[i], 0, &m->memory[i])) return false;
    json_object_foreach(memory, key, v) {
        int i = 0;
        int64_t bytes;
        while (i < CLASSES - 1 && strcmp(key, class_name[i]) != 0) i++;
        if (i < CLASSES - 1) continue;
        if (!get_count(r, memory, key, 0, &bytes)) return false;
        if (__builtin_add_overflow(m->memory[CLASSES - 1], bytes, &m->memory[CLASSES - 1]))
            return wrong(r, v, key, "bytes that can be added up");
    }
    int64_t sum = 0;
    for (int i = 0; i < CLASSES; i++)
        if (__builtin_add_overflow(sum, m->memory[i], &sum))
            return wrong(r, memory, "*", "bytes that can be added up");
    if (m->planned > sum) m->memory[CLASSES - 1] += m->planned - sum;
    at(r, m->key, ".");
    return true;
}

/* Adds the value of one seed: count, mean and sum of squared deviations (Welford). */
typedef struct Sum {
    int n;
    double mean, squares;
} Sum;

static void sum_add(Sum *s, double v) {
    if (!(v - v == 0)) return;
    double d = v - s->mean;
    s->mean += d / ++s->n;
    s->squares += d * (v - s->mean);
}

static bool read_epoch(Reader *r, json_t *e, Sum sum[CURVES], double *seconds) {
    double v[CURVES];
    if (!json_is_object(e)) return wrong(r, e, "epoch", "an object");
    if (!get_optional(r, e, "train_loss", &v[0]) || !get_optional(r, e, "val_loss", &v[1]) ||
        !get_real(r, e, "val_f1_macro", 1, &v[2]) || !get_real(r, e, "seconds", INFINITY, seconds))
        return false;
    for (int i = 0; i < CURVES; i++) sum_add(&sum[i], v[i]);
    return true;
}

static bool read_curves(Reader *r, json_t *runs, Method *m, Sum (*sum)[CURVES]) {
    for (int s = 0; s < m->seeds; s++) {
        json_t *list;
        at(r, m->key, ".runs[%d].", s);
        if (!get_list(r, json_array_get(runs, (size_t)s), "epochs", MAX_EPOCHS, &list))
            return false;
        for (int e = 0; e < (int)json_array_size(list); e++) {
            at(r, m->key, ".runs[%d].epochs[%d].", s, e);
            if (!read_epoch(r, json_array_get(list, (size_t)e), sum[e], &m->seconds[m->nseconds++]))
                return false;
        }
    }
    for (int e = 0; e < m->epochs; e++)
        for (int i = 0; i < CURVES; i++) {
            const Sum *s = &sum[e][i];
            m->curve[e][i].mean = s->n ? s->mean : NAN;
            m->curve[e][i].spread = s->n > 1 ? sqrt(s->squares / (s->n - 1)) : NAN;
        }
    return true;
}

static bool read_runs(Reader *r, json_t *o, Method *m) {
    json_t *runs;
    if (!get_list(r, o, "runs", MAX_SEEDS, &runs)) return false;
    m->seeds = (int)json_array_size(runs);
    size_t total = 0;
    for (int s = 0; s < m->seeds; s++) {
        size_t n = json_array_size(json_object_get(json_array_get(runs, (size_t)s), "epochs"));
        if (n > MAX_EPOCHS) n = 0; /* refused below */
        total += n;
        if ((int)n > m->epochs) m->epochs = (int)n;
    }
    m->curve = peft_alloc((size_t)m->epochs + 1, sizeof *m->curve, r->err);
    m->seconds = peft_alloc(total + 1, sizeof *m->seconds, r->err);
    Sum(*sum)[CURVES] = peft_zalloc((size_t)m->epochs + 1, sizeof *sum, r->err);
    bool ok = m->curve && m->seconds && sum && read_curves(r, runs, m, sum);
    free(sum);
    return ok;
}

static bool read_method(Reader *r, json_t *o, Method *m) {
    script_shorten(m->key, NAME_SHOWN, false, m->name);
    at(r, m->key, ".");
    if (!json_is_object(o)) return wrong(r, o, "*", "an object");
    return get_count(r, o, "trainable_params", 1, &m->trainable) &&
           get_count(r, o, "planned_bytes", 0, &m->planned) &&
           get_count(r, o, "reached_bytes", 0, &m->reached) &&
           get_count(r, o, "saved_bytes", 0, &m->saved) &&
           get_real(r, o, "trainable_percent", 100, &m->percent) &&
           get_real(r, o, "f1_macro", 1, &m->f1) &&
           get_optional(r, o, "f1_macro_spread", &m->f1_spread) &&
           get_real(r, o, "f1_macro_noise", 1, &m->noise) &&
           get_real(r, o, "epoch_time_s", INFINITY, &m->epoch_time) &&
           get_optional(r, o, "epoch_time_spread_s", &m->time_spread) && read_memory(r, o, m) &&
           read_runs(r, o, m);
}

/* ---- the whole ---- */

static bool read_about(Reader *r, Figures *f) {
    json_t *about, *version;
    char shown[JSON_SHOWN];
    if (!get_object(r, f->root, "about", &about)) return false;
    at(r, "about", ".");
    version = json_object_get(about, "version");
    if (!version) return wrong(r, NULL, "version", "");
    if (!json_is_integer(version) || json_integer_value(version) != COMPARISON_VERSION)
        return peft_fail(r->err,
                         "%s is of version %s and this program reads version %d; `make compare` "
                         "writes it anew from the runs",
                         r->path, json_show(version, shown), COMPARISON_VERSION);
    return get_text(r, about, "base", &f->base) && get_text(r, about, "data", &f->data) &&
           get_text(r, about, "device", &f->device) && get_text(r, about, "date", &f->date) &&
           get_text(r, about, "commit", &f->commit) && get_text(r, about, "compute", &f->compute) &&
           get_text(r, about, "processor", &f->processor) && get_text(r, about, "gpu", &f->gpu) &&
           get_text(r, about, "driver", &f->driver) &&
           get_count(r, about, "test_rows", 0, &f->test_rows);
}

static bool read_baseline(Reader *r, Figures *f) {
    json_t *o = json_object_get(f->root, "baseline");
    if (!o) return true;
    at(r, "baseline", ".");
    f->baseline = true;
    return get_real(r, o, "f1_macro", 1, &f->baseline_f1) &&
           get_count(r, o, "trainable_params", 0, &f->baseline_parameters);
}

static bool read_methods(Reader *r, Figures *f) {
    const char *key;
    json_t *o;
    int next = FIRST_FREE_STYLE;
    json_object_foreach(f->root, key, o) {
        if (!strcmp(key, "about") || !strcmp(key, "takeaways") || !strcmp(key, "baseline"))
            continue;
        if (f->n == MAX_METHODS)
            return peft_fail(r->err, "%s compares more than %d methods", r->path, MAX_METHODS);
        Method *m = &f->method[f->n++];
        m->key = key;
        m->style = style_of(key, &next);
        if (!read_method(r, o, m)) return false;
        if (f->n > 1) continue;
        if (!get_text(r, o, "instructions", &f->instructions) ||
            !get_count(r, o, "threads", 0, &f->threads))
            return false;
    }
    return f->n || peft_fail(r->err, "%s compares nothing: there is no method in it", r->path);
}

bool figures_read(Figures *f, const char *path, PeftError *err) {
    Reader r = {.path = path, .err = err};
    size_t n;
    char *text = file_read(path, MAX_JSON, &n, err);
    f->root = text ? json_parse(text, n, path, err) : NULL;
    free(text);
    if (!f->root || !read_about(&r, f) || !read_methods(&r, f) || !read_baseline(&r, f))
        return false;
    f->cpu = strcmp(f->device, "cpu") == 0;
    int64_t most = 0;
    for (int i = 0; i < f->n; i++)
        if (f->method[i].reached > most) most = f->method[i].reached;
    f->byte_unit = most < 1000000000 ? 1e6 : 1e9;
    f->unit_name = most < 1000000000 ? "MB" : "GB";
    return true;
}

void figures_free(Figures *f) {
    for (int i = 0; i < f->n; i++) {
        free(f->method[i].curve);
        free(f->method[i].seconds);
    }
    json_decref(f->root);
    *f = (Figures){0};
}
