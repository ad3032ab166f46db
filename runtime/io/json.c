/* Shared JSON handling, see json.h. jansson bounds nesting itself (2048 levels), so hostile input
 * cannot exhaust the stack. */
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* jansson quotes the offending token, which may hold control characters of a hostile file. */
static void make_printable(char *s) {
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || (unsigned char)*s >= 0x7f) *s = '?';
}

json_t *json_parse(const char *text, size_t n, const char *name, PeftError *err) {
    json_error_t e;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!root) {
        make_printable(e.text);
        peft_fail(err, "%s is not valid JSON: line %d, column %d: %s", name, e.line, e.column,
                  e.text);
        return NULL;
    }
    if (json_is_object(root)) return root;
    peft_fail(err, "%s: expected a JSON object, found %s", name, json_kind(root));
    json_decref(root);
    return NULL;
}

const char *json_kind(const json_t *value) {
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a real number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: return "null";
    }
    return "something unknown";
}

const char *json_show(const json_t *value, char buf[JSON_SHOWN]) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT);
    bool cut = text && strlen(text) > JSON_SHOWN - 4;
    snprintf(buf, JSON_SHOWN, "%.*s%s", JSON_SHOWN - 4, text ? text : json_kind(value),
             cut ? "..." : "");
    free(text);
    make_printable(buf);
    return buf;
}
