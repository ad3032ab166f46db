/* Prints two products through a narrow middle as one CUDA kernel for runtime/cuda/narrow.cu: the
 * first product's epilogue in between, the second's in the end where that is finished. The first
 * one's arguments come first, then the second's from its matrix on, numbered as if all of them did;
 * so with dropout sites. Invariant: the vectors that epilogues read from memory are read before the
 * first product, and the launch writes none of them. */
#include "c_print.h"

/* What is known before the first product: an element's place, and what its epilogue loads. A thread
 * has one vector at most; those without repeat others' loads, within the matrix. */
static void open_narrow(CPrinter *p) {
    const CodeNarrow *n = p->code->narrow;
    int across = n->r / CUDA_VECTOR;
    c_line(p, "typedef Narrow<%d, %d, %d, %d, %s, %s> Shape;", n->k, n->r, n->n, n->columns,
           n->nt[0] ? "true" : "false", n->nt[1] ? "true" : "false");
    c_line(p, "static_assert(Shape::BYTES == %d && NARROW_ROWS == %d && NARROW_THREADS == %d,",
           n->shared, PEFT_NARROW_ROWS, cuda_block(p->code));
    c_line(p, "              \"a launch is for this\");");
    c_line(p, "narrow_load_weights<Shape>(a1, b);");
    c_line(p, "pk_begin();");
    c_line(p, "narrow_load_rows<Shape>(a0, launched);");
    c_line(p, "const int row = threadIdx.x / %d %% NARROW_ROWS;", across);
    c_line(p, "const int64_t c0 = %d * (int64_t)(threadIdx.x %% %d);", CUDA_VECTOR, across);
    c_line(p, "const int64_t at = (int64_t)blockIdx.x * NARROW_ROWS + row;");
    c_line(p, "const int64_t r = at < launched ? at : launched - 1;");
    p->early = true;
    cuda_load_early(p);
    p->live = cuda_has_padding(p->kernel);
    if (p->live) c_line(p, "const bool live = r < peft_dim(rows, sym);");
    c_scalars(p, LEVEL_UNIFORM, 0);
    c_scalars(p, LEVEL_ROW, 0);
    cuda_gather_early(p);
}

/* The epilogue of the block's rows: one of the blocks that compute it stores what others read. */
static void print_narrow_middle(CPrinter *p) {
    const CodeNarrow *n = p->code->narrow;
    bool any = false;
    c_line(p, "narrow_first<Shape>();");
    c_open(p, graph_printf(p->g, "if (threadIdx.x < NARROW_ROWS * %d)", n->r / CUDA_VECTOR));
    bool *outside = c_begin_scope(p);
    cuda_open_vector(p);
    cuda_name_elements(p, 0);
    c_stores(p, true);
    p->named = outside;
    c_close(p);
    c_line(p, "narrow_put8<Shape>(row, (int)c0, y%d);", n->middle);
    for (int i = 0; i < p->kernel->nout; i++) any |= n->stored[i];
    if (any) {
        c_open(p, "if (blockIdx.y == 0 && at < launched)");
        p->stored = n->stored;
        cuda_store_vector(p);
        c_close(p);
    }
    c_close(p);
}

static void open_narrow_vectors(CPrinter *p) {
    c_line(p, "#pragma unroll");
    c_open(p, "for (int j = 0; j < Shape::VECTORS; j++)");
}

static bool is_indexed(const KBody *b) {
    for (int v = 0; v < b->n; v++)
        if (b->instr[v].op == K_GATHER || b->instr[v].op == K_SCATTER) return true;
    return false;
}

/* What the second product's epilogue loads and draws is there before the copies that the first one
 * waits for. The last vectors repeat others' loads where the launch does not have their rows. */
static void print_narrow_loads(CPrinter *p) {
    cuda_declare_vectors(p);
    open_narrow_vectors(p);
    bool *outside = c_begin_scope(p);
    c_line(p, "const int64_t at = narrow_row<Shape>(j), c0 = narrow_column<Shape>(j);");
    c_line(p, "const int64_t r = at < launched ? at : launched - 1;");
    if (p->live && is_indexed(p->body)) c_line(p, "const bool live = r < peft_dim(rows, sym);");
    cuda_load_early(p);
    c_scalars(p, LEVEL_UNIFORM, 0);
    c_scalars(p, LEVEL_ROW, 0);
    cuda_gather_early(p);
    p->named = outside;
    c_close(p);
}

static bool is_scalar(const KBody *b, KVal v) {
    return v >= 0 && b->instr[v].level != LEVEL_ELEMENT && b->instr[v].op != K_CONST;
}

/* Whether elements are computed from a row's or the launch's values, once vectors are loaded. */
static bool takes_scalars(const Kernel *k) {
    for (int i = 0; i < k->nout; i++)
        if (is_scalar(k->body, k->out_val[i])) return true;
    for (int v = 0; v < k->body->n; v++) {
        const KInstr *in = &k->body->instr[v];
        bool loaded = in->op == K_KEEP || in->op == K_LOAD || in->op == K_GATHER;
        if (in->level == LEVEL_ELEMENT && !loaded &&
            (is_scalar(k->body, in->a) || is_scalar(k->body, in->b) || is_scalar(k->body, in->c)))
            return true;
    }
    return false;
}

/* The epilogue of the second product. */
static void print_narrow_finish(CPrinter *p) {
    open_narrow_vectors(p);
    c_line(p, "if (!narrow_has<Shape>(j, launched)) continue;");
    c_line(p, "const int64_t r = narrow_row<Shape>(j), c0 = narrow_column<Shape>(j);");
    if (p->live) c_line(p, "const bool live = r < peft_dim(rows, sym);");
    if (takes_scalars(p->kernel)) {
        c_scalars(p, LEVEL_UNIFORM, 0);
        c_scalars(p, LEVEL_ROW, 0);
    }
    cuda_open_vector(p);
    cuda_name_elements(p, 0);
    c_stores(p, true);
    cuda_close_vector(p);
    c_close(p);
}

/* The second product's printer: its arguments and dropout sites follow the first's. */
static CPrinter finish_printer(const CPrinter *first, const Code *finish) {
    CPrinter p = cuda_printer(first->out, first->g, finish);
    p.first_arg = first->args.n;
    p.first_site = cuda_sites(first->body);
    p.first_value = first->body->n;
    p.product = "narrow_get8<Shape>(j";
    p.live = cuda_has_padding(p.kernel);
    p.early = true;
    p.vectors = "Shape::VECTORS";
    return p;
}

static void print_narrow_head(CPrinter *p, CPrinter *finish) {
    const Code *code = p->code;
    fprintf(p->out, "#ifdef PEFT_BF16\n/* %s,\n * then %s\n * at %s\n * %d step%s */\n",
            kernel_label(p->g, p->kernel, '+', p->kernel->nnode),
            finish ? kernel_label(p->g, finish->kernel, '+', finish->kernel->nnode) : "matmul",
            code->where, code->steps, code->steps == 1 ? "" : "s");
    cuda_head(p);
    cuda_pointers(p, cuda_written_args(p), 0);
    fputs("const work *b, ", p->out);
    if (finish)
        cuda_pointers(finish, cuda_written_args(finish), PEFT_GEMM_C);
    else
        fputs("work *c, const work *addend, const work *bias, ", p->out);
    fputs("int launched, ", p->out);
    cuda_numbers(p, cuda_sites(p->body) + (finish ? cuda_sites(finish->body) : 0));
    fputs(") {\n", p->out);
}

void emit_narrow_cuda(FILE *out, Graph *g, const Code *code) {
    const CodeNarrow *n = code->narrow;
    CPrinter p = cuda_printer(out, g, code), finish;
    p.product = "narrow_sum8<Shape>(row, (int)c0";
    if (n->finish) finish = finish_printer(&p, n->finish);
    print_narrow_head(&p, n->finish ? &finish : NULL);
    cuda_open_views(&p);
    if (n->finish) cuda_open_views(&finish);
    open_narrow(&p);
    if (n->finish) print_narrow_loads(&finish);
    print_narrow_middle(&p);
    c_line(&p, "const NarrowTerms terms = {%s, %s, %s};", c_number(&p, n->scale),
           n->addend ? "addend" : "nullptr", n->bias ? "bias" : "nullptr");
    c_line(&p, "narrow_second<Shape>(terms, launched);");
    if (n->finish)
        print_narrow_finish(&finish);
    else
        c_line(&p, "narrow_store<Shape>(c, launched);");
    fputs("}\n#endif\n\n", out);
}
