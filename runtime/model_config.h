/* The JSON file beside what a run saved, so that the method's usual library can load it. */
#ifndef PEFT_MODEL_CONFIG_H
#define PEFT_MODEL_CONFIG_H

#include "error.h"
#include "peftrt.h"

/* LAYOUT_MODEL: config.json of the whole model; else adapter_config.json. base: the base folder. */
bool model_config_write(const PeftProgram *p, const char *dir, const char *base, PeftError *err);

#endif
