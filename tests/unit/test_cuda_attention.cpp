/* The attention kernels, run on the CPU by cuda_emulator.h, against those of the CPU backend:
 * forward and backward, odd head sizes, every short length, empty and long sequences, first-token
 * queries, dropout, every subset of wanted gradients. Other orders of threads and blocks must give
 * the same bits. With -DPEFT_BF16 matrices are bf16; then the CPU starts from the rounded ones. */
#include "cuda_check.h"

namespace device {
#include "../../runtime/cuda/kernel_cuda.h"
#include "../../runtime/cuda/attention_tile.cu"
#include "../../runtime/cuda/attention_long.cu"
#include "../../runtime/cuda/attention_short.cu"
#include "../../runtime/cuda/attention.cu"
} // namespace device

extern "C" {
#include "../../runtime/cpu/attention.h"
#include "../../runtime/cpu/isa.h"
}

using device::work;

/* Largest error, as a part of the largest value. In bf16 a probability, a weight of a gradient and
 * a result are each rounded by up to 2^-9 of themselves; sums over keys or queries add those. */
#ifdef PEFT_BF16
typedef uint16_t Stored;
static const double TOLERANCE = 8e-3, GRAD_TOLERANCE = 8e-3;

static work store(float x) {
    return device::pk_bf16(x);
}
#else
typedef float Stored;
static const double TOLERANCE = 2e-6, GRAD_TOLERANCE = 5e-6;

static work store(float x) {
    return x;
}
#endif
static const double LSE_TOLERANCE = 2e-6;

/* What a kernel reads, and the values that it finds there. */
typedef struct Matrix {
    std::vector<work> stored;
    std::vector<float> value;
} Matrix;

static Matrix matrix_of(const std::vector<float> &x) {
    Matrix m;
    for (float v : x) {
        m.stored.push_back(store(v));
        m.value.push_back(device::pk_get(&m.stored.back(), 0));
    }
    return m;
}

static Matrix random_matrix(int64_t n) {
    return matrix_of(random_floats(n));
}

static work *stored(Guarded<Stored> &x) {
    return (work *)x.data();
}

typedef struct Case {
    int heads, dim;
    std::vector<int32_t> lengths;
    bool first_only;
    float dropout;
    bool on;
} Case;

static const Case cases[] = {
    {2, 64, {13, 1, 16, 33, 64}, false, 0.0f, true},
    {3, 32, {9, 0, 33, 1}, false, 0.1f, true},
    {2, 32, {9, 5}, false, 0.1f, false}, /* as in evaluation */
    {1, 64, {65, 130, 2}, false, 0.1f, true},
    {3, 5, {7, 70, 2}, false, 0.25f, true},
    {1, 1, {3, 1}, false, 0.5f, true},
    {2, 20, {48, 49, 97}, false, 0.0f, true},
    {1, 128, {31, 32, 33}, false, 0.1f, true},
    {1, 127, {40, 1}, false, 0.1f, true},
    {1, 136, {17, 3}, false, 0.1f, true},
    {2, 64, {13, 0, 1, 90}, true, 0.1f, true},
    {3, 5, {7, 60, 0, 2}, true, 0.2f, true},
    {2, 16, {4, 4}, false, 1.0f, true}, /* everything dropped */
    {1, 8, {0}, false, 0.1f, true},
    {1, 3, {200}, false, 0.1f, true},
    {1, 64, {512}, true, 0.1f, true},
};

typedef struct Problem {
    const Case *c;
    int64_t sequences, tokens, queries, width;
    int64_t sym[SYMBOLS];
    std::vector<int32_t> offsets, sample, rng;
    Matrix q, k, v, dcontext;
    float scale;
} Problem;

static Problem make_problem(const Case *c) {
    Problem p = {};
    p.c = c;
    p.offsets.push_back(0);
    for (int32_t length : c->lengths) {
        p.sample.push_back((int32_t)(1000 + 17 * p.sample.size()));
        p.offsets.push_back(p.offsets.back() + length);
    }
    p.sequences = (int64_t)c->lengths.size();
    p.tokens = p.offsets.back();
    p.offsets.insert(p.offsets.end(), {1 << 20, -5}); /* of the batch before: not looked at */
    p.sample.insert(p.sample.end(), {-1, -2});
    p.queries = c->first_only ? p.sequences : p.tokens;
    p.width = c->heads * c->dim;
    p.sym[device::PEFT_SYM_T] = p.tokens;
    p.sym[device::PEFT_SYM_S] = p.sequences;
    p.rng = {0x34567890, -0x12345678, 3, c->on};
    p.q = random_matrix(p.queries * p.width);
    p.k = random_matrix(p.tokens * p.width);
    p.v = random_matrix(p.tokens * p.width);
    p.dcontext = random_matrix(p.queries * p.width);
    p.scale = 1.0f / sqrtf((float)c->dim);
    return p;
}

/* Rows that a launch for so many tokens has; those beyond are zero. */
static int64_t launched_rows(int64_t tokens) {
    const int64_t sym[SYMBOLS] = {0, tokens};
    return device::peft_rows(-device::PEFT_SYM_T, sym);
}

typedef struct CpuResult {
    std::vector<float> context, lse, dq, dk, dv;
} CpuResult;

enum { DQ = 1, DK = 2, DV = 4, SITE = 21 };

static CpuResult run_cpu(const Problem &p) {
    const Case *c = p.c;
    Attention a = {};
    a.sequences = p.sequences, a.heads = c->heads, a.head_dim = c->dim;
    a.offsets = p.offsets.data(), a.samples = p.sample.data();
    a.cls_only = c->first_only;
    a.scale = p.scale;
    a.q = p.q.value.data(), a.k = p.k.value.data(), a.v = p.v.value.data();
    a.ldq = a.ldk = a.ldv = p.width;
    a.dropout = c->on ? c->dropout : 0.0f;
    a.seed = (uint32_t)p.rng[0] | (uint64_t)(uint32_t)p.rng[1] << 32;
    a.step = (uint32_t)p.rng[2], a.site = SITE;
    const int64_t longest = *std::max_element(c->lengths.begin(), c->lengths.end());
    const size_t bytes = attention_workspace_bytes(1, longest, c->dim);
    void *workspace = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(workspace);
    CpuResult r;
    const int64_t nk = launched_rows(p.tokens) * p.width;
    const int64_t nq = c->first_only ? p.queries * p.width : nk;
    r.context.resize((size_t)nq);
    r.lse.resize((size_t)(p.queries * c->heads));
    attention_forward(&a, r.context.data(), p.width, r.lse.data(), 1, workspace);
    r.dq.resize((size_t)nq), r.dk.resize((size_t)nk), r.dv.resize((size_t)nk);
    AttentionGrad g = {p.dcontext.value.data(),
                       p.width,
                       r.lse.data(),
                       r.dq.data(),
                       r.dk.data(),
                       r.dv.data(),
                       p.width,
                       p.width,
                       p.width};
    attention_backward(&a, &g, 1, workspace);
    free(workspace);
    return r;
}

typedef struct DeviceResult {
    Guarded<Stored> context;
    Guarded<float> lse;
    Guarded<Stored> dq, dk, dv;
} DeviceResult;

static void forward(const Problem &p, DeviceResult *r, unsigned sequences, Order order) {
    const Case *c = p.c;
    const int64_t rows = c->first_only ? -device::PEFT_SYM_S : -device::PEFT_SYM_T;
    run_kernel(sequences, (unsigned)c->heads, device::ATTENTION_THREADS, order, [&] {
        device::peft_attention(p.q.stored.data(), p.k.stored.data(), p.v.stored.data(),
                               p.offsets.data(), p.rng.data(), p.sample.data(), stored(r->context),
                               r->lse.data(), p.sym, c->dim, p.width, rows, p.scale, c->dropout,
                               SITE);
    });
}

static void backward(const Problem &p, const CpuResult &cpu, DeviceResult *r, int wanted,
                     unsigned sequences, Order order) {
    const Case *c = p.c;
    const int64_t rows = c->first_only ? -device::PEFT_SYM_S : -device::PEFT_SYM_T;
    run_kernel(sequences, (unsigned)c->heads, device::ATTENTION_THREADS, order, [&] {
        device::peft_attention_grad(
            p.dcontext.stored.data(), p.q.stored.data(), p.k.stored.data(), p.v.stored.data(),
            cpu.lse.data(), p.offsets.data(), p.rng.data(), p.sample.data(),
            wanted & DQ ? stored(r->dq) : nullptr, wanted & DK ? stored(r->dk) : nullptr,
            wanted & DV ? stored(r->dv) : nullptr, p.sym, c->dim, p.width, rows, p.scale,
            c->dropout, SITE);
    });
}

static DeviceResult no_result(const Problem &p) {
    const int64_t nk = launched_rows(p.tokens) * p.width;
    const int64_t nq = p.c->first_only ? p.queries * p.width : nk;
    return {Guarded<Stored>(nq), Guarded<float>(p.queries * p.c->heads), Guarded<Stored>(nq),
            Guarded<Stored>(nk), Guarded<Stored>(nk)};
}

/* The grid is that of a larger batch: its last blocks have nothing to do. */
static DeviceResult run_device(const Problem &p, const CpuResult &cpu, int wanted, Order order) {
    const unsigned sequences = (unsigned)p.sequences + 2;
    DeviceResult r = no_result(p);
    forward(p, &r, sequences, order);
    backward(p, cpu, &r, wanted, sequences, order);
    return r;
}

static void equals_cpu(const DeviceResult &r, const CpuResult &cpu) {
    close_to(r.context, cpu.context, TOLERANCE, "context");
    close_to(r.lse, cpu.lse, LSE_TOLERANCE, "lse");
    close_to(r.dq, cpu.dq, GRAD_TOLERANCE, "dq");
    close_to(r.dk, cpu.dk, GRAD_TOLERANCE, "dk");
    close_to(r.dv, cpu.dv, GRAD_TOLERANCE, "dv");
}

static void attention_equals_cpu(void **) {
    for (const Case &c : cases) {
        const Problem p = make_problem(&c);
        const CpuResult cpu = run_cpu(p);
        equals_cpu(run_device(p, cpu, DQ | DK | DV, FORWARD), cpu);
    }
}

static void attention_of_random_shapes(void **) {
    for (int i = 0; i < 12; i++) {
        Case c = {1 + (int)(rng() % 4), 1 + (int)(rng() % 70), {}, rng() % 3 == 0, 0.15f, true};
        for (uint32_t n = 1 + rng() % 5; n > 0; n--) c.lengths.push_back((int32_t)(rng() % 80));
        const Problem p = make_problem(&c);
        const CpuResult cpu = run_cpu(p);
        equals_cpu(run_device(p, cpu, DQ | DK | DV, SHUFFLED), cpu);
    }
}

/* Across all edges of tiles, and that between short and long sequences; an empty one last, whose
 * blocks clear the rows beyond the batch. */
static void attention_of_every_length(void **) {
    for (int dim : {8, 16, 32, 48, 64})
        for (bool first_only : {false, true}) {
            Case c = {1, dim, {}, first_only, 0.1f, true};
            for (int32_t n = 1; n <= 66; n++) c.lengths.push_back(n);
            c.lengths.push_back(0);
            const Problem p = make_problem(&c);
            const CpuResult cpu = run_cpu(p);
            equals_cpu(run_device(p, cpu, DQ | DK | DV, SHUFFLED), cpu);
        }
}

static void same_results(const DeviceResult &a, const DeviceResult &b) {
    same_bits(a.context, b.context);
    same_bits(a.lse, b.lse);
    same_bits(a.dq, b.dq);
    same_bits(a.dk, b.dk);
    same_bits(a.dv, b.dv);
}

static void attention_has_one_order(void **) {
    for (size_t i : {(size_t)0, (size_t)1, (size_t)3, (size_t)8, (size_t)10}) {
        const Problem p = make_problem(&cases[i]);
        const CpuResult cpu = run_cpu(p);
        const DeviceResult a = run_device(p, cpu, DQ | DK | DV, FORWARD);
        for (Order order : {REVERSE, SHUFFLED})
            same_results(a, run_device(p, cpu, DQ | DK | DV, order));
    }
}

/* A key that is NaN is one for the queries of its sequence and head, and for nobody else. */
static void attention_keeps_nan(void **) {
    const Case c = {2, 32, {20, 7}, false, 0.1f, true};
    Problem p = make_problem(&c);
    p.k.stored[(size_t)(3 * p.width + 40)] = store(NAN); /* sequence 0, head 1 */
    DeviceResult r = no_result(p);
    forward(p, &r, 2, FORWARD);
    for (int64_t i = 0; i < r.context.size(); i++) {
        const bool affected = i / p.width < 20 && i % p.width >= 32;
        assert_true(std::isnan(stored_value(r.context[i])) == affected);
    }
}

/* A gradient that is wanted has the same bits alone; one that is not wanted stays untouched. */
static void attention_computes_what_is_wanted(void **) {
    for (size_t i : {(size_t)0, (size_t)1, (size_t)4, (size_t)9, (size_t)10}) {
        const Problem p = make_problem(&cases[i]);
        const CpuResult cpu = run_cpu(p);
        const DeviceResult all = run_device(p, cpu, DQ | DK | DV, FORWARD);
        const Guarded<Stored> q_marks(all.dq.size()), k_marks(all.dk.size());
        for (int wanted = 0; wanted < 7; wanted++) {
            const DeviceResult r = run_device(p, cpu, wanted, FORWARD);
            same_bits(r.dq, wanted & DQ ? all.dq : q_marks);
            same_bits(r.dk, wanted & DK ? all.dk : k_marks);
            same_bits(r.dv, wanted & DV ? all.dv : k_marks);
        }
    }
}

/* exp(-lse) is infinite: what a tile has beyond the last key must not become a probability. dQ is a
 * sum of large numbers that cancel out, so the gradient is a small one. */
static void attention_of_very_small_scores(void **) {
    const Case c = {2, 64, {7, 20, 70}, false, 0.1f, true};
    Problem p = make_problem(&c);
    const size_t n = p.q.value.size();
    p.q = matrix_of(std::vector<float>(n, 6.0f));
    p.k = matrix_of(std::vector<float>(n, -6.0f));
    for (float &x : p.dcontext.value) x *= 0.0625f;
    p.dcontext = matrix_of(p.dcontext.value);
    const CpuResult cpu = run_cpu(p);
    equals_cpu(run_device(p, cpu, DQ | DK | DV, FORWARD), cpu);
}

/* Shared memory has room for 512 queries. */
static void attention_stops_beyond_its_limit(void **) {
    const Case c = {1, 4, {513}, false, 0.1f, true};
    const Problem p = make_problem(&c);
    DeviceResult r = no_result(p);
    const std::string error = cuda_emulator::launch(1, 1, device::ATTENTION_THREADS, FORWARD, [&] {
        device::peft_attention(p.q.stored.data(), p.k.stored.data(), p.v.stored.data(),
                               p.offsets.data(), p.rng.data(), p.sample.data(), stored(r.context),
                               r.lse.data(), p.sym, c.dim, p.width, -device::PEFT_SYM_T, p.scale,
                               c.dropout, SITE);
    });
    assert_non_null(strstr(error.c_str(), "trap at"));
}

int main(void) {
    PeftError err;
    if (!isa_init(&err)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_equals_cpu),
        cmocka_unit_test(attention_of_random_shapes),
        cmocka_unit_test(attention_of_every_length),
        cmocka_unit_test(attention_has_one_order),
        cmocka_unit_test(attention_computes_what_is_wanted),
        cmocka_unit_test(attention_keeps_nan),
        cmocka_unit_test(attention_of_very_small_scores),
        cmocka_unit_test(attention_stops_beyond_its_limit),
    };
    return cmocka_run_group_tests_name(sizeof(work) == 2 ? "cuda_attention_bf16" : "cuda_attention",
                                       tests, NULL, NULL);
}
