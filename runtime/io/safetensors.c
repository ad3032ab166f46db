/* The reader of safetensors.h. st_open is the only place that turns file contents into a tensor
 * table, and it rejects before it keeps: after it, offset + bytes <= file size and bytes == count *
 * dtype size hold for every tensor, so the read functions only check their own arguments. */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file.h"
#include "json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data are little-endian");

/* The library's own limit: a longer header is a mistake or an attack. */
enum { MAX_HEADER = 100 * 1000 * 1000, MAX_NAME = 511, BLOCK = 4096 };

struct SafeTensors {
    char *path;
    int fd;
    uint64_t size;  /* of the file */
    json_t *header; /* owns the name strings */
    size_t n;
    StTensor *tensors;       /* in the header's order */
    const StTensor **sorted; /* by name */
};

static const struct {
    const char *name;
    size_t size;
} DTYPES[ST_NDTYPE] = {
    [ST_U8] = {"U8", 1},   [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2}, [ST_I32] = {"I32", 4},
    [ST_F32] = {"F32", 4}, [ST_F64] = {"F64", 8}, [ST_I64] = {"I64", 8},
};

size_t st_dtype_size(StDtype dtype) {
    return DTYPES[dtype].size;
}

const char *st_dtype_name(StDtype dtype) {
    return DTYPES[dtype].name;
}

const char *st_shape_text(int rank, const int64_t *dims, char buf[ST_SHAPE_TEXT]) {
    char *p = buf;
    *p++ = '[';
    for (int i = 0; i < rank; i++) p += sprintf(p, "%s%lld", i ? ", " : "", (long long)dims[i]);
    strcpy(p, "]");
    return buf;
}

const char *st_path(const SafeTensors *st) {
    return st->path;
}

size_t st_count(const SafeTensors *st) {
    return st->n;
}

const StTensor *st_get(const SafeTensors *st, size_t i) {
    return i < st->n ? &st->tensors[i] : NULL;
}

const StTensor *st_find(const SafeTensors *st, const char *name) {
    size_t lo = 0, hi = st->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, st->sorted[mid]->name);
        if (c == 0) return st->sorted[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *st_meta(const SafeTensors *st, const char *key) {
    return json_string_value(json_object_get(json_object_get(st->header, "__metadata__"), key));
}

void st_close(SafeTensors *st) {
    if (!st) return;
    if (st->fd >= 0) close(st->fd);
    json_decref(st->header);
    free(st->path);
    free(st->tensors);
    free(st->sorted);
    free(st);
}

/* ---- the header ---- */

/* Names go into one-line messages and into our own files. */
static bool check_name(const SafeTensors *st, const char *name, PeftError *err) {
    size_t n = strlen(name);
    bool ok = n > 0 && n <= MAX_NAME;
    for (const char *p = name; ok && *p; p++)
        ok = (unsigned char)*p >= 0x20 && (unsigned char)*p != 0x7f;
    if (ok) return true;
    return peft_fail(err,
                     "%s: a tensor's name is empty, longer than %d bytes or has control characters",
                     st->path, MAX_NAME);
}

static bool parse_dtype(StTensor *t, const json_t *value, PeftError *err) {
    const char *s = json_string_value(value);
    for (int d = 0; s && d < ST_NDTYPE; d++) {
        if (strcmp(s, DTYPES[d].name) != 0) continue;
        t->dtype = (StDtype)d;
        return true;
    }
    char shown[JSON_SHOWN];
    return peft_fail(err,
                     "%s: tensor %s: expected dtype F32, F16, BF16, F64, I32, I64 or U8, found %s",
                     st_path(t->file), t->name, json_show(value, shown));
}

/* Sets rank, dims, count and bytes. */
static bool parse_shape(StTensor *t, const json_t *shape, PeftError *err) {
    const char *path = st_path(t->file);
    if (!json_is_array(shape) || json_array_size(shape) > ST_MAX_RANK) {
        char shown[JSON_SHOWN];
        return peft_fail(err, "%s: tensor %s: expected a shape of at most %d sizes, found %s", path,
                         t->name, ST_MAX_RANK, json_show(shape, shown));
    }
    t->rank = (int)json_array_size(shape);
    t->count = 1;
    bool fits = true;
    for (int i = 0; i < t->rank; i++) {
        const json_t *v = json_array_get(shape, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            char shown[JSON_SHOWN];
            return peft_fail(err, "%s: tensor %s: expected sizes of 0 or more, found %s", path,
                             t->name, json_show(shape, shown));
        }
        t->dims[i] = json_integer_value(v);
        fits = fits && !__builtin_mul_overflow(t->count, t->dims[i], &t->count);
    }
    int64_t bytes;
    fits = fits && !__builtin_mul_overflow(t->count, (int64_t)DTYPES[t->dtype].size, &bytes);
    if (!fits) {
        char text[ST_SHAPE_TEXT];
        return peft_fail(err, "%s: tensor %s: the size of shape %s overflows", path, t->name,
                         st_shape_text(t->rank, t->dims, text));
    }
    t->bytes = (uint64_t)bytes;
    return true;
}

/* data_offsets = [begin, end], relative to the first byte after the header. */
static bool parse_offsets(StTensor *t, const json_t *pair, uint64_t data_start, PeftError *err) {
    const char *path = st_path(t->file);
    json_t *b = json_array_get(pair, 0), *e = json_array_get(pair, 1);
    char shown[JSON_SHOWN];
    if (json_array_size(pair) != 2 || !json_is_integer(b) || !json_is_integer(e) ||
        json_integer_value(b) < 0 || json_integer_value(e) < json_integer_value(b))
        return peft_fail(err, "%s: tensor %s: expected data_offsets [begin, end], found %s", path,
                         t->name, json_show(pair, shown));
    uint64_t begin = (uint64_t)json_integer_value(b), end = (uint64_t)json_integer_value(e);
    uint64_t available = t->file->size - data_start;
    if (end > available)
        return peft_fail(err,
                         "%s: tensor %s ends at byte %llu of the data, the file holds %llu: it is "
                         "truncated, get it again",
                         path, t->name, (unsigned long long)end, (unsigned long long)available);
    if (end - begin != t->bytes) {
        char text[ST_SHAPE_TEXT];
        return peft_fail(err, "%s: tensor %s: %s %s takes %llu bytes, data_offsets give %llu", path,
                         t->name, DTYPES[t->dtype].name, st_shape_text(t->rank, t->dims, text),
                         (unsigned long long)t->bytes, (unsigned long long)(end - begin));
    }
    t->offset = data_start + begin;
    return true;
}

static bool parse_tensor(StTensor *t, const json_t *entry, uint64_t data_start, PeftError *err) {
    if (!check_name(t->file, t->name, err)) return false;
    if (!json_is_object(entry))
        return peft_fail(err, "%s: tensor %s: expected an object, found %s", st_path(t->file),
                         t->name, json_kind(entry));
    return parse_dtype(t, json_object_get(entry, "dtype"), err) &&
           parse_shape(t, json_object_get(entry, "shape"), err) &&
           parse_offsets(t, json_object_get(entry, "data_offsets"), data_start, err);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const StTensor *const *)a)->name, (*(const StTensor *const *)b)->name);
}

static int by_offset(const void *a, const void *b) {
    const StTensor *x = *(const StTensor *const *)a, *y = *(const StTensor *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first: they overlap none */
}

/* Holes are allowed (other writers align tensors), shared bytes are not. */
static bool check_overlaps(SafeTensors *st, PeftError *err) {
    qsort(st->sorted, st->n, sizeof *st->sorted, by_offset);
    for (size_t i = 1; i < st->n; i++) {
        const StTensor *a = st->sorted[i - 1], *b = st->sorted[i];
        if (a->offset + a->bytes > b->offset)
            return peft_fail(err, "%s: tensors %s and %s overlap in the file", st->path, a->name,
                             b->name);
    }
    qsort(st->sorted, st->n, sizeof *st->sorted, by_name);
    return true;
}

static bool check_metadata(const SafeTensors *st, json_t *meta, PeftError *err) {
    if (!json_is_object(meta))
        return peft_fail(err, "%s: expected __metadata__ to be an object, found %s", st->path,
                         json_kind(meta));
    const char *key;
    json_t *value;
    json_object_foreach(meta, key, value) {
        if (!json_is_string(value))
            return peft_fail(err, "%s: expected strings in __metadata__, found %s", st->path,
                             json_kind(value));
    }
    return true;
}

static bool parse_header(SafeTensors *st, uint64_t data_start, PeftError *err) {
    size_t most = json_object_size(st->header);
    st->tensors = peft_zalloc(most, sizeof *st->tensors, err);
    st->sorted = peft_alloc(most, sizeof *st->sorted, err);
    if (!st->tensors || !st->sorted) return false;
    const char *key;
    json_t *entry;
    json_object_foreach(st->header, key, entry) {
        if (strcmp(key, "__metadata__") == 0) {
            if (!check_metadata(st, entry, err)) return false;
            continue;
        }
        StTensor *t = &st->tensors[st->n];
        *t = (StTensor){.file = st, .name = key};
        if (!parse_tensor(t, entry, data_start, err)) return false;
        st->sorted[st->n++] = t;
    }
    return check_overlaps(st, err);
}

/* Two files that people give by mistake; both would otherwise read as an absurd header length. */
static bool refuse_lookalike(const SafeTensors *st, const char first[8], PeftError *err) {
    if (memcmp(first, "version ", 8) == 0)
        return peft_fail(err, "%s is a Git LFS pointer, not the weights: run git lfs pull",
                         st->path);
    if (memcmp(first, "PK\3\4", 4) == 0)
        return peft_fail(err, "%s is a PyTorch or zip archive, expected safetensors", st->path);
    return true;
}

static bool load_header(SafeTensors *st, PeftError *err) {
    char first[8];
    if (st->size < sizeof first)
        return peft_fail(err, "%s has %llu bytes: too short for a safetensors file", st->path,
                         (unsigned long long)st->size);
    if (!file_read_at(st->fd, first, sizeof first, 0, st->path, err) ||
        !refuse_lookalike(st, first, err))
        return false;
    uint64_t n;
    memcpy(&n, first, sizeof n);
    if (n > MAX_HEADER || n > st->size - sizeof first)
        return peft_fail(err,
                         "%s: the header should have %llu bytes but the file has %llu: it is "
                         "truncated or no safetensors file",
                         st->path, (unsigned long long)n, (unsigned long long)st->size);
    char *text = peft_alloc((size_t)n, 1, err);
    if (text && file_read_at(st->fd, text, (size_t)n, sizeof first, st->path, err))
        st->header = json_parse(text, (size_t)n, st->path, err);
    free(text);
    return st->header && parse_header(st, sizeof first + n, err);
}

SafeTensors *st_open(const char *path, PeftError *err) {
    SafeTensors *st = peft_zalloc(1, sizeof *st, err);
    if (!st) return NULL;
    st->fd = -1;
    st->path = peft_alloc(strlen(path) + 1, 1, err);
    if (st->path) {
        strcpy(st->path, path);
        st->fd = file_open(path, &st->size, err);
    }
    if (st->fd >= 0 && load_header(st, err)) return st;
    st_close(st);
    return NULL;
}

/* ---- data ---- */

static float f32_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* IEEE binary16 to binary32, exact: a subnormal h * 2^-24 is normal in binary32. */
static float f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float f = (float)fraction * 0x1p-24f;
    return sign ? -f : f;
}

typedef union Block {
    uint16_t u16[BLOCK / 2];
    double f64[BLOCK / 8];
} Block;

static void widen(const Block *in, StDtype dtype, float *out, size_t n) {
    switch (dtype) {
    case ST_F16:
        for (size_t i = 0; i < n; i++) out[i] = f32_from_f16(in->u16[i]);
        break;
    case ST_BF16:
        for (size_t i = 0; i < n; i++) out[i] = f32_from_bits((uint32_t)in->u16[i] << 16);
        break;
    default:
        for (size_t i = 0; i < n; i++) out[i] = (float)in->f64[i];
    }
}

bool st_read_raw(const StTensor *t, void *out, uint64_t first, uint64_t bytes, PeftError *err) {
    if (first > t->bytes || bytes > t->bytes - first)
        return peft_fail(err, "%s: tensor %s has %llu bytes, asked for %llu from byte %llu",
                         st_path(t->file), t->name, (unsigned long long)t->bytes,
                         (unsigned long long)bytes, (unsigned long long)first);
    return file_read_at(t->file->fd, out, bytes, t->offset + first, t->file->path, err);
}

static bool check_range(const StTensor *t, int64_t first, int64_t count, PeftError *err) {
    if (first >= 0 && count >= 0 && first <= t->count && count <= t->count - first) return true;
    return peft_fail(err, "%s: tensor %s has %lld elements, asked for %lld from element %lld",
                     st_path(t->file), t->name, (long long)t->count, (long long)count,
                     (long long)first);
}

static bool wrong_dtype(const StTensor *t, const char *expected, PeftError *err) {
    return peft_fail(err, "%s: tensor %s: expected dtype %s, found %s", st_path(t->file), t->name,
                     expected, st_dtype_name(t->dtype));
}

bool st_read_f32(const StTensor *t, float *out, int64_t first, int64_t count, PeftError *err) {
    if (t->dtype == ST_U8 || t->dtype == ST_I32 || t->dtype == ST_I64)
        return wrong_dtype(t, "F32, F16, BF16 or F64", err);
    if (!check_range(t, first, count, err)) return false;
    uint64_t size = DTYPES[t->dtype].size;
    if (t->dtype == ST_F32)
        return st_read_raw(t, out, (uint64_t)first * size, (uint64_t)count * size, err);
    Block block;
    int64_t step = (int64_t)(sizeof block / size);
    for (int64_t i = 0; i < count; i += step) {
        int64_t n = count - i < step ? count - i : step;
        if (!st_read_raw(t, &block, (uint64_t)(first + i) * size, (uint64_t)n * size, err))
            return false;
        widen(&block, t->dtype, out + i, (size_t)n);
    }
    return true;
}

bool st_read_i32(const StTensor *t, int32_t *out, int64_t first, int64_t count, PeftError *err) {
    if (t->dtype != ST_I32 && t->dtype != ST_I64) return wrong_dtype(t, "I32 or I64", err);
    if (!check_range(t, first, count, err)) return false;
    if (t->dtype == ST_I32)
        return st_read_raw(t, out, (uint64_t)first * 4, (uint64_t)count * 4, err);
    int64_t block[BLOCK / sizeof(int64_t)], step = BLOCK / sizeof(int64_t);
    for (int64_t i = 0; i < count; i += step) {
        int64_t n = count - i < step ? count - i : step;
        if (!st_read_raw(t, block, (uint64_t)(first + i) * 8, (uint64_t)n * 8, err)) return false;
        for (int64_t k = 0; k < n; k++) {
            if (block[k] != (int32_t)block[k])
                return peft_fail(err, "%s: tensor %s: element %lld is %lld, which is no int32",
                                 st_path(t->file), t->name, (long long)(first + i + k),
                                 (long long)block[k]);
            out[i + k] = (int32_t)block[k];
        }
    }
    return true;
}
