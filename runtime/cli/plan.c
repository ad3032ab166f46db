/* plan: the memory of a run, from the data alone, before anything runs. */
#include "room.h"
#include "verbs.h"

#include "../memreport.h"

bool verb_plan(const PeftProgram *p, const Options *o, PeftError *err) {
    Session s;
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE | 1u << PEFT_FN_EVAL;
    if (!session_open(&s, p, o, o->base, err)) return false;
    bool ok = memreport_print(stdout, p, s.train_sym, s.eval_sym, o->json, err) &&
              room_check_budget(&s, fns, err);
    session_close(&s);
    return ok;
}
