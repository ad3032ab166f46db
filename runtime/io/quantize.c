/* NF4 with double quantisation (Dettmers et al., QLoRA, 2023), bit for bit as bitsandbytes' plain
 * operators do it but for two points: a short last block is multiplied by the reciprocal of its
 * absmax like all others (as its CUDA kernel does; the plain operator divides there), and the mean
 * of the absmax is summed in double, where the libraries leave the order open. */
#include "quantize.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Below this an absmax has no finite reciprocal; bitsandbytes clamps there, so that a block of
 * zeros gets the code of zero. */
static const float LEAST_ABSMAX = 1e-38f;

/* The values are finite, which spares the NaN handling of fmaxf. */
static float larger(float a, float b) {
    return a > b ? a : b;
}

/* code[i] = codebook index of w[i] / absmax: the number of midpoints below it, so a tie goes down.
 * The clamp of the library is implied: what lies beyond the outermost codes takes them. The length
 * is a constant for the sake of vector code; this is where loading a quantised base spends its
 * time. */
static void nearest_codes(const float w[NF4_BLOCK], float absmax, int32_t code[NF4_BLOCK]) {
    float scale = 1.0f / larger(absmax, LEAST_ABSMAX);
    float x[NF4_BLOCK];
    for (int i = 0; i < NF4_BLOCK; i++) {
        x[i] = w[i] * scale;
        code[i] = 0;
    }
    for (int k = 0; k < 15; k++) {
        float midpoint = (nf4_lut[k] + nf4_lut[k + 1]) / 2;
        for (int i = 0; i < NF4_BLOCK; i++) code[i] += x[i] > midpoint;
    }
}

/* Block number `block`, of which the first n values count; the others are 0, so that the nibble
 * left over by an odd n holds the code of zero. */
static void quantize_block(NfQuantizer *q, const float w[NF4_BLOCK], int n, int64_t block) {
    float absmax = 0;
    for (int i = 0; i < NF4_BLOCK; i++) absmax = larger(fabsf(w[i]), absmax);
    q->absmax[block] = absmax;
    int32_t code[NF4_BLOCK];
    nearest_codes(w, absmax, code);
    uint8_t *out = q->buf + q->layout.codes + block * (NF4_BLOCK / 2);
    for (int i = 0; i < n; i += 2) out[i / 2] = (uint8_t)(code[i] << 4 | code[i + 1]);
}

/* Index of the 8-bit code nearest to x; at a midpoint the lower one. */
static uint8_t nearest_code8(const float *code8, float x) {
    int lo = 0, hi = 255;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (x > (code8[mid] + code8[mid + 1]) / 2)
            lo = mid + 1;
        else
            hi = mid;
    }
    return (uint8_t)lo;
}

static float mean(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return n ? (float)(sum / (double)n) : 0;
}

/* absmax[b] -> nearest 8-bit code of (absmax[b] - offset) / nested absmax of its 256 blocks. */
static void quantize_absmax(NfQuantizer *q) {
    int64_t blocks = nf4_blocks(q->n), groups = nf4_groups(q->n);
    uint8_t *codes = q->buf + q->layout.absmax_codes;
    float *nested = (float *)(void *)(q->buf + q->layout.nested);
    float offset = mean(q->absmax, blocks);
    const float *code8 = nf4_code8();
    for (int64_t g = 0; g < groups; g++) {
        int64_t first = g * NF4_GROUP;
        int64_t end = first + NF4_GROUP < blocks ? first + NF4_GROUP : blocks;
        float absmax = 0;
        for (int64_t b = first; b < end; b++) absmax = larger(fabsf(q->absmax[b] - offset), absmax);
        float scale = 1.0f / larger(absmax, LEAST_ABSMAX);
        for (int64_t b = first; b < end; b++)
            codes[b] = nearest_code8(code8, (q->absmax[b] - offset) * scale);
        nested[g] = absmax;
    }
    memcpy(q->buf + q->layout.offset, &offset, sizeof offset);
}

bool nf_quantizer_init(NfQuantizer *q, void *buf, int64_t n, bool dq, PeftError *err) {
    *q = (NfQuantizer){.buf = buf, .layout = nf4_layout(n, dq), .dq = dq, .n = n};
    /* The gaps between sections are written too: equal weights give equal bytes. */
    memset(buf, 0, q->layout.bytes);
    q->absmax = dq ? peft_alloc((size_t)nf4_blocks(n), sizeof *q->absmax, err)
                   : (float *)(void *)(q->buf + q->layout.absmax);
    return q->absmax != NULL;
}

void nf_quantizer_free(NfQuantizer *q) {
    if (q->dq) free(q->absmax);
    q->absmax = NULL;
}

static bool check_finite(const NfQuantizer *q, const float *w, int64_t count, PeftError *err) {
    for (int64_t i = 0; i < count; i++) {
        if (fabsf(w[i]) <= FLT_MAX) continue;
        return peft_fail(err, "cannot quantise: element %lld of %lld is %f",
                         (long long)(q->done + i), (long long)q->n, w[i]);
    }
    return true;
}

bool nf_quantizer_push(NfQuantizer *q, const float *w, int64_t count, PeftError *err) {
    if (count < 0 || count > q->n - q->done)
        return peft_fail(err, "cannot quantise: %lld more values after %lld of %lld",
                         (long long)count, (long long)q->done, (long long)q->n);
    if (!check_finite(q, w, count, err)) return false;
    while (count > 0) {
        int held = (int)(q->done % NF4_BLOCK);
        int take = count < NF4_BLOCK - held ? (int)count : NF4_BLOCK - held;
        int64_t block = q->done / NF4_BLOCK;
        q->done += take;
        if (take == NF4_BLOCK) {
            quantize_block(q, w, NF4_BLOCK, block);
        } else {
            memcpy(q->pending + held, w, (size_t)take * sizeof *w);
            if (held + take == NF4_BLOCK || q->done == q->n) {
                memset(q->pending + held + take, 0, (size_t)(NF4_BLOCK - held - take) * sizeof *w);
                quantize_block(q, q->pending, held + take, block);
            }
        }
        w += take;
        count -= take;
    }
    return true;
}

bool nf_quantizer_finish(NfQuantizer *q, PeftError *err) {
    bool ok = q->done == q->n;
    if (!ok)
        peft_fail(err, "cannot quantise: %lld values came, expected %lld", (long long)q->done,
                  (long long)q->n);
    if (ok && q->dq) quantize_absmax(q);
    nf_quantizer_free(q);
    return ok;
}

bool nf_quantize_tensor(const StTensor *t, void *buf, bool dq, PeftError *err) {
    enum { CHUNK = 16 * NF4_BLOCK };
    float chunk[CHUNK];
    NfQuantizer q;
    PeftError cause = {0};
    bool ok = nf_quantizer_init(&q, buf, t->count, dq, err);
    for (int64_t i = 0; ok && i < t->count; i += CHUNK) {
        int64_t n = t->count - i < CHUNK ? t->count - i : CHUNK;
        ok = st_read_f32(t, chunk, i, n, err) && nf_quantizer_push(&q, chunk, n, &cause);
    }
    if (ok) return nf_quantizer_finish(&q, err);
    nf_quantizer_free(&q);
    if (cause.msg[0]) peft_fail(err, "%s: tensor %s: %.400s", st_path(t->file), t->name, cause.msg);
    return false;
}
