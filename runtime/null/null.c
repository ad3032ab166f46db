/* See null.h. */
#include "null.h"
#include "../plan.h"

#include <stdlib.h>

static bool check_ref(const Exec *x, PeftFn fn, int step, int32_t ref, const int64_t *sym,
                      PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    const PeftStep *s = &f->step[step];
    int i = PEFT_REF_INDEX(ref);
    if (PEFT_REF_KIND(ref) != PEFT_REF_TEMP) return true;
    const PeftTemp *t = &f->temp[i];
    if (step < t->first || step > t->last)
        return peft_fail(err, "step %d (%s) uses %s, alive only from step %d to %d", step, s->label,
                         t->label, t->first, t->last);
    int64_t bytes = plan_temp_bytes(x->program, fn, i, sym);
    if (bytes < 0 || x->plan.temp_offset[fn][i] + bytes > x->plan.fn[fn].peak)
        return peft_fail(err, "step %d (%s): %s needs %lld bytes at %lld, past the planned %lld",
                         step, s->label, t->label, (long long)bytes,
                         (long long)x->plan.temp_offset[fn][i], (long long)x->plan.fn[fn].peak);
    return true;
}

bool null_check(const Exec *x, PeftFn fn, const int64_t sym[PEFT_SYM_COUNT], PeftError *err) {
    const PeftFunction *f = &x->program->fn[fn];
    PlanItem *item = peft_zalloc((size_t)f->ntemp, sizeof *item, err);
    bool ok = item != NULL;
    for (int i = 0; ok && i < f->ntemp; i++)
        item[i] = (PlanItem){.bytes = 1,
                             .first = f->temp[i].first,
                             .last = f->temp[i].last,
                             .offset = x->plan.temp_offset[fn][i]};
    for (int s = 0; ok && s < f->nstep; s++) {
        const PeftStep *step = &f->step[s];
        for (int k = 0; ok && k < step->narg; k++) {
            int32_t ref = step->arg[k];
            ok = check_ref(x, fn, s, ref, sym, err);
            if (ok && PEFT_REF_KIND(ref) == PEFT_REF_TEMP) {
                int64_t bytes = plan_temp_bytes(x->program, fn, PEFT_REF_INDEX(ref), sym);
                if (bytes > 0) item[PEFT_REF_INDEX(ref)].bytes = bytes;
            }
        }
        if (ok && step->workspace != PEFT_REF_NONE) {
            int64_t bytes = step_workspace_bytes(x->program, step, sym);
            ok = check_ref(x, fn, s, step->workspace, sym, err);
            if (bytes > 0) item[PEFT_REF_INDEX(step->workspace)].bytes = bytes;
        }
    }
    ok = ok && plan_check(item, f->ntemp, err);
    free(item);
    return ok;
}
