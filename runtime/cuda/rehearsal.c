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

/* The first question for an algorithm makes cuBLASLt read its tables. */
static void ask_for_a_product(Rehearsal *r, PeftError *ignored) {
    CudaMatmul product = {.m = 64, .n = 64, .k = 64, .in = CUDA_GEMM_BF16, .out = CUDA_GEMM_BF16};
    if (cuda_gemm_open(&r->gemm, r->api, ignored)) cuda_gemm_plan(r->gemm, &product, ignored);
}

/* The context before the library: the program waits for the one and can load the other. */
static void *rehearse(void *ctx) {
    Rehearsal *r = ctx;
    PeftError ignored = {{0}, 0};
    if (cuda_api_open_driver(&r->api, &ignored) &&
        cuda_device_open_first(r->api, &r->gpu, &ignored) &&
        cuda_api_need_products(r->api, &ignored))
        ask_for_a_product(r, &ignored);
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
