/* State of the C printer: c_expr.c writes expressions, c_body.c the loops around them. */
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
    bool *named;       /* the value is a variable here */
    int loop;          /* the loop being printed */
    const char *block; /* index into scratch of a block's columns, "c - b"; NULL: "c" */
    const char *first; /* first column of the loop, and how many: C expressions */
    const char *count;
    int indent;
} CPrinter;

void c_line(CPrinter *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const char *c_number(CPrinter *p, double x); /* a float literal */
const char *c_value(CPrinter *p, KVal v);
const char *c_atom(CPrinter *p, KVal v);
void c_name(CPrinter *p, KVal v, bool shared);
const char *c_index(CPrinter *p, Access access);
const char *c_scratch(const CPrinter *p);
bool c_is_filled(const KInstr *in);

#endif
