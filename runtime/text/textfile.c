/* Reads through zlib, whose gzread passes plain files through unchanged. Nothing is trusted about
 * the size: the buffer grows with what really arrives and stops at the caller's limit, so neither a
 * device nor a compressed bomb can exhaust the memory. */
#include "textfile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <utf8proc.h>
#include <zlib.h>

enum { FIRST_CAPACITY = 1 << 16, READ_CHUNK = 1 << 20 };

static gzFile open_file(const char *path, PeftError *err) {
    struct stat st;
    if (stat(path, &st) != 0) {
        peft_fail(err, "%s: cannot read it: %s", path, strerror(errno));
        return NULL;
    }
    if (S_ISDIR(st.st_mode)) {
        peft_fail(err, "%s: is a folder where a file is expected", path);
        return NULL;
    }
    errno = 0;
    gzFile file = gzopen(path, "rb");
    if (!file) peft_fail(err, "%s: cannot read it: %s", path, strerror(errno ? errno : ENOMEM));
    return file;
}

/* Makes room for one more byte at least, besides the closing NUL. */
static bool grow(char **bytes, size_t *capacity, size_t max_bytes, const char *path,
                 PeftError *err) {
    size_t wanted = *capacity ? *capacity * 2 : FIRST_CAPACITY;
    if (*capacity == max_bytes + 2)
        return peft_fail(err, "%s: larger than %zu bytes; split it into smaller files", path,
                         max_bytes);
    if (wanted > max_bytes + 2) wanted = max_bytes + 2;
    char *larger = realloc(*bytes, wanted);
    if (!larger) return peft_fail(err, "%s: out of memory: %zu bytes asked for", path, wanted);
    *bytes = larger;
    *capacity = wanted;
    return true;
}

static bool read_all(gzFile file, const char *path, size_t max_bytes, char **bytes, size_t *len,
                     PeftError *err) {
    size_t capacity = 0;
    for (;;) {
        if (*len + 1 >= capacity && !grow(bytes, &capacity, max_bytes, path, err)) return false;
        size_t room = capacity - 1 - *len;
        int n = gzread(file, *bytes + *len, room < READ_CHUNK ? (unsigned)room : READ_CHUNK);
        int status = Z_OK;
        const char *why = gzerror(file, &status);
        if (n < 0 || status == Z_BUF_ERROR)
            return peft_fail(err, "%s: cannot read it: %s", path,
                             status == Z_ERRNO       ? strerror(errno)
                             : status == Z_BUF_ERROR ? "the gzip data ends too early"
                                                     : why);
        if (n == 0) break;
        *len += (size_t)n;
    }
    (*bytes)[*len] = '\0';
    return true;
}

char *textfile_read(const char *path, size_t max_bytes, size_t *len, PeftError *err) {
    char *bytes = NULL;
    *len = 0;
    gzFile file = open_file(path, err);
    if (!file) return NULL;
    bool ok = read_all(file, path, max_bytes, &bytes, len, err);
    gzclose_r(file);
    if (ok) return bytes;
    free(bytes);
    return NULL;
}

char *textfile_excerpt(char *out, size_t size, const char *bytes, size_t len) {
    size_t used = 0, at = 0;
    while (at < len) {
        int32_t cp;
        utf8proc_ssize_t n =
            utf8proc_iterate((const uint8_t *)bytes + at, (utf8proc_ssize_t)(len - at), &cp);
        bool plain = n > 0 && cp >= 0x20 && cp != 0x7F && !(cp >= 0x80 && cp < 0xA0) &&
                     cp != 0x2028 && cp != 0x2029;
        size_t step = n > 0 ? (size_t)n : 1;
        if (used + step + 4 > size) {
            memcpy(out + used, "...", 4);
            return out;
        }
        if (plain)
            memcpy(out + used, bytes + at, step);
        else
            out[used] = '?';
        used += plain ? step : 1;
        at += step;
    }
    out[used] = '\0';
    return out;
}
