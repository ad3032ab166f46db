/* The kernel IR: the scalar code of one element of an index space [rows, columns], with row
 * reductions. The lower_ function of each op appends to a body; the fuser strings the ops of one
 * kernel together; printers turn a body into C (emit/c.c) or CUDA C. A value is one of three
 * levels, inferred: element (varies along the row), row (one per row: row sums, loads of [R,1]) or
 * uniform (scalars).
 */
#ifndef PEFTC_KERNEL_H
#define PEFTC_KERNEL_H

#include "graph.h"

typedef enum KOp {
    /* leaves */
    K_CONST,  /* number */
    K_COLUMN, /* this element's column, as an integer */
    K_LOAD,   /* element of `tensor` at this place of the space, broadcast by its shape */
    K_GATHER, /* element [a, column] of table `tensor` (or [a] of an index vector), a an integer row
                 value */
    K_SCATTER, /* element [a, column] of `tensor`, or 0 where integer row value a < 0 */
    /* arithmetic on a, b, c */
    K_NEG,
    K_EXP,
    K_LOG,
    K_SQRT,
    K_RECIP,
    K_SQUARE,
    K_TANH,
    K_SIGMOID,
    K_RELU,
    K_GELU,
    K_GELU_TANH,
    K_SILU,
    K_STEP,
    K_GELU_GRAD,
    K_GELU_TANH_GRAD,
    K_SILU_GRAD,
    K_BIAS_CORRECTION, /* 1 - number^a in double precision */
    K_ADD,
    K_SUB,
    K_MUL,
    K_DIV,
    K_MIN,
    K_MAX,
    K_EQ_SELECT, /* a == b ? c : 0 for integers a, b */
    /* dropout keep factor (0 or 1/(1-p)) of (rng tensor, site, sample a, position b, this column)
     */
    K_KEEP,
    /* row reductions: element -> row */
    K_ROW_SUM,
    K_ROW_MAX,
    K_OP_COUNT
} KOp;

typedef enum KLevel { LEVEL_UNIFORM, LEVEL_ROW, LEVEL_ELEMENT } KLevel;

typedef struct KInstr {
    KOp op;
    bool integer; /* value is an int32 */
    KLevel level;
    KVal a, b, c;       /* operands, or -1 */
    double number;      /* CONST, BIAS_CORRECTION's beta, KEEP's p */
    int32_t site;       /* KEEP */
    const Node *tensor; /* LOAD, GATHER, SCATTER: node whose buffer is read (an NF4 VAR is
                           dequantised on the fly); KEEP: the rng input */
} KInstr;

struct KBody {
    Graph *g;
    int64_t rows, cols; /* the index space; cols is always constant, rows may be symbolic */
    KInstr *instr;      /* SSA: operands have smaller indices */
    int32_t n, cap;
};

KBody *kb_new(Graph *g, int64_t rows, int64_t cols);
KVal kb_const(KBody *b, double number);
KVal kb_column(KBody *b);
KVal kb_load(KBody *b, const Node *tensor);
KVal kb_gather(KBody *b, const Node *table, KVal row);
KVal kb_scatter(KBody *b, const Node *tensor, KVal slot);
KVal kb_unary(KBody *b, KOp op, KVal x);
KVal kb_bias_correction(KBody *b, double beta, KVal step);
KVal kb_binary(KBody *b, KOp op, KVal x, KVal y);
KVal kb_eq_select(KBody *b, KVal x, KVal y, KVal then);
KVal kb_keep(KBody *b, const Node *rng, double p, int32_t site, KVal sample, KVal position);
KVal kb_row_sum(KBody *b, KVal x);
KVal kb_row_max(KBody *b, KVal x);
/* All of these find an equal instruction first: a body never holds the same value twice. */

/* ---- what fusion and scheduling produce ---- */

/* One kernel launch of a function: a step. */
typedef struct Kernel {
    PeftKernelKind kind;
    Node **node; /* the ops in it, in id order */
    int32_t nnode;
    Node *anchor; /* GEMM and template kinds: the node the runtime routine computes; else NULL */
    KBody *body;  /* code of MAP, COLUMN_SUM, FULL_SUM and of a GEMM's epilogue; NULL when there is
                     none */
    /* results: the value stored and the node it is (buffer, type); for sums the value summed */
    Node **out;
    KVal *out_val;
    int32_t nout;
    /* buffers read, each once, in the order of the kernel's arguments */
    Node **in;
    int32_t nin;
} Kernel;

typedef struct Schedule {
    Kernel **kernel;
    int32_t n;
} Schedule;

#endif
