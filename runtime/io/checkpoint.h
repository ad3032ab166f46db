/* A training checkpoint: one file with the whole mutable state as named sections of raw bytes, the
 * cursor into the training run, and the hashes of the program and data set it belongs to. It
 * appears under its name only when complete. Opening proves version, program, data set, sizes and
 * the header's checksum; reading a section proves that section's checksum, so damage is never
 * resumed from. */
#ifndef PEFT_IO_CHECKPOINT_H
#define PEFT_IO_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

typedef struct CkptHeader {
    uint64_t program_hash; /* of everything that decides the state's layout and the arithmetic */
    uint64_t dataset_hash;
    int64_t epoch;         /* the running one, from 0 */
    int64_t step_in_epoch; /* optimizer steps already done in it */
    int64_t global_step;   /* optimizer steps done in all */
} CkptHeader;

enum { CKPT_NAME = 48 /* bytes of a section's name with its NUL */, CKPT_MAX_SECTIONS = 4096 };

typedef struct CkptSection {
    const char *name;
    const void *data;
    uint64_t bytes;
} CkptSection;

bool ckpt_write(const char *path, const CkptHeader *header, const CkptSection *sections, size_t n,
                PeftError *err);

typedef struct Checkpoint Checkpoint;

/* Refuses a checkpoint of another program or data set. */
Checkpoint *ckpt_open(const char *path, uint64_t program_hash, uint64_t dataset_hash,
                      PeftError *err);
void ckpt_close(Checkpoint *c);

const CkptHeader *ckpt_header(const Checkpoint *c);

/* Bytes of a section; -1 when there is none of this name. */
int64_t ckpt_section_bytes(const Checkpoint *c, const char *name);

/* Reads a section that must have exactly `bytes` bytes. On failure out holds nothing meaningful. */
bool ckpt_section(const Checkpoint *c, const char *name, void *out, uint64_t bytes, PeftError *err);

#endif
