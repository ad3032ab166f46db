/* The clock that everything is timed with, and how reports write a count. */
#ifndef PEFT_MEASURE_H
#define PEFT_MEASURE_H

#include <stdint.h>

double clock_seconds(void); /* monotonic */

/* Writes "12,345" into buf. */
const char *with_commas(int64_t v, char buf[32]);

#endif
