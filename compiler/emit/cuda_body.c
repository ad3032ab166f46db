/* Prints a kernel as CUDA C for runtime/cuda/kernel_cuda.h. The form follows from the body: a
 * thread for each element when nothing is reduced, a block for each row when something is, a block
 * for 32 columns of a column sum, parts of blocks for a whole sum. Invariant: every sum is added up
 * in an order that depends on sizes alone; a thread stores an element only after it has read
 * everything that lay there, row results only when the whole block has. */
#include "c_print.h"

enum {
    FLAT_BLOCK = 256, /* threads of a block that computes elements */
    WIDE_ROW = 4096,  /* rows from this width on get blocks of 512 threads */
    UNROLLED = 8      /* elements of a thread's row that stay in registers */
};

/* ---- the form ---- */

static bool reduces_rows(const KBody *b) {
    for (int v = 0; v < b->n; v++)
        if (is_reduction(&b->instr[v])) return true;
    return false;
}

/* A result that is one value of a row of several columns. */
static bool has_row_result(const Kernel *k) {
    for (int i = 0; i < k->nout && k->body->cols > 1; i++)
        if (k->out_val[i] >= 0 && !stored_in_loop(k, i)) return true;
    return false;
}

static int32_t row_block(int64_t cols) {
    if (cols >= WIDE_ROW) return 512;
    return cols >= 256 ? 256 : (int32_t)((cols + 31) / 32 * 32);
}

PeftLaunch cuda_launch(const Kernel *k, int32_t *block) {
    *block = FLAT_BLOCK;
    if (k->kind == PEFT_KERNEL_COLUMN_SUM) {
        *block = PEFT_SUM_COLUMNS * PEFT_SUM_COLUMNS;
        return PEFT_LAUNCH_COLUMNS;
    }
    bool rows = reduces_rows(k->body);
    if (k->kind != PEFT_KERNEL_FULL_SUM) rows = rows || has_row_result(k);
    if (rows) *block = row_block(k->body->cols);
    if (k->kind == PEFT_KERNEL_FULL_SUM) return PEFT_LAUNCH_SUM;
    return rows ? PEFT_LAUNCH_ROWS : PEFT_LAUNCH_ELEMENTS;
}

/* ---- elements ---- */

/* The values that loop `at` computes, those read twice by name. */
static void name_elements(CPrinter *p, int at) {
    p->loop = at;
    loop_uses(p->kernel, &p->loops, at);
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.uses[v]) c_name(p, v, p->loops.uses[v] > 1);
}

static void print_elements(CPrinter *p) {
    long long cols = (long long)p->body->cols;
    c_line(p, "const int64_t count = peft_dim(rows, sym) * %lld;", cols);
    c_line(p, "const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;");
    c_open(p, "for (int64_t e = at; e < count; e += (int64_t)gridDim.x * blockDim.x)");
    if (cols == 1)
        c_line(p, "const int64_t r = e, c = 0;");
    else
        c_line(p, "const int64_t r = e / %lld, c = e %% %lld;", cols, cols);
    c_line(p, "(void)r, (void)c;");
    c_scalars(p, LEVEL_ROW, 0);
    if (p->loops.n) name_elements(p, 0);
    if (p->kernel->kind == PEFT_KERNEL_FULL_SUM) {
        c_line(p, "total += (double)%s;", c_value(p, p->kernel->out_val[0]));
    } else {
        c_stores(p, true);
        c_stores(p, false);
    }
    c_close(p);
}

/* ---- rows ---- */

static int64_t per_thread(const CPrinter *p) {
    int64_t block = row_block(p->body->cols);
    return (p->body->cols + block - 1) / block;
}

static bool ends_in_loop(const CPrinter *p, KVal v) {
    return is_reduction(&p->body->instr[v]) && p->loops.phase[v] == p->loop + 1;
}

/* A thread's share of a reduction, before and in the loop, and what the block makes of it. */
static void start_reductions(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++)
        if (ends_in_loop(p, v))
            c_line(p, "float s%d = %s;", v, p->body->instr[v].op == K_ROW_SUM ? "0.0f" : "-PK_INF");
}

static void add_to_reductions(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (!ends_in_loop(p, v)) continue;
        if (in->op == K_ROW_SUM)
            c_line(p, "s%d += %s;", v, c_value(p, in->a));
        else
            c_line(p, "s%d = pk_max(s%d, %s);", v, v, c_value(p, in->a));
    }
}

static void finish_reductions(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        if (!ends_in_loop(p, v)) continue;
        c_line(p, "const float v%d = %s(s%d);", v,
               p->body->instr[v].op == K_ROW_SUM ? "block_sum" : "block_max", v);
        p->named[v] = true;
    }
}

static void print_row_loop(CPrinter *p) {
    const Kernel *k = p->kernel;
    long long cols = (long long)p->body->cols, n = per_thread(p);
    bool last = p->loop == p->loops.n - 1;
    start_reductions(p);
    if (n <= UNROLLED) c_line(p, "#pragma unroll");
    c_open(p, graph_printf(p->g, "for (int i = 0; i < %lld; i++)", n));
    c_line(p, "const int64_t c = threadIdx.x + i * %d;", row_block(p->body->cols));
    if (cols % row_block(p->body->cols)) c_line(p, "if (c >= %lld) break;", cols);
    bool *outside = c_begin_scope(p);
    name_elements(p, p->loop);
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.kept[v] && p->loops.phase[v] == p->loop)
            c_line(p, "w%d[i] = %s;", v, c_value(p, v));
    add_to_reductions(p);
    if (last && k->kind == PEFT_KERNEL_FULL_SUM)
        c_line(p, "total += (double)%s;", c_value(p, k->out_val[0]));
    else if (last)
        c_stores(p, true);
    p->named = outside;
    c_close(p);
    finish_reductions(p);
}

static void store_row_results(CPrinter *p) {
    if (!has_row_result(p->kernel)) return;
    for (int v = 0; v < p->body->n; v++) /* read by the whole block before one thread stores */
        if (p->body->instr[v].level == LEVEL_ROW && p->loops.phase[v] == p->loops.n)
            c_name(p, v, c_is_shared(p, v));
    c_line(p, "__syncthreads();");
    c_open(p, "if (threadIdx.x == 0)");
    bool *outside = c_begin_scope(p);
    c_stores(p, false);
    p->named = outside;
    c_close(p);
    c_line(p, "__syncthreads();");
}

static void print_rows(CPrinter *p) {
    c_line(p, "const int64_t count = peft_dim(rows, sym);");
    c_open(p, "for (int64_t r = blockIdx.x; r < count; r += gridDim.x)");
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.kept[v]) c_line(p, "float w%d[%lld];", v, (long long)per_thread(p));
    c_scalars(p, LEVEL_ROW, 0);
    for (p->loop = 0; p->loop < p->loops.n; p->loop++) {
        print_row_loop(p);
        c_scalars(p, LEVEL_ROW, p->loop + 1);
    }
    if (!is_sum_kernel(p->kernel)) store_row_results(p);
    c_close(p);
}

/* ---- sums ---- */

/* Thread (x, y) adds rows y, y + 32, ... of column x; the 32 parts are then added in order. */
static void print_column_sum(CPrinter *p) {
    const Kernel *k = p->kernel;
    c_line(p, "const int x = threadIdx.x %% %d, y = threadIdx.x / %d;", PEFT_SUM_COLUMNS,
           PEFT_SUM_COLUMNS);
    c_line(p, "const int64_t count = peft_dim(rows, sym), c = (int64_t)blockIdx.x * %d + x;",
           PEFT_SUM_COLUMNS);
    for (int i = 0; i < k->nout; i++) c_line(p, "float t%d = 0.0f;", i);
    c_open(p, graph_printf(p->g, "for (int64_t r = y; c < %lld && r < count; r += %d)",
                           (long long)p->body->cols, PEFT_SUM_COLUMNS));
    c_scalars(p, LEVEL_ROW, 0);
    name_elements(p, 0);
    for (int i = 0; i < k->nout; i++) c_line(p, "t%d += %s;", i, c_value(p, k->out_val[i]));
    c_close(p);
    for (int i = 0; i < k->nout; i++) {
        c_line(p, "t%d = column_sum(t%d, x, y);", i, i);
        c_open(p, graph_printf(p->g, "if (y == 0 && c < %lld)", (long long)p->body->cols));
        c_store(p, i, "c", graph_printf(p->g, "t%d", i));
        c_close(p);
    }
}

static void print_full_sum(CPrinter *p) {
    const Kernel *k = p->kernel;
    KVal v = k->out_val[0];
    c_line(p, "double total = 0.0;");
    if (reduces_rows(p->body)) {
        print_rows(p);
    } else if (p->body->instr[v].level == LEVEL_ELEMENT) {
        print_elements(p);
    } else {
        c_line(p, "const int64_t count = peft_dim(rows, sym);");
        c_line(p, "const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;");
        c_open(p, "for (int64_t r = at; r < count; r += (int64_t)gridDim.x * blockDim.x)");
        c_scalars(p, LEVEL_ROW, 0);
        c_line(p, "total += %lld * (double)%s;", (long long)p->body->cols, c_atom(p, v));
        c_close(p);
    }
    c_line(p, "grid_sum(total, a%d, &%s_sum[blockIdx.y]);", arg_written(k, &p->args, 0),
           p->code->name);
}

/* ---- functions ---- */

static const char *pointer_type(const CPrinter *p, int arg, const bool *written) {
    Type t = p->args.node[arg]->type;
    uint8_t storage = p->code->storage[arg];
    bool matrix = storage == DT_WORK || storage == DT_MASTER;
    const char *type = c_is_nf4(t) ? "void" : t.dt == DT_I32 ? "int" : matrix ? "work" : "float";
    return graph_printf(p->g, "%s%s *", written[arg] ? "" : "const ", type);
}

static char pointer_name(const CPrinter *p, int arg) {
    return c_is_nf4(p->args.node[arg]->type) ? 'p' : 'a';
}

/* Every argument is a parameter, also those that this code does not touch: the runtime passes a
 * step's buffers as they are. Kernels that serve several steps at once get all of theirs. */
static void print_parameters(CPrinter *p, const bool *written) {
    int sites = 0;
    for (int v = 0; v < p->body->n; v++) sites += p->body->instr[v].op == K_KEEP;
    if (p->code->group) fprintf(p->out, "const PkGroup<%d> group, ", p->args.n);
    for (int i = 0; !p->code->group && i < p->args.n; i++)
        fprintf(p->out, "%s%c%d, ", pointer_type(p, i, written), pointer_name(p, i), i);
    fprintf(p->out, "const int64_t *sym, int64_t rows");
    for (int i = 0; i < sites; i++) fprintf(p->out, ", int site%d", i);
}

static void open_group(CPrinter *p, const bool *written) {
    for (int i = 0; p->code->group && i < p->args.n; i++) {
        const char *type = pointer_type(p, i, written);
        c_line(p, "%sconst %c%d = (%s)group.arg[blockIdx.y][%d];", type, pointer_name(p, i), i,
               type, i);
    }
}

static void open_views(CPrinter *p) {
    for (int i = 0; i < p->args.n; i++) {
        Type t = p->args.node[i]->type;
        if (!c_is_nf4(t) || (p->kernel->anchor && i < p->kernel->anchor->nin)) continue;
        c_line(p, "const Nf4View a%d = nf4_view(p%d, %lld, %s);", i, i, (long long)type_count(t),
               t.dt == DT_NF4 ? "true" : "false");
    }
}

void emit_kernel_cuda(FILE *out, Graph *g, const Code *code) {
    const Kernel *k = code->kernel;
    int32_t block;
    PeftLaunch launch = cuda_launch(k, &block);
    CPrinter p = {.out = out, .g = g, .code = code, .kernel = k, .body = k->body, .indent = 1};
    p.cuda = true;
    p.args = kernel_args(g, k);
    p.loops = find_loops(g, k);
    p.named = graph_alloc(g, (size_t)k->body->n + 1);
    bool *written = graph_alloc(g, (size_t)p.args.n + 1);
    for (int i = 0; i < k->nout; i++) written[arg_written(k, &p.args, i)] = true;
    if (launch == PEFT_LAUNCH_SUM)
        fprintf(out, "static __device__ GridSum %s_sum[%s];\n\n", code->name,
                code->group ? "PEFT_GROUP" : "1");
    c_comment(&p);
    fprintf(out, "extern \"C\" __global__ void __launch_bounds__(%d)\n%s(", block, code->name);
    print_parameters(&p, written);
    fputs(") {\n", out);
    open_group(&p, written);
    open_views(&p);
    c_scalars(&p, LEVEL_UNIFORM, 0);
    switch (launch) {
    case PEFT_LAUNCH_COLUMNS: print_column_sum(&p); break;
    case PEFT_LAUNCH_SUM: print_full_sum(&p); break;
    case PEFT_LAUNCH_ROWS: print_rows(&p); break;
    default: print_elements(&p);
    }
    fputs("}\n\n", out);
}
