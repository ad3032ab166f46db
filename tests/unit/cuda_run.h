/* A program on the emulated GPU: its kernels built behind cuda_emulator.h, a batch and variables in
 * an arena of its own, launches by the runtime's own code. What tests of whole functions share. */
#ifndef PEFT_CUDA_RUN_H
#define PEFT_CUDA_RUN_H

#include "cuda_program.h"

extern const char cuda_text[]; /* what every program's kernels are compiled behind */

enum { TOKENS = 9, SEQUENCES = 3, MASKED = 4, LONGEST = 4, VOCAB = 40 };

static uint32_t random_state;

static float uniform(void) { /* in [-1, 1) */
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / 8388608.0f - 1.0f;
}

/* ---- a program, and its kernels as C++ ---- */

static const char *const fixed_kernel[] = {"peft_attention", "peft_attention_grad",
                                           "peft_index",     "peft_segment_sum",
                                           "peft_transpose", "peft_nf4_dequant"};

static void write_source(const Program *p, const char *name, bool bf16) {
    char root[512];
    FILE *f = open_source(name, root);
    fprintf(f, "#include \"%s/tests/unit/cuda_emulator.h\"\nnamespace device {\n%s%s}\n%s", root,
            cuda_text, p->table.cuda_source, harness);
    for (size_t i = 0; i < sizeof fixed_kernel / sizeof *fixed_kernel; i++)
        print_entry(f, fixed_kernel[i]);
    for (int i = 0; i < p->ncode; i++)
        if (p->code[i].launched && (bf16 || !p->code[i].narrow)) print_entry(f, p->code[i].name);
    fputs(entry_points, f);
    assert_int_equal(fclose(f), 0);
}

static Built build(const char *path, const BaseField *base, bool skip_join, bool bf16) {
    static int count;
    Built b = {.bf16 = bf16};
    char name[64];
    make_tables(&b, path, base, skip_join);
    snprintf(name, sizeof name, "run%d", count++);
    write_source(b.p, name, bf16);
    load_object(&b, name);
    return b;
}

/* ---- launching ---- */

typedef struct Run { /* of a program, in its own arena */
    const Built *b;
    Exec x;
    CudaExec cuda;
    CudaApi api;
    PeftProgram table;                                       /* for tests that change it */
    int64_t sym[PEFT_SYM_COUNT], device_sym[PEFT_SYM_COUNT]; /* made up to whole steps; as it is */
    int order;
} Run;

static const Run *launching;
static int launched;        /* kernels */
static int launched_narrow; /* of them, with shared memory that was asked for */

static CUresult emulated_launch(const CUlaunchConfig *c, CUfunction f, void **param, void **extra) {
    assert_true(f && c->grid_z == 1 && c->block_y == 1 && c->block_z == 1 && !extra);
    assert_true(c->nattribute == 0);
    assert_in_range(c->shared_bytes, 0, launching->cuda.gpu.shared_bytes);
    const char *error =
        launching->b->emulate((void *)f, c->grid_x, c->grid_y, c->block_x, launching->order, param);
    if (*error) fail_msg("%s", error);
    launched++;
    launched_narrow += c->shared_bytes > 0;
    return CUDA_SUCCESS;
}

static CUfunction find(const Built *b, const char *name) {
    void *k = b->find(name);
    if (!k) fail_msg("%s is not in the source", name);
    return k;
}

static void find_kernels(Run *r) {
    const PeftProgram *p = &r->b->p->table;
    CUfunction *const fixed[] = {&r->cuda.attention,   &r->cuda.attention_grad, &r->cuda.index,
                                 &r->cuda.segment_sum, &r->cuda.transpose,      &r->cuda.dequant};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        *fixed[i] = find(r->b, fixed_kernel[i]);
    r->cuda.kernel = calloc((size_t)p->nkernel, sizeof(CUfunction));
    assert_non_null(r->cuda.kernel);
    for (int i = 0; i < p->nkernel; i++)
        if (cuda_has_kernel(&r->x, &p->kernel[i]))
            r->cuda.kernel[i] = find(r->b, p->kernel[i].name);
}

/* ---- state and batch ---- */

/* Quantised ones are the test's own. */
static void fill_vars(Run *r) {
    const PeftProgram *p = &r->b->p->table;
    random_state = 7;
    for (int i = 0; i < p->nvar; i++) {
        const PeftVar *v = &p->var[i];
        char *at = r->x.arena + r->x.plan.var_offset[i];
        int64_t n = var_count(v);
        bool narrow_v = r->b->bf16 && (v->dtype == DT_WORK || v->dtype == DT_MASTER);
        memset(at, 0, (size_t)var_bytes(&r->x, i));
        for (int64_t k = 0; k < n && !v->is_state && !peft_is_nf4(v->dtype); k++) {
            float x = 0.3f * uniform();
            if (narrow_v)
                ((uint16_t *)at)[k] = to_bf16(x); /* the rest of a master is 0 */
            else
                ((float *)at)[k] = x;
        }
    }
}

static void fill_int(Run *r, PeftInputId id, int n, const int32_t *value) {
    memcpy(exec_input(&r->x, id), value, (size_t)n * sizeof *value);
}

static void fill_float(Run *r, PeftInputId id, float value) {
    *(float *)exec_input(&r->x, id) = value;
}

static void fill_inputs(Run *r) {
    fill_int(r, PEFT_IN_tokens, TOKENS, (int[]){1, 7, 39, 2, 1, 2, 1, 7, 2});
    fill_int(r, PEFT_IN_token_types, TOKENS, (int[]){0, 0, 1, 1, 0, 0, 0, 0, 1});
    fill_int(r, PEFT_IN_positions, TOKENS, (int[]){0, 1, 2, 3, 0, 1, 0, 1, 2});
    fill_int(r, PEFT_IN_token_sample, TOKENS, (int[]){5, 5, 5, 5, 2, 2, 9, 9, 9});
    fill_int(r, PEFT_IN_offsets, SEQUENCES + 1, (int[]){0, 4, 6, 9});
    fill_int(r, PEFT_IN_first, SEQUENCES, (int[]){0, 4, 6});
    fill_int(r, PEFT_IN_seq_sample, SEQUENCES, (int[]){5, 2, 9});
    fill_int(r, PEFT_IN_labels, SEQUENCES, (int[]){1, 0, 1});
    fill_int(r, PEFT_IN_masked_positions, MASKED, (int[]){1, 2, 5, 7});
    fill_int(r, PEFT_IN_masked_ids, MASKED, (int[]){3, 30, 11, 8});
    fill_int(r, PEFT_IN_rng, 4, (int[]){11, 22, 3, 1});
    fill_float(r, PEFT_IN_sequences, SEQUENCES);
    fill_float(r, PEFT_IN_masked, MASKED);
    fill_float(r, PEFT_IN_lr, 0.01f);
    fill_float(r, PEFT_IN_warmup_steps, 0);
    fill_float(r, PEFT_IN_total_steps, 100);
    fill_float(r, PEFT_IN_weight_decay, 0.01f);
    fill_float(r, PEFT_IN_clip_norm, 1);
}

/* shared_bytes: that a block of the GPU may have. */
static void open_run(Run *r, const Built *b, int order, int shared_bytes) {
    PeftError err = {{0}, 0};
    int64_t sym[PEFT_SYM_COUNT] = {[PEFT_SYM_T] = TOKENS,
                                   [PEFT_SYM_S] = SEQUENCES,
                                   [PEFT_SYM_M] = MASKED,
                                   [PEFT_SYM_L] = LONGEST};
    memset(r, 0, sizeof *r);
    r->b = b;
    r->order = order;
    memcpy(r->device_sym, sym, sizeof sym);
    exec_device_symbols(DEVICE_CUDA, b->bf16 ? COMPUTE_BF16 : COMPUTE_FP32, 0, sym);
    memcpy(r->sym, sym, sizeof sym);
    if (!exec_open(&r->x, &b->p->table, (1u << PEFT_FN_COUNT) - 1, DEVICE_NULL, COMPUTE_FP32, 0,
                   sym, sym, 0, &err)) /* without threads: planned for a GPU */
        fail_msg("%s", err.msg);
    memset(r->x.arena, 0xff, (size_t)r->x.plan.peak); /* what is not written is NaN */
    fill_vars(r);
    fill_inputs(r);
    r->x.compute = b->bf16 ? COMPUTE_BF16 : COMPUTE_FP32;
    r->cuda.gpu.shared_bytes = shared_bytes;
    r->x.cuda = &r->cuda;
    find_kernels(r);
    r->api.cuLaunchKernelEx = emulated_launch;
    r->cuda.api = &r->api;
    r->cuda.arena = (CUdeviceptr)(uintptr_t)r->x.arena;
    r->cuda.sym = (CUdeviceptr)(uintptr_t)r->device_sym;
}

static void close_run(Run *r) {
    r->x.cuda = NULL;
    exec_close(&r->x);
    free(r->cuda.kernel);
}

#endif
