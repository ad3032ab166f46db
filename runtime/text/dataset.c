/* Life of a Dataset outside its parser: reading, tokenising, splitting. Token ids of all rows are
 * one array cut by offsets, as the kernels want a batch; nothing in it is padded. */
#include "dataset.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "dataset_parse.h"
#include "textfile.h"

#define MAX_FILE_BYTES ((size_t)1 << 31)

void dataset_free(Dataset *ds) {
    if (!ds) return;
    free(ds->path);
    free(ds->arena);
    free(ds->text_at);
    free(ds->label);
    free(ds->sample);
    free(ds->offsets);
    free(ds->tokens);
    free(ds);
}

static bool has_suffix(const char *name, size_t len, const char *suffix) {
    size_t n = strlen(suffix);
    return len >= n && memcmp(name + len - n, suffix, n) == 0;
}

static DataFormat format_of(const char *name) {
    size_t len = strlen(name);
    if (has_suffix(name, len, ".gz")) len -= 3;
    if (has_suffix(name, len, ".tsv")) return DATA_TSV;
    if (has_suffix(name, len, ".csv")) return DATA_CSV;
    if (has_suffix(name, len, ".txt")) return DATA_TEXT;
    return DATA_AUTO;
}

Dataset *dataset_parse(const char *name, char *bytes, size_t len, DataFormat format,
                       PeftError *err) {
    Dataset *ds = peft_zalloc(1, sizeof *ds, err);
    if (!ds) {
        free(bytes);
        return NULL;
    }
    ds->arena = bytes;
    ds->path = strdup(name);
    if (!ds->path)
        peft_fail(err, "%s: out of memory", name);
    else if (dataset_parse_rows(ds, name, len, format, err))
        return ds;
    dataset_free(ds);
    return NULL;
}

Dataset *dataset_read(const char *path, DataFormat format, PeftError *err) {
    size_t len;
    char *bytes = textfile_read(path, MAX_FILE_BYTES, &len, err);
    if (!bytes) return NULL;
    return dataset_parse(path, bytes, len, format == DATA_AUTO ? format_of(path) : format, err);
}

bool dataset_has_labels(const char *tsv_path, bool *labelled, PeftError *err) {
    size_t len;
    char *bytes = textfile_read(tsv_path, MAX_FILE_BYTES, &len, err);
    if (!bytes) return false;
    bool ok = tsv_labelled(tsv_path, bytes, len, labelled, err);
    free(bytes);
    return ok;
}

/* ---- tokenising ---- */

static bool is_utf8(const char *text, size_t len) {
    const uint8_t *at = (const uint8_t *)text, *end = at + len;
    while (at < end) {
        int32_t cp;
        utf8proc_ssize_t n = *at < 0x80 ? 1 : utf8proc_iterate(at, end - at, &cp);
        if (n <= 0) return false;
        at += n;
    }
    return true;
}

static bool reserve_tokens(Dataset *ds, size_t needed, size_t *capacity, PeftError *err) {
    if (needed <= *capacity) return true;
    if (needed > INT32_MAX)
        return peft_fail(err, "%s: more than %d tokens; split it into smaller files", ds->path,
                         INT32_MAX);
    size_t larger = *capacity + *capacity / 2 > needed ? *capacity + *capacity / 2 : needed;
    int32_t *tokens = realloc(ds->tokens, larger * sizeof *tokens);
    if (!tokens) return peft_fail(err, "%s: out of memory for %zu tokens", ds->path, larger);
    ds->tokens = tokens;
    *capacity = larger;
    return true;
}

static bool tokenize_rows(Dataset *ds, const WordPiece *wp, int max_len, PeftError *err) {
    size_t used = 0, capacity = 0;
    if (!reserve_tokens(ds, (size_t)ds->n * 8 + 64, &capacity, err)) return false;
    for (int32_t i = 0; i < ds->n; i++) {
        const char *text = dataset_text(ds, i);
        size_t len = dataset_text_len(ds, i), most = WORDPIECE_MAX_IDS(len);
        bool truncated;
        if (most > (size_t)max_len) most = (size_t)max_len;
        if (!reserve_tokens(ds, used + most, &capacity, err)) return false;
        ds->offsets[i] = (int32_t)used;
        used += (size_t)wordpiece_encode(wp, text, len, ds->tokens + used, (int)most, &truncated);
        ds->truncated += truncated;
        ds->invalid_utf8 += !is_utf8(text, len);
    }
    ds->offsets[ds->n] = (int32_t)used;
    int32_t *exact = realloc(ds->tokens, used * sizeof *exact);
    if (exact) ds->tokens = exact;
    return true;
}

bool dataset_tokenize(Dataset *ds, const WordPiece *wp, int max_len, PeftError *err) {
    if (max_len < 2)
        return peft_fail(err, "a model with %d positions has no room for [CLS] and [SEP]", max_len);
    free(ds->offsets);
    free(ds->tokens);
    ds->tokens = NULL;
    ds->truncated = ds->invalid_utf8 = 0;
    ds->offsets = peft_alloc((size_t)ds->n + 1, sizeof *ds->offsets, err);
    if (ds->offsets && tokenize_rows(ds, wp, max_len, err)) return true;
    free(ds->offsets);
    free(ds->tokens);
    ds->offsets = ds->tokens = NULL;
    return false;
}

/* ---- splitting ---- */

/* Appends row `from` of src to dst, which has room for it. dst may be src: rows only move down, so
 * nothing is written over a row still to come. */
static void move_row(Dataset *dst, const Dataset *src, int32_t from) {
    size_t begin = src->text_at[from], bytes = src->text_at[from + 1] - begin;
    size_t to = dst->n ? dst->text_at[dst->n] : 0;
    memmove(dst->arena + to, src->arena + begin, bytes);
    dst->text_at[dst->n] = to;
    dst->text_at[dst->n + 1] = to + bytes;
    dst->sample[dst->n] = src->sample[from];
    if (src->label) dst->label[dst->n] = src->label[from];
    dst->n++;
}

static bool alloc_like(Dataset *part, const Dataset *ds, int32_t rows, size_t bytes,
                       PeftError *err) {
    part->path = strdup(ds->path);
    part->arena = peft_alloc(bytes, 1, err);
    part->text_at = peft_alloc((size_t)rows + 1, sizeof *part->text_at, err);
    part->sample = peft_alloc((size_t)rows, sizeof *part->sample, err);
    part->label = ds->label ? peft_alloc((size_t)rows, sizeof *part->label, err) : NULL;
    part->classes = ds->classes;
    part->classes_line = ds->classes_line;
    if (!part->path) peft_fail(err, "out of memory");
    return part->path && part->arena && part->text_at && part->sample &&
           (part->label || !ds->label);
}

Dataset *dataset_split_every(Dataset *ds, int32_t period, PeftError *err) {
    size_t bytes = 0;
    for (int32_t i = period - 1; i < ds->n; i += period) bytes += dataset_text_len(ds, i) + 1;
    Dataset *part = peft_zalloc(1, sizeof *part, err);
    if (!part) return NULL;
    if (!alloc_like(part, ds, ds->n / period, bytes, err)) {
        dataset_free(part);
        return NULL;
    }
    int32_t rows = ds->n;
    ds->n = 0;
    for (int32_t i = 0; i < rows; i++) move_row(i % period == period - 1 ? part : ds, ds, i);
    return part;
}
