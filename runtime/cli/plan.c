/* plan: the memory of a run, from the data alone, before anything runs. */
#include "session.h"
#include "verbs.h"

#include "../memreport.h"

bool verb_plan(const PeftProgram *p, const Options *o, PeftError *err) {
    Session s;
    if (!session_open(&s, p, o, o->base, err)) return false;
    int64_t budget = o->budget ? parse_bytes(o->budget, err) : 0;
    s.train_sym[PEFT_SYM_P] = s.eval_sym[PEFT_SYM_P] = session_threads(o);
    bool ok = budget >= 0 && memreport_print(stdout, p, s.train_sym, s.eval_sym, o->json, err);
    session_close(&s);
    return ok;
}
