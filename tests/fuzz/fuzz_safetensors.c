/* libFuzzer: any bytes as a safetensors file. They are opened, indexed under canonical names and
 * every tensor is read and converted; a crash, a sanitizer report or a failure without a message is
 * a bug. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../runtime/io/weights_map.h"

static void require(bool ok) {
    if (!ok) abort();
}

/* Converts the tensor in pieces; a refusal (by dtype or value) has to say why. */
static void read_all(const StTensor *t) {
    enum { PIECE = 1000 };
    float f[PIECE];
    int32_t i[PIECE];
    for (int64_t at = 0; at < t->count; at += PIECE) {
        int64_t n = t->count - at < PIECE ? t->count - at : PIECE;
        PeftError as_float = {0}, as_int = {0};
        require(st_read_f32(t, f, at, n, &as_float) || as_float.msg[0]);
        require(st_read_i32(t, i, at, n, &as_int) || as_int.msg[0]);
        require(as_float.msg[0] || as_int.msg[0]); /* no dtype is both */
    }
}

static void use(const Weights *w) {
    PeftError err = {0};
    WeightMap *m = weight_map_new(&err);
    bool added = weight_map_add(m, w, &err);
    require(added || err.msg[0]);
    for (size_t i = 0; i < weights_count(w); i++) {
        const StTensor *t = weights_get(w, i);
        require(weights_find(w, t->name) == t);
        char *name = name_strip(t->name, &err);
        require(!added || weight_map_find(m, name));
        free(name);
        read_all(t);
    }
    require(!added || weight_map_unused(m, NULL, 0) == 0);
    weight_map_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    int fd = memfd_create("fuzz", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    PeftError err = {0};
    Weights *w = weights_open(path, &err);
    require(w || err.msg[0]);
    if (w) use(w);
    weights_close(w);
    close(fd);
    return 0;
}
