/* See storage.h. */
#include "storage.h"

#include <string.h>

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return x == x ? u : 0x7fc00000u;
}

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

bool storage_is_float(DType dtype, int work) {
    return dtype == DT_F32 || work == sizeof(float);
}

void storage_put(void *buffer, DType dtype, int work, int64_t count, int64_t first, int64_t n,
                 const float *value) {
    uint16_t *high = (uint16_t *)buffer + first, *rest = high + count;
    if (storage_is_float(dtype, work))
        memcpy((float *)buffer + first, value, (size_t)n * sizeof *value);
    else if (dtype == DT_MASTER)
        for (int64_t i = 0; i < n; i++) {
            uint32_t u = bits_of(value[i]);
            high[i] = (uint16_t)((u + 0x8000u) >> 16);
            rest[i] = (uint16_t)u;
        }
    else
        for (int64_t i = 0; i < n; i++) {
            uint32_t u = bits_of(value[i]);
            high[i] = (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
        }
}

void storage_get(const void *buffer, DType dtype, int work, int64_t count, int64_t first, int64_t n,
                 float *value) {
    const uint16_t *high = (const uint16_t *)buffer + first, *rest = high + count;
    if (storage_is_float(dtype, work))
        memcpy(value, (const float *)buffer + first, (size_t)n * sizeof *value);
    for (int64_t i = 0; !storage_is_float(dtype, work) && i < n; i++) {
        uint32_t u = (uint32_t)high[i] << 16;
        if (dtype == DT_MASTER) u += (uint32_t)(int32_t)(int16_t)rest[i];
        value[i] = float_of(u);
    }
}
