/* The CUDA kernels that are the same in every program; the text follows kernel_cuda.h. Pointers are
 * a step's buffers in the order of its arguments, sizes are dimensions of the batch (peft_dim), so
 * that a launch for the largest batch serves every smaller one: blocks beyond the true size leave.
 *
 *   kernel               grid                                       threads of a block
 *   peft_attention       S * heads, by any y (best: 2)              ATTENTION_THREADS
 *   peft_attention_grad  S * heads, by any y (best: 4)              ATTENTION_THREADS
 *   peft_index           n / 256, rounded up, at least 1            256
 *   peft_segment_sum     cols / 32, rounded up, by any y up to n    256
 *   peft_transpose       any; a block moves tiles of 32 x 32        256
 *   peft_nf4_dequant     count / 2048, rounded up                   256
 *
 * Invariant: no float is added atomically, and every order of summation depends on sizes alone.
 * Launches that use peft_index or grid_sum must not overlap in time: their counters are global.
 *
 * PEFT_PART cuts the kernels into parts that are compiled in parallel (code.h): 0 and 1 are cut out
 * here, later ones are a program's own. Without it everything is there. */
#ifdef PEFT_PART
#define PEFT_HAS_PART(i) (PEFT_PART == (i))
#else
#define PEFT_HAS_PART(i) 1
#endif
#if PEFT_HAS_PART(0) || PEFT_HAS_PART(1)

/* ---- attention ----
 *
 *   S = scale Q K',  P = softmax(S),  context = (P * keep) V,  lse = log sum exp S
 *   dV = (P * keep)' dcontext,  dP = keep * (dcontext V'),  delta = rowsum(P * dP),
 *   dS = scale P * (dP - delta),  dQ = dS K,  dK = dS' Q
 *
 * A block has one head of one sequence. A warp takes 16 rows of it (queries; keys for dK and dV)
 * and goes through the rows opposite, 16 at a time; no score leaves its registers. The products are
 * the tensor cores'. Sentences are short, so that what counts is how long one warp waits: operands
 * come from global memory straight into registers, in wide loads that depend on nothing, and the
 * dropout numbers are drawn while they are on their way.
 *
 * Lane 4 g + t of a product C [16, 8] += A [16, 16] B [16, 8] has four elements of each of the rows
 * g and g + 8 of A, four of column g of B, and of C those of rows g, g + 8 and columns 2 t,
 * 2 t + 1. Which sixteen summands a product adds, and in what order the columns of C stand, is
 * free as long as both sides agree: they are chosen such that every lane loads and stores whole
 * vectors, and such that a lane's part of C is its part of an A, with no exchange between. */

enum {
    ATTENTION_THREADS = 128,
    ATTENTION_WARPS = ATTENTION_THREADS / 32,
    ATTENTION_PARTS = 2,             /* of a sequence, for different blocks (y) of the grid */
    ATTENTION_LENGTH = 512,          /* longest sequence */
    TILE = 16,                       /* rows */
    CHUNK = 64,                      /* columns; wider heads are gone through in chunks */
    VECTOR = 16 / sizeof(work),      /* elements of one load */
    LANE_VECTORS = CHUNK / 4 / VECTOR, /* in a row of a chunk, for each of four lanes */
    WORDS = sizeof(work)             /* registers of 32 bits for four elements */
};

typedef struct Head { /* of one sequence */
    int head, heads, dim, len, queries;
    int64_t query0, key0; /* first rows */
    int64_t width, col;   /* of a matrix: columns, first one of this head */
    bool vectors;         /* rows of this head start at whole vectors */
} Head;

/* False for blocks without work: beyond the batch. The host checks lengths before; should one get
 * here that shared memory was not made for, it stops rather than write over other values. */
static __device__ bool head_of_block(const int32_t *offsets, const int64_t *sym, int heads,
                                     int64_t width, int64_t rows_dim, Head *h) {
    const bool first_only = rows_dim == -PEFT_SYM_S;
    const int seq = blockIdx.x / heads;
    if (seq >= sym[PEFT_SYM_S]) return false;
    h->heads = heads;
    h->head = blockIdx.x % heads;
    h->dim = (int)(width / heads);
    h->key0 = offsets[seq];
    h->len = offsets[seq + 1] - (int)h->key0;
    if (h->len > ATTENTION_LENGTH) __trap();
    h->queries = first_only ? 1 : h->len;
    h->query0 = first_only ? seq : h->key0;
    h->width = width;
    h->col = (int64_t)h->head * h->dim;
    h->vectors = h->dim % VECTOR == 0;
    return true;
}

/* The first token of a sequence without tokens attends to nothing. */
static __device__ void clear_row(const Head &h, work *x) {
    for (int c = threadIdx.x; c < h.dim; c += ATTENTION_THREADS)
        pk_put(x, h.query0 * h.width + h.col + c, 0.0f);
}

/* ---- operands in registers ---- */

PK_DEVICE int lane_row() { /* g */
    return threadIdx.x >> 2 & 7;
}
PK_DEVICE int lane_quarter() { /* t */
    return threadIdx.x & 3;
}

#ifdef PEFT_BF16
/* Two values, rounded to nearest even, the first in the lower half. */
PK_DEVICE uint32_t pack(float first, float second) {
#ifdef __CUDACC_RTC__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return pk_bf16(first).bits | (uint32_t)pk_bf16(second).bits << 16;
#endif
}
PK_DEVICE void pack_four(float a, float b, float c, float d, uint32_t *word) {
    word[0] = pack(a, b);
    word[1] = pack(c, d);
}
PK_DEVICE uint4 pack_vector(const float *x) {
    return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}
#else
PK_DEVICE void pack_four(float a, float b, float c, float d, uint32_t *word) {
    word[0] = __float_as_uint(a);
    word[1] = __float_as_uint(b);
    word[2] = __float_as_uint(c);
    word[3] = __float_as_uint(d);
}
PK_DEVICE uint4 pack_vector(const float *x) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                      __float_as_uint(x[3]));
}
#endif

/* 16 rows of a chunk, the first n of them from row `row` on, the rest and columns beyond the head 0.
 * Where rows are no whole vectors they go through shared memory, element by element. */
typedef struct Source {
    const work *at;
    int64_t step; /* from row to row */
    int rows, columns;
} Source;

static __device__ Source copy_source(const Head &h, const work *x, int n, int columns) {
    alignas(16) __shared__ work copy[ATTENTION_WARPS][TILE * CHUNK];
    work *to = copy[threadIdx.x >> 5];
    __syncwarp();
#pragma unroll 1
    for (int i = threadIdx.x & 31; i < TILE * CHUNK; i += 32) {
        const int r = i / CHUNK, c = i % CHUNK;
        pk_put(to, i, r < n && c < columns ? pk_get(x, r * h.width + c) : 0.0f);
    }
    __syncwarp();
    return {to, CHUNK, TILE, CHUNK};
}

PK_DEVICE Source source(const Head &h, const work *x, int64_t row, int n, int c0) {
    const work *at = x + row * h.width + h.col + c0;
    if (!h.vectors) return copy_source(h, at, n, h.dim - c0);
    return {at, h.width, n, h.dim - c0};
}

PK_DEVICE uint4 load_vector(const Source &s, int row, int column) {
    if (row >= s.rows || column >= s.columns) return make_uint4(0, 0, 0, 0);
    return *(const uint4 *)(s.at + row * s.step + column);
}

/* 16 rows of a chunk, for sums over its columns: as A, or as two B of 8 columns each. */
typedef struct Rows {
    uint32_t word[2][4 * WORDS];
} Rows;

PK_DEVICE Rows load_rows(const Source &s) {
    Rows rows;
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int i = 0; i < LANE_VECTORS; i++) {
            const uint4 v =
                load_vector(s, lane_row() + 8 * u, (4 * i + lane_quarter()) * VECTOR);
            rows.word[u][4 * i] = v.x;
            rows.word[u][4 * i + 1] = v.y;
            rows.word[u][4 * i + 2] = v.z;
            rows.word[u][4 * i + 3] = v.w;
        }
    return rows;
}

/* 16 rows of a chunk, for sums over the rows: a B for each of eight products. Product j has the
 * columns 8 n + j, n = 0 .. 7. */
typedef struct Columns {
    uint32_t word[8][WORDS];
} Columns;

PK_DEVICE Columns load_columns(const Source &s) {
    Columns columns;
    uint32_t part[4][2 * WORDS]; /* of rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9: eight elements */
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int r = 2 * lane_quarter() + e % 2 + e / 2 * 8;
#pragma unroll
        for (int i = 0; i < 8 / VECTOR; i++) {
            const uint4 v = load_vector(s, r, 8 * lane_row() + i * VECTOR);
            part[e][4 * i] = v.x;
            part[e][4 * i + 1] = v.y;
            part[e][4 * i + 2] = v.z;
            part[e][4 * i + 3] = v.w;
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
#ifdef PEFT_BF16
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t a = part[2 * e][j / 2], b = part[2 * e + 1][j / 2];
            columns.word[j][e] = j % 2 ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16;
        }
#else
#pragma unroll
        for (int e = 0; e < 4; e++) columns.word[j][e] = part[e][j];
#endif
    }
    return columns;
}

/* ---- products ---- */

#ifdef PEFT_BF16
#ifdef __CUDACC_RTC__
/* c [16, 8] += a [16, 16] b [16, 8] */
PK_DEVICE void mma_bf16(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

/* c += a b: four elements of rows g and g + 8 of a, four of column g of b. */
PK_DEVICE void multiply(float *c, const uint32_t *row, const uint32_t *row8, const uint32_t *b) {
    const uint32_t a[4] = {row[0], row8[0], row[1], row8[1]};
    mma_bf16(c, a, b);
}
#else
#ifdef __CUDACC_RTC__
/* c [16, 8] += a [16, 8] b [8, 8] */
PK_DEVICE void mma_tf32(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

/* TF32 is a float's upper 19 bits. Half a unit is added to the magnitude, then cut off; a NaN that
 * this makes a zero is still one in the rest. */
PK_DEVICE uint32_t tf32(float x) {
    return (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
}
PK_DEVICE void split(const uint32_t *x, int n, uint32_t *head, uint32_t *rest) {
#pragma unroll
    for (int i = 0; i < n; i++) {
        const float value = __uint_as_float(x[i]);
        head[i] = tf32(value);
        rest[i] = tf32(value - __uint_as_float(head[i]));
    }
}

/* c += a b: four elements of rows g and g + 8 of a, four of column g of b, in two steps. Floats are
 * sums of two TF32: the three larger products of those leave out 2^-22 of a summand. */
PK_DEVICE void multiply(float *c, const uint32_t *row, const uint32_t *row8, const uint32_t *b) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t a[4] = {row[i], row8[i], row[i + 1], row8[i + 1]};
        uint32_t a_head[4], a_rest[4], b_head[2], b_rest[2];
        split(a, 4, a_head, a_rest);
        split(b + i, 2, b_head, b_rest);
        mma_tf32(c, a_rest, b_head);
        mma_tf32(c, a_head, b_rest);
        mma_tf32(c, a_head, b_head);
    }
}
#endif

/* A tile of 16 by 16 values, as two C: in [u][2 i + e] row g + 8 i, column 8 u + 2 t + e. */
typedef struct Tile {
    float at[2][4];
} Tile;

PK_DEVICE int tile_column(int u, int e) {
    return 8 * u + 2 * lane_quarter() + e;
}

/* a b': of the first na and nb of 16 rows each. */
PK_DEVICE Tile row_products(const Head &h, const work *a, int64_t row_a, int na, const work *b,
                            int64_t row_b, int nb) {
    Tile c = {{{0.0f}}};
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        const Rows x = load_rows(source(h, a, row_a, na, c0));
        const Rows y = load_rows(source(h, b, row_b, nb, c0));
#pragma unroll
        for (int step = 0; step < 4 * WORDS; step += WORDS)
#pragma unroll
            for (int u = 0; u < 2; u++)
                multiply(c.at[u], x.word[0] + step, x.word[1] + step, y.word[u] + step);
    }
    return c;
}

/* 16 rows of a chunk of a result: in [j][2 i + e] row g + 8 i, column 16 t + 8 e + j. */
typedef struct Sums {
    float at[8][4];
} Sums;

/* sums += weight x */
PK_DEVICE void add_columns(Sums *sums, const Tile &weight, const Columns &x) {
    uint32_t row[2][WORDS];
#pragma unroll
    for (int i = 0; i < 4; i += 2)
        pack_four(weight.at[0][i], weight.at[0][i + 1], weight.at[1][i], weight.at[1][i + 1],
                  row[i / 2]);
#pragma unroll
    for (int j = 0; j < 8; j++) multiply(sums->at[j], row[0], row[1], x.word[j]);
}

/* The first n of 16 rows, times a factor for rows g and g + 8. */
PK_DEVICE void store_sums(const Head &h, work *x, int64_t row, int n, int c0, const Sums &sums,
                          const float *factor) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const int r = lane_row() + 8 * u;
        if (r >= n) break;
        work *to = x + (row + r) * h.width + h.col;
        float value[16];
#pragma unroll
        for (int i = 0; i < 16; i++) value[i] = factor[u] * sums.at[i % 8][2 * u + i / 8];
#pragma unroll
        for (int i = 0; i < 16; i += VECTOR) {
            const int c = c0 + 16 * lane_quarter() + i;
            if (h.vectors && c < h.dim) *(uint4 *)(to + c) = pack_vector(value + i);
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                if (!h.vectors && c + j < h.dim) pk_put(to, c + j, value[i + j]);
        }
    }
}

/* ---- scores ---- */

/* Over the four lanes that share a row. */
PK_DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(PK_WARP, x, 1);
    return x + __shfl_xor_sync(PK_WARP, x, 2);
}
PK_DEVICE float quad_max(float x) {
    x = pk_max(x, __shfl_xor_sync(PK_WARP, x, 1));
    return pk_max(x, __shfl_xor_sync(PK_WARP, x, 2));
}

/* In lanes l and l + 16, bit j: whether key0 + j is dropped for query0 + l. A lane draws the
 * numbers of eight keys, which are one call of the generator. */
PK_DEVICE uint32_t dropped_keys(const Head &h, PhiloxRow drop, int query0, int key0) {
    if (drop.threshold == 0) return 0;
    const int lane = threadIdx.x & 31;
    const int64_t block = key0 / 8 + (lane >> 4);
    uint32_t bits = 0;
    drop.position = (uint32_t)h.head << 16 | (uint32_t)(query0 + (lane & 15));
#pragma unroll
    for (int j = 0; j < 8; j++)
        bits |= (uint32_t)(philox_number(drop, 8 * block + j) < drop.threshold) << j;
    const uint32_t other = __shfl_xor_sync(PK_WARP, bits, 16);
    return lane < 16 ? bits | other << 8 : other | bits << 8;
}

/* The factors of a tile whose rows are queries. */
PK_DEVICE Tile keep_of_queries(const Head &h, const PhiloxRow &drop, int query0, int key0) {
    const uint32_t bits = dropped_keys(h, drop, query0, key0);
    Tile keep;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t mine = __shfl_sync(PK_WARP, bits, lane_row() + 8 * i);
#pragma unroll
        for (int at = 0; at < 4; at++)
            keep.at[at / 2][2 * i + at % 2] =
                mine >> tile_column(at / 2, at % 2) & 1 ? 0.0f : drop.scale;
    }
    return keep;
}

/* The factors of a tile whose columns are queries. */
PK_DEVICE Tile keep_of_keys(const Head &h, const PhiloxRow &drop, int query0, int key0) {
    const uint32_t bits = dropped_keys(h, drop, query0, key0);
    Tile keep;
#pragma unroll
    for (int at = 0; at < 4; at++) {
        const uint32_t query = __shfl_sync(PK_WARP, bits, tile_column(at / 2, at % 2));
#pragma unroll
        for (int i = 0; i < 2; i++)
            keep.at[at / 2][2 * i + at % 2] =
                query >> (lane_row() + 8 * i) & 1 ? 0.0f : drop.scale;
    }
    return keep;
}

/* ---- forward ---- */

typedef struct AttentionInput {
    const work *q, *k, *v;
    float scale;
    PhiloxRow drop;
} AttentionInput;

/* Of rows g and g + 8, over the keys so far. */
typedef struct Softmax {
    float most[2], sum[2]; /* the largest score; the lane's part of the sum of exp(score - most) */
} Softmax;

/* Scores of n more keys to weights of their values; what was summed before is scaled to the new
 * largest score. */
PK_DEVICE void softmax_step(Softmax *m, Tile *s, const Tile &keep, int n, float scale, Sums *sums) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float most = m->most[i], sum = 0.0f;
#pragma unroll
        for (int at = 0; at < 4; at++) {
            float *x = &s->at[at / 2][2 * i + at % 2];
            *x = tile_column(at / 2, at % 2) < n ? scale * *x : -PK_INF;
            most = pk_max(most, *x);
        }
        most = quad_max(most);
#pragma unroll
        for (int at = 0; at < 4; at++) {
            float *x = &s->at[at / 2][2 * i + at % 2];
            const float e = pk_exp(*x - most);
            sum += e;
            *x = e * keep.at[at / 2][2 * i + at % 2];
        }
        const float before = pk_exp(m->most[i] - most);
        m->sum[i] = m->sum[i] * before + sum;
        m->most[i] = most;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sums->at[j][2 * i] *= before;
            sums->at[j][2 * i + 1] *= before;
        }
    }
}

/* context and lse of the queries from i0 on, a chunk of columns at a time. */
static __device__ void attend(const Head &h, const AttentionInput &in, int i0, work *context,
                              float *lse) {
    const int n = h.queries - i0;
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        Softmax m = {{-PK_INF, -PK_INF}, {0.0f, 0.0f}};
        Sums sums = {{{0.0f}}};
        for (int t = 0; t < h.len; t += TILE) {
            const Columns v = load_columns(source(h, in.v, h.key0 + t, h.len - t, c0));
            const Tile keep = keep_of_queries(h, in.drop, i0, t);
            Tile s = row_products(h, in.q, h.query0 + i0, n, in.k, h.key0 + t, h.len - t);
            softmax_step(&m, &s, keep, h.len - t, in.scale, &sums);
            add_columns(&sums, s, v);
        }
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = lane_row() + 8 * i;
            const float sum = quad_sum(m.sum[i]);
            inverse[i] = 1.0f / sum;
            if (c0 == 0 && r < n && lane_quarter() == 0)
                lse[(h.query0 + i0 + r) * h.heads + h.head] = m.most[i] + pk_log(sum);
        }
        store_sums(h, context, h.query0 + i0, n, c0, sums, inverse);
    }
}

#if PEFT_HAS_PART(0)
/* (q, k, v, offsets, rng, sample) -> context, lse. rows_dim: DIM_T, or DIM_S where only the first
 * token of each sequence is a query. */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    peft_attention(const work *q, const work *k, const work *v, const int32_t *offsets,
                   const int32_t *rng, const int32_t *sample, work *context, float *lse,
                   const int64_t *sym, int heads, int64_t width, int64_t rows_dim, float scale,
                   float p, int site) {
    Head h;
    if (!head_of_block(offsets, sym, heads, width, rows_dim, &h)) return;
    if (h.len == 0 && h.queries && blockIdx.y == 0) {
        clear_row(h, context);
        if (threadIdx.x == 0) lse[h.query0 * heads + h.head] = -PK_INF;
    }
    if (h.len == 0) return;
    const AttentionInput in = {q, k, v, scale,
                               philox_row(rng, site, sample[blockIdx.x / heads], 0, p)};
    const int first = blockIdx.y * ATTENTION_WARPS + (threadIdx.x >> 5);
    for (int i = first; i * TILE < h.queries; i += gridDim.y * ATTENTION_WARPS)
        attend(h, in, i * TILE, context, lse);
}
#endif

/* ---- backward: probabilities are computed again from lse ---- */

typedef struct AttentionGrad {
    AttentionInput in;
    const work *dcontext;
    const float *lse;
} AttentionGrad;

typedef struct Pairs { /* of queries and keys; p is 0 beyond the last of either */
    Tile p, dp, keep;
} Pairs;

PK_DEVICE float log_sum(const Head &h, const AttentionGrad &g, int query) {
    return query < h.queries ? g.lse[(h.query0 + query) * h.heads + h.head] : 0.0f;
}

/* Rows: queries from i0 on; columns: keys from t on. */
PK_DEVICE Pairs query_pairs(const Head &h, const AttentionGrad &g, int i0, int t,
                            const float *shift) {
    const int n = h.queries - i0, nk = h.len - t;
    Pairs x;
    x.keep = keep_of_queries(h, g.in.drop, i0, t);
    x.p = row_products(h, g.in.q, h.query0 + i0, n, g.in.k, h.key0 + t, nk);
    x.dp = row_products(h, g.dcontext, h.query0 + i0, n, g.in.v, h.key0 + t, nk);
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool real = tile_column(u, i % 2) < nk && lane_row() + i / 2 * 8 < n;
            x.p.at[u][i] = real ? pk_exp(g.in.scale * x.p.at[u][i] - shift[i / 2]) : 0.0f;
            x.dp.at[u][i] *= x.keep.at[u][i];
        }
    return x;
}

/* delta of queries i0 + g and i0 + g + 8, and the pairs with the last tile of keys. */
PK_DEVICE Pairs query_deltas(const Head &h, const AttentionGrad &g, int i0, const float *shift,
                             float *delta) {
    Pairs x;
    delta[0] = delta[1] = 0.0f;
    for (int t = 0; t < h.len; t += TILE) {
        x = query_pairs(h, g, i0, t, shift);
#pragma unroll
        for (int u = 0; u < 2; u++)
#pragma unroll
            for (int i = 0; i < 4; i++) delta[i / 2] += x.p.at[u][i] * x.dp.at[u][i];
    }
    delta[0] = quad_sum(delta[0]);
    delta[1] = quad_sum(delta[1]);
    return x;
}

/* dQ of the queries from i0 on. Where there is one tile of keys, the pairs that gave delta are
 * those of the product with K; several are gone through twice. */
static __device__ void query_grads(const Head &h, const AttentionGrad &g, int i0, work *dq) {
    const float shift[2] = {log_sum(h, g, i0 + lane_row()), log_sum(h, g, i0 + lane_row() + 8)};
    const float factor[2] = {1.0f, 1.0f};
    float delta[2];
    Pairs x = query_deltas(h, g, i0, shift, delta);
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        Sums sums = {{{0.0f}}};
        for (int t = 0; t < h.len; t += TILE) {
            const Columns k = load_columns(source(h, g.in.k, h.key0 + t, h.len - t, c0));
            if (h.len > TILE) x = query_pairs(h, g, i0, t, shift);
            Tile ds;
#pragma unroll
            for (int u = 0; u < 2; u++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    ds.at[u][i] = g.in.scale * x.p.at[u][i] * (x.dp.at[u][i] - delta[i / 2]);
            add_columns(&sums, ds, k);
        }
        store_sums(h, dq, h.query0 + i0, h.queries - i0, c0, sums, factor);
    }
}

/* delta of all queries, by the whole block; the barriers separate it from earlier and later use. */
static __device__ void block_deltas(const Head &h, const AttentionGrad &g, float *delta) {
    __syncthreads();
    for (int i0 = (threadIdx.x >> 5) * TILE; i0 < h.queries; i0 += ATTENTION_WARPS * TILE) {
        const int i = i0 + lane_row();
        const float shift[2] = {log_sum(h, g, i), log_sum(h, g, i + 8)};
        float mine[2];
        query_deltas(h, g, i0, shift, mine);
        if (lane_quarter() != 0) continue;
        if (i < h.queries) delta[i] = mine[0];
        if (i + 8 < h.queries) delta[i + 8] = mine[1];
    }
    __syncthreads();
}

/* Rows: keys from j0 on; columns: queries from t on. p becomes P * keep and dp becomes dS: the
 * weights of dV and, where `scores`, of dK. */
PK_DEVICE Pairs key_weights(const Head &h, const AttentionGrad &g, int j0, int t,
                            const float *delta, bool scores) {
    const int n = h.len - j0, nq = h.queries - t;
    Pairs x;
    x.keep = keep_of_keys(h, g.in.drop, t, j0);
    x.p = row_products(h, g.in.k, h.key0 + j0, n, g.in.q, h.query0 + t, nq);
    if (scores) x.dp = row_products(h, g.in.v, h.key0 + j0, n, g.dcontext, h.query0 + t, nq);
#pragma unroll
    for (int at = 0; at < 4; at++) {
        const int u = at / 2, query = t + tile_column(u, at % 2);
        const float shift = log_sum(h, g, query);
        const float mean = scores && query < h.queries ? delta[query] : 0.0f;
#pragma unroll
        for (int i = at % 2; i < 4; i += 2) {
            const bool real = query < h.queries && lane_row() + i / 2 * 8 < n;
            const float p = real ? pk_exp(g.in.scale * x.p.at[u][i] - shift) : 0.0f;
            const float keep = x.keep.at[u][i];
            x.p.at[u][i] = p * keep;
            if (scores) x.dp.at[u][i] = g.in.scale * p * (keep * x.dp.at[u][i] - mean);
        }
    }
    return x;
}

/* dK and dV of the keys from j0 on, each where it is wanted. */
static __device__ void key_grads(const Head &h, const AttentionGrad &g, int j0, const float *delta,
                                 work *dk, work *dv) {
    const float factor[2] = {1.0f, 1.0f};
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        Sums dk_sums = {{{0.0f}}}, dv_sums = {{{0.0f}}};
        for (int t = 0; t < h.queries; t += TILE) {
            const int nq = h.queries - t;
            const Pairs x = key_weights(h, g, j0, t, delta, dk != NULL);
            if (dk) add_columns(&dk_sums, x.dp, load_columns(source(h, g.in.q, h.query0 + t, nq, c0)));
            if (dv) add_columns(&dv_sums, x.p, load_columns(source(h, g.dcontext, h.query0 + t, nq, c0)));
        }
        if (dk) store_sums(h, dk, h.key0 + j0, h.len - j0, c0, dk_sums, factor);
        if (dv) store_sums(h, dv, h.key0 + j0, h.len - j0, c0, dv_sums, factor);
    }
}

/* A part of the queries, for dQ, or of the keys, for dK and dV. */
static __device__ void grad_unit(const Head &h, const AttentionGrad &g, int unit, float *delta,
                                 work *dq, work *dk, work *dv) {
    const int part = unit / 2 * ATTENTION_WARPS, first = part + (threadIdx.x >> 5);
    const int step = ATTENTION_PARTS * ATTENTION_WARPS;
    if (unit % 2) {
        for (int i = first; dq && i * TILE < h.queries; i += step)
            query_grads(h, g, i * TILE, dq);
        return;
    }
    if ((!dk && !dv) || part * TILE >= h.len) return;
    if (dk) block_deltas(h, g, delta);
    for (int j = first; j * TILE < h.len; j += step) key_grads(h, g, j * TILE, delta, dk, dv);
}

#if PEFT_HAS_PART(1)
/* (dcontext, q, k, v, lse, offsets, rng, sample) -> dq, dk, dv, each NULL where it is not wanted.
 */
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    peft_attention_grad(const work *dcontext, const work *q, const work *k, const work *v,
                        const float *lse, const int32_t *offsets, const int32_t *rng,
                        const int32_t *sample, work *dq, work *dk, work *dv, const int64_t *sym,
                        int heads, int64_t width, int64_t rows_dim, float scale, float p,
                        int site) {
    __shared__ float delta[ATTENTION_LENGTH];
    Head h;
    if (!head_of_block(offsets, sym, heads, width, rows_dim, &h)) return;
    if (h.len == 0) {
        if (dq && h.queries && blockIdx.y == 0) clear_row(h, dq);
        return;
    }
    const AttentionGrad g = {
        {q, k, v, scale, philox_row(rng, site, sample[blockIdx.x / heads], 0, p)}, dcontext, lse};
    for (int unit = blockIdx.y; unit < 2 * ATTENTION_PARTS; unit += gridDim.y)
        grad_unit(h, g, unit, delta, dq, dk, dv);
}
#endif

#if PEFT_HAS_PART(0)

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
    peft_segment_sum(const work *dy, const int32_t *order, const int32_t *start, work *out,
                     const int64_t *sym, int64_t n_dim, int64_t cols) {
    __shared__ float part[8][32];
    const int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const int64_t n = peft_dim(n_dim, sym), c = (int64_t)blockIdx.x * 32 + x;
    for (int64_t u = blockIdx.y; u < n; u += gridDim.y) {
        float sum = 0.0f;
        for (int i = start[u] + y; c < cols && i < start[u + 1]; i += 8)
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
    __shared__ work tile[32][33];
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
    peft_nf4_dequant(const void *in, work *out, int64_t count, int double_quant) {
    __shared__ float lut[16];
    if (threadIdx.x < 16) lut[threadIdx.x] = nf4_lut[threadIdx.x];
    __syncthreads();
    const Nf4View v = nf4_view(in, count, double_quant != 0);
    const int64_t step = (int64_t)gridDim.x * 2048;
    for (int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 8; i < count; i += step) {
        if (i + 8 > count) {
            for (int64_t j = i; j < count; j++) pk_put(out, j, nf4_value(v, j));
            continue;
        }
        const uint32_t codes = *(const uint32_t *)(v.codes + i / 2);
        const float absmax = nf4_absmax(v, i >> 6);
        alignas(16) work value[8];
#pragma unroll
        for (int j = 0; j < 8; j++) /* byte j / 2, high half first */
            pk_put(value, j, __fmul_rn(lut[codes >> (j / 2 * 8 + 4 - j % 2 * 4) & 15], absmax));
#pragma unroll
        for (int j = 0; j < (int)sizeof value / 16; j++)
            ((float4 *)(out + i))[j] = ((const float4 *)value)[j];
    }
}

#endif
#endif
