/* plan: the memory of a run, from the data alone, before anything runs. */
#include "session.h"
#include "verbs.h"

#include "../memreport.h"

bool verb_plan(const PeftProgram *p, const Options *o, PeftError *err) {
    Session s;
    Exec x;
    unsigned fns = 1u << PEFT_FN_TRAIN | 1u << PEFT_FN_UPDATE | 1u << PEFT_FN_EVAL;
    int64_t budget = o->budget ? parse_bytes(o->budget, err) : 0;
    int threads = session_threads(o);
    if (budget < 0 || !session_open(&s, p, o, o->base, err)) return false;
    s.train_sym[PEFT_SYM_P] = s.eval_sym[PEFT_SYM_P] = threads;
    bool ok = memreport_print(stdout, p, s.train_sym, s.eval_sym, o->json, err);
    if (ok && budget) { /* reserving touches no memory: it answers whether train would start */
        ok = exec_open(&x, p, fns, DEVICE_CPU, COMPUTE_FP32, threads, s.train_sym, s.eval_sym,
                       budget, err);
        if (ok) exec_close(&x);
    }
    session_close(&s);
    return ok;
}
