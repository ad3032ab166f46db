/* What a training run says at its start and end, and run.json. */
#ifndef PEFT_CLI_SUMMARY_H
#define PEFT_CLI_SUMMARY_H

#include "../score.h"
#include "record.h"
#include "session.h"

typedef struct RunSummary {
    const Exec *exec;
    const Session *session;
    const RunRecord *record;
    Score test;
    double test_loss, seconds;
    bool tested;
} RunSummary;

void summary_announce(const Session *s, const Exec *x); /* settings, counts, plan: on stderr */
bool summary_write(const RunSummary *r, PeftError *err);
void summary_print(const RunSummary *r); /* the result, on stdout */

#endif
