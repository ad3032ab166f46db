/* The three file formats. A parser reads and writes the same block: the text of a row is never
 * longer than the row with its separators, so the write cursor cannot pass the read cursor and the
 * file's own memory becomes the arena. Every row is either complete or an error with its line. */
#include "dataset_parse.h"

#include <stdlib.h>
#include <string.h>

#include "textfile.h"

enum { EXCERPT = 64, MAX_COLUMNS = 64 };

typedef struct Parser {
    const char *name;
    char *at, *end; /* what is left to read; *end is NUL */
    size_t line;    /* of *at, from 1 */
    char *write;    /* behind the last text kept */
    Dataset *ds;
    int32_t capacity; /* rows that the arrays of ds have room for */
    PeftError *err;
} Parser;

typedef struct Slice {
    char *bytes;
    size_t len;
} Slice;

/* ---- lines and rows ---- */

/* What no format allows, looked for once and for all. */
static bool check_lines(const Parser *p) {
    size_t line = p->line;
    for (const char *at = p->at; at < p->end; line++) {
        const char *newline = memchr(at, '\n', (size_t)(p->end - at));
        size_t len = (size_t)((newline ? newline : p->end) - at);
        if (len > DATASET_MAX_LINE)
            return peft_fail(p->err, "%s:%zu: a line of %zu bytes, the limit is %d", p->name, line,
                             len, DATASET_MAX_LINE);
        if (memchr(at, 0, len))
            return peft_fail(p->err, "%s:%zu: NUL byte; the data must be text in UTF-8", p->name,
                             line);
        at += len + 1;
    }
    return true;
}

/* The next line that is not blank, without its line end; p->line is the line behind it. */
static bool next_line(Parser *p, Slice *line) {
    while (p->at < p->end) {
        char *newline = memchr(p->at, '\n', (size_t)(p->end - p->at));
        *line = (Slice){p->at, (size_t)((newline ? newline : p->end) - p->at)};
        p->at = newline ? newline + 1 : p->end;
        p->line++;
        if (line->len > 0 && line->bytes[line->len - 1] == '\r') line->len--;
        if (line->len > 0) return true;
    }
    return false;
}

static bool grow_rows(Parser *p, bool labelled) {
    Dataset *ds = p->ds;
    if (ds->n == DATASET_MAX_ROWS)
        return peft_fail(p->err, "%s: more than %d rows", p->name, DATASET_MAX_ROWS);
    size_t rows = p->capacity ? (size_t)p->capacity * 2 : 1024;
    if (rows > DATASET_MAX_ROWS) rows = DATASET_MAX_ROWS;
    size_t *text_at = realloc(ds->text_at, (rows + 1) * sizeof *text_at);
    if (text_at) ds->text_at = text_at;
    int32_t *sample = realloc(ds->sample, rows * sizeof *sample);
    if (sample) ds->sample = sample;
    int32_t *label = labelled ? realloc(ds->label, rows * sizeof *label) : NULL;
    if (label) ds->label = label;
    if (!text_at || !sample || (labelled && !label))
        return peft_fail(p->err, "%s: out of memory for %zu rows", p->name, rows);
    p->capacity = (int32_t)rows;
    return true;
}

/* Makes text, which lies between p->write and p->at, the next row. label is -1 in a file without.
 */
static bool add_row(Parser *p, Slice text, int32_t label, size_t line) {
    Dataset *ds = p->ds;
    if (ds->n == p->capacity && !grow_rows(p, label >= 0)) return false;
    memmove(p->write, text.bytes, text.len);
    ds->text_at[ds->n] = (size_t)(p->write - ds->arena);
    p->write += text.len;
    *p->write++ = '\0';
    ds->text_at[ds->n + 1] = (size_t)(p->write - ds->arena);
    ds->sample[ds->n] = ds->n;
    if (label >= 0) ds->label[ds->n] = label;
    if (label >= ds->classes) {
        ds->classes = label + 1;
        ds->classes_line = (int32_t)line;
    }
    ds->n++;
    return true;
}

/* A decimal integer of at most DATASET_MAX_LABEL once numbered from 0; `first` is the file's first
 * number. */
static bool parse_label(const Parser *p, Slice s, int32_t first, size_t line, int32_t *label) {
    char excerpt[EXCERPT];
    int32_t value = 0;
    bool ok = s.len > 0 && s.len <= 9;
    for (size_t i = 0; ok && i < s.len; i++) {
        ok = s.bytes[i] >= '0' && s.bytes[i] <= '9';
        value = value * 10 + (s.bytes[i] - '0');
    }
    *label = value - first;
    if (ok && *label >= 0 && *label <= DATASET_MAX_LABEL) return true;
    return peft_fail(
        p->err, "%s:%zu: %s '%s' is not an integer from %d to %d%s", p->name, line,
        first ? "class" : "label", textfile_excerpt(excerpt, sizeof excerpt, s.bytes, s.len), first,
        DATASET_MAX_LABEL + first,
        first && line == 1 ? "; this layout has no header line, one with a header is TSV" : "");
}

/* ---- TSV ---- */

/* The tab-separated columns of a line; the first MAX_COLUMNS of them go to column. */
static int split_tabs(Slice line, Slice column[MAX_COLUMNS]) {
    int n = 0;
    char *end = line.bytes + line.len;
    for (char *at = line.bytes;; at++) {
        char *tab = memchr(at, '\t', (size_t)(end - at));
        if (n < MAX_COLUMNS) column[n] = (Slice){at, (size_t)((tab ? tab : end) - at)};
        n++;
        if (!tab) return n;
        at = tab;
    }
}

static int find_column(const Slice *column, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (column[i].len == strlen(name) && memcmp(column[i].bytes, name, column[i].len) == 0)
            return i;
    return -1;
}

/* "a, b, c", cut where out is full. */
static const char *list_columns(const Slice *column, int n, char *out, size_t size) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n && used + EXCERPT < size; i++) {
        if (i > 0) used += (size_t)(stpcpy(out + used, ", ") - (out + used));
        textfile_excerpt(out + used, EXCERPT - 2, column[i].bytes, column[i].len);
        used += strlen(out + used);
    }
    return out;
}

typedef struct Columns {
    int n, text, label; /* label is -1 when the caller allows it to be missing and it is */
} Columns;

static bool parse_header(Parser *p, bool need_label, Columns *columns) {
    Slice line, column[MAX_COLUMNS];
    char found[512];
    if (!next_line(p, &line))
        return peft_fail(p->err,
                         "%s: the file is empty; expected a header line with the columns "
                         "sentence and label",
                         p->name);
    int n = split_tabs(line, column);
    if (n > MAX_COLUMNS)
        return peft_fail(p->err, "%s:%zu: %d columns, the limit is %d", p->name, p->line - 1, n,
                         MAX_COLUMNS);
    columns->n = n;
    columns->text = find_column(column, n, "sentence");
    if (columns->text < 0) columns->text = find_column(column, n, "text");
    columns->label = find_column(column, n, "label");
    if (columns->text >= 0 && (columns->label >= 0 || !need_label)) return true;
    return peft_fail(p->err,
                     "%s:%zu: no column %s in the tab-separated header; found: %s; the first line "
                     "must name the columns, with a tab between them",
                     p->name, p->line - 1, columns->text < 0 ? "'sentence' (or 'text')" : "'label'",
                     list_columns(column, n, found, sizeof found));
}

static bool parse_tsv(Parser *p) {
    Columns columns;
    Slice line, column[MAX_COLUMNS];
    if (!parse_header(p, true, &columns)) return false;
    while (next_line(p, &line)) {
        int32_t label;
        int n = split_tabs(line, column);
        if (n != columns.n)
            return peft_fail(p->err, "%s:%zu: the header has %d columns, this row %d", p->name,
                             p->line - 1, columns.n, n);
        if (!parse_label(p, column[columns.label], 0, p->line - 1, &label) ||
            !add_row(p, column[columns.text], label, p->line - 1))
            return false;
    }
    if (p->ds->n > 0) return true;
    return peft_fail(p->err, "%s: a header line and no rows", p->name);
}

bool tsv_labelled(const char *name, char *bytes, size_t len, bool *labelled, PeftError *err) {
    Columns columns;
    Parser p = {.name = name, .at = bytes, .end = bytes + len, .line = 1, .err = err};
    if (!parse_header(&p, false, &columns)) return false;
    *labelled = columns.label >= 0;
    return true;
}

/* ---- CSV ---- */

/* Copies a quoted field, the opening quote being read, and reads past the closing one. */
static bool copy_quoted(Parser *p, const char *row, char **to) {
    size_t opened = p->line;
    while (p->at < p->end) {
        if (*p->at == '"' && *++p->at != '"') return true;
        if (*p->at == '\n') p->line++;
        if (p->at - row > DATASET_MAX_LINE)
            return peft_fail(p->err, "%s:%zu: a row of over %d bytes; is this quote closed?",
                             p->name, opened, DATASET_MAX_LINE);
        *(*to)++ = *p->at++;
    }
    return peft_fail(p->err, "%s:%zu: this quote is never closed", p->name, opened);
}

/* Copies one field, unquoted, to *to and leaves the cursor on the separator behind it. */
static bool copy_field(Parser *p, const char *row, char **to) {
    if (*p->at == '"') {
        p->at++;
        if (!copy_quoted(p, row, to)) return false;
        if (p->at[0] == '\r' && (p->at[1] == '\n' || p->at + 1 == p->end)) p->at++;
        if (p->at == p->end || *p->at == ',' || *p->at == '\n') return true;
        return peft_fail(p->err, "%s:%zu: text behind a closing quote; write \"\" for a quote",
                         p->name, p->line);
    }
    const char *field = p->at;
    while (p->at < p->end && *p->at != ',' && *p->at != '\n') *(*to)++ = *p->at++;
    if (p->at > field && p->at[-1] == '\r' && *p->at != ',') --*to; /* of CRLF */
    return true;
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* One row: class, title and description, the last two joined at p->write. */
static bool parse_csv_row(Parser *p) {
    const char *row = p->at;
    size_t line = p->line;
    char *to = p->write;
    int32_t label = 0;
    for (int column = 0; column < 3; column++) {
        char *from = to;
        if (column > 0 && (p->at == p->end || *p->at++ != ','))
            return peft_fail(p->err, "%s:%zu: %d of the 3 columns class, title, description",
                             p->name, line, column);
        if (!copy_field(p, row, &to)) return false;
        if (column == 0) {
            if (!parse_label(p, (Slice){from, (size_t)(to - from)}, 1, line, &label)) return false;
            to = from;
        } else if (column == 1) {
            *to++ = ' ';
        }
    }
    if (p->at < p->end && *p->at == ',')
        return peft_fail(p->err, "%s:%zu: more than 3 columns; expected class, title, description",
                         p->name, line);
    if (p->at < p->end) p->at++, p->line++;
    char *text = p->write;
    while (text < to && is_blank(*text)) text++;
    while (text < to && is_blank(to[-1])) to--;
    return add_row(p, (Slice){text, (size_t)(to - text)}, label, line);
}

static bool parse_csv(Parser *p) {
    while (p->at < p->end) {
        if (*p->at == '\n' || (*p->at == '\r' && p->at[1] == '\n')) {
            p->at += *p->at == '\r' ? 2 : 1;
            p->line++;
        } else if (!parse_csv_row(p)) {
            return false;
        }
    }
    if (p->ds->n > 0) return true;
    return peft_fail(p->err, "%s: no rows; expected \"class\",\"title\",\"description\"", p->name);
}

/* ---- plain text ---- */

static bool parse_text(Parser *p) {
    Slice line;
    while (next_line(p, &line))
        if (!add_row(p, line, -1, p->line - 1)) return false;
    if (p->ds->n > 0) return true;
    return peft_fail(p->err, "%s: no text in it; expected a text a line", p->name);
}

bool dataset_parse_rows(Dataset *ds, const char *name, size_t len, DataFormat format,
                        PeftError *err) {
    Parser p = {.name = name,
                .at = ds->arena,
                .end = ds->arena + len,
                .line = 1,
                .write = ds->arena,
                .ds = ds,
                .err = err};
    if (len >= 3 && memcmp(p.at, "\xEF\xBB\xBF", 3) == 0) p.at += 3; /* byte order mark */
    if (!check_lines(&p)) return false;
    switch (format) {
    case DATA_TSV: return parse_tsv(&p);
    case DATA_CSV: return parse_csv(&p);
    case DATA_TEXT: return parse_text(&p);
    case DATA_AUTO: break;
    }
    return peft_fail(err, "%s: cannot tell the format from the name; expected .tsv, .csv or .txt",
                     name);
}
