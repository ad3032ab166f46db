/* What runs say about themselves before they are finished: the end of RUNS/PROGRAM/seedN/
 * metrics.jsonl. Training writes these files at the same time, so a last line may be half there;
 * only whole lines count. */
#include "demo.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { TAIL = 64 << 10 };

bool is_plain_name(const char *name, bool dots) {
    size_t n = strlen(name);
    if (!n || n > 100 || name[0] == '.') return false;
    for (const char *p = name; *p; p++) {
        bool letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z');
        bool digit = *p >= '0' && *p <= '9';
        if (!letter && !digit && *p != '_' && *p != '-' && !(dots && *p == '.')) return false;
    }
    return true;
}

static bool is_run_name(const char *name) {
    return strncmp(name, "seed", 4) == 0 && name[4] &&
           strspn(name + 4, "0123456789") == strlen(name + 4);
}

/* ---- walking RUNS/PROGRAM/seedN ---- */

typedef void Visit(void *context, const char *program, const char *seed, const char *dir);

static void walk_program(const char *runs, const char *program, Visit *visit, void *context) {
    char dir[PATH_MAX];
    struct dirent **entry;
    if (snprintf(dir, sizeof dir, "%s/%s", runs, program) >= (int)sizeof dir) return;
    int n = scandir(dir, &entry, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char run[PATH_MAX];
        if (is_run_name(entry[i]->d_name) &&
            snprintf(run, sizeof run, "%s/%s", dir, entry[i]->d_name) < (int)sizeof run)
            visit(context, program, entry[i]->d_name + 4, run);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
}

static void walk(const char *runs, Visit *visit, void *context) {
    struct dirent **entry;
    int n = scandir(runs, &entry, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        if (is_plain_name(entry[i]->d_name, false))
            walk_program(runs, entry[i]->d_name, visit, context);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
}

/* ---- signature ---- */

static void mix(uint64_t *h, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) *h = (*h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

static void mix_file(uint64_t *h, const char *dir, const char *name) {
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) return;
    mix(h, path, strlen(path));
    if (stat(path, &st) != 0) return;
    mix(h, &st.st_size, sizeof st.st_size);
    mix(h, &st.st_mtim, sizeof st.st_mtim);
    mix(h, &st.st_ino, sizeof st.st_ino);
}

static void mix_run(void *context, const char *program, const char *seed, const char *dir) {
    (void)program;
    (void)seed;
    mix_file(context, dir, "metrics.jsonl");
    mix_file(context, dir, "run.json");
}

uint64_t progress_signature(const char *runs) {
    uint64_t h = 0xcbf29ce484222325u;
    mix_file(&h, runs, "baseline.json");
    mix_file(&h, "figures", ".");
    walk(runs, mix_run, &h);
    return h;
}

/* ---- the end of metrics.jsonl ---- */

static void take(json_t *to, const json_t *line, const char *key) {
    json_t *v = json_object_get(line, key);
    if (json_is_number(v)) json_object_set(to, key, v);
}

static void take_line(json_t *to, const char *text, size_t n) {
    json_t *line = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    take(to, line, "step");
    take(to, line, "loss");
    take(to, line, "epoch");
    take(to, line, "val_f1_macro");
    json_decref(line);
}

static void read_tail(json_t *to, const char *path) {
    struct stat st;
    FILE *f = fopen(path, "re");
    char *text = f ? malloc(TAIL) : NULL;
    if (text && fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode)) {
        time_t now = time(NULL);
        json_object_set_new(to, "seconds_ago",
                            json_integer(now > st.st_mtime ? now - st.st_mtime : 0));
        bool cut = st.st_size > TAIL && fseeko(f, st.st_size - TAIL, SEEK_SET) == 0;
        size_t n = fread(text, 1, TAIL, f), at = 0;
        for (char *end; at < n && (end = memchr(text + at, '\n', n - at)); cut = false) {
            size_t next = (size_t)(end - text) + 1;
            if (!cut) take_line(to, text + at, next - at);
            at = next;
        }
    }
    free(text);
    if (f) fclose(f);
}

static void add_run(void *context, const char *program, const char *seed, const char *dir) {
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/run.json", dir) >= (int)sizeof path) return;
    if (stat(path, &st) == 0) return;
    json_t *run =
        json_pack("{s:s, s:I}", "program", program, "seed", (json_int_t)strtoll(seed, NULL, 10));
    if (!run) return;
    snprintf(path, sizeof path, "%.*s/metrics.jsonl", PATH_MAX - 20, dir);
    read_tail(run, path);
    json_array_append_new(context, run);
}

json_t *progress_read(const char *runs) {
    json_t *list = json_array();
    if (list) walk(runs, add_run, list);
    return list;
}

json_t *names_of_pictures(const char *dir) {
    json_t *list = json_array();
    struct dirent **entry;
    int n = scandir(dir, &entry, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *name = entry[i]->d_name, *dot = strrchr(name, '.');
        if (dot && (strcmp(dot, ".svg") == 0 || strcmp(dot, ".png") == 0) &&
            is_plain_name(name, true))
            json_array_append_new(list, json_string(name));
        free(entry[i]);
    }
    if (n >= 0) free(entry);
    return list;
}
