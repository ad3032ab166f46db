/* Turns emitted C into an executable with the host's C compiler and the runtime library that lies
 * beside peftc. */
#ifndef PEFTC_HOST_CC_H
#define PEFTC_HOST_CC_H

#include <stdbool.h>
#include <stdio.h>

#include "../runtime/error.h"

typedef struct HostCc {
    const char *command; /* the C compiler, or NULL for $CC or cc */
    int level;           /* of optimisation, 1 to 3 */
} HostCc;

/* Calls write(file, ctx) to produce the C text, compiles and links it to `out`. Nothing is left
 * under that name unless everything worked. */
bool host_cc(const char *out, const HostCc *cc, void (*write)(FILE *f, void *ctx), void *ctx,
             PeftError *err);

#endif
