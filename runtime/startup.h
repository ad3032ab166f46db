/* What a process spends before its first step: one clock for the whole process, since there is one
 * start. Read by `profile`. */
#ifndef PEFT_STARTUP_H
#define PEFT_STARTUP_H

typedef enum StartupPhase {
    STARTUP_DATA,    /* options, vocabulary, reading and tokenising the data */
    STARTUP_DEVICE,  /* the arena; on a GPU its libraries and a context */
    STARTUP_KERNELS, /* compiling or loading what was generated */
    STARTUP_WEIGHTS, /* reading, drawing or quantising them */
    STARTUP_STEP,    /* the first step; on a GPU the choice of the products' algorithms */
    STARTUP_PHASES
} StartupPhase;

extern const char *const startup_name[STARTUP_PHASES];

void startup_begin(void);
/* The time since the last call, or since the beginning, belongs to this phase. */
void startup_end(StartupPhase phase);
double startup_seconds(StartupPhase phase);
double startup_total(void); /* of all phases */

#endif
