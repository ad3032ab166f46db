/* Prints a kernel as C functions of runtime/kernel_c.h: rows, loops over columns, reductions,
 * stores. Invariant: an operation is written so that its result does not depend on vector width,
 * threads or how rows are handed out: loops without reductions are independent per element, row
 * sums go through a scratch row and pk_row_sum's fixed order, column sums add rows in order. */
#include "c_print.h"

#include <stdarg.h>
#include <string.h>

enum {
    ROW_BLOCK = 1024,   /* columns per block of a wide row; a multiple of pk_row_sum's 16 lanes */
    WHOLE_ROW = 2048,   /* rows up to this width are one block */
    COLUMN_BLOCK = 256, /* columns that a column sum adds up at once */
    SEGMENT = 64        /* widest row segment of a GEMM's epilogue */
};

void c_line(CPrinter *p, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(p->out, "%*s", 4 * p->indent, "");
    vfprintf(p->out, fmt, ap);
    fputc('\n', p->out);
    va_end(ap);
}

void c_open(CPrinter *p, const char *text) {
    c_line(p, "%s {", text);
    p->indent++;
}

void c_close(CPrinter *p) {
    p->indent--;
    c_line(p, "}");
}

/* Names given from here on end with the scope: p->named is the result again. */
bool *c_begin_scope(CPrinter *p) {
    bool *outside = p->named;
    p->named = graph_alloc(p->g, (size_t)p->body->n + 1);
    memcpy(p->named, outside, (size_t)p->body->n);
    return outside;
}

static long long cols_of(const CPrinter *p) {
    return (long long)p->body->cols;
}

static bool is_element(const CPrinter *p, KVal v) {
    return p->body->instr[v].level == LEVEL_ELEMENT;
}

/* ---- values of rows and scalars ---- */

/* A value read by another level or by another loop needs a name. */
bool c_is_shared(const CPrinter *p, KVal v) {
    const KBody *b = p->body;
    int users = 0;
    for (int i = 0; i < b->n; i++) {
        const KInstr *in = &b->instr[i];
        if (in->a != v && in->b != v && in->c != v) continue;
        if (in->level != b->instr[v].level || p->loops.phase[i] != p->loops.phase[v]) return true;
        users += (in->a == v) + (in->b == v) + (in->c == v);
    }
    for (int i = 0; i < p->kernel->nout; i++)
        if (p->kernel->out_val[i] == v) return true;
    return users != 1;
}

/* Row (or uniform) values that are known once `phase` loops are done. */
void c_scalars(CPrinter *p, KLevel level, int phase) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (in->level != level || is_reduction(in) || p->loops.phase[v] != phase) continue;
        c_name(p, v, c_is_shared(p, v));
    }
}

/* ---- scratch ---- */

static long long block_width(const CPrinter *p) {
    switch (p->kernel->kind) {
    case PEFT_KERNEL_GEMM: return SEGMENT;
    case PEFT_KERNEL_COLUMN_SUM: return COLUMN_BLOCK;
    default: return cols_of(p) <= WHOLE_ROW ? cols_of(p) : ROW_BLOCK;
    }
}

static void declare_scratch(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (p->loops.kept[v]) c_line(p, "float w%d[%lld];", v, cols_of(p));
        if (in->op == K_KEEP)
            c_line(p, "float s%d[PK_KEEP_ROOM(%lld)];", v, block_width(p));
        else if ((is_reduction(in) && !reduces_buffer(p->body, in)) || c_is_filled(p, in))
            c_line(p, "float s%d[%lld];", v, block_width(p));
    }
    for (int i = 0; is_sum_kernel(p->kernel) && i < p->kernel->nout; i++)
        if (p->kernel->kind == PEFT_KERNEL_COLUMN_SUM || is_element(p, p->kernel->out_val[i]))
            c_line(p, "float t%d[%lld];", i, block_width(p));
}

/* Position of the loop's first column in a row that begins at `row` times the columns. */
static const char *row_position(CPrinter *p, const char *row) {
    bool whole = strcmp(p->first, "0") == 0;
    return graph_printf(p->g, "%s * %lld%s%s", row, cols_of(p), whole ? "" : " + ",
                        whole ? "" : p->first);
}

/* Dropout factors; the body's K_KEEP instructions are numbered for their sites. */
static void fill_keep(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    int a = arg_read(p->kernel, &p->args, in->tensor);
    c_line(p, "const float *u%d = pk_keep(a%d, site[%d], %s, %s, %s, %s, %s, s%d);", v, a,
           c_site(p, v), c_value(p, in->a), c_value(p, in->b), c_number(p, in->number), p->first,
           p->count, v);
}

static void fill_nf4(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    int a = arg_read(p->kernel, &p->args, in->tensor);
    const char *row = "r";
    if (in->op == K_GATHER) row = graph_printf(p->g, "(int64_t)%s", c_atom(p, in->a));
    c_line(p, "const float *u%d = s%d;", v, v);
    c_line(p, "nf4_dequant_row(&a%d, %s, %s, s%d);", a, row_position(p, row), p->count, v);
}

/* Calls that fill scratch rows before a loop. */
static void fill_scratch(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (!c_is_filled(p, in) || p->loops.uses[v] == 0) continue;
        if (p->loops.kept[v] && p->loops.phase[v] < p->loop) continue;
        if (in->op == K_KEEP)
            fill_keep(p, v);
        else
            fill_nf4(p, v);
    }
}

/* ---- one loop over columns ---- */

/* Results of the loop, or of the row after it. A result may lie over an operand of another one, so
 * all of them are computed before the first is stored. */
void c_stores(CPrinter *p, bool in_loop) {
    const Kernel *k = p->kernel;
    for (int i = 0; k->nout > 1 && i < k->nout; i++)
        if (k->out_val[i] >= 0 && stored_in_loop(k, i) == in_loop) c_name(p, k->out_val[i], true);
    for (int i = 0; i < k->nout; i++) {
        if (k->out_val[i] < 0 || stored_in_loop(k, i) != in_loop) continue;
        Access access = access_of(p->body, p->kernel->out[i]->type);
        c_store(p, i, c_index(p, access), c_value(p, k->out_val[i]));
    }
}

static bool ends_in_loop(const CPrinter *p, const KInstr *in, KVal v) {
    return is_reduction(in) && p->loops.phase[v] == p->loop + 1;
}

/* What the loop leaves behind: kept rows, operands of reductions, the terms of a sum, results. */
static void print_effects(CPrinter *p) {
    const char *add = p->kernel->kind == PEFT_KERNEL_COLUMN_SUM ? "+=" : "=";
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (p->loops.kept[v] && p->loops.phase[v] == p->loop)
            c_line(p, "w%d[c] = %s;", v, c_value(p, v));
        if (ends_in_loop(p, in, v) && !reduces_buffer(p->body, in))
            c_line(p, "s%d[%s] = %s;", v, c_scratch(p), c_value(p, in->a));
    }
    if (p->loop != p->loops.n - 1) return;
    if (!is_sum_kernel(p->kernel)) c_stores(p, true);
    for (int i = 0; is_sum_kernel(p->kernel) && i < p->kernel->nout; i++)
        c_line(p, "t%d[%s] %s %s;", i, c_scratch(p), add, c_value(p, p->kernel->out_val[i]));
}

static void print_columns(CPrinter *p, const char *header) {
    bool used = false;
    for (int v = 0; v < p->body->n; v++) used |= p->loops.uses[v] != 0;
    if (!used && p->loop != p->loops.n - 1) return; /* all it does is reduce buffers */
    bool *outside = c_begin_scope(p);
    fill_scratch(p);
    c_line(p, "PEFT_SIMD");
    c_open(p, header);
    for (int v = 0; v < p->body->n; v++)
        if (p->loops.uses[v]) c_name(p, v, p->loops.uses[v] > 1);
    print_effects(p);
    c_close(p);
    p->named = outside;
}

/* ---- a row of a MAP or FULL_SUM kernel ---- */

static void declare_reductions(CPrinter *p, bool blocks) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (!ends_in_loop(p, in, v)) continue;
        if (blocks) c_line(p, "float v%d = %s;", v, in->op == K_ROW_SUM ? "0" : "-PK_INF");
        p->named[v] = true;
    }
}

/* Where the columns of the loop lie that a reduction adds up. */
static const char *reduced_row(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    if (!reduces_buffer(p->body, in)) return graph_printf(p->g, "s%d", v);
    const Node *tensor = p->body->instr[in->a].tensor;
    int a = arg_read(p->kernel, &p->args, tensor);
    if (access_of(p->body, tensor->type) == ACCESS_COLUMN)
        return graph_printf(p->g, "a%d + %s", a, p->first);
    return graph_printf(p->g, "a%d + %s", a, row_position(p, "r"));
}

/* The reductions that the loop just printed feeds; with blocks, added to those before. */
static void print_reductions(CPrinter *p, bool blocks) {
    for (int v = 0; v < p->body->n; v++) {
        const KInstr *in = &p->body->instr[v];
        if (!ends_in_loop(p, in, v)) continue;
        const char *fn = in->op == K_ROW_SUM ? "pk_row_sum" : "pk_row_max";
        const char *part = graph_printf(p->g, "%s(%s, %s)", fn, reduced_row(p, v), p->count);
        if (!blocks)
            c_line(p, "const float v%d = %s;", v, part);
        else if (in->op == K_ROW_SUM)
            c_line(p, "v%d += %s;", v, part);
        else
            c_line(p, "v%d = pk_max(v%d, %s);", v, v, part);
    }
    if (p->kernel->kind == PEFT_KERNEL_FULL_SUM && p->loop == p->loops.n - 1)
        c_line(p, "total += (double)pk_row_sum(t0, %s);", p->count);
}

static void print_loop(CPrinter *p) {
    long long cols = cols_of(p), width = block_width(p);
    bool blocks = width != cols;
    loop_uses(p->kernel, &p->loops, p->loop);
    declare_reductions(p, blocks);
    p->first = blocks ? "b" : "0";
    p->count = blocks ? "n" : graph_printf(p->g, "%lld", cols);
    p->block = blocks ? "c - b" : NULL;
    if (blocks) {
        c_open(p, graph_printf(p->g, "for (int64_t b = 0; b < %lld; b += %lld)", cols, width));
        c_line(p, "const int64_t n = %lld - b < %lld ? %lld - b : %lld;", cols, width, cols, width);
        print_columns(p, "for (int64_t c = b; c < b + n; c++)");
    } else {
        print_columns(p, graph_printf(p->g, "for (int64_t c = 0; c < %lld; c++)", cols));
    }
    print_reductions(p, blocks);
    if (blocks) c_close(p);
}

static void print_row(CPrinter *p) {
    c_scalars(p, LEVEL_ROW, 0);
    for (p->loop = 0; p->loop < p->loops.n; p->loop++) {
        print_loop(p);
        c_scalars(p, LEVEL_ROW, p->loop + 1);
    }
    if (!is_sum_kernel(p->kernel)) c_stores(p, false);
}

/* ---- functions ---- */

static bool is_scalar_kernel(const CPrinter *p) {
    bool uniform = true;
    for (int v = 0; v < p->body->n; v++) uniform &= p->body->instr[v].level == LEVEL_UNIFORM;
    for (int i = 0; i < p->kernel->nout; i++)
        uniform &= access_of(p->body, p->kernel->out[i]->type) == ACCESS_SCALAR;
    return uniform;
}

static void print_map(CPrinter *p) {
    if (is_scalar_kernel(p)) {
        c_stores(p, false);
        return;
    }
    c_open(p, "for (int64_t r = begin; r < end; r++)");
    print_row(p);
    c_close(p);
}

static void print_full_sum(CPrinter *p) {
    KVal v = p->kernel->out_val[0];
    c_line(p, "double total = 0;");
    c_open(p, "for (int64_t r = begin; r < end; r++)");
    if (is_element(p, v)) {
        print_row(p);
    } else {
        c_scalars(p, LEVEL_ROW, 0);
        c_line(p, "total += %lld * (double)%s;", cols_of(p), c_atom(p, v));
    }
    c_close(p);
    c_line(p, "*sum = total;");
}

static void print_column_sum(CPrinter *p) {
    const KBody *b = p->body;
    c_line(p, "const int64_t rows = peft_dim(%lld, sym);", (long long)b->rows);
    c_open(p, graph_printf(p->g, "for (int64_t b = begin; b < end; b += %d)", COLUMN_BLOCK));
    c_line(p, "const int64_t n = end - b < %d ? end - b : %d;", COLUMN_BLOCK, COLUMN_BLOCK);
    for (int i = 0; i < p->kernel->nout; i++)
        c_line(p, "for (int i = 0; i < n; i++) t%d[i] = 0;", i);
    c_open(p, "for (int64_t r = 0; r < rows; r++)");
    c_scalars(p, LEVEL_ROW, 0);
    p->first = "b";
    p->count = "n";
    p->block = "c - b";
    loop_uses(p->kernel, &p->loops, 0);
    print_columns(p, "for (int64_t c = b; c < b + n; c++)");
    c_close(p);
    for (int i = 0; i < p->kernel->nout; i++)
        c_line(p, "for (int i = 0; i < n; i++) a%d[b + i] = t%d[i];",
               arg_written(p->kernel, &p->args, i), i);
    c_close(p);
}

static void print_epilogue(CPrinter *p) {
    c_scalars(p, LEVEL_ROW, 0);
    p->first = "col";
    p->count = "n";
    p->block = "c - col";
    loop_uses(p->kernel, &p->loops, 0);
    print_columns(p, "for (int64_t c = col; c < col + n; c++)");
    c_stores(p, false); /* a result of one column */
}

static void print_argument(CPrinter *p, int i, const Node *n, bool written) {
    const Type t = n->type;
    char type[64];
    type_str(t, type);
    if (peft_is_nf4(t.dt)) {
        c_line(p, "const Nf4View a%d = nf4_view(arg[%d], %lld, %s); /* %s */", i, i,
               (long long)type_count(t), t.dt == DT_NF4 ? "true" : "false", type);
        return;
    }
    c_line(p, "%s%s *const a%d = arg[%d]; /* %s %s */", written ? "" : "const ",
           t.dt == DT_I32 ? "int32_t" : "float", i, i, type,
           op_info[n->op == OP_PROJ ? n->in[0]->op : n->op].name);
}

/* Names the buffers that the code touches; C of a GEMM is read and written. */
static void print_arguments(CPrinter *p) {
    const Kernel *k = p->kernel;
    bool *read = graph_alloc(p->g, (size_t)p->args.n + 1);
    bool *written = graph_alloc(p->g, (size_t)p->args.n + 1);
    for (int v = 0; v < p->body->n; v++)
        if (p->body->instr[v].tensor) read[arg_read(k, &p->args, p->body->instr[v].tensor)] = true;
    for (int i = 0; i < k->nout && k->kind != PEFT_KERNEL_FULL_SUM; i++)
        if (k->out_val[i] >= 0) written[arg_written(k, &p->args, i)] = true;
    for (int i = 0; i < p->args.n; i++)
        if (read[i] || written[i]) print_argument(p, i, p->args.node[i], written[i]);
}

/* The ops of the first kernel that has this code; runs of equal ops once. */
void c_comment(CPrinter *p) {
    const Kernel *k = p->kernel;
    fprintf(p->out, "/* %s", kernel_label(p->g, k, '+', k->nnode));
    if (p->code->where[0]) fprintf(p->out, "\n * at %s", p->code->where);
    fprintf(p->out, "\n * %d step%s */\n", p->code->steps, p->code->steps == 1 ? "" : "s");
}

static const char *const form[] = {
    [PEFT_KERNEL_MAP] = "MAP",
    [PEFT_KERNEL_COLUMN_SUM] = "MAP",
    [PEFT_KERNEL_FULL_SUM] = "SUM",
    [PEFT_KERNEL_GEMM] = "EPILOGUE",
};

void emit_kernel_c(FILE *out, Graph *g, const Code *code) {
    const Kernel *k = code->kernel;
    CPrinter p = {.out = out, .g = g, .code = code, .kernel = k, .body = k->body, .indent = 1};
    p.args = kernel_args(g, k);
    p.loops = find_loops(g, k);
    p.named = graph_alloc(g, (size_t)k->body->n + 1);
    c_comment(&p);
    fprintf(out, "PEFT_%s_BODY(%s) {\n", form[k->kind], code->name);
    print_arguments(&p);
    declare_scratch(&p);
    c_scalars(&p, LEVEL_UNIFORM, 0);
    switch (k->kind) {
    case PEFT_KERNEL_MAP: print_map(&p); break;
    case PEFT_KERNEL_COLUMN_SUM: print_column_sum(&p); break;
    case PEFT_KERNEL_FULL_SUM: print_full_sum(&p); break;
    case PEFT_KERNEL_GEMM: print_epilogue(&p); break;
    default: PANIC(k->anchor, "a runtime routine has no generated code");
    }
    fprintf(out, "}\nPEFT_%s(%s)\n\n", form[k->kind], code->name);
}
