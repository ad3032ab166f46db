/* Choice of the instruction set. The choice is one int written before threads start (isa_init) or,
 * lazily, with the same value by whoever comes first, so it needs no lock. */
#include "isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { UNDECIDED = -1 };
static atomic_int chosen = UNDECIDED;
static const char *const names[ISA_COUNT] = {"portable", "avx2", "avx512"};

const char *isa_name(Isa isa) {
    return names[isa];
}

bool isa_supported(Isa isa) {
#ifdef ISA_X86
    switch (isa) {
    case ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               isa_supported(ISA_AVX2);
    case ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi2");
    default: return isa == ISA_PORTABLE;
    }
#else
    return isa == ISA_PORTABLE;
#endif
}

static Isa best_isa(void) {
    return isa_supported(ISA_AVX512) ? ISA_AVX512
           : isa_supported(ISA_AVX2) ? ISA_AVX2
                                     : ISA_PORTABLE;
}

bool isa_init(PeftError *err) {
    const char *want = getenv("PEFT_ISA");
    if (!want || !*want) {
        isa_use(best_isa());
        return true;
    }
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(want, names[i]) != 0) continue;
        if (!isa_supported((Isa)i))
            return peft_fail(err,
                             "PEFT_ISA=%s: this processor does not have it; the best it has is %s",
                             want, names[best_isa()]);
        isa_use((Isa)i);
        return true;
    }
    return peft_fail(err, "PEFT_ISA=%s: expected avx512, avx2 or portable", want);
}

Isa isa_current(void) {
    int isa = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (isa == UNDECIDED) {
        isa = best_isa();
        atomic_store_explicit(&chosen, isa, memory_order_relaxed);
    }
    return (Isa)isa;
}

void isa_use(Isa isa) {
    atomic_store_explicit(&chosen, isa, memory_order_relaxed);
}
