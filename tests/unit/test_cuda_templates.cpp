/* The CUDA device code that is not generated, run on the CPU by cuda_emulator.h, against the C code
 * of the CPU backend: attention forward and backward, grouping and segment sums, transpose, NF4,
 * dropout factors, scalar functions, block reductions. Every launch is repeated with threads and
 * blocks in other orders and must give the same bits. */
#include "cuda_check.h"

namespace device {
#include "../../runtime/cuda/kernel_cuda.h"
#include "../../runtime/cuda/attention_tile.cu"
#include "../../runtime/cuda/attention_long.cu"
#include "../../runtime/cuda/attention_short.cu"
#include "../../runtime/cuda/attention.cu"
#include "../../runtime/cuda/templates.cu"
} // namespace device

extern "C" {
#include "../../runtime/cpu/isa.h"
#include "../../runtime/cpu/nf4.h"
#include "../../runtime/cpu/philox.h"
#include "../../runtime/cpu/segment.h"
#include "../../runtime/cpu/vecmath.h"
}

/* ---- index and segment sum ---- */

typedef struct Grouping {
    Guarded<int32_t> order, start, slot;
} Grouping;

/* Rows that a launch for so many tokens has; those beyond are zero. */
static int64_t launched_rows(int64_t tokens) {
    const int64_t sym[SYMBOLS] = {0, tokens};
    return device::peft_rows(-device::PEFT_SYM_T, sym);
}

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
    const int64_t size = launched_rows(n) * cols;
    std::vector<float> want((size_t)size);
    segment_sum(dy.data(), cols, g.order.data(), g.start.data(), n, want.data(), 1);
    Guarded<float> first(size);
    for (Order order : {FORWARD, REVERSE}) {
        Guarded<float> got(size);
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
            const int64_t all = launched_rows(rows), sym[SYMBOLS] = {0, rows};
            const std::vector<float> in = random_floats(all * cols);
            Guarded<float> out(all * cols);
            run_kernel(rows == 31 ? 1 : 4, 1, 256, SHUFFLED, [&] {
                device::peft_transpose(in.data(), out.data(), sym, -device::PEFT_SYM_T, cols);
            });
            for (int64_t r = 0; r < all; r++)
                for (int64_t c = 0; c < cols; c++)
                    assert_true(out[r * cols + c] == in[(size_t)(c * all + r)]);
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

enum { WEIGHTS = 3 }; /* of one launch, somewhere in memory */

static void nf4_has_the_bits_of_the_cpu(void **) {
    for (int64_t n : {0, 1, 7, 64, 65, 2048, 2051, 64 * 300 + 13}) {
        for (bool double_quant : {false, true}) {
            uint8_t *buffer[WEIGHTS];
            std::vector<Guarded<float>> want(WEIGHTS, Guarded<float>(n)), got = want;
            device::PkGroup<2> group = {};
            for (int w = 0; w < WEIGHTS; w++) {
                buffer[w] = random_nf4(n, double_quant);
                const Nf4View v = nf4_view(buffer[w], n, double_quant);
                nf4_dequant_row(&v, 0, n, want[w].data());
                const device::Nf4View d = device::nf4_view(buffer[w], n, double_quant);
                for (int64_t i = 0; i < n; i++) got[w].data()[i] = device::nf4_value(d, i);
                same_bits(want[w], got[w]);
                got[w] = Guarded<float>(n);
                group.arg[w][0] = buffer[w];
                group.arg[w][1] = got[w].data();
            }
            for (int weights = 1; weights <= WEIGHTS; weights++) {
                run_kernel((unsigned)(n + 8191) / 8192 + (weights == 1), (unsigned)weights, 128,
                           REVERSE, [&] { device::peft_nf4_dequant(group, n, double_quant); });
                for (int w = 0; w < WEIGHTS; w++) {
                    same_bits(w < weights ? want[w] : Guarded<float>(n), got[w]);
                    std::fill_n(got[w].data(), n, Guarded<float>::MARK);
                }
            }
            for (uint8_t *b : buffer) free(b);
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
            const float scale = philox_scale(threshold);
            float want[40], eight[8];
            philox_keep_row(&row, first, 40, threshold, scale, want);
            for (int64_t c = 0; c < 40; c++) {
                float got =
                    device::pk_keep_one(state, site, sample, position, threshold, scale, first + c);
                assert_memory_equal(&got, &want[c], sizeof got);
            }
            for (int64_t c = 0; c < 40; c += 8) {
                device::pk_keep8(state, site, sample, position, threshold, scale, first + c, eight);
                assert_memory_equal(eight, &want[c], sizeof eight);
            }
            const device::PhiloxRow own = device::philox_row(state, site, sample, position, p);
            assert_memory_equal(&own.scale, &scale, sizeof scale);
            assert_int_equal(own.threshold, threshold);
            const int32_t off[4] = {state[0], state[1], state[2], 0};
            device::pk_keep8(off, site, sample, position, threshold, scale, first, eight);
            for (float factor : eight) assert_true(factor == 1.0f);
            assert_true(device::pk_keep_one(off, site, sample, position, threshold, scale, first) ==
                        1.0f);
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
        device::GridSum parts = {};
        const std::vector<float> x = random_floats(grid * 64);
        double want = 0;
        for (float v : x) want += v;
        Guarded<float> first(1);
        for (Order order : {FORWARD, REVERSE, SHUFFLED}) {
            Guarded<float> got(1);
            run_kernel(grid, 1, 64, order, [&] {
                device::grid_sum(x[blockIdx.x * 64 + threadIdx.x], got.data(), &parts);
            });
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
    };
    return cmocka_run_group_tests_name("cuda_templates", tests, NULL, NULL);
}
