/* Printing of diagnostics: place by display column, the source line with tabs expanded and control
 * characters made harmless, ~~~^~~~ under the range.
 *
 * A message is printed at once. What is kept of it is a hash, which is how the same mistake in
 * twelve layers is printed once; a note belongs to the message before it and is silent when that
 * was.
 */
#include "diag.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <utf8proc.h>

#define MAX_COLUMNS 160 /* of a source line shown; longer ones are cut around the caret */

void diag_init(Diag *d, Sources *sources, FILE *out) {
    memset(d, 0, sizeof *d);
    d->sources = sources;
    d->out = out;
    const char *off = getenv("NO_COLOR");
    d->color = isatty(fileno(out)) && !(off && *off);
}

/* ---- the source line ---- */

/* One line of output columns: for each, the bytes shown there. Built once per message. */
typedef struct Canvas {
    char text[MAX_COLUMNS * 4 + 1];
    int bytes;
    int column, from; /* display columns seen so far; the first one shown */
} Canvas;

static void put(Canvas *c, const char *bytes, int n, int width) {
    bool shown = c->column >= c->from && c->column + width <= c->from + MAX_COLUMNS;
    if (shown && (size_t)(c->bytes + n) < sizeof c->text) {
        memcpy(c->text + c->bytes, bytes, (size_t)n);
        c->bytes += n;
    }
    c->column += width;
}

static void draw_line(Canvas *c, const char *p, const char *end) {
    while (p < end) {
        utf8proc_int32_t cp;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)p, end - p, &cp);
        if (*p == '\t') {
            do put(c, " ", 1, 1);
            while (c->column % 8);
        } else if (n <= 0 || cp < 0x20 || (cp >= 0x7f && cp < 0xa0)) {
            put(c, "?", 1, 1);
        } else {
            put(c, p, (int)n, utf8proc_charwidth(cp));
        }
        p += n > 0 ? n : 1;
    }
    c->text[c->bytes] = '\0';
}

static int32_t line_end(const Source *f, int line) {
    int32_t end = line < f->nline ? f->line[line] - 1 : f->length;
    return end > f->line[line - 1] && f->text[end - 1] == '\r' ? end - 1 : end;
}

/* The line of the caret, and below it the part of the range that lies on this line. */
static void print_line(Diag *d, const Source *f, Span at, int32_t caret) {
    int line, column;
    source_locate(f, caret, &line, &column);
    int32_t begin = f->line[line - 1], end = line_end(f, line);
    int32_t from = at.begin > begin ? at.begin : begin, to = at.end < end ? at.end : end;
    if (from > end) from = end;
    int left = source_width(f, begin, from, 0), right = left + source_width(f, from, to, left);
    int mark = column - 1;
    Canvas c = {.from = mark > MAX_COLUMNS - 40 ? mark - MAX_COLUMNS / 2 : 0};
    draw_line(&c, f->text + begin, f->text + end);
    fprintf(d->out, "%5d | %s\n      | ", line, c.text);
    int last = right > mark ? right : mark + 1;
    if (last > c.from + MAX_COLUMNS) last = c.from + MAX_COLUMNS;
    if (d->color) fputs("\033[1;32m", d->out);
    for (int i = c.from; i < last; i++)
        fputc(i == mark ? '^' : i >= left && i < right ? '~' : ' ', d->out);
    fputs(d->color ? "\033[0m\n" : "\n", d->out);
}

/* ---- messages ---- */

static bool seen_before(Diag *d, Span at, const char *text) {
    uint64_t h = 0xcbf29ce484222325u;
    const unsigned char *p = (const unsigned char *)&at;
    for (size_t i = 0; i < sizeof at; i++) h = (h ^ p[i]) * 0x100000001b3u;
    for (const char *s = text; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    for (int i = 0; i < d->nseen; i++)
        if (d->seen[i] == h) return true;
    if (d->nseen < 4 * DIAG_LIMIT) {
        d->seen = pool_grow(d->sources->pool, d->seen, (size_t)d->nseen, (size_t)d->nseen + 1,
                            sizeof *d->seen, &d->cap);
        d->seen[d->nseen++] = h;
    }
    return false;
}

static void print(Diag *d, Span at, int32_t caret, const char *severity, const char *color,
                  const char *text) {
    const Source *f = at.file >= 0 ? &d->sources->file[at.file] : NULL;
    const char *bold = d->color ? "\033[1m" : "", *off = d->color ? "\033[0m" : "";
    if (f) {
        int line, column;
        source_locate(f, caret, &line, &column);
        fprintf(d->out, "%s%s:%d:%d: ", bold, f->path, line, column);
    } else {
        fprintf(d->out, "%speftc: ", bold);
    }
    fprintf(d->out, "%s%s:%s%s %s%s\n", d->color ? color : "", severity, off, bold, text, off);
    if (f) print_line(d, f, at, caret);
}

static char *format(Diag *d, const char *fmt, va_list ap) {
    char text[1024];
    vsnprintf(text, sizeof text, fmt, ap);
    return pool_strdup(d->sources->pool, text);
}

static void error(Diag *d, Span at, int32_t caret, const char *fmt, va_list ap) {
    char *text = format(d, fmt, ap);
    d->muted = seen_before(d, at, text);
    if (d->muted) return;
    d->muted = d->nerror++ >= DIAG_LIMIT;
    if (!d->muted) print(d, at, caret, "error", "\033[1;31m", text);
}

void *diag_error(Diag *d, Span at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    error(d, at, at.begin, fmt, ap);
    va_end(ap);
    return NULL;
}

void *diag_error_caret(Diag *d, Span at, int32_t caret, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    error(d, at, caret, fmt, ap);
    va_end(ap);
    return NULL;
}

void diag_warning(Diag *d, Span at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = format(d, fmt, ap);
    va_end(ap);
    d->muted = seen_before(d, at, text);
    if (d->muted) return;
    d->muted = d->nwarning++ >= DIAG_LIMIT;
    if (!d->muted) print(d, at, at.begin, "warning", "\033[1;35m", text);
}

void diag_note(Diag *d, Span at, const char *fmt, ...) {
    if (d->muted) return;
    va_list ap;
    va_start(ap, fmt);
    char *text = format(d, fmt, ap);
    va_end(ap);
    print(d, at, at.begin, "note", "\033[1;36m", text);
}

void diag_finish(Diag *d) {
    if (d->nerror > DIAG_LIMIT)
        fprintf(d->out, "peftc: %d errors; the first %d are shown\n", d->nerror, DIAG_LIMIT);
}

/* ---- did you mean ---- */

enum { MAX_WORD = 64 };

/* Edits that turn a into b: insert, delete or replace a character, or swap two neighbours. Above
 * `limit` it may be any number above it. */
static int edit_distance(const char *a, const char *b, int limit) {
    int row[3][MAX_WORD];
    int na = (int)strlen(a), nb = (int)strlen(b);
    if (na >= MAX_WORD || nb >= MAX_WORD || abs(na - nb) > limit) return limit + 1;
    for (int i = 0; i <= na; i++) {
        int *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        for (int j = 0; j <= nb; j++) {
            int best = i == 0 ? j : j == 0 ? i : last[j - 1] + (a[i - 1] != b[j - 1]);
            if (i && last[j] + 1 < best) best = last[j] + 1;
            if (j && now[j - 1] + 1 < best) best = now[j - 1] + 1;
            bool swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swap && before[j - 2] + 1 < best) best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[na % 3][nb];
}

Nearest nearest_to(const char *wrong) {
    int n = (int)strlen(wrong);
    return (Nearest){.wrong = wrong, .distance = n > 4 ? 3 : (n + 1) / 2};
}

void nearest_offer(Nearest *n, const char *candidate) {
    int distance = edit_distance(n->wrong, candidate, 2);
    if (distance > 0 && distance < n->distance) {
        n->distance = distance;
        n->best = candidate;
    }
}

const char *nearest_hint(Diag *d, const Nearest *n) {
    if (!n->best) return "";
    size_t size = strlen(n->best) + 32;
    char *hint = pool_alloc(d->sources->pool, size);
    snprintf(hint, size, "; did you mean `%s`?", n->best);
    return hint;
}
