/* Finds and reads the runs of a folder. run.json comes from a disk and is checked field by field:
 * kind, range and, for every number, that it is one. */
#include "compare.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../../runtime/cli/origin.h"
#include "../../runtime/io/file.h"
#include "../../runtime/io/json.h"

enum { MAX_JSON = 64 << 20 };

const char *const memory_class[MEMORY_CLASSES] = {
    "weights", "gradients", "optimizer", "activations", "backward", "workspace", "inputs"};

/* ---- fields ---- */

typedef struct Reader {
    const char *path; /* of the file, for messages */
    PeftError *err;
} Reader;

/* The value at a dotted path, or NULL. */
static json_t *lookup(json_t *root, const char *name) {
    char part[64];
    for (const char *at = name; root && at;) {
        const char *dot = strchr(at, '.');
        snprintf(part, sizeof part, "%.*s", dot ? (int)(dot - at) : (int)strlen(at), at);
        root = json_object_get(root, part);
        at = dot ? dot + 1 : NULL;
    }
    return root;
}

static bool wrong(const Reader *r, const json_t *v, const char *name, const char *expected) {
    char shown[JSON_SHOWN];
    if (!v) return peft_fail(r->err, "%s: %s is missing; train this run again", r->path, name);
    return peft_fail(r->err, "%s: %s: expected %s, found %s", r->path, name, expected,
                     json_show(v, shown));
}

static bool get_count(const Reader *r, json_t *root, const char *name, int64_t *out) {
    json_t *v = lookup(root, name);
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return wrong(r, v, name, "a whole number from 0");
    *out = json_integer_value(v);
    return true;
}

static bool get_real(const Reader *r, json_t *root, const char *name, double most, double *out) {
    json_t *v = lookup(root, name);
    *out = json_is_number(v) ? json_number_value(v) : NAN;
    if (*out >= 0 && *out <= most) return true;
    return wrong(r, v, name, most == 1 ? "a number from 0 to 1" : "a number from 0");
}

static bool get_text(const Reader *r, json_t *root, const char *name, const char **out) {
    json_t *v = lookup(root, name);
    *out = json_string_value(v);
    return *out || wrong(r, v, name, "a string");
}

/* A string that runs made before it was noted do not have: then "". */
static bool get_note(const Reader *r, json_t *root, const char *name, const char **out) {
    *out = "";
    return !lookup(root, name) || get_text(r, root, name, out);
}

/* The JSON object in a file; NULL with a message when it cannot be read. */
static json_t *read_object(const char *path, PeftError *err) {
    size_t n;
    char *text = file_read(path, MAX_JSON, &n, err);
    json_t *root = text ? json_parse(text, n, path, err) : NULL;
    free(text);
    return root;
}

/* ---- one run ---- */

static bool check_version(const Reader *r, json_t *root, int version) {
    json_t *v = json_object_get(root, "version");
    char shown[JSON_SHOWN];
    if (json_is_integer(v) && json_integer_value(v) == version) return true;
    if (!v) return wrong(r, v, "version", "");
    return peft_fail(r->err,
                     "%s is of version %s and this program reads version %d; train it again, or "
                     "compare it with the peftc that made it",
                     r->path, json_show(v, shown), version);
}

static bool read_memory(const Reader *r, Run *run) {
    for (int i = 0; i < MEMORY_CLASSES; i++) {
        char name[64];
        snprintf(name, sizeof name, "memory.planned_by_class.%s", memory_class[i]);
        if (!get_count(r, run->root, name, &run->memory[i])) return false;
    }
    run->driver_bytes = -1;
    if (lookup(run->root, "memory.driver_bytes") &&
        !get_count(r, run->root, "memory.driver_bytes", &run->driver_bytes))
        return false;
    return get_count(r, run->root, "memory.planned_bytes", &run->planned) &&
           get_count(r, run->root, "memory.reached_bytes", &run->reached) &&
           get_count(r, run->root, "memory.lower_bound_bytes", &run->lower_bound);
}

static bool read_epochs(const Reader *r, Run *run) {
    run->epochs = json_object_get(run->root, "epochs");
    run->nepoch = (int64_t)json_array_size(run->epochs);
    if (!run->nepoch) return wrong(r, run->epochs, "epochs", "a list of epochs");
    if (!get_count(r, run->root, "best_epoch", &run->best_epoch)) return false;
    if (run->best_epoch < 1 || run->best_epoch > run->nepoch)
        return wrong(r, json_object_get(run->root, "best_epoch"), "best_epoch",
                     "one of the epochs");
    for (int64_t i = 0; i < run->nepoch; i++) {
        double seconds, f1;
        json_t *e = json_array_get(run->epochs, (size_t)i);
        if (!get_real(r, e, "seconds", INFINITY, &seconds) ||
            !get_real(r, e, "val_f1_macro", 1, &f1))
            return false;
        run->epoch_seconds += seconds;
        run->epoch_seconds_square += seconds * seconds;
        if (i + 1 == run->best_epoch) run->val_f1 = f1;
    }
    return true;
}

static bool read_fields(const Reader *r, Run *run) {
    run->fit = json_object_get(run->root, "fit");
    return check_version(r, run->root, RUN_VERSION) &&
           get_text(r, run->root, "program", &run->program) &&
           get_text(r, run->root, "source", &run->source) &&
           get_text(r, run->root, "base", &run->base) &&
           get_text(r, run->root, "data", &run->data) &&
           get_text(r, run->root, "device", &run->device) &&
           get_text(r, run->root, "instructions", &run->instructions) &&
           get_count(r, run->root, "fit.seed", &run->seed) &&
           get_count(r, run->root, "threads", &run->threads) &&
           get_count(r, run->root, "trainable_params", &run->trainable) &&
           get_count(r, run->root, "total_params", &run->total) &&
           get_count(r, run->root, "test_rows", &run->test_rows) &&
           get_real(r, run->root, "test_f1_macro", 1, &run->f1) &&
           get_real(r, run->root, "test_accuracy", 1, &run->accuracy) &&
           get_real(r, run->root, "test_loss", INFINITY, &run->loss) &&
           get_real(r, run->root, "total_time_s", INFINITY, &run->total_time) &&
           read_memory(r, run) && read_epochs(r, run);
}

/* ---- beside run.json ---- */

/* Sizes on disk: those of the files, or what run.json says where they are not kept. */
static bool read_sizes(const Reader *r, Run *run) {
    run->saved_bytes = weights_on_disk(run->dir);
    run->base_bytes = weights_on_disk(run->base);
    if (!run->saved_bytes && lookup(run->root, "saved_bytes") &&
        !get_count(r, run->root, "saved_bytes", &run->saved_bytes))
        return false;
    if (!run->base_bytes && lookup(run->root, "base_bytes") &&
        !get_count(r, run->root, "base_bytes", &run->base_bytes))
        return false;
    return run->saved_bytes ||
           peft_fail(r->err,
                     "%s holds no trained weights (*.safetensors) and its run.json does not say "
                     "how large they were; train this run again",
                     run->dir);
}

static bool read_notes(const Reader *r, Run *run) {
    return get_note(r, run->root, "peftc_version", &run->version) &&
           get_note(r, run->root, "commit", &run->commit) &&
           get_note(r, run->root, "program_hash", &run->program_hash) &&
           get_note(r, run->root, "date", &run->date) &&
           get_note(r, run->root, "processor", &run->processor) &&
           get_note(r, run->root, "gpu", &run->gpu) &&
           get_note(r, run->root, "driver", &run->driver) &&
           get_note(r, run->root, "compute", &run->compute);
}

void run_free(Run *run) {
    json_decref(run->root);
    free(run->dir);
    memset(run, 0, sizeof *run);
}

bool run_read(Run *run, const char *dir, PeftError *err) {
    struct stat st;
    memset(run, 0, sizeof *run);
    char *path = path_join(dir, "run.json", err);
    Reader r = {path, err};
    run->dir = path ? strdup(dir) : NULL;
    run->root = run->dir ? read_object(path, err) : NULL;
    bool ok = run->root && read_fields(&r, run) && read_sizes(&r, run) && read_notes(&r, run);
    if (ok && stat(path, &st) == 0) run->finished = (int64_t)st.st_mtime;
    free(path);
    if (!ok) run_free(run);
    return ok;
}

bool run_check(const char *dir, PeftError *err) {
    Run run;
    if (!run_read(&run, dir, err)) return false;
    run_free(&run);
    return weights_on_disk(dir) ||
           peft_fail(err, "%s holds no trained weights (*.safetensors); train this run again", dir);
}

/* ---- one variant ---- */

static void variant_free(Variant *v) {
    for (int i = 0; v && i < v->n; i++) run_free(&v->run[i]);
    free(v);
}

static int by_seed(const void *a, const void *b) {
    const Run *x = a, *y = b;
    return (x->seed > y->seed) - (x->seed < y->seed);
}

/* The brief calls the NF4 variant qlora; every other key is the program's name. */
static void set_key(Variant *v, const char *program) {
    snprintf(v->key, sizeof v->key, "%s", strcmp(program, "qlora_r16") == 0 ? "qlora" : program);
}

/* Seeds of one variant may differ in nothing else that a mean hides. */
static bool check_same_program(const Variant *v, const Run *run, PeftError *err) {
    const Run *first = &v->run[0];
    if (!v->n) return true;
    if (run->trainable != first->trainable || run->total != first->total ||
        run->nepoch != first->nepoch || strcmp(run->device, first->device) != 0 ||
        strcmp(run->compute, first->compute) != 0)
        return peft_fail(err,
                         "%s and %s are not runs of one program with the same epochs and device; "
                         "move one of them away",
                         first->dir, run->dir);
    return true;
}

/* A folder without run.json is a run that is not finished yet. */
static bool add_run(Comparison *c, Variant *v, const char *dir, PeftError *err) {
    PeftError trouble = {{0}, 0};
    char *path = path_join(dir, "run.json", err);
    bool there = path && file_exists(path);
    free(path);
    if (!there || v->n == MAX_RUNS) return path != NULL;
    Run *run = &v->run[v->n];
    if (!run_read(run, dir, &trouble) || !check_same_program(v, run, &trouble)) {
        fprintf(stderr, "compare: left out: %s\n", trouble.msg);
        c->broken++;
        run_free(run);
    } else {
        v->n++;
    }
    return true;
}

static bool is_number(const char *s) {
    return *s && strspn(s, "0123456789") == strlen(s);
}

/* Adds the runs dir/PREFIXn for every number n. */
static bool read_runs(Comparison *c, Variant *v, const char *dir, const char *prefix,
                      PeftError *err) {
    struct dirent **entry;
    size_t k = strlen(prefix);
    int n = scandir(dir, &entry, NULL, alphasort);
    bool ok = true;
    for (int i = 0; i < n; i++) {
        const char *name = entry[i]->d_name;
        if (ok && strncmp(name, prefix, k) == 0 && is_number(name + k)) {
            char *run = path_join(dir, name, err);
            ok = run && add_run(c, v, run, err);
            free(run);
        }
        free(entry[i]);
    }
    if (n >= 0) free(entry);
    return ok;
}

/* ---- all of them ---- */

static const char *const usual[] = {"full_ft", "lora_r8", "lora_r16", "qlora_r16", "adapters"};
enum { USUAL = sizeof usual / sizeof *usual };

static bool is_usual(const char *name) {
    for (int i = 0; i < USUAL; i++)
        if (strcmp(name, usual[i]) == 0) return true;
    return false;
}

/* Names that can be keys of comparison.json. */
static bool is_program_name(const char *name) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    static const char *const reserved[] = {"about", "baseline", "takeaways"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, reserved[i]) == 0) return false;
    return strlen(name) < sizeof((Variant *)0)->key && strspn(name, letters) == strlen(name);
}

static bool add_variant(Comparison *c, const char *program, PeftError *err) {
    if (c->n == MAX_VARIANTS)
        return peft_fail(err, "%s: more than %d variants", c->dir, MAX_VARIANTS);
    Variant *v = peft_zalloc(1, sizeof *v, err);
    char *dir = v ? path_join(c->dir, program, err) : NULL, flat[sizeof v->key + 1];
    snprintf(flat, sizeof flat, "%s-", program);
    if (v) set_key(v, program);
    bool ok = dir && read_runs(c, v, dir, "seed", err) && read_runs(c, v, c->dir, flat, err);
    free(dir);
    if (v) qsort(v->run, (size_t)v->n, sizeof *v->run, by_seed);
    if (ok && v->n)
        c->variant[c->n++] = v;
    else
        variant_free(v);
    return ok;
}

static bool has_program(const Comparison *c, const char *program) {
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->variant[i]->key, program) == 0) return true;
    return false;
}

/* The five of the brief first, in its order, then whatever else was trained, by name. */
static bool read_variants(Comparison *c, PeftError *err) {
    struct dirent **entry;
    int n = scandir(c->dir, &entry, NULL, alphasort);
    if (n < 0) return peft_fail(err, "cannot read the folder %s: %s", c->dir, strerror(errno));
    bool ok = true;
    for (int i = 0; ok && i < USUAL; i++) ok = add_variant(c, usual[i], err);
    for (int i = 0; i < n; i++) {
        char *name = entry[i]->d_name, *dash = strrchr(name, '-');
        if (dash && is_number(dash + 1)) *dash = 0; /* PROGRAM-SEED */
        if (ok && is_program_name(name) && !is_usual(name) && !has_program(c, name))
            ok = add_variant(c, name, err);
        free(entry[i]);
    }
    free(entry);
    return ok;
}

/* Numbers of different tasks do not stand in one table. */
static bool check_same_task(const Comparison *c, PeftError *err) {
    const Run *first = c->n ? &c->variant[0]->run[0] : NULL;
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->variant[i]->n; k++) {
            const Run *run = &c->variant[i]->run[k];
            if (strcmp(run->base, first->base) == 0 && strcmp(run->data, first->data) == 0 &&
                run->test_rows == first->test_rows)
                continue;
            return peft_fail(err,
                             "%s (base %s, data %s, %lld test rows) and %s (base %s, data %s, "
                             "%lld test rows) cannot be compared; move one of them away",
                             first->dir, first->base, first->data, (long long)first->test_rows,
                             run->dir, run->base, run->data, (long long)run->test_rows);
        }
    return true;
}

static bool read_baseline(Comparison *c, PeftError *err) {
    PeftError trouble = {{0}, 0};
    Baseline *b = &c->baseline;
    char *path = path_join(c->dir, "baseline.json", err);
    if (!path) return false;
    Reader r = {path, &trouble};
    if (file_exists(path)) {
        b->root = read_object(path, &trouble);
        if (!b->root || !check_version(&r, b->root, RUN_VERSION) ||
            !get_real(&r, b->root, "f1_macro", 1, &b->f1) ||
            !get_real(&r, b->root, "val_f1_macro", 1, &b->val_f1) ||
            !get_real(&r, b->root, "accuracy", 1, &b->accuracy) ||
            !get_count(&r, b->root, "trainable_params", &b->trainable)) {
            fprintf(stderr, "compare: left out: %s\n", trouble.msg);
            c->broken++;
            json_decref(b->root);
            b->root = NULL;
        }
    }
    free(path);
    return true;
}

bool comparison_read(Comparison *c, const char *dir, PeftError *err) {
    memset(c, 0, sizeof *c);
    c->dir = dir;
    if (!read_variants(c, err) || !check_same_task(c, err) || !read_baseline(c, err)) return false;
    for (int i = 0; i < c->n; i++) variant_statistics(c->variant[i]);
    if (c->n) c->base_bytes = c->variant[0]->run[0].base_bytes;
    return comparison_takeaways(c, err);
}

void comparison_free(Comparison *c) {
    for (int i = 0; i < c->n; i++) variant_free(c->variant[i]);
    for (int i = 0; i < c->nsentence; i++) free(c->sentence[i]);
    json_decref(c->baseline.root);
    memset(c, 0, sizeof *c);
}

const Variant *comparison_find(const Comparison *c, const char *key) {
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->variant[i]->key, key) == 0) return c->variant[i];
    return NULL;
}

json_t *real_json(double v) {
    return v - v == 0 ? json_real(v) : json_null();
}

json_t *memory_json(const Run *run) {
    json_t *o = json_object();
    for (int i = 0; i < MEMORY_CLASSES; i++)
        json_object_set_new(o, memory_class[i], json_integer(run->memory[i]));
    return o;
}
