/* safetensors files: an 8-byte length, a JSON header, then raw little-endian row-major data.
 * The reader trusts nothing: a handle exists only after every tensor has been proved to lie inside
 * the file, to have the bytes its shape and dtype ask for, and to overlap no other. Only the header
 * is kept in memory and data come through pread, so a file cut short later is an error, not a
 * SIGBUS. The writer lays tensors out as the safetensors library does (8-byte aligned data, wider
 * dtypes first, then by name), so both write the same bytes. */
#ifndef PEFT_IO_SAFETENSORS_H
#define PEFT_IO_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

/* In the order in which the library lays tensors out, last to first. */
typedef enum StDtype { ST_U8, ST_F16, ST_BF16, ST_I32, ST_F32, ST_F64, ST_I64, ST_NDTYPE } StDtype;

enum { ST_MAX_RANK = 8 };

typedef struct SafeTensors SafeTensors;

typedef struct StTensor {
    const SafeTensors *file;
    const char *name; /* no control characters, at most 511 bytes */
    StDtype dtype;
    int rank; /* 0 for a scalar */
    int64_t dims[ST_MAX_RANK];
    int64_t count;   /* product of dims, elements */
    uint64_t offset; /* of the first byte, in the file */
    uint64_t bytes;
} StTensor;

size_t st_dtype_size(StDtype dtype);
const char *st_dtype_name(StDtype dtype);

/* Writes "[2, 128]" into buf and returns it. */
enum { ST_SHAPE_TEXT = 24 * ST_MAX_RANK };
const char *st_shape_text(int rank, const int64_t *dims, char buf[ST_SHAPE_TEXT]);

/* ---- reading ---- */

/* Opens and validates; NULL with a message naming file, tensor, expected and found. */
SafeTensors *st_open(const char *path, PeftError *err);
void st_close(SafeTensors *st);

const char *st_path(const SafeTensors *st);
size_t st_count(const SafeTensors *st);
const StTensor *st_get(const SafeTensors *st, size_t i);          /* in the header's order */
const StTensor *st_find(const SafeTensors *st, const char *name); /* NULL when absent */
const char *st_meta(const SafeTensors *st, const char *key); /* of __metadata__; NULL when absent */

/* Reads `count` elements from element `first` on, rounding F64 to nearest and widening F16 and BF16
 * exactly; other dtypes are an error. Uses no memory but a small block on the stack. */
bool st_read_f32(const StTensor *t, float *out, int64_t first, int64_t count, PeftError *err);

/* The same for I32 and I64; a value that does not fit int32 is an error. */
bool st_read_i32(const StTensor *t, int32_t *out, int64_t first, int64_t count, PeftError *err);

/* The bytes as they are. */
bool st_read_raw(const StTensor *t, void *out, uint64_t first, uint64_t bytes, PeftError *err);

/* ---- writing: list all tensors, begin, put the data of each in any number of pieces, finish ----
 */

typedef struct StWriter StWriter;

StWriter *st_writer_new(const char *path, PeftError *err);

/* Returns the tensor's handle, or -1. */
int st_writer_add(StWriter *w, const char *name, StDtype dtype, int rank, const int64_t *dims,
                  PeftError *err);

/* A pair for __metadata__, which always has {"format": "pt"}. */
bool st_writer_meta(StWriter *w, const char *key, const char *value, PeftError *err);

/* Fixes the layout and writes the header; no tensor can be added after it. */
bool st_writer_begin(StWriter *w, PeftError *err);

/* Appends the next bytes of one tensor; tensors may be filled in any order. */
bool st_writer_put(StWriter *w, int tensor, const void *data, uint64_t bytes, PeftError *err);

/* Checks that every tensor is complete and gives the file its final name. Frees w either way; on
 * failure nothing is left under the final name. */
bool st_writer_finish(StWriter *w, PeftError *err);

/* Gives up: removes what was written and frees w (which may be NULL). */
void st_writer_abort(StWriter *w);

#endif
