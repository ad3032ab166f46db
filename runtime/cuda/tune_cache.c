/* See tune_cache.h. The invariant: a choice that tune_cache_add reported as stored is found by
 * every later reader of the folder, until TUNE_CACHE_ENTRIES newer ones have come or the file is
 * lost. */
#define _GNU_SOURCE /* open_memstream, O_NOFOLLOW */
#include "tune_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "../io/file.h"

#define HEADER "peftc gemm algorithms 1\n"

enum {
    DIGITS = 8, /* of a line's checksum */
    MAX_FILE_BYTES = TUNE_CACHE_ENTRIES * TUNE_CACHE_LINE + (int)sizeof HEADER,
    LOCK_TRIES = 200,
    LOCK_PAUSE_NS = 10000000 /* in all two seconds; a holder needs milliseconds */
};

/* ---- reading ---- */

static void line_digits(const char *text, size_t n, char digits[DIGITS + 1]) {
    snprintf(digits, DIGITS + 1, "%08lx", crc32_z(0, (const Bytef *)text, n) & 0xffffffff);
}

/* A line without its newline: "1a2b3c4d<tab>key<tab>choice<tab>note". Cuts it into fields. */
static bool parse_line(char *line, size_t n, TuneEntry *e) {
    char digits[DIGITS + 1];
    if (n <= DIGITS + 1 || n >= TUNE_CACHE_LINE || line[DIGITS] != '\t') return false;
    char *field[3] = {line + DIGITS + 1};
    line_digits(field[0], n - DIGITS - 1, digits);
    if (memcmp(line, digits, DIGITS) != 0) return false;
    for (int i = 1; i < 3; i++) {
        char *tab = strchr(field[i - 1], '\t');
        if (!tab) return false;
        *tab = 0;
        field[i] = tab + 1;
    }
    *e = (TuneEntry){field[0], field[1], field[2]};
    return e->key[0] && e->choice[0] && !strchr(e->note, '\t');
}

/* Takes the text over. */
static void parse(TuneCache *c, char *text, size_t n) {
    tune_cache_free(c);
    size_t head = strlen(HEADER);
    if (!text || n < head || memcmp(text, HEADER, head) != 0) {
        free(text);
        return;
    }
    c->text = text;
    c->entry = peft_alloc(TUNE_CACHE_ENTRIES, sizeof *c->entry, NULL);
    char *at = text + head, *end = text + n;
    for (char *newline;
         c->entry && c->n < TUNE_CACHE_ENTRIES && (newline = memchr(at, '\n', (size_t)(end - at)));
         at = newline + 1) {
        *newline = 0;
        TuneEntry e;
        if (parse_line(at, (size_t)(newline - at), &e)) c->entry[c->n++] = e;
    }
}

void tune_cache_read(TuneCache *c, const char *dir) {
    char *path = path_join(dir, TUNE_CACHE_FILE, NULL);
    size_t n = 0;
    char *text = path && file_exists(path) ? file_read(path, MAX_FILE_BYTES, &n, NULL) : NULL;
    free(path);
    parse(c, text, n);
}

void tune_cache_free(TuneCache *c) {
    free(c->text);
    free(c->entry);
    *c = (TuneCache){0};
}

const char *tune_cache_find(const TuneCache *c, const char *key) {
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->entry[i].key, key) == 0) return c->entry[i].choice;
    return NULL;
}

/* ---- writing ---- */

static void print_line(FILE *out, const TuneEntry *e) {
    char text[TUNE_CACHE_LINE], digits[DIGITS + 1];
    int n = snprintf(text, sizeof text, "%s\t%s\t%s", e->key, e->choice, e->note);
    if (n < 0 || n + DIGITS + 1 >= TUNE_CACHE_LINE) return;
    line_digits(text, (size_t)n, digits);
    fprintf(out, "%s\t%s\n", digits, text);
}

/* The file's new text: what is there, then what is new; the oldest beyond the bound left out. */
static char *merge(const TuneCache *c, const TuneEntry *added, int n, size_t *size) {
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    if (!out) return NULL;
    int fresh = 0;
    for (int i = 0; i < n; i++) fresh += !tune_cache_find(c, added[i].key);
    int excess = c->n + fresh - TUNE_CACHE_ENTRIES;
    fputs(HEADER, out);
    for (int i = excess > 0 ? excess : 0; i < c->n; i++) print_line(out, &c->entry[i]);
    for (int i = 0; i < n; i++)
        if (!tune_cache_find(c, added[i].key)) print_line(out, &added[i]);
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

/* The lock file is never removed, so all processes lock the same one. */
static int take_lock(const char *dir, PeftError *err) {
    char *path = path_join(dir, TUNE_CACHE_LOCK, err);
    if (!path) return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    bool locked = false;
    for (int i = 0; fd >= 0 && !locked && i < LOCK_TRIES; i++) {
        locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (locked || errno != EWOULDBLOCK) break;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_PAUSE_NS}, NULL);
    }
    if (!locked) {
        peft_fail(err, "%s cannot be locked: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        fd = -1;
    }
    free(path);
    return fd;
}

bool tune_cache_add(TuneCache *c, const char *dir, const TuneEntry *added, int n, PeftError *err) {
    if (!dir_make(dir, err)) return false;
    int lock = take_lock(dir, err);
    if (lock < 0) return false;
    tune_cache_read(c, dir);
    size_t size = 0;
    char *path = path_join(dir, TUNE_CACHE_FILE, err), *text = merge(c, added, n, &size);
    if (!text) peft_fail(err, "no memory for %s", TUNE_CACHE_FILE);
    bool ok = path && text && file_write_atomic(path, text, size, err);
    if (ok)
        parse(c, text, size);
    else
        free(text);
    free(path);
    close(lock); /* which unlocks */
    return ok;
}
