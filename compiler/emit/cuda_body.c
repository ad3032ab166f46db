/* Prints a kernel as CUDA C for runtime/cuda/kernel_cuda.h. The form follows from the body: a
 * thread for each element when nothing is reduced, a block for each row when something is, a block
 * for 32 columns of a column sum, parts of blocks for a whole sum. Invariant: every sum is added up
 * in an order that depends on sizes alone; a thread stores an element only after it has read
 * everything that lay there, row results only when the whole block has: a row's vectors and single
 * values are read before its first barrier. A block takes the row of its number and finds out late
 * whether the batch has it: what it reads is memory in any case but where an index leads.
 * A code of two (CodeJoin) has the arguments of the epilogue behind the product's operands, then
 * those of the rows, numbered behind them; so with dropout sites. One of two products
 * (CodeNarrow) is cuda_narrow.c's. */
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

/* Threads for the vectors, or elements, of a row. */
static int32_t row_block(const Code *code) {
    int64_t n = code->kernel->body->cols / code->vector;
    if (n >= WIDE_ROW) return 512;
    return n >= 256 ? 256 : (int32_t)((n + 31) / 32 * 32);
}

PeftLaunch cuda_launch(const Kernel *k) {
    if (k->kind == PEFT_KERNEL_COLUMN_SUM) return PEFT_LAUNCH_COLUMNS;
    if (k->kind == PEFT_KERNEL_FULL_SUM) return PEFT_LAUNCH_SUM;
    return reduces_rows(k->body) || has_row_result(k) ? PEFT_LAUNCH_ROWS : PEFT_LAUNCH_ELEMENTS;
}

int32_t cuda_block(const Code *code) {
    switch (cuda_launch(code->kernel)) {
    case PEFT_LAUNCH_COLUMNS: return PEFT_SUM_COLUMNS * PEFT_SUM_COLUMNS;
    case PEFT_LAUNCH_SUM: return reduces_rows(code->kernel->body) ? row_block(code) : FLAT_BLOCK;
    case PEFT_LAUNCH_ROWS: return row_block(code);
    default: return FLAT_BLOCK;
    }
}

/* ---- elements ---- */

/* The values that loop `at` computes, those read twice by name. */
void cuda_name_elements(CPrinter *p, int at) {
    p->loop = at;
    loop_uses(p->kernel, &p->loops, at);
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.uses[v]) c_name(p, v, p->loops.uses[v] > 1);
}

/* What the batch does not have of a result is zero; `at` is its place. */
static void print_zeros(CPrinter *p, Access access, const char *at) {
    const Kernel *k = p->kernel;
    for (int i = 0; i < k->nout; i++)
        if (k->out_val[i] >= 0 && access_of(p->body, k->out[i]->type) == access)
            c_store(p, i, at, "0.0f");
}

/* Whether a launch covers rows that the batch need not have, see peft_rows of kernel_cuda.h. */
bool cuda_has_padding(const Kernel *k) {
    return !is_sum_kernel(k) && is_padded_dim(k->body->rows);
}

/* e counts elements, or vectors of them. */
static void open_elements(CPrinter *p) {
    long long cols = (long long)p->body->cols, vector = p->code->vector, across = cols / vector;
    bool padding = cuda_has_padding(p->kernel);
    const char *type = vector > 1 ? "uint32_t" : "int64_t", *column = vector > 1 ? "c0" : "c";
    c_line(p, "const %s count = (%s)peft_dim(rows, sym) * %lld;", type, type, across);
    if (padding) c_line(p, "const %s end = (%s)peft_rows(rows, sym) * %lld;", type, type, across);
    c_line(p, "const %s step = (%s)gridDim.x * blockDim.x;", type, type);
    c_line(p, "%s e = (%s)blockIdx.x * blockDim.x + threadIdx.x;", type, type);
    c_open(p, graph_printf(p->g, "for (; e < %s; e += step)", padding ? "end" : "count"));
    if (cols == 1)
        c_line(p, "const int64_t r = e, c = 0;");
    else
        c_line(p, "const int64_t r = e / %lld, %s = %lld * (int64_t)(e %% %lld);", across, column,
               vector, across);
    c_line(p, "(void)r, (void)%s;", column);
}

static void print_zero_elements(CPrinter *p) {
    c_open(p, "if (e >= count)");
    if (p->code->vector > 1) {
        c_open(p, graph_printf(p->g, "for (int64_t c = c0; c < c0 + %d; c++)", CUDA_VECTOR));
        print_zeros(p, ACCESS_ELEMENT, c_index(p, ACCESS_ELEMENT));
        c_close(p);
    } else {
        print_zeros(p, p->body->cols == 1 ? ACCESS_ROW : ACCESS_ELEMENT, "e");
    }
    c_line(p, "continue;");
    c_close(p);
}

static void print_elements(CPrinter *p) {
    bool vector = p->code->vector > 1;
    open_elements(p);
    if (cuda_has_padding(p->kernel)) print_zero_elements(p);
    c_scalars(p, LEVEL_ROW, 0);
    p->loop = 0;
    if (vector) cuda_open_vector(p);
    if (p->loops.n) cuda_name_elements(p, 0);
    if (p->kernel->kind == PEFT_KERNEL_FULL_SUM) {
        c_line(p, "total += (double)%s;", c_value(p, p->kernel->out_val[0]));
    } else {
        c_stores(p, true);
        c_stores(p, false);
    }
    if (vector) cuda_close_vector(p);
    c_close(p);
}

/* ---- rows ---- */

/* Elements of a row in one thread. p: of a row's code, or of the epilogue before it. */
static int64_t per_thread(const CPrinter *p) {
    int64_t share = (int64_t)row_block(p->code) * p->code->vector;
    return (p->body->cols + share - 1) / share * p->code->vector;
}

static bool has_one_vector(const CPrinter *p) {
    return p->code->vector > 1 && per_thread(p) == p->code->vector;
}

static bool ends_in_loop(const CPrinter *p, KVal v) {
    return is_reduction(&p->body->instr[v]) && p->loops.phase[v] == p->loop + 1;
}

static const char *sum_or_max(const CPrinter *p, KVal v) {
    return p->body->instr[v].op == K_ROW_SUM ? "sum" : "max";
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

/* A block that goes on to other rows: one reduction after the other. */
static void finish_apart(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++)
        if (ends_in_loop(p, v))
            c_line(p, "const float v%d = block_%s(s%d);", v, sum_or_max(p, v), v);
}

/* Warps leave their parts in memory of this reduction alone: all of a loop share one barrier. */
static void finish_together(CPrinter *p) {
    int warps = row_block(p->code) / 32, ended = 0;
    for (int v = 0; v < p->body->n; v++) {
        if (!ends_in_loop(p, v)) continue;
        ended++;
        if (warps == 1) {
            c_line(p, "const float v%d = warp_%s(s%d);", v, sum_or_max(p, v), v);
            continue;
        }
        c_line(p, "__shared__ float part%d[%d];", v, warps);
        c_line(p, "pk_put_part(part%d, warp_%s(s%d));", v, sum_or_max(p, v), v);
    }
    if (!ended || warps == 1) return;
    c_line(p, "__syncthreads();");
    for (int v = 0; v < p->body->n; v++)
        if (ends_in_loop(p, v))
            c_line(p, "const float v%d = pk_%s_parts<%d>(part%d);", v, sum_or_max(p, v), warps, v);
}

static void finish_reductions(CPrinter *p) {
    if (is_sum_kernel(p->kernel))
        finish_apart(p);
    else
        finish_together(p);
    for (int v = 0; v < p->body->n; v++)
        if (ends_in_loop(p, v)) p->named[v] = true;
}

/* Columns of the row from c0 on, a thread's only ones. */
static void open_vector(CPrinter *p) {
    if (p->body->cols / p->code->vector % row_block(p->code)) {
        c_open(p, graph_printf(p->g, "if (c0 < %lld)", (long long)p->body->cols));
    } else {
        c_line(p, "{");
        p->indent++;
    }
    cuda_open_vector(p);
    c_line(p, "const int i = u;");
}

static void open_vectors(CPrinter *p, long long n) {
    long long cols = (long long)p->body->cols, vector = p->code->vector;
    long long block = row_block(p->code);
    c_open(p, graph_printf(p->g, "for (int j = 0; j < %lld; j++)", n));
    c_line(p, "const int64_t c0 = %lld * (int64_t)(threadIdx.x + j * %lld);", vector, block);
    if (cols / vector % block) c_line(p, "if (c0 >= %lld) break;", cols);
    cuda_open_vector(p);
    c_line(p, "const int i = %lld * j + u;", vector);
}

static void open_scalars(CPrinter *p, long long n) {
    long long cols = (long long)p->body->cols, block = row_block(p->code);
    c_open(p, graph_printf(p->g, "for (int i = 0; i < %lld; i++)", n));
    c_line(p, "const int64_t c = threadIdx.x + i * %lld;", block);
    if (cols % block) c_line(p, "if (c >= %lld) break;", cols);
}

/* A thread's loop over its elements of the row: element i of them is in column c. */
static void open_columns(CPrinter *p) {
    long long vector = p->code->vector, n = per_thread(p) / vector;
    if (n * vector <= UNROLLED && !p->early) c_line(p, "#pragma unroll");
    if (p->early)
        open_vector(p);
    else if (vector > 1)
        open_vectors(p, n);
    else
        open_scalars(p, n);
    if (vector > 1) c_line(p, "(void)i;");
}

static void close_columns(CPrinter *p) {
    if (p->code->vector > 1) cuda_close_vector(p);
    c_close(p);
}

static void print_row_loop(CPrinter *p) {
    const Kernel *k = p->kernel;
    bool last = p->loop == p->loops.n - 1;
    start_reductions(p);
    open_columns(p);
    bool *outside = c_begin_scope(p);
    cuda_name_elements(p, p->loop);
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.kept[v] && p->loops.phase[v] == p->loop)
            c_line(p, "w%d[i] = %s;", v, c_value(p, v));
    add_to_reductions(p);
    if (last && k->kind == PEFT_KERNEL_FULL_SUM)
        c_line(p, "total += (double)%s;", c_value(p, k->out_val[0]));
    else if (last)
        c_stores(p, true);
    p->named = outside;
    close_columns(p);
    finish_reductions(p);
}

/* Results lie over what the whole block has read at the row's head: before the barrier of a
 * reduction, or one of their own. */
static void store_row_results(CPrinter *p) {
    if (!has_row_result(p->kernel)) return;
    if (!reduces_rows(p->body) || row_block(p->code) == 32) c_line(p, "__syncthreads();");
    c_open(p, "if (threadIdx.x == 0)");
    bool *outside = c_begin_scope(p);
    c_stores(p, false);
    p->named = outside;
    c_close(p);
}

static bool is_kept_result(const CPrinter *rows, int result) {
    for (int i = 0; i < rows->args.n; i++)
        if (c_joined(rows, i) == result) return true;
    return false;
}

/* The row's elements of a product's epilogue. What the row's loops read of them they find as if it
 * had been stored. */
static void print_epilogue(CPrinter *rows) {
    CPrinter *p = rows->epilogue;
    const Kernel *k = p->kernel;
    for (int i = 0; i < k->nout; i++)
        if (is_kept_result(rows, i))
            c_line(rows, "float e%d[%lld];", i, (long long)per_thread(rows));
    p->indent = rows->indent;
    c_line(p, "{");
    p->indent++;
    bool *outside = c_begin_scope(p);
    c_scalars(p, LEVEL_UNIFORM, 0);
    c_scalars(p, LEVEL_ROW, 0);
    if (p->early) cuda_gather_early(p);
    p->loop = 0;
    p->stored = rows->code->join->stored;
    open_columns(p);
    cuda_name_elements(p, 0);
    for (int i = 0; i < k->nout; i++) c_name(p, k->out_val[i], true);
    for (int i = 0; i < k->nout; i++) {
        const char *value = c_value(p, k->out_val[i]);
        if (is_kept_result(rows, i))
            c_line(p, "e%d[i] = pk_stored(a%d, %s);", i, arg_written(k, &p->args, i), value);
        if (rows->code->join->stored[i]) c_store(p, i, c_index(p, ACCESS_ELEMENT), value);
    }
    close_columns(p);
    p->named = outside;
    c_close(p);
}

static void print_row_loops(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.kept[v]) c_line(p, "float w%d[%lld];", v, (long long)per_thread(p));
    for (p->loop = 0; p->loop < p->loops.n; p->loop++) {
        print_row_loop(p);
        c_scalars(p, LEVEL_ROW, p->loop + 1);
    }
}

/* Loads that wait for nothing. A thread with more than one vector loads them in its loops. */
static void load_early(CPrinter *p) {
    p->early = has_one_vector(p);
    if (p->early) cuda_load_early(p);
}

/* Whether the batch has the row is known late: rows that only make it up to whole steps are
 * computed as the others are, and zero where they are stored. Other launches have no such rows,
 * but for sizes that follow from one of these. */
static void open_row(CPrinter *p) {
    CPrinter *epilogue = p->epilogue;
    c_line(p, "const int64_t r = blockIdx.x;");
    if (has_one_vector(p))
        c_line(p, "const int64_t c0 = %d * (int64_t)threadIdx.x;", p->code->vector);
    if (epilogue) load_early(epilogue);
    load_early(p);
    p->live = cuda_has_padding(p->kernel);
    if (epilogue) epilogue->live = p->live;
    if (p->live)
        c_line(p, "const bool live = r < peft_dim(rows, sym);");
    else
        c_line(p, "if (r >= peft_dim(rows, sym)) return;");
    c_scalars(p, LEVEL_ROW, 0);
    if (p->early) cuda_gather_early(p);
}

static void print_rows(CPrinter *p) {
    open_row(p);
    if (p->epilogue) print_epilogue(p);
    print_row_loops(p);
    store_row_results(p);
}

/* Blocks that go on to other rows, with the total of those before. */
static void print_summed_rows(CPrinter *p) {
    c_line(p, "const int64_t count = peft_dim(rows, sym);");
    c_open(p, "for (int64_t r = blockIdx.x; r < count; r += gridDim.x)");
    c_scalars(p, LEVEL_ROW, 0);
    print_row_loops(p);
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
    cuda_name_elements(p, 0);
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
        print_summed_rows(p);
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
    const char *type = peft_is_nf4(t.dt) ? "void"
                       : t.dt == DT_I32  ? "int"
                       : matrix          ? "work"
                                         : "float";
    return graph_printf(p->g, "%s%s *", written[arg] ? "" : "const ", type);
}

static char pointer_name(const CPrinter *p, int arg) {
    return peft_is_nf4(p->args.node[arg]->type.dt) ? 'p' : 'a';
}

bool *cuda_written_args(const CPrinter *p) {
    bool *written = graph_alloc(p->g, (size_t)p->args.n + 1);
    for (int i = 0; i < p->kernel->nout; i++) written[arg_written(p->kernel, &p->args, i)] = true;
    return written;
}

void cuda_pointers(CPrinter *p, const bool *written, int from) {
    for (int i = from; i < p->args.n; i++)
        fprintf(p->out, "%s%c%d, ", pointer_type(p, i, written), pointer_name(p, i),
                p->first_arg + i);
}

int cuda_sites(const KBody *b) {
    int sites = 0;
    for (int v = 0; v < b->n; v++) sites += b->instr[v].op == K_KEEP;
    return sites;
}

void cuda_numbers(CPrinter *p, int sites) {
    fprintf(p->out, "const int64_t *sym, int64_t rows");
    for (int i = 0; i < sites; i++) fprintf(p->out, ", int site%d", i);
}

/* Every argument is a parameter, also those that this code does not touch: the runtime passes a
 * step's buffers as they are. Kernels that serve several steps at once get all of theirs. */
static void print_parameters(CPrinter *p, const bool *written) {
    if (p->code->group)
        fprintf(p->out, "const PkGroup<%d> group, ", p->args.n);
    else
        cuda_pointers(p, written, 0);
    cuda_numbers(p, cuda_sites(p->body));
}

static void open_group(CPrinter *p, const bool *written) {
    for (int i = 0; p->code->group && i < p->args.n; i++) {
        const char *type = pointer_type(p, i, written);
        c_line(p, "%sconst %c%d = (%s)group.arg[blockIdx.y][%d];", type, pointer_name(p, i), i,
               type, i);
    }
}

void cuda_open_views(CPrinter *p) {
    for (int i = 0; i < p->args.n; i++) {
        Type t = p->args.node[i]->type;
        if (!peft_is_nf4(t.dt) || (p->kernel->anchor && i < p->kernel->anchor->nin)) continue;
        c_line(p, "const Nf4View a%d = nf4_view(p%d, %lld, %s);", p->first_arg + i,
               p->first_arg + i, (long long)type_count(t), t.dt == DT_NF4 ? "true" : "false");
    }
}

CPrinter cuda_printer(FILE *out, Graph *g, const Code *code) {
    const Kernel *k = code->kernel;
    CPrinter p = {.out = out, .g = g, .code = code, .kernel = k, .body = k->body, .indent = 1};
    p.cuda = true;
    p.args = kernel_args(g, k);
    p.loops = find_loops(g, k);
    p.named = graph_alloc(g, (size_t)k->body->n + 1);
    return p;
}

void cuda_head(CPrinter *p) {
    fprintf(p->out, "extern \"C\" __global__ void __launch_bounds__(%d)\n%s(", cuda_block(p->code),
            p->code->name);
}

static void emit_join(FILE *out, Graph *g, const Code *code) {
    Code epilogue = *code->join->epilogue;
    epilogue.vector = code->vector;
    CPrinter first = cuda_printer(out, g, &epilogue), then = cuda_printer(out, g, code);
    then.epilogue = &first;
    then.first_arg = first.args.n;
    then.first_site = cuda_sites(first.body);
    then.first_value = first.body->n;
    fprintf(out, "/* %s,\n * then %s */\n", kernel_label(g, first.kernel, '+', first.kernel->nnode),
            kernel_label(g, then.kernel, '+', then.kernel->nnode));
    cuda_head(&then);
    cuda_pointers(&first, cuda_written_args(&first), PEFT_GEMM_C);
    cuda_pointers(&then, cuda_written_args(&then), 0);
    cuda_numbers(&then, then.first_site + cuda_sites(then.body));
    fputs(") {\n    pk_begin();\n", out);
    cuda_open_views(&first);
    cuda_open_views(&then);
    c_scalars(&then, LEVEL_UNIFORM, 0);
    print_rows(&then);
    fputs("}\n\n", out);
}

void emit_kernel_cuda(FILE *out, Graph *g, const Code *code) {
    if (code->join) {
        emit_join(out, g, code);
        return;
    }
    if (code->narrow) {
        emit_narrow_cuda(out, g, code);
        return;
    }
    PeftLaunch launch = cuda_launch(code->kernel);
    CPrinter p = cuda_printer(out, g, code);
    const bool *written = cuda_written_args(&p);
    if (launch == PEFT_LAUNCH_SUM)
        fprintf(out, "static __device__ GridSum %s_sum[%s];\n\n", code->name,
                code->group ? "PEFT_GROUP" : "1");
    c_comment(&p);
    cuda_head(&p);
    print_parameters(&p, written);
    fputs(") {\n    pk_begin();\n", out);
    open_group(&p, written);
    cuda_open_views(&p);
    c_scalars(&p, LEVEL_UNIFORM, 0);
    switch (launch) {
    case PEFT_LAUNCH_COLUMNS: print_column_sum(&p); break;
    case PEFT_LAUNCH_SUM: print_full_sum(&p); break;
    case PEFT_LAUNCH_ROWS: print_rows(&p); break;
    default: print_elements(&p);
    }
    fputs("}\n\n", out);
}
