/* Multi-head attention over packed sequences, forward and backward, fp32, on the CPU.
 * Sequence s owns the rows offsets[s] .. offsets[s + 1] of K and V; there is no padding and no
 * mask. Invariants: nothing is allocated and nothing of size length x length is kept: the backward
 * pass recomputes probabilities from the log-sum-exp and draws the dropout mask again. A (sequence,
 * head) pair is computed by one thread in a fixed order, so threads do not change the result.
 *
 *   S = scale Q K',  P = softmax(S),  ctx = (P * keep) V,  lse = log sum exp S
 *   dV = (P * keep)' dctx,  dP = keep * (dctx V'),  dS = scale P * (dP - rowsum(P * dP)),
 *   dQ = dS K,  dK = dS' Q */
#ifndef PEFT_CPU_ATTENTION_H
#define PEFT_CPU_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Attention {
    int64_t sequences, heads, head_dim; /* head h owns columns h * head_dim .. of every matrix */
    const int32_t *offsets; /* [sequences + 1], ascending; equal ones: an empty sequence */
    bool cls_only; /* queries: row s for the first token of sequence s, instead of every token */
    float scale;
    const float *q, *k, *v; /* [queries, H], [tokens, H], [tokens, H] */
    int64_t ldq, ldk, ldv;  /* elements from row to row */
    float dropout;          /* probability of dropping a probability; 0: the rest is not used */
    uint64_t seed;
    uint32_t step, site;
    const int32_t *samples; /* [sequences] */
} Attention;

/* Scratch for a call on that many threads, sequences of at most max_len; 64-byte aligned. */
size_t attention_workspace_bytes(int threads, int64_t max_len, int64_t head_dim);

/* ctx [queries, H], lse [queries, heads]. A query of an empty sequence gets ctx 0, lse -inf. */
void attention_forward(const Attention *a, float *ctx, int64_t ldctx, float *lse, int threads,
                       void *workspace);

typedef struct AttentionGrad {
    const float *dctx; /* [queries, H] */
    int64_t lddctx;
    const float *lse; /* of the forward pass */
    float *dq, *dk,
        *dv; /* shapes of q, k, v; overwritten; NULL: not wanted, and its work is skipped */
    int64_t lddq, lddk, lddv;
} AttentionGrad;

void attention_backward(const Attention *a, const AttentionGrad *g, int threads, void *workspace);

#endif
