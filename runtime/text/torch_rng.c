/* MT19937 and the two ways torch turns its words into numbers. The test compares thousands of
 * values bit for bit with torch's own. */
#include "torch_rng.h"

#include <math.h>

enum { SHIFT = 397 };

static const uint32_t upper_bit = 0x80000000u;

void torch_rng_seed(TorchRng *rng, uint64_t seed) {
    rng->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < MT19937_WORDS; i++) {
        uint32_t before = rng->state[i - 1];
        rng->state[i] = 1812433253u * (before ^ (before >> 30)) + i;
    }
    rng->next = MT19937_WORDS;
}

static void refill(TorchRng *rng) {
    uint32_t *s = rng->state;
    for (int i = 0; i < MT19937_WORDS; i++) {
        uint32_t y = (s[i] & upper_bit) | (s[(i + 1) % MT19937_WORDS] & ~upper_bit);
        s[i] = s[(i + SHIFT) % MT19937_WORDS] ^ (y >> 1) ^ (y & 1 ? 0x9908B0DFu : 0);
    }
    rng->next = 0;
}

uint32_t torch_rng_u32(TorchRng *rng) {
    if (rng->next == MT19937_WORDS) refill(rng);
    uint32_t y = rng->state[rng->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9D2C5680u;
    y ^= (y << 15) & 0xEFC60000u;
    return y ^ (y >> 18);
}

void torch_rng_skip(TorchRng *rng, size_t n) {
    while (n-- > 0) torch_rng_u32(rng);
}

void torch_rng_uniform(TorchRng *rng, float low, float high, float *out, size_t n) {
    const float span = high - low;
    for (size_t i = 0; i < n; i++) /* one rounding: torch's kernel is compiled with FMA */
        out[i] = fmaf((float)(torch_rng_u32(rng) & 0xFFFFFF) * 0x1p-24f, span, low);
}

void torch_rng_randperm(TorchRng *rng, int32_t n, int32_t *perm) {
    for (int32_t i = 0; i < n; i++) perm[i] = i;
    for (int32_t i = 0; i + 1 < n; i++) {
        int32_t j = i + (int32_t)(torch_rng_u32(rng) % (uint32_t)(n - i));
        int32_t taken = perm[i];
        perm[i] = perm[j];
        perm[j] = taken;
    }
}
