/* From what pre-training saved to a base model of half the size: every float32 tensor as float16,
 * rounded to nearest, ties to even, and a pooler where the encoder has none.
 *
 *   half IN.safetensors OUT.safetensors
 *
 * Masked-language-model training knows no pooler, and classifiers read tanh(pooler([CLS])) with the
 * pooler frozen, so the one added here must lose nothing: the identity, without bias. The same
 * input gives the same bytes. A value that float16 cannot hold is an error, not an infinity.
 */
#include "../runtime/io/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS  "bert.embeddings.word_embeddings.weight"
#define POOLER "bert.pooler.dense"

enum { PIECE = 1 << 14 };

/* Round to nearest even (IEEE 754). False for what has no finite float16. */
static bool to_half(float v, uint16_t *out) {
    float a = fabsf(v);
    uint16_t sign = signbit(v) ? 0x8000 : 0;
    if (!(a < 65520.0f)) return false; /* 65520 would round to infinity */
    if (a < 0x1p-14f) {                /* subnormal: multiples of 2^-24 */
        *out = sign | (uint16_t)lrintf(a * 0x1p24f);
        return true;
    }
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    uint32_t rest = bits & 0x1fff, up = rest > 0x1000 || (rest == 0x1000 && (bits >> 13 & 1));
    *out = sign | (uint16_t)((bits >> 13) - (112u << 10) + up); /* exponent bias 127 to 15 */
    return true;
}

static bool put_tensor(StWriter *w, int handle, const StTensor *t, PeftError *err) {
    float piece[PIECE];
    uint16_t half[PIECE];
    for (int64_t at = 0; at < t->count; at += PIECE) {
        int64_t n = t->count - at < PIECE ? t->count - at : PIECE;
        if (!st_read_f32(t, piece, at, n, err)) return false;
        for (int64_t i = 0; i < n; i++)
            if (!to_half(piece[i], &half[i]))
                return peft_fail(err, "%s: element %lld of %s is %g, which float16 cannot hold",
                                 st_path(t->file), (long long)(at + i), t->name, (double)piece[i]);
        if (!st_writer_put(w, handle, half, (uint64_t)n * sizeof *half, err)) return false;
    }
    return true;
}

static bool put_identity(StWriter *w, int weight, int bias, int64_t hidden, PeftError *err) {
    uint16_t *row = peft_zalloc((size_t)hidden, sizeof *row, err);
    bool ok = row && st_writer_put(w, bias, row, (uint64_t)hidden * sizeof *row, err);
    for (int64_t i = 0; ok && i < hidden; i++) {
        row[i] = 0x3c00; /* 1.0 */
        ok = st_writer_put(w, weight, row, (uint64_t)hidden * sizeof *row, err);
        row[i] = 0;
    }
    free(row);
    return ok;
}

/* handle: room for every tensor of `in`. */
static bool convert(StWriter *w, const SafeTensors *in, int *handle, PeftError *err) {
    const StTensor *words = st_find(in, WORDS);
    if (!words || words->rank != 2)
        return peft_fail(err, "%s has no matrix " WORDS "; is it a BERT?", st_path(in));
    int64_t hidden = words->dims[1];
    bool pooler = !st_find(in, POOLER ".weight");
    int weight = 0, bias = 0;
    for (size_t i = 0; i < st_count(in); i++) {
        const StTensor *t = st_get(in, i);
        handle[i] = st_writer_add(w, t->name, ST_F16, t->rank, t->dims, err);
        if (handle[i] < 0) return false;
    }
    if (pooler) {
        weight = st_writer_add(w, POOLER ".weight", ST_F16, 2, (int64_t[]){hidden, hidden}, err);
        bias = st_writer_add(w, POOLER ".bias", ST_F16, 1, &hidden, err);
    }
    if (weight < 0 || bias < 0 || !st_writer_begin(w, err)) return false;
    for (size_t i = 0; i < st_count(in); i++)
        if (!put_tensor(w, handle[i], st_get(in, i), err)) return false;
    return !pooler || put_identity(w, weight, bias, hidden, err);
}

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    if (argc != 3) {
        fprintf(stderr, "usage: half IN.safetensors OUT.safetensors\n");
        return 2;
    }
    SafeTensors *in = st_open(argv[1], &err);
    StWriter *w = in ? st_writer_new(argv[2], &err) : NULL;
    int *handle = w ? peft_alloc(st_count(in), sizeof *handle, &err) : NULL;
    bool ok = handle && convert(w, in, handle, &err);
    if (ok)
        ok = st_writer_finish(w, &err);
    else
        st_writer_abort(w);
    free(handle);
    st_close(in);
    if (!ok) fprintf(stderr, "half: error: %s\n", err.msg);
    return ok ? 0 : 1;
}
