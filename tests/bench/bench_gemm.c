/* GEMM speed as a share of this processor's register-only multiply-add ceiling, on the shapes of
 * one training step of bert-base and MiniLM (a batch of SST-2 is about 426 packed tokens).
 *     bench_gemm [threads [part of a shape's name]]      PEFT_ISA chooses the instruction set
 * Other programs disturb both numbers, so ceiling and shape are timed in turns and the best of each
 * is compared. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../runtime/cpu/gemm.h"
#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/parallel.h"

enum { ROUNDS = 40, CHAINS = 12, CEILING_STEPS = 100000 };

typedef struct Shape {
    const char *what;
    int64_t m, n, k;
    bool trans_a, trans_b, nf4;
} Shape;

static const Shape shapes[] = {
    {"base qkv", 426, 2304, 768, false, true, false},
    {"base attention output", 426, 768, 768, false, true, false},
    {"base ffn up", 426, 3072, 768, false, true, false},
    {"base ffn down", 426, 768, 3072, false, true, false},
    {"base dgrad qkv", 426, 768, 2304, false, false, false},
    {"base dgrad ffn up", 426, 768, 3072, false, false, false},
    {"base dgrad ffn down", 426, 3072, 768, false, false, false},
    {"base wgrad ffn up", 3072, 768, 426, true, false, false},
    {"base wgrad ffn down", 768, 3072, 426, true, false, false},
    {"base adapter down", 426, 64, 768, false, true, false},
    {"base adapter up", 426, 768, 64, false, true, false},
    {"base LoRA A", 426, 16, 768, false, true, false},
    {"base LoRA B", 426, 768, 16, false, true, false},
    {"base LoRA A wgrad", 16, 768, 426, true, false, false},
    {"base cls ffn up", 32, 3072, 768, false, true, false},
    {"base cls dgrad ffn up", 32, 768, 3072, false, false, false},
    {"base ffn up NF4", 426, 3072, 768, false, true, true},
    {"base dgrad ffn up NF4", 426, 768, 3072, false, false, true},
    {"MiniLM attention output", 426, 384, 384, false, true, false},
    {"MiniLM ffn up", 426, 1536, 384, false, true, false},
    {"MiniLM ffn down", 426, 384, 1536, false, true, false},
    {"MiniLM dgrad ffn up", 426, 384, 1536, false, false, false},
    {"MiniLM wgrad ffn up", 1536, 384, 426, true, false, false},
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve independent chains of one multiply-add each per step, and nothing else. */
#define CEILING(isa, lanes, target)                                                            \
    typedef float Ceiling_##isa __attribute__((vector_size(4 * lanes)));                       \
    target static void ceiling_##isa(float *sink) {                                            \
        Ceiling_##isa acc[CHAINS], x = (Ceiling_##isa){0} + 0.999f,                            \
                                   y = (Ceiling_##isa){0} + 1e-3f;                             \
        for (int i = 0; i < CHAINS; i++) acc[i] = y * (float)i;                                \
        for (int s = 0; s < CEILING_STEPS; s++)                                                \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * x + y; \
        for (int i = 1; i < CHAINS; i++) acc[0] += acc[i];                                     \
        *sink = acc[0][0];                                                                     \
    }

#ifdef ISA_X86
CEILING(avx512, 16, ISA_TARGET_AVX512)
CEILING(avx2, 8, ISA_TARGET_AVX2)
#endif
CEILING(portable, 4, )

static void ceiling_thread(void *ctx, int thread, int count) {
    float sink;
    (void)ctx, (void)thread, (void)count;
    switch (isa_current()) {
#ifdef ISA_X86
    case ISA_AVX512: ceiling_avx512(&sink); break;
    case ISA_AVX2: ceiling_avx2(&sink); break;
#endif
    default: ceiling_portable(&sink); break;
    }
    *(volatile float *)&sink = sink;
}

static double ceiling(int threads) {
    static const int lanes[ISA_COUNT] = {[ISA_PORTABLE] = 4, [ISA_AVX2] = 8, [ISA_AVX512] = 16};
    double t = seconds();
    parallel_run(threads, ceiling_thread, NULL);
    t = seconds() - t;
    return 2e-9 * CHAINS * CEILING_STEPS * lanes[isa_current()] * threads / t;
}

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!p) {
        fprintf(stderr, "bench_gemm: out of memory: %zu bytes asked for\n", bytes);
        exit(1);
    }
    return p;
}

static float *random_floats(int64_t n) {
    float *p = allocate((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
    return p;
}

/* Random bytes are valid codes; the nested scales must be sane for speed (no subnormals). */
static void *random_nf4(int64_t n) {
    Nf4Layout l = nf4_layout(n, true);
    uint8_t *p = allocate(l.bytes);
    for (size_t i = 0; i < l.nested; i++) p[i] = (uint8_t)rand();
    for (int64_t i = 0; i < nf4_groups(n); i++) ((float *)(p + l.nested))[i] = 0.01f;
    *(float *)(p + l.offset) = 0.1f;
    return p;
}

static void bench(const Shape *s, int threads, void *workspace) {
    float *a = random_floats(s->m * s->k), *c = random_floats(s->m * s->n), *b = NULL;
    void *nf4 = NULL;
    Nf4View view;
    Gemm g = {.m = s->m, .n = s->n, .k = s->k, .a = a, .c = c, .ldc = s->n};
    g.trans_a = s->trans_a;
    g.trans_b = s->trans_b;
    g.lda = s->trans_a ? s->m : s->k;
    g.ldb = s->trans_b ? s->k : s->n;
    if (s->nf4) {
        nf4 = random_nf4(s->n * s->k);
        view = nf4_view(nf4, s->n * s->k, true);
        g.b_nf4 = &view;
    } else {
        g.b = b = random_floats(s->n * s->k);
    }
    double flops = 2.0 * (double)s->m * (double)s->n * (double)s->k, best = 0, top = 0;
    int repeats = (int)(3e8 / flops) + 1; /* short, to fall between two time slices of others */
    gemm_run(&g, threads, workspace);
    for (int r = 0; r < ROUNDS; r++) {
        double now = ceiling(threads);
        if (now > top) top = now;
        double t = seconds();
        for (int i = 0; i < repeats; i++) gemm_run(&g, threads, workspace);
        now = 1e-9 * flops * repeats / (seconds() - t);
        if (now > best) best = now;
    }
    printf("%-24s %5ld x %4ld x %4ld  %s%s%s  %7.1f GF/s  %5.1f %% of %.1f\n", s->what, (long)s->m,
           (long)s->n, (long)s->k, s->trans_a ? "A'" : "A ", s->trans_b ? "B'" : "B ",
           s->nf4 ? " NF4" : "    ", best, 100 * best / top, top);
    free(a);
    free(b);
    free(c);
    free(nf4);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    PeftError err = {0};
    if (threads < 1 || !isa_init(&err)) {
        fprintf(stderr, "bench_gemm: %s\n",
                err.msg[0] ? err.msg : "usage: bench_gemm [threads [shape | ceiling]]");
        return 2;
    }
    if (argc > 2 && strcmp(argv[2], "ceiling") == 0) { /* for bench.py: GFLOP/s and nothing else */
        double best = 0;
        for (int i = 0; i < 5; i++) {
            double now = ceiling(threads);
            if (now > best) best = now;
        }
        printf("%.1f\n", best);
        return 0;
    }
    void *workspace = allocate(gemm_workspace_bytes(threads));
    printf("%s, threads: %d\n", isa_name(isa_current()), threads);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (argc <= 2 || strstr(shapes[i].what, argv[2])) bench(&shapes[i], threads, workspace);
    free(workspace);
    return 0;
}
