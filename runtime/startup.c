/* See startup.h. Called by the main thread alone. */
#include "startup.h"
#include "measure.h"

const char *const startup_name[STARTUP_PHASES] = {
    [STARTUP_DATA] = "data",       [STARTUP_DEVICE] = "device", [STARTUP_KERNELS] = "kernels",
    [STARTUP_WEIGHTS] = "weights", [STARTUP_STEP] = "step",
};

static double last, spent[STARTUP_PHASES];

void startup_begin(void) {
    last = clock_seconds();
}

void startup_end(StartupPhase phase) {
    double now = clock_seconds();
    spent[phase] += now - last;
    last = now;
}

double startup_seconds(StartupPhase phase) {
    return spent[phase];
}

double startup_total(void) {
    double sum = 0;
    for (int i = 0; i < STARTUP_PHASES; i++) sum += spent[i];
    return sum;
}
