/* The four figures: learning curves, memory by class, time per epoch, quality against size. Each
 * writes NAME.dat, in units of the JSON except where its head says otherwise, and NAME.gp, which
 * reads it. */
#include "figures.h"

#include <math.h>
#include <stdlib.h>

/* "0.5 ", or "? " for a number that does not exist. */
static void put(FILE *out, double v) {
    if (v - v == 0)
        fprintf(out, "%.10g ", v);
    else
        fprintf(out, "? ");
}

/* Runs the two writers of a figure on NAME.dat and NAME.gp. */
static bool write_both(const Figures *f, const char *dir, const char *name,
                       void (*data)(const Figures *, FILE *),
                       void (*script)(const Figures *, FILE *), PeftError *err) {
    void (*const writer[2])(const Figures *, FILE *) = {data, script};
    static const char *const kind[2] = {"dat", "gp"};
    for (int i = 0; i < 2; i++) {
        char file[64];
        snprintf(file, sizeof file, "%s.%s", name, kind[i]);
        FILE *out = script_open(dir, file, err);
        if (!out) return false;
        writer[i](f, out);
        if (!script_close(out, dir, file, err)) return false;
    }
    return true;
}

/* ---- curves ---- */

static void curves_data(const Figures *f, FILE *out) {
    fprintf(out, "# epoch, then mean and sample deviation over seeds of: training loss, "
                 "validation loss, validation macro F1\n");
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        fprintf(out, "%s# method %d: %s\n", i ? "\n\n" : "", i, m->name);
        for (int e = 0; e < m->epochs; e++) {
            fprintf(out, "%d ", e + 1);
            for (int c = 0; c < CURVES; c++) {
                put(out, m->curve[e][c].mean);
                put(out, m->curve[e][c].spread);
            }
            fprintf(out, "\n");
        }
    }
}

static bool curve_range(const Figures *f, int curve, double *least, double *most) {
    *least = INFINITY, *most = -INFINITY;
    for (int i = 0; i < f->n; i++)
        for (int e = 0; e < f->method[i].epochs; e++) {
            Point p = f->method[i].curve[e][curve];
            double d = p.spread > 0 ? p.spread : 0;
            if (p.mean - d < *least) *least = p.mean - d;
            if (p.mean + d > *most) *most = p.mean + d;
        }
    return *least <= *most;
}

static bool curve_has(const Method *m, int curve) {
    for (int e = 0; e < m->epochs; e++)
        if (m->curve[e][curve].mean - m->curve[e][curve].mean == 0) return true;
    return false;
}

/* A range with air around the values, not below 0. */
static void share_range(FILE *out, double least, double most) {
    double air = 0.08 * (most - least) + 0.002;
    fprintf(out, "set yrange [%.6g:%.6g]\n", fmax(0, least - air), most + air);
}

static bool several_seeds(const Figures *f) {
    for (int i = 0; i < f->n; i++)
        if (f->method[i].seeds > 1) return true;
    return false;
}

/* Whiskers of several methods at one epoch would hide each other: each method is moved a little. */
static double curve_offset(const Figures *f, int method, int epochs) {
    double step = several_seeds(f) ? fmin(0.012 * (epochs + 0.4), 0.3 / f->n) : 0;
    return step * (method - (f->n - 1) / 2.0);
}

static void curve_panel(const Figures *f, int curve, int epochs, FILE *out) {
    double least, most;
    if (!curve_range(f, curve, &least, &most)) {
        fprintf(out, "set label 'not measured' at graph 0.5,graph 0.5 center\n"
                     "set yrange [0:1]\nplot NaN notitle\n");
        return;
    }
    if (curve == 2)
        share_range(out, least, most);
    else
        fprintf(out, "set yrange [0:%.6g]\n", most > 0 ? 1.08 * most : 1);
    const char *comma = "plot ";
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        if (!curve_has(m, curve)) continue;
        double x = curve_offset(f, i, epochs);
        fprintf(out, "%s'curves.dat' index %d using ($1%+.4g):%d with linespoints ls %d notitle",
                comma, i, x, 2 + 2 * curve, m->style);
        comma = ", ";
        if (m->seeds > 1)
            fprintf(out,
                    ", '' index %d using ($1%+.4g):%d:%d with yerrorbars ls %d dt 1 lw 1 notitle",
                    i, x, 2 + 2 * curve, 3 + 2 * curve, m->style);
    }
    fprintf(out, "\n");
}

static void curves_script(const Figures *f, FILE *out) {
    static const char *const title[CURVES] = {"Training loss", "Validation loss",
                                              "Validation macro F1"};
    enum { WIDTH = 1140, PANEL = 380 };
    int foot = script_foot(f, WIDTH, true), height = foot + 420, epochs = 1;
    for (int i = 0; i < f->n; i++)
        if (f->method[i].epochs > epochs) epochs = f->method[i].epochs;
    script_head(out, f, WIDTH, height,
                several_seeds(f)
                    ? "Loss and macro F1 over the epochs: mean, ± one sample deviation over seeds"
                    : "Loss and macro F1 over the epochs");
    script_legend(out, f, WIDTH, height);
    fprintf(out, "set grid ytics lc rgb '#d8d8d8' lt 1\nset xrange [0.8:%d.2]\n", epochs);
    fprintf(out, "set xtics %d,%d nomirror\nset ytics nomirror\n", 1, 1 + epochs / 10);
    fprintf(out, "set xlabel 'epoch'\n");
    for (int c = 0; c < CURVES; c++) {
        const int frame[4] = {PANEL * c + 62, PANEL * c + 362, foot + 52, height - 72};
        script_frame(out, WIDTH, height, frame);
        fprintf(out, "set title '%s%s' offset 0,-0.3\n", title[c], c < 2 ? " (nats)" : " (0 to 1)");
        curve_panel(f, c, epochs, out);
        script_first_done(out);
    }
    fprintf(out, "unset multiplot\n");
}

bool curves_write(const Figures *f, const char *dir, PeftError *err) {
    return write_both(f, dir, "curves", curves_data, curves_script, err);
}

/* ---- memory: stacked bars ---- */

static void memory_data(const Figures *f, FILE *out) {
    fprintf(out, "# row, peak reached, peak planned, then the planned peak by class:");
    for (int c = 0; c < CLASSES; c++) fprintf(out, " %s", class_name[c]);
    fprintf(out, "; bytes\n");
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        fprintf(out, "%d %lld %lld", i, (long long)m->reached, (long long)m->planned);
        for (int c = 0; c < CLASSES; c++) fprintf(out, " %lld", (long long)m->memory[c]);
        fprintf(out, "\n");
    }
}

static double memory_sum(const Method *m, int classes) {
    double sum = 0;
    for (int c = 0; c < classes; c++) sum += (double)m->memory[c];
    return sum;
}

/* Fills told apart by lightness and by pattern: gnuplot's 3 is solid, 0 empty. */
static const struct {
    const char *colour;
    int pattern;
} fill[CLASSES] = {{"#0072B2", 3}, {"#009E73", 1}, {"#E69F00", 3}, {"#D55E00", 4},
                   {"#0072B2", 5}, {"#F0E442", 3}, {"#000000", 3}, {"#7F7F7F", 2}};

static bool class_used(const Figures *f, int c) {
    for (int i = 0; c == CLASSES - 1 && i < f->n; i++)
        if (f->method[i].memory[c]) return true;
    return c < CLASSES - 1;
}

/* Names left of the bars, the measured peak right of them, a class's part inside it where it fits.
 */
static void memory_labels(const Figures *f, double most, double unit, FILE *out) {
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        fprintf(out, "set label ");
        script_text(out, m->name);
        fprintf(out, " at graph -0.01,first %d right\n", -i);
        fprintf(out, "set label '%.*f %s' at first %.8g,first %d left offset 0.6,0\n",
                (double)m->reached < 10 * unit ? 2 : 1, (double)m->reached / unit, f->unit_name,
                fmax(memory_sum(m, CLASSES), (double)m->reached) / unit, -i);
        for (int c = 0; c < CLASSES; c++) {
            double part = (double)m->memory[c], from = memory_sum(m, c);
            if (part < 0.06 * most) continue;
            fprintf(out, "set label '%.*f' at first %.8g,first %d center front boxed font ',10'\n",
                    part < 10 * unit ? 2 : 1, part / unit, (from + part / 2) / unit, -i);
        }
    }
}

static void memory_plot(const Figures *f, double unit, FILE *out) {
    const char *comma = "plot ";
    for (int c = 0; c < CLASSES; c++) {
        if (!class_used(f, c)) continue;
        fprintf(out, "%s'memory.dat' using (0):(-$1):((0", comma);
        for (int k = 0; k < c; k++) fprintf(out, "+$%d", 4 + k);
        fprintf(out, ")/%g):((0", unit);
        for (int k = 0; k <= c; k++) fprintf(out, "+$%d", 4 + k);
        fprintf(out,
                ")/%g):(-$1-0.32):(-$1+0.32) with boxxyerror fc rgb '%s' "
                "fs pattern %d border lc rgb '#000000' "
                "title '%s'",
                unit, fill[c].colour, fill[c].pattern, class_name[c]);
        comma = ", ";
    }
    fprintf(out,
            ", 'memory.dat' using ($2/%g):(-$1-0.38):(0):(0.76) with vectors nohead lw 2.5 "
            "lc rgb '#000000' title 'peak reached'\n",
            unit);
}

static void memory_script(const Figures *f, FILE *out) {
    enum { WIDTH = 1000 };
    int foot = script_foot(f, WIDTH, false), height = foot + 180 + 52 * f->n;
    double most = 1;
    for (int i = 0; i < f->n; i++)
        most = fmax(most, fmax(memory_sum(&f->method[i], CLASSES), (double)f->method[i].reached));
    script_head(out, f, WIDTH, height,
                f->cpu ? "Memory at the peak, by what it holds"
                       : "VRAM at the peak, by what it holds");
    const int frame[4] = {190, WIDTH - 30, foot + 50, height - 105};
    script_frame(out, WIDTH, height, frame);
    fprintf(out, "set style textbox opaque fc rgb '#ffffff' noborder margins 0.4,0.4\n");
    memory_labels(f, most, f->byte_unit, out);
    fprintf(out, "set xrange [0:%.8g]\nset yrange [%g:0.6]\n", 1.14 * most / f->byte_unit,
            -(f->n - 0.4));
    fprintf(out, "unset ytics\nset xtics nomirror\nset grid xtics lc rgb '#d8d8d8' lt 1\n"
                 "set border 3\n");
    fprintf(out, "set xlabel '%s (%s)'\n", f->cpu ? "memory" : "VRAM",
            f->byte_unit == 1e6 ? "MB, 10⁶ bytes" : "GB, 10⁹ bytes");
    fprintf(
        out,
        "set key at screen 0.5,screen %.5f center top horizontal Left reverse maxrows 2 samplen 2 "
        "width 1 spacing 1.2\n",
        1 - 40.0 / height);
    memory_plot(f, f->byte_unit, out);
    fprintf(out, "unset multiplot\n");
}

bool memory_write(const Figures *f, const char *dir, PeftError *err) {
    return write_both(f, dir, "memory", memory_data, memory_script, err);
}

/* ---- time per epoch ---- */

/* Two blocks: the means, and every single epoch. */
static void time_data(const Figures *f, FILE *out) {
    fprintf(out, "# row, seconds per epoch, sample deviation over epochs and seeds\n");
    for (int i = 0; i < f->n; i++) {
        fprintf(out, "%d ", i);
        put(out, f->method[i].epoch_time);
        put(out, f->method[i].time_spread);
        fprintf(out, "\n");
    }
    fprintf(out, "\n\n# row, seconds of one epoch\n");
    for (int i = 0; i < f->n; i++)
        for (int e = 0; e < f->method[i].nseconds; e++)
            fprintf(out, "%d %.10g\n", i, f->method[i].seconds[e]);
}

static void time_labels(const Figures *f, double most, FILE *out) {
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        fprintf(out, "set label ");
        script_text(out, m->name);
        fprintf(out, " at graph -0.01,first %d right\n", -i);
        fprintf(out, "set label '%.*f", m->epoch_time < 100 ? 2 : 0, m->epoch_time);
        if (m->time_spread >= 0)
            fprintf(out, " ± %.*f", m->epoch_time < 100 ? 2 : 0, m->time_spread);
        fprintf(out, " s' at first %.8g,first %d left\n", 1.03 * most, -i);
    }
}

static void time_script(const Figures *f, FILE *out) {
    enum { WIDTH = 1000 };
    int foot = script_foot(f, WIDTH, false), height = foot + 150 + 52 * f->n;
    double most = 0;
    bool spread = false;
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        most = fmax(most, m->epoch_time + (m->time_spread >= 0 ? m->time_spread : 0));
        for (int e = 0; e < m->nseconds; e++) most = fmax(most, m->seconds[e]);
        spread |= m->time_spread >= 0;
    }
    if (!(most > 0)) most = 1;
    script_head(out, f, WIDTH, height, "Time per epoch");
    const int frame[4] = {190, WIDTH - 150, foot + 50, height - 75};
    script_frame(out, WIDTH, height, frame);
    time_labels(f, most, out);
    fprintf(out, "set title 'bar: mean; whisker: ± one sample deviation; circle: one epoch' "
                 "font ',11' offset 0,-0.3\n");
    fprintf(out, "set xrange [0:%.8g]\nset yrange [%g:0.6]\n", 1.02 * most, -(f->n - 0.4));
    fprintf(out, "unset ytics\nset xtics nomirror\nset grid xtics lc rgb '#d8d8d8' lt 1\n"
                 "set border 3\nset xlabel 'training time of an epoch (seconds)'\n");
    fprintf(out,
            "plot 'time.dat' index 0 using (0):(-$1):(0):2:(-$1-0.3):(-$1+0.3) with boxxyerror "
            "fs solid 1 noborder lc rgb '#56B4E9' notitle");
    if (spread)
        fprintf(out, ", '' index 0 using 2:(-$1):3 with xerrorbars pt 0 lw 2 lc rgb '#000000' "
                     "notitle");
    fprintf(out, ", '' index 1 using 2:(-$1-0.18) with points pt 6 ps 0.8 lw 1.2 lc rgb '#000000' "
                 "notitle\nunset multiplot\n");
}

bool time_write(const Figures *f, const char *dir, PeftError *err) {
    return write_both(f, dir, "time", time_data, time_script, err);
}

/* ---- quality against parameters and memory ---- */

static void quality_data(const Figures *f, FILE *out) {
    fprintf(out, "# row, trained parameters, peak bytes reached, test macro F1, its noise\n");
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        fprintf(out, "%d %lld %lld ", i, (long long)m->trainable, (long long)m->reached);
        put(out, m->f1);
        put(out, m->noise);
        fprintf(out, "\n");
    }
}

/* An axis of cost: parameters on a logarithmic scale, or memory in its unit. */
typedef struct CostAxis {
    bool logarithmic;
    double from, to; /* what it shows; in powers of ten when logarithmic */
} CostAxis;

static double cost_place(const Figures *f, const CostAxis *a, const Method *m) {
    double v = a->logarithmic ? log10((double)m->trainable) : (double)m->reached / f->byte_unit;
    return (v - a->from) / (a->to - a->from);
}

/* By how much of the axis each method is moved right, so that no two points hide each other. */
static bool cost_moves(const Figures *f, const CostAxis *a, double by[MAX_METHODS]) {
    double gap = fmin(0.025, 0.3 / f->n), last = -INFINITY;
    bool done[MAX_METHODS] = {false}, moved = false;
    for (int n = 0; n < f->n; n++) {
        int next = -1; /* from left to right */
        for (int i = 0; i < f->n; i++)
            if (!done[i] &&
                (next < 0 || cost_place(f, a, &f->method[i]) < cost_place(f, a, &f->method[next])))
                next = i;
        double place = cost_place(f, a, &f->method[next]);
        done[next] = true;
        last = fmax(place, last + gap);
        by[next] = last - place;
        moved |= by[next] > 0;
    }
    return moved;
}

static void quality_points(const Figures *f, const CostAxis *a, FILE *out) {
    double by[MAX_METHODS];
    cost_moves(f, a, by);
    for (int i = 0; i < f->n; i++) {
        double move = by[i] * (a->to - a->from);
        fprintf(out, "%s'quality.dat' every ::%d::%d using (", i ? ", " : "plot ", i, i);
        if (a->logarithmic)
            fprintf(out, "$2*10**%.6g", move);
        else
            fprintf(out, "$3/%g+%.6g", f->byte_unit, move);
        fprintf(out, "):4:5 with yerrorbars ls %d dt 1 lw 1.5 ps 1.6 notitle", f->method[i].style);
    }
    fprintf(out, "\n");
}

static CostAxis parameters_axis(const Figures *f) {
    double few = INFINITY, many = 0;
    for (int i = 0; i < f->n; i++) {
        few = fmin(few, (double)f->method[i].trainable);
        many = fmax(many, (double)f->method[i].trainable);
    }
    double low = floor(log10(few)), high = ceil(log10(many));
    if (!(high > low)) high = low + 1;
    return (CostAxis){true, low - 0.114, high + 0.114};
}

static CostAxis peak_axis(const Figures *f) {
    double bytes = 1;
    for (int i = 0; i < f->n; i++) bytes = fmax(bytes, (double)f->method[i].reached);
    return (CostAxis){false, 0, 1.1 * bytes / f->byte_unit};
}

static void quality_script(const Figures *f, FILE *out) {
    enum { WIDTH = 1000 };
    int foot = script_foot(f, WIDTH, true), height = foot + 440;
    double least = 1, most = 0, by[MAX_METHODS];
    CostAxis parameters = parameters_axis(f), peak = peak_axis(f);
    bool moved = cost_moves(f, &parameters, by) || cost_moves(f, &peak, by);
    for (int i = 0; i < f->n; i++) {
        const Method *m = &f->method[i];
        least = fmin(least, m->f1 - m->noise), most = fmax(most, m->f1 + m->noise);
    }
    script_head(out, f, WIDTH, height, "Quality against cost");
    script_legend(out, f, WIDTH, height);
    share_range(out, least, most);
    fprintf(out, "set ytics nomirror\nset xtics nomirror\nset grid lc rgb '#d8d8d8' lt 1\n"
                 "set ylabel 'test macro F1 (0 to 1)'\n");
    const int left[4] = {85, 480, foot + 55, height - 72};
    script_frame(out, WIDTH, height, left);
    fprintf(out, "set title 'whisker: a difference this small can be chance' font ',11' offset "
                 "0,-0.3\n");
    fprintf(out, "set logscale x\nset xtics format '%%.0s%%c'\nset xrange [%.8g:%.8g]\n",
            pow(10, parameters.from), pow(10, parameters.to));
    fprintf(out, "set xlabel 'trained parameters (log scale)'\n");
    quality_points(f, &parameters, out);
    script_first_done(out);
    const int right[4] = {575, WIDTH - 30, foot + 55, height - 72};
    script_frame(out, WIDTH, height, right);
    fprintf(out, "set title '%s' font ',11' offset 0,-0.3\n",
            moved ? "points that would touch are moved right" : "");
    fprintf(out, "unset logscale x\nset xtics format '%%g'\nset xrange [0:%.8g]\n", peak.to);
    fprintf(out, "set xlabel '%s at the peak (%s)'\n", f->cpu ? "memory" : "VRAM", f->unit_name);
    quality_points(f, &peak, out);
    fprintf(out, "unset multiplot\n");
}

bool quality_write(const Figures *f, const char *dir, PeftError *err) {
    return write_both(f, dir, "quality", quality_data, quality_script, err);
}
