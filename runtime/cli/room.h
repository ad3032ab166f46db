/* Whether a run's plan fits into the memory there is, and the largest batch that would: both are
 * known from the data before anything runs. */
#ifndef PEFT_CLI_ROOM_H
#define PEFT_CLI_ROOM_H

#include "session.h"

/* exec_open for the session's device, worst batches and --memory. A plan that does not fit (exit
 * code 3) is refused with the largest fit.batch that would. fns: bit per PeftFn that will run. */
bool room_exec_open(Exec *x, const Session *s, unsigned fns, PeftError *err);

/* The same check of --memory without opening the device. */
bool room_check_budget(const Session *s, unsigned fns, PeftError *err);

#endif
