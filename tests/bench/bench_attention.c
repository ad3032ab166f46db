/* Attention and dropout speed: milliseconds of one layer, forward and backward, for batches like
 * SST-2's (32 sequences, lengths 3 to 40, mean 14) and long sequences; nanoseconds of one mask
 * element.
 *     bench_attention [threads]          PEFT_ISA chooses the instruction set */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../runtime/cpu/attention.h"
#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/philox.h"

enum { ROUNDS = 30, MAX_SEQUENCES = 32 };

typedef struct Setup {
    const char *what;
    int64_t sequences, length; /* 0: SST-2's distribution */
    int64_t heads, dim;
    bool cls_only;
    float dropout;
} Setup;

static const Setup setups[] = {
    {"base, SST-2", 32, 0, 12, 64, false, 0.0f},
    {"base, SST-2, dropout", 32, 0, 12, 64, false, 0.1f},
    {"base, SST-2, dropout, cls", 32, 0, 12, 64, true, 0.1f},
    {"MiniLM, SST-2, dropout", 32, 0, 12, 32, false, 0.1f},
    {"base, 4 x 128, dropout", 4, 128, 12, 64, false, 0.1f},
    {"base, 2 x 512", 2, 512, 12, 64, false, 0.0f},
    {"base, 2 x 512, dropout", 2, 512, 12, 64, false, 0.1f},
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!p) {
        fprintf(stderr, "bench_attention: out of memory: %zu bytes asked for\n", bytes);
        exit(1);
    }
    return p;
}

static float *random_floats(int64_t n) {
    float *p = allocate((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
    return p;
}

static void bench(const Setup *s, int threads) {
    int32_t offsets[MAX_SEQUENCES + 1] = {0}, samples[MAX_SEQUENCES];
    int64_t longest = 0;
    for (int64_t i = 0; i < s->sequences; i++) {
        double quantile = ((double)i + 0.5) / (double)s->sequences;
        int64_t len = s->length ? s->length : 3 + (int64_t)(37 * pow(quantile, 2.2));
        offsets[i + 1] = offsets[i] + (int32_t)len;
        samples[i] = (int32_t)i;
        if (len > longest) longest = len;
    }
    int64_t tokens = offsets[s->sequences], hidden = s->heads * s->dim;
    float *m[7];
    for (int i = 0; i < 7; i++) m[i] = random_floats(tokens * hidden);
    float *lse = random_floats(tokens * s->heads), *ctx = random_floats(tokens * hidden);
    void *workspace = allocate(attention_workspace_bytes(threads, longest, s->dim));
    Attention a = {.sequences = s->sequences, .heads = s->heads, .head_dim = s->dim};
    a.offsets = offsets;
    a.cls_only = s->cls_only;
    a.scale = 1.0f / sqrtf((float)s->dim);
    a.q = m[0], a.k = m[1], a.v = m[2];
    a.ldq = a.ldk = a.ldv = hidden;
    a.dropout = s->dropout;
    a.samples = samples;
    AttentionGrad g = {m[3], hidden, lse, m[4], m[5], m[6], hidden, hidden, hidden};
    double forward = 1e9, backward = 1e9;
    for (int r = 0; r < ROUNDS; r++) {
        double t0 = seconds();
        attention_forward(&a, ctx, hidden, lse, threads, workspace);
        double t1 = seconds();
        attention_backward(&a, &g, threads, workspace);
        double t2 = seconds();
        forward = fmin(forward, t1 - t0);
        backward = fmin(backward, t2 - t1);
    }
    printf("%-28s %5ld tokens  forward %7.3f ms  backward %7.3f ms\n", s->what, (long)tokens,
           1e3 * forward, 1e3 * backward);
    for (int i = 0; i < 7; i++) free(m[i]);
    free(lse);
    free(ctx);
    free(workspace);
}

static void bench_dropout(int64_t n) {
    enum { ROWS = 200 };
    float *keep = random_floats(n);
    double best = 1e9;
    uint32_t threshold = philox_threshold(0.1f);
    for (int r = 0; r < ROUNDS; r++) {
        double t = seconds();
        for (uint32_t i = 0; i < ROWS; i++) {
            PhiloxRow row = philox_row(42, 1, 2, 3, i);
            philox_keep_row(&row, 0, n, threshold, philox_scale(threshold), keep);
        }
        best = fmin(best, seconds() - t);
    }
    printf("dropout mask, rows of %-6ld %.3f ns an element\n", (long)n,
           1e9 * best / ROWS / (double)n);
    free(keep);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    PeftError err = {0};
    if (threads < 1 || !isa_init(&err)) {
        fprintf(stderr, "bench_attention: %s\n",
                err.msg[0] ? err.msg : "usage: bench_attention [threads]");
        return 2;
    }
    printf("%s, threads: %d\n", isa_name(isa_current()), threads);
    for (size_t i = 0; i < sizeof setups / sizeof *setups; i++) bench(&setups[i], threads);
    bench_dropout(64);
    bench_dropout(3072);
    return 0;
}
