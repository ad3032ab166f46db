/* The table on a terminal: one line a variant, then where and how it was measured, then the
 * takeaways. 100 columns. */
#include "compare.h"

#include <math.h>
#include <string.h>

#include "../../runtime/measure.h"

static const char *spread_text(double spread, int digits, char buf[32]) {
    buf[0] = 0;
    if (spread >= 0) snprintf(buf, 32, "+-%.*f", digits, spread);
    return buf;
}

static void print_variant(const Variant *v, FILE *out) {
    const Run *r = &v->run[0];
    char a[32], b[32], t[32];
    fprintf(out, "%-12.12s %12s %8.4f  %.4f %-8s %.4f %9.1f %9.1f %8.2f %-7s %8.2f\n", v->key,
            with_commas(r->trainable, a), 100 * (double)r->trainable / (double)r->total, v->f1,
            spread_text(v->f1_spread, 4, b), v->val_f1, (double)v->planned / 1e6,
            (double)v->reached / 1e6, v->epoch_time, spread_text(v->epoch_time_spread, 2, t),
            (double)r->saved_bytes / 1e6);
}

static void print_seeds(const Variant *v, FILE *out) {
    fprintf(out, v->n == 1 ? "seed" : "seeds");
    for (int i = 0; i < v->n; i++) fprintf(out, "%s %lld", i ? "," : "", (long long)v->run[i].seed);
}

static void print_conditions(const Comparison *c, FILE *out) {
    const Variant *v = c->variant[0];
    const Run *r = &v->run[0];
    double error =
        sqrt(v->accuracy * (1 - v->accuracy) / (double)(r->test_rows ? r->test_rows : 1));
    fprintf(out,
            "\nbase %s, data %s (%lld test rows: an accuracy of %.2f has a standard error of "
            "%.4f)\n",
            r->base, r->data, (long long)r->test_rows, v->accuracy, error);
    if (strcmp(r->device, "cpu") == 0)
        fprintf(out, "measured on the CPU, so the peak is memory, not VRAM; %s, %lld thread%s%s%s",
                r->instructions, (long long)r->threads, r->threads == 1 ? "" : "s",
                r->processor[0] ? ", " : "", r->processor);
    else
        fprintf(out, "measured on %s%s%s%s%s", r->gpu[0] ? r->gpu : r->device,
                r->driver[0] ? ", driver " : "", r->driver, r->compute[0] ? ", matrices in " : "",
                r->compute);
    fprintf(out, "; %lld epoch%s, ", (long long)r->nepoch, r->nepoch == 1 ? "" : "s");
    print_seeds(v, out);
    fprintf(out, "\n");
}

/* Breaks a sentence at spaces; continuation lines are indented. */
static void print_wrapped(const char *text, FILE *out) {
    enum { WIDTH = 96 };
    for (bool first = true; *text; first = false) {
        size_t n = strlen(text);
        if (n > WIDTH) {
            n = WIDTH;
            while (n && text[n] != ' ') n--;
            if (!n) n = WIDTH;
        }
        fprintf(out, "%s%.*s\n", first ? "* " : "  ", (int)n, text);
        text += n;
        while (*text == ' ') text++;
    }
}

void comparison_print(const Comparison *c, bool brief, FILE *out) {
    char a[32];
    bool cpu = !c->n || strcmp(c->variant[0]->run[0].device, "cpu") == 0;
    fprintf(out, "%-12s %12s %8s  %-15s %-6s %9s %9s %8s %-7s %8s\n", "", "trainable", "%",
            "test F1", "val F1", "planned", cpu ? "peak MB" : "VRAM MB", "s/epoch", "", "MB/task");
    for (int i = 0; i < c->n; i++) print_variant(c->variant[i], out);
    if (c->baseline.root)
        fprintf(out, "%-12s %12s %8s  %.4f %-8s %.4f\n", "bag of words",
                with_commas(c->baseline.trainable, a), "", c->baseline.f1, "", c->baseline.val_f1);
    if (!c->n || brief) return;
    print_conditions(c, out);
    if (c->nsentence) fprintf(out, "\n");
    for (int i = 0; i < c->nsentence; i++) print_wrapped(c->sentence[i], out);
}
