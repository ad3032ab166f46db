/* State of the C and CUDA printers: c_expr.c writes expressions, c_body.c and cuda_body.c the loops
 * around them. */
#ifndef PEFTC_C_PRINT_H
#define PEFTC_C_PRINT_H

#include "internal.h"

typedef struct CPrinter {
    FILE *out;
    Graph *g;
    const Code *code;
    const Kernel *kernel;
    const KBody *body;
    Args args;
    Loops loops;
    bool cuda;                 /* a thread computes single elements: no scratch rows */
    int first_arg, first_site; /* of the kernel, among those of a code of two */
    int first_value;           /* of its vectors, so */
    bool vector;               /* within the loop over a vector's elements */
    bool early;                /* vectors are loaded at the row's head */
    const char *vectors;       /* that a thread loads so, a C expression, number j in a loop over
                                  them; NULL: one */
    bool live;                 /* the row may be one that the batch does not have: !live */
    const bool *stored;        /* by result: it is stored; NULL: all are */
    const char *product;       /* a call that loads a vector of the kernel's product from where the
                                  same kernel has it, up to the last operand; NULL: from memory */
    const char *column;        /* of the element: a C expression; NULL: "c" */
    struct CPrinter *epilogue; /* of such a code's row: what comes before it */
    bool *named;               /* the value is a variable here */
    int loop;                  /* the loop being printed */
    const char *block;         /* index into scratch of a block's columns, "c - b"; NULL: "c" */
    const char *first;         /* first column of the loop, and how many: C expressions */
    const char *count;
    int indent;
} CPrinter;

/* Lines of code, braces and what they enclose, the comment above a kernel: its ops and model lines.
 */
/* cuda_body.c: what its kernels share with those of cuda_narrow.c (emit_narrow_cuda). Of a head's
 * parameters cuda_pointers prints those from argument `from` on, cuda_numbers what follows them
 * all.
 */
CPrinter cuda_printer(FILE *out, Graph *g, const Code *code);
void cuda_head(CPrinter *p);
bool *cuda_written_args(const CPrinter *p);
void cuda_pointers(CPrinter *p, const bool *written, int from);
void cuda_numbers(CPrinter *p, int sites);
int cuda_sites(const KBody *b);
void cuda_open_views(CPrinter *p);
bool cuda_has_padding(const Kernel *k);
void cuda_name_elements(CPrinter *p, int at);
void emit_narrow_cuda(FILE *out, Graph *g, const Code *code);

/* cuda_vector.c: the loop over the elements of a vector, from column c0 on, with what it loads
 * before and stores behind; in between loads are x[u], dropout factors k[u], results y[u], those
 * of several vectors x[j][u] and k[j][u]. */
void cuda_declare_vectors(CPrinter *p);
/* The array of a vector's loads, kind 'x', or factors, 'k'. */
const char *cuda_vector_name(CPrinter *p, char kind, KVal v);
void cuda_load_early(CPrinter *p);   /* what all loops read, but for what follows from indices */
void cuda_gather_early(CPrinter *p); /* that, and dropout factors: the row's values have names */
void cuda_open_vector(CPrinter *p);
void cuda_close_vector(CPrinter *p);
void cuda_store_vector(CPrinter *p); /* what closing it does behind the loop */
bool cuda_is_vector_load(const CPrinter *p, KVal v);
/* What pk_keep_one and pk_keep8 take of a K_KEEP instruction, up to the column. */
const char *cuda_keep_operands(CPrinter *p, KVal v);
bool cuda_is_vector_result(const CPrinter *p, int out);

void c_line(CPrinter *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void c_open(CPrinter *p, const char *text);
void c_close(CPrinter *p);
void c_comment(CPrinter *p);
bool *c_begin_scope(CPrinter *p); /* p->named is set back to the result where the scope ends */

const char *c_number(CPrinter *p, double x); /* a float literal */
const char *c_value(CPrinter *p, KVal v);
const char *c_atom(CPrinter *p, KVal v);
void c_name(CPrinter *p, KVal v, bool shared);
const char *c_index(CPrinter *p, Access access);
const char *c_place(CPrinter *p, KVal v); /* where a K_LOAD, K_GATHER or K_SCATTER reads */
const char *c_scratch(const CPrinter *p);
bool c_is_filled(const CPrinter *p, const KInstr *in);
int c_site(const CPrinter *p, KVal v);
bool c_is_shared(const CPrinter *p, KVal v); /* read by another level or loop, or twice */
/* The result of the epilogue before it that argument a of a row's code is, or -1. */
int32_t c_joined(const CPrinter *p, int a);
/* On a GPU: the ending of pk_get and pk_put for argument a, and their operands up to the place. */
const char *c_access(const CPrinter *p, int a);
const char *c_operands(CPrinter *p, int a, const char *at, Type t);
void c_store(CPrinter *p, int out, const char *at, const char *value); /* into result `out` */
void c_stores(CPrinter *p, bool in_loop); /* results of the last loop, or of the row after it */
void c_scalars(CPrinter *p, KLevel level, int phase); /* names values known after `phase` loops */

#endif
