/* See room.h. A batch fits when the plan for its own worst case does: the shuffles are drawn again
 * for every size that is tried, so what is suggested would start. */
#include "room.h"

#include <stdio.h>
#include <string.h>

static bool trains(unsigned fns) {
    return fns >> PEFT_FN_TRAIN & 1;
}

/* Bytes that training with batches of this many sequences needs; -1 with a message. */
static int64_t planned_bytes(const Session *s, unsigned fns, int32_t batch, PeftError *err) {
    int64_t train[PEFT_SYM_COUNT], eval[PEFT_SYM_COUNT];
    ProgramPlan plan = {0};
    unsigned mask = 0;
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (s->program->fn[f].nstep) mask |= (fns | 1u << PEFT_FN_START) & 1u << f;
    if (!session_worst(s, batch, train, eval, NULL, err)) return -1;
    bool ok = program_plan(s->program, mask, trains(fns) ? train : eval, eval, &plan, err);
    int64_t peak = plan.peak;
    program_plan_free(&plan);
    return ok ? peak : -1;
}

/* The largest batch, a multiple of the micro-batches, whose plan fits; 0 when none does. The plan
 * grows with the batch but for ties, so halving the range is enough. */
static int32_t largest_batch(const Session *s, unsigned fns, int64_t room) {
    int32_t parts = s->fit.accumulate, low = 0, high = s->fit.batch / parts;
    while (high - low > 1) {
        PeftError ignored = {{0}, 0};
        int32_t middle = low + (high - low) / 2;
        int64_t bytes = planned_bytes(s, fns, middle * parts, &ignored);
        if (bytes >= 0 && bytes <= room)
            low = middle;
        else
            high = middle;
    }
    return low * parts;
}

/* Ends the message of a refused plan with what to do. */
static void suggest(const Session *s, unsigned fns, int64_t room, PeftError *err) {
    size_t n = strlen(err->msg), left = sizeof err->msg - n;
    int32_t batch = largest_batch(s, fns, room);
    if (batch > 0)
        snprintf(err->msg + n, left, "; the largest that fits is --set fit.batch=%d", batch);
    else
        snprintf(err->msg + n, left, "; not even --set fit.batch=%d fits", s->fit.accumulate);
}

bool room_exec_open(Exec *x, const Session *s, unsigned fns, PeftError *err) {
    const Options *o = s->options;
    if (exec_open(x, s->program, fns, session_device(o), session_compute(o), session_threads(o),
                  trains(fns) ? s->train_sym : s->eval_sym, s->eval_sym, s->budget, err))
        return true;
    if (x->room > 0) suggest(s, fns, x->room, err);
    return false;
}

bool room_check_budget(const Session *s, unsigned fns, PeftError *err) {
    if (!s->budget) return true;
    int64_t bytes = planned_bytes(s, fns, s->fit.batch, err);
    if (bytes < 0 || exec_within(bytes, s->budget, err)) return bytes >= 0;
    suggest(s, fns, s->budget, err);
    return false;
}
