/* The CUDA execution model on the CPU: device code compiled as C++ and run thread by thread. Every
 * thread of a block is a fiber that runs until it waits at a barrier or a warp operation; blocks
 * run one after the other. What a GPU would leave undefined is an error here or changes a result: a
 * barrier that not all threads of the block reach, a warp operation that not all lanes of the mask
 * reach, a race that the order of threads decides (launch in several orders and compare), shared
 * memory read before it is written (it starts as NaN in every block), addresses out of bounds (with
 * -fsanitize=address).
 * Include this header, then the device code inside a namespace; compile with -Wno-unknown-pragmas,
 * for the unrolling. */
#ifndef PEFT_CUDA_EMULATOR_H
#define PEFT_CUDA_EMULATOR_H

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {

enum Order { FORWARD, REVERSE, SHUFFLED }; /* of threads between barriers, and of blocks */
enum State { READY, AT_WARP, AT_BLOCK, DONE, TRAPPED };

struct Dim {
    unsigned x, y, z;
};

struct Copy { /* of 16 bytes to shared memory; from NULL: zeros */
    void *to;
    const void *from;
};

struct Fiber {
    ucontext_t context; /* where it starts */
    jmp_buf place;      /* where it goes on; without the system calls of swapcontext */
    bool started;       /* it runs kernel after kernel, one for each block */
    Dim thread;
    State state;
    const char *where;  /* it waits */
    uint32_t mask;      /* lanes that it waits for */
    uint64_t posted[2]; /* values of the last two warp operations: a lane is at most one ahead */
    uint32_t operands[2][6];
    unsigned turn;
    std::vector<Copy> copies; /* that it has started, and not waited for */
    std::unique_ptr<char[]> stack;
    void *fake_stack; /* of the address sanitizer */
};

enum { STACK_BYTES = 128 * 1024, MOST_THREADS = 1024 };

struct Machine {
    std::vector<Fiber> fiber;
    jmp_buf scheduler;
    Fiber *running;
    std::function<void()> kernel;
    Dim block, block_dim, grid_dim;
    void *fake_stack;
    const void *scheduler_stack;
    size_t scheduler_stack_bytes;
};

inline Machine &machine() {
    static Machine m;
    return m;
}

/* ---- switching; the sanitizer must be told which stack is in use ---- */

inline void leave_fiber() {
    Machine &m = machine();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&m.running->fake_stack, m.scheduler_stack,
                                   m.scheduler_stack_bytes);
#endif
    if (_setjmp(m.running->place) == 0) _longjmp(m.scheduler, 1);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(machine().running->fake_stack, &machine().scheduler_stack,
                                    &machine().scheduler_stack_bytes);
#endif
}

inline void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_stack,
                                    &machine().scheduler_stack_bytes);
#endif
    for (;;) {
        machine().kernel();
        machine().running->state = DONE;
        leave_fiber();
    }
}

inline void resume(Fiber *f) {
    if (f->started) _longjmp(f->place, 1);
    f->started = true;
    setcontext(&f->context);
}

inline void enter_fiber(Fiber *f) {
    machine().running = f;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&machine().fake_stack, f->stack.get(), STACK_BYTES);
#endif
    if (_setjmp(machine().scheduler) == 0) resume(f);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(machine().fake_stack, nullptr, nullptr);
#endif
}

inline void wait_at(State state, uint32_t mask, const char *where) {
    Fiber *f = machine().running;
    f->state = state;
    f->mask = mask;
    f->where = where;
    leave_fiber();
}

/* ---- what waits together goes on together ---- */

inline bool same_place(const Fiber &a, const Fiber &b) {
    return a.state == b.state && a.mask == b.mask && strcmp(a.where, b.where) == 0;
}

/* Releases the warp operation that fiber i waits at, once all lanes of its mask are there. */
inline bool release_warp(size_t i) {
    std::vector<Fiber> &fiber = machine().fiber;
    const size_t warp = i / 32 * 32;
    const uint32_t mask = fiber[i].mask;
    for (size_t lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 &&
            (warp + lane >= fiber.size() || !same_place(fiber[i], fiber[warp + lane])))
            return false;
    for (size_t lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) fiber[warp + lane].state = READY;
    return true;
}

inline bool release() {
    std::vector<Fiber> &fiber = machine().fiber;
    bool any = false, all = true;
    for (size_t i = 0; i < fiber.size(); i++) {
        if (fiber[i].state == AT_WARP) any = release_warp(i) || any;
        all = all && fiber[i].state == AT_BLOCK && same_place(fiber[i], fiber[0]);
    }
    if (!all) return any;
    for (Fiber &f : fiber) f.state = READY;
    return true;
}

inline std::string trapped() {
    for (const Fiber &f : machine().fiber)
        if (f.state == TRAPPED) return std::string("trap at ") + f.where;
    return "";
}

/* Why nothing goes on: a thread that waits, and one that is not where it should be. */
inline std::string divergence() {
    const Machine &m = machine();
    const Fiber *waits = nullptr, *other = nullptr;
    for (const Fiber &f : m.fiber)
        if (f.state != DONE && !waits) waits = &f;
    for (const Fiber &f : m.fiber)
        if (!same_place(f, *waits)) other = &f;
    char text[512];
    snprintf(text, sizeof text, "block %u: thread %u waits at %s, thread %u %s %s", m.block.x,
             waits->thread.x, waits->where, other ? other->thread.x : 0,
             other && other->state == DONE ? "has ended" : "is at",
             other && other->state != DONE ? other->where : "");
    return text;
}

/* ---- launch ---- */

#ifdef __SANITIZE_ADDRESS__
/* Shared variables are plain ones, between the sanitizer's guard zones. */
#define EMULATED_SHARED static
inline void poison_shared() {}
#else
#define EMULATED_SHARED static __attribute__((section("emulated_shared")))
/* Weak: device code need not have any. */
extern "C" __attribute__((weak)) char __start_emulated_shared[], __stop_emulated_shared[];
inline void poison_shared() {
    memset(__start_emulated_shared, 0xff,
           (size_t)(__stop_emulated_shared - __start_emulated_shared));
}
#endif

inline std::vector<size_t> sequence(size_t n, Order order) {
    std::vector<size_t> at(n);
    uint32_t random = 12345;
    for (size_t i = 0; i < n; i++) at[i] = order == REVERSE ? n - 1 - i : i;
    for (size_t i = n; order == SHUFFLED && i > 1; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(at[i - 1], at[(random >> 8) % i]);
    }
    return at;
}

inline void make_fiber(Fiber *f) {
    f->stack.reset(new char[STACK_BYTES]);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack.get();
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
    f->started = false;
    f->fake_stack = nullptr;
}

/* Fibers stay where they are: what waits in one holds its address. */
inline void start_fibers(unsigned threads) {
    Machine &m = machine();
    m.fiber.reserve(MOST_THREADS);
    m.fiber.resize(std::min(m.fiber.size(), (size_t)threads));
    while (m.fiber.size() < threads) {
        m.fiber.emplace_back();
        make_fiber(&m.fiber.back());
    }
    for (unsigned i = 0; i < threads; i++) {
        Fiber &f = m.fiber[i];
        f.thread = {i, 0, 0};
        f.state = READY;
        f.where = "";
        f.mask = 0;
        f.turn = 0;
        f.copies.clear();
    }
}

inline std::string run_block(unsigned threads, const std::vector<size_t> &turns) {
    Machine &m = machine();
    poison_shared();
    start_fibers(threads);
    for (;;) {
        for (size_t i : turns)
            if (m.fiber[i].state == READY) enter_fiber(&m.fiber[i]);
        if (std::all_of(m.fiber.begin(), m.fiber.end(),
                        [](const Fiber &f) { return f.state == DONE; }))
            return "";
        const std::string trap = trapped();
        if (!trap.empty()) return trap;
        if (!release()) return divergence();
    }
}

/* Runs kernel() in grid_x * grid_y blocks of `threads` threads; "", or the first trap
 * or divergence. */
inline std::string launch(unsigned grid_x, unsigned grid_y, unsigned threads, Order order,
                          std::function<void()> kernel) {
    Machine &m = machine();
    m.kernel = std::move(kernel);
    m.grid_dim = {grid_x, grid_y, 1};
    m.block_dim = {threads, 1, 1};
    const std::vector<size_t> turns = sequence(threads, order);
    for (size_t b : sequence((size_t)grid_x * grid_y, order)) {
        m.block = {(unsigned)(b % grid_x), (unsigned)(b / grid_x), 0};
        std::string error = run_block(threads, turns);
        if (error.empty()) continue;
        m.fiber.clear(); /* they are in the middle of a kernel */
        return error;
    }
    return "";
}

/* ---- warp operations ---- */

template <typename T> T shuffle(uint32_t mask, T value, unsigned from, const char *where) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a lane posts 64 bits");
    Machine &m = machine();
    Fiber *f = m.running;
    const unsigned turn = f->turn++ & 1, lane = f->thread.x & 31;
    memcpy(&f->posted[turn], &value, sizeof value);
    wait_at(AT_WARP, mask, where);
    T result = value;
    if (from < 32) memcpy(&result, &m.fiber[f->thread.x - lane + from].posted[turn], sizeof result);
    return result;
}

inline unsigned lane() {
    return machine().running->thread.x & 31;
}

/* What the 32 lanes of a warp brought to a tensor core's product: four registers of A, two of B. */
struct Operands {
    const uint32_t *of[32];
    const uint32_t *a(unsigned l) const { return of[l]; }
    const uint32_t *b(unsigned l) const { return of[l] + 4; }
};

inline Operands exchange(const uint32_t *a, const uint32_t *b, const char *where) {
    Machine &m = machine();
    Fiber *f = m.running;
    const unsigned turn = f->turn++ & 1, first = f->thread.x & ~31u;
    std::copy(a, a + 4, f->operands[turn]);
    std::copy(b, b + 2, f->operands[turn] + 4);
    wait_at(AT_WARP, 0xffffffffu, where);
    Operands all;
    for (unsigned l = 0; l < 32; l++) all.of[l] = m.fiber[first + l].operands[turn];
    return all;
}

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* This lane's part of c [16, 8] += a [16, depth] b [depth, 8]; a(row, k) and b(column, k) are
 * elements. */
template <typename A, typename B> void product(float *c, unsigned depth, A a, B b) {
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        double sum = c[i];
        for (unsigned k = 0; k < depth; k++) sum += (double)a(row, k) * (double)b(column, k);
        c[i] = (float)sum;
    }
}

/* A product that the compiler cannot contract with what follows. */
inline float rounded(float x) {
    volatile float v = x;
    return v;
}

} // namespace cuda_emulator

/* ---- the language ---- */

#define EMULATOR_TEXT_(x) #x
#define EMULATOR_TEXT(x)  EMULATOR_TEXT_(x)
#define EMULATOR_HERE     __FILE__ ":" EMULATOR_TEXT(__LINE__)

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ EMULATED_SHARED
#define threadIdx  (cuda_emulator::machine().running->thread)
#define blockIdx   (cuda_emulator::machine().block)
#define blockDim   (cuda_emulator::machine().block_dim)
#define gridDim    (cuda_emulator::machine().grid_dim)

#define __syncthreads() cuda_emulator::wait_at(cuda_emulator::AT_BLOCK, 0, EMULATOR_HERE)
#define __syncwarp()    cuda_emulator::wait_at(cuda_emulator::AT_WARP, 0xffffffffu, EMULATOR_HERE)
#define __threadfence() ((void)0)
#define __trap()        cuda_emulator::wait_at(cuda_emulator::TRAPPED, 0, EMULATOR_HERE)

#define __shfl_sync(mask, x, from) cuda_emulator::shuffle(mask, x, (from)&31, EMULATOR_HERE)
#define __shfl_xor_sync(mask, x, bits) \
    cuda_emulator::shuffle(mask, x, cuda_emulator::lane() ^ (bits), EMULATOR_HERE)
#define __shfl_down_sync(mask, x, by) \
    cuda_emulator::shuffle(mask, x, cuda_emulator::lane() + (by), EMULATOR_HERE)

/* Vectors lie over arrays of other types. */
struct __attribute__((may_alias, aligned(16))) uint4 {
    uint32_t x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
struct __attribute__((may_alias, aligned(8))) uint2 {
    uint32_t x, y;
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) {
    return {x, y};
}
struct __attribute__((may_alias, aligned(8))) float2 {
    float x, y;
};
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
struct float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

template <typename T> T __ldg(const T *p) {
    return *p;
}
template <typename T> T __ldcg(const T *p) {
    return *p;
}
template <typename T> T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T> T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T> T atomicAdd(T *p, T x) {
    static_assert(T(1) / T(2) == T(0), "float atomics would make sums depend on the order");
    T old = *p;
    *p += x;
    return old;
}

static inline float __int_as_float(int i) {
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}
static inline uint32_t __float_as_uint(float x) {
    uint32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}
static inline float __uint_as_float(uint32_t i) {
    return cuda_emulator::float_of(i);
}
static inline float __fmul_rn(float a, float b) {
    return cuda_emulator::rounded(a * b);
}
static inline float __fadd_rn(float a, float b) {
    return cuda_emulator::rounded(a + b);
}
static inline float __fdiv_rn(float a, float b) {
    return cuda_emulator::rounded(a / b);
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}

/* ---- what the attention kernels use in PTX ---- */

/* A copy arrives as late as it may: when its thread waits for it. Other threads see it after a
 * barrier only, if the order of threads is not in their favour. */
static inline void copy_vector(void *to, const void *from, bool real) {
    cuda_emulator::machine().running->copies.push_back({to, real ? from : nullptr});
}
static inline void wait_for_copies() {
    for (const cuda_emulator::Copy &c : cuda_emulator::machine().running->copies) {
        if (c.from)
            memcpy(c.to, c.from, 16);
        else
            memset(c.to, 0, 16);
    }
    cuda_emulator::machine().running->copies.clear();
}

/* Half k of the row of matrix i that lane 8 i + j brought. */
static inline uint16_t row_half(const cuda_emulator::Operands &all, unsigned i, unsigned j,
                                unsigned k) {
    return (uint16_t)(all.of[8 * i + j][k / 2] >> k % 2 * 16);
}
static inline cuda_emulator::Operands bring_row(const void *row, const char *where) {
    uint32_t word[4];
    const uint32_t none[2] = {0, 0};
    memcpy(word, row, sizeof word);
    return cuda_emulator::exchange(word, none, where);
}
static inline void load_matrices(uint32_t *word, const void *row) {
    const cuda_emulator::Operands all = bring_row(row, "load_matrices");
    const unsigned g = cuda_emulator::lane() / 4, t = cuda_emulator::lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        word[i] = row_half(all, i, g, 2 * t) | (uint32_t)row_half(all, i, g, 2 * t + 1) << 16;
}
static inline void load_transposed(uint32_t *word, const void *row) {
    const cuda_emulator::Operands all = bring_row(row, "load_transposed");
    const unsigned g = cuda_emulator::lane() / 4, t = cuda_emulator::lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        word[i] = row_half(all, i, 2 * t, g) | (uint32_t)row_half(all, i, 2 * t + 1, g) << 16;
}

/* The tensor cores' products, with PTX's layout of the operands. */

static inline void mma_bf16(float *c, const uint32_t *a, const uint32_t *b) {
    const cuda_emulator::Operands all = cuda_emulator::exchange(a, b, "mma_bf16");
    const auto half = [](uint32_t pair, unsigned k) {
        return cuda_emulator::float_of(k % 2 ? pair & 0xffff0000u : pair << 16);
    };
    cuda_emulator::product(
        c, 16,
        [&](unsigned row, unsigned k) {
            return half(all.a(row % 8 * 4 + k % 8 / 2)[row / 8 + k / 8 * 2], k);
        },
        [&](unsigned column, unsigned k) { return half(all.b(column * 4 + k % 8 / 2)[k / 8], k); });
}

/* The lower 13 bits of an operand do not exist. */
static inline void mma_tf32(float *c, const uint32_t *a, const uint32_t *b) {
    const cuda_emulator::Operands all = cuda_emulator::exchange(a, b, "mma_tf32");
    const auto value = [](uint32_t bits) { return cuda_emulator::float_of(bits & 0xffffe000u); };
    cuda_emulator::product(
        c, 8,
        [&](unsigned row, unsigned k) {
            return value(all.a(row % 8 * 4 + k % 4)[row / 8 + k / 4 * 2]);
        },
        [&](unsigned column, unsigned k) { return value(all.b(column * 4 + k % 4)[k / 4]); });
}

#endif
