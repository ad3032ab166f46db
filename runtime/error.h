/* Failures of the world (a file missing, truncated, of the wrong shape; no memory; a full disk).
 * A function that can fail takes a PeftError, returns false (or NULL) and leaves one line in it
 * that names the thing, what was expected, what was found and what to do. Nothing else reports
 * them: libraries never print, the command line does. */
#ifndef PEFT_ERROR_H
#define PEFT_ERROR_H

#include <stdbool.h>
#include <stddef.h>

typedef struct PeftError {
    char msg[1024]; /* one line, no newline at the end; "" when nothing failed */
    int code;       /* process exit code the failure asks for; 0 means the usual 1 */
} PeftError;

#define PEFT_STOPPED (-1) /* code: not a failure, the caller asked to stop here */

/* Formats the message (an already set one is kept: the first failure is the cause). Always false.
 */
bool peft_fail(PeftError *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* malloc and calloc of n * size that report the size asked for; NULL on overflow or no memory. */
void *peft_alloc(size_t n, size_t size, PeftError *err);
void *peft_zalloc(size_t n, size_t size, PeftError *err);

#endif
