/* What the two ways of computing attention on the GPU share, attention_long.cu and
 * attention_short.cu: a block's head of a sequence, the tensor cores' product, dropout. The text
 * follows kernel_cuda.h; the kernels themselves are in attention.cu.
 *
 * Invariant: no float is added atomically, and every order of summation depends on sizes alone.
 *
 * PEFT_PART cuts the kernels into parts that are compiled in parallel (code.h): 0 and 1 are those
 * of attention.cu, 2 is templates.cu, later ones are a program's own. Without it everything is
 * there.
 */
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
 * A block has one head of one sequence; a warp takes 16 rows of it at a time. */

enum {
    ATTENTION_THREADS = 128,
    ATTENTION_WARPS = ATTENTION_THREADS / 32,
    ATTENTION_BLOCKS =
        sizeof(work) == 2 ? 3 : 2, /* of a multiprocessor that there must be registers for */
    ATTENTION_LENGTH = 512,        /* longest sequence */
    TILE = 16,                     /* rows */
    VECTOR = 16 / sizeof(work)     /* elements of one load */
};

typedef struct Head { /* of one sequence */
    int seq, head, heads, dim;
    int len, queries; /* keys and values, rows of the others; both 0 beyond the batch */
    int query0, key0; /* first rows */
    int width;        /* of a matrix, in columns */
    bool last;        /* of the batch's sequences */
    bool vectors;     /* rows of this head start at whole vectors */
    work *memory;     /* shared by the block */
} Head;

/* All is read at once, also by blocks beyond the batch: offsets are those of the largest one. */
PK_DEVICE Head head_of_block(const int32_t *offsets, const int64_t *sym, int dim, int64_t width,
                             int64_t rows_dim, work *memory) {
    const bool first_only = rows_dim == -PEFT_SYM_S;
    Head h;
    h.seq = (int)blockIdx.x;
    h.head = (int)blockIdx.y;
    h.heads = (int)gridDim.y;
    h.dim = dim;
    h.width = (int)width;
    h.key0 = offsets[h.seq];
    const int len = offsets[h.seq + 1] - h.key0;
    const bool real = h.seq < sym[PEFT_SYM_S];
    h.len = real ? len : 0;
    h.last = h.seq + 1 == sym[PEFT_SYM_S];
    h.queries = first_only ? real : h.len;
    h.query0 = first_only ? h.seq : h.key0;
    h.vectors = h.dim % VECTOR == 0;
    h.memory = memory;
    return h;
}

/* What a matrix has for a head of a sequence. */
typedef struct Matrix {
    const work *at;
    int rows;
} Matrix;

static __device__ Matrix of_queries(const Head &h, const work *x) {
    return {x + (int64_t)h.query0 * h.width + h.head * h.dim, h.queries};
}

static __device__ Matrix of_keys(const Head &h, const work *x) {
    return {x + (int64_t)h.key0 * h.width + h.head * h.dim, h.len};
}

/* Rows of a matrix beyond the batch's are zero; the last sequence's blocks see to it. */
static __device__ void clear_rest(const Head &h, work *x, const int64_t *sym, int64_t rows_dim) {
    if (!x || !h.last) return;
    const int step = h.vectors ? VECTOR : 1, steps = h.dim / step; /* of a row */
    const int64_t first = peft_dim(rows_dim, sym);
    const int n = (int)(peft_rows(rows_dim, sym) - first) * steps;
    work *rest = x + first * h.width + h.head * h.dim;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += ATTENTION_THREADS) {
        work *to = rest + (i / steps * h.width + i % steps * step);
        if (h.vectors)
            *(uint4 *)to = make_uint4(0, 0, 0, 0);
        else
            pk_put(to, 0, 0.0f);
    }
}

/* The first token of a sequence without tokens attends to nothing. */
static __device__ void clear_row(const Head &h, work *x) {
#pragma unroll 1
    for (int c = threadIdx.x; c < h.dim; c += ATTENTION_THREADS)
        pk_put(x, (int64_t)h.query0 * h.width + h.head * h.dim + c, 0.0f);
}

/* ---- lanes ----
 *
 * Lane 4 g + t of a product C [16, 8] += A [16, 16] B [16, 8] has four elements of each of the rows
 * g and g + 8 of A, four of column g of B, and of C those of rows g, g + 8 and columns 2 t,
 * 2 t + 1. */

/* The same in all lanes; so that the compiler knows it, too. */
PK_DEVICE int warp_index() {
    return __shfl_sync(PK_WARP, (int)(threadIdx.x >> 5), 0);
}
PK_DEVICE int lane_row() { /* g */
    return threadIdx.x >> 2 & 7;
}
PK_DEVICE int lane_quarter() { /* t */
    return threadIdx.x & 3;
}

/* A tile of 16 by 16 values, as two C: in [u][2 i + e] row g + 8 i, column 8 u + 2 t + e. */
typedef struct Tile {
    float at[2][4];
} Tile;

PK_DEVICE int tile_column(int u, int e) {
    return 8 * u + 2 * lane_quarter() + e;
}

/* Over the four lanes that share a row. */
PK_DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(PK_WARP, x, 1);
    return x + __shfl_xor_sync(PK_WARP, x, 2);
}
PK_DEVICE float quad_max(float x) {
    x = pk_max(x, __shfl_xor_sync(PK_WARP, x, 1));
    return pk_max(x, __shfl_xor_sync(PK_WARP, x, 2));
}

/* ---- scores: exp(x) is 2^(x / log 2) ---- */

#define LOG2_E 1.44269504f

/* In lanes l and l + 16, bit j: whether key0 + j is dropped for query0 + l. A lane draws the
 * numbers of eight keys, which are one call of the generator. */
PK_DEVICE uint32_t dropped_keys(const Head &h, PhiloxRow drop, int query0, int key0) {
    const int lane = threadIdx.x & 31;
    const uint32_t block = (uint32_t)key0 / 8 + (lane >> 4);
    uint32_t bits = 0;
    drop.position = (uint32_t)h.head << 16 | (uint32_t)(query0 + (lane & 15));
#pragma unroll
    for (int j = 0; j < 8; j++)
        bits |= (uint32_t)(philox_number(drop, block << 3 | j) < drop.threshold) << j;
    const uint32_t other = __shfl_xor_sync(PK_WARP, bits, 16);
    return lane < 16 ? bits | other << 8 : other | bits << 8;
}

/* What a sequence's dropout numbers follow from, read along with its place. */
typedef struct DropoutKey {
    int32_t rng[4], sample, site;
    float p;
} DropoutKey;

PK_DEVICE DropoutKey dropout_key(const int32_t *rng, const int32_t *sample, int site, float p) {
    return {{rng[0], rng[1], rng[2], rng[3]}, sample[blockIdx.x], site, p};
}
PK_DEVICE PhiloxRow dropout_of(const DropoutKey &key) {
    return philox_row(key.rng, key.site, key.sample, 0, key.p);
}

typedef struct AttentionInput {
    Matrix q, k, v;
    float scale;
    DropoutKey key;
} AttentionInput;

typedef struct AttentionGrad {
    AttentionInput in;
    Matrix dcontext;
    const float *lse; /* of this head: every heads-th */
} AttentionGrad;

typedef struct Gradients { /* NULL: not wanted */
    work *dq, *dk, *dv;
} Gradients;

#endif
