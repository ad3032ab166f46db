/* Progress of long work on stderr: a line that rewrites itself on a terminal, plain lines
 * otherwise, every ten seconds or as often as PEFTC_PROGRESS_SECONDS in the environment says. Talk
 * goes to stderr, data to stdout. */
#ifndef PEFT_CLI_PROGRESS_H
#define PEFT_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Progress {
    const char *what; /* "epoch 1/3" */
    int64_t total;
    double start, shown, interval; /* seconds */
    bool tty;
} Progress;

void progress_start(Progress *p, const char *what, int64_t total);
/* `detail`: "loss 0.312 | lr 9.8e-05 | 12,345 tok/s". Prints when something new is worth it. */
void progress_step(Progress *p, int64_t done, const char *detail);
void progress_end(Progress *p);

#endif
