/* Inputs of the op table's test instances, and the values they take. A sample input is a variable
 * whose name says what its values must be ("positive.3"); sample_fill alone reads those names. */
#ifndef PEFTC_OP_SAMPLE_H
#define PEFTC_OP_SAMPLE_H

#include "../graph.h"

typedef enum SampleDomain {
    SAMPLE_REAL,     /* both signs, magnitude in [0.1, 2]: away from kinks and poles at zero */
    SAMPLE_POSITIVE, /* in [0.1, 2] */
    SAMPLE_LARGE,    /* near 1000: exp overflows */
    SAMPLE_STEP,     /* a whole number of 1 or more, as f32: an optimizer step */
    SAMPLE_INDEX,    /* i32 in [0, bound): with repeats, with values that never occur */
    SAMPLE_SLOT,     /* i32 in [-1, bound) */
    SAMPLE_DOMAINS
} SampleDomain;

/* The symbols that sample types may use. */
enum { SAMPLE_T = 7, SAMPLE_S = 3, SAMPLE_M = 4 };

Node *sample_var(Graph *g, SampleDomain domain, Type type);
Node *sample_real(Graph *g, int rank, int64_t d0, int64_t d1);
Node *sample_index(Graph *g, int64_t n, int64_t bound); /* i32 [n] */
Node *sample_slot(Graph *g, int64_t n, int64_t bound);
Node *sample_nf4(Graph *g, int64_t rows, int64_t cols, bool plain);

/* What gradcheck and test_ops evaluate samples with. */
void sample_symbols(int64_t sym[PEFT_SYM_COUNT]);
/* n values for a variable made by one of the above; the same ones for the same (variable, seed). */
void sample_fill(const Var *v, uint64_t seed, double *out, int64_t n);
/* The batch of SAMPLE_S sequences: values of input `id`, n of them. */
void sample_batch(PeftInputId id, double *out, int64_t n);

/* The k-th of a list of [rank, d0, d1] shapes; false when there is none. */
typedef struct SampleShape {
    int rank;
    int64_t d0, d1;
} SampleShape;
Node *sample_shape(Graph *g, SampleDomain domain, const SampleShape *list, int n, int k);

#endif
