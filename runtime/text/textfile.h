/* A whole file in memory, plain or gzip (told apart by content, not by name). */
#ifndef PEFT_TEXTFILE_H
#define PEFT_TEXTFILE_H

#include <stddef.h>

#include "../error.h"

/* The bytes of a file, unpacked, at most max_bytes of them, with a NUL behind the last; *len counts
 * them without it. NULL when the file is missing, a folder, unreadable, damaged or larger. The
 * caller frees the result. */
char *textfile_read(const char *path, size_t max_bytes, size_t *len, PeftError *err);

/* Copies at most size - 1 bytes of a piece of input for use inside a one-line message: control
 * characters and broken UTF-8 become '?', a cut is marked by "...". Returns out. size >= 8. */
char *textfile_excerpt(char *out, size_t size, const char *bytes, size_t len);

#endif
