/* Attention for sequences and heads of any size, in float or bf16. A warp takes 16 rows (queries;
 * keys for dK and dV) and goes through the rows opposite, 16 at a time; no score leaves its
 * registers. Operands come from global memory straight into registers, in wide loads that depend on
 * nothing, and the dropout numbers are drawn while they are on their way.
 *
 * Which sixteen summands a product adds, and in what order the columns of C stand, is free as long
 * as both sides agree: they are chosen such that every lane loads and stores whole vectors, and
 * such that a lane's part of C is its part of an A, with no exchange between. */
#if PEFT_HAS_PART(0) || PEFT_HAS_PART(1)

enum {
    CHUNK = 64,                                   /* columns of a result at a time */
    SPAN = 128 / sizeof(work),                    /* columns of a sum over columns at a time */
    WORDS = sizeof(work),                         /* registers of 32 bits for four elements */
    COPIES = ATTENTION_WARPS * TILE * CHUNK,      /* elements, of 16 rows for each warp */
    DELTAS = ATTENTION_LENGTH * 4 / sizeof(work), /* elements in whose place delta is */
    LONG_MEMORY = COPIES + DELTAS
};

/* By value: the choice between places would keep both in memory. */
PK_DEVICE Matrix choose(bool first, Matrix a, Matrix b) {
    return {first ? a.at : b.at, first ? a.rows : b.rows};
}

/* ---- operands in registers ---- */

#ifdef PEFT_BF16
PK_DEVICE void pack_four(float a, float b, float c, float d, uint32_t *word) {
    word[0] = pk_bf16_pair(a, b);
    word[1] = pk_bf16_pair(c, d);
}
PK_DEVICE uint4 pack_vector(const float *x) {
    return make_uint4(pk_bf16_pair(x[0], x[1]), pk_bf16_pair(x[2], x[3]), pk_bf16_pair(x[4], x[5]),
                      pk_bf16_pair(x[6], x[7]));
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

/* 16 rows of a chunk; those beyond the matrix and columns beyond the head are 0. */
typedef struct Source {
    const work *at;
    int step, rows, columns; /* from row to row; of those that there are */
} Source;

/* Where rows are no whole vectors they go through shared memory, element by element. */
static __device__ Source copy_source(const Head &h, const Source &s) {
    work *to = h.memory + (threadIdx.x >> 5) * (TILE * CHUNK);
    __syncwarp();
#pragma unroll 1
    for (int i = threadIdx.x & 31; i < TILE * CHUNK; i += 32) {
        const int r = i / CHUNK, c = i % CHUNK;
        pk_put(to, i, r < s.rows && c < s.columns ? pk_get(s.at, r * s.step + c) : 0.0f);
    }
    __syncwarp();
    return {to, CHUNK, TILE, CHUNK};
}

PK_DEVICE Source source(const Head &h, const Matrix &x, int row, int c0) {
    return {x.at + (row * h.width + c0), h.width, x.rows - row, h.dim - c0};
}

PK_DEVICE uint4 load_vector(const Source &s, int row, int column) {
    if (row >= s.rows || column >= s.columns) return make_uint4(0, 0, 0, 0);
    return *(const uint4 *)(s.at + (row * s.step + column));
}

/* 16 rows of a span, for sums over its columns: as A, or as B of 8 rows each. */
typedef struct Rows {
    uint32_t word[2][SPAN / 16 * WORDS];
} Rows;

PK_DEVICE Rows rows_of(const Source &s) {
    Rows rows;
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int i = 0; i < SPAN / 4 / VECTOR; i++) {
            const uint4 v = load_vector(s, lane_row() + 8 * u, (4 * i + lane_quarter()) * VECTOR);
            rows.word[u][4 * i] = v.x;
            rows.word[u][4 * i + 1] = v.y;
            rows.word[u][4 * i + 2] = v.z;
            rows.word[u][4 * i + 3] = v.w;
        }
    return rows;
}

PK_DEVICE Rows copied_rows(const Head &h, const Source &s) {
    return rows_of(copy_source(h, s));
}

PK_DEVICE Rows load_rows(const Head &h, const Matrix &x, int row, int c0) {
    const Source s = source(h, x, row, c0);
    return h.vectors ? rows_of(s) : copied_rows(h, s);
}

/* 16 rows of a chunk, for sums over the rows: a B for each of eight products. Product j has the
 * columns 8 n + j, n = 0 .. 7. */
typedef struct Columns {
    uint32_t word[8][WORDS];
} Columns;

PK_DEVICE Columns columns_of(const Source &s) {
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

PK_DEVICE Columns load_columns(const Head &h, const Matrix &x, int row, int c0) {
    const Source s = source(h, x, row, c0);
    return h.vectors ? columns_of(s) : columns_of(copy_source(h, s));
}

/* ---- products ---- */

#ifdef PEFT_BF16
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

PK_DEVICE void add_row_products(Tile *c, const Rows &a, const Rows &b) {
#pragma unroll
    for (int step = 0; step < SPAN / 16 * WORDS; step += WORDS)
#pragma unroll
        for (int u = 0; u < 2; u++)
            multiply(c->at[u], a.word[0] + step, a.word[1] + step, b.word[u] + step);
}

/* a b', of 16 rows of each from i and j on; x and y are their first spans, which were loaded before
 * for the time that takes. */
PK_DEVICE Tile row_products(const Head &h, const Matrix &a, int i, const Rows &x, const Matrix &b,
                            int j, const Rows &y) {
    Tile c = {{{0.0f}}};
    add_row_products(&c, x, y);
#pragma unroll 1
    for (int c0 = SPAN; c0 < h.dim; c0 += SPAN)
        add_row_products(&c, load_rows(h, a, i, c0), load_rows(h, b, j, c0));
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

/* To the rows of a matrix from `row` on, times a factor for rows g and g + 8. */
PK_DEVICE void store_sums(const Head &h, const Matrix &x, int row, int c0, const Sums &sums,
                          const float *factor) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const int r = row + lane_row() + 8 * u, c = c0 + 16 * lane_quarter();
        work *to = (work *)x.at + (r * h.width + c);
        const int n = r < x.rows ? h.dim - c : 0; /* of 16 columns */
        float value[16];
#pragma unroll
        for (int i = 0; i < 16; i++) value[i] = factor[u] * sums.at[i % 8][2 * u + i / 8];
        if (h.vectors) {
#pragma unroll
            for (int i = 0; i < 16; i += VECTOR)
                if (i < n) *(uint4 *)(to + i) = pack_vector(value + i);
        } else {
#pragma unroll
            for (int i = 0; i < 16; i++)
                if (i < n) pk_put(to, i, value[i]);
        }
    }
}

/* Which rows and columns of a tile are whose: its rows are queries, or its columns are. */
typedef struct Place {
    int query, key; /* first ones */
    bool by_query;  /* rows are queries */
} Place;

/* A lane meets two queries of a tile, rows g and g + 8, or four, its columns. */
enum { SLOTS = 4 };

PK_DEVICE bool is_slot(const Place &at, int slot) {
    return slot < (at.by_query ? 2 : SLOTS);
}
PK_DEVICE int slot_row(const Place &at, int slot) {
    return at.by_query ? lane_row() + slot * 8 : tile_column(slot / 2, slot % 2);
}
/* Of element [u][i]: the slot of its query, and its key. */
template <bool by_query> PK_DEVICE int slot_of(int u, int i) {
    return by_query ? i / 2 : 2 * u + i % 2;
}
template <bool by_query> PK_DEVICE int key_of(int u, int i) {
    return by_query ? tile_column(u, i % 2) : lane_row() + i / 2 * 8;
}

/* For each slot, the dropped keys of that query, a bit for each key of the tile. */
PK_DEVICE void slot_drops(const Head &h, const PhiloxRow &drop, const Place &at, uint32_t *bits) {
    const uint32_t mine = drop.threshold ? dropped_keys(h, drop, at.query, at.key) : 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS && is_slot(at, slot); slot++)
        bits[slot] = __shfl_sync(PK_WARP, mine, slot_row(at, slot));
}

/* The host checks lengths before; should one get here that shared memory was not made for, it stops
 * rather than write over other values. */
PK_DEVICE void check_length(const Head &h) {
    if (h.len > ATTENTION_LENGTH) __trap();
}

/* ---- forward ---- */

/* Of rows g and g + 8, over the keys so far. */
typedef struct Softmax {
    float most[2]; /* largest score / log 2 */
    float sum[2];  /* the lane's part of the sum of 2^(score / log 2 - most) */
} Softmax;

/* Scores of n more keys to weights of their values; what was summed before is scaled to the new
 * largest score. */
PK_DEVICE void softmax_step(Softmax *m, Tile *s, const uint32_t *drops, int n, float scale,
                            float drop_scale, Sums *sums) {
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
            const float e = exp2f(*x - most);
            sum += e;
            *x = drops[i] >> tile_column(at / 2, at % 2) & 1 ? 0.0f : e * drop_scale;
        }
        const float before = exp2f(m->most[i] - most);
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
PK_DEVICE void attend(const Head &h, const AttentionInput &in, const PhiloxRow &drop, int i0,
                      const Matrix &context, float *lse) {
    const Rows q = load_rows(h, in.q, i0, 0);
#pragma unroll 1
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        Softmax m = {{-PK_INF, -PK_INF}, {0.0f, 0.0f}};
        Sums sums = {{{0.0f}}};
        Rows k = load_rows(h, in.k, 0, 0);
#pragma unroll 1
        for (int t = 0; t < h.len; t += TILE) {
            const Columns v = load_columns(h, in.v, t, c0);
            uint32_t drops[SLOTS];
            slot_drops(h, drop, {i0, t, true}, drops);
            Tile s = row_products(h, in.q, i0, q, in.k, t, k);
            k = load_rows(h, in.k, t + TILE, 0);
            softmax_step(&m, &s, drops, h.len - t, LOG2_E * in.scale, drop.scale, &sums);
            add_columns(&sums, s, v);
        }
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = i0 + lane_row() + 8 * i;
            const float sum = quad_sum(m.sum[i]);
            inverse[i] = 1.0f / sum;
            if (c0 == 0 && r < h.queries && lane_quarter() == 0)
                lse[(int64_t)(h.query0 + r) * h.heads + h.head] = m.most[i] / LOG2_E + pk_log(sum);
        }
        store_sums(h, context, i0, c0, sums, inverse);
    }
}

/* A call, with copies: what this way needs of registers is not to be the other way's loss. */
static __device__ __attribute__((noinline)) void attend_long(const Head h, const AttentionInput in,
                                                             const Matrix context, float *lse) {
    const PhiloxRow drop = dropout_of(in.key);
    check_length(h);
#pragma unroll 1
    for (int i = threadIdx.x >> 5; i * TILE < h.queries; i += ATTENTION_WARPS)
        attend(h, in, drop, i * TILE, context, lse);
}

/* ---- backward: probabilities are computed again from lse ---- */

/* delta of the queries, in shared memory. */
PK_DEVICE float *deltas(const Head &h) {
    return (float *)(h.memory + COPIES);
}

typedef enum Wanted { DELTA, DQ, DK, DV } Wanted;

/* The products that give a tile: a b' = S and da db' = dcontext V', or their transposes. */
typedef struct Factors {
    Matrix a, b, da, db;
    int i, j; /* first rows */
} Factors;

PK_DEVICE Factors pair_factors(const AttentionGrad &g, const Place &at) {
    return {choose(at.by_query, g.in.q, g.in.k),     choose(at.by_query, g.in.k, g.in.q),
            choose(at.by_query, g.dcontext, g.in.v), choose(at.by_query, g.in.v, g.dcontext),
            at.by_query ? at.query : at.key,         at.by_query ? at.key : at.query};
}

typedef struct Operands { /* a span of each */
    Rows a, b, da, db;
} Operands;

PK_DEVICE Operands load_operands(const Head &h, const Factors &f, int c0, bool dp) {
    Operands x = {};
    x.a = load_rows(h, f.a, f.i, c0);
    x.b = load_rows(h, f.b, f.j, c0);
    if (!dp) return x;
    x.da = load_rows(h, f.da, f.i, c0);
    x.db = load_rows(h, f.db, f.j, c0);
    return x;
}

typedef struct Pairs {
    Tile s, dp; /* S, dP without keep */
} Pairs;

PK_DEVICE void add_operands(Pairs *x, const Operands &y, bool dp) {
    add_row_products(&x->s, y.a, y.b);
    if (dp) add_row_products(&x->dp, y.da, y.db);
}

/* What the elements of a tile take of their queries. */
typedef struct Slots {
    float shift[SLOTS]; /* lse / log 2, infinite beyond the last query: P is 0 there */
    float delta[SLOTS];
    uint32_t drops[SLOTS];
} Slots;

/* factor P (keep dP - delta), in the place of S. A choice between rows and columns for each element
 * would cost more than two of these, of which one runs. */
template <bool by_query>
PK_DEVICE void weigh(const Head &h, const Place &at, const Slots &slots, float scale,
                     float drop_scale, float factor, Pairs *x) {
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int slot = slot_of<by_query>(u, i), key = key_of<by_query>(u, i);
            float *s = &x->s.at[u][i];
            const float e = exp2f(fmaf(LOG2_E * scale, *s, -slots.shift[slot]));
            const float p = at.key + key < h.len ? e : 0.0f;
            const float keep = slots.drops[slot] >> key & 1 ? 0.0f : drop_scale;
            *s = factor * p * (keep * x->dp.at[u][i] - slots.delta[slot]);
        }
}

/* The weights of a result's sums: dS of dQ and dK; P * dP of delta, which is dS with a delta of 0,
 * not scaled; P * keep of dV, which is that with a dP of 1. The result is no constant to the
 * compiler: NVRTC's time, most of a first start, is that of the code that it makes. */
PK_DEVICE Tile pair_weights(const Head &h, const AttentionGrad &g, const PhiloxRow &drop,
                            Wanted wanted, const Place &at) {
    const Factors factors = pair_factors(g, at);
    const bool ds = wanted == DQ || wanted == DK, dp = wanted != DV;
    Slots slots;
    Pairs x;
#pragma unroll
    for (int i = 0; i < 8; i++)
        x.s.at[i / 4][i % 4] = 0.0f, x.dp.at[i / 4][i % 4] = dp ? 0.0f : 1.0f;
#pragma unroll 1
    for (int c0 = 0; c0 < h.dim; c0 += SPAN) {
        const Operands operands = load_operands(h, factors, c0, dp);
        if (c0 == 0) { /* while they are on their way */
#pragma unroll
            for (int slot = 0; slot < SLOTS && is_slot(at, slot); slot++) {
                const int i = at.query + slot_row(at, slot);
                slots.shift[slot] = i < h.queries ? LOG2_E * g.lse[i * h.heads] : PK_INF;
            }
            slot_drops(h, drop, at, slots.drops);
        }
        add_operands(&x, operands, dp);
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS && is_slot(at, slot); slot++) {
        const int i = at.query + slot_row(at, slot);
        slots.delta[slot] = ds && i < h.queries ? deltas(h)[i] : 0.0f;
    }
    const float factor = ds ? g.in.scale : 1.0f;
    if (at.by_query)
        weigh<true>(h, at, slots, g.in.scale, drop.scale, factor, &x);
    else
        weigh<false>(h, at, slots, g.in.scale, drop.scale, factor, &x);
    return x.s;
}

/* delta's sums over rows g and g + 8 are kept in the first column's place. */
PK_DEVICE void add_tile(Sums *sums, const Tile &x) {
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums->at[0][i] += x.at[u][i];
}

PK_DEVICE void store_deltas(const Head &h, int i0, const Sums &sums) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const float sum = quad_sum(sums.at[0][2 * u] + sums.at[0][2 * u + 1]);
        const int i = i0 + lane_row() + 8 * u;
        if (lane_quarter() == 0 && i < h.queries) deltas(h)[i] = sum;
    }
}

/* Rows i .. of delta, or of a matrix, a chunk of columns at a time. */
PK_DEVICE void grad_rows(const Head &h, const AttentionGrad &g, const PhiloxRow &drop,
                         Wanted wanted, int i, const Gradients &out) {
    const bool by_query = wanted == DELTA || wanted == DQ;
    const Matrix terms = choose(wanted == DQ, g.in.k, choose(wanted == DK, g.in.q, g.dcontext));
    const float factor[2] = {1.0f, 1.0f};
#pragma unroll 1
    for (int c0 = 0; c0 < h.dim; c0 += CHUNK) {
        Sums sums = {{{0.0f}}};
#pragma unroll 1
        for (int j = 0; j < (by_query ? h.len : h.queries); j += TILE) {
            const Place at = {by_query ? i : j, by_query ? j : i, by_query};
            const Tile weights = pair_weights(h, g, drop, wanted, at);
            if (wanted == DELTA)
                add_tile(&sums, weights);
            else
                add_columns(&sums, weights, load_columns(h, terms, j, c0));
        }
        if (wanted == DELTA) return store_deltas(h, i, sums);
        const Matrix to =
            wanted == DQ ? of_queries(h, out.dq) : of_keys(h, wanted == DK ? out.dk : out.dv);
        store_sums(h, to, i, c0, sums, factor);
    }
}

typedef struct GradTask {
    Wanted wanted;
    int tile; /* -1: none */
} GradTask;

/* The n-th task of a phase. First come delta, where it is needed, and dV; then dQ and dK. */
static __device__ GradTask grad_task(const Head &h, const Gradients &out, int phase, int n) {
    const int queries = (h.queries + TILE - 1) / TILE, keys = (h.len + TILE - 1) / TILE;
    const int first = phase ? (out.dq ? queries : 0) : (out.dq || out.dk ? queries : 0);
    const int second = (phase ? out.dk : out.dv) ? keys : 0;
    if (n < first) return {phase ? DQ : DELTA, n};
    return {phase ? DK : DV, n - first < second ? n - first : -1};
}

static __device__ __attribute__((noinline)) void grad_long(const Head h, const AttentionGrad g,
                                                           const Gradients out) {
    const PhiloxRow drop = dropout_of(g.in.key);
    check_length(h);
#pragma unroll 1
    for (int phase = 0; phase < 2; phase++) {
#pragma unroll 1
        for (int n = threadIdx.x >> 5;; n += ATTENTION_WARPS) {
            const GradTask task = grad_task(h, out, phase, n);
            if (task.tile < 0) break;
            grad_rows(h, g, drop, task.wanted, task.tile * TILE, out);
        }
        __syncthreads(); /* one phase writes delta, the next one reads it */
    }
}

#endif
