/* From schedules to an executable's source: the tables of runtime/peftrt.h and the code of the
 * kernels.
 *
 * The tables are built in memory first (tables.c, temps.c); the C printer (c_tables.c, c_body.c)
 * and the memory report read them. Kernels whose code would be the same are one kernel (code.c).
 *
 * Arguments of a step, in order:
 *   MAP, COLUMN_SUM, FULL_SUM  the buffers it reads, then its results
 *   GEMM                       A, B, C, then what the epilogue reads, then its other results; C
 * holds the finished product when the epilogue is called and is its first result templates the op's
 * inputs, then its results; PEFT_REF_NONE for one not needed
 */
#ifndef PEFTC_EMIT_H
#define PEFTC_EMIT_H

#include <stdio.h>

#include "../kernel.h"
#include "../source.h"

typedef struct ProgramInfo {          /* what the tables say beside the graph */
    const char *name, *source, *text; /* as in PeftProgram */
    PeftTask task;
    PeftConfig config;
    PeftFit fit;
    const PeftMethod *method;
    int32_t nmethod;
    Sources *sources; /* names model lines; NULL: none are named */
    bool skip_join;   /* every kernel its own launch on a GPU */
} ProgramInfo;

/* A product's epilogue and a kernel over rows that reads its results, as one CUDA kernel: the
 * threads of a row compute the epilogue's elements, keep them, and go on with the row. */
typedef struct CodeJoin {
    const struct Code *epilogue, *rows;
    const int32_t *result; /* by argument of `rows`: the result of the epilogue that it is, or -1 */
    const bool *stored;    /* by result of the epilogue: something else reads it, too */
} CodeJoin;

/* Two products through a narrow middle with the epilogue of the first, and that of the second where
 * it is finished, as one CUDA kernel. */
typedef struct CodeNarrow {
    const struct Code *epilogue, *finish; /* NULL: a plain product, or its epilogue comes later */
    int32_t k, r, n, columns; /* A [., k] B1 is [., r], the result [., n]; columns of a block's */
    bool nt[2];               /* B1 is [r, k], B2 [n, r] */
    int32_t middle;           /* the result of the epilogue that is multiplied */
    const bool *stored;       /* by result of the epilogue: something else reads it, too */
    bool addend, bias;        /* of the second product, with its factor */
    double scale;
    int32_t shared; /* bytes of shared memory */
} CodeNarrow;

/* Generated code, shared by all steps whose kernels have the same body. */
typedef struct Code {
    const Kernel *kernel;   /* the first one that has it */
    const char *name;       /* "k017_bias_gelu_3072" */
    const char *where;      /* model lines of its nodes */
    const uint8_t *storage; /* DType of each argument that it reads or writes */
    int32_t vector;         /* elements of a CUDA thread at a time */
    bool launched;          /* some step launches it on a GPU */
    bool group;             /* several steps of an optimizer run it: a GPU launches them together */
    uint64_t hash;
    const char *key;
    int32_t steps;        /* that run it */
    const CodeJoin *join; /* CUDA code of two, kernel being that of `rows`; NULL: code of its own */
    const CodeNarrow
        *narrow; /* CUDA code of two products, kernel being the first's; NULL: of one */
} Code;

/* What stands behind an entry of PeftProgram.kernel. */
typedef struct CodeEntry {
    int32_t code;        /* index into Program.code, or -1: a routine of the runtime alone */
    const int32_t *site; /* dropout sites, in the order of the body's K_KEEP instructions */
    int32_t nsite;
} CodeEntry;

typedef struct Program {
    Graph *graph;      /* whose pool owns all of it */
    PeftProgram table; /* complete but for the function pointers */
    CodeEntry *entry;  /* [table.nkernel] */
    Code *code;
    int32_t ncode;
} Program;

/* Everything lives in the graph's pool. sched[fn] is NULL for functions the program does not have.
 */
Program *program_build(Graph *g, const ProgramInfo *info, Schedule *const sched[PEFT_FN_COUNT]);

/* Writes the C source of the program. False when writing failed. */
bool emit_c(FILE *out, const Program *p);

/* Both. */
bool emit_program(FILE *out, Graph *g, const ProgramInfo *info,
                  Schedule *const sched[PEFT_FN_COUNT]);

#endif
