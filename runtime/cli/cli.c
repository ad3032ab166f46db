/* The entry point of every compiled program: parse, dispatch, one line for a failure, the exit
 * code. */
#include "../cuda/rehearsal.h"
#include "../startup.h"
#include "session.h"
#include "verbs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool (*const run_verb[VERB_COUNT])(const PeftProgram *, const Options *, PeftError *) = {
    [VERB_ABOUT] = verb_about,     [VERB_TRAIN] = verb_train,       [VERB_EVAL] = verb_eval,
    [VERB_PREDICT] = verb_predict, [VERB_PLAN] = verb_plan,         [VERB_PROFILE] = verb_profile,
    [VERB_REPLAY] = verb_replay,   [VERB_TOKENIZE] = verb_tokenize, [VERB_DEVICES] = verb_devices,
};

/* OpenMP's threads spin for a long time at every barrier; when other programs want the processors
 * too, a step then loses whole time slices. The bound is read before main, so the program starts
 * itself again with one, unless the user set a policy. */
static void bound_spinning(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    char self[4096]; /* by its own name, which process listings show */
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || setenv("GOMP_SPINCOUNT", "10000", 1) != 0) return;
    self[n] = 0;
    execv(self, argv);
}

static bool may_use_gpu(const Options *o) {
    const unsigned running = 1u << VERB_TRAIN | 1u << VERB_EVAL | 1u << VERB_PREDICT |
                             1u << VERB_PROFILE | 1u << VERB_REPLAY;
    return running >> o->verb & 1 && o->device &&
           (strcmp(o->device, device_name(DEVICE_CUDA)) == 0 || strcmp(o->device, "auto") == 0);
}

int peft_main(const PeftProgram *program, int argc, char **argv) {
    PeftError err = {{0}, 0};
    Options o;
    const char *self = argc > 0 ? argv[0] : "./run";
    if (program->version != PEFT_PROGRAM_VERSION) {
        fprintf(stderr,
                "%s: error: compiled for runtime version %d, this is %d; compile it again\n", self,
                program->version, PEFT_PROGRAM_VERSION);
        return 1;
    }
    startup_begin();
    bound_spinning(argv);
    bool ok = options_parse(&o, argc, argv, &err);
    if (ok && o.help) {
        options_help(o.verb, self);
        return 0;
    }
    if (ok && may_use_gpu(&o)) rehearsal_begin();
    if (ok) session_choose_device(&o, program);
    ok = ok && run_verb[o.verb](program, &o, &err);
    rehearsal_end();
    if (ok && fflush(stdout) != 0) ok = peft_fail(&err, "cannot write to stdout");
    if (ok || err.code == PEFT_STOPPED) return 0;
    if (err.msg[0]) fprintf(stderr, "%s: error: %s\n", self, err.msg);
    return err.code ? err.code : 1;
}
