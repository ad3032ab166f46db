/* The CUDA device code that is not generated, run on the CPU by cuda_emulator.h, against the C code
 * of the CPU backend: attention forward and backward, grouping and segment sums, transpose, NF4,
 * dropout factors, scalar functions, block reductions. Every launch is repeated with threads and
 * blocks in other orders and must give the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include "cuda_emulator.h"

extern "C" { /* this header does not say so for all its functions */
#include <cmocka.h>
}

namespace device {
#include "../../runtime/cuda/kernel_cuda.h"
#include "../../runtime/cuda/templates.cu"
} // namespace device

extern "C" {
#include "../../runtime/cpu/attention.h"
#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/nf4.h"
#include "../../runtime/cpu/philox.h"
#include "../../runtime/cpu/segment.h"
#include "../../runtime/cpu/vecmath.h"
}

using cuda_emulator::FORWARD;
using cuda_emulator::Order;
using cuda_emulator::REVERSE;
using cuda_emulator::SHUFFLED;

static uint64_t rng_state = 1;

static uint32_t rng() {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float uniform() { /* in [-2, 2) */
    return (float)(rng() & 0xffffff) / 4194304.0f - 2.0f;
}

static std::vector<float> random_floats(int64_t n) {
    std::vector<float> x((size_t)n);
    for (float &v : x) v = uniform();
    return x;
}

/* A result with guard zones, of values that no kernel computes. */
template <typename T> struct Guarded {
    enum { GUARD = 64 };
    static constexpr T MARK = (T)-771155;
    std::vector<T> all;
    explicit Guarded(int64_t n) : all((size_t)n + 2 * GUARD, MARK) {}
    T *data() { return all.data() + GUARD; }
    int64_t size() const { return (int64_t)all.size() - 2 * GUARD; }
    T operator[](int64_t i) const { return all[(size_t)(i + GUARD)]; }
    void check() const {
        for (size_t i = 0; i < GUARD; i++) {
            assert_true(all[i] == MARK);
            assert_true(all[all.size() - 1 - i] == MARK);
        }
    }
};

static void same_bits(const Guarded<float> &a, const Guarded<float> &b) {
    assert_memory_equal(a.all.data(), b.all.data(), a.all.size() * sizeof(float));
}

static void run_kernel(unsigned x, unsigned y, unsigned threads, Order order,
                       std::function<void()> kernel) {
    const std::string error = cuda_emulator::launch(x, y, threads, order, std::move(kernel));
    if (!error.empty()) fail_msg("%s", error.c_str());
}

/* Against values that the CPU computed in another order of summation. */
static void close_to(const Guarded<float> &got, const std::vector<float> &want, double tolerance,
                     const char *what) {
    assert_int_equal(got.size(), want.size());
    double scale = 1;
    for (float w : want)
        if (isfinite(w)) scale = std::max(scale, fabs((double)w));
    for (size_t i = 0; i < want.size(); i++) {
        const double error = fabs((double)got[(int64_t)i] - want[i]);
        if (got[(int64_t)i] != want[i] && !(error <= tolerance * scale))
            fail_msg("%s[%zu]: %.9g, not %.9g", what, i, (double)got[(int64_t)i], (double)want[i]);
    }
    got.check();
}

/* ---- attention ---- */

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
    {2, 64, {13, 0, 1, 90}, true, 0.1f, true},
    {3, 5, {7, 60, 0, 2}, true, 0.2f, true},
    {2, 16, {4, 4}, false, 1.0f, true}, /* everything dropped */
    {1, 8, {0}, false, 0.1f, true},
    {1, 3, {512}, false, 0.1f, true},
    {1, 64, {512}, true, 0.1f, true},
};

enum { SYMBOLS = 6 };

typedef struct Problem {
    const Case *c;
    int64_t sequences, tokens, queries, width;
    int64_t sym[SYMBOLS];
    std::vector<int32_t> offsets, sample, rng;
    std::vector<float> q, k, v, dcontext;
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
    p.queries = c->first_only ? p.sequences : p.tokens;
    p.width = c->heads * c->dim;
    p.sym[device::PEFT_SYM_T] = p.tokens;
    p.sym[device::PEFT_SYM_S] = p.sequences;
    p.rng = {0x34567890, -0x12345678, 3, c->on};
    p.q = random_floats(p.queries * p.width);
    p.k = random_floats(p.tokens * p.width);
    p.v = random_floats(p.tokens * p.width);
    p.dcontext = random_floats(p.queries * p.width);
    p.scale = 1.0f / sqrtf((float)c->dim);
    return p;
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
    a.q = p.q.data(), a.k = p.k.data(), a.v = p.v.data();
    a.ldq = a.ldk = a.ldv = p.width;
    a.dropout = c->on ? c->dropout : 0.0f;
    a.seed = (uint32_t)p.rng[0] | (uint64_t)(uint32_t)p.rng[1] << 32;
    a.step = (uint32_t)p.rng[2], a.site = SITE;
    const int64_t longest = *std::max_element(c->lengths.begin(), c->lengths.end());
    const size_t bytes = attention_workspace_bytes(1, longest, c->dim);
    void *workspace = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(workspace);
    CpuResult r;
    r.context.resize(p.q.size());
    r.lse.resize((size_t)(p.queries * c->heads));
    attention_forward(&a, r.context.data(), p.width, r.lse.data(), 1, workspace);
    r.dq.resize(p.q.size()), r.dk.resize(p.k.size()), r.dv.resize(p.v.size());
    AttentionGrad g = {p.dcontext.data(), p.width, r.lse.data(), r.dq.data(), r.dk.data(),
                       r.dv.data(),       p.width, p.width,      p.width};
    attention_backward(&a, &g, 1, workspace);
    free(workspace);
    return r;
}

typedef struct DeviceResult {
    Guarded<float> context, lse, dq, dk, dv;
} DeviceResult;

/* The grid is that of a larger batch: its last blocks have nothing to do. */
static DeviceResult run_device(const Problem &p, const CpuResult &cpu, int wanted, Order order) {
    const Case *c = p.c;
    const int64_t nq = p.queries * p.width, nk = p.tokens * p.width;
    DeviceResult r = {Guarded<float>(nq), Guarded<float>(p.queries * c->heads), Guarded<float>(nq),
                      Guarded<float>(nk), Guarded<float>(nk)};
    const unsigned grid = (unsigned)((p.sequences + 2) * c->heads);
    const int64_t rows = c->first_only ? -device::PEFT_SYM_S : -device::PEFT_SYM_T;
    run_kernel(grid, 1, device::ATTENTION_THREADS, order, [&] {
        device::peft_attention(p.q.data(), p.k.data(), p.v.data(), p.offsets.data(), p.rng.data(),
                               p.sample.data(), r.context.data(), r.lse.data(), p.sym, c->heads,
                               p.width, rows, p.scale, c->dropout, SITE);
    });
    run_kernel(grid, 1, device::ATTENTION_THREADS, order, [&] {
        device::peft_attention_grad(
            p.dcontext.data(), p.q.data(), p.k.data(), p.v.data(), cpu.lse.data(), p.offsets.data(),
            p.rng.data(), p.sample.data(), wanted & DQ ? r.dq.data() : nullptr,
            wanted & DK ? r.dk.data() : nullptr, wanted & DV ? r.dv.data() : nullptr, p.sym,
            c->heads, p.width, rows, p.scale, c->dropout, SITE);
    });
    return r;
}

static void equals_cpu(const DeviceResult &r, const CpuResult &cpu) {
    close_to(r.context, cpu.context, 2e-6, "context");
    close_to(r.lse, cpu.lse, 2e-6, "lse");
    close_to(r.dq, cpu.dq, 5e-6, "dq");
    close_to(r.dk, cpu.dk, 5e-6, "dk");
    close_to(r.dv, cpu.dv, 5e-6, "dv");
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

static void attention_has_one_order(void **) {
    for (size_t i : {(size_t)1, (size_t)3, (size_t)8, (size_t)10}) {
        const Problem p = make_problem(&cases[i]);
        const CpuResult cpu = run_cpu(p);
        const DeviceResult a = run_device(p, cpu, DQ | DK | DV, FORWARD);
        for (Order order : {REVERSE, SHUFFLED}) {
            const DeviceResult b = run_device(p, cpu, DQ | DK | DV, order);
            same_bits(a.context, b.context);
            same_bits(a.lse, b.lse);
            same_bits(a.dq, b.dq);
            same_bits(a.dk, b.dk);
            same_bits(a.dv, b.dv);
        }
    }
}

/* A gradient that is wanted has the same bits alone; one that is not wanted stays untouched. */
static void attention_computes_what_is_wanted(void **) {
    for (size_t i : {(size_t)1, (size_t)3, (size_t)9, (size_t)10}) {
        const Problem p = make_problem(&cases[i]);
        const CpuResult cpu = run_cpu(p);
        const DeviceResult all = run_device(p, cpu, DQ | DK | DV, FORWARD);
        const Guarded<float> q_marks(all.dq.size()), k_marks(all.dk.size());
        for (int wanted = 0; wanted < 7; wanted++) {
            const DeviceResult r = run_device(p, cpu, wanted, FORWARD);
            same_bits(r.dq, wanted & DQ ? all.dq : q_marks);
            same_bits(r.dk, wanted & DK ? all.dk : k_marks);
            same_bits(r.dv, wanted & DV ? all.dv : k_marks);
        }
    }
}

/* Shared memory has room for 512 keys and heads of 128. */
static void attention_stops_beyond_its_limits(void **) {
    for (const Case &c :
         {Case{1, 4, {513}, false, 0.1f, true}, Case{1, 129, {3}, true, 0.1f, true}}) {
        const Problem p = make_problem(&c);
        const int64_t rows = c.first_only ? -device::PEFT_SYM_S : -device::PEFT_SYM_T;
        Guarded<float> context(p.queries * p.width), lse(p.queries);
        const std::string error =
            cuda_emulator::launch(1, 1, device::ATTENTION_THREADS, FORWARD, [&] {
                device::peft_attention(p.q.data(), p.k.data(), p.v.data(), p.offsets.data(),
                                       p.rng.data(), p.sample.data(), context.data(), lse.data(),
                                       p.sym, 1, p.width, rows, p.scale, c.dropout, SITE);
            });
        assert_non_null(strstr(error.c_str(), "trap at"));
    }
}

/* ---- index and segment sum ---- */

typedef struct Grouping {
    Guarded<int32_t> order, start, slot;
} Grouping;

static Grouping group(const std::vector<int32_t> &index, int64_t rows, unsigned grid, Order order) {
    const int64_t n = (int64_t)index.size(), sym[SYMBOLS] = {0, n};
    Grouping g = {Guarded<int32_t>(n), Guarded<int32_t>(n + 1), Guarded<int32_t>(rows)};
    run_kernel(grid, 1, 256, order, [&] {
        device::peft_index(index.data(), g.order.data(), g.start.data(), g.slot.data(), sym,
                           -device::PEFT_SYM_T, rows);
    });
    return g;
}

static void sum_segments(const std::vector<int32_t> &index, Grouping &g, int64_t cols) {
    const int64_t n = (int64_t)index.size(), sym[SYMBOLS] = {0, n};
    const std::vector<float> dy = random_floats(n * cols);
    std::vector<float> want((size_t)(n * cols));
    segment_sum(dy.data(), cols, g.order.data(), g.start.data(), n, want.data(), 1);
    Guarded<float> first(n * cols);
    for (Order order : {FORWARD, REVERSE}) {
        Guarded<float> got(n * cols);
        run_kernel((unsigned)(cols + 31) / 32, order == FORWARD ? 3 : 1, 256, order, [&] {
            device::peft_segment_sum(dy.data(), g.order.data(), g.start.data(), got.data(), sym,
                                     -device::PEFT_SYM_T, cols);
        });
        close_to(got, want, 1e-6, "sum");
        if (order == FORWARD) first = got;
        same_bits(first, got);
    }
}

static void index_equals_cpu(void **) {
    for (int64_t n : {0, 1, 2, 255, 256, 257, 700}) {
        for (int64_t rows : {1, 2, 50, 3000}) {
            std::vector<int32_t> index((size_t)n);
            for (int32_t &i : index) i = (int32_t)(rng() % 3 ? rng() % rows : rows - 1);
            std::vector<int32_t> order((size_t)n), start((size_t)n + 1), slot((size_t)rows);
            index_build(index.data(), n, rows, order.data(), start.data(), slot.data());
            for (unsigned grid : {1u, (unsigned)(n + 255) / 256 + 2}) {
                Grouping g = group(index, rows, grid, grid == 1 ? REVERSE : SHUFFLED);
                for (int64_t i = 0; i < n; i++) assert_int_equal(g.order[i], order[(size_t)i]);
                for (int64_t i = 0; i <= n; i++) assert_int_equal(g.start[i], start[(size_t)i]);
                for (int64_t i = 0; i < rows; i++) assert_int_equal(g.slot[i], slot[(size_t)i]);
                g.order.check(), g.start.check(), g.slot.check();
                if (grid == 1 && n < 300) sum_segments(index, g, rows == 50 ? 64 : 37);
            }
        }
    }
}

/* ---- transpose, NF4 ---- */

static void transpose_equals_cpu(void **) {
    for (int64_t rows : {1, 31, 32, 70}) {
        for (int64_t cols : {1, 33, 64}) {
            const std::vector<float> in = random_floats(rows * cols);
            const int64_t sym[SYMBOLS] = {0, rows};
            Guarded<float> out(rows * cols);
            run_kernel(rows == 31 ? 1 : 4, 1, 256, SHUFFLED, [&] {
                device::peft_transpose(in.data(), out.data(), sym, -device::PEFT_SYM_T, cols);
            });
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++)
                    assert_true(out[r * cols + c] == in[(size_t)(c * rows + r)]);
            out.check();
        }
    }
}

/* Random codes; every code of an absmax, in groups of different scales. */
static uint8_t *random_nf4(int64_t n, bool double_quant) {
    const Nf4Layout l = nf4_layout(n, double_quant);
    uint8_t *buffer = (uint8_t *)aligned_alloc(64, std::max<size_t>(l.bytes, 64));
    assert_non_null(buffer);
    for (size_t i = 0; i < l.bytes; i++) buffer[i] = (uint8_t)rng();
    float *scale = (float *)(buffer + (double_quant ? l.nested : l.absmax));
    for (int64_t i = 0; i < (double_quant ? nf4_groups(n) : nf4_blocks(n)); i++)
        scale[i] = uniform();
    for (int64_t i = 0; double_quant && i < nf4_blocks(n); i++)
        buffer[l.absmax_codes + (size_t)i] = (uint8_t)i;
    if (double_quant) *(float *)(buffer + l.offset) = uniform();
    return buffer;
}

static void nf4_has_the_bits_of_the_cpu(void **) {
    for (int64_t n : {0, 1, 7, 64, 65, 2048, 2051, 64 * 300 + 13}) {
        for (bool double_quant : {false, true}) {
            uint8_t *buffer = random_nf4(n, double_quant);
            const Nf4View v = nf4_view(buffer, n, double_quant);
            Guarded<float> want(n), one(n);
            nf4_dequant_row(&v, 0, n, want.data());
            const device::Nf4View d = device::nf4_view(buffer, n, double_quant);
            for (int64_t i = 0; i < n; i++) one.data()[i] = device::nf4_value(d, i);
            same_bits(want, one);
            for (unsigned grid : {1u, (unsigned)(n + 2047) / 2048 + 1}) {
                Guarded<float> got(n);
                run_kernel(grid, 1, 256, REVERSE,
                           [&] { device::peft_nf4_dequant(buffer, got.data(), n, double_quant); });
                same_bits(want, got);
            }
            free(buffer);
        }
    }
}

/* ---- functions of generated kernels ---- */

static void keep_has_the_bits_of_the_cpu(void **) {
    for (float p : {-1.0f, 0.0f, 1e-6f, 0.1f, 0.3f, 0.5f, 0.99999f, 1.0f, 2.0f, (float)NAN}) {
        for (int i = 0; i < 40; i++) {
            const int32_t state[4] = {(int32_t)(rng() << 1), (int32_t)(rng() << 1), (int32_t)rng(),
                                      1};
            const int32_t site = (int32_t)(rng() % 100), sample = (int32_t)rng();
            const int32_t position = (int32_t)rng();
            const int64_t first = i % 2 ? (int64_t)(rng() % 1000) * 8 : (int64_t)rng() * 16;
            const uint64_t seed = (uint32_t)state[0] | (uint64_t)(uint32_t)state[1] << 32;
            const PhiloxRow row = philox_row(seed, (uint32_t)state[2], (uint32_t)site,
                                             (uint32_t)sample, (uint32_t)position);
            const uint32_t threshold = philox_threshold(p);
            float want[37];
            philox_keep_row(&row, first, 37, threshold, philox_scale(threshold), want);
            for (int64_t c = 0; c < 37; c++) {
                float got = device::pk_keep_one(state, site, sample, position, p, first + c);
                assert_memory_equal(&got, &want[c], sizeof got);
            }
            const int32_t off[4] = {state[0], state[1], state[2], 0};
            assert_true(device::pk_keep_one(off, site, sample, position, p, first) == 1.0f);
        }
    }
}

typedef struct Function {
    const char *name;
    float (*device)(float), (*cpu)(float);
    float low, high;
} Function;

static const Function functions[] = {
    {"exp", device::pk_exp, pk_exp, -80, 88},
    {"log", device::pk_log, pk_log, 1e-30f, 1e30f},
    {"sqrt", device::pk_sqrt, pk_sqrt, 0, 1e6f},
    {"tanh", device::pk_tanh, pk_tanh, -20, 20},
    {"sigmoid", device::pk_sigmoid, pk_sigmoid, -80, 80},
    {"gelu", device::pk_gelu, pk_gelu, -12, 20},
    {"gelu_grad", device::pk_gelu_grad, pk_gelu_grad, -12, 20},
    {"gelu_tanh", device::pk_gelu_tanh, pk_gelu_tanh, -8, 20},
    {"gelu_tanh_grad", device::pk_gelu_tanh_grad, pk_gelu_tanh_grad, -8, 20},
    {"silu", device::pk_silu, pk_silu, -80, 90},
    {"silu_grad", device::pk_silu_grad, pk_silu_grad, -80, 90},
};

/* Relative to the value, or to 1 near a zero of a derivative. */
static void functions_equal_cpu(void **) {
    for (const Function &f : functions) {
        const bool derivative = strstr(f.name, "grad") != nullptr;
        for (int i = 0; i <= 20000; i++) {
            const float x = f.low + (f.high - f.low) * (float)i / 20000.0f;
            const double want = f.cpu(x), error = fabs((double)f.device(x) - want);
            const double scale = derivative ? std::max(fabs(want), 0.1) : fabs(want);
            if (!(error <= 2e-6 * scale))
                fail_msg("%s(%.9g): %.9g, not %.9g", f.name, (double)x, (double)f.device(x), want);
        }
        assert_true(isnan(f.device(NAN)));
        for (float x : {(float)INFINITY, -(float)INFINITY}) {
            const float got = f.device(x), want = f.cpu(x);
            if (isnan(want))
                assert_true(isnan(got));
            else
                assert_true(got == want || fabsf(got - want) < 1e-30f);
        }
    }
    assert_true(isnan(device::pk_relu(NAN)) && device::pk_relu(-1.0f) == 0.0f);
    assert_true(device::pk_step(0.0f) == 0.0f && device::pk_step(1e-30f) == 1.0f);
    assert_true(device::pk_square(-3.0f) == 9.0f);
    assert_true(device::pk_min(1, 2) == 1 && device::pk_max(1, 2) == 2);
    assert_true(device::pk_slot(-1) == 0 && device::pk_slot(5) == 5);
    const float correction = device::pk_bias_correction(0.999, 1.0f);
    assert_true(fabs((double)correction - 0.001) <= 1e-10);
}

static void dimensions_are_those_of_the_batch(void **) {
    const int64_t sym[SYMBOLS] = {0, 70, 4, 9, 33, 2};
    assert_int_equal(device::peft_dim(12, sym), 12);
    assert_int_equal(device::peft_dim(0, sym), 0);
    assert_int_equal(device::peft_dim(-device::PEFT_SYM_T, sym), 70);
    assert_int_equal(device::peft_dim(-device::PEFT_SYM_L, sym), 33);
    assert_int_equal(device::peft_dim(-device::PEFT_SYM_S - 16, sym), 5);
}

static void block_reductions(void **) {
    for (unsigned threads : {32u, 64u, 96u, 256u, 512u, 1024u}) {
        const std::vector<float> x = random_floats(2 * threads);
        double want[2] = {0, 0};
        float most = x[0];
        for (unsigned i = 0; i < 2 * threads; i++) want[i / threads] += x[i];
        for (unsigned i = 0; i < threads; i++) most = std::max(most, x[i]);
        Guarded<float> first(3 * threads);
        for (Order order : {FORWARD, REVERSE, SHUFFLED}) {
            Guarded<float> got(3 * threads);
            run_kernel(1, 1, threads, order,
                       [&] { /* calls in a row share their shared memory */
                             const unsigned i = threadIdx.x;
                             got.data()[i] = device::block_sum(x[i]);
                             got.data()[threads + i] = device::block_sum(x[threads + i]);
                             got.data()[2 * threads + i] = device::block_max(x[i]);
                       });
            for (unsigned i = 0; i < threads; i++) {
                assert_true(fabs(got[i] - want[0]) <= 1e-4);
                assert_true(fabs(got[threads + i] - want[1]) <= 1e-4);
                assert_true(got[2 * threads + i] == most);
                assert_true(got[i] == got[0]);
            }
            if (order == FORWARD) first = got;
            same_bits(first, got);
        }
    }
}

static void column_sums_add_in_order(void **) {
    const std::vector<float> x = random_floats(2048);
    Guarded<float> got(64);
    run_kernel(1, 1, 1024, SHUFFLED, [&] {
        const int column = threadIdx.x & 31, part = threadIdx.x >> 5;
        for (int i = 0; i < 2; i++) {
            float sum = device::column_sum(x[i * 1024 + threadIdx.x], column, part);
            if (part == 0) got.data()[32 * i + column] = sum;
        }
    });
    for (int i = 0; i < 64; i++) {
        float want = 0;
        for (int part = 0; part < 32; part++)
            want = part ? want + x[(size_t)(i / 32 * 1024 + part * 32 + i % 32)]
                        : x[(size_t)(i / 32 * 1024 + i % 32)];
        assert_true(got[i] == want);
    }
}

static void grid_sums_repeat(void **) {
    for (unsigned grid : {1u, 3u, 256u}) {
        const std::vector<float> x = random_floats(grid * 64);
        double want = 0;
        for (float v : x) want += v;
        Guarded<float> first(1);
        for (Order order : {FORWARD, REVERSE, SHUFFLED}) {
            Guarded<float> got(1);
            run_kernel(grid, 1, 64, order,
                       [&] { device::grid_sum(x[blockIdx.x * 64 + threadIdx.x], got.data()); });
            assert_true(fabs(got[0] - want) <= 1e-6 * std::max(1.0, fabs(want)));
            got.check();
            if (order == FORWARD) first = got;
            same_bits(first, got);
        }
    }
}

/* ---- the emulator itself ---- */

static void divergence_is_reported(void **) {
    const std::string left = cuda_emulator::launch(1, 1, 64, FORWARD, [] {
        if (threadIdx.x == 40) return;
        __syncthreads();
    });
    assert_non_null(strstr(left.c_str(), "thread 40 has ended"));
    const std::string other = cuda_emulator::launch(2, 1, 64, FORWARD, [] {
        if (threadIdx.x & 1)
            __syncthreads();
        else
            __syncwarp();
    });
    assert_non_null(strstr(other.c_str(), "block 0: thread 0 waits at"));
    const std::string lane = cuda_emulator::launch(1, 1, 32, FORWARD, [] {
        if (threadIdx.x < 31) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    });
    assert_non_null(strstr(lane.c_str(), "thread 31 has ended"));
}

/* A race shows as results that depend on the order of threads. */
static void races_show(void **) {
    float seen[2] = {0, 0};
    for (Order order : {FORWARD, REVERSE}) {
        run_kernel(1, 1, 64, order, [&] {
            __shared__ float value;
            value = (float)threadIdx.x;
            __syncthreads();
            if (threadIdx.x == 0) seen[order] = value;
        });
    }
    assert_true(seen[FORWARD] == 63.0f && seen[REVERSE] == 0.0f);
}

static void shuffles_move_values(void **) {
    run_kernel(1, 1, 64, SHUFFLED, [] {
        const int i = (int)threadIdx.x, lane = i & 31;
        assert_int_equal(__shfl_sync(0xffffffffu, i, 5), (i & ~31) + 5);
        assert_int_equal(__shfl_xor_sync(0xffffffffu, i, 3), i ^ 3);
        assert_int_equal(__shfl_down_sync(0xffffffffu, i, 8), lane < 24 ? i + 8 : i);
    });
}

int main(void) {
    PeftError err;
    if (!isa_init(&err)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divergence_is_reported),
        cmocka_unit_test(races_show),
        cmocka_unit_test(shuffles_move_values),
        cmocka_unit_test(functions_equal_cpu),
        cmocka_unit_test(dimensions_are_those_of_the_batch),
        cmocka_unit_test(keep_has_the_bits_of_the_cpu),
        cmocka_unit_test(block_reductions),
        cmocka_unit_test(column_sums_add_in_order),
        cmocka_unit_test(grid_sums_repeat),
        cmocka_unit_test(nf4_has_the_bits_of_the_cpu),
        cmocka_unit_test(transpose_equals_cpu),
        cmocka_unit_test(index_equals_cpu),
        cmocka_unit_test(attention_equals_cpu),
        cmocka_unit_test(attention_of_random_shapes),
        cmocka_unit_test(attention_has_one_order),
        cmocka_unit_test(attention_computes_what_is_wanted),
        cmocka_unit_test(attention_stops_beyond_its_limits),
    };
    return cmocka_run_group_tests_name("cuda_templates", tests, NULL, NULL);
}
