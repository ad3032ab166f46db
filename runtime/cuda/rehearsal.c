/* See rehearsal.h. What the thread opened stays open until the end, so that nothing is made twice.
 */
#include "rehearsal.h"
#include "gemm.h"

#include <pthread.h>

typedef struct Rehearsal {
    pthread_t thread;
    bool running;
    CudaApi *api;
    CudaDevice gpu;
    CudaGemm *gemm;
} Rehearsal;

static Rehearsal rehearsal;

/* The first question for an algorithm makes cuBLASLt read its tables, and more are read when a kind
 * of product is first asked for: those of a step are asked for here. */
static void ask_for_products(Rehearsal *r, PeftError *ignored) {
    static const struct {
        int64_t m, n, k;
        bool trans_a, trans_b, bias;
        CudaGemmType out;
        int batch;
    } kind[] = {{512, 768, 768, false, true, false, CUDA_GEMM_BF16, 1},
                {512, 768, 768, false, true, true, CUDA_GEMM_BF16, 3},
                {512, 768, 768, false, false, false, CUDA_GEMM_BF16, 3},
                {768, 768, 512, true, false, false, CUDA_GEMM_BF16, 1},
                {16, 768, 512, true, false, false, CUDA_GEMM_F32, 1},
                {32, 2, 768, false, true, false, CUDA_GEMM_BF16, 1}};
    if (!cuda_gemm_open(&r->gemm, r->api, ignored)) return;
    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
        CudaMatmul product = {.m = kind[i].m,
                              .n = kind[i].n,
                              .k = kind[i].k,
                              .trans_a = kind[i].trans_a,
                              .trans_b = kind[i].trans_b,
                              .bias = kind[i].bias ? CUDA_GEMM_ALIGN : 0,
                              .in = CUDA_GEMM_BF16,
                              .out = kind[i].out,
                              .batch = kind[i].batch};
        cuda_gemm_plan(r->gemm, &product, ignored);
    }
}

/* The context before the library: the program waits for the one and can load the other. */
static void *rehearse(void *ctx) {
    Rehearsal *r = ctx;
    PeftError ignored = {{0}, 0};
    if (cuda_api_open_driver(&r->api, &ignored) &&
        cuda_device_open_first(r->api, &r->gpu, &ignored) &&
        cuda_api_need_products(r->api, &ignored))
        ask_for_products(r, &ignored);
    return NULL;
}

void rehearsal_begin(void) {
    rehearsal.running = pthread_create(&rehearsal.thread, NULL, rehearse, &rehearsal) == 0;
}

void rehearsal_end(void) {
    Rehearsal *r = &rehearsal;
    if (!r->running) return;
    pthread_join(r->thread, NULL);
    cuda_gemm_close(r->gemm);
    if (r->api) cuda_device_close(r->api, &r->gpu);
    cuda_api_close(r->api);
    *r = (Rehearsal){.running = false};
}
