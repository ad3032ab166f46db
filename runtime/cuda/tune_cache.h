/* Which algorithm the products of a shape run with, on disk: one text file in the cubins' folder, a
 * line per shape: checksum, key, choice, note, with tabs between. A choice that was stored once
 * stays: adding to the file (under a lock, by rename) keeps the line that is there already, so
 * processes that measure the same shape at the same time end with one choice. Lines that are not
 * whole are as good as missing. The file is bounded: the oldest lines go first. */
#ifndef PEFT_CUDA_TUNE_CACHE_H
#define PEFT_CUDA_TUNE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

#define TUNE_CACHE_FILE    "gemm-algorithms.txt"
#define TUNE_CACHE_LOCK    "gemm-algorithms.lock"
#define TUNE_CACHE_ENTRIES 4096 /* lines kept */
#define TUNE_CACHE_LINE    1024 /* bytes of a line; longer ones are neither written nor believed */

typedef struct TuneEntry { /* no tabs or newlines; key and choice not empty */
    const char *key;       /* machine, library and shape */
    const char *choice;    /* an algorithm's name */
    const char *note;      /* for people: what was measured */
} TuneEntry;

typedef struct TuneCache { /* all zero: empty */
    char *text;            /* what the entries point into */
    TuneEntry *entry;      /* oldest first */
    int n;
} TuneCache;

/* Reads the folder's file; one that is missing, unreadable or of another version is empty. */
void tune_cache_read(TuneCache *c, const char *dir);
void tune_cache_free(TuneCache *c);

/* The choice for a key, or NULL. */
const char *tune_cache_find(const TuneCache *c, const char *key);

/* Stores entries (the folder is made when missing) and reads again: find then gives each key's
 * stored choice, which may be another process's. False when they could not be stored. */
bool tune_cache_add(TuneCache *c, const char *dir, const TuneEntry *added, int n, PeftError *err);

#endif
