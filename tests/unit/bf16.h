/* bf16 as tests store it: to nearest, ties to even; no NaN. */
#ifndef PEFT_TEST_BF16_H
#define PEFT_TEST_BF16_H

#include <stdint.h>
#include <string.h>

static inline uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float from_bf16(uint16_t bits) {
    uint32_t u = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

#endif
