/* Checks one fixture of tests/golden/models: compiles its program, replays its batch and compares
 * logits, loss, every gradient, ten losses and the final parameters with values that torch,
 * transformers, peft and AdapterHub computed in double precision.
 *
 *   golden PEFTC FIXTURE TMPDIR [peftc options ...]
 *
 * Tolerances are ten times what torch's own float32 deviates from its float64 on these models.
 * Errors are norms of differences over norms, so that NaN and a wrong shape fail. */
#include "runtime/io/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const double tolerance_logits = 1.1e-5, tolerance_loss = 3.3e-6, tolerance_grad = 3.1e-5,
                    tolerance_losses = 5e-5, tolerance_param = 5e-5;
/* Gradients that are zero in exact arithmetic (the key's bias: softmax does not see it). */
static const double tolerance_zero = 2e-6;

static const char *fixture;
static int failures;

static void fail(const char *what, const char *why) {
    printf("FAIL %s: %s: %s\n", fixture, what, why);
    failures++;
}

static void die(const char *what, const char *why) {
    fail(what, why);
    exit(1);
}

/* ---- commands ---- */

enum { MAX_ARGS = 96 };

typedef struct Command {
    char *arg[MAX_ARGS];
    int n;
} Command;

static void add(Command *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(Command *c, const char *fmt, ...) {
    va_list ap;
    char text[4096];
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c->n + 1 == MAX_ARGS) die("command", "too many arguments");
    c->arg[c->n++] = strdup(text);
}

static void run(Command *c, const char *what) {
    int status;
    c->arg[c->n] = NULL;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        execv(c->arg[0], c->arg);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    for (int i = 0; i < c->n; i++) free(c->arg[i]);
    c->n = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status)) die(what, "the command failed (see above)");
}

/* The patch whose arguments a variant sets. */
static const char *patch_of(const char *variant) {
    static const char *const patches[] = {"rslora",   "dora", "houlsby", "pfeiffer",
                                          "parallel", "vera", NULL};
    for (int i = 0; patches[i]; i++)
        if (strcmp(variant, patches[i]) == 0) return patches[i];
    return "lora";
}

static void add_settings(Command *c, json_t *meta) {
    const char *key, *variant = json_string_value(json_object_get(meta, "variant"));
    json_t *value;
    json_object_foreach(json_object_get(meta, "settings"), key, value) {
        add(c, "--set");
        if (strcmp(key, "classes") == 0)
            add(c, "classes=%g", json_number_value(value));
        else
            add(c, "%s.%s=%g", patch_of(variant), key, json_number_value(value));
    }
}

static double fit_value(json_t *meta, const char *key) {
    json_t *v = json_object_get(json_object_get(meta, "fit"), key);
    if (!json_is_number(v)) die("meta.json", key);
    return json_number_value(v);
}

static void compile(json_t *meta, const char *peftc, const char *dir, const char *tmp,
                    char **extra) {
    Command c = {.n = 0};
    add(&c, "%s", peftc);
    add(&c, "%s", json_string_value(json_object_get(meta, "program")));
    add(&c, "--base");
    add(&c, "%s/%s", dir, json_string_value(json_object_get(meta, "base")));
    add_settings(&c, meta);
    for (; *extra; extra++) add(&c, "%s", *extra);
    add(&c, "-o");
    add(&c, "%s/run", tmp);
    run(&c, "peftc");
}

static void replay(json_t *meta, const char *dir, const char *tmp, int steps) {
    Command c = {.n = 0};
    add(&c, "%s/run", tmp);
    add(&c, "replay");
    if (getenv("PEFTC_DEVICE")) add(&c, "--device=%s", getenv("PEFTC_DEVICE"));
    add(&c, "--base");
    add(&c, "%s/%s", dir, json_string_value(json_object_get(meta, "base")));
    char init[4096];
    snprintf(init, sizeof init, "%s/init.safetensors", dir);
    if (access(init, R_OK) == 0) {
        add(&c, "--weights");
        add(&c, "%s", init);
    }
    add(&c, "--batch");
    add(&c, "%s/batch.safetensors", dir);
    add(&c, "--dump");
    add(&c, "%s/%s.safetensors", tmp, steps ? "steps" : "first");
    if (steps) {
        add(&c, "--steps");
        add(&c, "%d", steps);
        static const char *const keys[][2] = {{"fit.lr", "lr"},
                                              {"fit.weight_decay", "weight_decay"},
                                              {"fit.clip", "clip"},
                                              {"fit.warmup", "warmup_steps"}};
        for (size_t i = 0; i < 4; i++) {
            add(&c, "--set");
            add(&c, "%s=%.17g", keys[i][0], fit_value(meta, keys[i][1]));
        }
    }
    run(&c, "replay");
}

/* ---- comparison ---- */

static float *values(const StTensor *t) {
    PeftError err = {{0}, 0};
    float *v = malloc((size_t)(t->count ? t->count : 1) * sizeof *v);
    if (!v || !st_read_f32(t, v, 0, t->count, &err)) die(t->name, err.msg);
    return v;
}

static double compare(const StTensor *want, const StTensor *got, double *scale) {
    float *a = values(want), *b = values(got);
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < want->count; i++) {
        double d = (double)a[i] - (double)b[i];
        diff += d * d;
        norm += (double)a[i] * (double)a[i];
    }
    free(a);
    free(b);
    *scale = sqrt(norm);
    return sqrt(diff);
}

static double tolerance_of(const char *name) {
    if (strcmp(name, "logits") == 0) return tolerance_logits;
    if (strcmp(name, "loss") == 0) return tolerance_loss;
    if (strcmp(name, "losses") == 0) return tolerance_losses;
    return strncmp(name, "grad.", 5) == 0 ? tolerance_grad : tolerance_param;
}

static bool is_key_bias(const char *name) {
    const char *end = strstr(name, ".attention.self.key.bias");
    return end && strcmp(end, ".attention.self.key.bias") == 0;
}

/* The share of the tolerance that was used; > 1 or NaN is a failure. */
static double check(const StTensor *want, const SafeTensors *got) {
    const StTensor *t = st_find(got, want->name);
    if (!t) return fail(want->name, "missing from the replay"), NAN;
    if (t->count != want->count) return fail(want->name, "has another number of elements"), NAN;
    bool zero = is_key_bias(want->name);
    if (zero && strncmp(want->name, "param.", 6) == 0) return 0; /* AdamW turns noise into steps */
    double scale, diff = compare(want, t, &scale);
    double used = zero ? diff / tolerance_zero : diff / (tolerance_of(want->name) * scale + 1e-9);
    if (!(used <= 1)) {
        char why[128];
        snprintf(why, sizeof why, "off by %.3g of %.3g, %.0f %% of the tolerance", diff, scale,
                 100 * used);
        fail(want->name, why);
    }
    return used;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: golden PEFTC FIXTURE TMPDIR [peftc options ...]\n");
        return 2;
    }
    const char *dir = argv[2], *tmp = argv[3];
    char path[4096];
    json_error_t e;
    fixture = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    snprintf(path, sizeof path, "%s/meta.json", dir);
    json_t *meta = json_load_file(path, 0, &e);
    if (!meta) die(path, e.text);
    compile(meta, argv[1], dir, tmp, argv + 4);
    replay(meta, dir, tmp, 0);
    replay(meta, dir, tmp, (int)fit_value(meta, "total_steps"));

    PeftError err = {{0}, 0};
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    SafeTensors *want = st_open(path, &err);
    snprintf(path, sizeof path, "%s/first.safetensors", tmp);
    SafeTensors *first = st_open(path, &err);
    snprintf(path, sizeof path, "%s/steps.safetensors", tmp);
    SafeTensors *steps = st_open(path, &err);
    if (!want || !first || !steps) die("files", err.msg);
    bool mlm = strcmp(json_string_value(json_object_get(meta, "variant")), "mlm") == 0;
    double worst = 0;
    size_t n = st_count(want), gradients = 0;
    for (size_t i = 0; i < n; i++) {
        const StTensor *t = st_get(want, i);
        /* A masked language model gives its loss only: its logits are [masked, vocabulary]. */
        if (mlm && strcmp(t->name, "logits") == 0) continue;
        bool later = strcmp(t->name, "losses") == 0 || strncmp(t->name, "param.", 6) == 0;
        gradients += strncmp(t->name, "grad.", 5) == 0;
        double used = check(t, later ? steps : first);
        if (!(used <= worst)) worst = used;
    }
    size_t extra = 0; /* a gradient the reference does not have is as wrong as a missing one */
    for (size_t i = 0; i < st_count(first); i++)
        extra += strncmp(st_get(first, i)->name, "grad.", 5) == 0;
    if (extra != gradients) fail("gradients", "their number differs from the reference's");
    if (!failures)
        printf("ok %s: %zu tensors, at most %.0f %% of the tolerance\n", fixture, n, 100 * worst);
    return failures != 0;
}
