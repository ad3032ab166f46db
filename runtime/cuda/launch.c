/* Launches the steps of a program: generated kernels, attention.cu, templates.cu, matrix products.
 * A kernel's grid covers the batch's true size; what it computes does not depend on the grid, but
 * for whole sums, whose parts follow from the sizes alone. */
#include "internal.h"

#include "batched.h"

enum {
    MAX_PARAMS = 500,    /* 4 KB of pointers: what every driver takes */
    MOST_GRID_Y = 65535, /* blocks */
    ATTENTION_BLOCK = 128,
    FLAT_BLOCK = 256,
    SUM_VALUES = 8, /* of a thread, at least */
    DEQUANT_BLOCK = 128,
    DEQUANT_VALUES = 64, /* of a thread */
    VECTOR_BYTES = 16,
    NARROW_MOST = 1024 /* rows: each 16 compute their middle once for every part of the columns */
};

typedef struct Launch { /* parameters of one kernel */
    void *param[MAX_PARAMS];
    CUdeviceptr pointer[MAX_PARAMS];
    int n, npointer;
} Launch;

static void pass(Launch *l, void *value) {
    l->param[l->n++] = value;
}

static void pass_buffers(Launch *l, const Exec *x, void *const *arg, int n) {
    for (int i = 0; i < n; i++) {
        l->pointer[l->npointer] = cuda_address(x, arg[i]);
        pass(l, &l->pointer[l->npointer++]);
    }
}

/* Where the GPU can, a kernel is set up while the one before it on the stream still runs; all begin
 * with pk_begin, which waits for that one's end. */
static CUresult put(const Exec *x, CUfunction f, Launch *l, int64_t grid, int64_t grid_y, int block,
                    int shared) {
    const CudaExec *d = x->cuda;
    CUlaunchAttribute overlap = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                                 .value.programmatic = 1};
    CUlaunchConfig config = {.grid_x = (unsigned)grid,
                             .grid_y = (unsigned)grid_y,
                             .grid_z = 1,
                             .block_x = (unsigned)block,
                             .block_y = 1,
                             .block_z = 1,
                             .shared_bytes = (unsigned)shared,
                             .stream = d->current,
                             .attribute = &overlap,
                             .nattribute = d->overlap};
    return d->api->cuLaunchKernelEx(&config, f, l->param, NULL);
}

static bool launch3(const Exec *x, CUfunction f, Launch *l, int64_t grid, int64_t grid_y, int block,
                    int shared, PeftError *err) {
    if (grid < 1 || grid_y < 1) return true;
    return cuda_ok(put(x, f, l, grid, grid_y, block, shared), "launch a kernel", err);
}

static bool launch2(const Exec *x, CUfunction f, Launch *l, int64_t grid, int64_t grid_y, int block,
                    PeftError *err) {
    return launch3(x, f, l, grid, grid_y, block, 0, err);
}

static bool launch(const Exec *x, CUfunction f, Launch *l, int64_t grid, int block,
                   PeftError *err) {
    return launch2(x, f, l, grid, 1, block, err);
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t grid_of(const PeftKernel *k, int64_t rows, int64_t cols) {
    int64_t parts = ceil_div(rows * cols, SUM_VALUES * (int64_t)k->block);
    switch (k->launch) {
    case PEFT_LAUNCH_ROWS: return rows;
    case PEFT_LAUNCH_COLUMNS: return ceil_div(cols, PEFT_SUM_COLUMNS);
    case PEFT_LAUNCH_SUM: return parts < 1 ? 1 : parts < PEFT_SUM_BLOCKS ? parts : PEFT_SUM_BLOCKS;
    default: return ceil_div(rows * cols, (int64_t)k->block * k->vector);
    }
}

/* The arguments of several steps: PkGroup of kernel_cuda.h. */
typedef struct Group {
    CUdeviceptr at[MAX_PARAMS];
} Group;

static void pass_group(Launch *l, Group *group, const Exec *x, const PeftStep *s,
                       void *const *const *arg, int n) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < s->narg; k++) group->at[i * s->narg + k] = cuda_address(x, arg[i][k]);
    pass(l, group);
}

/* What the epilogue that the step's kernel computes takes of the product's step; the arguments of a
 * function's steps follow each other. */
static void pass_epilogue(Launch *l, const Exec *x, const PeftStep *s, void *const *arg, int back) {
    for (int i = 1; i <= back; i++) arg -= s[-i].narg;
    pass_buffers(l, x, arg + PEFT_GEMM_C, s[-back].narg - PEFT_GEMM_C);
}

/* Generated code: the buffers of n steps, the symbols, the rows of their space, dropout sites. */
static bool run_generated(const Exec *x, const PeftStep *s, void *const *const *arg, int n,
                          const int64_t *sym, PeftError *err) {
    const PeftJoin *join = peft_join(x->program, s);
    int32_t at = join ? join->kernel : s->kernel;
    const PeftKernel *k = &x->program->kernel[at];
    Launch l = {.n = 0};
    Group group;
    int64_t rows = s->rows;
    int params = k->group ? PEFT_GROUP * s->narg : s->narg + (join ? s[-join->back].narg : 0);
    if (params + 2 + k->nsite > MAX_PARAMS)
        return peft_fail(err, "%s has more than %d parameters", k->name, MAX_PARAMS);
    if (join) pass_epilogue(&l, x, s, *arg, join->back);
    if (k->group)
        pass_group(&l, &group, x, s, arg, n);
    else
        pass_buffers(&l, x, *arg, s->narg);
    pass(&l, &x->cuda->sym);
    pass(&l, &rows);
    for (int i = 0; i < k->nsite; i++) pass(&l, (void *)&k->site[i]);
    return launch2(x, x->cuda->kernel[at], &l, grid_of(k, peft_dim(rows, sym), s->cols), n,
                   k->block, err);
}

static CudaMatmul product_of(const Exec *x, const PeftStep *s, void *const *arg, void *workspace,
                             const int64_t *sym) {
    const PeftGemm *g = s->desc;
    bool bf16 = x->compute == COMPUTE_BF16;
    CudaMatmul product = {.m = peft_dim(g->m, sym),
                          .n = peft_dim(g->n, sym),
                          .k = peft_dim(g->k, sym),
                          .trans_a = g->trans_a,
                          .trans_b = g->trans_b,
                          .in = bf16 ? CUDA_GEMM_BF16 : CUDA_GEMM_F32,
                          .out = bf16 && g->c_dtype == DT_WORK ? CUDA_GEMM_BF16 : CUDA_GEMM_F32,
                          .a = cuda_address(x, arg[0]),
                          .b = cuda_address(x, arg[1]),
                          .c = cuda_address(x, arg[2]),
                          .workspace = cuda_address(x, workspace),
                          .workspace_bytes = (size_t)cuda_library_workspace(g)};
    if (g->plain) product.scale = (float)g->scale;
    if (g->plain && g->addend >= 0) product.addend = cuda_address(x, arg[g->addend]);
    if (g->plain && g->bias >= 0) product.bias = cuda_address(x, arg[g->bias]);
    if (peft_is_nf4(g->b_dtype)) /* dequantised, behind the library's part of the workspace */
        product.b = product.workspace + product.workspace_bytes;
    return product;
}

CudaMatmul cuda_product(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT]) {
    CudaMatmul p = product_of(x, m->step, m->arg[0], m->workspace[0], sym);
    if (m->n == 1) return p;
    CudaMatmul next = product_of(x, m->step, m->arg[1], m->workspace[1], sym);
    int64_t in = p.in == CUDA_GEMM_F32 ? 4 : 2, out = p.out == CUDA_GEMM_F32 ? 4 : 2;
    p.batch = m->n;
    p.stride_a = (int64_t)(next.a - p.a) / in;
    p.stride_b = (int64_t)(next.b - p.b) / in;
    p.stride_c = (int64_t)(next.c - p.c) / out;
    p.stride_addend = (int64_t)(next.addend - p.addend) / out;
    p.stride_bias = (int64_t)(next.bias - p.bias) / out;
    return p;
}

bool cuda_prepare(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT],
                  PeftError *err) {
    const PeftGemm *g = m->step->desc;
    Launch l = {.n = 0};
    Group group;
    int64_t count = peft_dim(g->n, sym) * peft_dim(g->k, sym);
    int double_quant = g->b_dtype == DT_NF4;
    for (int i = 0; i < m->n; i++) {
        group.at[2 * i] = cuda_address(x, m->arg[i][1]);
        group.at[2 * i + 1] = product_of(x, m->step, m->arg[i], m->workspace[i], sym).b;
    }
    pass(&l, &group);
    pass(&l, &count);
    pass(&l, &double_quant);
    return launch2(x, x->cuda->dequant, &l, ceil_div(count, DEQUANT_VALUES * DEQUANT_BLOCK), m->n,
                   DEQUANT_BLOCK, err);
}

/* ---- two products through a narrow middle ---- */

bool cuda_is_narrow(const Exec *x, const PeftStep *s, const int64_t sym[PEFT_SYM_COUNT]) {
    const PeftGemm *g = s->desc;
    return g->ahead && x->cuda->kernel[g->narrow] && peft_dim(g->m, sym) <= NARROW_MOST;
}

/* The arguments of the step that is so many ahead: those of a function's steps follow each other.
 */
static void *const *args_ahead(const PeftStep *s, void *const *arg, int ahead) {
    for (int i = 0; i < ahead; i++) arg += s[i].narg;
    return arg;
}

/* What the kernel of two products takes of the second one's arguments. */
static void pass_second(Launch *l, const Exec *x, const PeftStep *second, void *const *arg) {
    const PeftGemm *g = second->desc;
    void *const product[] = {arg[1], arg[PEFT_GEMM_C], g->addend >= 0 ? arg[g->addend] : NULL,
                             g->bias >= 0 ? arg[g->bias] : NULL};
    if (g->finished)
        pass_buffers(l, x, arg + 1, second->narg - 1);
    else
        pass_buffers(l, x, product, 4);
}

/* The first product with its epilogue and the second one, finished or not, in one kernel. */
static bool run_narrow(const Exec *x, const PeftStep *s, void *const *arg, const int64_t *sym,
                       PeftError *err) {
    const PeftGemm *first = s->desc;
    const PeftStep *second = s + first->ahead;
    const PeftKernel *k = &x->program->kernel[first->narrow];
    int64_t rows = s->rows;
    int launched = (int)peft_dim(rows, sym);
    Launch l = {.n = 0};
    if (s->narg + second->narg + 7 + k->nsite > MAX_PARAMS)
        return peft_fail(err, "%s has more than %d parameters", k->name, MAX_PARAMS);
    pass_buffers(&l, x, arg, s->narg);
    pass_second(&l, x, second, args_ahead(s, arg, first->ahead));
    pass(&l, &launched);
    pass(&l, &x->cuda->sym);
    pass(&l, &rows);
    for (int i = 0; i < k->nsite; i++) pass(&l, (void *)&k->site[i]);
    return launch3(x, x->cuda->kernel[first->narrow], &l, ceil_div(launched, PEFT_NARROW_ROWS),
                   k->parts, k->block, k->shared, err);
}

/* The library's, behind the first one's epilogue and with its workspace, then its own epilogue when
 * that is finished here. */
static bool run_second(const Exec *x, const CudaMembers *m, const int64_t *sym, PeftError *err) {
    int ahead = ((const PeftGemm *)m->step->desc)->ahead;
    const PeftStep *second = m->step + ahead;
    void *const *arg = args_ahead(m->step, m->arg[0], ahead);
    CudaMatmul product = product_of(x, second, arg, m->workspace[0], sym);
    return cuda_gemm_run(x->cuda->gemm, &product, x->cuda->current, err) &&
           (!((const PeftGemm *)second->desc)->finished ||
            run_generated(x, second, &arg, 1, sym, err));
}

/* The product, or a batch, then what is fused behind it as a kernel over its elements or rows. */
static bool run_gemm(const Exec *x, const CudaMembers *m, const int64_t *sym, PeftError *err) {
    const PeftGemm *g = m->step->desc;
    if (cuda_is_narrow(x, m->step, sym)) return run_narrow(x, m->step, m->arg[0], sym, err);
    if (m->part != ORDER_EPILOGUE && !g->back) {
        CudaMatmul product = cuda_product(x, m, sym);
        if (!cuda_gemm_run(x->cuda->gemm, &product, x->cuda->current, err)) return false;
    }
    if (m->part == ORDER_PRODUCTS) return true;
    if (batch_leaves_epilogue(g) && !run_generated(x, m->step, m->arg, 1, sym, err)) return false;
    return !g->ahead || run_second(x, m, sym, err);
}

static bool run_attention(const Exec *x, const PeftStep *s, void *const *arg, const int64_t *sym,
                          PeftError *err) {
    const PeftAttention *a = s->desc;
    bool grad = x->program->kernel[s->kernel].kind == PEFT_KERNEL_ATTENTION_GRAD;
    Launch l = {.n = 0};
    int dim = (int)(a->width / a->heads), site = a->site;
    int64_t width = a->width, rows = a->rows;
    float scale = (float)a->scale, p = (float)a->p;
    pass_buffers(&l, x, arg, s->narg);
    pass(&l, &x->cuda->sym);
    pass(&l, &dim);
    pass(&l, &width);
    pass(&l, &rows);
    pass(&l, &scale);
    pass(&l, &p);
    pass(&l, &site);
    return launch2(x, grad ? x->cuda->attention_grad : x->cuda->attention, &l, sym[PEFT_SYM_S],
                   a->heads, ATTENTION_BLOCK, err);
}

static bool run_indexed(const Exec *x, const PeftStep *s, void *const *arg, const int64_t *sym,
                        PeftError *err) {
    const PeftIndex *i = s->desc;
    CudaExec *d = x->cuda;
    Launch l = {.n = 0};
    int64_t n = i->n, rows = i->rows, cols = peft_dim(i->cols, sym);
    int64_t sums = peft_dim(n, sym); /* blocks go on to other rows where there are more */
    if (sums > MOST_GRID_Y) sums = MOST_GRID_Y;
    pass_buffers(&l, x, arg, s->narg);
    pass(&l, &d->sym);
    switch (x->program->kernel[s->kernel].kind) {
    case PEFT_KERNEL_INDEX:
        pass(&l, &n);
        pass(&l, &rows);
        return launch(x, d->index, &l, 1 + peft_dim(n, sym) / FLAT_BLOCK, FLAT_BLOCK, err);
    case PEFT_KERNEL_SEGMENT_SUM:
        pass(&l, &n);
        pass(&l, &cols);
        return launch2(x, d->segment_sum, &l, ceil_div(cols, 32), sums, FLAT_BLOCK, err);
    default:
        pass(&l, &rows);
        pass(&l, &cols);
        return launch(x, d->transpose, &l, ceil_div(peft_dim(rows, sym), 32) * ceil_div(cols, 32),
                      FLAT_BLOCK, err);
    }
}

bool cuda_receive(const Exec *x, const void *inputs, CUdeviceptr to, size_t bytes,
                  const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    CudaExec *d = x->cuda;
    Launch l = {.n = 0};
    int64_t vectors = (int64_t)(bytes / VECTOR_BYTES);
    int symbols = PEFT_SYM_COUNT;
    d->current = d->stream;
    pass(&l, &inputs);
    pass(&l, &to);
    pass(&l, &vectors);
    pass(&l, &sym);
    pass(&l, &d->sym);
    pass(&l, &symbols);
    return cuda_function_ended(put(x, d->receive, &l, 1 + vectors / FLAT_BLOCK, 1, FLAT_BLOCK, 0),
                               err);
}

bool cuda_send(const Exec *x, PeftFn fn, float scalar[EXEC_SCALARS], PeftError *err) {
    CudaExec *d = x->cuda;
    Launch l = {.n = 0};
    d->current = d->stream;
    pass_buffers(&l, x, (void *const *)x->scalar[fn], EXEC_SCALARS);
    pass(&l, &scalar);
    return cuda_function_ended(put(x, d->send, &l, 1, 1, 32, 0), err);
}

bool cuda_step(const Exec *x, const CudaMembers *m, const int64_t sym[PEFT_SYM_COUNT],
               PeftError *err) {
    const PeftStep *s = m->step;
    switch (x->program->kernel[s->kernel].kind) {
    case PEFT_KERNEL_MAP:
    case PEFT_KERNEL_COLUMN_SUM:
    case PEFT_KERNEL_FULL_SUM: return run_generated(x, s, m->arg, m->n, sym, err);
    case PEFT_KERNEL_GEMM: return run_gemm(x, m, sym, err);
    case PEFT_KERNEL_ATTENTION:
    case PEFT_KERNEL_ATTENTION_GRAD: return run_attention(x, s, m->arg[0], sym, err);
    default: return run_indexed(x, s, m->arg[0], sym, err);
    }
}
