/* The attention kernels, for every program; the text follows attention_short.cu. Pointers are a
 * step's buffers in the order of its arguments; blocks beyond the batch leave. A block finds out
 * itself which way its sequence goes, because one launch serves batches of different lengths.
 *
 *   kernel               grid                               threads of a block
 *   peft_attention       S by heads                         ATTENTION_THREADS
 *   peft_attention_grad  S by heads                         ATTENTION_THREADS */
#if PEFT_HAS_PART(0)
/* (q, k, v, offsets, rng, sample) -> context, lse. rows_dim: DIM_T, or DIM_S where only the first
 * token of each sequence is a query. */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    peft_attention(const work *q, const work *k, const work *v, const int32_t *offsets,
                   const int32_t *rng, const int32_t *sample, work *context, float *lse,
                   const int64_t *sym, int dim, int64_t width, int64_t rows_dim, float scale,
                   float p, int site) {
    pk_begin();
    alignas(128) __shared__ work memory[ATTEND_MEMORY];
    const DropoutKey key = dropout_key(rng, sample, site, p);
    const Head h = head_of_block(offsets, sym, dim, width, rows_dim, memory);
    if (h.len > 0) {
        const AttentionInput in = {of_queries(h, q), of_keys(h, k), of_keys(h, v), scale, key};
        const Matrix to = of_queries(h, context);
        if (!attend_short(h, in, to, lse)) attend_long(h, in, to, lse);
    } else if (h.queries > 0) {
        clear_row(h, context);
        if (threadIdx.x == 0) lse[(int64_t)h.query0 * h.heads + h.head] = -PK_INF;
    }
    clear_rest(h, context, sym, rows_dim);
}
#endif

#if PEFT_HAS_PART(1)
/* (dcontext, q, k, v, lse, offsets, rng, sample) -> dq, dk, dv, each NULL where it is not wanted.
 */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    peft_attention_grad(const work *dcontext, const work *q, const work *k, const work *v,
                        const float *lse, const int32_t *offsets, const int32_t *rng,
                        const int32_t *sample, work *dq, work *dk, work *dv, const int64_t *sym,
                        int dim, int64_t width, int64_t rows_dim, float scale, float p, int site) {
    pk_begin();
    alignas(128) __shared__ work memory[GRAD_MEMORY];
    const DropoutKey key = dropout_key(rng, sample, site, p);
    const Head h = head_of_block(offsets, sym, dim, width, rows_dim, memory);
    if (h.len > 0) {
        const AttentionGrad g = {{of_queries(h, q), of_keys(h, k), of_keys(h, v), scale, key},
                                 of_queries(h, dcontext),
                                 lse + (int64_t)h.query0 * h.heads + h.head};
        const Gradients out = {dq, dk, dv};
        if (!grad_short(h, g, out)) grad_long(h, g, out);
    } else if (dq && h.queries > 0) {
        clear_row(h, dq);
    }
    clear_rest(h, dq, sym, rows_dim);
    clear_rest(h, dk, sym, -PEFT_SYM_T);
    clear_rest(h, dv, sym, -PEFT_SYM_T);
}
#endif
