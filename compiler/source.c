/* Reading program texts and turning byte offsets into places a reader understands.
 *
 * Texts are copied into the pool once and never change, so spans stay valid as long as the Sources.
 * Columns are counted as a terminal shows them: utf8proc knows the width of a character, tabs go to
 * multiples of 8, a byte that is no UTF-8 takes one column.
 */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utf8proc.h>

#define TAB 8

Sources *sources_new(void) {
    Pool *p = pool_new();
    Sources *s = pool_alloc(p, sizeof *s);
    s->pool = p;
    return s;
}

void sources_free(Sources *s) {
    if (s) pool_free(s->pool);
}

/* ---- paths ---- */

/* Folds "." and ".." in place: "models/lib/../a" is "models/a". Leading ".." stay. */
static void fold_path(char *path) {
    char *out = path, *in = path;
    char *floor = path; /* nothing before this may be taken back */
    if (*in == '/') floor = ++out, ++in;
    while (*in) {
        size_t n = strcspn(in, "/");
        bool dot = n == 1 && in[0] == '.', up = n == 2 && in[0] == '.' && in[1] == '.';
        if (up && out > floor) {
            out--;
            while (out > floor && out[-1] != '/') out--;
        } else if (n && !dot) {
            memmove(out, in, n);
            out += n;
            if (in[n]) *out++ = '/';
            if (up) floor = out;
        }
        in += n + (in[n] == '/');
    }
    *out = '\0';
}

char *sources_resolve(Sources *s, int32_t from, const char *name) {
    const char *base = from >= 0 ? s->file[from].path : "";
    const char *slash = name[0] == '/' ? NULL : strrchr(base, '/');
    size_t n = slash ? (size_t)(slash - base) + 1 : 0;
    char *path = pool_alloc(s->pool, n + strlen(name) + 1);
    memcpy(path, base, n);
    strcpy(path + n, name);
    fold_path(path);
    return path;
}

/* ---- files ---- */

static void index_lines(Sources *s, Source *f) {
    int32_t n = 1;
    for (int32_t i = 0; i < f->length; i++) n += f->text[i] == '\n';
    f->line = pool_alloc(s->pool, (size_t)n * sizeof *f->line);
    f->nline = 1;
    for (int32_t i = 0; i < f->length; i++)
        if (f->text[i] == '\n') f->line[f->nline++] = i + 1;
}

static Source *push(Sources *s) {
    s->file = pool_grow(s->pool, s->file, (size_t)s->nfile, (size_t)s->nfile + 1, sizeof *s->file,
                        &s->cap);
    Source *f = &s->file[s->nfile++];
    memset(f, 0, sizeof *f);
    return f;
}

int32_t sources_add(Sources *s, const char *path, const char *text, size_t length, PeftError *err) {
    if (length > SOURCE_MAX_BYTES) {
        peft_fail(err, "%s: %zu bytes is no program text (at most %d)", path, length,
                  SOURCE_MAX_BYTES);
        return -1;
    }
    const char *nul = memchr(text, '\0', length);
    if (nul) {
        peft_fail(err, "%s: byte %zu is NUL: this is a binary file, not a program text", path,
                  (size_t)(nul - text));
        return -1;
    }
    Source *f = push(s);
    f->path = pool_strdup(s->pool, path);
    f->text = pool_strndup(s->pool, text, length);
    f->length = (int32_t)length;
    index_lines(s, f);
    return s->nfile - 1;
}

static char *read_all(int fd, size_t size, size_t *got) {
    char *text = malloc(size + 1);
    *got = 0;
    while (text && *got < size) {
        ssize_t n = read(fd, text + *got, size - *got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (n < 0) free(text);
            return n < 0 ? NULL : text;
        }
        *got += (size_t)n;
    }
    return text;
}

static int32_t read_file(Sources *s, const char *path, int fd, PeftError *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        peft_fail(err, "%s: %s", path, strerror(errno));
        return -1;
    }
    for (int i = 0; i < s->nfile; i++)
        if (s->file[i].inode == st.st_ino && s->file[i].device == st.st_dev) return i;
    if (!S_ISREG(st.st_mode)) {
        peft_fail(err, "%s: not a regular file", path);
        return -1;
    }
    size_t size = st.st_size > SOURCE_MAX_BYTES ? SOURCE_MAX_BYTES + 1 : (size_t)st.st_size, got;
    char *text = read_all(fd, size, &got);
    if (!text) {
        peft_fail(err, "%s: %s", path, strerror(errno));
        return -1;
    }
    int32_t file = sources_add(s, path, text, got, err);
    free(text);
    if (file >= 0) {
        s->file[file].device = st.st_dev;
        s->file[file].inode = st.st_ino;
    }
    return file;
}

int32_t sources_open(Sources *s, const char *path, PeftError *err) {
    for (int i = 0; i < s->nfile; i++)
        if (strcmp(s->file[i].path, path) == 0) return i;
    int fd = s->memory_only ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        peft_fail(err, "%s: %s", path, s->memory_only ? "no such text" : strerror(errno));
        return -1;
    }
    int32_t file = read_file(s, path, fd, err);
    close(fd);
    return file;
}

/* ---- places ---- */

/* Bytes of the character at `p` and its display width; an invalid byte is one column. */
static int character(const char *p, const char *end, int *width) {
    utf8proc_int32_t cp;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)p, end - p, &cp);
    if (n <= 0) {
        *width = 1;
        return 1;
    }
    *width = cp < 0x20 || cp == 0x7f ? 1 : utf8proc_charwidth(cp);
    return (int)n;
}

int source_width(const Source *f, int32_t begin, int32_t end, int column) {
    const char *p = f->text + begin, *stop = f->text + end, *last = f->text + f->length;
    int start = column;
    while (p < stop) {
        int width;
        int n = character(p, last, &width);
        column += *p == '\t' ? TAB - column % TAB : width;
        p += n;
    }
    return column - start;
}

static int32_t line_of(const Source *f, int32_t offset) {
    int32_t low = 0, high = f->nline - 1;
    while (low < high) {
        int32_t mid = (low + high + 1) / 2;
        if (f->line[mid] <= offset)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

void source_locate(const Source *f, int32_t offset, int *line, int *column) {
    int32_t at = line_of(f, offset);
    *line = at + 1;
    *column = source_width(f, f->line[at], offset, 0) + 1;
}

/* Paths in reports start at the folder of the main program. */
static const char *shown_path(const Sources *s, int32_t file) {
    const char *path = s->file[file].path, *first = s->file[0].path;
    const char *slash = strrchr(first, '/');
    size_t n = slash ? (size_t)(slash - first) + 1 : 0;
    return strncmp(path, first, n) == 0 ? path + n : path;
}

char *source_where(Sources *s, Span at) {
    if (at.file < 0 || at.file >= s->nfile) return pool_strdup(s->pool, "");
    const char *path = shown_path(s, at.file);
    size_t size = strlen(path) + 16;
    char *where = pool_alloc(s->pool, size);
    snprintf(where, size, "%s:%d", path, line_of(&s->file[at.file], at.begin) + 1);
    return where;
}

char *source_slice(Sources *s, Span at) {
    if (at.file < 0) return pool_strdup(s->pool, "");
    const char *text = s->file[at.file].text;
    char *out = pool_alloc(s->pool, (size_t)(at.end - at.begin) + 1);
    int n = 0;
    for (int32_t i = at.begin; i < at.end; i++) {
        if (text[i] == '#')
            while (i + 1 < at.end && text[i + 1] != '\n') i++;
        bool space = strchr(" \t\r\n#", text[i]) != NULL;
        if (!space)
            out[n++] = text[i];
        else if (n && out[n - 1] != ' ')
            out[n++] = ' ';
    }
    while (n && out[n - 1] == ' ') n--;
    out[n] = '\0';
    return out;
}
