/* What the tests of file handling share: a scratch folder per program, files in it, and checks on
 * error messages. The folder and all in it are removed when the group ends. */
#ifndef PEFT_TEST_SCRATCH_H
#define PEFT_TEST_SCRATCH_H

#define _GNU_SOURCE /* nftw */
#include <dirent.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../runtime/error.h"

static char scratch[256];

/* For cmocka's group set-up. */
static inline int scratch_make(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/peft-test-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int scratch_remove(const char *path, const struct stat *st, int type,
                                 struct FTW *at) {
    (void)st, (void)type, (void)at;
    return remove(path);
}

/* For cmocka's group tear-down. */
static inline int scratch_drop(void **state) {
    (void)state;
    return nftw(scratch, scratch_remove, 8, FTW_DEPTH | FTW_PHYS);
}

/* A path in the scratch folder; one of eight rotating buffers. */
static inline const char *scratch_path(const char *name) {
    static char paths[8][512];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", scratch, name);
    return p;
}

static inline const char *scratch_file(const char *name, const void *data, size_t n) {
    const char *path = scratch_path(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* The whole file in memory, to be freed. */
static inline char *scratch_read(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(*n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *n, f), *n);
    data[*n] = 0;
    fclose(f);
    return data;
}

/* Files in a folder whose names contain `part`. */
static inline int scratch_count(const char *dir, const char *part) {
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.' && strstr(e->d_name, part);
    closedir(d);
    return n;
}

/* The message is one line that contains every given part (NULL ends the list). */
static inline void assert_message(const PeftError *err, ...) {
    assert_true(err->msg[0] != 0);
    for (const char *p = err->msg; *p; p++) assert_true((unsigned char)*p >= 0x20);
    va_list ap;
    va_start(ap, err);
    for (const char *part; (part = va_arg(ap, const char *));)
        if (!strstr(err->msg, part)) fail_msg("\"%s\" is not in: %s", part, err->msg);
    va_end(ap);
}

/* A file of the real data set, or NULL when it is not on this machine. */
static inline const char *real_data(const char *name) {
    static char path[1024];
    const char *root = getenv("PEFTC_SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared/data", name);
    return access(path, R_OK) == 0 ? path : NULL;
}

#endif
