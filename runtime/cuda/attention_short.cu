/* Attention for sequences of at most 64 tokens and heads of at most 64 columns, in bf16: nearly all
 * sentences. What counts for them is how long one block takes from its first load to its last
 * store. So all that it reads comes into shared memory in one burst of copies, while the dropout
 * numbers are drawn; a warp has all scores of 16 queries in registers at once and computes none
 * twice. For dK and dV, whose sums go over queries, warps exchange the weights P * keep and dS;
 * then each has 16 keys.
 *
 * Rows and columns that a tile has beyond its matrix are zero in shared memory. */
#if PEFT_HAS_PART(0) || PEFT_HAS_PART(1)

enum {
    SHORT_LENGTH = ATTENTION_WARPS * TILE,
    SHORT_DIM = ATTENTION_WARPS * TILE,
    SHORT_TILES = SHORT_LENGTH / TILE,
    SHORT_SIZE = SHORT_LENGTH * SHORT_DIM /* of a matrix in shared memory */
};

#ifdef PEFT_BF16
enum { ATTEND_MEMORY = 3 * SHORT_SIZE, GRAD_MEMORY = 6 * SHORT_SIZE };
static_assert((int)LONG_MEMORY <= (int)ATTEND_MEMORY, "either way must have its room");

PK_DEVICE bool is_short(const Head &h) {
    return h.len <= SHORT_LENGTH && h.dim <= SHORT_DIM && h.vectors;
}

/* ---- matrices in shared memory ----
 *
 * The vectors of a row change places in eight ways, so that those of one column in eight rows that
 * follow each other are in different banks. */

PK_DEVICE work *shared_at(work *x, int row, int column) {
    return x + (row * SHORT_DIM + (column ^ (row & 7) * VECTOR));
}

/* The rows of n matrices, each made up to whole tiles of keys, to one place after the other. */
PK_DEVICE void copy_matrices(const Head &h, const Matrix *x, int n) {
    const int row0 = threadIdx.x / (SHORT_DIM / VECTOR);
    const int column = threadIdx.x % (SHORT_DIM / VECTOR) * VECTOR;
    work *to = shared_at(h.memory, row0, column);
#pragma unroll
    for (int i = 0; i < SHORT_TILES; i++) {
        const int row = i * TILE + row0;
        if (i * TILE >= h.len) break;
#pragma unroll
        for (int k = 0; k < n; k++) {
            const bool real = row < x[k].rows && column < h.dim;
            const uint32_t offset = (uint32_t)(row * h.width + column) * sizeof(work);
            copy_vector(to + (k * SHORT_SIZE + i * TILE * SHORT_DIM),
                        (const char *)x[k].at + (real ? offset : 0), real);
        }
    }
}

PK_DEVICE void wait_for_matrices() {
    wait_for_copies();
    __syncthreads();
}

/* Of the four matrices that 16 rows and 16 columns are, a lane's row. The second one is below the
 * first, or beside it. row and column are those of a tile, so that the lane's part is the same for
 * all tiles. */
PK_DEVICE const work *lane_vector(work *x, int row, int column, bool below) {
    const int lane = threadIdx.x & 31, half = lane & 8, other = lane >> 1 & 8;
    const int r = (lane & 7) + (below ? half : other), c = below ? other : half;
    return x + row * SHORT_DIM + ((r * SHORT_DIM + (c ^ (r & 7) * VECTOR)) ^ column);
}

/* A lane's two elements of C, where eight rows and eight columns begin. */
PK_DEVICE uint32_t *lane_pair(work *x, int row, int column) {
    const int lane = lane_row() * (SHORT_DIM + VECTOR) + 2 * lane_quarter();
    return (uint32_t *)(x + row * SHORT_DIM + (lane ^ column));
}

/* A [16, 16] of a product. */
PK_DEVICE void load_a(uint32_t *a, work *x, int row, int column) {
    load_matrices(a, lane_vector(x, row, column, true));
}
PK_DEVICE void load_a_transposed(uint32_t *a, work *x, int row, int column) {
    load_transposed(a, lane_vector(x, row, column, false));
}

/* B [16, 8] of two products, one after the other: 16 columns of x, or 16 rows. */
PK_DEVICE void load_b(uint32_t *b, work *x, int row, int column) {
    load_transposed(b, lane_vector(x, row, column, true));
}
PK_DEVICE void load_b_transposed(uint32_t *b, work *x, int row, int column) {
    load_matrices(b, lane_vector(x, row, column, false));
}

/* ---- scores ---- */

/* 16 queries' values for all keys. */
typedef struct Scores {
    Tile tile[SHORT_TILES];
} Scores;

/* For keys t * TILE + 8 u + 2 t' + e of a lane t', bit 8 u + e of [t][i]: whether it is dropped for
 * query g + 8 i. */
typedef struct Drops {
    uint32_t bits[SHORT_TILES][2];
} Drops;

PK_DEVICE Drops draw_drops(const Head &h, const PhiloxRow &drop, int i0) {
    Drops drops = {};
    if (drop.threshold == 0) return drops;
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        if (t * TILE >= h.len) break;
        const uint32_t mine = dropped_keys(h, drop, i0, t * TILE);
#pragma unroll
        for (int i = 0; i < 2; i++)
            drops.bits[t][i] = __shfl_sync(PK_WARP, mine, lane_row() + 8 * i) >> 2 * lane_quarter();
    }
    return drops;
}
PK_DEVICE bool is_dropped(const Drops &drops, int t, int u, int i) {
    return drops.bits[t][i / 2] & 1u << (8 * u + i % 2);
}
PK_DEVICE bool is_key(const Head &h, int t, int u, int i) {
    return t * TILE + 8 * u + i % 2 < h.len - 2 * lane_quarter();
}

/* The queries' rows of a matrix, as A. */
typedef struct QueryRows {
    uint32_t a[SHORT_DIM / TILE][4];
} QueryRows;

PK_DEVICE QueryRows load_queries(work *x, int i0) {
    QueryRows rows;
#pragma unroll
    for (int k = 0; k < SHORT_DIM / TILE; k++) load_a(rows.a[k], x, i0, k * TILE);
    return rows;
}

/* Their products with 16 rows of x. */
PK_DEVICE Tile multiply_rows(const QueryRows &rows, work *x, int row) {
    Tile c = {{{0.0f}}};
    uint32_t b[SHORT_DIM / TILE][4];
#pragma unroll
    for (int k = 0; k < SHORT_DIM / TILE; k++) load_b_transposed(b[k], x, row, k * TILE);
#pragma unroll
    for (int k = 0; k < SHORT_DIM / TILE; k++)
#pragma unroll
        for (int u = 0; u < 2; u++) mma_bf16(c.at[u], rows.a[k], b[k] + 2 * u);
    return c;
}

/* A of the next product is C of the one before. */
PK_DEVICE void tile_as_a(const Tile &c, uint32_t *a) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = pk_bf16_pair(c.at[i / 2][i % 2 * 2], c.at[i / 2][i % 2 * 2 + 1]);
}

/* 16 rows of a result. */
typedef struct RowSums {
    Tile tile[SHORT_DIM / TILE];
} RowSums;

/* += a times 16 rows of x */
PK_DEVICE void add_rows(RowSums *sums, const uint32_t *a, work *x, int row) {
    uint32_t b[SHORT_DIM / TILE][4];
#pragma unroll
    for (int c = 0; c < SHORT_DIM / TILE; c++) load_b(b[c], x, row, c * TILE);
#pragma unroll
    for (int c = 0; c < SHORT_DIM / TILE; c++)
#pragma unroll
        for (int u = 0; u < 2; u++) mma_bf16(sums->tile[c].at[u], a, b[c] + 2 * u);
}

/* To the rows of a matrix from `row` on, times a factor for rows g and g + 8. They pass through a
 * tile's rows of shared memory, which no other warp uses, for stores of whole lines. */
PK_DEVICE void store_rows(const Head &h, const Matrix &x, int row, const RowSums &sums,
                          const float *factor, work *stage) {
    const int lane = threadIdx.x & 31, column = lane % 8 * VECTOR;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < SHORT_DIM; c += VECTOR) {
            const float *pair = sums.tile[c / TILE].at[c / VECTOR % 2] + 2 * i;
            *lane_pair(stage, 8 * i, c) = pk_bf16_pair(factor[i] * pair[0], factor[i] * pair[1]);
        }
    __syncwarp();
    uint4 line[TILE / 4];
#pragma unroll
    for (int i = 0; i < TILE / 4; i++)
        line[i] = *(const uint4 *)shared_at(stage, 4 * i + lane / 8, column);
#pragma unroll
    for (int i = 0; i < TILE / 4; i++) {
        const int r = row + 4 * i + lane / 8;
        if (r < x.rows && column < h.dim) *(uint4 *)(x.at + (r * h.width + column)) = line[i];
    }
}

/* ---- forward ---- */

/* The largest of the scaled scores, over all lanes of rows g and g + 8; beyond the keys they become
 * -infinity. */
PK_DEVICE void scale_scores(const Head &h, float scale, Scores *s, float *most) {
    most[0] = most[1] = -PK_INF;
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        if (t * TILE >= h.len) break;
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const int u = at / 4, i = at % 4;
            float *x = &s->tile[t].at[u][i];
            *x = is_key(h, t, u, i) ? scale * *x : -PK_INF;
            most[i / 2] = pk_max(most[i / 2], *x);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) most[i] = quad_max(most[i]);
}

/* Scaled scores to weights of the values; the sums of exponentials over all lanes of the rows. */
PK_DEVICE void weigh_values(const Head &h, const PhiloxRow &drop, const Drops &drops,
                            const float *most, Scores *s, float *sum) {
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        if (t * TILE >= h.len) break;
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const int u = at / 4, i = at % 4;
            float *x = &s->tile[t].at[u][i];
            const float e = exp2f(*x - most[i / 2]);
            sum[i / 2] += e;
            *x = is_dropped(drops, t, u, i) ? 0.0f : e * drop.scale;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) sum[i] = quad_sum(sum[i]);
}

PK_DEVICE void attend_queries(const Head &h, float scale, const PhiloxRow &drop, const Drops &drops,
                              int i0, const Matrix &context, float *lse) {
    work *q = h.memory, *k = q + SHORT_SIZE, *v = k + SHORT_SIZE;
    const QueryRows rows = load_queries(q, i0);
    Scores s;
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        if (t * TILE >= h.len) break;
        s.tile[t] = multiply_rows(rows, k, t * TILE);
    }
    float most[2], sum[2], inverse[2];
    scale_scores(h, LOG2_E * scale, &s, most);
    weigh_values(h, drop, drops, most, &s, sum);
#pragma unroll
    for (int i = 0; i < 2; i++) inverse[i] = 1.0f / sum[i];
    RowSums sums = {};
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        uint32_t a[4];
        if (t * TILE >= h.len) break;
        tile_as_a(s.tile[t], a);
        add_rows(&sums, a, v, t * TILE);
    }
    store_rows(h, context, i0, sums, inverse, q + i0 * SHORT_DIM);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = i0 + lane_row() + 8 * i;
        if (r < h.queries && lane_quarter() == 0)
            lse[(int64_t)(h.query0 + r) * h.heads + h.head] = most[i] / LOG2_E + pk_log(sum[i]);
    }
}

/* Whether the sequence is short; then its context and lse are there. */
PK_DEVICE bool attend_short(const Head &h, const AttentionInput &in, const Matrix &context,
                            float *lse) {
    if (!is_short(h)) return false;
    const Matrix matrix[] = {in.q, in.k, in.v};
    const int i0 = warp_index() * TILE;
    copy_matrices(h, matrix, 3);
    const PhiloxRow drop = dropout_of(in.key);
    Drops drops;
    if (i0 < h.queries) drops = draw_drops(h, drop, i0);
    wait_for_matrices();
    if (i0 < h.queries) attend_queries(h, in.scale, drop, drops, i0, context, lse);
    return true;
}

/* ---- backward ---- */

typedef struct GradMatrices {                 /* in shared memory */
    work *q, *k, *dcontext, *v, *weight, *ds; /* weight: P * keep */
} GradMatrices;

PK_DEVICE GradMatrices grad_matrices(const Head &h) {
    work *at = h.memory;
    return {at,
            at + SHORT_SIZE,
            at + 2 * SHORT_SIZE,
            at + 3 * SHORT_SIZE,
            at + 4 * SHORT_SIZE,
            at + 5 * SHORT_SIZE};
}

/* A tile that is an A, to shared memory. */
PK_DEVICE void keep_tile(work *x, int row, int column, const uint32_t *a) {
#pragma unroll
    for (int i = 0; i < 4; i++) *lane_pair(x, row + i % 2 * 8, column + i / 2 * 8) = a[i];
}

/* What the scores of 16 queries take of the sequence and of rows g and g + 8. */
typedef struct QueryInput {
    float scale, drop_scale;
    float shift[2]; /* lse / log 2, infinite beyond the last query */
    Drops drops;
} QueryInput;

/* What they have in registers: P, dP, the lane's part of delta. */
typedef struct QueryGrad {
    Scores p, dp;
    float delta[2];
} QueryGrad;

/* A tile of P and dP, from S and dP without keep; and of P * keep, in shared memory. */
PK_DEVICE void finish_tile(const Head &h, const QueryInput &in, int t, work *weight, int i0,
                           QueryGrad *x) {
    float(*p)[4] = x->p.tile[t].at, (*dp)[4] = x->dp.tile[t].at;
    Tile kept;
    uint32_t a[4];
#pragma unroll
    for (int at = 0; at < 8; at++) {
        const int u = at / 4, i = at % 4;
        const float e = exp2f(fmaf(LOG2_E * in.scale, p[u][i], -in.shift[i / 2]));
        const float keep = is_dropped(in.drops, t, u, i) ? 0.0f : in.drop_scale;
        p[u][i] = is_key(h, t, u, i) ? e : 0.0f;
        dp[u][i] *= keep;
        kept.at[u][i] = p[u][i] * keep;
        x->delta[i / 2] += p[u][i] * dp[u][i];
    }
    tile_as_a(kept, a);
    keep_tile(weight, i0, t * TILE, a);
}

PK_DEVICE void compute_scores(const Head &h, const QueryInput &in, const GradMatrices &m, int i0,
                              QueryGrad *x) {
    const QueryRows q = load_queries(m.q, i0), dcontext = load_queries(m.dcontext, i0);
    x->delta[0] = x->delta[1] = 0.0f;
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        if (t * TILE >= h.len) break;
        x->p.tile[t] = multiply_rows(q, m.k, t * TILE);
        x->dp.tile[t] = multiply_rows(dcontext, m.v, t * TILE);
        finish_tile(h, in, t, m.weight, i0, x);
    }
}

/* dS, in shared memory, and dQ's sums. */
PK_DEVICE void differentiate_softmax(const Head &h, float scale, const GradMatrices &m, int i0,
                                     const QueryGrad &x, RowSums *dq) {
    const float delta[2] = {quad_sum(x.delta[0]), quad_sum(x.delta[1])};
#pragma unroll
    for (int t = 0; t < SHORT_TILES; t++) {
        Tile ds;
        uint32_t a[4];
        if (t * TILE >= h.len) break;
#pragma unroll
        for (int at = 0; at < 8; at++) {
            const int u = at / 4, i = at % 4;
            ds.at[u][i] = scale * x.p.tile[t].at[u][i] * (x.dp.tile[t].at[u][i] - delta[i / 2]);
        }
        tile_as_a(ds, a);
        keep_tile(m.ds, i0, t * TILE, a);
        add_rows(dq, a, m.k, t * TILE);
    }
}

/* dK and dV of keys from i0 on. */
PK_DEVICE void grad_keys(const Head &h, const GradMatrices &m, int i0, const Gradients &out) {
    const float factor[2] = {1.0f, 1.0f};
    RowSums dk = {}, dv = {};
#pragma unroll 1
    for (int j = 0; j < h.queries; j += TILE) {
        uint32_t ds[4], weight[4];
        load_a_transposed(ds, m.ds, j, i0);
        load_a_transposed(weight, m.weight, j, i0);
        add_rows(&dk, ds, m.q, j);
        add_rows(&dv, weight, m.dcontext, j);
    }
    work *stage = m.v + i0 * SHORT_DIM;
    if (out.dk) store_rows(h, of_keys(h, out.dk), i0, dk, factor, stage);
    if (out.dv) store_rows(h, of_keys(h, out.dv), i0, dv, factor, stage);
}

/* All of a warp's 16 rows. */
PK_DEVICE void grad_tile(const Head &h, const QueryInput &in, const GradMatrices &m, int i0,
                         const Gradients &out) {
    const float factor[2] = {1.0f, 1.0f};
    RowSums dq = {};
    if (i0 < h.queries) {
        QueryGrad x;
        compute_scores(h, in, m, i0, &x);
        differentiate_softmax(h, in.scale, m, i0, x, &dq);
    }
    __syncthreads(); /* the weights are there, V is read */
    if (i0 < h.queries && out.dq)
        store_rows(h, of_queries(h, out.dq), i0, dq, factor, m.v + i0 * SHORT_DIM);
    if (i0 < h.len && (out.dk || out.dv)) grad_keys(h, m, i0, out);
}

/* Whether the sequence is short; then its gradients are there. */
PK_DEVICE bool grad_short(const Head &h, const AttentionGrad &g, const Gradients &out) {
    if (!is_short(h)) return false;
    const Matrix matrix[] = {g.in.q, g.in.k, g.dcontext, g.in.v};
    const GradMatrices m = grad_matrices(h);
    const int i0 = warp_index() * TILE;
    QueryInput in;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = i0 + lane_row() + 8 * i;
        in.shift[i] = r < h.queries ? g.lse[r * h.heads] : PK_INF;
    }
    copy_matrices(h, matrix, 4);
    const PhiloxRow drop = dropout_of(g.in.key);
    in.scale = g.in.scale;
    in.drop_scale = drop.scale;
    if (i0 < h.queries) in.drops = draw_drops(h, drop, i0);
    in.shift[0] *= LOG2_E, in.shift[1] *= LOG2_E;
    wait_for_matrices();
    grad_tile(h, in, m, i0, out);
    return true;
}
#else
enum { ATTEND_MEMORY = LONG_MEMORY, GRAD_MEMORY = LONG_MEMORY };

/* Products of floats take three times as many registers: no sequence is short. */
PK_DEVICE bool attend_short(const Head &, const AttentionInput &, const Matrix &, float *) {
    return false;
}
PK_DEVICE bool grad_short(const Head &, const AttentionGrad &, const Gradients &) {
    return false;
}
#endif

#endif
