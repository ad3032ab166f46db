/* What the files of this folder share. */
#ifndef PEFTC_EMIT_INTERNAL_H
#define PEFTC_EMIT_INTERNAL_H

#include "../pass/fuse.h"
#include "../pass/schedule.h"
#include "emit.h"

/* ---- arguments (code.c) ---- */

/* How a buffer is indexed at element (r, c) of a kernel's space [rows, cols]. */
typedef enum Access {
    ACCESS_ELEMENT, /* r * cols + c */
    ACCESS_ROW,     /* r */
    ACCESS_COLUMN,  /* c */
    ACCESS_SCALAR   /* 0 */
} Access;

bool is_padded_dim(int64_t d); /* a GPU rounds it up: PEFT_ROW_STEP */
Access access_of(const KBody *b, Type t);

/* Buffers of a kernel in the order of its arguments; `result` arguments come last. */
typedef struct Args {
    Node **node;      /* NULL: a result that is not needed */
    uint8_t *storage; /* DType of each, where the tables are built */
    int32_t n, nread;
} Args;

Args kernel_args(Graph *g, const Kernel *k);
/* The argument that the body reads a tensor from, or that a result goes to. */
int arg_read(const Kernel *k, const Args *args, const Node *tensor);
int arg_written(const Kernel *k, const Args *args, int out);

/* The kernel with a body of live instructions alone. */
const Kernel *compact_kernel(Graph *g, const Kernel *k);
/* The index into Program.code of a kernel's code (a new one, or an equal one that exists), and the
 * dropout sites of this kernel. */
int32_t code_find(Graph *g, Program *p, const Kernel *k, const Args *args, const char *where,
                  CodeEntry *entry);
/* The same for the CUDA code of two that exist. */
int32_t code_find_join(Graph *g, Program *p, const CodeJoin *join, const char *where);
int32_t code_find_narrow(Graph *g, Program *p, const CodeNarrow *narrow, const char *where);
/* Names of a kernel's ops, "matmul+add+gelu". */
char *kernel_label(Graph *g, const Kernel *k, char join, int most);

/* ---- storage (storage.c) ---- */

typedef struct Storage {
    const Graph *g;
    const bool *bias;    /* by variable: a vector that products read in their epilogue */
    const uint8_t *temp; /* by id of temporaries' nodes, of one function */
} Storage;

bool is_output(const Function *f, const Node *n); /* the function gives the buffer back */
Storage new_storage(Graph *g, Schedule *const sched[PEFT_FN_COUNT]); /* of no function yet */
void function_storage(Storage *s, Graph *g, PeftFn fn, const Schedule *sched, bool *needs_fp32);
uint8_t var_storage(const Storage *s, int32_t var);
uint8_t storage_of(const Storage *s, const Node *n); /* of any buffer */

/* ---- products (product.c) ---- */

/* Whether all of a GEMM is scale * A B + addend + bias; fills in these four fields. */
bool plain_product(const Kernel *k, const Args *args, PeftGemm *d);

/* ---- joins (join.c) ---- */

/* By step: the earlier product whose epilogue its CUDA kernel computes, and the later step whose
 * kernel computes its epilogue; -1: none. A step has one of the two at most. */
typedef struct Joins {
    int32_t *product, *rows;
} Joins;

/* By step: the later product that its CUDA kernel multiplies its epilogue by, and the earlier one
 * that multiplies its operand; -1: none. A step has one of the two at most. finished: by step of a
 * second product, that its epilogue is computed with it. */
typedef struct Pairs {
    int32_t *second, *first;
    bool *finished;
} Pairs;

Joins find_joins(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, bool skip);
/* How the kernels of steps `product` and `rows` fit together; the codes are the caller's. */
CodeJoin *describe_join(Graph *g, PeftFn fn, const Schedule *s, int32_t product, int32_t rows);
bool body_reads(const Kernel *k, const Node *buffer);
/* Does the kernel read the buffer at the element it computes and nowhere else? */
bool body_reads_in_place(const Kernel *k, const Node *buffer);

/* ---- two products through a narrow middle (narrow.c) ---- */

Pairs find_pairs(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, Joins joins,
                 bool skip);
/* How the products of steps `first` and `second` are one kernel; its epilogues are the caller's. */
CodeNarrow *describe_narrow(Graph *g, PeftFn fn, const Schedule *s, const PeftGemm *first,
                            const PeftGemm *second, int32_t at);

/* ---- temporaries (temps.c) ---- */

typedef struct Temps {
    PeftTemp *temp;
    int32_t n;
    int32_t *of;        /* by node id: temporary of a buffer node, or -1 */
    int32_t *workspace; /* by step: temporary, or -1 */
} Temps;

Temps find_temps(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, Joins joins,
                 Pairs pairs, Sources *sources);

/* "lib/bert.bert:31", "" when nothing is known. */
const char *where_of(Graph *g, Sources *sources, Span span);

/* ---- loops (loops.c): how a body is laid out in a row's loops, for every printer ---- */

/* A row is one loop over its columns when the body has no row reduction, one more for each
 * reduction that waits for another. A value is computed in the first loop that can; a later loop
 * that needs it again reads it from a scratch row when it was expensive, and computes it again
 * otherwise. Results are stored in the last loop, so that a result may overwrite an operand that is
 * read before. */
typedef struct Loops {
    int n;
    int32_t
        *phase; /* element values: their loop; row values: the loop before which they are known */
    bool *kept; /* has a scratch row */
    int *uses;  /* of element values in the loop last asked for */
} Loops;

Loops find_loops(Graph *g, const Kernel *k);
/* Fills uses[] with how often loop `at` reads each value there; 0: it is not computed in it. */
void loop_uses(const Kernel *k, Loops *l, int at);
/* Whether a result is stored within the last loop: it differs along the row. */
bool stored_in_loop(const Kernel *k, int out);
/* Sums over rows reduce what they name as their result: it is the loop's value, not stored. */
bool is_sum_kernel(const Kernel *k);
bool is_reduction(const KInstr *in);
bool reduces_buffer(const KBody *b, const KInstr *reduction);

/* ---- printing ---- */

void emit_kernel_c(FILE *out, Graph *g, const Code *code);
/* As CUDA C, to be compiled behind runtime/cuda/kernel_cuda.h. */
void emit_kernel_cuda(FILE *out, Graph *g, const Code *code);
void print_cubins(FILE *out, const PeftProgram *t);
/* How a kernel's CUDA form cuts its space, and the threads in a block of the code. */
PeftLaunch cuda_launch(const Kernel *k);
int32_t cuda_block(const Code *code);
/* Elements that a thread of the CUDA form works on at a time: CUDA_VECTOR, or 1 where some of them
 * cannot be loaded or stored together. */
#define CUDA_VECTOR 8
int32_t cuda_vector(Graph *g, const Code *code);

#endif
