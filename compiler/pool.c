/* Chunks of at least 64 KiB, chained; large requests get a chunk of their own. */
#include "pool.h"

#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)64 << 10)

typedef struct Chunk {
    struct Chunk *next;
    size_t used, size;
    alignas(max_align_t) char data[];
} Chunk;

struct Pool {
    Chunk *chunk;
};

static Chunk *chunk_new(size_t size) {
    Chunk *c = calloc(1, sizeof(Chunk) + size);
    if (!c) {
        fprintf(stderr, "peftc: out of memory: %zu bytes asked for\n", size);
        abort();
    }
    c->size = size;
    return c;
}

Pool *pool_new(void) {
    Chunk *c = chunk_new(CHUNK_BYTES);
    Pool *p = (Pool *)c->data;
    c->used = sizeof(Pool);
    p->chunk = c;
    return p;
}

void pool_free(Pool *p) {
    if (!p) return;
    Chunk *c = p->chunk; /* the pool itself lives in the last chunk of the chain */
    while (c) {
        Chunk *next = c->next;
        free(c);
        c = next;
    }
}

void *pool_alloc(Pool *p, size_t bytes) {
    size_t align = alignof(max_align_t);
    if (bytes > (size_t)1 << 40)
        bytes = (size_t)1 << 40; /* calloc refuses it with the message above */
    bytes = (bytes + align - 1) / align * align;
    Chunk *c = p->chunk;
    if (c->size - c->used < bytes) {
        c = chunk_new(bytes > CHUNK_BYTES / 4 ? bytes : CHUNK_BYTES);
        c->next = p->chunk;
        p->chunk = c;
    }
    void *at = c->data + c->used;
    c->used += bytes;
    return at;
}

void *pool_grow(Pool *p, void *old, size_t count, size_t want, size_t size, int *cap) {
    size_t n = (size_t)*cap;
    if (want <= n) return old;
    n = n ? n * 2 : 8;
    while (n < want) n *= 2;
    void *fresh = pool_alloc(p, n * size);
    if (count) memcpy(fresh, old, count * size);
    *cap = (int)n;
    return fresh;
}

char *pool_strndup(Pool *p, const char *s, size_t n) {
    char *copy = pool_alloc(p, n + 1);
    memcpy(copy, s, n);
    return copy;
}

char *pool_strdup(Pool *p, const char *s) {
    return pool_strndup(p, s, strlen(s));
}
