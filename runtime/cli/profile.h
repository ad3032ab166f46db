/* What profile measured, and its four forms: text, JSON, CSV, and a trace for chrome://tracing or
 * Perfetto. Times are sums over all measured steps; every form divides by their number. */
#ifndef PEFT_CLI_PROFILE_H
#define PEFT_CLI_PROFILE_H

#include <stdio.h>

#include "../error.h"
#include "../exec.h"

typedef struct Profile {
    const Exec *x;              /* with its step times */
    int64_t steps;              /* optimizer steps whose parts were measured */
    int64_t rounds;             /* of measuring whole steps: */
    double median, least, most; /* seconds of an optimizer step, batching included */
} Profile;

/* Tables by pass, kernel and model line; then the memory over a step of the worst batch. */
bool profile_text(FILE *out, const Profile *p, PeftError *err);
bool profile_json(FILE *out, const Profile *p, PeftError *err);

/* The three tables as one: view,key,calls,us,percent,bytes,gb_s,tflop_s; amounts are per step. */
bool profile_csv(FILE *out, const Profile *p, PeftError *err);

/* An average step as "X" events, a row for each pass, and the bytes alive by class as counters.
 * Steps are laid one behind the other: what a program runs at the same time is not shown so. */
bool profile_trace(FILE *out, const Profile *p, PeftError *err);

#endif
