/* Matrix products whose epilogue is none: libraries compute scale * A B + addend + bias themselves,
 * so a GPU needs no kernel behind such a product. Invariant: what is recognised here is all that
 * the epilogue does. */
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

/* The terms of a sum, each kind once at most. */
static bool add_term(const Kernel *k, const Args *args, KVal v, PeftGemm *d) {
    const KInstr *in = &k->body->instr[v];
    double factor = factor_of(k, v);
    if (factor != 0) {
        bool first = d->scale == 0;
        d->scale = factor;
        return first;
    }
    if (in->op == K_ADD) return add_term(k, args, in->a, d) && add_term(k, args, in->b, d);
    if (in->op != K_LOAD) return false;
    int a = arg_read(k, args, in->tensor), c = arg_written(k, args, 0);
    Access access = access_of(k->body, in->tensor->type);
    int32_t *slot = access == ACCESS_ELEMENT ? &d->addend : &d->bias;
    bool fits = args->storage[c] == DT_WORK &&
                (access == ACCESS_ELEMENT
                     ? args->storage[a] == DT_WORK
                     : access == ACCESS_COLUMN &&
                           (args->storage[a] == DT_WORK || args->storage[a] == DT_MASTER));
    if (!fits || *slot >= 0) return false;
    *slot = a;
    return true;
}

bool plain_product(const Kernel *k, const Args *args, PeftGemm *d) {
    d->addend = d->bias = -1;
    d->scale = 0;
    d->plain = k->kind == PEFT_KERNEL_GEMM;
    if (k->kind == PEFT_KERNEL_GEMM && k->body)
        d->plain = k->nout == 1 && k->out_val[0] >= 0 && add_term(k, args, k->out_val[0], d) &&
                   d->scale != 0;
    if (!d->plain || !k->body) d->scale = 1;
    if (!d->plain) d->addend = d->bias = -1;
    return d->plain;
}
