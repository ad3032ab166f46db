/* Filling variables, all of them at once: each from a file or from its initialiser, in pieces that
 * threads take one by one. What a variable gets does not depend on who fills it. */
#ifndef PEFT_FILL_H
#define PEFT_FILL_H

#include "peftrt.h"
#include "io/safetensors.h"

typedef struct Fill {
    const PeftVar *var;
    void *at;               /* the variable's place */
    const StTensor *tensor; /* of as many values as the variable; NULL: initialise */
} Fill;

/* work: bytes of a work value (storage.h). Fails with the error of the first variable in the list
 * that has one. */
bool fill_all(const Fill *fill, int n, int work, uint64_t seed, PeftError *err);

#endif
