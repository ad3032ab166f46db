/* Matrix products whose epilogue is none: libraries compute scale * A B + addend themselves, so a
 * GPU needs no kernel behind such a product. Invariant: what is recognised here is all that the
 * epilogue does. */
#include "internal.h"

/* Factor of the product in value v, or 0: v is not a multiple of it. */
static double factor_of(const Kernel *k, KVal v) {
    const KInstr *in = &k->body->instr[v];
    if (in->op == K_LOAD) return buffer_of(in->tensor) == k->anchor;
    if (in->op != K_MUL) return 0;
    const KInstr *a = &k->body->instr[in->a], *b = &k->body->instr[in->b];
    if (a->op == K_CONST) return a->number * factor_of(k, in->b);
    return b->op == K_CONST ? b->number * factor_of(k, in->a) : 0;
}

/* The argument that value v loads, stored as the product is, or -1. */
static int32_t addend_of(const Kernel *k, const Args *args, KVal v) {
    const KInstr *in = &k->body->instr[v];
    if (in->op != K_LOAD || !type_same_shape(in->tensor->type, k->out[0]->type)) return -1;
    int a = arg_read(k, args, in->tensor), c = arg_written(k, args, 0);
    return a != c && args->storage[a] == args->storage[c] ? a : -1;
}

bool plain_product(const Kernel *k, const Args *args, double *scale, int32_t *addend) {
    *scale = 1;
    *addend = -1;
    if (k->kind != PEFT_KERNEL_GEMM || !k->body) return k->kind == PEFT_KERNEL_GEMM;
    KVal v = k->out_val[0];
    if (k->nout != 1 || v < 0) return false;
    *scale = factor_of(k, v);
    if (*scale != 0) return true;
    const KInstr *in = &k->body->instr[v];
    for (int side = 0; in->op == K_ADD && side < 2; side++) {
        *scale = factor_of(k, side ? in->b : in->a);
        *addend = addend_of(k, args, side ? in->a : in->b);
        if (*scale != 0 && *addend >= 0) return true;
    }
    return false;
}
