/* Opens the files of one model, see weights.h. The index of a sharded model comes from outside: the
 * shard names in it must be plain file names of the same folder, and every tensor it lists must be
 * in the shard it names. Tensors a shard holds beyond the index are not part of the model. */
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"
#include "json.h"

enum { MAX_INDEX = 64 << 20, MAX_SHARDS = 4096 };

struct Weights {
    char *path;
    SafeTensors **files;
    size_t n_files;
    const StTensor **tensors; /* in file order, or in the index's order */
    size_t n;
    const StTensor **sorted; /* by name */
};

const char *weights_path(const Weights *w) {
    return w->path;
}

size_t weights_count(const Weights *w) {
    return w->n;
}

const StTensor *weights_get(const Weights *w, size_t i) {
    return i < w->n ? w->tensors[i] : NULL;
}

void weights_close(Weights *w) {
    if (!w) return;
    for (size_t i = 0; i < w->n_files; i++) st_close(w->files[i]);
    free(w->files);
    free(w->tensors);
    free(w->sorted);
    free(w->path);
    free(w);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const StTensor *const *)a)->name, (*(const StTensor *const *)b)->name);
}

static int compare_key(const void *key, const void *element) {
    return strcmp(key, (*(const StTensor *const *)element)->name);
}

const StTensor *weights_find(const Weights *w, const char *name) {
    if (w->n == 0) return NULL;
    const StTensor *const *hit = bsearch(name, w->sorted, w->n, sizeof *w->sorted, compare_key);
    return hit ? *hit : NULL;
}

static bool sort_names(Weights *w, PeftError *err) {
    w->sorted = peft_alloc(w->n, sizeof *w->sorted, err);
    if (!w->sorted) return false;
    if (w->n) memcpy(w->sorted, w->tensors, w->n * sizeof *w->sorted);
    qsort(w->sorted, w->n, sizeof *w->sorted, by_name);
    return true;
}

static bool open_single(Weights *w, const char *path, PeftError *err) {
    w->files = peft_zalloc(1, sizeof *w->files, err);
    if (!w->files) return false;
    w->files[0] = st_open(path, err);
    if (!w->files[0]) return false;
    w->n_files = 1;
    w->n = st_count(w->files[0]);
    w->tensors = peft_alloc(w->n, sizeof *w->tensors, err);
    if (!w->tensors) return false;
    for (size_t i = 0; i < w->n; i++) w->tensors[i] = st_get(w->files[0], i);
    return sort_names(w, err);
}

/* ---- sharded models ---- */

static bool plain_file_name(const char *s) {
    if (!s[0] || s[0] == '.' || strlen(s) > 255) return false;
    for (const char *p = s; *p; p++)
        if (*p == '/' || (unsigned char)*p < 0x20 || *p == 0x7f) return false;
    return true;
}

/* The open shard of this name, opened at its first use. */
static SafeTensors *shard_named(Weights *w, const char *dir, const char *name, PeftError *err) {
    char *path = path_join(dir, name, err);
    if (!path) return NULL;
    SafeTensors *st = NULL;
    for (size_t i = 0; i < w->n_files && !st; i++)
        if (strcmp(st_path(w->files[i]), path) == 0) st = w->files[i];
    if (!st && w->n_files == MAX_SHARDS) {
        peft_fail(err, "%s: more than %d shards", dir, MAX_SHARDS);
    } else if (!st && (st = st_open(path, err))) {
        w->files[w->n_files++] = st;
    }
    free(path);
    return st;
}

static bool add_indexed(Weights *w, const char *dir, const char *index, const char *name,
                        const json_t *file, PeftError *err) {
    const char *shard = json_string_value(file);
    char shown[JSON_SHOWN];
    if (!shard || !plain_file_name(shard))
        return peft_fail(err, "%s: expected the name of a file in the same folder, found %s", index,
                         json_show(file, shown));
    SafeTensors *st = shard_named(w, dir, shard, err);
    if (!st) return false;
    const StTensor *t = st_find(st, name);
    if (!t) {
        json_t *key = json_string(name);
        peft_fail(err, "%s: tensor %s should be in %s but is not there", index,
                  json_show(key, shown), st_path(st));
        json_decref(key);
        return false;
    }
    w->tensors[w->n++] = t;
    return true;
}

static bool add_all_indexed(Weights *w, const char *dir, const char *index, json_t *map,
                            PeftError *err) {
    w->files = peft_zalloc(MAX_SHARDS, sizeof *w->files, err);
    w->tensors = peft_alloc(json_object_size(map), sizeof *w->tensors, err);
    if (!w->files || !w->tensors) return false;
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file) {
        if (!add_indexed(w, dir, index, name, file, err)) return false;
    }
    return sort_names(w, err);
}

static bool open_sharded(Weights *w, const char *dir, const char *index, PeftError *err) {
    size_t n;
    char *text = file_read(index, MAX_INDEX, &n, err);
    if (!text) return false;
    json_t *root = json_parse(text, n, index, err);
    free(text);
    if (!root) return false;
    json_t *map = json_object_get(root, "weight_map");
    bool ok = json_is_object(map);
    if (!ok)
        peft_fail(err, "%s: expected weight_map to be an object, found %s", index, json_kind(map));
    ok = ok && add_all_indexed(w, dir, index, map, err);
    json_decref(root);
    return ok;
}

/* ---- folders ---- */

static const char *const SINGLE_FILES[] = {"model.safetensors", "adapter_model.safetensors",
                                           "adapter.safetensors"};
static const char *const INDEX_FILE = "model.safetensors.index.json";
static const struct {
    const char *pickle, *wanted;
} PICKLES[] = {{"pytorch_model.bin", "model.safetensors"},
               {"adapter_model.bin", "adapter_model.safetensors"},
               {"pytorch_adapter.bin", "adapter.safetensors"}};

/* Sets *path to the file's path (to be freed) when it exists, else to NULL; false without memory.
 */
static bool look_for(const char *dir, const char *name, char **path, PeftError *err) {
    *path = path_join(dir, name, err);
    if (!*path) return false;
    if (file_exists(*path)) return true;
    free(*path);
    *path = NULL;
    return true;
}

static bool nothing_found(const char *dir, PeftError *err) {
    for (size_t i = 0; i < sizeof PICKLES / sizeof *PICKLES; i++) {
        const char *pickle = PICKLES[i].pickle, *wanted = PICKLES[i].wanted;
        char *path;
        if (!look_for(dir, pickle, &path, err)) return false;
        if (!path) continue;
        free(path);
        return peft_fail(err,
                         "%s has %s, a Python pickle, but no %s; convert it once, in that folder: "
                         "python -c \"import torch, safetensors.torch as s; "
                         "d = torch.load('%s', map_location='cpu', weights_only=True); "
                         "s.save_file({k: v.contiguous().clone() for k, v in d.items()}, '%s')\"",
                         dir, pickle, wanted, pickle, wanted);
    }
    return peft_fail(err, "%s: expected model.safetensors in this folder, found no weights", dir);
}

static bool open_folder(Weights *w, const char *dir, PeftError *err) {
    char *path;
    for (size_t i = 0; i < sizeof SINGLE_FILES / sizeof *SINGLE_FILES; i++) {
        if (!look_for(dir, SINGLE_FILES[i], &path, err)) return false;
        if (!path) continue;
        bool ok = open_single(w, path, err);
        free(path);
        return ok;
    }
    if (!look_for(dir, INDEX_FILE, &path, err)) return false;
    if (!path) return nothing_found(dir, err);
    bool ok = open_sharded(w, dir, path, err);
    free(path);
    return ok;
}

Weights *weights_open(const char *path, PeftError *err) {
    Weights *w = peft_zalloc(1, sizeof *w, err);
    if (!w) return NULL;
    w->path = peft_alloc(strlen(path) + 1, 1, err);
    if (w->path) {
        strcpy(w->path, path);
        struct stat st;
        bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
        if (folder ? open_folder(w, path, err) : open_single(w, path, err)) return w;
    }
    weights_close(w);
    return NULL;
}
