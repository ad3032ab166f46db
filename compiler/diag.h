/* Mistakes in the user's program, reported as a modern compiler does: place, source line, caret.
 *
 * Discipline: a function that gives NULL (or an error value) because of the user's program has
 * reported the reason first, so whoever receives it stays silent. That is what keeps one mistake
 * from turning into ten. Identical messages at one place are printed once (a block applied in
 * twelve layers is wrong once), and after DIAG_LIMIT errors the rest is only counted.
 */
#ifndef PEFTC_DIAG_H
#define PEFTC_DIAG_H

#include <stdio.h>

#include "source.h"

#define DIAG_LIMIT 20

typedef struct Diag {
    Sources *sources;
    FILE *out;
    bool color;
    int nerror, nwarning;
    /* the rest is private */
    bool muted;     /* the last message was not printed: neither are its notes */
    uint64_t *seen; /* hashes of printed messages */
    int nseen, cap;
} Diag;

/* Colours only when `out` is a terminal and NO_COLOR is not set. */
void diag_init(Diag *d, Sources *sources, FILE *out);

/* Reports at a span and goes on. SPAN_NONE: a message without a place. Returns NULL, so that
 * `return diag_error(...)` reads well where a pointer is expected. */
void *diag_error(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same with the caret at byte `caret` of the span: an operator between its operands. */
void *diag_error_caret(Diag *d, Span at, int32_t caret, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void diag_warning(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Belongs to the message before it. */
void diag_note(Diag *d, Span at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* After the last message: says how many errors there were when not all were printed. */
void diag_finish(Diag *d);

/* The name nearest to `wrong`, offered one candidate at a time: within an edit distance of 2 and of
 * less than half its length. */
typedef struct Nearest {
    const char *wrong, *best;
    int distance;
} Nearest;

Nearest nearest_to(const char *wrong);
void nearest_offer(Nearest *n, const char *candidate);
/* "; did you mean `NAME`?" from the pool of the diagnostics, or "". */
const char *nearest_hint(Diag *d, const Nearest *n);

#endif
