/* The instruction set that the CPU kernels run on: AVX-512 (F, BW, DQ, VL), AVX2 with FMA, or plain
 * C for the compiler's baseline. It is chosen once per process, from the processor or from the
 * environment variable PEFT_ISA (avx512, avx2, portable), and every kernel of this folder exists in
 * all of them. AVX-512 and AVX2 give the same GEMM bits; portable C has no fused multiply-add. */
#ifndef PEFT_CPU_ISA_H
#define PEFT_CPU_ISA_H

#include <stdbool.h>

#include "../error.h"

typedef enum Isa { ISA_PORTABLE, ISA_AVX2, ISA_AVX512, ISA_COUNT } Isa;

/* Applies PEFT_ISA; call it once before the first kernel. Fails on an unknown name and on an
 * instruction set that this processor (or this build) does not have. */
bool isa_init(PeftError *err);
Isa isa_current(void); /* without isa_init: the best one supported */
bool isa_supported(Isa isa);
const char *isa_name(Isa isa);
void isa_use(Isa isa); /* for tests and benchmarks; must be supported */

#if defined(__x86_64__)
#define ISA_X86         1
#define ISA_TARGET_AVX2 __attribute__((target("avx2,fma,bmi2")))
#ifdef __clang__
#define ISA_TARGET_AVX512                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"), \
                   min_vector_width(512)))
#else
#define ISA_TARGET_AVX512 \
    __attribute__((       \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")))
#endif
#endif

/* ISA_VARIANTS(static, name, (params), (args)) compiles the always-inline function name_body once
 * per instruction set and defines name, which calls the current one: for kernels in plain C whose
 * loops the compiler vectorises. */
#ifdef ISA_X86
#define ISA_VARIANTS(storage, name, params, args)        \
    ISA_TARGET_AVX512 static void name##_avx512 params { \
        name##_body args;                                \
    }                                                    \
    ISA_TARGET_AVX2 static void name##_avx2 params {     \
        name##_body args;                                \
    }                                                    \
    static void name##_portable params {                 \
        name##_body args;                                \
    }                                                    \
    storage void name params {                           \
        switch (isa_current()) {                         \
        case ISA_AVX512: name##_avx512 args; return;     \
        case ISA_AVX2: name##_avx2 args; return;         \
        default: name##_portable args; return;           \
        }                                                \
    }
#else
#define ISA_VARIANTS(storage, name, params, args) \
    storage void name params {                    \
        name##_body args;                         \
    }
#endif

#endif
