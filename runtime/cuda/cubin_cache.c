/* The invariant: a file named KEY.cubin was complete when it got that name, and is believed only if
 * its checksum says that it still is. The access order is kept in modification times, which a hit
 * renews. */
#define _GNU_SOURCE /* mkostemp */
#include "cubin_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "../io/file.h"

#define SUFFIX          ".cubin"
#define TEMPORARY       "cubin.tmp." /* a name's beginning, so that no cubin is taken for one */
#define MAX_CUBIN_BYTES ((size_t)256 << 20)
#define STALE_SECONDS   3600 /* after which a temporary file was left by a process that died */

typedef struct CubinHeader {
    char magic[8];
    uint32_t version; /* of this layout */
    uint32_t crc;     /* of this header with crc 0, then the cubin */
    uint64_t bytes;   /* of the cubin, which follows and ends the file */
    CubinKey key;
} CubinHeader;
_Static_assert(sizeof(CubinHeader) == 40, "no padding: the header is written as it lies");

static const CubinHeader blank = {.magic = {'P', 'E', 'F', 'T', 'C', 'U', 'B', '\n'}, .version = 1};

/* ---- keys and names ---- */

static void hash_bytes(unsigned __int128 *hash, const void *data, size_t n) {
    const unsigned __int128 prime = ((unsigned __int128)1 << 88) + 0x13b;
    for (const uint8_t *p = data; n > 0; n--) *hash = (*hash ^ *p++) * prime;
}

CubinKey cubin_key(const char *source, const char *const *options, int noptions, int nvrtc_major,
                   int nvrtc_minor) {
    unsigned __int128 hash =
        (unsigned __int128)0x6c62272e07bb0142u << 64 | 0x62b821756295c58du; /* FNV offset basis */
    int version[2] = {nvrtc_major, nvrtc_minor};
    hash_bytes(&hash, version, sizeof version);
    hash_bytes(&hash, source, strlen(source) + 1);
    for (int i = 0; i < noptions; i++) hash_bytes(&hash, options[i], strlen(options[i]) + 1);
    CubinKey key;
    memcpy(key.byte, &hash, sizeof key.byte);
    return key;
}

static char *file_of_key(const char *dir, const CubinKey *key) {
    char name[2 * sizeof key->byte + sizeof SUFFIX];
    for (size_t i = 0; i < sizeof key->byte; i++)
        snprintf(name + 2 * i, sizeof name - 2 * i, "%02x", key->byte[i]);
    strcat(name, SUFFIX);
    return path_join(dir, name, NULL);
}

char *cubin_cache_dir(void) {
    const char *own = getenv("PEFTC_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    if (own) return own[0] ? strdup(own) : NULL;
    if (xdg && xdg[0] == '/') return path_join(xdg, "peftc", NULL);
    return home && home[0] ? path_join(home, ".cache/peftc", NULL) : NULL;
}

/* ---- reading ---- */

static uint32_t checksum(CubinHeader h, const void *cubin, size_t n) {
    h.crc = 0;
    uLong crc = crc32_z(0, (const Bytef *)&h, sizeof h);
    return (uint32_t)crc32_z(crc, cubin, n);
}

static bool is_whole(const char *file, size_t size, const CubinKey *key) {
    CubinHeader h;
    if (size < sizeof h) return false;
    memcpy(&h, file, sizeof h);
    return memcmp(h.magic, blank.magic, sizeof h.magic) == 0 && h.version == blank.version &&
           memcmp(&h.key, key, sizeof h.key) == 0 && h.bytes == size - sizeof h &&
           h.crc == checksum(h, file + sizeof h, size - sizeof h);
}

char *cubin_cache_get(const char *dir, const CubinKey *key, size_t *n) {
    char *path = file_of_key(dir, key);
    if (!path) return NULL;
    size_t size = 0;
    char *file = file_read(path, sizeof(CubinHeader) + MAX_CUBIN_BYTES, &size, NULL);
    bool whole = file && is_whole(file, size, key);
    if (whole) utimensat(AT_FDCWD, path, NULL, 0);
    free(path);
    if (!whole) {
        free(file);
        return NULL;
    }
    *n = size - sizeof(CubinHeader);
    memmove(file, file + sizeof(CubinHeader), *n);
    return file;
}

/* ---- the bound ---- */

typedef struct CachedFile {
    struct timespec used;
    uint64_t bytes;
    char name[2 * sizeof(CubinKey) + sizeof SUFFIX];
} CachedFile;

static int older_first(const void *a, const void *b) {
    const CachedFile *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec) return x->used.tv_nsec < y->used.tv_nsec ? -1 : 1;
    return strcmp(x->name, y->name);
}

static bool is_cubin_name(const char *name) {
    size_t digits = 2 * sizeof(CubinKey);
    return strspn(name, "0123456789abcdef") == digits && strcmp(name + digits, SUFFIX) == 0;
}

/* The cache's files, not sorted; files that are not the cache's are not touched. */
static CachedFile *list_files(int dir_fd, DIR *dir, size_t *n) {
    CachedFile *file = NULL;
    size_t room = 0;
    struct stat st;
    *n = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        bool temporary = strncmp(e->d_name, TEMPORARY, strlen(TEMPORARY)) == 0;
        if (!temporary && !is_cubin_name(e->d_name)) continue;
        if (fstatat(dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
            continue;
        if (temporary) {
            if (st.st_mtime < time(NULL) - STALE_SECONDS) unlinkat(dir_fd, e->d_name, 0);
            continue;
        }
        if (*n == room) {
            room = room ? 2 * room : 64;
            CachedFile *larger = realloc(file, room * sizeof *file);
            if (!larger) break;
            file = larger;
        }
        CachedFile *f = &file[(*n)++];
        *f = (CachedFile){.used = st.st_mtim, .bytes = (uint64_t)st.st_size};
        strcpy(f->name, e->d_name);
    }
    return file;
}

static void enforce_bound(const char *path, uint64_t bound) {
    DIR *dir = opendir(path);
    if (!dir) return;
    size_t n;
    CachedFile *file = list_files(dirfd(dir), dir, &n);
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) total += file[i].bytes;
    if (total > bound) qsort(file, n, sizeof *file, older_first);
    for (size_t i = 0; i < n && total > bound; i++) {
        /* Another process may have removed it already: either way it is gone. */
        if (unlinkat(dirfd(dir), file[i].name, 0) == 0 || errno == ENOENT) total -= file[i].bytes;
    }
    free(file);
    closedir(dir);
}

/* ---- writing ---- */

static bool write_all(int fd, const void *data, size_t n) {
    for (const char *p = data; n > 0;) {
        ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

/* A temporary name of its own for each call: threads of one process may store the same key. There
 * is no fsync: what a power cut damages, the checksum finds. */
static void write_file(const char *dir, const char *path, const CubinHeader *h, const void *cubin) {
    char *tmp = path_join(dir, TEMPORARY "XXXXXX", NULL);
    if (!tmp) return;
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd >= 0) {
        bool ok = write_all(fd, h, sizeof *h) && write_all(fd, cubin, h->bytes);
        ok = close(fd) == 0 && ok;
        if (!ok || rename(tmp, path) != 0) unlink(tmp);
    }
    free(tmp);
}

void cubin_cache_put(const char *dir, const CubinKey *key, const void *cubin, size_t n,
                     uint64_t bound) {
    if (n > MAX_CUBIN_BYTES || !dir_make(dir, NULL)) return;
    char *path = file_of_key(dir, key);
    if (!path) return;
    CubinHeader h = blank;
    h.bytes = n;
    h.key = *key;
    h.crc = checksum(h, cubin, n);
    write_file(dir, path, &h, cubin);
    free(path);
    enforce_bound(dir, bound);
}
