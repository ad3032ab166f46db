/* Elements of CUDA kernels eight at a time: a thread that works on eight neighbours loads and
 * stores whole vectors, and draws the dropout numbers of all eight at once. A thread that has one
 * vector of a row loads it for all loops at the row's head, where nothing waits for anything yet.
 * Invariant: all loads of a vector come before its first store, as those of a single element do;
 * results may therefore lie over operands that are read at the element that is written. */
#include "../../runtime/cpu/philox.h"
#include "c_print.h"

static bool is_float(uint8_t storage) {
    return storage == DT_WORK || storage == DT_MASTER || storage == DT_F32;
}

/* A value that differs along the row, from memory. */
static bool is_load(const KInstr *in) {
    return in->level == LEVEL_ELEMENT &&
           (in->op == K_LOAD || in->op == K_GATHER || in->op == K_SCATTER);
}

static bool load_fits(const Code *code, const Args *args, const KInstr *in) {
    int a = arg_read(code->kernel, args, in->tensor);
    if (!is_float(code->storage[a])) return false;
    Access access = access_of(code->kernel->body, in->tensor->type);
    return in->op != K_LOAD || access == ACCESS_ELEMENT || access == ACCESS_COLUMN;
}

static bool fits(Graph *g, const Code *code) {
    const Kernel *k = code->kernel;
    Args args = kernel_args(g, k);
    if (k->body->cols % CUDA_VECTOR || k->kind == PEFT_KERNEL_COLUMN_SUM) return false;
    for (int v = 0; v < k->body->n; v++)
        if (is_load(&k->body->instr[v]) && !load_fits(code, &args, &k->body->instr[v]))
            return false;
    for (int i = 0; !is_sum_kernel(k) && i < k->nout; i++)
        if (stored_in_loop(k, i) && !is_float(code->storage[arg_written(k, &args, i)]))
            return false;
    return true;
}

int32_t cuda_vector(Graph *g, const Code *code) {
    return fits(g, code) && (!code->join || fits(g, code->join->epilogue)) ? CUDA_VECTOR : 1;
}

static bool is_vector_load(const CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    return is_load(in) && c_joined(p, arg_read(p->kernel, &p->args, in->tensor)) < 0;
}

bool cuda_is_vector_load(const CPrinter *p, KVal v) {
    return p->vector && is_vector_load(p, v);
}

bool cuda_is_vector_result(const CPrinter *p, int out) {
    return p->vector && !is_sum_kernel(p->kernel) && p->loop == p->loops.n - 1 &&
           stored_in_loop(p->kernel, out) && (!p->stored || p->stored[out]);
}

/* Whether this loop reads v: on its own account, or to reduce it as it is. */
static bool is_read(const CPrinter *p, KVal v) {
    if (p->loops.uses[v]) return true;
    for (int i = 0; i < p->body->n; i++) {
        const KInstr *in = &p->body->instr[i];
        if (is_reduction(in) && in->a == v && p->loops.phase[i] == p->loop + 1) return true;
    }
    return false;
}

const char *cuda_keep_operands(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    uint32_t threshold = philox_threshold((float)in->number);
    return graph_printf(p->g, "a%d, site%d, %s, %s, %uu, %s",
                        p->first_arg + arg_read(p->kernel, &p->args, in->tensor), c_site(p, v),
                        c_value(p, in->a), c_value(p, in->b), threshold,
                        c_number(p, (double)philox_scale(threshold)));
}

/* A row may end before its block of whole warps: the last threads have no vector then. */
static const char *in_row(const CPrinter *p) {
    long long cols = (long long)p->body->cols;
    bool whole = !p->early || p->vectors || cols % (32 * CUDA_VECTOR) == 0;
    return whole ? "" : graph_printf(p->g, "if (c0 < %lld) ", cols);
}

static bool is_product_here(const CPrinter *p, const Node *tensor) {
    return p->product && buffer_of(tensor) == p->kernel->anchor;
}

/* The product's are read one vector after the other. */
static bool has_several(const CPrinter *p, KVal v) {
    return p->vectors && !is_product_here(p, p->body->instr[v].tensor);
}

const char *cuda_vector_name(CPrinter *p, char kind, KVal v) {
    return graph_printf(p->g, "%c%d%s", kind, p->first_value + v, has_several(p, v) ? "[j]" : "");
}

/* Its 16 bytes are loaded at once. */
static void declare_vector(CPrinter *p, char kind, KVal v) {
    const char *all = has_several(p, v) ? graph_printf(p->g, "[%s]", p->vectors) : "";
    c_line(p, "%sfloat %c%d%s[%d];", kind == 'x' ? "alignas(16) " : "", kind, p->first_value + v,
           all, CUDA_VECTOR);
}

static void load_vector(CPrinter *p, KVal v) {
    const Node *tensor = p->body->instr[v].tensor;
    const char *x = cuda_vector_name(p, 'x', v);
    int a = arg_read(p->kernel, &p->args, tensor);
    if (!has_several(p, v)) declare_vector(p, 'x', v);
    if (is_product_here(p, tensor)) {
        c_line(p, "%s, %s);", p->product, x);
        return;
    }
    p->column = "c0";
    c_line(p, "%spk_get8%s(%s, %s);", in_row(p), c_access(p, a),
           c_operands(p, a, c_place(p, v), tensor->type), x);
    p->column = NULL;
}

static void draw_numbers(CPrinter *p, KVal v) {
    if (!has_several(p, v)) declare_vector(p, 'k', v);
    c_line(p, "pk_keep8(%s, c0, %s);", cuda_keep_operands(p, v), cuda_vector_name(p, 'k', v));
}

/* Whether any loop of the row reads v. */
static bool is_read_anywhere(CPrinter *p, KVal v) {
    bool read = false;
    for (p->loop = 0; p->loop < p->loops.n && !read; p->loop++) {
        loop_uses(p->kernel, &p->loops, p->loop);
        read = is_read(p, v);
    }
    p->loop = 0;
    return read;
}

void cuda_declare_vectors(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        bool factors = p->body->instr[v].op == K_KEEP;
        if ((factors || is_vector_load(p, v)) && has_several(p, v) && is_read_anywhere(p, v))
            declare_vector(p, factors ? 'k' : 'x', v);
    }
}

void cuda_load_early(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++)
        if (p->body->instr[v].op == K_LOAD && is_vector_load(p, v) && is_read_anywhere(p, v) &&
            !is_product_here(p, p->body->instr[v].tensor))
            load_vector(p, v);
}

void cuda_gather_early(CPrinter *p) {
    for (int v = 0; v < p->body->n; v++) {
        KOp op = p->body->instr[v].op;
        if ((op != K_KEEP && (op == K_LOAD || !is_vector_load(p, v))) || !is_read_anywhere(p, v))
            continue;
        if (op == K_KEEP)
            draw_numbers(p, v);
        else
            load_vector(p, v);
    }
}

void cuda_open_vector(CPrinter *p) {
    p->vector = true;
    if (p->loops.n) loop_uses(p->kernel, &p->loops, p->loop);
    for (int v = 0; v < p->body->n; v++)
        if (is_vector_load(p, v) && is_read(p, v) &&
            (!p->early || is_product_here(p, p->body->instr[v].tensor)))
            load_vector(p, v);
    for (int v = 0; v < p->body->n && !p->early; v++)
        if (p->body->instr[v].op == K_KEEP && is_read(p, v)) draw_numbers(p, v);
    for (int i = 0; i < p->kernel->nout; i++)
        if (cuda_is_vector_result(p, i)) c_line(p, "alignas(16) float y%d[%d];", i, CUDA_VECTOR);
    c_line(p, "#pragma unroll");
    c_open(p, graph_printf(p->g, "for (int u = 0; u < %d; u++)", CUDA_VECTOR));
    c_line(p, "const int64_t c = c0 + u;");
    c_line(p, "(void)c;");
}

void cuda_store_vector(CPrinter *p) {
    for (int i = 0; i < p->kernel->nout; i++) {
        if (!cuda_is_vector_result(p, i)) continue;
        int a = arg_written(p->kernel, &p->args, i);
        const char *at = graph_printf(p->g, "r * %lld + c0", (long long)p->body->cols);
        c_line(p, "pk_put8%s(%s, y%d);", c_access(p, a),
               c_operands(p, a, at, p->kernel->out[i]->type), i);
    }
    p->vector = false;
}

void cuda_close_vector(CPrinter *p) {
    c_close(p);
    cuda_store_vector(p);
}
