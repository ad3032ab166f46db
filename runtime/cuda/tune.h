/* Chooses the algorithm of each product's shape by measuring: cuBLASLt's candidates are timed on
 * the products that a function really launches, one after the other with their own operands, after
 * other memory has passed through the L2 cache, as in the middle of a step.
 *
 * Candidates sum in different orders, so the choice decides bits of the results, and measuring
 * twice may end in two choices. Results must not depend on that: a choice takes effect only when it
 * is stored in the cache (tune_cache.h), and one that is stored is taken without measuring. So a
 * run, its repetition and its --resume on one machine compute the same bytes as long as the cache
 * remains; GPU, driver and library version are part of the key. Without a cache (PEFTC_CACHE= is
 * empty), with one that cannot be written, and with PEFTC_TUNE=off, every shape that is not stored
 * runs with the heuristic's first candidate: with PEFTC_TUNE=off nothing is looked up either, and
 * results follow from the library version and the GPU alone.
 *
 * Sizes of batches share choices: what is measured and stored is a size rounded up by
 * cuda_tune_size; sizes below take its algorithm over where the library accepts it for them. */
#ifndef PEFT_CUDA_TUNE_H
#define PEFT_CUDA_TUNE_H

#include "gemm.h"

typedef struct CudaTuner CudaTuner;

typedef struct CudaTuneStats {
    int stored;                 /* shapes whose choice was in the cache */
    int measured;               /* shapes measured */
    double seconds;             /* spent in cuda_tune_products */
    double first_us, chosen_us; /* the measured products one after the other: with the heuristic's
                                   first candidates, with the chosen ones */
    char off[512];              /* why nothing is measured; "" while it is */
} CudaTuneStats;

/* Memory that a function's steps may overwrite, up to the end of the arena. */
typedef struct CudaRange {
    CUdeviceptr begin;
    size_t bytes;
} CudaRange;

/* Reads PEFTC_TUNE (on, the default, or off) and the cache. gemm must outlive the tuner. */
bool cuda_tuner_open(CudaTuner **out, const CudaApi *api, const CudaDevice *gpu, CudaGemm *gemm,
                     PeftError *err);
void cuda_tuner_close(CudaTuner *t); /* NULL is fine */
const CudaTuneStats *cuda_tuner_stats(const CudaTuner *t);

/* Settles the plans of n products: the algorithm for rounded[i], the i-th product at the rounded
 * size, is looked up or measured, and exact[i] takes it over. To be called before anything of this
 * size is launched or captured, with the stream not capturing. Writes nothing but `dead`; what is
 * stored outside of it may be read. Returns with the stream idle when something was measured. */
bool cuda_tune_products(CudaTuner *t, const CudaMatmul *exact, const CudaMatmul *rounded, int n,
                        CudaRange dead, CUstream stream, PeftError *err);

/* The size whose algorithms a batch of this many tokens (or sequences) uses: the next multiple of 8
 * up to 64, of 64 beyond. A function of the size alone, so all functions agree on it. */
int64_t cuda_tune_size(int64_t size);

/* The first of the times that are within two per cent of the least, so that measurements as good as
 * equal end in the heuristic's order; infinite, zero and NaN stand for a candidate that does not
 * run. 0 when none does. */
int cuda_tune_fastest(const double *us, int n);

#endif
