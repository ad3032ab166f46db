/* Two products through a narrow middle (narrow.cu) on the emulator, against sums in double, with an
 * epilogue in between as generated kernels have it. One in the end gives the bits that it gives of
 * the stored result. Nothing beyond a matrix is read (operands end where their memory does; the
 * address sanitizer looks) or counts (what surrounds them in shared memory is NaN), and every order
 * of threads and blocks gives the same bits. */
#define PEFT_BF16
#include "cuda_check.h"

namespace device {
#include "../../runtime/cuda/kernel_cuda.h"
#include "../../runtime/cuda/narrow.cu"
} // namespace device

using device::Narrow;
using device::pk_bf16;
using device::work;

class Matrix { /* random, aligned as the arena's buffers are */
    work *all;

  public:
    int64_t n;
    explicit Matrix(int64_t size) : n(size) {
        all = (work *)aligned_alloc(64, ((size_t)n * sizeof(work) + 63) & ~(size_t)63);
        assert_non_null(all);
        for (int64_t i = 0; i < n; i++) all[i] = pk_bf16(uniform());
    }
    ~Matrix() { free(all); }
    Matrix(const Matrix &) = delete;
    Matrix &operator=(const Matrix &) = delete;
    const work *data() const { return all; }
    double operator[](int64_t i) const { return device::pk_get(all, i); }
};

typedef struct Case {
    int rows, launched; /* of the batch; with those that make it up, which A has, too */
    float scale;
    bool addend, bias;
} Case;

template <typename S> struct Operands {
    Matrix a, b1, shift, b2, addend, bias;
    explicit Operands(const Case &c)
        : a(c.launched * S::K), b1(S::K * S::R), shift(S::R), b2(S::R * S::N),
          addend(c.launched * S::N), bias(S::N) {}
};

/* What the epilogue makes of a sum: something that is not 0 for 0. */
static double epilogue(double sum, double shift) {
    const double x = sum / 16 + shift;
    return x > 0 ? x : 0.25 * x;
}

template <typename S>
static void expect(const Case &c, const Operands<S> &x, std::vector<float> *middle,
                   std::vector<float> *result) {
    for (int r = 0; r < c.launched; r++) {
        for (int j = 0; j < S::R; j++) {
            double sum = 0;
            for (int k = 0; k < S::K; k++)
                sum += x.a[r * S::K + k] * x.b1[S::NT1 ? j * S::K + k : k * S::R + j];
            middle->push_back(r < c.rows ? (float)epilogue(sum, x.shift[j]) : 0.0f);
        }
        for (int j = 0; j < S::N; j++) {
            double sum = 0;
            for (int k = 0; k < S::R; k++)
                sum +=
                    (*middle)[(size_t)(r * S::R + k)] * x.b2[S::NT2 ? j * S::R + k : k * S::N + j];
            sum *= c.scale;
            if (c.addend) sum += x.addend[r * S::N + j];
            if (c.bias) sum += x.bias[j];
            result->push_back((float)sum);
        }
    }
}

/* What the second epilogue makes of an element of the result, which a matrix of another one is for:
 * more than bf16 keeps, and not 0 for 0. */
static float finish(float x, float other) {
    return (x + other) * 1.1f + 0.3f;
}

/* What generated code does: with the result as it is, or with what the epilogue makes of it and
 * `other`. */
template <typename S>
static void narrow_kernel(const Case &c, const Operands<S> &x, work *middle, work *result,
                          const work *other) {
    device::narrow_load_weights<S>(x.b1.data(), x.b2.data());
    device::pk_begin();
    device::narrow_load_rows<S>(x.a.data(), c.launched);
    const int row = (int)threadIdx.x / (S::R / 8) % device::NARROW_ROWS;
    const int column = (int)threadIdx.x % (S::R / 8) * 8;
    const int at = (int)blockIdx.x * device::NARROW_ROWS + row;
    device::narrow_first<S>();
    if ((int)threadIdx.x < device::NARROW_ROWS * (S::R / 8)) {
        alignas(16) float y[8];
        device::narrow_sum8<S>(row, column, y);
        for (int i = 0; i < 8; i++)
            y[i] = at < c.rows ? (float)epilogue(y[i], x.shift[column + i]) : 0.0f;
        device::narrow_put8<S>(row, column, y);
        if (blockIdx.y == 0 && at < c.launched) device::pk_put8(middle, at * S::R + column, y);
    }
    const device::NarrowTerms terms = {c.scale, c.addend ? x.addend.data() : nullptr,
                                       c.bias ? x.bias.data() : nullptr};
    device::narrow_second<S>(terms, c.launched);
    if (!other) {
        device::narrow_store<S>(result, c.launched);
        return;
    }
    for (int j = 0; j < S::VECTORS; j++) {
        if (!device::narrow_has<S>(j, c.launched)) continue;
        const int64_t to = device::narrow_row<S>(j) * S::N + device::narrow_column<S>(j);
        alignas(16) float y[8], z[8];
        device::narrow_get8<S>(j, y);
        device::pk_get8(other, to, z);
        for (int i = 0; i < 8; i++) y[i] = finish(y[i], z[i]);
        device::pk_put8(result, to, y);
    }
}

/* The same epilogue as a kernel of its own over the stored result. */
template <typename S>
static void finish_apart(const Case &c, Guarded<uint16_t> &result, const Matrix &other,
                         Guarded<uint16_t> *out) {
    for (int64_t i = 0; i < (int64_t)c.launched * S::N; i++) {
        const float x = device::pk_get((const work *)result.data(), i);
        const float y = finish(x, device::pk_get(other.data(), i));
        device::pk_put((work *)out->data(), i, y);
    }
}

template <typename S> static void check_case(const Case &c) {
    const Operands<S> x(c);
    std::vector<float> middle, result;
    expect(c, x, &middle, &result);
    const Matrix other((int64_t)c.launched * S::N);
    Guarded<uint16_t> first(c.launched * S::N), stored(c.launched * S::R);
    Guarded<uint16_t> finished(c.launched * S::N);
    for (Order order : {FORWARD, REVERSE, SHUFFLED}) {
        Guarded<uint16_t> out(c.launched * S::N), kept(c.launched * S::R);
        run_kernel(
            (unsigned)(c.launched + 15) / 16, S::N / S::COLUMNS, device::NARROW_THREADS, order,
            [&] { narrow_kernel<S>(c, x, (work *)kept.data(), (work *)out.data(), nullptr); });
        close_to(kept, middle, 1.0 / 256, "middle");
        close_to(out, result, 1.0 / 128, "result");
        if (order == FORWARD) {
            first = out;
            stored = kept;
            finish_apart<S>(c, out, other, &finished);
        }
        same_bits(first, out);
        same_bits(stored, kept);
        Guarded<uint16_t> once(c.launched * S::N);
        run_kernel((unsigned)(c.launched + 15) / 16, S::N / S::COLUMNS, device::NARROW_THREADS,
                   order, [&] {
                       narrow_kernel<S>(c, x, (work *)kept.data(), (work *)once.data(),
                                        other.data());
                   });
        same_bits(finished, once);
        same_bits(stored, kept);
    }
}

/* A batch that is made up to whole steps, one whose rows are exactly its own, one row. */
template <typename S> static void check_shape() {
    check_case<S>({37, 64, 1.0f, false, false});
    check_case<S>({21, 21, -0.5f, true, true});
    check_case<S>({1, 1, 2.0f, false, true});
}

static void as_in_bert(void **state) { /* forward, backward; two parts of the columns */
    (void)state;
    check_case<Narrow<768, 64, 768, 384, true, true>>({18, 18, 1.0f, false, false});
    check_case<Narrow<768, 64, 768, 384, false, false>>({18, 18, 1.0f, true, false});
}

static void every_layout(void **state) {
    (void)state;
    check_shape<Narrow<128, 64, 128, 64, true, true>>();
    check_shape<Narrow<128, 64, 128, 64, true, false>>();
    check_shape<Narrow<128, 64, 128, 64, false, true>>();
    check_shape<Narrow<128, 64, 128, 64, false, false>>();
}

/* Fewer tiles of k than warps, and some more; an odd number of 8 columns for a warp. */
static void odd_sizes(void **state) {
    (void)state;
    check_shape<Narrow<16, 16, 64, 64, true, true>>();
    check_shape<Narrow<80, 16, 192, 192, false, false>>();
    check_shape<Narrow<208, 48, 192, 64, true, true>>();
    check_shape<Narrow<144, 32, 320, 320, false, true>>();
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_in_bert),
        cmocka_unit_test(every_layout),
        cmocka_unit_test(odd_sizes),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
