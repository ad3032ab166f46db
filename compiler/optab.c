/* The op table: op.def expanded into what is known about every op, and into its five functions by
 * pasted names. An op without one of them does not link; one that has none by intention says so
 * with a word in op/rules.h. */
#include "op/rules.h"

#define OP(code, name, class, nin, nout, flags) \
    [OP_##code] = {#code, name, class, nin, nout, flags},
const OpInfo op_info[OP_COUNT] = {
#include "op.def"
};
#undef OP

#define grad_none   NULL
#define lower_none  NULL
#define sample_none NULL

#define OP(code, name, class, nin, nout, flags) \
    [OP_##code] = {.infer = infer_##code,       \
                   .grad = grad_##code,         \
                   .ref = ref_##code,           \
                   .lower = lower_##code,       \
                   .sample = sample_##code},
const OpRules op_rules[OP_COUNT] = {
#include "op.def"
};
#undef OP
