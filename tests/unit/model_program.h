/* A model's tables, made from its file as the compiler makes them. */
#ifndef PEFTC_TEST_MODEL_PROGRAM_H
#define PEFTC_TEST_MODEL_PROGRAM_H

#include <stdio.h>

#include "compiler/elaborate.h"
#include "compiler/emit/emit.h"
#include "compiler/pass.h"
#include "compiler/pass/schedule.h"

/* The graph, which the caller frees, is the program's. */
static inline Program *model_program(const char *path, const Settings *settings, bool skip_join,
                                     Sources *sources) {
    ModelInfo info;
    Diag diag;
    Schedule *sched[PEFT_FN_COUNT] = {NULL};
    diag_init(&diag, sources, stderr);
    Graph *g = elaborate_file(path, settings, &diag, &info);
    assert_non_null(g);
    PassOptions passes = {.fit = &info.fit, .log = stderr};
    passes_run(g, &passes);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        FuseOptions fuse = {0};
        int32_t n;
        if (!g->fn[fn].nout && !g->fn[fn].nupdate) continue;
        Kernel **k = fuse_function(g, (PeftFn)fn, &fuse, &n);
        sched[fn] = schedule_function(g, (PeftFn)fn, k, n);
    }
    ProgramInfo about = {
        .name = path, .source = path, .text = "", .fit = info.fit, .skip_join = skip_join};
    return program_build(g, &about, sched);
}

#endif
