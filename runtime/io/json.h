/* The few things the readers of JSON files share on top of jansson: parsing with an error that
 * names the file and line, and showing a value inside a one-line message. Text that comes from a
 * file never reaches a message unescaped. */
#ifndef PEFT_IO_JSON_H
#define PEFT_IO_JSON_H

#include <jansson.h>

#include "../error.h"

/* Parses n bytes as one JSON object (duplicate keys refused); `name` is for messages. */
json_t *json_parse(const char *text, size_t n, const char *name, PeftError *err);

/* "a string", "an integer", ... as a noun phrase; "nothing" for NULL. */
const char *json_kind(const json_t *value);

/* Room for a value shown in a message. */
enum { JSON_SHOWN = 64 };

/* Writes the value as escaped ASCII JSON, cut short with "..." when it is long. Returns buf. */
const char *json_show(const json_t *value, char buf[JSON_SHOWN]);

#endif
