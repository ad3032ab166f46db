/* The summary, twice: table.md, and the same cells as a picture. Both print one array of cells, so
 * they cannot differ. table.dat is that array, tab-separated. */
#include "figures.h"

#include <string.h>

#include "../../runtime/measure.h"

enum { COLUMNS = 7, CELL = NAME_BYTES, ROWS = MAX_METHODS + 2 };

typedef struct Table {
    char cell[ROWS][COLUMNS][CELL]; /* row 0: the heads */
    int rows;
} Table;

static void with_spread(char cell[CELL], double v, double spread, int digits) {
    int n = snprintf(cell, CELL, "%.*f", digits, v);
    if (spread >= 0) snprintf(cell + n, CELL - (size_t)n, " ± %.*f", digits, spread);
}

static void fill_row(const Figures *f, const Method *m, char cell[COLUMNS][CELL]) {
    char count[32];
    int digits = f->byte_unit == 1e6 ? 1 : 2;
    snprintf(cell[0], CELL, "%s", m->name);
    snprintf(cell[1], CELL, "%s", with_commas(m->trainable, count));
    snprintf(cell[2], CELL, "%.2f", m->percent);
    with_spread(cell[3], m->f1, m->f1_spread, 4);
    snprintf(cell[4], CELL, "%.*f", digits, (double)m->reached / f->byte_unit);
    with_spread(cell[5], m->epoch_time, m->time_spread, 2);
    snprintf(cell[6], CELL, "%.2f", (double)m->saved / 1e6);
}

static void fill_table(const Figures *f, Table *t) {
    static const char *const head[COLUMNS] = {
        "method", "trained parameters", "% of all",   "test macro F1",
        NULL,     "s per epoch",        "MB per task"};
    for (int c = 0; c < COLUMNS; c++)
        if (head[c]) snprintf(t->cell[0][c], CELL, "%s", head[c]);
    snprintf(t->cell[0][4], CELL, "%s, %s", f->cpu ? "peak memory" : "peak VRAM", f->unit_name);
    for (int i = 0; i < f->n; i++) fill_row(f, &f->method[i], t->cell[i + 1]);
    t->rows = f->n + 1;
    if (!f->baseline) return;
    char count[32];
    char(*last)[CELL] = t->cell[t->rows++];
    snprintf(last[0], CELL, "bag of words");
    snprintf(last[1], CELL, "%s", with_commas(f->baseline_parameters, count));
    snprintf(last[3], CELL, "%.4f", f->baseline_f1);
}

/* ---- Markdown ---- */

/* Text that Markdown and HTML leave as it is. */
static void put_markdown(FILE *out, const char *text) {
    for (const char *c = text; *c; c++) {
        if (*c == '<')
            fprintf(out, "&lt;");
        else if (*c == '&')
            fprintf(out, "&amp;");
        else if (strchr("\\|`*[]", *c))
            fprintf(out, "\\%c", *c);
        else
            fputc((unsigned char)*c < 32 || *c == 127 ? ' ' : *c, out);
    }
}

static void write_markdown(const Figures *f, const Table *t, FILE *out) {
    char where[CONDITIONS], what[CONDITIONS];
    for (int r = 0; r < t->rows; r++) {
        for (int c = 0; c < COLUMNS; c++) {
            fprintf(out, "| ");
            put_markdown(out, t->cell[r][c]);
            fputc(' ', out);
        }
        fprintf(out, "|\n");
        if (r == 0) fprintf(out, "|---|--:|--:|--:|--:|--:|--:|\n");
    }
    script_conditions(f, where, what);
    fprintf(out, "\n");
    put_markdown(out, where);
    fprintf(out, "  \n");
    put_markdown(out, what);
    fprintf(out, "\n");
    const json_t *sentences = json_object_get(f->root, "takeaways");
    for (size_t i = 0; i < json_array_size(sentences); i++) {
        const char *text = json_string_value(json_array_get(sentences, i));
        if (!text) continue;
        fprintf(out, "%s* ", i ? "" : "\n");
        put_markdown(out, text);
        fprintf(out, "\n");
    }
}

/* ---- the picture ---- */

static void write_data(const Table *t, FILE *out) {
    for (int r = 0; r < t->rows; r++)
        for (int c = 0; c < COLUMNS; c++)
            fprintf(out, "%s%s", t->cell[r][c], c + 1 < COLUMNS ? "\t" : "\n");
}

static void write_script(const Figures *f, const Table *t, FILE *out) {
    static const int edge[COLUMNS] = {24, 370, 450, 615, 785, 930, 1056};
    enum { WIDTH = 1080, ROW = 30 };
    int foot = script_foot(f, WIDTH, false), height = foot + 60 + ROW * t->rows;
    script_head(out, f, WIDTH, height, "Fine-tuning methods compared");
    for (int r = 0; r < t->rows; r++) {
        double y = (height - 48 - ROW * (r + 0.5)) / height;
        if (r % 2 == 0)
            fprintf(out,
                    "set object rectangle from screen 0.01,screen %.5f to screen 0.99,screen %.5f "
                    "fc rgb '%s' fs solid 1 noborder behind\n",
                    y - ROW * 0.5 / height, y + ROW * 0.5 / height, r ? "#f2f2f2" : "#d5e5f0");
        for (int c = 0; c < COLUMNS; c++) {
            if (!*t->cell[r][c]) continue;
            fprintf(out, "set label ");
            script_text(out, t->cell[r][c]);
            fprintf(out, " at screen %.5f,screen %.5f %s font ',12'\n", (double)edge[c] / WIDTH, y,
                    c ? "right" : "left");
        }
    }
    fprintf(out, "unset border\nunset tics\nunset key\nset xrange [0:1]\nset yrange [0:1]\n"
                 "plot NaN notitle\nunset multiplot\n");
}

bool table_write(const Figures *f, const char *dir, PeftError *err) {
    static Table t;
    static const char *const file[3] = {"table.md", "table.dat", "table.gp"};
    fill_table(f, &t);
    for (int i = 0; i < 3; i++) {
        FILE *out = script_open(dir, file[i], err);
        if (!out) return false;
        if (i == 0) write_markdown(f, &t, out);
        if (i == 1) write_data(&t, out);
        if (i == 2) write_script(f, &t, out);
        if (!script_close(out, dir, file[i], err)) return false;
    }
    return true;
}
