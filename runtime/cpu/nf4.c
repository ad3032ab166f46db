/* Layout, tables and dequantisation of nf4.h. The lookups are permutes of a 16-entry register on
 * AVX-512, of two 8-entry ones on AVX2. */
#include "nf4.h"

#include <math.h>
#include <pthread.h>

#include "isa.h"
#ifdef ISA_X86
#include <immintrin.h>
#endif

const float nf4_lut[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

static float code8[256];
static pthread_once_t code8_once = PTHREAD_ONCE_INIT;

/* Point i of n evenly spaced in [0.1, 1], from the nearer end with one rounding: this is how the
 * map's publishers compute it, and it gives their bits. */
static float spaced(int i, int n) {
    float step = (1.0f - 0.1f) / (float)(n - 1);
    return i < n / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(n - 1 - i), 1.0f);
}

static void fill_code8(void) {
    static const float decade[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int at = 0;
    for (int e = 0; e < 7; e++) {
        for (int cell = 0, cells = 1 << e; cell < cells; cell++, at++) {
            float middle = (spaced(cell, cells + 1) + spaced(cell + 1, cells + 1)) / 2.0f;
            code8[128 + at] = decade[e] * middle;
            code8[126 - at] = -code8[128 + at];
        }
    }
    code8[127] = 0.0f;
    code8[255] = 1.0f;
}

const float *nf4_code8(void) {
    pthread_once(&code8_once, fill_code8);
    return code8;
}

int64_t nf4_blocks(int64_t n) {
    return n / NF4_BLOCK + (n % NF4_BLOCK != 0);
}

int64_t nf4_groups(int64_t n) {
    int64_t blocks = nf4_blocks(n);
    return blocks / NF4_GROUP + (blocks % NF4_GROUP != 0);
}

static size_t aligned(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

Nf4Layout nf4_layout(int64_t n, bool dq) {
    size_t blocks = (size_t)nf4_blocks(n), codes = (size_t)(n / 2 + n % 2);
    Nf4Layout l = {.codes = 0};
    if (dq) {
        l.absmax_codes = aligned(codes);
        l.nested = l.absmax_codes + aligned(blocks);
        l.offset = l.nested + aligned((size_t)nf4_groups(n) * sizeof(float));
        l.absmax = l.bytes = l.offset + aligned(sizeof(float));
    } else {
        l.absmax = aligned(codes);
        l.bytes = l.absmax + aligned(blocks * sizeof(float));
        l.absmax_codes = l.nested = l.offset = l.bytes;
    }
    return l;
}

size_t nf4_bytes(int64_t n, bool dq) {
    return nf4_layout(n, dq).bytes;
}

Nf4View nf4_view(const void *buf, int64_t n, bool dq) {
    const uint8_t *p = buf;
    Nf4Layout l = nf4_layout(n, dq);
    Nf4View v = {.n = n, .codes = p + l.codes, .code8 = nf4_code8()};
    if (dq) {
        v.absmax_codes = p + l.absmax_codes;
        v.nested = (const float *)(p + l.nested);
        v.offset = (const float *)(p + l.offset);
    } else {
        v.absmax = (const float *)(p + l.absmax);
    }
    return v;
}

float nf4_absmax(const Nf4View *v, int64_t block) {
    if (v->absmax) return v->absmax[block];
    /* volatile: product and sum are rounded separately even where the compiler would fuse them */
    volatile float product = v->code8[v->absmax_codes[block]] * v->nested[block / NF4_GROUP];
    return product + *v->offset;
}

static int code_at(const Nf4View *v, int64_t i) {
    uint8_t byte = v->codes[i / 2];
    return i % 2 ? byte & 15 : byte >> 4;
}

float nf4_value(const Nf4View *v, int64_t i) {
    return nf4_lut[code_at(v, i)] * nf4_absmax(v, i / NF4_BLOCK);
}

/* 16 values of one block from 8 bytes of codes. */
static inline void chunk_portable(const uint8_t *codes, float absmax, float *out) {
    for (int i = 0; i < 8; i++) {
        out[2 * i] = nf4_lut[codes[i] >> 4] * absmax;
        out[2 * i + 1] = nf4_lut[codes[i] & 15] * absmax;
    }
}

#ifdef ISA_X86
ISA_TARGET_AVX512 static inline void chunk_avx512(const uint8_t *codes, float absmax, float *out) {
    __m128i bytes = _mm_loadl_epi64((const __m128i *)codes);
    __m128i nibbles = _mm_unpacklo_epi8(_mm_srli_epi16(bytes, 4), bytes); /* high one first */
    __m512i index = _mm512_cvtepu8_epi32(nibbles); /* the permute uses the low four bits */
    __m512 lut = _mm512_loadu_ps(nf4_lut);
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_permutexvar_ps(index, lut), _mm512_set1_ps(absmax)));
}

ISA_TARGET_AVX2 static inline __m256 lookup_avx2(__m128i nibbles) {
    __m256i index = _mm256_cvtepu8_epi32(nibbles); /* the permutes use the low three bits */
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(nf4_lut), index);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(nf4_lut + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

ISA_TARGET_AVX2 static inline void chunk_avx2(const uint8_t *codes, float absmax, float *out) {
    __m128i bytes = _mm_loadl_epi64((const __m128i *)codes);
    __m128i nibbles = _mm_unpacklo_epi8(_mm_srli_epi16(bytes, 4), bytes);
    __m256 scale = _mm256_set1_ps(absmax);
    _mm256_storeu_ps(out, _mm256_mul_ps(lookup_avx2(nibbles), scale));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(lookup_avx2(_mm_srli_si128(nibbles, 8)), scale));
}
#endif

/* Block by block; inside a block single elements up to an even one, then chunks, then the rest. */
static inline __attribute__((always_inline)) void
dequant_row(const Nf4View *v, int64_t i, int64_t n, float *out,
            void (*chunk)(const uint8_t *codes, float absmax, float *out)) {
    const int64_t end = i + n;
    while (i < end) {
        int64_t block = i / NF4_BLOCK, stop = (block + 1) * NF4_BLOCK;
        if (stop > end) stop = end;
        float absmax = nf4_absmax(v, block);
        if (i % 2) {
            *out++ = nf4_lut[code_at(v, i)] * absmax;
            i++;
        }
        for (; i + 16 <= stop; i += 16, out += 16) chunk(v->codes + i / 2, absmax, out);
        for (; i < stop; i++) *out++ = nf4_lut[code_at(v, i)] * absmax;
    }
}

#define DEQUANT_ROW(isa, target)                                                               \
    target static void dequant_row_##isa(const Nf4View *v, int64_t i, int64_t n, float *out) { \
        dequant_row(v, i, n, out, chunk_##isa);                                                \
    }

DEQUANT_ROW(portable, )
#ifdef ISA_X86
DEQUANT_ROW(avx2, ISA_TARGET_AVX2)
DEQUANT_ROW(avx512, ISA_TARGET_AVX512)
#endif

void nf4_dequant_row(const Nf4View *v, int64_t first, int64_t n, float *out) {
    switch (isa_current()) {
#ifdef ISA_X86
    case ISA_AVX512: dequant_row_avx512(v, first, n, out); return;
    case ISA_AVX2: dequant_row_avx2(v, first, n, out); return;
#endif
    default: dequant_row_portable(v, first, n, out); return;
    }
}
