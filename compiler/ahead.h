/* peftc --arch: the program's GPU code compiled at peftc's time and put into the executable, so
 * that it starts without NVRTC on the architectures named. */
#ifndef PEFTC_AHEAD_H
#define PEFTC_AHEAD_H

#include "../runtime/error.h"
#include "../runtime/peftrt.h"

typedef struct Ahead { /* zero: nothing */
    PeftCubin *cubin;
    int32_t n;
} Ahead;

/* list: "sm_80,sm_90". Compiles both ways of computing for each; needs NVRTC, but no GPU. Exit code
 * 2 for a list that names no architecture. */
bool ahead_compile(Ahead *a, const PeftProgram *p, const char *list, PeftError *err);
void ahead_free(Ahead *a);

#endif
