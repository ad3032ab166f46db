/* What the files of this folder share: the prototypes of every op's five functions, expanded from
 * op.def, and the helpers that keep those functions short.
 *
 * Conventions of the rules:
 *  - infer_ trusts the number of inputs and nothing else: types and attributes come from programs.
 *  - grad_ gets dy[k] in the type of result k. It may return a gradient in the broadcast shape of
 *    the result: the autodiff driver sums it down to the input. Only result 0 of an op carries a
 *    gradient; NULL in dx[i] means that the gradient is zero.
 *  - ref_ reads operands that may come from a user's file: an index outside its table gives NaN.
 *    PROJ gets all results of its producer as in[]; leaves get the value bound to them as in[0].
 *  - lower_ gets -1 for an operand that is not read at this element (tables, rng): it names the
 *    node itself.
 */
#ifndef PEFTC_OP_RULES_H
#define PEFTC_OP_RULES_H

#include "../kernel.h"

enum { MAX_RESULTS = 3 };

typedef bool InferRule(const Node *n, Type out[], char why[256]);
typedef void GradRule(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]);
typedef void RefRule(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]);
typedef void LowerRule(KBody *b, const Node *n, const KVal in[], KVal out[]);
typedef Node *SampleRule(Graph *g, int k);

/* ---- declared absent: optab.c makes these words NULL ---- */

/* Leaves have no inputs. */
#define grad_CONST grad_none
#define grad_VAR   grad_none
#define grad_INPUT grad_none
/* The driver files a result's gradient under its op. */
#define grad_PROJ grad_none
/* The user asked for it. */
#define grad_DETACH grad_none
/* Derivatives and indices of a backward pass: only a second derivative would need them. */
#define grad_STEP               grad_none
#define grad_GELU_GRAD          grad_none
#define grad_GELU_TANH_GRAD     grad_none
#define grad_SILU_GRAD          grad_none
#define grad_LAYER_NORM_GRAD    grad_none
#define grad_CROSS_ENTROPY_GRAD grad_none
#define grad_ATTENTION_GRAD     grad_none
#define grad_SCATTER            grad_none
#define grad_SEGMENT_SUM        grad_none
#define grad_INDEX              grad_none
/* The optimizer and its schedule come after the gradient. */
#define grad_MIN             grad_none
#define grad_MAX             grad_none
#define grad_BIAS_CORRECTION grad_none
#define grad_ADAMW           grad_none
/* Quantised weights are frozen. */
#define grad_DEQUANT grad_none

/* Buffers, views and runtime routines: no scalar code. */
#define lower_VAR            lower_none
#define lower_INPUT          lower_none
#define lower_PROJ           lower_none
#define lower_RESHAPE        lower_none
#define lower_DETACH         lower_none
#define lower_MATMUL         lower_none
#define lower_TRANSPOSE      lower_none
#define lower_ATTENTION      lower_none
#define lower_ATTENTION_GRAD lower_none
#define lower_INDEX          lower_none
#define lower_SEGMENT_SUM    lower_none

/* Leaves are what samples are made of. */
#define sample_CONST sample_none
#define sample_VAR   sample_none
#define sample_INPUT sample_none

#define OP(code, name, class, nin, nout, flags) \
    InferRule infer_##code;                     \
    GradRule grad_##code;                       \
    RefRule ref_##code;                         \
    LowerRule lower_##code;                     \
    SampleRule sample_##code;
#include "../op.def"
#undef OP

/* ---- building (common.c) ---- */

Attr attr_zero(void);
Attr attr_to(Type to); /* of RESHAPE and BROADCAST */
Node *nd_broadcast(Graph *g, Node *a, Type to);

/* graph_node with the inputs listed: NODE(g, OP_ADD, attr_zero(), a, b). */
#define NODE(g, op, attr, ...)                       \
    graph_node(g, op, attr, (Node *[]){__VA_ARGS__}, \
               (int)(sizeof((Node *[]){__VA_ARGS__}) / sizeof(Node *)))

/* ---- inference (common.c): false with the reason in `why` ---- */

bool why_not(char why[256], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *dim_str(int64_t d, char buf[64]); /* "768", "T" */
/* Operand i, called `what` in the message, is ... */
bool is_f32(const Node *n, int i, const char *what, char why[256]);    /* f32 of any shape */
bool is_matrix(const Node *n, int i, const char *what, char why[256]); /* f32 [R, C] */
bool is_index(const Node *n, int i, const char *what, char why[256]);  /* i32 [R] */
bool is_type(const Node *n, int i, const char *what, Type want, char why[256]);
bool is_dropout(double p, char why[256]); /* 0 <= p < 1 */
/* A type that a program may ask for: dimensions from 1 to 2^31 - 1, so that no product of two
 * overflows, or symbols; columns are constant, as kernels need them. */
bool is_sound(Type t, char why[256]);

/* ---- reference values (common.c) ---- */

int64_t ref_rows(const RefTensor *t); /* [R, C]: R; [C] and scalar: 1 */
int64_t ref_cols(const RefTensor *t); /* [R, C] and [C]: C; scalar: 1 */
/* Element (r, c) of the space that t broadcasts to. */
double ref_at(const RefTensor *t, int64_t r, int64_t c);
/* An integer operand as an index of a table of n rows; -1 when it is not one. */
int64_t ref_index(double v, int64_t n);
void ref_copy(const RefTensor *from, RefTensor *to);
void ref_fill(RefTensor *t, double value);
/* 0 or 1 / (1 - p): what dropout multiplies with; 1 when the context has dropout switched off. */
double ref_keep(const RefContext *c, double p, int32_t site, double sample, double position,
                int64_t column);

/* ---- lowering (common.c) ---- */

/* Reductions over the columns of `operand`, whose element is x: a [R, 1] operand is its own row
 * sum, whatever the width of the body it was fused into. */
KVal lower_row_sum(KBody *b, const Node *operand, KVal x);
KVal lower_row_max(KBody *b, const Node *operand, KVal x);

#endif
