/* Where a run comes from: the peftc that made its program, the machine it ran on, and what it cost
 * on disk. All of it goes into run.json only; no other file of a run depends on it, so that the
 * same training gives the same bytes on every machine and at every commit. */
#ifndef PEFT_CLI_ORIGIN_H
#define PEFT_CLI_ORIGIN_H

#include <jansson.h>
#include <stdint.h>

#include "../exec.h"

#define PEFTC_VERSION "0.1.0"

/* The git commit that the runtime was built from, "-changed" behind it when files differed from it;
 * "unknown" when it was not built in a checkout. */
extern const char peftc_commit[];

/* Bytes of the safetensors files in a folder; 0 when it cannot be read. */
int64_t weights_on_disk(const char *dir);

/* Adds version, commit, program hash, date (UTC, now), processor, how matrices are computed and,
 * for CUDA, GPU and driver. */
void origin_add(json_t *run, const Exec *x);

#endif
