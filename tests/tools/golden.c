/* Checks one fixture of tests/golden/models: compiles its program, replays its batch and compares
 * logits, loss, every gradient, ten losses and the final parameters with values that torch,
 * transformers, peft and AdapterHub computed in double precision.
 *
 *   golden [--device NAME] [--compute TYPE] PEFTC FIXTURE TMPDIR [peftc options ...]
 *
 * Tolerances bound the 2-norm of a tensor's deviation. In float32 they are ten times what torch's
 * own float32 deviates from its float64 on these models, relative to the tensor's norm. In bf16
 * (the default of --device cuda) they are six times what storing matrices in bf16 does to that
 * tensor, as computed by tests/golden/bf16_models.py into the fixture's bf16.json, and two
 * roundings of the tensor itself. What is zero, negated, or not a number must not pass for any
 * tensor: that too is checked. */
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

/* bf16 rounds by at most 2^-9 of a value; a tensor may be off by three quarters of itself at most.
 */
static const double bf16_roundings = 2 * 0x1p-9, bf16_margin = 6, bf16_most = 0.75;

static const char *fixture, *device, *compute;
static json_t *bf16_deviation; /* by tensor */
static bool in_bf16;
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
    if (device) add(&c, "--device=%s", device);
    if (compute) add(&c, "--compute=%s", compute);
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

static double norm(const float *v, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)v[i] * (double)v[i];
    return sqrt(sum);
}

static double distance(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        sum += d * d;
    }
    return sqrt(sum);
}

static bool is_key_bias(const char *name) {
    const char *end = strstr(name, ".attention.self.key.bias");
    return end && strcmp(end, ".attention.self.key.bias") == 0;
}

static double fp32_tolerance(const char *name, double scale) {
    bool grad = strncmp(name, "grad.", 5) == 0;
    if (is_key_bias(name)) return tolerance_zero;
    double relative = strcmp(name, "logits") == 0   ? tolerance_logits
                      : strcmp(name, "loss") == 0   ? tolerance_loss
                      : strcmp(name, "losses") == 0 ? tolerance_losses
                      : grad                        ? tolerance_grad
                                                    : tolerance_param;
    return relative * scale + 1e-9;
}

static double bf16_tolerance(const char *name, double scale) {
    json_t *deviation = json_object_get(bf16_deviation, name);
    if (!json_is_number(deviation)) die(name, "bf16.json has no deviation for it");
    double bound = bf16_margin * json_number_value(deviation);
    if (is_key_bias(name)) return bound;
    bound += bf16_roundings * scale;
    return bound < bf16_most * scale ? bound : bf16_most * scale;
}

/* What must not pass in the place of the expected values: zeros, their negatives, one that is not a
 * number, and for the losses a run that does not learn. */
static void check_tolerance(const char *name, const float *want, int64_t n, double tolerance) {
    float *wrong = calloc((size_t)n, sizeof *wrong);
    if (!wrong) die(name, "out of memory");
    if (!is_key_bias(name) && distance(want, wrong, n) <= tolerance)
        fail(name, "its tolerance lets zeros pass");
    for (int64_t i = 0; i < n; i++) wrong[i] = -want[i];
    if (!is_key_bias(name) && distance(want, wrong, n) <= tolerance)
        fail(name, "its tolerance lets the negative pass");
    for (int64_t i = 0; i < n; i++) wrong[i] = want[0];
    if (strcmp(name, "losses") == 0 && distance(want, wrong, n) <= tolerance)
        fail(name, "its tolerance lets a run pass that does not learn");
    memcpy(wrong, want, (size_t)n * sizeof *wrong);
    wrong[n / 2] = NAN;
    if (distance(want, wrong, n) <= tolerance) fail(name, "its tolerance lets NaN pass");
    free(wrong);
}

/* The share of the tolerance that was used; > 1 or NaN is a failure. */
static double check(const StTensor *want, const SafeTensors *got) {
    const char *name = want->name;
    const StTensor *t = st_find(got, name);
    if (!t) return fail(name, "missing from the replay"), NAN;
    if (t->count != want->count || t->count == 0)
        return fail(name, "has another number of elements"), NAN;
    if (is_key_bias(name) && strncmp(name, "param.", 6) == 0)
        return 0; /* AdamW turns noise into steps */
    float *a = values(want), *b = values(t);
    double scale = norm(a, t->count), diff = distance(a, b, t->count);
    double fp32 = fp32_tolerance(name, scale), bf16 = bf16_tolerance(name, scale);
    double used = diff / (in_bf16 ? bf16 : fp32);
    check_tolerance(name, a, t->count, fp32);
    check_tolerance(name, a, t->count, bf16);
    free(a);
    free(b);
    if (!(used <= 1)) {
        char why[128];
        snprintf(why, sizeof why, "off by %.3g of %.3g, %.0f %% of the tolerance", diff, scale,
                 100 * used);
        fail(name, why);
    }
    return used;
}

/* The options before the program; the number of words taken. */
static int read_options(int argc, char **argv) {
    int i = 1;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--device") == 0)
            device = argv[i + 1];
        else if (strcmp(argv[i], "--compute") == 0)
            compute = argv[i + 1];
        else
            break;
    }
    return i - 1;
}

int main(int argc, char **argv) {
    int taken = read_options(argc, argv);
    argc -= taken;
    argv += taken;
    if (argc < 4) {
        fprintf(stderr, "usage: golden [--device NAME] [--compute TYPE] PEFTC FIXTURE TMPDIR "
                        "[peftc options ...]\n");
        return 2;
    }
    const char *dir = argv[2], *tmp = argv[3];
    char path[4096];
    json_error_t e;
    fixture = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    snprintf(path, sizeof path, "%s/meta.json", dir);
    json_t *meta = json_load_file(path, 0, &e);
    if (!meta) die(path, e.text);
    snprintf(path, sizeof path, "%s/bf16.json", dir);
    if (!(bf16_deviation = json_load_file(path, 0, &e))) die(path, e.text);
    in_bf16 = compute ? strcmp(compute, "bf16") == 0 : device && strcmp(device, "cuda") == 0;
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
    st_close(want);
    st_close(first);
    st_close(steps);
    json_decref(bf16_deviation);
    json_decref(meta);
    return failures != 0;
}
