/* What the page shows, as one JSON text that a thread makes again whenever the folder of runs
 * changes. The folder is looked at once a second instead of watched by the kernel: it need not
 * exist yet and may lie on a network file system. Readers get a copy and never wait for the disk.
 *
 * The numbers are those of tools/compare, which also wrote the table and comparison.json. */
#include "demo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static json_t *variant_json(const Variant *v) {
    const Run *r = &v->run[0];
    json_t *seeds = json_array();
    for (int i = 0; i < v->n; i++) json_array_append_new(seeds, json_integer(v->run[i].seed));
    return json_pack(
        "{s:s, s:s, s:s, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o}",
        "key", v->key, "program", r->program, "device", r->device, "seeds", seeds,
        "trainable_params", (json_int_t)r->trainable, "total_params", (json_int_t)r->total,
        "f1_macro", real_json(v->f1), "f1_macro_spread", real_json(v->f1_spread), "f1_macro_noise",
        real_json(v->noise), "val_f1_macro", real_json(v->val_f1), "epoch_time_s",
        real_json(v->epoch_time), "epoch_time_spread_s", real_json(v->epoch_time_spread),
        "planned_bytes", (json_int_t)v->planned, "reached_bytes", (json_int_t)v->reached,
        "saved_bytes", (json_int_t)r->saved_bytes, "memory_bytes", memory_json(r), "total_steps",
        json_incref(json_object_get(r->fit, "total_steps")) ?: json_null());
}

static json_t *about_json(const Comparison *c) {
    if (!c->n) return json_null();
    const Run *r = &c->variant[0]->run[0];
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:I, s:I}", "base", r->base, "data", r->data,
                     "test_rows", (json_int_t)r->test_rows, "device", r->device, "instructions",
                     r->instructions, "processor", r->processor, "threads", (json_int_t)r->threads,
                     "epochs", (json_int_t)r->nepoch);
}

static json_t *state_json(const State *s, const Comparison *c, const char *trouble) {
    json_t *variants = json_array(), *takeaways = json_array();
    for (int i = 0; i < c->n; i++) json_array_append_new(variants, variant_json(c->variant[i]));
    for (int i = 0; i < c->nsentence; i++)
        json_array_append_new(takeaways, json_string(c->sentence[i]));
    return json_pack("{s:I, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:i, s:s?}", "version",
                     (json_int_t)s->version, "runs", s->runs, "about", about_json(c), "variants",
                     variants, "takeaways", takeaways, "baseline",
                     c->baseline.root ? real_json(c->baseline.f1) : json_null(), "progress",
                     progress_read(s->runs), "figures", names_of_pictures("figures"), "graphs",
                     names_of_pictures("docs/graphs"), "left_out", c->broken, "error", trouble);
}

/* Reads everything and puts the new text in place; on no memory the old one stays. */
static void refresh(State *s) {
    Comparison *c = calloc(1, sizeof *c);
    PeftError trouble = {{0}, 0};
    struct stat st;
    if (!c) return;
    bool there = stat(s->runs, &st) == 0;
    bool ok = there && comparison_read(c, s->runs, &trouble);
    models_update(s->models, c, s->runs);
    pthread_mutex_lock(&s->lock);
    s->version++;
    pthread_mutex_unlock(&s->lock);
    json_t *root = state_json(s, c, there && !ok ? trouble.msg : NULL);
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(root);
    pthread_mutex_lock(&s->lock);
    if (text) {
        free(s->text);
        s->text = text;
        s->trained = c->n;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    comparison_free(c);
    free(c);
}

static bool look_again(State *s) {
    uint64_t now = progress_signature(s->runs);
    if (now == s->signature) return false;
    s->signature = now;
    refresh(s);
    return true;
}

static void deadline(struct timespec *t, int seconds) {
    clock_gettime(CLOCK_MONOTONIC, t);
    t->tv_sec += seconds;
}

static void *watch(void *state) {
    State *s = state;
    pthread_mutex_lock(&s->lock);
    while (!s->stopping) {
        struct timespec t;
        int rc = 0;
        deadline(&t, 1);
        while (!s->stopping && rc != ETIMEDOUT)
            rc = pthread_cond_timedwait(&s->changed, &s->lock, &t);
        if (s->stopping) break;
        pthread_mutex_unlock(&s->lock);
        look_again(s);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

bool state_start(State *s, const char *runs, Models *models, PeftError *err) {
    pthread_condattr_t attr;
    *s = (State){.runs = runs, .models = models};
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    look_again(s);
    int rc = pthread_create(&s->watcher, NULL, watch, s);
    if (rc == 0) return true;
    state_free(s);
    return peft_fail(err, "cannot start a thread: %s", strerror(rc));
}

char *state_text(State *s) {
    pthread_mutex_lock(&s->lock);
    char *copy = s->text ? strdup(s->text) : NULL;
    pthread_mutex_unlock(&s->lock);
    return copy;
}

uint64_t state_wait(State *s, uint64_t seen, int seconds) {
    struct timespec t;
    int rc = 0;
    deadline(&t, seconds);
    pthread_mutex_lock(&s->lock);
    while (!s->stopping && s->version == seen && rc == 0)
        rc = pthread_cond_timedwait(&s->changed, &s->lock, &t);
    uint64_t version = s->stopping ? 0 : s->version;
    pthread_mutex_unlock(&s->lock);
    return version;
}

void state_stop(State *s) {
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->watcher, NULL);
}

void state_free(State *s) {
    free(s->text);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}
