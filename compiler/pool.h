/* Region allocation: everything a compilation makes lives as long as its pool and is freed at once.
 */
#ifndef PEFTC_POOL_H
#define PEFTC_POOL_H

#include <stddef.h>

typedef struct Pool Pool;

Pool *pool_new(void);
void pool_free(Pool *p);
/* Zeroed memory aligned for any type. Aborts when the machine has none left. */
void *pool_alloc(Pool *p, size_t bytes);
/* Moves an array of `count` elements to a larger one (at least `want`); updates *cap. */
void *pool_grow(Pool *p, void *old, size_t count, size_t want, size_t size, int *cap);
char *pool_strdup(Pool *p, const char *s);
char *pool_strndup(Pool *p, const char *s, size_t n);

#endif
