/* What CUDA kernels are made of: every generated kernel, attention.cu and templates.cu follow this
 * text in one NVRTC program. It is the device's counterpart of kernel_c.h with the parts of
 * peftrt.h, philox.h and nf4.h that kernels need, and includes nothing: NVRTC has no host headers.
 * Invariants: a reduction adds in an order that depends on sizes alone, so that a kernel gives the
 * same bits in every run; dropout factors and NF4 values have the bits of the CPU, whatever
 * contraction or division the compiler options choose. Blocks are one-dimensional, of whole warps.
 */
#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef short int16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif

#define PK_DEVICE static __device__ __forceinline__ __attribute__((unused))
#define PK_INF    __int_as_float(0x7f800000)
#define PK_NAN    __int_as_float(0x7fc00000)
#define PK_WARP   0xffffffffu /* all lanes */

/* From here on a kernel touches what those before it wrote: one that is launched before the last of
 * them has ended waits for it. */
PK_DEVICE void pk_begin(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- symbolic dimensions, as in peftrt.h ---- */

enum { PEFT_SYM_T = 1, PEFT_SYM_S, PEFT_SYM_M, PEFT_SYM_L, PEFT_SYM_P };

PK_DEVICE int64_t peft_dim(int64_t d, const int64_t *sym) {
    return d >= 0 ? d : sym[-d & 15] + (-d >> 4);
}

/* Rows of a launch: batches are made up to a multiple of PEFT_ROW_STEP tokens and masked positions.
 * Kernels write zeros into the rows of a matrix that the batch does not have, and products make
 * zeros of zeros, so that a product may sum over all rows. */
enum { PEFT_ROW_STEP = 64 };

PK_DEVICE int64_t peft_rows(int64_t d, const int64_t *sym) {
    const int64_t n = peft_dim(d, sym);
    const bool padded = d == -PEFT_SYM_T || d == -PEFT_SYM_M;
    return padded ? (n + PEFT_ROW_STEP - 1) / PEFT_ROW_STEP * PEFT_ROW_STEP : n;
}

/* ---- stored values: bf16 is the upper half of a float, rounded to nearest even ----
 *
 * `work` is how matrices lie in memory: float, or bf16 with -DPEFT_BF16. Arithmetic is in float. */

typedef struct Bf16 {
    uint16_t bits;
} Bf16;

#ifdef PEFT_BF16
typedef Bf16 work;
#else
typedef float work;
#endif

/* NaN stays NaN: without the choice the rounding could carry out of its mantissa. GPUs from 8.0 on
 * have an instruction that gives the same bits. */
PK_DEVICE Bf16 pk_bf16(float x) {
    Bf16 b;
#ifdef __CUDACC_RTC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(x));
#else
    const uint32_t u = __float_as_uint(x);
    b.bits = x == x ? (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16) : (uint16_t)0x7fff;
#endif
    return b;
}

/* Two values, the first in the lower half. */
PK_DEVICE uint32_t pk_bf16_pair(float first, float second) {
#ifdef __CUDACC_RTC__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return pk_bf16(first).bits | (uint32_t)pk_bf16(second).bits << 16;
#endif
}

PK_DEVICE float pk_get(const float *x, int64_t i) {
    return x[i];
}
PK_DEVICE float pk_get(const Bf16 *x, int64_t i) {
    return __uint_as_float((uint32_t)x[i].bits << 16);
}
PK_DEVICE void pk_put(float *x, int64_t i, float value) {
    x[i] = value;
}
PK_DEVICE void pk_put(Bf16 *x, int64_t i, float value) {
    x[i] = pk_bf16(value);
}

/* What pk_get finds where pk_put has stored a value: what goes on with it in registers must see the
 * same, and not let a product and a sum beyond the store become one operation. */
PK_DEVICE float pk_stored(const float *, float value) {
#ifdef __CUDACC_RTC__
    asm("" : "+f"(value));
#endif
    return value;
}
PK_DEVICE float pk_stored(const Bf16 *, float value) {
    const Bf16 b = pk_bf16(value);
    return pk_get(&b, 0);
}

/* A trained matrix of n values, exact to the last bit: float, or with -DPEFT_BF16 a plane of bf16,
 * which products read, before a plane of what the rounding left out (16 bits, signed: halves are
 * rounded up, for the rest to fit). */
#ifdef PEFT_BF16
PK_DEVICE float pk_get_master(const Bf16 *x, int64_t i, int64_t n) {
    const uint32_t rest = (uint32_t)(int32_t)(int16_t)x[n + i].bits;
    return __uint_as_float(((uint32_t)x[i].bits << 16) + rest);
}
PK_DEVICE void pk_put_master(Bf16 *x, int64_t i, int64_t n, float value) {
    const uint32_t u = value == value ? __float_as_uint(value) : 0x7fc00000u;
    x[i].bits = (uint16_t)((u + 0x8000u) >> 16);
    x[n + i].bits = (uint16_t)u;
}
#else
PK_DEVICE float pk_get_master(const float *x, int64_t i, int64_t) {
    return x[i];
}
PK_DEVICE void pk_put_master(float *x, int64_t i, int64_t, float value) {
    x[i] = value;
}
#endif

/* Eight values at a time, from and to a multiple of eight: buffers are aligned to 64 bytes. */
PK_DEVICE void pk_get8(const float *x, int64_t i, float *value) {
    *(float4 *)value = *(const float4 *)(x + i);
    *(float4 *)(value + 4) = *(const float4 *)(x + i + 4);
}
PK_DEVICE void pk_put8(float *x, int64_t i, const float *value) {
    *(float4 *)(x + i) = *(const float4 *)value;
    *(float4 *)(x + i + 4) = *(const float4 *)(value + 4);
}
PK_DEVICE void pk_get8(const Bf16 *x, int64_t i, float *value) {
    const uint4 pairs = *(const uint4 *)(x + i);
    const uint32_t pair[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        value[2 * k] = __uint_as_float(pair[k] << 16);
        value[2 * k + 1] = __uint_as_float(pair[k] & 0xffff0000u);
    }
}
PK_DEVICE void pk_put8(Bf16 *x, int64_t i, const float *value) {
    uint32_t pair[4];
#pragma unroll
    for (int k = 0; k < 4; k++) pair[k] = pk_bf16_pair(value[2 * k], value[2 * k + 1]);
    *(uint4 *)(x + i) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

#ifdef PEFT_BF16
PK_DEVICE void pk_get8_master(const Bf16 *x, int64_t i, int64_t n, float *value) {
    const uint4 pairs = *(const uint4 *)(x + n + i);
    const uint32_t rest[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
    pk_get8(x, i, value);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int32_t signed_rest = (int16_t)(rest[k / 2] >> (k % 2 * 16));
        value[k] = __uint_as_float(__float_as_uint(value[k]) + (uint32_t)signed_rest);
    }
}
PK_DEVICE void pk_put8_master(Bf16 *x, int64_t i, int64_t n, const float *value) {
    alignas(16) Bf16 plane[2][8];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const float one = value[k];
        const uint32_t u = one == one ? __float_as_uint(one) : 0x7fc00000u;
        plane[0][k].bits = (uint16_t)((u + 0x8000u) >> 16);
        plane[1][k].bits = (uint16_t)u;
    }
    *(uint4 *)(x + i) = *(const uint4 *)plane[0];
    *(uint4 *)(x + n + i) = *(const uint4 *)plane[1];
}
#else
PK_DEVICE void pk_get8_master(const float *x, int64_t i, int64_t, float *value) {
    pk_get8(x, i, value);
}
PK_DEVICE void pk_put8_master(float *x, int64_t i, int64_t, const float *value) {
    pk_put8(x, i, value);
}
#endif

/* ---- scalar functions: NaN in, NaN out; infinities give the limit ---- */

/* Unlike fminf and fmaxf these keep a NaN in x. */
PK_DEVICE float pk_at_least(float x, float lo) {
    return lo > x ? lo : x;
}
PK_DEVICE float pk_at_most(float x, float hi) {
    return hi < x ? hi : x;
}
PK_DEVICE float pk_min(float a, float b) {
    return b < a ? b : a;
}
PK_DEVICE float pk_max(float a, float b) {
    return a > b ? a : b;
}

PK_DEVICE float pk_exp(float x) {
    return expf(x);
}
PK_DEVICE float pk_log(float x) {
    return logf(x);
}
PK_DEVICE float pk_sqrt(float x) {
    return sqrtf(x);
}
PK_DEVICE float pk_square(float x) {
    return x * x;
}
PK_DEVICE float pk_tanh(float x) {
    return tanhf(x);
}
PK_DEVICE float pk_sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}
PK_DEVICE float pk_relu(float x) {
    return pk_at_least(x, 0.0f);
}
PK_DEVICE float pk_step(float x) {
    return x > 0.0f ? 1.0f : 0.0f;
}

/* Phi(x), the normal distribution, for |x| <= 13, and bell = exp(-x^2 / 2). The lower tail is
 * bell P(|x|) / Q(|x|), the rational function of cpu/vecmath.h: no cancellation for negative x, and
 * a tenth of erff's work. */
PK_DEVICE float pk_normal(float x, float *bell) {
    const float a = fabsf(x);
    float p = 0.00399436383f;
    p = p * a + 0.0398088396f;
    p = p * a + 0.180784151f;
    p = p * a + 0.434976369f;
    p = p * a + 0.5f;
    float q = 0.0100122355f;
    q = q * a + 0.099793613f;
    q = q * a + 0.463001162f;
    q = q * a + 1.19230628f;
    q = q * a + 1.66783762f;
    q = q * a + 1.0f;
    *bell = expf(-0.5f * x * x);
    const float tail = *bell * p / q;
    return x < 0.0f ? tail : 1.0f - tail;
}

/* Activations clamp the argument to where the function, or its distance from the limit, is below
 * 1e-34: an infinite one must not meet the zero of another factor. */

/* x Phi(x) = 0.5 x (1 + erf(x / sqrt 2)), and its derivative Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi).
 */
PK_DEVICE float pk_gelu(float x) {
    float bell;
    const float c = pk_at_least(x, -13.0f);
    return c * pk_normal(pk_at_most(c, 13.0f), &bell);
}
PK_DEVICE float pk_gelu_grad(float x) {
    float bell;
    const float c = pk_at_most(pk_at_least(x, -13.0f), 13.0f), phi = pk_normal(c, &bell);
    return phi + c * 0.398942280f * bell;
}

/* The tanh form, x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and its derivative
 * s + x s (1 - s) 2 u'. With e = exp(-2 u): s = 1 / (1 + e), 1 - s = e s. */
PK_DEVICE float pk_gelu_tanh(float x) {
    const float c = pk_at_least(x, -10.0f), t = pk_at_most(c, 10.0f);
    return c / (1.0f + expf(-1.59576912f * t * (1.0f + 0.044715f * t * t)));
}
PK_DEVICE float pk_gelu_tanh_grad(float x) {
    const float c = pk_at_most(pk_at_least(x, -10.0f), 10.0f);
    const float e = expf(-1.59576912f * c * (1.0f + 0.044715f * c * c)), s = 1.0f / (1.0f + e);
    return s + c * s * (e * s) * (1.59576912f * (1.0f + 0.134145f * c * c));
}

/* x sigmoid(x), and its derivative s + x s (1 - s). */
PK_DEVICE float pk_silu(float x) {
    const float c = pk_at_least(x, -86.0f);
    return c / (1.0f + expf(-pk_at_most(c, 86.0f)));
}
PK_DEVICE float pk_silu_grad(float x) {
    const float c = pk_at_most(pk_at_least(x, -86.0f), 86.0f);
    const float e = expf(-c), s = 1.0f / (1.0f + e);
    return s + c * s * (e * s);
}

/* 1 - beta^step */
PK_DEVICE float pk_bias_correction(double beta, float step) {
    return (float)-expm1((double)step * log(beta));
}

/* An index that is safe to read. */
PK_DEVICE int64_t pk_slot(int32_t i) {
    return i < 0 ? 0 : i;
}

/* ---- dropout: the numbers of cpu/philox.h ---- */

typedef struct PhiloxRow { /* everything but the column, and what becomes of a number */
    uint32_t k0, k1, sample, position, site;
    uint32_t threshold; /* smaller numbers are dropped; 0: dropout is off, 65536: all are */
    float scale;        /* of those kept */
} PhiloxRow;

/* rng: seed low, seed high, step, dropout on. Where it is off all numbers are kept as they are. */
PK_DEVICE PhiloxRow philox_keyed(const int32_t *rng, int32_t site, int32_t sample, int32_t position,
                                 uint32_t threshold, float scale) {
    PhiloxRow r;
    const bool on = rng[3] != 0;
    r.k0 = (uint32_t)rng[0] ^ (uint32_t)rng[1] * 0x85ebca6bu;
    r.k1 = (uint32_t)rng[2];
    r.sample = (uint32_t)sample;
    r.position = (uint32_t)position;
    r.site = (uint32_t)site;
    r.threshold = on ? threshold : 0;
    r.scale = on ? scale : 1.0f;
    return r;
}

/* p is clamped to [0, 1]; NaN counts as 0. */
PK_DEVICE PhiloxRow philox_row(const int32_t *rng, int32_t site, int32_t sample, int32_t position,
                               float p) {
    const uint32_t drop = p >= 1.0f ? 65536u : p > 0.0f ? (uint32_t)(p * 65536.0f + 0.5f) : 0u;
    const float scale = drop < 65536u ? __fdiv_rn(65536.0f, (float)(65536u - drop)) : 0.0f;
    return philox_keyed(rng, site, sample, position, drop, scale);
}

/* The eight numbers of columns 8 * block .. 8 * block + 7: 16 bits each, the first in the lower
 * half of word[0]. */
PK_DEVICE void philox_block(const PhiloxRow &r, uint32_t block, uint32_t *word) {
    uint32_t c0 = block, c1 = r.sample, c2 = r.position, c3 = r.site;
    uint32_t k0 = r.k0, k1 = r.k1;
#pragma unroll
    for (int round = 0; round < 7; round++) {
        const uint32_t high0 = __umulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
        const uint32_t high1 = __umulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

PK_DEVICE uint32_t philox_number(const PhiloxRow &r, int64_t column) {
    uint32_t word[4];
    philox_block(r, (uint32_t)(column >> 3), word);
    const uint32_t low = column & 2 ? word[1] : word[0], high = column & 2 ? word[3] : word[2];
    return (column & 4 ? high : low) >> (16 * (column & 1)) & 0xffffu;
}

/* The factor of an element: 0 or the scale; 1 where dropout is off. What is constant comes from the
 * compiler: a division here would need branches, between which nothing is moved or shared. */
PK_DEVICE float pk_keep_one(const int32_t *rng, int32_t site, int32_t sample, int32_t position,
                            uint32_t threshold, float scale, int64_t column) {
    const PhiloxRow r = philox_keyed(rng, site, sample, position, threshold, scale);
    return philox_number(r, column) < r.threshold ? 0.0f : r.scale;
}

/* Those of eight elements from a multiple of eight on: one draw. */
PK_DEVICE void pk_keep8(const int32_t *rng, int32_t site, int32_t sample, int32_t position,
                        uint32_t threshold, float scale, int64_t column, float *keep) {
    const PhiloxRow r = philox_keyed(rng, site, sample, position, threshold, scale);
    uint32_t word[4];
    philox_block(r, (uint32_t)(column >> 3), word);
#pragma unroll
    for (int k = 0; k < 8; k++)
        keep[k] = (word[k / 2] >> (16 * (k & 1)) & 0xffffu) < r.threshold ? 0.0f : r.scale;
}

/* ---- reductions ---- */

/* Butterflies: every lane adds the same pairs, so all hold the same bits. */
PK_DEVICE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(PK_WARP, x, step);
    return x;
}
PK_DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x = pk_max(x, __shfl_xor_sync(PK_WARP, x, step));
    return x;
}
PK_DEVICE double warp_sum_double(double x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(PK_WARP, x, step);
    return x;
}

/* One value per warp through shared memory; lane l of every warp gets that of warp l, or `none`.
 * The barrier before the store is for the readers of the call before. */
template <typename T> PK_DEVICE T exchange_warps(T x, T none) {
    __shared__ T part[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return lane < (int)blockDim.x >> 5 ? part[lane] : none;
}

/* Over the whole block, which must call them together; every thread gets the result. */
PK_DEVICE float block_sum(float x) {
    x = warp_sum(x);
    return blockDim.x == 32 ? x : warp_sum(exchange_warps(x, 0.0f));
}
PK_DEVICE float block_max(float x) {
    x = warp_max(x);
    return blockDim.x == 32 ? x : warp_max(exchange_warps(x, -PK_INF));
}
PK_DEVICE double block_sum_double(double x) {
    x = warp_sum_double(x);
    return blockDim.x == 32 ? x : warp_sum_double(exchange_warps(x, 0.0));
}

/* The same with memory of its own for each reduction, a value for each warp: after a barrier, which
 * several reductions can share, every thread adds the parts in order. */
PK_DEVICE void pk_put_part(float *part, float of_warp) {
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = of_warp;
}
template <int WARPS> PK_DEVICE float pk_sum_parts(const float *part) {
    float x = part[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) x += part[i];
    return x;
}
template <int WARPS> PK_DEVICE float pk_max_parts(const float *part) {
    float x = part[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) x = pk_max(x, part[i]);
    return x;
}

/* The block is 32 columns x by 32 parts y: the parts of column x added in order, for y = 0. */
PK_DEVICE float column_sum(float value, int x, int y) {
    __shared__ float part[32][32];
    __syncthreads();
    part[y][x] = value;
    __syncthreads();
    for (int i = 1; y == 0 && i < 32; i++) value += part[i][x];
    return value;
}

/* Whether this block is the last one of the grid to come here; what the others wrote before can
 * then be read with __ldcg. `done` is 0 between launches, which must not overlap. */
PK_DEVICE bool last_block(unsigned *done) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(done, 1u) == gridDim.x - 1;
        if (last) *done = 0;
    }
    __syncthreads();
    return last;
}

enum { PEFT_SUM_BLOCKS = 256, PEFT_GROUP = 32 };

typedef struct GridSum { /* of one sum at a time; zeros at first */
    double part[PEFT_SUM_BLOCKS];
    unsigned done;
} GridSum;

/* The arguments of several steps; y of the grid says which step a block works for. */
template <int N> struct PkGroup { void *arg[PEFT_GROUP][N]; };

/* out = the sum of all threads' totals: at most PEFT_SUM_BLOCKS blocks, added up by the last one.
 */
PK_DEVICE void grid_sum(double total, float *out, GridSum *parts) {
    total = block_sum_double(total);
    if (threadIdx.x == 0) parts->part[blockIdx.x] = total;
    if (!last_block(&parts->done)) return;
    double sum = 0.0;
    for (int i = threadIdx.x; i < (int)gridDim.x; i += blockDim.x) sum += __ldcg(&parts->part[i]);
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) *out = (float)sum;
}

/* ---- NF4: the layout and the bits of cpu/nf4.h ---- */

static __device__ const float nf4_lut[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

typedef struct Nf4View {
    const uint8_t *codes;
    const float *absmax;         /* NULL with double quantisation */
    const uint8_t *absmax_codes; /* these three NULL without */
    const float *nested, *offset;
} Nf4View;

PK_DEVICE int64_t nf4_aligned(int64_t bytes) {
    return (bytes + 63) & ~(int64_t)63;
}

PK_DEVICE Nf4View nf4_view(const void *buffer, int64_t count, bool double_quant) {
    const uint8_t *p = (const uint8_t *)buffer;
    const int64_t blocks = (count + 63) / 64, at = nf4_aligned((count + 1) / 2);
    Nf4View v = {p, 0, 0, 0, 0};
    if (double_quant) {
        v.absmax_codes = p + at;
        v.nested = (const float *)(v.absmax_codes + nf4_aligned(blocks));
        v.offset = (const float *)((const uint8_t *)v.nested +
                                   nf4_aligned((blocks + 255) / 256 * (int64_t)sizeof(float)));
    } else {
        v.absmax = (const float *)(p + at);
    }
    return v;
}

/* Point i of cells + 1 evenly spaced in [0.1, 1]; cells is a power of two, its inverse exact. */
PK_DEVICE float nf4_spaced(int i, int cells, float inverse) {
    const float step = __fmul_rn(1.0f - 0.1f, inverse);
    return i < (cells + 1) / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(cells - i), 1.0f);
}

/* Entry `code` of the signed dynamic 8-bit map: sign, decade e, cell of 2^e. Computed, since lanes
 * that look up different entries of a table would wait for each other. */
PK_DEVICE float nf4_code8(int code) {
    if (code == 127) return 0.0f;
    if (code == 255) return 1.0f;
    const int at = code > 127 ? code - 127 : 127 - code;
    const int e = 31 - __clz(at), cells = 1 << e, cell = at - cells;
    const float inverse = __int_as_float((127 - e) << 23);
    const float middle = __fmul_rn(
        __fadd_rn(nf4_spaced(cell, cells, inverse), nf4_spaced(cell + 1, cells, inverse)), 0.5f);
    const float decade = e < 3   ? (e == 0   ? 1e-6f
                                    : e == 1 ? 1e-5f
                                             : 1e-4f)
                         : e < 5 ? (e == 3 ? 1e-3f : 1e-2f)
                                 : (e == 5 ? 1e-1f : 1.0f);
    return code > 127 ? __fmul_rn(decade, middle) : -__fmul_rn(decade, middle);
}

PK_DEVICE float nf4_absmax(const Nf4View &v, int64_t block) {
    if (v.absmax) return v.absmax[block];
    const float product = __fmul_rn(nf4_code8(v.absmax_codes[block]), v.nested[block >> 8]);
    return __fadd_rn(product, *v.offset);
}

PK_DEVICE float nf4_value(const Nf4View &v, int64_t i) {
    const int byte = v.codes[i >> 1], code = i & 1 ? byte & 15 : byte >> 4;
    return __fmul_rn(nf4_lut[code], nf4_absmax(v, i >> 6));
}
