/* comparison.json, described by docs/comparison.schema.json. Every variant has the four fields of
 * the brief and, beside them, how they came about. Numbers are printed with ten digits; one that
 * does not exist (the spread over one seed) is null. */
#include "compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/io/file.h"
#include "../../runtime/io/json.h"

/* ---- a variant ---- */

static json_t *run_json(const Run *r) {
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:I, s:o, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:O}",
                     "seed", (json_int_t)r->seed, "f1_macro", real_json(r->f1), "accuracy",
                     real_json(r->accuracy), "loss", real_json(r->loss), "val_f1_macro",
                     real_json(r->val_f1), "best_epoch", (json_int_t)r->best_epoch, "total_time_s",
                     real_json(r->total_time), "date", r->date, "peftc_version", r->version,
                     "commit", r->commit, "program_hash", r->program_hash, "processor",
                     r->processor, "gpu", r->gpu, "driver", r->driver, "epochs", r->epochs);
}

static json_t *variant_json(const Variant *v) {
    const Run *r = &v->run[0];
    json_t *runs = json_array(), *seeds = json_array();
    for (int i = 0; i < v->n; i++) {
        json_array_append_new(runs, run_json(&v->run[i]));
        json_array_append_new(seeds, json_integer(v->run[i].seed));
    }
    json_t *o =
        json_pack("{s:I, s:o, s:o, s:o}", "trainable_params", (json_int_t)r->trainable, "f1_macro",
                  real_json(v->f1), "peak_vram_gb", real_json((double)v->reached / 1e9),
                  "epoch_time_s", real_json(v->epoch_time));
    json_t *more = json_pack(
        "{s:I, s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:o, s:I, s:o, s:I, s:s, "
        "s:s, s:s, s:I, s:O, s:o}",
        "total_params", (json_int_t)r->total, "trainable_percent",
        real_json(100 * (double)r->trainable / (double)r->total), "device", r->device, "compute",
        r->compute, "seeds", seeds, "f1_macro_spread", real_json(v->f1_spread), "f1_macro_noise",
        real_json(v->noise), "val_f1_macro", real_json(v->val_f1), "accuracy",
        real_json(v->accuracy), "epoch_time_spread_s", real_json(v->epoch_time_spread),
        "planned_bytes", (json_int_t)v->planned, "reached_bytes", (json_int_t)v->reached,
        "driver_bytes", v->driver_bytes < 0 ? json_null() : json_integer(v->driver_bytes),
        "lower_bound_bytes", (json_int_t)r->lower_bound, "memory_bytes", memory_json(r),
        "saved_bytes", (json_int_t)r->saved_bytes, "program", r->program, "source", r->source,
        "instructions", r->instructions, "threads", (json_int_t)r->threads, "fit", r->fit, "runs",
        runs);
    json_object_update(o, more);
    json_decref(more);
    return o;
}

/* ---- the whole ---- */

/* What all runs agree on, or "several". */
static const char *common(const char *so_far, const char *v) {
    return !so_far || strcmp(so_far, v) == 0 ? v : "several";
}

static json_t *about_json(const Comparison *c) {
    const Run *r = &c->variant[0]->run[0];
    const char *newest = "", *version = NULL, *commit = NULL, *processor = NULL, *gpu = NULL,
               *driver = NULL, *compute = NULL;
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->variant[i]->n; k++) {
            const Run *run = &c->variant[i]->run[k];
            if (strcmp(run->date, newest) > 0) newest = run->date;
            version = common(version, run->version), commit = common(commit, run->commit);
            processor = common(processor, run->processor);
            gpu = common(gpu, run->gpu), driver = common(driver, run->driver);
            compute = common(compute, run->compute);
        }
    return json_pack("{s:i, s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "version",
                     COMPARISON_VERSION, "base", r->base, "data", r->data, "test_rows",
                     (json_int_t)r->test_rows, "device", r->device, "compute", compute, "processor",
                     processor, "gpu", gpu, "driver", driver, "date", newest, "peftc_version",
                     version, "commit", commit, "base_bytes", (json_int_t)c->base_bytes);
}

static json_t *comparison_json(const Comparison *c) {
    json_t *root = json_object(), *sentences = json_array();
    for (int i = 0; i < c->n; i++)
        json_object_set_new(root, c->variant[i]->key, variant_json(c->variant[i]));
    for (int i = 0; i < c->nsentence; i++)
        json_array_append_new(sentences, json_string(c->sentence[i]));
    if (c->baseline.root) json_object_set(root, "baseline", c->baseline.root);
    json_object_set_new(root, "takeaways", sentences);
    json_object_set_new(root, "about", about_json(c));
    return root;
}

/* What stands at `path` may be thrown away: nothing, or a comparison of the same base and data. */
static bool check_old(const Comparison *c, const char *path, PeftError *err) {
    enum { MAX_JSON = 64 << 20 };
    const char *advice = "move it away, name another place with METRICS=DIR, or pass REPLACE=1";
    char shown[JSON_SHOWN];
    size_t n;
    if (!file_exists(path)) return true;
    char *text = file_read(path, MAX_JSON, &n, err);
    json_t *old = text ? json_parse(text, n, path, err) : NULL;
    free(text);
    if (!old) return false;
    const Run *r = &c->variant[0]->run[0];
    const json_t *about = json_object_get(old, "about"),
                 *version = json_object_get(about, "version");
    const char *base = json_string_value(json_object_get(about, "base"));
    const char *data = json_string_value(json_object_get(about, "data"));
    bool ok = true;
    if (!json_is_integer(version) || json_integer_value(version) != COMPARISON_VERSION)
        ok = peft_fail(err, "%s is not replaced: its version is %s and this program writes %d; %s",
                       path, version ? json_show(version, shown) : "not given", COMPARISON_VERSION,
                       advice);
    else if (!base || !data || strcmp(base, r->base) != 0 || strcmp(data, r->data) != 0)
        ok = peft_fail(err,
                       "%s is not replaced: it compares runs of other data (base %s, data %s); %s",
                       path, base ? base : "not given", data ? data : "not given", advice);
    json_decref(old);
    return ok;
}

bool comparison_write(const Comparison *c, const char *path, bool replace, PeftError *err) {
    if (!c->n) return peft_fail(err, "%s holds no finished run; nothing to write", c->dir);
    if (!replace && !check_old(c, path, err)) return false;
    json_t *root = comparison_json(c);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    json_decref(root);
    bool ok = text ? file_write_atomic(path, text, strlen(text), err)
                   : peft_fail(err, "cannot write %s: out of memory", path);
    free(text);
    return ok;
}
