/* The verbs of a compiled program. Each returns true, or false with one line in err (and the exit
 * code it asks for). */
#ifndef PEFT_CLI_VERBS_H
#define PEFT_CLI_VERBS_H

#include "options.h"

bool verb_about(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_train(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_eval(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_predict(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_plan(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_profile(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_replay(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_tokenize(const PeftProgram *p, const Options *o, PeftError *err);
bool verb_devices(const PeftProgram *p, const Options *o, PeftError *err);

#endif
