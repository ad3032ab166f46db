/* Means and spreads over seeds, and the sentences under the table. Every sentence is computed from
 * the runs at hand; where a difference may be chance it says so instead of reporting it. */
#include "compare.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/measure.h"

enum { TASKS = 50 }; /* of the storage sentence */

/* ---- one variant ---- */

/* Sample standard deviation from a sum and a sum of squares; NAN below two values. */
static double deviation(double sum, double squares, double n) {
    if (n < 2) return NAN;
    double variance = (squares - sum * sum / n) / (n - 1);
    return variance > 0 ? sqrt(variance) : 0;
}

/* Standard error of a share p of n rows. */
static double standard_error(double p, int64_t n) {
    return n ? sqrt(p * (1 - p) / (double)n) : 0;
}

void variant_statistics(Variant *v) {
    double f1 = 0, f1_square = 0, seconds = 0, seconds_square = 0, epochs = 0;
    v->val_f1 = v->accuracy = 0;
    v->planned = v->reached = 0, v->driver_bytes = -1;
    for (int i = 0; i < v->n; i++) {
        const Run *r = &v->run[i];
        f1 += r->f1;
        f1_square += r->f1 * r->f1;
        v->val_f1 += r->val_f1 / v->n;
        v->accuracy += r->accuracy / v->n;
        seconds += r->epoch_seconds;
        seconds_square += r->epoch_seconds_square;
        epochs += (double)r->nepoch;
        if (r->planned > v->planned) v->planned = r->planned;
        if (r->reached > v->reached) v->reached = r->reached;
        if (r->driver_bytes > v->driver_bytes) v->driver_bytes = r->driver_bytes;
    }
    v->f1 = f1 / v->n;
    v->f1_spread = deviation(f1, f1_square, v->n);
    v->epoch_time = seconds / epochs;
    v->epoch_time_spread = deviation(seconds, seconds_square, epochs);
    v->noise = standard_error(v->accuracy, v->run[0].test_rows);
    if (v->f1_spread > v->noise) v->noise = v->f1_spread;
}

/* ---- sentences ---- */

static bool __attribute__((format(printf, 3, 4)))
say(Comparison *c, PeftError *err, const char *fmt, ...) {
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c->nsentence == MAX_SENTENCES)
        return peft_fail(err, "more than %d takeaways", MAX_SENTENCES);
    char *copy = strdup(text);
    if (!copy) return peft_fail(err, "out of memory");
    c->sentence[c->nsentence++] = copy;
    return true;
}

static double mb(int64_t bytes) {
    return (double)bytes / 1e6;
}

/* "loses 1.6 points of macro F1 (0.9720 instead of 0.9880; 0.4 points can be chance)" */
static void quality_text(const Variant *v, const Variant *full, char *out, size_t size) {
    double gap = v->f1 - full->f1, noise = hypot(v->noise, full->noise);
    if (fabs(gap) > noise)
        snprintf(out, size,
                 "%s %.1f points of macro F1 (%.4f instead of %.4f; %.1f points can be chance)",
                 gap < 0 ? "loses" : "gains", 100 * fabs(gap), v->f1, full->f1, 100 * noise);
    else
        snprintf(out, size,
                 "is as good within noise (macro F1 %.4f and %.4f; %.1f points can be chance)",
                 v->f1, full->f1, 100 * noise);
}

/* Quality, memory and time of v against full fine-tuning. */
static bool say_variant(Comparison *c, const Variant *v, const Variant *full, PeftError *err) {
    double spread = hypot(v->epoch_time_spread, full->epoch_time_spread);
    bool chance = spread > fabs(v->epoch_time - full->epoch_time);
    char quality[256], a[32], b[32];
    quality_text(v, full, quality, sizeof quality);
    return say(
        c, err,
        "%s against %s: %s, training %s of its %s parameters (%.2f %%), with %.0f %% of the "
        "memory (%.1f MB of %.1f MB) and %.0f %% of the time per epoch (%.2f s of %.2f s%s).",
        v->key, full->key, quality, with_commas(v->run[0].trainable, a),
        with_commas(v->run[0].total, b),
        100 * (double)v->run[0].trainable / (double)v->run[0].total,
        100 * (double)v->reached / (double)full->reached, mb(v->reached), mb(full->reached),
        100 * v->epoch_time / full->epoch_time, v->epoch_time, full->epoch_time,
        chance ? "; single epochs differ by more" : "");
}

/* What many tasks over one base take on disk, for every variant that is smaller than a model. */
static bool say_storage(Comparison *c, const Variant *full, PeftError *err) {
    char list[1024] = "";
    size_t at = 0;
    for (int i = 0; i < c->n; i++) {
        const Variant *v = c->variant[i];
        if (v->run[0].saved_bytes >= full->run[0].saved_bytes) continue;
        int n = snprintf(list + at, sizeof list - at, "%s%.1f MB (%s)", at ? ", " : "",
                         mb(c->base_bytes) + TASKS * mb(v->run[0].saved_bytes), v->key);
        if (n < 0 || (size_t)n >= sizeof list - at) return peft_fail(err, "too many variants");
        at += (size_t)n;
    }
    if (!at || !c->base_bytes) return true;
    return say(c, err,
               "%d tasks on disk: %.1f MB as full models; one base and %d adapters take %s.", TASKS,
               TASKS * mb(full->run[0].saved_bytes), TASKS, list);
}

/* Which of the variants that train a part is the cheapest in what. */
static bool say_best(Comparison *c, const Variant *full, PeftError *err) {
    const Variant *memory = NULL, *time = NULL, *storage = NULL, *quality = NULL;
    int parts = 0;
    for (int i = 0; i < c->n; i++) {
        const Variant *v = c->variant[i];
        if (v == full) continue;
        parts++;
        if (!memory || v->reached < memory->reached) memory = v;
        if (!time || v->epoch_time < time->epoch_time) time = v;
        if (!storage || v->run[0].saved_bytes < storage->run[0].saved_bytes) storage = v;
        if (!quality || v->f1 > quality->f1) quality = v;
    }
    if (parts < 2) return true;
    return say(c, err,
               "Of those that train a part, %s needs the least memory (%.1f MB), %s the least time "
               "per epoch (%.2f s), %s the least disk per task (%.2f MB), and %s has the best "
               "macro F1 (%.4f).",
               memory->key, mb(memory->reached), time->key, time->epoch_time, storage->key,
               mb(storage->run[0].saved_bytes), quality->key, quality->f1);
}

static bool say_baseline(Comparison *c, PeftError *err) {
    const Variant *best = NULL;
    if (!c->baseline.root) return true;
    for (int i = 0; i < c->n; i++)
        if (!best || c->variant[i]->f1 > best->f1) best = c->variant[i];
    if (!best) return true;
    double noise = hypot(best->noise, standard_error(c->baseline.accuracy, best->run[0].test_rows));
    double gap = best->f1 - c->baseline.f1;
    const char *verdict = "";
    if (gap < -noise)
        verdict = ", less: in these runs the encoder has not learned the task";
    else if (gap <= noise)
        verdict = ", no better within noise: these runs show no need for an encoder";
    return say(c, err, "Counting words alone reaches macro F1 %.4f; %s reaches %.4f%s.",
               c->baseline.f1, best->key, best->f1, verdict);
}

bool comparison_takeaways(Comparison *c, PeftError *err) {
    const Variant *full = comparison_find(c, "full_ft");
    for (int i = 0; full && i < c->n; i++) {
        const Variant *v = c->variant[i];
        if (v == full) continue;
        if (!say_variant(c, v, full, err)) return false;
    }
    return (!full || (say_storage(c, full, err) && say_best(c, full, err))) && say_baseline(c, err);
}
