/* The dataflow graph: what elaboration builds, autodiff extends, passes rewrite and emission reads.
 *
 * Nodes are immutable, typed at construction and hash-consed on (op, inputs, attributes): equal
 * expressions are one node, so common subexpressions never exist twice. Inputs have smaller ids
 * than their users: id order is a topological order. A rewrite makes new nodes; nothing is edited.
 *
 * A shape is constant except for symbols (T tokens in the batch, S sequences, M masked positions).
 * Activations are [T, width]; there is no padding. Row vectors are written [T,1] (one value a row),
 * column vectors [C] or [1,C]; broadcasting is by trailing dimensions, as everywhere else.
 */
#ifndef PEFTC_GRAPH_H
#define PEFTC_GRAPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../runtime/peftrt.h" /* DType, dimension symbols: the vocabulary shared with the runtime */

/* A byte range in one source file of the program; file -1: made by the compiler. */
typedef struct Span {
    int32_t file, begin, end;
} Span;

#define SPAN_NONE ((Span){-1, 0, 0})

/* Free of padding: types sit in hashed attributes. */
typedef struct Type {
    int32_t dt, rank;           /* DType; 0 (scalar) to PEFT_MAX_RANK */
    int64_t dim[PEFT_MAX_RANK]; /* > 0 constant, < 0 a symbol (DIM_T ...); unused ones are 0 */
} Type;

typedef enum OpCode {
#define OP(code, name, class, nin, nout, flags) OP_##code,
#include "op.def"
#undef OP
    OP_COUNT
} OpCode;

typedef enum OpClass {
    CLASS_LEAF,     /* var, input, constant: no computation */
    CLASS_EW,       /* one value per element of the index space */
    CLASS_ROW,      /* needs sums or maxima over its rows (layer norm, softmax, loss) */
    CLASS_LOAD,     /* an indexed load (gather, scatter, dequant): free to repeat in each user */
    CLASS_SUM,      /* sum: the axis decides (row, column or whole) */
    CLASS_GEMM,     /* matmul */
    CLASS_TEMPLATE, /* has a runtime routine of its own (attention, index, segment sum) */
    CLASS_VIEW      /* same bytes under another type (reshape, proj): costs nothing */
} OpClass;

enum OpFlags {
    OPF_COMMUTES = 1, /* inputs 0 and 1 may be swapped */
    OPF_CHEAP = 2     /* cheaper to recompute than to keep alive for the backward pass */
};

/* clang-format off */
/* Attributes by op family. Always zero-initialise the whole union: it is hashed and compared
 * bytewise, padding included. */
typedef union Attr {
    struct { double value; } constant;             /* CONST */
    struct { Type type; int32_t index; } leaf;     /* VAR: index into graph->var; INPUT: PeftInputId */
    struct { int32_t k; } proj;                    /* PROJ: which result */
    struct { int32_t axis; } sum;                  /* SUM: 0 over rows, 1 over columns, -1 all */
    struct { int32_t trans_a, trans_b; } matmul;   /* MATMUL */
    struct { Type to; } reshape;                   /* RESHAPE, BROADCAST: the new type */
    struct { double eps; } norm;                   /* LAYER_NORM */
    struct { double p; int32_t site; } dropout;    /* DROPOUT: site is unique per call in the model */
    struct {
        double scale, p;
        int32_t heads, site;
        uint32_t need; /* ATTENTION_GRAD: bits 0, 1, 2 for dq, dk, dv */
    } attention;
    struct { int64_t rows; } index;                /* INDEX, SEGMENT...: rows of the table */
    struct { double beta; } decay;                 /* BIAS_CORRECTION */
    struct { double beta1, beta2, eps; } adamw;
} Attr;
/* clang-format on */

typedef struct Node Node;
struct Node {
    OpCode op;
    int32_t id;
    int32_t nin;
    int32_t stream; /* part of the hash key: remat gives a clone another stream to keep it apart */
    Node **in;
    Attr attr;
    Type type; /* of result 0; results of multi-result ops are typed by their PROJ nodes */
    Span span; /* model text; a gradient node carries its forward node's */
    Node *of;  /* the forward node this one differentiates, or NULL */
};

typedef struct Init {
    PeftInit kind;
    double a; /* CONSTANT: value; NORMAL: standard deviation; UNIFORM: bound b of U(-b, b) */
} Init;

typedef enum VarKind {
    VAR_PARAM, /* a tensor of the model, named as in its weight file */
    VAR_STATE  /* optimizer moments, gradient accumulators, the step counter */
} VarKind;

/* Storage that lives from step to step. */
typedef struct Var {
    const char *name;
    Type type; /* logical; dt is the stored form (DT_F32, DT_NF4, DT_NF4_PLAIN) */
    VarKind kind;
    Init init;
    bool trainable;
    bool decay;        /* weight decay applies (not to biases and layer norms) */
    bool fresh;        /* may be absent from the base weights: a new head, a patch's parameter */
    int32_t group;     /* module instance that declared it, for reports; -1 for state */
    const char *block; /* kind of block that declared it ("linear", "lora", ...), or NULL */
    Span span;
} Var;

typedef struct Output {
    const char *name; /* "loss", "logits", "grad.<tensor>" */
    Node *node;
} Output;

typedef struct Update {
    int32_t var;
    Node *value; /* of the variable's type; written at the end of the function */
} Update;

/* A set of roots that is scheduled, planned and executed together. */
typedef struct Function {
    Output *out;
    int32_t nout;
    Update *update;
    int32_t nupdate;
} Function;

typedef struct Graph {
    struct Pool *pool; /* owns everything below */
    Node **node;
    int32_t n, cap;
    Node **bucket; /* hash table, open addressing */
    int32_t nbucket;
    Var *var;
    int32_t nvar;
    int32_t nsite;              /* dropout sites handed out so far */
    Function fn[PEFT_FN_COUNT]; /* PEFT_FN_EVAL, PEFT_FN_TRAIN, ... (peftrt.h) */
} Graph;

typedef struct OpInfo {
    const char *code, *name;
    OpClass class;
    int8_t nin, nout; /* nin -1: variadic */
    uint8_t flags;
} OpInfo;

extern const OpInfo op_info[OP_COUNT];

/* ---- building (graph.c) ---- */

Graph *graph_new(void);
void graph_free(Graph *g);
void *graph_alloc(Graph *g,
                  size_t bytes); /* zeroed, lives as long as the graph; aborts when out of memory */
char *graph_printf(Graph *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Makes (or finds) a node. On a type error returns NULL with the reason in `why` ("inner dimensions
 * differ, 768 and 3072"): an error of the user's model, reported by the caller at its span. */
Node *graph_try(Graph *g, OpCode op, Attr attr, Node *const *in, int nin, Span span, char why[256]);

/* The same for passes and gradient rules, where a type error is a bug: PANICs. */
Node *graph_node(Graph *g, OpCode op, Attr attr, Node *const *in, int nin);
Node *graph_stream(Graph *g, const Node *like, Node *const *in,
                   int32_t stream); /* clone kept apart */

int32_t graph_var(Graph *g, Var v);                       /* adds; index */
int32_t graph_find_var(const Graph *g, const char *name); /* -1 when absent */
void graph_output(Graph *g, PeftFn fn, const char *name, Node *node);
Node *graph_find_output(const Graph *g, PeftFn fn, const char *name); /* NULL when absent */
void graph_update(Graph *g, PeftFn fn, int32_t var, Node *value);

/* While set, new nodes get this span and forward node: gradient rules and rewrites inherit the
 * line. */
typedef struct Origin {
    Span span;
    Node *of;
} Origin;
Origin graph_set_origin(Graph *g, Origin o); /* returns the previous one */

/* Shorthands used by gradient rules, passes and elaboration (all PANIC on type errors). */
Node *nd_const(Graph *g, double value);
Node *nd_var(Graph *g, int32_t var);
Node *nd_input(Graph *g, PeftInputId id); /* a field of the batch, typed by PEFT_INPUTS */
Node *nd1(Graph *g, OpCode op, Node *a);
Node *nd2(Graph *g, OpCode op, Node *a, Node *b);
Node *nd_scale(Graph *g, Node *a, double by); /* a * constant */
Node *nd_matmul(Graph *g, Node *a, Node *b, bool trans_a, bool trans_b);
Node *nd_sum(Graph *g, Node *a, int axis);
Node *nd_proj(Graph *g, Node *multi, int k);
Node *nd_reshape(Graph *g, Node *a, Type to);

/* ---- types (type.c) ---- */

Type type_scalar(void);
Type type_f32(int rank, int64_t d0, int64_t d1);
Type type_i32(int64_t d0);
bool type_equal(Type a, Type b);
bool type_same_shape(Type a, Type b);
/* Broadcast of two shapes by trailing dimensions; false when they do not fit. */
bool type_broadcast(Type a, Type b, Type *out);
/* Rows and columns of the index space of a type: [R,C] -> R,C; [C] -> 1,C; scalar -> 1,1; i32 [R]
 * or any rank-1 type with a symbolic dimension -> R,1. */
void type_space(Type t, int64_t *rows, int64_t *cols);
const char *type_str(Type t, char buf[64]); /* "f32[T, 768]" */
/* Number of elements; -1 when a dimension is symbolic. */
int64_t type_count(Type t);

/* ---- traversal ---- */

/* The nodes the roots of a function need, in id order; *n of them, from the graph's pool. */
Node **graph_live(Graph *g, PeftFn fn, int32_t *n);
/* Rebuilds the functions given in `mask` (bit per PeftFn), replacing every live node by what
 * `rewrite` returns for it (given its already rewritten inputs; return NULL to rebuild it as is).
 */
typedef Node *(*RewriteFn)(Graph *g, const Node *old, Node *const *in, void *ctx);
bool graph_rewrite(Graph *g, unsigned mask, RewriteFn rewrite, void *ctx); /* true when changed */

/* ---- the five functions of each op (op/<family>.c), collected in optab.c ---- */

typedef struct KBody KBody; /* kernel.h */
typedef int32_t KVal;

typedef struct RefTensor { /* double-precision value for the interpreter */
    double *data;
    int64_t dim[PEFT_MAX_RANK];
    uint8_t rank;
    int64_t count;
} RefTensor;

typedef struct RefContext {
    const int64_t *sym; /* symbol values, indexed by PEFT_SYM(dim) */
    uint64_t seed;
    int32_t step;
    bool dropout; /* false: dropout is the identity */
} RefContext;

typedef struct OpRules {
    /* Result types from inputs and attributes; false with `why` on a type error. */
    bool (*infer)(const Node *n, Type out[], char why[256]);
    /* dx[i] for each i with need[i], given the gradients dy[k] of the results (NULL: no gradient
     * flows into result k). NULL rule ("grad_none"): not differentiable in any input. */
    void (*grad)(Graph *g, Node *n, Node *const dy[], const bool need[], Node *dx[]);
    /* Double-precision value of all results. */
    void (*ref)(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]);
    /* Appends the scalar code of one element (EW, ROW, LOAD, row SUM). NULL for other classes. */
    void (*lower)(KBody *b, const Node *n, const KVal in[], KVal out[]);
    /* Builds the k-th test instance on fresh inputs; NULL when there is no k-th. */
    Node *(*sample)(Graph *g, int k);
} OpRules;

extern const OpRules op_rules[OP_COUNT];

/* A bug of ours: prints file, line, message and the node, then aborts. */
#define PANIC(node, ...) peftc_panic(__FILE__, __LINE__, node, __VA_ARGS__)
_Noreturn void peftc_panic(const char *file, int line, const Node *n, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
