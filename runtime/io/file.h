/* Files as the runtime uses them: read whole, read by position, and written so that a file under
 * its final name is always complete. A writer fills NAME.tmp.PID beside the target; commit flushes
 * it to the disk and renames it, anything else removes it. A process that is killed may leave its
 * temporary file behind, never half a file under the final name. Every failure names the path and
 * what the system said. */
#ifndef PEFT_IO_FILE_H
#define PEFT_IO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

/* A new file on its way to `path`. All zero is "nothing open": abort and commit leave it so. */
typedef struct AtomicFile {
    int fd;     /* open for writing while tmp is not NULL */
    char *path; /* final name */
    char *tmp;  /* name until commit */
} AtomicFile;

/* Starts a replacement of `path`, which may or may not exist; its folder must. */
bool atomic_open(AtomicFile *f, const char *path, PeftError *err);

/* Writes n bytes at `offset`. On failure (a full disk) the caller still has to abort. */
bool atomic_write(AtomicFile *f, const void *data, size_t n, uint64_t offset, PeftError *err);

/* fsync, rename to the final name, fsync of the folder. The file is closed either way, and when it
 * could not be completed the final name is as it was. */
bool atomic_commit(AtomicFile *f, PeftError *err);

/* Removes what was written; harmless on a file that is not open. */
void atomic_abort(AtomicFile *f);

/* The three steps in one, for a small file. */
bool file_write_atomic(const char *path, const void *data, size_t n, PeftError *err);

/* Opens a regular file for reading and gives its size in bytes. Returns the descriptor or -1. */
int file_open(const char *path, uint64_t *size, PeftError *err);

/* Reads exactly n bytes at `offset`; fewer there (the file was truncated meanwhile) is an error. */
bool file_read_at(int fd, void *out, size_t n, uint64_t offset, const char *path, PeftError *err);

/* The whole file, NUL-terminated, to be freed; more than `limit` bytes is an error. */
char *file_read(const char *path, size_t limit, size_t *n, PeftError *err);

/* True when something (of any kind) has this name. */
bool file_exists(const char *path);

/* Makes a folder and its parents (an existing one is fine) and checks that it can be written in. */
bool dir_make(const char *path, PeftError *err);

/* "dir/name", to be freed; NULL when there is no memory. */
char *path_join(const char *dir, const char *name, PeftError *err);

#endif
