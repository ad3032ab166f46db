/* The texts of a program: every file that takes part, by number, and what a byte of it is to a
 * reader (line, display column, source line). Files are read once; the same file under two names is
 * one.
 *
 * Invariant: a text has no NUL byte before its end and is at most SOURCE_MAX_BYTES long, so that an
 * int32 offset always fits and C string functions see all of it.
 */
#ifndef PEFTC_SOURCE_H
#define PEFTC_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../runtime/error.h"
#include "graph.h" /* Span */
#include "pool.h"

#define SOURCE_MAX_BYTES (4 << 20)

typedef struct Source {
    const char *path; /* as opened and as shown: "models/lib/bert.bert" */
    const char *text; /* ends in NUL */
    int32_t length;
    int32_t *line; /* offset of the first byte of each line */
    int32_t nline;
    uint64_t device, inode; /* identity of a file on disk; 0, 0 for a text given in memory */
} Source;

typedef struct Sources {
    Pool *pool;
    Source *file;
    int nfile, cap;
    bool memory_only; /* refuse to open files: only texts added before exist */
} Sources;

/* Sources own their memory; free with sources_free. */
Sources *sources_new(void);
void sources_free(Sources *s);

/* Number of the file at `path`, read now unless it is known already; -1 with the reason in err. */
int32_t sources_open(Sources *s, const char *path, PeftError *err);
/* Adds a text under a name that sources_open then finds; -1 with the reason in err. */
int32_t sources_add(Sources *s, const char *path, const char *text, size_t length, PeftError *err);
/* The path of `name` as written in file `from`: relative names start at that file's folder. */
char *sources_resolve(Sources *s, int32_t from, const char *name);

/* Line of a byte, from 1, and the display column where it starts, from 1: tabs go to multiples of
 * 8, wide characters take two columns, combining ones none. */
void source_locate(const Source *f, int32_t offset, int *line, int *column);
/* Display width of the bytes [begin, end) of a line whose first column is `column` (from 0). */
int source_width(const Source *f, int32_t begin, int32_t end, int column);

/* "lib/bert.bert:12", as the program's tables and reports name a place; "" for SPAN_NONE. */
char *source_where(Sources *s, Span at);
/* The text of a span, on one line: runs of white space and comments become one space. */
char *source_slice(Sources *s, Span at);

#endif
