/* Shapes: equality, broadcasting by trailing dimensions, the index space of a type. */
#include "graph.h"

#include <stdio.h>
#include <string.h>

Type type_scalar(void) {
    return (Type){.dt = DT_F32};
}

Type type_f32(int rank, int64_t d0, int64_t d1) {
    Type t = {.dt = DT_F32, .rank = rank};
    if (rank > 0) t.dim[0] = d0;
    if (rank > 1) t.dim[1] = d1;
    return t;
}

Type type_i32(int64_t d0) {
    return (Type){.dt = DT_I32, .rank = 1, .dim = {d0}};
}

bool type_same_shape(Type a, Type b) {
    return a.rank == b.rank && memcmp(a.dim, b.dim, sizeof a.dim) == 0;
}

bool type_equal(Type a, Type b) {
    return a.dt == b.dt && type_same_shape(a, b);
}

bool type_broadcast(Type a, Type b, Type *out) {
    int rank = a.rank > b.rank ? a.rank : b.rank;
    Type t = {.dt = a.dt, .rank = rank};
    for (int i = 1; i <= rank; i++) { /* i-th dimension from the end */
        int64_t x = i <= a.rank ? a.dim[a.rank - i] : 1;
        int64_t y = i <= b.rank ? b.dim[b.rank - i] : 1;
        if (x != y && x != 1 && y != 1) return false;
        t.dim[rank - i] = x == 1 ? y : x;
    }
    *out = t;
    return true;
}

void type_space(Type t, int64_t *rows, int64_t *cols) {
    *rows = *cols = 1;
    if (t.rank == 2) {
        *rows = t.dim[0];
        *cols = t.dim[1];
    } else if (t.rank == 1 && (t.dt == DT_I32 || t.dim[0] < 0)) {
        *rows = t.dim[0];
    } else if (t.rank == 1) {
        *cols = t.dim[0];
    }
}

int64_t type_count(Type t) {
    int64_t n = 1;
    for (int i = 0; i < t.rank; i++) {
        if (t.dim[i] < 0) return -1;
        n *= t.dim[i];
    }
    return n;
}

static int dim_str(int64_t d, char *out, size_t size) {
    static const char *const names[PEFT_SYM_COUNT] = {"?", "T", "S", "M", "L", "P", "W"};
    if (d >= 0) return snprintf(out, size, "%lld", (long long)d);
    int sym = (int)(-d & 15);
    return snprintf(out, size, "%s%s", sym < PEFT_SYM_COUNT ? names[sym] : "?",
                    -d >> 4 ? "+1" : "");
}

const char *type_str(Type t, char buf[64]) {
    static const char *const names[] = {"f32", "i32", "nf4", "nf4_plain"};
    int n = snprintf(buf, 64, "%s", t.dt < 4 ? names[t.dt] : "?");
    for (int i = 0; i < t.rank; i++) {
        n += snprintf(buf + n, 64 - (size_t)n, i ? ", " : "[");
        n += dim_str(t.dim[i], buf + n, 64 - (size_t)n);
    }
    if (t.rank) snprintf(buf + n, 64 - (size_t)n, "]");
    return buf;
}
