/* torch's CPU generator, for what must be the same numbers as there: the order in which a data
 * loader visits the rows. (Everything else random in a run is counter-based.) 32-bit Mersenne
 * twister MT19937 of Matsumoto and Nishimura, seeded as torch.Generator().manual_seed(seed) does:
 * with the seed's low 32 bits. */
#ifndef PEFT_TORCH_RNG_H
#define PEFT_TORCH_RNG_H

#include <stddef.h>
#include <stdint.h>

enum { MT19937_WORDS = 624 };

typedef struct TorchRng {
    uint32_t state[MT19937_WORDS];
    int next; /* word of state to give out next; MT19937_WORDS when all are spent */
} TorchRng;

void torch_rng_seed(TorchRng *rng, uint64_t seed);

uint32_t torch_rng_u32(TorchRng *rng);

/* Throws n draws away: what an initialisation that is overwritten later consumed. */
void torch_rng_skip(TorchRng *rng, size_t n);

/* x.uniform_(low, high) for float32 x of n elements, from 24 random bits each. Scaling and shift
 * are one fused multiply-add, as in torch's kernels for processors that have it (AVX2 and later);
 * its fallback kernel rounds twice and can differ in the last bits. */
void torch_rng_uniform(TorchRng *rng, float low, float high, float *out, size_t n);

/* torch.randperm(n), n below 2^32 / 20 (from there on torch draws 64 bits). */
void torch_rng_randperm(TorchRng *rng, int32_t n, int32_t *perm);

#endif
