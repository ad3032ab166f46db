/* philox_keep_row: eight (AVX-512) or four (AVX2) counters at a time, each word of the state in the
 * low half of a 64-bit lane, where the 32 x 32 -> 64 bit multiplication wants it. The high halves
 * hold leftovers that the multiplication ignores. Counters enter in the order that makes the final
 * interleave of words come out in column order. */
#include "philox.h"

#include <string.h>

#include "isa.h"
#ifdef ISA_X86
#include <immintrin.h>
#endif

static void keep_portable(const PhiloxRow *r, uint32_t block, uint32_t threshold, float scale,
                          float *keep) {
    uint16_t lane[8];
    philox_block(r, block, lane);
    for (int i = 0; i < 8; i++) keep[i] = lane[i] < threshold ? 0.0f : scale;
}

#ifdef ISA_X86
ISA_TARGET_AVX512 static inline void keep_avx512(const PhiloxRow *r, uint32_t block,
                                                 uint32_t threshold, float scale, float *keep) {
    const __m512i m0 = _mm512_set1_epi64(PHILOX_M0), m1 = _mm512_set1_epi64(PHILOX_M1);
    __m512i c0 =
        _mm512_add_epi32(_mm512_set1_epi64(block), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
    __m512i c1 = _mm512_set1_epi64(r->sample), c2 = _mm512_set1_epi64(r->position);
    __m512i c3 = _mm512_set1_epi64(r->site);
    for (uint32_t i = 0; i < PHILOX_ROUNDS; i++) {
        __m512i k0 = _mm512_set1_epi64(r->k0 + i * PHILOX_W0),
                k1 = _mm512_set1_epi64(r->k1 + i * PHILOX_W1);
        __m512i p0 = _mm512_mul_epu32(c0, m0), p1 = _mm512_mul_epu32(c2, m1);
        c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1, k0, 0x96); /* xor of three */
        c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3, k1, 0x96);
        c1 = p1;
        c3 = p0;
    }
    const __mmask16 odd = 0xaaaa;
    __m512i low = _mm512_mask_blend_epi32(odd, c0, _mm512_slli_epi64(c1, 32));
    __m512i high = _mm512_mask_blend_epi32(odd, c2, _mm512_slli_epi64(c3, 32));
    const __m512i limit = _mm512_set1_epi16((short)threshold);
    const __m512 value = _mm512_set1_ps(scale);
    __mmask32 first = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(low, high), limit);
    __mmask32 second = _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(low, high), limit);
    _mm512_storeu_ps(keep, _mm512_maskz_mov_ps((__mmask16)first, value));
    _mm512_storeu_ps(keep + 16, _mm512_maskz_mov_ps((__mmask16)(first >> 16), value));
    _mm512_storeu_ps(keep + 32, _mm512_maskz_mov_ps((__mmask16)second, value));
    _mm512_storeu_ps(keep + 48, _mm512_maskz_mov_ps((__mmask16)(second >> 16), value));
}

/* 16 floats from 16 numbers: value where the number >= limit. */
ISA_TARGET_AVX2 static inline void store_avx2(__m256i numbers, __m256i limit, __m256 value,
                                              float *keep) {
    __m256i kept = _mm256_cmpeq_epi16(_mm256_max_epu16(numbers, limit), numbers);
    __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(kept));
    __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(kept, 1));
    _mm256_storeu_ps(keep, _mm256_and_ps(_mm256_castsi256_ps(low), value));
    _mm256_storeu_ps(keep + 8, _mm256_and_ps(_mm256_castsi256_ps(high), value));
}

ISA_TARGET_AVX2 static inline void keep_avx2(const PhiloxRow *r, uint32_t block, uint32_t threshold,
                                             float scale, float *keep) {
    const __m256i m0 = _mm256_set1_epi64x(PHILOX_M0), m1 = _mm256_set1_epi64x(PHILOX_M1);
    __m256i c0 = _mm256_add_epi32(_mm256_set1_epi64x(block), _mm256_set_epi64x(3, 1, 2, 0));
    __m256i c1 = _mm256_set1_epi64x(r->sample), c2 = _mm256_set1_epi64x(r->position);
    __m256i c3 = _mm256_set1_epi64x(r->site);
    for (uint32_t i = 0; i < PHILOX_ROUNDS; i++) {
        __m256i k0 = _mm256_set1_epi64x(r->k0 + i * PHILOX_W0),
                k1 = _mm256_set1_epi64x(r->k1 + i * PHILOX_W1);
        __m256i p0 = _mm256_mul_epu32(c0, m0), p1 = _mm256_mul_epu32(c2, m1);
        c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), k0);
        c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), k1);
        c1 = p1;
        c3 = p0;
    }
    const __m256i limit = _mm256_set1_epi16((short)threshold);
    const __m256 value = _mm256_set1_ps(scale);
    __m256i low = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xaa);
    __m256i high = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xaa);
    store_avx2(_mm256_unpacklo_epi64(low, high), limit, value, keep);
    store_avx2(_mm256_unpackhi_epi64(low, high), limit, value, keep + 16);
}
#endif

/* A row in groups of the counters taken at a time; the last one, if not whole, through a buffer. */
#define KEEP_ROW(isa, target, counters)                                               \
    target static void keep_row_##isa(const PhiloxRow *r, uint32_t block, int64_t n,  \
                                      uint32_t threshold, float scale, float *keep) { \
        enum { GROUP = 8 * (counters) };                                              \
        int64_t i = 0;                                                                \
        for (; i + GROUP <= n; i += GROUP, block += (counters))                       \
            keep_##isa(r, block, threshold, scale, keep + i);                         \
        if (i == n) return;                                                           \
        float rest[GROUP];                                                            \
        keep_##isa(r, block, threshold, scale, rest);                                 \
        memcpy(keep + i, rest, (size_t)(n - i) * sizeof *keep);                       \
    }

KEEP_ROW(portable, , 1)
#ifdef ISA_X86
KEEP_ROW(avx2, ISA_TARGET_AVX2, 4)
KEEP_ROW(avx512, ISA_TARGET_AVX512, 8)
#endif

void philox_keep_row(const PhiloxRow *r, int64_t c0, int64_t n, uint32_t threshold, float scale,
                     float *keep) {
    if (n <= 0) return;
    if (threshold >= 65536) { /* does not fit the 16-bit comparison */
        memset(keep, 0, (size_t)n * sizeof *keep);
        return;
    }
    uint32_t block = (uint32_t)(c0 / 8);
    switch (isa_current()) {
#ifdef ISA_X86
    case ISA_AVX512: keep_row_avx512(r, block, n, threshold, scale, keep); return;
    case ISA_AVX2: keep_row_avx2(r, block, n, threshold, scale, keep); return;
#endif
    default: keep_row_portable(r, block, n, threshold, scale, keep); return;
    }
}
