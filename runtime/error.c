#include "error.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

bool peft_fail(PeftError *err, const char *fmt, ...) {
    if (err && !err->msg[0]) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
    }
    return false;
}

static bool too_large(size_t n, size_t size, PeftError *err) {
    if (size == 0 || n <= SIZE_MAX / 2 / size) return false;
    peft_fail(err, "cannot allocate %zu elements of %zu bytes: the size overflows", n, size);
    return true;
}

void *peft_alloc(size_t n, size_t size, PeftError *err) {
    if (too_large(n, size, err)) return NULL;
    void *p = malloc(n * size > 0 ? n * size : 1);
    if (!p) peft_fail(err, "out of memory: %zu bytes asked for", n * size);
    return p;
}

void *peft_zalloc(size_t n, size_t size, PeftError *err) {
    if (too_large(n, size, err)) return NULL;
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p) peft_fail(err, "out of memory: %zu bytes asked for", n * size);
    return p;
}
