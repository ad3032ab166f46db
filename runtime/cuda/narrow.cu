/* Two products through a narrow middle, as an adapter's, in one kernel for short batches in bf16:
 *
 *   C [m, N] = scale (f(A B1) B2) + addend + bias,   A [m, K],   A B1 [m, R], R <= 64
 *
 * with any epilogue f that generated code computes in between (narrow_sum8), and any over C, which
 * it computes in the end, instead of storing C (narrow_get8). A block has 16 rows and COLUMNS
 * columns of C. It computes all of its rows' middle, as the other blocks of these rows do: that is
 * cheaper than another launch. All that it multiplies comes into shared memory in one burst of
 * copies, the weights, which the kernel before does not write, ahead of the wait for it.
 *
 * Warps share the first product by k; their parts are added in order. Rows that a matrix has beyond
 * the launch are zero in shared memory, and nothing of them is read or written. Invariant: every
 * sum is added up in an order that depends on sizes alone. */
#ifdef PEFT_BF16

enum {
    NARROW_ROWS = 16,
    NARROW_WARPS = 8,
    NARROW_THREADS = 32 * NARROW_WARPS,
    NARROW_MEMORY = 232448, /* the most that a block of any GPU has */
    NARROW_GAP = 8 /* elements behind a row in shared memory: rows are multiples of 16, so that
                      eight neighbours begin in different banks */
};

/* Where everything lies in shared memory, in elements. A matrix B is [n, k] (NT) or [k, n]. */
template <int K_, int R_, int N_, int COLUMNS_, bool NT1_, bool NT2_> struct Narrow {
    static constexpr int K = K_, R = R_, N = N_, COLUMNS = COLUMNS_;
    static constexpr bool NT1 = NT1_, NT2 = NT2_;
    static constexpr int A_STRIDE = K + NARROW_GAP, MIDDLE_STRIDE = R + NARROW_GAP;
    static constexpr int B1_STRIDE = (NT1 ? K : R) + NARROW_GAP, B1_ROWS = NT1 ? R : K;
    static constexpr int B2_STRIDE = (NT2 ? R : COLUMNS) + NARROW_GAP, B2_ROWS = NT2 ? COLUMNS : R;
    static constexpr int WARP_COLUMNS = COLUMNS / NARROW_WARPS;
    static constexpr int OUT_STRIDE = WARP_COLUMNS + NARROW_GAP;
    /* Of eight neighbours in C: those across a warp's columns, and of a thread, at most. */
    static constexpr int ACROSS = WARP_COLUMNS / 8, VECTORS = (NARROW_ROWS * ACROSS + 31) / 32;
    /* The first product's operands, then its parts, then the result. */
    static constexpr int B1 = NARROW_ROWS * A_STRIDE, OPERANDS = B1 + B1_ROWS * B1_STRIDE;
    static constexpr int PART = NARROW_ROWS * MIDDLE_STRIDE; /* floats */
    static constexpr int PARTS = NARROW_WARPS * PART * (int)(sizeof(float) / sizeof(work));
    static constexpr int B2 = OPERANDS > PARTS ? OPERANDS : PARTS;
    static constexpr int MIDDLE = B2 + B2_ROWS * B2_STRIDE;
    static constexpr int BYTES = (MIDDLE + PART) * (int)sizeof(work);
    static_assert(K % 16 == 0 && R % 16 == 0 && COLUMNS % 64 == 0 && N % COLUMNS == 0,
                  "whole tiles");
    static_assert(NARROW_WARPS * NARROW_ROWS * OUT_STRIDE <= B2, "the result takes their place");
    static_assert(R <= 64 && BYTES <= NARROW_MEMORY, "a block has its room");
};

#ifdef __CUDACC_RTC__
extern __shared__ uint4 narrow_vectors[];
#else
__shared__ uint4 narrow_vectors[NARROW_MEMORY / sizeof(uint4)];
#endif

PK_DEVICE work *narrow_memory() {
    return (work *)narrow_vectors;
}

/* ---- loads ---- */

/* Starts to copy ROWS rows of COLUMNS elements, `rows` of which there are. */
template <int ROWS, int COLUMNS>
PK_DEVICE void narrow_copy(work *to, const work *from, int width, int rows) {
    constexpr int ACROSS = COLUMNS / 8, ALL = ROWS * ACROSS;
#pragma unroll
    for (int first = 0; first < ALL; first += NARROW_THREADS) {
        const int i = first + (int)threadIdx.x, r = i / ACROSS, c = i % ACROSS * 8;
        if (ALL % NARROW_THREADS && i >= ALL) break;
        const bool real = r < rows;
        copy_vector(to + r * (COLUMNS + NARROW_GAP) + c, from + (real ? (int64_t)r * width + c : 0),
                    real);
    }
}

template <typename S> PK_DEVICE void narrow_load_weights(const work *b1, const work *b2) {
    const int column0 = (int)blockIdx.y * S::COLUMNS;
    work *to1 = narrow_memory() + S::B1, *to2 = narrow_memory() + S::B2;
    if (S::NT1)
        narrow_copy<S::R, S::K>(to1, b1, S::K, S::R);
    else
        narrow_copy<S::K, S::R>(to1, b1, S::R, S::K);
    if (S::NT2)
        narrow_copy<S::COLUMNS, S::R>(to2, b2 + (int64_t)column0 * S::R, S::R, S::COLUMNS);
    else
        narrow_copy<S::R, S::COLUMNS>(to2, b2 + column0, S::N, S::R);
}

/* launched: the rows that the launch is for, and A has. */
template <typename S> PK_DEVICE void narrow_load_rows(const work *a, int launched) {
    const int row0 = (int)blockIdx.x * NARROW_ROWS;
    narrow_copy<NARROW_ROWS, S::K>(narrow_memory(), a + (int64_t)row0 * S::K, S::K,
                                   launched - row0);
}

/* ---- the first product ---- */

/* A [16, 16] of a product, from rows of this stride. */
template <int STRIDE> PK_DEVICE void narrow_a(uint32_t *x, const work *a, int k) {
    const int lane = threadIdx.x & 31;
    load_matrices(x, a + lane % 16 * STRIDE + k + lane / 16 * 8);
}

/* B of two products of 8 columns, `next` columns apart. */
template <bool NT, int STRIDE>
PK_DEVICE void narrow_b(uint32_t *x, const work *b, int column, int k, int next) {
    const int lane = threadIdx.x & 31, other = lane / 16 * next;
    if (NT)
        load_matrices(x, b + (column + lane % 8 + other) * STRIDE + k + lane / 8 % 2 * 8);
    else
        load_transposed(x, b + (k + lane % 16) * STRIDE + column + other);
}

/* Waits for the copies and leaves each warp's part of A B1 in shared memory. */
template <typename S> PK_DEVICE void narrow_first() {
    const int warp = (int)threadIdx.x / 32, lane = threadIdx.x & 31;
    const work *a = narrow_memory(), *b = a + S::B1;
    float sum[S::R / 8][4] = {};
    wait_for_copies();
    __syncthreads();
#pragma unroll
    for (int k0 = 0; k0 < S::K; k0 += 16 * NARROW_WARPS) {
        const int k = k0 + 16 * warp;
        if (S::K % (16 * NARROW_WARPS) && k >= S::K) break;
        uint32_t x[4], y[S::R / 16][4];
        narrow_a<S::A_STRIDE>(x, a, k);
#pragma unroll
        for (int j = 0; j < S::R / 16; j++) narrow_b<S::NT1, S::B1_STRIDE>(y[j], b, 16 * j, k, 8);
#pragma unroll
        for (int j = 0; j < S::R / 8; j++) mma_bf16(sum[j], x, y[j / 2] + j % 2 * 2);
    }
    __syncthreads(); /* the parts lie over the operands */
    float *part = (float *)narrow_memory() + warp * S::PART + lane / 4 * S::MIDDLE_STRIDE;
#pragma unroll
    for (int j = 0; j < S::R / 8; j++) {
        float *to = part + 8 * j + lane % 4 * 2;
        *(float2 *)to = make_float2(sum[j][0], sum[j][1]);
        *(float2 *)(to + 8 * S::MIDDLE_STRIDE) = make_float2(sum[j][2], sum[j][3]);
    }
    __syncthreads();
}

/* Eight neighbours of a row of A B1; column is a multiple of 8. */
template <typename S> PK_DEVICE void narrow_sum8(int row, int column, float *x) {
    const float *part = (const float *)narrow_memory() + row * S::MIDDLE_STRIDE + column;
    pk_get8(part, 0, x);
#pragma unroll
    for (int warp = 1; warp < NARROW_WARPS; warp++) {
        alignas(16) float y[8];
        pk_get8(part, warp * S::PART, y);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += y[i];
    }
}

/* What is multiplied by B2. */
template <typename S> PK_DEVICE void narrow_put8(int row, int column, const float *x) {
    pk_put8(narrow_memory() + S::MIDDLE, row * S::MIDDLE_STRIDE + column, x);
}

/* ---- the second product ---- */

/* What a product has beside it, NULL where it has none. */
typedef struct NarrowTerms {
    float scale;
    const work *addend, *bias;
} NarrowTerms;

PK_DEVICE float narrow_term(const NarrowTerms &t, float sum, int64_t at, int column, bool real) {
    sum *= t.scale;
    if (t.addend && real) sum += pk_get(t.addend, at);
    return t.bias ? sum + pk_get(t.bias, column) : sum;
}

/* Vector j of a thread: which of its warp's it is, its row and first column in C. The last ones
 * need not be there: whether it is, among the rows of the launch. */
PK_DEVICE int narrow_vector(int j) {
    return 32 * j + (int)(threadIdx.x & 31);
}

template <typename S> PK_DEVICE int narrow_row(int j) {
    return (int)blockIdx.x * NARROW_ROWS + narrow_vector(j) / S::ACROSS;
}

template <typename S> PK_DEVICE int narrow_column(int j) {
    return (int)blockIdx.y * S::COLUMNS + (int)threadIdx.x / 32 * S::WARP_COLUMNS +
           narrow_vector(j) % S::ACROSS * 8;
}

template <typename S> PK_DEVICE bool narrow_has(int j, int launched) {
    return narrow_vector(j) < NARROW_ROWS * S::ACROSS && narrow_row<S>(j) < launched;
}

/* A warp's part of C in shared memory, and where vector j of a thread lies in it. */
template <typename S> PK_DEVICE work *narrow_out() {
    return narrow_memory() + (int)threadIdx.x / 32 * NARROW_ROWS * S::OUT_STRIDE;
}

template <typename S> PK_DEVICE int narrow_at(int j) {
    return narrow_vector(j) / S::ACROSS * S::OUT_STRIDE + narrow_vector(j) % S::ACROSS * 8;
}

/* A warp's sums, by 8 columns, to its place in shared memory. */
template <typename S>
PK_DEVICE void narrow_terms(const float (&sum)[S::ACROSS][4], const NarrowTerms &terms,
                            int launched) {
    const int row0 = (int)blockIdx.x * NARROW_ROWS;
    const int column0 = (int)blockIdx.y * S::COLUMNS + (int)threadIdx.x / 32 * S::WARP_COLUMNS;
    work *out = narrow_out<S>();
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < S::ACROSS; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = lane / 4 + 8 * i, c = 8 * j + lane % 4 * 2, column = column0 + c;
            const int64_t at = (int64_t)(row0 + r) * S::N + column;
            const bool real = row0 + r < launched;
            *(uint32_t *)(out + r * S::OUT_STRIDE + c) =
                pk_bf16_pair(narrow_term(terms, sum[j][2 * i], at, column, real),
                             narrow_term(terms, sum[j][2 * i + 1], at + 1, column + 1, real));
        }
}

/* C from the middle, for which it waits, in shared memory: each warp has its part there. */
template <typename S> PK_DEVICE void narrow_second(const NarrowTerms &terms, int launched) {
    constexpr int TILES = S::ACROSS, PAIRS = (TILES + 1) / 2;
    const int warp = (int)threadIdx.x / 32;
    const work *b = narrow_memory() + S::B2;
    float sum[TILES][4] = {};
    uint32_t y[S::R / 16][PAIRS][4];
#pragma unroll
    for (int k = 0; k < S::R / 16; k++)
#pragma unroll
        for (int j = 0; j < PAIRS; j++) /* the last one need not have two */
            narrow_b<S::NT2, S::B2_STRIDE>(y[k][j], b, warp * S::WARP_COLUMNS + 16 * j, 16 * k,
                                           2 * j + 1 < TILES ? 8 : 0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < S::R / 16; k++) {
        uint32_t x[4];
        narrow_a<S::MIDDLE_STRIDE>(x, narrow_memory() + S::MIDDLE, 16 * k);
#pragma unroll
        for (int j = 0; j < TILES; j++) mma_bf16(sum[j], x, y[k][j / 2] + j % 2 * 2);
    }
    narrow_terms<S>(sum, terms, launched);
    __syncwarp();
}

/* Vector j of C, for an epilogue. */
template <typename S> PK_DEVICE void narrow_get8(int j, float *x) {
    pk_get8(narrow_out<S>(), narrow_at<S>(j), x);
}

/* C as it is, to memory. */
template <typename S> PK_DEVICE void narrow_store(work *c, int launched) {
#pragma unroll
    for (int j = 0; j < S::VECTORS; j++)
        if (narrow_has<S>(j, launched))
            *(uint4 *)(c + (int64_t)narrow_row<S>(j) * S::N + narrow_column<S>(j)) =
                *(const uint4 *)(narrow_out<S>() + narrow_at<S>(j));
}

#endif
