/* Reading by position and atomic replacement of files. The one invariant: between atomic_open and
 * atomic_commit the final name is not touched, and every way out of a failed write removes the
 * temporary file. Data reach the disk before the rename does, and the rename before commit returns,
 * so a power cut leaves the old file or the new one. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *path_join(const char *dir, const char *name, PeftError *err) {
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = peft_alloc(n, 1, err);
    if (path) snprintf(path, n, "%s/%s", dir, name);
    return path;
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

int file_open(const char *path, uint64_t *size, PeftError *err) {
    /* O_NONBLOCK: opening a FIFO nobody writes to would hang before fstat could refuse it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        peft_fail(err, "cannot open %s: %s", path, strerror(errno));
        return -1;
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        peft_fail(err, "cannot read %s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        peft_fail(err, "cannot read %s: expected a file, found %s", path,
                  S_ISDIR(st.st_mode) ? "a folder" : "something that is not a plain file");
    } else {
        *size = (uint64_t)st.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

bool file_read_at(int fd, void *out, size_t n, uint64_t offset, const char *path, PeftError *err) {
    char *p = out;
    while (n > 0) {
        ssize_t got = pread(fd, p, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return peft_fail(err, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) {
            return peft_fail(err,
                             "%s ends at byte %llu where %zu more bytes were expected: it is "
                             "truncated, get it again",
                             path, (unsigned long long)offset, n);
        }
        p += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return true;
}

char *file_read(const char *path, size_t limit, size_t *n, PeftError *err) {
    uint64_t size;
    int fd = file_open(path, &size, err);
    if (fd < 0) return NULL;
    char *text = NULL;
    if (size > limit) {
        peft_fail(err, "%s has %llu bytes, expected at most %zu", path, (unsigned long long)size,
                  limit);
    } else {
        text = peft_alloc((size_t)size + 1, 1, err);
    }
    if (text && !file_read_at(fd, text, (size_t)size, 0, path, err)) {
        free(text);
        text = NULL;
    }
    close(fd);
    if (!text) return NULL;
    text[size] = 0;
    *n = (size_t)size;
    return text;
}

/* ---- atomic replacement ---- */

static void atomic_forget(AtomicFile *f) {
    free(f->path);
    free(f->tmp);
    *f = (AtomicFile){0};
}

/* A rename over a device or a folder would replace /dev/null or fail late: refuse it early. */
static bool check_target(const char *path, PeftError *err) {
    struct stat st;
    if (stat(path, &st) != 0 || S_ISREG(st.st_mode)) return true;
    return peft_fail(err, "cannot write %s: it exists and is %s", path,
                     S_ISDIR(st.st_mode) ? "a folder" : "not a plain file");
}

bool atomic_open(AtomicFile *f, const char *path, PeftError *err) {
    *f = (AtomicFile){0};
    if (!check_target(path, err)) return false;
    size_t n = strlen(path) + sizeof ".tmp." + 3 * sizeof(long);
    char *final = peft_alloc(strlen(path) + 1, 1, err);
    char *tmp = peft_alloc(n, 1, err);
    if (!final || !tmp) {
        free(final);
        free(tmp);
        return false;
    }
    strcpy(final, path);
    snprintf(tmp, n, "%s.tmp.%ld", path, (long)getpid());
    /* The name holds our process id, so a file already there was left by a dead process. */
    unlink(tmp);
    *f = (AtomicFile){.path = final, .tmp = tmp};
    f->fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (f->fd >= 0) return true;
    peft_fail(err, "cannot write %s: %s", path, strerror(errno));
    atomic_forget(f);
    return false;
}

bool atomic_write(AtomicFile *f, const void *data, size_t n, uint64_t offset, PeftError *err) {
    const char *p = data;
    while (n > 0) {
        ssize_t put = pwrite(f->fd, p, n, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            return peft_fail(err, "cannot write %s: %s at byte %llu; nothing was kept", f->path,
                             strerror(put < 0 ? errno : ENOSPC), (unsigned long long)offset);
        }
        p += put;
        n -= (size_t)put;
        offset += (uint64_t)put;
    }
    return true;
}

void atomic_abort(AtomicFile *f) {
    if (!f->tmp) return;
    if (f->fd >= 0) close(f->fd);
    unlink(f->tmp);
    atomic_forget(f);
}

/* Some file systems cannot fsync a folder and say EINVAL; the rename itself is still atomic there.
 */
static bool sync_folder_of(const char *path, PeftError *err) {
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    char *dir = peft_alloc(n + 2, 1, err);
    if (!dir) return false;
    if (slash && n == 0)
        strcpy(dir, "/");
    else if (!slash)
        strcpy(dir, ".");
    else
        snprintf(dir, n + 1, "%s", path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    if (!ok) peft_fail(err, "cannot flush the folder of %s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    free(dir);
    return ok;
}

/* close reports delayed write errors of network file systems, so it is checked as fsync is. */
static bool flush_and_close(AtomicFile *f, PeftError *err) {
    bool ok = fsync(f->fd) == 0;
    if (!ok) peft_fail(err, "cannot write %s: %s; nothing was kept", f->path, strerror(errno));
    if (close(f->fd) != 0)
        ok = peft_fail(err, "cannot write %s: %s; nothing was kept", f->path, strerror(errno));
    f->fd = -1;
    return ok;
}

bool atomic_commit(AtomicFile *f, PeftError *err) {
    bool ok = flush_and_close(f, err);
    if (ok && rename(f->tmp, f->path) != 0)
        ok = peft_fail(err, "cannot rename %s to %s: %s", f->tmp, f->path, strerror(errno));
    if (!ok) {
        atomic_abort(f);
        return false;
    }
    ok = sync_folder_of(f->path, err);
    atomic_forget(f);
    return ok;
}

bool file_write_atomic(const char *path, const void *data, size_t n, PeftError *err) {
    AtomicFile f;
    if (!atomic_open(&f, path, err)) return false;
    if (atomic_write(&f, data, n, 0, err)) return atomic_commit(&f, err);
    atomic_abort(&f);
    return false;
}

/* ---- folders ---- */

static bool make_one(const char *path, const char *whole, PeftError *err) {
    if (mkdir(path, 0777) == 0) return true;
    int code = errno;
    struct stat st;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return true;
        return peft_fail(err, "cannot make the folder %s: %s is a file", whole, path);
    }
    return peft_fail(err, "cannot make the folder %s: %s", whole, strerror(code));
}

bool dir_make(const char *path, PeftError *err) {
    if (!path[0]) return peft_fail(err, "cannot make a folder: its name is empty");
    char *part = peft_alloc(strlen(path) + 1, 1, err);
    if (!part) return false;
    strcpy(part, path);
    bool ok = true;
    for (char *p = part + 1; ok && *p; p++) {
        if (*p != '/') continue;
        *p = 0;
        ok = make_one(part, path, err);
        *p = '/';
    }
    ok = ok && make_one(part, path, err);
    free(part);
    if (ok && access(path, W_OK | X_OK) != 0)
        ok = peft_fail(err, "cannot write in the folder %s: %s", path, strerror(errno));
    return ok;
}
