/* The CUDA kernels that are the same in every program; the text follows kernel_cuda.h. Pointers are
 * a step's buffers in the order of its arguments, sizes are dimensions of the batch (peft_dim), so
 * that a launch for the largest batch serves every smaller one: blocks beyond the true size leave.
 *
 *   kernel               grid                                       threads of a block
 *   peft_attention       S * heads                                  ATTENTION_THREADS
 *   peft_attention_grad  S * heads                                  ATTENTION_THREADS
 *   peft_index           n / 256, rounded up, at least 1            256
 *   peft_segment_sum     cols / 32, rounded up, by any y up to n    256
 *   peft_transpose       any; a block moves tiles of 32 x 32        256
 *   peft_nf4_dequant     count / 2048, rounded up                   256
 *
 * Invariant: no float is added atomically, and every order of summation depends on sizes alone.
 * Launches that use peft_index or grid_sum must not overlap in time: their counters are global. */

/* ---- attention ----
 *
 *   S = scale Q K',  P = softmax(S),  context = (P * keep) V,  lse = log sum exp S
 *   dV = (P * keep)' dcontext,  dP = keep * (dcontext V'),  delta = rowsum(P * dP),
 *   dS = scale P * (dP - delta),  dQ = dS K,  dK = dS' Q
 *
 * A block is one (sequence, head); a warp takes one row at a time (a query; a key for dK and dV)
 * against tiles of the rows opposite, a lane for every 32nd of them. Two tiles are in shared memory
 * at a time: for a sequence that fits them they are loaded once. */

enum {
    ATTENTION_THREADS = 128,
    ATTENTION_WARPS = ATTENTION_THREADS / 32,
    ATTENTION_LENGTH = 512,     /* longest sequence */
    ATTENTION_HEAD = 128,       /* widest head */
    TILE_ROWS = 64,             /* of a tile, where TILE_FLOATS hold them */
    TILE_FLOATS = 64 * 65,      /* 64 rows of heads up to 64, 32 of those up to 128 */
    LANE_ROWS = TILE_ROWS / 32, /* of a tile, in a lane */
    LANE_COLUMNS = ATTENTION_HEAD / 32
};

/* An odd distance between rows puts the lanes' rows into different banks. */
typedef struct Tile {
    float at[TILE_FLOATS];
} Tile;

typedef struct Head { /* of one sequence */
    int head, heads, seq, dim, len, queries;
    int ld, tile_rows;    /* of a tile */
    int64_t query0, key0; /* first rows */
    int64_t width, col;   /* of a matrix: columns, first one of this head */
} Head;

/* False for blocks without work: beyond the batch. What shared memory was not made for must not get
 * here; if it does, it stops rather than write over other values. */
static __device__ bool head_of_block(const int32_t *offsets, const int64_t *sym, int heads,
                                     int64_t width, int64_t rows_dim, Head *h) {
    const bool first_only = rows_dim == -PEFT_SYM_S;
    h->heads = heads;
    h->head = blockIdx.x % heads;
    h->seq = blockIdx.x / heads;
    if (h->seq >= sym[PEFT_SYM_S]) return false;
    h->dim = (int)(width / heads);
    h->key0 = offsets[h->seq];
    h->len = offsets[h->seq + 1] - (int)h->key0;
    if (h->len > ATTENTION_LENGTH || h->dim > ATTENTION_HEAD) __trap();
    h->queries = first_only ? 1 : h->len;
    h->query0 = first_only ? h->seq : h->key0;
    h->width = width;
    h->col = (int64_t)h->head * h->dim;
    h->ld = h->dim | 1;
    h->tile_rows = TILE_FLOATS / h->ld < TILE_ROWS ? TILE_FLOATS / h->ld : TILE_ROWS;
    return true;
}

static __device__ float head_keep(const Head &h, PhiloxRow row, int query, int key) {
    row.position = (uint32_t)h.head << 16 | (uint32_t)query;
    return philox_keep(row, key);
}

/* n rows of this head, by the whole block. */
static __device__ void load_tile(const Head &h, Tile *tile, const float *x, int64_t row, int n) {
    const float *from = x + row * h.width + h.col;
    for (int r = threadIdx.x >> 5; r < n; r += ATTENTION_WARPS)
        for (int c = threadIdx.x & 31; c < h.dim; c += 32)
            tile->at[r * h.ld + c] = from[r * h.width + c];
}

/* The same tile of two matrices, between the barriers that separate it from earlier and later use.
 */
static __device__ void load_tiles(const Head &h, Tile *tile, const float *x, const float *y,
                                  int64_t row, int n) {
    __syncthreads();
    if (x) load_tile(h, &tile[0], x, row, n);
    if (y) load_tile(h, &tile[1], y, row, n);
    __syncthreads();
}

/* One row of this head, by a warp for itself. */
static __device__ void load_row(const Head &h, float *to, const float *x, int64_t row) {
    for (int c = threadIdx.x & 31; c < h.dim; c += 32) to[c] = x[row * h.width + h.col + c];
}

static __device__ void store_row(const Head &h, float *x, int64_t row, const float *sum) {
    float *to = x + row * h.width + h.col;
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int u = 0; u < LANE_COLUMNS; u++)
        if (lane + 32 * u < h.dim) to[lane + 32 * u] = sum[u];
}

static __device__ float tile_dot(const Head &h, const Tile *tile, int r, const float *y) {
    const float *x = tile->at + r * h.ld;
    float even = 0.0f, odd = 0.0f;
    int c = 0;
#pragma unroll 2
    for (; c + 4 <= h.dim; c += 4) {
        even = fmaf(x[c], y[c], even);
        odd = fmaf(x[c + 1], y[c + 1], odd);
        even = fmaf(x[c + 2], y[c + 2], even);
        odd = fmaf(x[c + 3], y[c + 3], odd);
    }
#pragma unroll 1
    for (; c < h.dim; c++) even = fmaf(x[c], y[c], even);
    return even + odd;
}

/* sum += weight[0 .. n) times the rows of a tile; a lane has every 32nd column. */
static __device__ void add_rows(const Head &h, const float *weight, const Tile *tile, int n,
                                float *sum) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int u = 0; u < LANE_COLUMNS; u++) {
        const int c = lane + 32 * u;
        if (c >= h.dim) break;
        float s = sum[u];
        for (int r = 0; r < n; r++) s = fmaf(weight[r], tile->at[r * h.ld + c], s);
        sum[u] = s;
    }
}

/* The first token of a sequence without tokens attends to nothing. */
static __device__ void clear_row(const Head &h, float *x) {
    for (int c = threadIdx.x; c < h.dim; c += ATTENTION_THREADS)
        x[h.query0 * h.width + h.col + c] = 0.0f;
}

/* A row of scores to probabilities times keep, by one warp; gives the log of the sum. */
static __device__ float softmax_row(const Head &h, const PhiloxRow &drop, int query, float *row) {
    const int lane = threadIdx.x & 31;
    float most = -PK_INF, sum = 0.0f;
    for (int j = lane; j < h.len; j += 32) most = pk_max(most, row[j]);
    most = warp_max(most);
    for (int j = lane; j < h.len; j += 32) {
        row[j] = pk_exp(row[j] - most);
        sum += row[j];
    }
    sum = warp_sum(sum);
    const float inverse = 1.0f / sum;
    for (int j = lane; j < h.len; j += 32) row[j] *= inverse * head_keep(h, drop, query, j);
    return most + pk_log(sum);
}

/* (q, k, v, offsets, rng, sample) -> context, lse. rows_dim: DIM_T, or DIM_S where only the first
 * token of each sequence is a query. */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    peft_attention(const float *q, const float *k, const float *v, const int32_t *offsets,
                   const int32_t *rng, const int32_t *sample, float *context, float *lse,
                   const int64_t *sym, int heads, int64_t width, int64_t rows_dim, float scale,
                   float p, int site) {
    __shared__ Tile tile[2];
    __shared__ float query[ATTENTION_WARPS][ATTENTION_HEAD], row[ATTENTION_WARPS][ATTENTION_LENGTH];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    Head h;
    if (!head_of_block(offsets, sym, heads, width, rows_dim, &h)) return;
    if (h.len == 0) {
        if (h.queries) clear_row(h, context);
        if (h.queries && threadIdx.x == 0) lse[h.query0 * heads + h.head] = -PK_INF;
        return;
    }
    const PhiloxRow drop = philox_row(rng, site, sample[h.seq], 0, p);
    const bool resident = h.len <= h.tile_rows;
    if (resident) load_tiles(h, tile, k, v, h.key0, h.len);
    for (int i0 = 0; i0 < h.queries; i0 += ATTENTION_WARPS) {
        const int i = i0 + warp;
        const bool active = i < h.queries;
        float sum[LANE_COLUMNS] = {0.0f};
        if (active) load_row(h, query[warp], q, h.query0 + i);
        __syncwarp();
        for (int t = 0; t < h.len; t += h.tile_rows) {
            const int n = min(h.tile_rows, h.len - t);
            if (!resident) load_tiles(h, tile, k, NULL, h.key0 + t, n);
            for (int j = lane; active && j < n; j += 32)
                row[warp][t + j] = scale * tile_dot(h, &tile[0], j, query[warp]);
        }
        if (active) {
            const float log_sum = softmax_row(h, drop, i, row[warp]);
            if (lane == 0) lse[(h.query0 + i) * heads + h.head] = log_sum;
        }
        __syncwarp();
        for (int t = 0; t < h.len; t += h.tile_rows) {
            const int n = min(h.tile_rows, h.len - t);
            if (!resident) load_tiles(h, tile, NULL, v, h.key0 + t, n);
            if (active) add_rows(h, row[warp] + t, &tile[1], n, sum);
        }
        if (active) store_row(h, context, h.query0 + i, sum);
        __syncwarp();
    }
}

/* What both halves of the backward pass read. */
typedef struct AttentionGrad {
    const float *dcontext, *q, *k, *v, *lse;
    float scale;
    PhiloxRow drop;
} AttentionGrad;

typedef struct GradShared {
    Tile tile[2];
    float row[2][ATTENTION_WARPS][ATTENTION_HEAD];
    float weight[2][ATTENTION_WARPS][TILE_ROWS];
    float delta[ATTENTION_LENGTH];
} GradShared;

/* P and dP of one query and the keys of a tile, those of this lane; 0 beyond n. */
static __device__ void query_pairs(const Head &h, const AttentionGrad &g, const GradShared *s,
                                   int query, float shift, int t, int n, float *p, float *dp) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
    for (int u = 0; u < LANE_ROWS; u++) {
        const int j = lane + 32 * u;
        p[u] = dp[u] = 0.0f;
        if (j >= n) continue;
        p[u] = pk_exp(g.scale * tile_dot(h, &s->tile[0], j, s->row[0][warp]) - shift);
        dp[u] = head_keep(h, g.drop, query, t + j) * tile_dot(h, &s->tile[1], j, s->row[1][warp]);
    }
}

/* delta, and dQ where it is wanted. A single tile leaves P and dP in registers between the sum that
 * is delta and the product with K; several are gone through twice. */
static __device__ void query_grads(const Head &h, const AttentionGrad &g, GradShared *s,
                                   float *dq) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const bool resident = h.len <= h.tile_rows;
    if (resident) load_tiles(h, s->tile, g.k, g.v, h.key0, h.len);
    for (int i0 = 0; i0 < h.queries; i0 += ATTENTION_WARPS) {
        const int i = i0 + warp;
        const bool active = i < h.queries;
        float p[LANE_ROWS], dp[LANE_ROWS], sum[LANE_COLUMNS] = {0.0f}, delta = 0.0f, shift = 0.0f;
        if (active) {
            shift = g.lse[(h.query0 + i) * h.heads + h.head];
            load_row(h, s->row[0][warp], g.q, h.query0 + i);
            load_row(h, s->row[1][warp], g.dcontext, h.query0 + i);
        }
        __syncwarp();
        for (int t = 0; t < h.len; t += h.tile_rows) {
            const int n = min(h.tile_rows, h.len - t);
            if (!resident) load_tiles(h, s->tile, g.k, g.v, h.key0 + t, n);
            if (active) query_pairs(h, g, s, i, shift, t, n, p, dp);
            for (int u = 0; active && u < LANE_ROWS; u++) delta += p[u] * dp[u];
        }
        delta = warp_sum(delta);
        if (active && lane == 0) s->delta[i] = delta;
        for (int t = 0; dq && t < h.len; t += h.tile_rows) {
            const int n = min(h.tile_rows, h.len - t);
            if (!resident) load_tiles(h, s->tile, g.k, g.v, h.key0 + t, n);
            if (active && !resident) query_pairs(h, g, s, i, shift, t, n, p, dp);
            for (int u = 0; active && u < LANE_ROWS; u++)
                s->weight[0][warp][lane + 32 * u] = g.scale * p[u] * (dp[u] - delta);
            __syncwarp();
            if (active) add_rows(h, s->weight[0][warp], &s->tile[0], n, sum);
            __syncwarp();
        }
        if (dq && active) store_row(h, dq, h.query0 + i, sum);
        __syncwarp();
    }
    __syncthreads();
}

/* The weights of a tile's queries in the sums of one key: dS for dK, P * keep for dV. */
static __device__ void key_weights(const Head &h, const AttentionGrad &g, GradShared *s, int key,
                                   int t, int n, bool scores) {
    const int warp = threadIdx.x >> 5;
    for (int r = threadIdx.x & 31; r < n; r += 32) {
        const float shift = g.lse[(h.query0 + t + r) * h.heads + h.head];
        const float keep = head_keep(h, g.drop, t + r, key);
        const float p = pk_exp(g.scale * tile_dot(h, &s->tile[0], r, s->row[0][warp]) - shift);
        s->weight[1][warp][r] = p * keep;
        if (!scores) continue;
        const float dp = keep * tile_dot(h, &s->tile[1], r, s->row[1][warp]);
        s->weight[0][warp][r] = g.scale * p * (dp - s->delta[t + r]);
    }
}

/* dK and dV, each where it is wanted: a warp has a key and goes through the queries. */
static __device__ void key_grads(const Head &h, const AttentionGrad &g, GradShared *s, float *dk,
                                 float *dv) {
    const int warp = threadIdx.x >> 5;
    const bool resident = h.queries <= h.tile_rows;
    if (resident) load_tiles(h, s->tile, g.q, g.dcontext, h.query0, h.queries);
    for (int j0 = 0; j0 < h.len; j0 += ATTENTION_WARPS) {
        const int j = j0 + warp;
        const bool active = j < h.len;
        float dk_sum[LANE_COLUMNS] = {0.0f}, dv_sum[LANE_COLUMNS] = {0.0f};
        if (active) {
            load_row(h, s->row[0][warp], g.k, h.key0 + j);
            load_row(h, s->row[1][warp], g.v, h.key0 + j);
        }
        __syncwarp();
        for (int t = 0; t < h.queries; t += h.tile_rows) {
            const int n = min(h.tile_rows, h.queries - t);
            if (!resident) load_tiles(h, s->tile, g.q, g.dcontext, h.query0 + t, n);
            if (active) key_weights(h, g, s, j, t, n, dk != NULL);
            __syncwarp();
            if (active && dk) add_rows(h, s->weight[0][warp], &s->tile[0], n, dk_sum);
            if (active && dv) add_rows(h, s->weight[1][warp], &s->tile[1], n, dv_sum);
            __syncwarp();
        }
        if (active && dk) store_row(h, dk, h.key0 + j, dk_sum);
        if (active && dv) store_row(h, dv, h.key0 + j, dv_sum);
    }
}

/* (dcontext, q, k, v, lse, offsets, rng, sample) -> dq, dk, dv, each NULL where it is not wanted.
 */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    peft_attention_grad(const float *dcontext, const float *q, const float *k, const float *v,
                        const float *lse, const int32_t *offsets, const int32_t *rng,
                        const int32_t *sample, float *dq, float *dk, float *dv, const int64_t *sym,
                        int heads, int64_t width, int64_t rows_dim, float scale, float p,
                        int site) {
    __shared__ GradShared s;
    Head h;
    if (!head_of_block(offsets, sym, heads, width, rows_dim, &h)) return;
    if (h.len == 0) {
        if (dq && h.queries) clear_row(h, dq);
        return;
    }
    const PhiloxRow drop = philox_row(rng, site, sample[h.seq], 0, p);
    const AttentionGrad g = {dcontext, q, k, v, lse, scale, drop};
    if (dq || dk) query_grads(h, g, &s, dq);
    if (dk || dv) key_grads(h, g, &s, dk, dv);
}

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
    const int64_t n = peft_dim(n_dim, sym), rows = peft_dim(rows_dim, sym);
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    for (int64_t r = at; r < rows; r += (int64_t)gridDim.x * 256) slot[r] = -1;
    index_sort(index, order, n);
    if (last_block(&index_done)) index_segments(index, order, start, slot, n);
}

/* (dy [n, cols], order, start) -> out [n, cols]: row u is the sum over segment u, 0 beyond the last
 * one. A block is 32 columns by 8 parts of a segment, added in order. */
extern "C" __global__ void __launch_bounds__(256)
    peft_segment_sum(const float *dy, const int32_t *order, const int32_t *start, float *out,
                     const int64_t *sym, int64_t n_dim, int64_t cols) {
    __shared__ float part[8][32];
    const int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const int64_t n = peft_dim(n_dim, sym), c = (int64_t)blockIdx.x * 32 + x;
    for (int64_t u = blockIdx.y; u < n; u += gridDim.y) {
        float sum = 0.0f;
        for (int i = start[u] + y; c < cols && i < start[u + 1]; i += 8)
            sum += dy[order[i] * cols + c];
        part[y][x] = sum;
        __syncthreads();
        for (int i = 1; y == 0 && i < 8; i++) sum += part[i][x];
        if (y == 0 && c < cols) out[u * cols + c] = sum;
        __syncthreads();
    }
}

/* ---- the rest ---- */

/* in [cols, rows] -> out [rows, cols] */
extern "C" __global__ void __launch_bounds__(256)
    peft_transpose(const float *in, float *out, const int64_t *sym, int64_t rows_dim,
                   int64_t cols_dim) {
    __shared__ float tile[32][33];
    const int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const int64_t rows = peft_dim(rows_dim, sym), cols = peft_dim(cols_dim, sym);
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

/* Eight elements of one NF4 block, from four bytes of codes, in every thread. The codes lie in
 * shared memory, 16 words in 16 banks, so that different ones cost nothing. Both buffers are
 * aligned to 16 bytes. */
extern "C" __global__ void __launch_bounds__(256)
    peft_nf4_dequant(const void *in, float *out, int64_t count, int double_quant) {
    __shared__ float lut[16];
    if (threadIdx.x < 16) lut[threadIdx.x] = nf4_lut[threadIdx.x];
    __syncthreads();
    const Nf4View v = nf4_view(in, count, double_quant != 0);
    const int64_t step = (int64_t)gridDim.x * 2048;
    for (int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 8; i < count; i += step) {
        if (i + 8 > count) {
            for (int64_t j = i; j < count; j++) out[j] = nf4_value(v, j);
            continue;
        }
        const uint32_t codes = *(const uint32_t *)(v.codes + i / 2);
        const float absmax = nf4_absmax(v, i >> 6);
        float value[8];
#pragma unroll
        for (int j = 0; j < 8; j++) /* byte j / 2, high half first */
            value[j] = __fmul_rn(lut[codes >> (j / 2 * 8 + 4 - j % 2 * 4) & 15], absmax);
        ((float4 *)(out + i))[0] = make_float4(value[0], value[1], value[2], value[3]);
        ((float4 *)(out + i))[1] = make_float4(value[4], value[5], value[6], value[7]);
    }
}
