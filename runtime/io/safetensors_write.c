/* The writer of safetensors.h. The layout is fixed at st_writer_begin, so data may come in any
 * order and are written where they belong; the final name appears only when every byte of every
 * tensor has been put. Layout as in the safetensors library: dtypes from ST_I64 down, names
 * ascending within a dtype, no holes, the header padded with spaces to a multiple of 8. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "json.h"

typedef struct Entry {
    char *name;
    StDtype dtype;
    int rank;
    int64_t dims[ST_MAX_RANK];
    uint64_t bytes, done;
    uint64_t offset; /* relative to the data, then (from begin on) in the file */
} Entry;

struct StWriter {
    AtomicFile file;
    char *path;
    json_t *header;
    Entry *entries;
    int n, capacity;
    bool begun;
};

void st_writer_abort(StWriter *w) {
    if (!w) return;
    atomic_abort(&w->file);
    for (int i = 0; i < w->n; i++) free(w->entries[i].name);
    free(w->entries);
    json_decref(w->header);
    free(w->path);
    free(w);
}

StWriter *st_writer_new(const char *path, PeftError *err) {
    StWriter *w = peft_zalloc(1, sizeof *w, err);
    if (!w) return NULL;
    w->path = peft_alloc(strlen(path) + 1, 1, err);
    w->header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    if (w->path && w->header) {
        strcpy(w->path, path);
        return w;
    }
    peft_fail(err, "out of memory while writing %s", path);
    st_writer_abort(w);
    return NULL;
}

bool st_writer_meta(StWriter *w, const char *key, const char *value, PeftError *err) {
    json_t *meta = json_object_get(w->header, "__metadata__");
    if (json_object_set_new(meta, key, json_string(value)) == 0) return true;
    return peft_fail(err, "cannot write %s: metadata %s is no valid UTF-8", w->path, key);
}

static bool entry_size(Entry *e, PeftError *err) {
    uint64_t bytes = st_dtype_size(e->dtype);
    for (int i = 0; i < e->rank; i++) {
        if (e->dims[i] < 0 || __builtin_mul_overflow(bytes, (uint64_t)e->dims[i], &bytes) ||
            bytes > INT64_MAX) {
            char text[ST_SHAPE_TEXT];
            return peft_fail(err, "cannot write tensor %s: its shape %s is not valid", e->name,
                             st_shape_text(e->rank, e->dims, text));
        }
    }
    e->bytes = bytes;
    return true;
}

static bool grow(StWriter *w, PeftError *err) {
    if (w->n < w->capacity) return true;
    int capacity = w->capacity ? 2 * w->capacity : 64;
    Entry *entries = realloc(w->entries, (size_t)capacity * sizeof *entries);
    if (!entries) return peft_fail(err, "out of memory while writing %s", w->path);
    w->entries = entries;
    w->capacity = capacity;
    return true;
}

int st_writer_add(StWriter *w, const char *name, StDtype dtype, int rank, const int64_t *dims,
                  PeftError *err) {
    if (w->begun || rank < 0 || rank > ST_MAX_RANK) {
        peft_fail(err, "cannot write %s: tensor %s added %s", w->path, name,
                  w->begun ? "after the header was written" : "with an unsupported rank");
        return -1;
    }
    if (!grow(w, err)) return -1;
    Entry *e = &w->entries[w->n];
    *e = (Entry){.dtype = dtype, .rank = rank};
    if (rank) memcpy(e->dims, dims, (size_t)rank * sizeof *dims);
    e->name = peft_alloc(strlen(name) + 1, 1, err);
    if (!e->name) return -1;
    strcpy(e->name, name);
    if (entry_size(e, err)) return w->n++;
    free(e->name);
    return -1;
}

static int by_layout(const void *a, const void *b) {
    const Entry *x = *(Entry *const *)a, *y = *(Entry *const *)b;
    if (x->dtype != y->dtype) return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Appends "name": {"dtype": .., "shape": .., "data_offsets": [offset, offset + bytes]}. */
static bool describe(StWriter *w, const Entry *e, PeftError *err) {
    if (strcmp(e->name, "__metadata__") == 0 || json_object_get(w->header, e->name))
        return peft_fail(err, "cannot write %s: two tensors are called %s", w->path, e->name);
    json_t *shape = json_array();
    bool ok = shape != NULL;
    for (int i = 0; ok && i < e->rank; i++)
        ok = json_array_append_new(shape, json_integer(e->dims[i])) == 0;
    json_t *entry =
        json_pack("{s:s, s:o, s:[I, I]}", "dtype", st_dtype_name(e->dtype), "shape", shape,
                  "data_offsets", (json_int_t)e->offset, (json_int_t)(e->offset + e->bytes));
    if (ok && json_object_set_new(w->header, e->name, entry) == 0) return true;
    return peft_fail(err, "cannot write %s: tensor name %s is no valid UTF-8", w->path, e->name);
}

/* Sorts, places and describes the entries; the caller's handles keep their meaning. */
static bool lay_out(StWriter *w, PeftError *err) {
    Entry **order = peft_alloc((size_t)w->n, sizeof *order, err);
    if (!order) return false;
    for (int i = 0; i < w->n; i++) order[i] = &w->entries[i];
    qsort(order, (size_t)w->n, sizeof *order, by_layout);
    uint64_t at = 0;
    bool ok = true;
    for (int i = 0; ok && i < w->n; i++) {
        order[i]->offset = at;
        ok = describe(w, order[i], err);
        if (ok && (__builtin_add_overflow(at, order[i]->bytes, &at) || at > INT64_MAX / 2))
            ok = peft_fail(err, "cannot write %s: its size overflows", w->path);
    }
    free(order);
    return ok;
}

static bool write_header(StWriter *w, PeftError *err) {
    char *text = json_dumps(w->header, JSON_COMPACT);
    if (!text) return peft_fail(err, "out of memory while writing %s", w->path);
    uint64_t n = strlen(text), padded = (n + 7) / 8 * 8;
    static const char spaces[8] = "        ";
    bool ok = atomic_write(&w->file, &padded, sizeof padded, 0, err) &&
              atomic_write(&w->file, text, n, 8, err) &&
              atomic_write(&w->file, spaces, padded - n, 8 + n, err);
    free(text);
    for (int i = 0; i < w->n; i++) w->entries[i].offset += 8 + padded;
    return ok;
}

bool st_writer_begin(StWriter *w, PeftError *err) {
    if (w->begun) return peft_fail(err, "cannot write %s: its header is already written", w->path);
    w->begun = true;
    return lay_out(w, err) && atomic_open(&w->file, w->path, err) && write_header(w, err);
}

bool st_writer_put(StWriter *w, int tensor, const void *data, uint64_t bytes, PeftError *err) {
    if (!w->file.tmp || tensor < 0 || tensor >= w->n)
        return peft_fail(err, "cannot write %s: no tensor %d to put", w->path, tensor);
    Entry *e = &w->entries[tensor];
    if (bytes > e->bytes - e->done)
        return peft_fail(err, "cannot write %s: tensor %s has %llu bytes, more were put", w->path,
                         e->name, (unsigned long long)e->bytes);
    if (!atomic_write(&w->file, data, bytes, e->offset + e->done, err)) return false;
    e->done += bytes;
    return true;
}

bool st_writer_finish(StWriter *w, PeftError *err) {
    bool ok = w->file.tmp != NULL;
    if (!ok) peft_fail(err, "cannot write %s: its header was not written", w->path);
    for (int i = 0; ok && i < w->n; i++) {
        const Entry *e = &w->entries[i];
        if (e->done != e->bytes)
            ok = peft_fail(err, "cannot write %s: tensor %s has %llu bytes, only %llu were put",
                           w->path, e->name, (unsigned long long)e->bytes,
                           (unsigned long long)e->done);
    }
    ok = ok && atomic_commit(&w->file, err);
    st_writer_abort(w);
    return ok;
}
