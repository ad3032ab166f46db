/* Leaves: constants, variables and fields of the batch. They carry their type in their attributes
 * and their value comes from outside; a constant alone is computed. */
#include "rules.h"

bool infer_CONST(const Node *n, Type out[], char why[256]) {
    (void)n, (void)why;
    out[0] = type_scalar();
    return true;
}

void ref_CONST(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)c, (void)in;
    out[0].data[0] = n->attr.constant.value;
}

void lower_CONST(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    (void)in;
    out[0] = kb_const(b, n->attr.constant.value);
}

bool infer_VAR(const Node *n, Type out[], char why[256]) {
    out[0] = n->attr.leaf.type;
    return is_sound(out[0], why);
}

void ref_VAR(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    ref_copy(&in[0], &out[0]);
}

bool infer_INPUT(const Node *n, Type out[], char why[256]) {
    out[0] = n->attr.leaf.type;
    if (n->attr.leaf.index < 0 || n->attr.leaf.index >= PEFT_IN_COUNT)
        return why_not(why, "a batch has no input number %d", n->attr.leaf.index);
    return is_sound(out[0], why);
}

void ref_INPUT(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    ref_copy(&in[0], &out[0]);
}
