/* The rows of a profile: the program's steps grouped by pass, by kernel or by model line. */
#ifndef PEFT_CLI_PROFILE_ROWS_H
#define PEFT_CLI_PROFILE_ROWS_H

#include "profile.h"

typedef enum View { VIEW_PASS, VIEW_KERNEL, VIEW_LINE, VIEW_COUNT } View;

extern const char *const view_name[VIEW_COUNT];
extern const char *const pass_name[3]; /* by PeftStep.pass */

typedef struct ProfileRow { /* of one optimizer step */
    const char *key;
    double calls, us, bytes, flop;
    double percent, gb_s, tflop_s; /* of the time of all rows; 0 where nothing is known */
} ProfileRow;

/* Sorted by time, the most first; to be freed. NULL with a message. */
ProfileRow *profile_rows(const Profile *p, View view, int *n, PeftError *err);

/* A step's own row, in microseconds of one call. */
ProfileRow profile_step(const Profile *p, PeftFn fn, int step);

#endif
