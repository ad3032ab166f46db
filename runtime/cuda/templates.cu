/* The other CUDA kernels that are the same in every program; the text follows attention.cu.
 * Pointers are a step's buffers in the order of its arguments, sizes are dimensions of the batch
 * (peft_dim), so that a launch for the largest batch serves every smaller one: blocks beyond the
 * true size leave.
 *
 *   kernel               grid                                       threads of a block
 *   peft_index           n / 256, rounded up, at least 1            256
 *   peft_segment_sum     cols / 32, rounded up, by any y up to n    256
 *   peft_transpose       any; a block moves tiles of 32 x 32        256
 *   peft_nf4_dequant     count / 8192, rounded up; y: weights       128
 *
 * Invariant: no float is added atomically, and every order of summation depends on sizes alone.
 * Launches of peft_index must not overlap in time: its counter is global. */
#if PEFT_HAS_PART(2)

/* ---- gradient of an embedding: positions grouped by the row they looked up ---- */

static __device__ unsigned index_done;

/* order: positions sorted by (index, position). The place of one is the number of smaller ones,
 * counted: n comparisons for each of n positions are less work than a sort's barriers. */
static __device__ void index_sort(const int32_t *index, int32_t *order, int64_t n) {
    __shared__ int32_t chunk[256];
    for (int64_t i0 = (int64_t)blockIdx.x * 256; i0 < n; i0 += (int64_t)gridDim.x * 256) {
        const int64_t i = i0 + threadIdx.x;
        const int32_t value = i < n ? index[i] : 0;
        int place = 0;
        for (int64_t j0 = 0; j0 < n; j0 += 256) {
            const int m = (int)min((int64_t)256, n - j0);
            const int before = (int)min((int64_t)m, i > j0 ? i - j0 : 0); /* of i, in the chunk */
            __syncthreads();
            if ((int)threadIdx.x < m) chunk[threadIdx.x] = index[j0 + threadIdx.x];
            __syncthreads();
            for (int j = 0; j < m; j++)
                place += chunk[j] < value || (j < before && chunk[j] == value);
        }
        if (i < n) order[place] = (int32_t)i;
    }
}

/* Exclusive prefix sum over the 256 threads of a block, and the total. */
static __device__ int block_scan(int x, int *total) {
    __shared__ int sum[256];
    const int t = threadIdx.x;
    sum[t] = x;
    __syncthreads();
    for (int step = 1; step < 256; step *= 2) {
        const int add = t >= step ? sum[t - step] : 0;
        __syncthreads();
        sum[t] += add;
        __syncthreads();
    }
    *total = sum[255];
    return sum[t] - x;
}

/* start and slot from the order of all blocks; a thread has a run of places. */
static __device__ void index_segments(const int32_t *index, const int32_t *order, int32_t *start,
                                      int32_t *slot, int64_t n) {
    const int64_t run = (n + 255) / 256;
    const int64_t first = min(n, threadIdx.x * run), end = min(n, first + run);
    int heads = 0, used;
    for (int64_t at = first; at < end; at++)
        heads += at == 0 || index[__ldcg(&order[at])] != index[__ldcg(&order[at - 1])];
    int u = block_scan(heads, &used);
    for (int64_t at = first; at < end; at++) {
        const int32_t value = index[__ldcg(&order[at])];
        if (at > 0 && value == index[__ldcg(&order[at - 1])]) continue;
        start[u] = (int32_t)at;
        slot[value] = u++;
    }
    for (int64_t i = used + (int64_t)threadIdx.x; i <= n; i += 256) start[i] = (int32_t)n;
}

/* index [n] -> order [n], start [n + 1], slot [rows], as index_build of cpu/segment.h. */
extern "C" __global__ void __launch_bounds__(256)
    peft_index(const int32_t *index, int32_t *order, int32_t *start, int32_t *slot,
               const int64_t *sym, int64_t n_dim, int64_t rows_dim) {
    pk_begin();
    const int64_t n = peft_dim(n_dim, sym), rows = peft_dim(rows_dim, sym);
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    for (int64_t r = at; r < rows; r += (int64_t)gridDim.x * 256) slot[r] = -1;
    index_sort(index, order, n);
    if (last_block(&index_done)) index_segments(index, order, start, slot, n);
}

/* (dy [n, cols], order, start) -> out [n, cols]: row u is the sum over segment u, 0 beyond the last
 * one. A block is 32 columns by 8 parts of a segment, added in order. */
extern "C" __global__ void __launch_bounds__(256)
    peft_segment_sum(const work *dy, const int32_t *order, const int32_t *start, work *out,
                     const int64_t *sym, int64_t n_dim, int64_t cols) {
    pk_begin();
    __shared__ float part[8][32];
    const int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const int64_t n = peft_dim(n_dim, sym), end = peft_rows(n_dim, sym);
    const int64_t c = (int64_t)blockIdx.x * 32 + x;
    for (int64_t u = blockIdx.y; u < end; u += gridDim.y) {
        float sum = 0.0f;
        for (int i = u < n ? start[u] + y : 0; u < n && c < cols && i < start[u + 1]; i += 8)
            sum += pk_get(dy, order[i] * cols + c);
        part[y][x] = sum;
        __syncthreads();
        for (int i = 1; y == 0 && i < 8; i++) sum += part[i][x];
        if (y == 0 && c < cols) pk_put(out, u * cols + c, sum);
        __syncthreads();
    }
}

/* ---- the rest ---- */

/* in [cols, rows] -> out [rows, cols]; of a trained matrix, the plane that products read */
extern "C" __global__ void __launch_bounds__(256)
    peft_transpose(const work *in, work *out, const int64_t *sym, int64_t rows_dim,
                   int64_t cols_dim) {
    pk_begin();
    __shared__ work tile[32][33];
    const int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const int64_t rows = peft_rows(rows_dim, sym), cols = peft_rows(cols_dim, sym);
    const int64_t across = (cols + 31) / 32, tiles = (rows + 31) / 32 * across;
    for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
        const int64_t r = t / across * 32, c = t % across * 32;
        for (int i = y; i < 32; i += 8)
            if (c + i < cols && r + x < rows) tile[i][x] = in[(c + i) * rows + r + x];
        __syncthreads();
        for (int i = y; i < 32; i += 8)
            if (r + i < rows && c + x < cols) out[(r + i) * cols + c + x] = tile[x][i];
        __syncthreads();
    }
}

/* A batch from page-locked memory, in vectors of 16 bytes, and its symbols: a copy by a kernel
 * keeps the stream from changing to a copy engine and back, which would cost each step
 * microseconds. */
extern "C" __global__ void __launch_bounds__(256)
    peft_receive(const float4 *from, float4 *to, int64_t n, const int64_t *sizes, int64_t *sym,
                 int nsym) {
    pk_begin();
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at < nsym) sym[at] = sizes[at];
    for (int64_t i = at; i < n; i += (int64_t)gridDim.x * 256) to[i] = from[i];
}

/* Scalars, each NULL where there is none, to page-locked memory. */
extern "C" __global__ void __launch_bounds__(32)
    peft_send(const float *a, const float *b, const float *c, float *to) {
    pk_begin();
    const float *from = threadIdx.x == 0 ? a : threadIdx.x == 1 ? b : c;
    if (threadIdx.x < 3 && from) to[threadIdx.x] = *from;
}

/* The quantised weights of a product, or of a batch: in and out of each, aligned to 16 bytes, all
 * of count elements. A warp has 32 NF4 blocks. First each lane computes the absmax of one; then all
 * go through the blocks, four at a time, and a lane has eight elements, four bytes of codes. The 16
 * values lie in the lanes twice: a shuffle does not see what is above a code's four bits. Nothing
 * that is read here is ever written by a kernel, so that only the stores wait. */
extern "C" __global__ void __launch_bounds__(128)
    peft_nf4_dequant(const PkGroup<2> group, int64_t count, int double_quant) {
    const Nf4View v = nf4_view(group.arg[blockIdx.y][0], count, double_quant != 0);
    const int lane = threadIdx.x & 31;
    const int64_t first = ((int64_t)blockIdx.x * 128 + threadIdx.x - lane) * 64; /* of the warp */
    const int n = (int)max((int64_t)0, min((int64_t)2048, count - first)), whole = n & ~7;
    const uint32_t *word = (const uint32_t *)(v.codes + (first >> 1)) + lane; /* of codes */
    work *out = (work *)group.arg[blockIdx.y][1] + first;
    const float point = nf4_lut[lane & 15];
    uint32_t codes[8];
#pragma unroll
    for (int k = 0, at = lane * 8; k < 8; k++, at += 256) codes[k] = at < whole ? word[32 * k] : 0;
    const float own = lane * 64 < n ? nf4_absmax(v, (first >> 6) + lane) : 0.0f;
    pk_begin();
#pragma unroll
    for (int k = 0, at = lane * 8; k < 8; k++, at += 256) {
        const float absmax = __shfl_sync(PK_WARP, own, k * 4 + lane / 8);
        alignas(16) float value[8];
#pragma unroll
        for (int j = 0; j < 8; j++) { /* byte j / 2, high half first */
            const uint32_t code = codes[k] >> (j / 2 * 8 + 4 - j % 2 * 4);
            value[j] = __fmul_rn(__shfl_sync(PK_WARP, point, code), absmax);
        }
        if (at < whole) pk_put8(out, at, value);
    }
    if (lane < n - whole) pk_put(out, whole + lane, nf4_value(v, first + whole + lane));
}

#endif
