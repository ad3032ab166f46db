/* Dropout masks from a counter-based generator: element (site, sample, position, column) of step
 * `step` has one 16-bit number that depends on nothing else: not on packing, threads, order or
 * device. The backward pass draws it again instead of storing a mask. Every backend must give these
 * exact bits:
 *
 * Philox4x32-7 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011).
 *   key     k0 = low32(seed) ^ (high32(seed) * 0x85ebca6b mod 2^32),  k1 = step
 *   counter c0 = column / 8,  c1 = sample,  c2 = position,  c3 = site
 *   round   (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
 *           M0 = 0xd2511f53, M1 = 0xcd9e8d57; seven rounds, between two of them
 *           k0 += 0x9e3779b9, k1 += 0xbb67ae85
 *   lanes   column % 8 = i takes bits 16 (i % 2) .. 16 (i % 2) + 15 of result word c[i / 2]:
 *           the sixteen result bytes, little-endian, are eight 16-bit numbers in column order
 * An element is dropped when its number < threshold = round(65536 p), and otherwise scaled by
 * 1 / (1 - threshold / 65536), the inverse of the probability that was really used.
 * Attention probabilities use position = head << 16 | query position, column = key position. */
#ifndef PEFT_CPU_PHILOX_H
#define PEFT_CPU_PHILOX_H

#include <stdint.h>

#define PHILOX_M0     0xd2511f53u
#define PHILOX_M1     0xcd9e8d57u
#define PHILOX_W0     0x9e3779b9u
#define PHILOX_W1     0xbb67ae85u
#define PHILOX_ROUNDS 7

typedef struct PhiloxRow { /* everything but the column */
    uint32_t k0, k1;
    uint32_t sample, position, site;
} PhiloxRow;

static inline PhiloxRow philox_row(uint64_t seed, uint32_t step, uint32_t site, uint32_t sample,
                                   uint32_t position) {
    uint32_t k0 = (uint32_t)seed ^ (uint32_t)(seed >> 32) * 0x85ebca6bu;
    return (PhiloxRow){k0, step, sample, position, site};
}

/* p is clamped to [0, 1]; NaN counts as 0. */
static inline uint32_t philox_threshold(float p) {
    return p >= 1.0f ? 65536u : p > 0.0f ? (uint32_t)(p * 65536.0f + 0.5f) : 0u;
}

/* Factor of the elements kept; 0 when none is. */
static inline float philox_scale(uint32_t threshold) {
    return threshold < 65536u ? 65536.0f / (float)(65536u - threshold) : 0.0f;
}

/* The eight numbers of columns 8 * block .. 8 * block + 7. */
static inline void philox_block(const PhiloxRow *r, uint32_t block, uint16_t lane[8]) {
    uint32_t c0 = block, c1 = r->sample, c2 = r->position, c3 = r->site, k0 = r->k0, k1 = r->k1;
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c0, p1 = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    const uint32_t word[4] = {c0, c1, c2, c3};
    for (int i = 0; i < 8; i++) lane[i] = (uint16_t)(word[i / 2] >> (16 * (i % 2)));
}

/* The number of one element: the scalar reference. */
static inline uint16_t philox_lane(uint64_t seed, uint32_t step, uint32_t site, uint32_t sample,
                                   uint32_t position, uint64_t column) {
    PhiloxRow r = philox_row(seed, step, site, sample, position);
    uint16_t lane[8];
    philox_block(&r, (uint32_t)(column / 8), lane);
    return lane[column % 8];
}

/* keep[i] = 0 or scale for columns c0 + i, i < n. c0 is a multiple of 8. */
void philox_keep_row(const PhiloxRow *r, int64_t c0, int64_t n, uint32_t threshold, float scale,
                     float *keep);

#endif
