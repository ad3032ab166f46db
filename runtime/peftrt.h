/* The layout of a compiled program: what peftc writes into an executable and the runtime reads.
 * This is the only header that compiler and runtime share. The compiler never sees a device; the
 * runtime never sees a graph.
 *
 * A program is tables: variables (storage that lives from step to step), functions (lists of steps
 * over temporary buffers) and kernels (code shared by steps). Buffer sizes stay expressions in the
 * batch's symbols until the data is known; the planner (plan.h) then gives every buffer an offset
 * in one arena.
 */
#ifndef PEFTRT_H
#define PEFTRT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PEFT_PROGRAM_VERSION 1
#define PEFT_MAX_RANK        2

/* How values lie in memory. The last two are the compiler's choice for matrices and depend on the
 * device: float everywhere but on a GPU that computes in bf16 (a work value of two bytes). */
typedef enum DType {
    DT_F32,
    DT_I32,
    DT_NF4,       /* blocks of 64 with double quantisation (cpu/nf4.h) */
    DT_NF4_PLAIN, /* one float absmax per block */
    DT_WORK,      /* float, or bf16 */
    DT_MASTER     /* float, or its bf16 in one plane before what the rounding left out in another */
} DType;

static inline bool peft_is_nf4(uint8_t dtype) {
    return dtype == DT_NF4 || dtype == DT_NF4_PLAIN;
}

/* ---- symbolic dimensions ---- */

/* A dimension is a constant >= 0 or a symbol, negative: -(symbol index), -(symbol index + 16) for
 * one more than the symbol (sequence offsets have S + 1 entries). */
enum {
    PEFT_SYM_T = 1, /* tokens in the batch; padding does not exist */
    PEFT_SYM_S = 2, /* sequences in the batch */
    PEFT_SYM_M = 3, /* masked positions in the batch (masked-language-model programs) */
    PEFT_SYM_L = 4, /* longest sequence in the batch */
    PEFT_SYM_P = 5, /* threads; 0: a GPU runs the steps */
    PEFT_SYM_W = 6, /* bytes of a work value: 4 or 2 */
    PEFT_SYM_COUNT = 7
};
#define DIM_T           (-PEFT_SYM_T)
#define DIM_S           (-PEFT_SYM_S)
#define DIM_M           (-PEFT_SYM_M)
#define DIM_L           (-PEFT_SYM_L)
#define DIM_P           (-PEFT_SYM_P)
#define DIM_PLUS_ONE(d) ((d) < 0 ? (d)-16 : (d) + 1)

/* A GPU works as if every batch had a multiple of this many tokens and masked positions, so that
 * few sizes serve all batches. Matrices have those rows; they are zero (cuda/kernel_cuda.h). */
#define PEFT_ROW_STEP 64

/* Value of a dimension, given the symbols' values. */
static inline int64_t peft_dim(int64_t d, const int64_t sym[PEFT_SYM_COUNT]) {
    return d >= 0 ? d : sym[-d & 15] + (-d >> 4);
}

/* ---- what a batch carries: INPUT nodes by name ---- */

/* clang-format off */
/*         name               dtype   rank dims         */
#define PEFT_INPUTS(X)                                                                       \
    X(tokens, DT_I32, 1, DIM_T, 0)                /* vocabulary ids, packed */               \
    X(token_types, DT_I32, 1, DIM_T, 0)           /* segment ids, all 0 for one phrase */    \
    X(positions, DT_I32, 1, DIM_T, 0)             /* position within the sequence */         \
    X(token_sample, DT_I32, 1, DIM_T, 0)          /* data-set row of each token */           \
    X(offsets, DT_I32, 1, DIM_PLUS_ONE(DIM_S), 0) /* start of each sequence, then T */       \
    X(first, DT_I32, 1, DIM_S, 0)                 /* row of each sequence's first token */   \
    X(seq_sample, DT_I32, 1, DIM_S, 0)            /* data-set row of each sequence */        \
    X(labels, DT_I32, 1, DIM_S, 0)                /* class of each sequence */               \
    X(targets, DT_F32, 2, DIM_S, 1)               /* regression target of each sequence */   \
    X(masked_positions, DT_I32, 1, DIM_M, 0)      /* rows of the masked tokens */            \
    X(masked_ids, DT_I32, 1, DIM_M, 0)            /* their true ids */                       \
    X(rng, DT_I32, 1, 4, 0)       /* seed low, seed high, step, dropout on (1) or off (0) */ \
    X(sequences, DT_F32, 0, 0, 0) /* sequences in the whole (accumulated) batch */           \
    X(masked, DT_F32, 0, 0, 0)    /* masked positions in the whole (accumulated) batch */    \
    X(lr, DT_F32, 0, 0, 0)        /* peak learning rate */                                   \
    X(warmup_steps, DT_F32, 0, 0, 0)                                                         \
    X(total_steps, DT_F32, 0, 0, 0)                                                          \
    X(weight_decay, DT_F32, 0, 0, 0)                                                         \
    X(clip_norm, DT_F32, 0, 0, 0)

typedef enum PeftInputId {
#define X(name, dtype, rank, d0, d1) PEFT_IN_##name,
    PEFT_INPUTS(X)
#undef X
        PEFT_IN_COUNT
} PeftInputId;

/* ---- functions ---- */

typedef enum PeftFn {
    PEFT_FN_EVAL,   /* logits and loss, no dropout */
    PEFT_FN_TRAIN,  /* one optimizer step; with accumulation, one micro-batch into the accumulators
                     */
    PEFT_FN_UPDATE, /* with accumulation only: clip, AdamW, accumulators back to zero */
    PEFT_FN_GRADIENTS, /* loss, logits and every gradient, nothing updated (replay) */
    PEFT_FN_START,     /* initial values computed from the base weights, once (DoRA's magnitudes) */
    PEFT_FN_COUNT
} PeftFn;

/* ---- tables ---- */

typedef enum PeftClass {                      /* rows of every memory report */
                         PEFT_MEM_WEIGHT,     /* model parameters, frozen and trainable */
                         PEFT_MEM_GRADIENT,   /* gradients of trainable parameters */
                         PEFT_MEM_OPTIMIZER,  /* moments, accumulators, counters */
                         PEFT_MEM_ACTIVATION, /* made in the forward pass */
                         PEFT_MEM_BACKWARD,   /* other values of the backward pass and the optimizer
                                               */
                         PEFT_MEM_WORKSPACE,  /* scratch of one step */
                         PEFT_MEM_INPUT,      /* the batch */
                         PEFT_MEM_CLASSES
} PeftClass;

typedef enum PeftInit { PEFT_ZEROS, PEFT_ONES, PEFT_CONSTANT, PEFT_NORMAL, PEFT_UNIFORM } PeftInit;

typedef struct PeftVar {
    const char *name;  /* tensor name as in weight files */
    const char *block; /* kind of block that declared it, or "" */
    const char *where; /* "lib/bert.bert:12" */
    uint8_t dtype, rank, is_state, trainable, fresh, decay, init;
    double init_value; /* constant, standard deviation or bound, as `init` says */
    int64_t dim[PEFT_MAX_RANK];
    uint8_t derived; /* its initial value is computed by PEFT_FN_START */
} PeftVar;

typedef struct PeftTemp {
    const char *label; /* node, for the memory report */
    const char *where;
    uint8_t dtype, rank, mem_class, unused;
    int32_t first, last;        /* steps that write and last read it, inclusive */
    int64_t dim[PEFT_MAX_RANK]; /* WORKSPACE: rank 0, the size comes from the step's kernel kind */
} PeftTemp;

/* A buffer reference in a step: kind in the top bits, index below. */
#define PEFT_REF_VAR      0x00000000
#define PEFT_REF_INPUT    0x10000000 /* PeftInputId */
#define PEFT_REF_TEMP     0x20000000 /* index into the function's temporaries */
#define PEFT_REF_KIND(r)  ((r)&0x70000000)
#define PEFT_REF_INDEX(r) ((r)&0x0fffffff)

typedef enum PeftKernelKind {
    PEFT_KERNEL_MAP,        /* fn over ranges of rows */
    PEFT_KERNEL_COLUMN_SUM, /* fn over ranges of columns, each summing all rows in order */
    PEFT_KERNEL_FULL_SUM,   /* sum over everything: fixed chunks, added in order */
    PEFT_KERNEL_GEMM,       /* runtime GEMM with an optional generated epilogue */
    PEFT_KERNEL_ATTENTION,  /* runtime templates: arguments as the op's inputs, then its results */
    PEFT_KERNEL_ATTENTION_GRAD, /* results not needed are PEFT_REF_NONE */
    PEFT_KERNEL_INDEX,
    PEFT_KERNEL_SEGMENT_SUM,
    PEFT_KERNEL_TRANSPOSE
} PeftKernelKind;

#define PEFT_REF_NONE 0x70000000

/* Generated code. arg: the step's buffers in the order of PeftStep.arg; sym: the batch's symbols.
 */
typedef void (*PeftMapFn)(void *const *arg, const int64_t *sym, int64_t begin, int64_t end);
typedef double (*PeftSumFn)(void *const *arg, const int64_t *sym, int64_t begin, int64_t end);
/* Called on each finished row segment of a GEMM's result: row, first column, number of columns. */
typedef void (*PeftEpilogueFn)(void *const *arg, const int64_t *sym, int64_t row, int64_t col,
                               int64_t n);

/* How a GPU cuts a kernel's index space [rows, cols] into thread blocks. */
typedef enum PeftLaunch {
    PEFT_LAUNCH_NONE,     /* no generated code */
    PEFT_LAUNCH_ELEMENTS, /* a thread for each element */
    PEFT_LAUNCH_ROWS,     /* a block for each row */
    PEFT_LAUNCH_COLUMNS,  /* a block for PEFT_SUM_COLUMNS columns, all rows */
    PEFT_LAUNCH_SUM,      /* up to PEFT_SUM_BLOCKS blocks; the last one to end adds the parts up */
    PEFT_LAUNCH_NARROW    /* a block for PEFT_NARROW_ROWS rows and a part of the columns, in bf16 */
} PeftLaunch;

#define PEFT_SUM_COLUMNS 32
#define PEFT_SUM_BLOCKS  256
#define PEFT_NARROW_ROWS 16
#define PEFT_GROUP       32 /* most steps in one launch: their arguments fit a launch's 4 KB */

typedef struct PeftKernel {
    const char *name; /* "k017_bias_gelu_3072": stable and readable */
    PeftKernelKind kind;
    PeftMapFn map;           /* MAP, COLUMN_SUM */
    PeftSumFn sum;           /* FULL_SUM */
    PeftEpilogueFn epilogue; /* GEMM, or NULL */
    uint8_t launch; /* PeftLaunch of the CUDA kernel `name`; a GEMM's epilogue is one, too, unless
                       the product is plain */
    uint8_t group;           /* it takes the arguments of up to PEFT_GROUP steps, a y of the grid each */
    uint8_t vector;          /* elements of a thread at a time */
    int32_t block;           /* its threads in a block */
    int32_t parts, shared;   /* NARROW: of the columns; bytes of a block's memory, which a GPU need
                                not have */
    const int32_t *site;     /* dropout sites, its last parameters */
    int32_t nsite;
} PeftKernel;

typedef struct PeftGemm { /* C[m,n] = op(A) op(B), arguments 0, 1, 2 of the step are A, B, C */
    int64_t m, n, k;      /* dimensions, possibly symbolic */
    uint8_t trans_a, trans_b;
    uint8_t b_dtype; /* a DT_NF4 form is dequantised first, or while it is packed */
    uint8_t c_dtype; /* DT_WORK or DT_F32; A and B are in the work type */
    uint8_t plain;   /* all of it, epilogue included, is C = scale A B + addend + bias: */
    uint8_t joined;  /* a GPU computes the epilogue in a later step's kernel (PeftJoin) */
    int32_t addend, bias; /* arguments of C's shape and with a value for each column; -1: none */
    double scale;
    /* Two products through a narrow middle, the first's epilogue: a GPU multiplies the second where
     * the first stands, if it can in one kernel, `narrow`. */
    int32_t ahead, back; /* steps from the first to the second, and the other way round; 0: none */
    int32_t narrow;
    uint8_t finished; /* of the second: its epilogue is computed where the first stands, too */
} PeftGemm;

typedef struct PeftAttention {
    int32_t heads, site;
    int64_t rows;  /* DIM_T, or DIM_S: only first tokens query */
    int64_t width; /* heads * head size */
    double scale, p;
} PeftAttention;

typedef struct PeftIndex {
    int64_t n, rows,
        cols; /* index entries, table rows (may be symbolic); columns (SEGMENT_SUM, TRANSPOSE) */
} PeftIndex;

/* A MAP that a GPU computes together with the epilogue of an earlier product, which it reads row by
 * row: kernel `kernel` takes that step's arguments behind A and B, then those of the MAP. */
typedef struct PeftJoin {
    int32_t back; /* steps from the MAP back to the product */
    int32_t kernel;
} PeftJoin;

typedef struct PeftStep {
    int32_t kernel; /* index into the program's kernels */
    int32_t narg;
    int32_t nread; /* of them; those behind, and a GEMM's C (argument 2), are written */
    const int32_t *arg; /* buffer references */
    int64_t rows, cols; /* index space (MAP, *_SUM) */
    int32_t workspace;  /* reference to a workspace temporary, or PEFT_REF_NONE */
    uint8_t pass;       /* 0 forward, 1 backward, 2 optimizer */
    const void *desc;   /* PeftGemm, PeftAttention or PeftIndex by kind; a MAP's PeftJoin or NULL */
    const char *label;  /* the nodes in it: "matmul+add+gelu" */
    const char *where;  /* model line: "lib/bert.bert:31" */
} PeftStep;

typedef struct PeftOutput {
    const char *name; /* "loss", "logits", "grad.<tensor>" */
    int32_t ref;
    uint8_t rank;
    int64_t dim[PEFT_MAX_RANK];
} PeftOutput;

typedef struct PeftFunction {
    const PeftStep *step;
    const PeftTemp *temp;
    const PeftOutput *out;
    int32_t nstep, ntemp, nout;
} PeftFunction;

typedef struct PeftFit { /* the program's `fit` block; --set fit.NAME=VALUE overrides at run time
                            too */
    int32_t epochs, batch,
        accumulate; /* batch: sequences per optimizer step, in `accumulate` parts */
    double lr, warmup_ratio, weight_decay, clip_norm;
    double beta1, beta2, eps; /* compiled in */
    int64_t warmup_steps;     /* >= 0 overrides the ratio */
    uint64_t seed;
} PeftFit;

typedef struct PeftConfig { /* the encoder's dimensions, checked against the base folder's
                               config.json */
    int64_t vocab, hidden, layers, heads, ffn, positions, types, classes;
    double eps, dropout, attention_dropout;
} PeftConfig;

typedef enum PeftTask { PEFT_TASK_CLASSIFY, PEFT_TASK_REGRESS, PEFT_TASK_MLM } PeftTask;

typedef struct PeftMethod {    /* for adapter_config.json: facts about applied patches */
    const char *patch;         /* "lora", "houlsby", ... */
    const char *target;        /* last component of the patched path: "query" */
    int32_t count;             /* places it was applied */
    const char *param_name[8]; /* patch arguments: "rank", "alpha", ... */
    double param_value[8];
    int32_t nparam;
} PeftMethod;

typedef struct PeftCubin { /* CUDA code compiled ahead of time (cuda/code.h) */
    uint8_t major, minor;  /* compute capability it was compiled for */
    uint8_t work;          /* bytes of a work value: 4 or 2 */
    uint8_t part;          /* of CUDA_CODE_PARTS */
    size_t bytes;
    const void *image;
} PeftCubin;

typedef struct PeftProgram {
    int32_t version;           /* PEFT_PROGRAM_VERSION */
    const char *name, *source; /* "lora_r16"; path of the program text */
    const char *text; /* effective settings and derivation of counts, printed by a bare ./run */
    uint64_t hash;    /* of the tables: a checkpoint belongs to one program */
    PeftTask task;
    PeftConfig config;
    PeftFit fit;
    const PeftVar *var;
    int32_t nvar;
    const PeftMethod *method;
    int32_t nmethod;
    const PeftKernel *kernel;
    int32_t nkernel;
    PeftFunction fn[PEFT_FN_COUNT];
    bool needs_fp32; /* some work value is also given back as a float */
    const char *cuda_source; /* "" when compiled for the CPU alone */
    const PeftCubin *cubin;  /* of peftc --arch */
    int32_t ncubin;
} PeftProgram;

/* ---- what a step touches on a GPU ---- */

#define PEFT_GEMM_C 2 /* the argument that is a product's first result */

static inline const PeftJoin *peft_join(const PeftProgram *p, const PeftStep *s) {
    return p->kernel[s->kernel].kind == PEFT_KERNEL_MAP ? (const PeftJoin *)s->desc : NULL;
}

/* Its first arguments, so many, are those that it touches itself, and no later step for it. */
static inline int32_t peft_own_args(const PeftProgram *p, const PeftStep *s) {
    bool gemm = p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
    return gemm && ((const PeftGemm *)s->desc)->joined ? PEFT_GEMM_C + 1 : s->narg;
}

/* The second of two products through a narrow middle, of the first's step, or NULL. What the first's
 * launch needs for it are its arguments from 1 on, so many of all: those of its epilogue only where
 * that is part of the product, or of the launch. */
static inline const PeftStep *peft_second(const PeftProgram *p, const PeftStep *s) {
    const PeftGemm *g = (const PeftGemm *)s->desc;
    bool first = p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM && g->ahead;
    return first ? s + g->ahead : NULL;
}

static inline int32_t peft_product_args(const PeftStep *s) {
    const PeftGemm *g = (const PeftGemm *)s->desc;
    return g->plain || g->finished ? s->narg : PEFT_GEMM_C + 1;
}

/* Whether a GPU multiplies the step's product at an earlier one: the epilogue is left, at most. */
static inline bool peft_is_second(const PeftProgram *p, const PeftStep *s) {
    return p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM && ((const PeftGemm *)s->desc)->back;
}

/* Arguments of a step, those before `end`. */
typedef struct PeftSpan {
    const PeftStep *step;
    int32_t begin, end;
} PeftSpan;

/* What a GPU reads and writes where it launches step s: the epilogue that the step's kernel computes
 * of an earlier product, then its own arguments, then the second product's of two, with those of an
 * epilogue that it finishes; each may be empty. */
enum { PEFT_SPANS = 3 };
static inline void peft_spans(const PeftProgram *p, const PeftStep *s, PeftSpan span[PEFT_SPANS]) {
    const PeftJoin *join = peft_join(p, s);
    const PeftStep *product = join ? s - join->back : s, *second = peft_second(p, s);
    if (!second) second = s;
    span[0] = (PeftSpan){product, PEFT_GEMM_C, join ? product->narg : PEFT_GEMM_C};
    span[1] = (PeftSpan){s, peft_is_second(p, s) ? PEFT_GEMM_C : 0, peft_own_args(p, s)};
    span[2] = (PeftSpan){second, 1, second != s ? peft_product_args(second) : 1};
}

/* The entry point of every compiled program. */
int peft_main(const PeftProgram *program, int argc, char **argv);

#endif
