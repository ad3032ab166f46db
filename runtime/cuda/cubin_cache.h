/* Compiled kernels on disk, one file per key: a hash of source, options, architecture and NVRTC
 * version. The cache is an aid, never a condition: a folder that cannot be written, a full disk or
 * a damaged file costs a compilation and nothing else, so nothing here reports an error. Files
 * appear by rename, so any number of processes and threads may share a folder; a reader checks
 * magic, format version, key, size and checksum, so it sees a whole cubin or none. */
#ifndef PEFT_CUDA_CUBIN_CACHE_H
#define PEFT_CUDA_CUBIN_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CUBIN_CACHE_BYTES ((uint64_t)512 << 20) /* the bound used by cuda_compile */

typedef struct CubinKey {
    uint8_t byte[16];
} CubinKey;

/* FNV-1a over 128 bits of each text with its terminating zero, and of the NVRTC version; the
 * architecture is among the options ("-arch=sm_90"). */
CubinKey cubin_key(const char *source, const char *const *options, int noptions, int nvrtc_major,
                   int nvrtc_minor);

/* $PEFTC_CACHE, else $XDG_CACHE_HOME/peftc when that is absolute, else ~/.cache/peftc; to be freed.
 * NULL when there is no such place; an empty PEFTC_CACHE switches the cache off. */
char *cubin_cache_dir(void);

/* The cubin of that key, to be freed, or NULL. A file found becomes the most recently used one. */
char *cubin_cache_get(const char *dir, const CubinKey *key, size_t *n);

/* Stores a cubin (the folder is made when missing), then removes least recently used files until
 * at most `bound` bytes remain. */
void cubin_cache_put(const char *dir, const CubinKey *key, const void *cubin, size_t n,
                     uint64_t bound);

#endif
