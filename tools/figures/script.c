/* What the gnuplot scripts have in common: terminal, styles, strings, legend and small type. A
 * script draws on two terminals; the variables `kind` (svg or png) and `picture` (the file) come
 * from the command line. Colours are those of Okabe and Ito; dashes and points differ too, so that
 * grey print tells the methods apart. */
#include "figures.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtime/io/file.h"
#include "../../runtime/measure.h"

enum { STYLES = 8, FOOT = 46 /* pixels for the last two lines */ };

FILE *script_open(const char *dir, const char *name, PeftError *err) {
    char *path = path_join(dir, name, err);
    FILE *out = path ? fopen(path, "w") : NULL;
    if (path && !out) peft_fail(err, "cannot write %s: %s", path, strerror(errno));
    free(path);
    return out;
}

bool script_close(FILE *out, const char *dir, const char *name, PeftError *err) {
    bool ok = !ferror(out);
    ok = fclose(out) == 0 && ok;
    return ok || peft_fail(err, "cannot write %s/%s: %s", dir, name, strerror(errno));
}

/* In single quotes gnuplot takes everything literally but the quote itself. */
void script_text(FILE *out, const char *text) {
    fputc('\'', out);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '\'') fputc('\'', out);
        fputc(*c < 32 || *c == 127 ? '?' : *c, out);
    }
    fputc('\'', out);
}

static bool starts_character(char c) {
    return ((unsigned char)c & 0xc0) != 0x80;
}

void script_shorten(const char *text, int most, bool keep_end, char *out) {
    int n = 0, skip = 0, at = 0;
    for (const char *c = text; *c; c++) n += starts_character(*c);
    int take = n <= most ? n : most - 3;
    if (keep_end) skip = n - take;
    if (n > most && keep_end) at = sprintf(out, "...");
    n = 0;
    for (const char *c = text; *c; c++) {
        n += starts_character(*c);
        if (n <= skip || n > skip + take) continue;
        out[at++] = (unsigned char)*c < 32 || *c == 127 ? '?' : *c;
    }
    if (n > most && !keep_end) at += sprintf(out + at, "...");
    out[at] = 0;
}

static void say_seeds(const Figures *f, char buf[64]) {
    int least = f->method[0].seeds, most = least;
    for (int i = 1; i < f->n; i++) {
        if (f->method[i].seeds < least) least = f->method[i].seeds;
        if (f->method[i].seeds > most) most = f->method[i].seeds;
    }
    if (least == most)
        snprintf(buf, 64, "%d seed%s", most, most == 1 ? "" : "s");
    else
        snprintf(buf, 64, "%d to %d seeds", least, most);
}

/* Appends ", TEXT" (or another separator) to a line, at most CUT characters of the text; nothing
 * for an empty one. */
enum { CUT = 36 };
static void add(char line[CONDITIONS], const char *before, const char *text) {
    char cut[4 * CUT + 4];
    size_t n = strlen(line);
    if (!*text) return;
    script_shorten(text, CUT, false, cut);
    snprintf(line + n, CONDITIONS - n, "%s%s", before, cut);
}

void script_conditions(const Figures *f, char where[CONDITIONS], char what[CONDITIONS]) {
    char base[4 * CUT + 4], data[4 * CUT + 4], threads[48], rows[32], seeds[64];
    snprintf(threads, sizeof threads, "%lld thread%s", (long long)f->threads,
             f->threads == 1 ? "" : "s");
    where[0] = 0;
    add(where, "device ", f->device);
    add(where, ", ", f->cpu ? f->processor : f->gpu);
    if (f->cpu) add(where, ", ", f->instructions), add(where, ", ", threads);
    if (!f->cpu) add(where, ", driver ", f->driver), add(where, ", ", f->compute);
    add(where, "; ", f->date);
    add(where, "; commit ", f->commit);
    script_shorten(f->base, CUT, true, base);
    script_shorten(f->data, CUT, true, data);
    say_seeds(f, seeds);
    snprintf(what, CONDITIONS, "base %s, data %s, %s test rows; %s", base, data,
             with_commas(f->test_rows, rows), seeds);
}

/* ---- the beginning of a script ---- */

static void line_styles(FILE *out, const Figures *f) {
    static const char *const colour[STYLES] = {"#000000", "#56B4E9", "#0072B2", "#D55E00",
                                               "#009E73", "#CC79A7", "#E69F00", "#7F7F7F"};
    static const int dash[STYLES] = {1, 2, 4, 5, 3, 1, 2, 4},
                     point[STYLES] = {7, 5, 9, 11, 13, 6, 4, 8};
    for (int i = 0; i < f->n; i++) {
        int s = f->method[i].style, k = (s - 1) % STYLES;
        fprintf(out, "set style line %d lc rgb '%s' dt %d lw 2 pt %d ps 1.2\n", s, colour[k],
                dash[(k + (s - 1) / STYLES) % STYLES],
                point[(k + 3 * ((s - 1) / STYLES)) % STYLES]);
    }
}

void script_head(FILE *out, const Figures *f, int width, int height, const char *title) {
    char where[CONDITIONS], what[CONDITIONS];
    script_conditions(f, where, what);
    fprintf(
        out,
        "set encoding utf8\n"
        "if (kind eq 'svg') { set terminal svg size %d,%d font 'sans-serif,10' fontscale 1.33 noenhanced "
        "background '#ffffff' }\n"
        "if (kind eq 'png') { set terminal pngcairo size %d,%d font 'sans-serif,10' fontscale 2 "
        "linewidth 2 pointscale 2 noenhanced background '#ffffff' }\n",
        width, height, 2 * width, 2 * height);
    fprintf(out, "set output picture\nset datafile missing '?'\nset border lc rgb '#404040'\n");
    line_styles(out, f);
    fprintf(out, "set multiplot\nset label 1 ");
    script_text(out, title);
    fprintf(out, " at screen 0.5,screen %.5f center font ',16'\n", 1 - 20.0 / height);
    fprintf(out, "set label 2 ");
    script_text(out, where);
    fprintf(out, " at screen %.5f,screen %.5f left font ',9' tc rgb '#505050'\n", 12.0 / width,
            28.0 / height);
    fprintf(out, "set label 3 ");
    script_text(out, what);
    fprintf(out, " at screen %.5f,screen %.5f left font ',9' tc rgb '#505050'\n", 12.0 / width,
            12.0 / height);
}

/* Columns of the legend and their width in pixels; a character is about 8 wide. */
static int legend_columns(const Figures *f, int width, int *cell) {
    int longest = 0;
    for (int i = 0; i < f->n; i++) {
        int n = 0;
        for (const char *c = f->method[i].name; *c; c++) n += starts_character(*c);
        if (n > longest) longest = n;
    }
    *cell = 95 + 8 * longest;
    int columns = (width - 20) / *cell;
    return columns < f->n ? columns : f->n;
}

int script_foot(const Figures *f, int width, bool legend) {
    int cell, columns = legend_columns(f, width, &cell);
    return FOOT + (legend ? 10 + 22 * ((f->n + columns - 1) / columns) : 0);
}

void script_legend(FILE *out, const Figures *f, int width, int height) {
    int cell, columns = legend_columns(f, width, &cell);
    int rows = (f->n + columns - 1) / columns;
    int left = (width - columns * cell) / 2 + 10;
    for (int i = 0; i < f->n; i++) {
        double y = (FOOT + 22.0 * (rows - 1 - i / columns) + 10) / height;
        int x = left + i % columns * cell, style = f->method[i].style;
        fprintf(out,
                "set arrow from screen %.5f,screen %.5f to screen %.5f,screen %.5f nohead ls %d\n",
                (double)x / width, y, (x + 62.0) / width, y, style);
        fprintf(out, "set label '' at screen %.5f,screen %.5f point ls %d\n", (x + 31.0) / width, y,
                style);
        fprintf(out, "set label ");
        script_text(out, f->method[i].name);
        fprintf(out, " at screen %.5f,screen %.5f left\n", (x + 70.0) / width, y);
    }
}

void script_first_done(FILE *out) {
    fprintf(out, "unset label\nunset arrow\nunset object\n");
}

void script_frame(FILE *out, int width, int height, const int frame[4]) {
    fprintf(out,
            "set lmargin at screen %.5f\nset rmargin at screen %.5f\n"
            "set bmargin at screen %.5f\nset tmargin at screen %.5f\n",
            (double)frame[0] / width, (double)frame[1] / width, (double)frame[2] / height,
            (double)frame[3] / height);
}
