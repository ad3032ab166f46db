/* Checks a JSON file against a schema, without Python: the part of JSON Schema (2020-12) that
 * comparison.schema.json uses. A keyword it does not know is an error, so a schema cannot ask for
 * more than is checked.
 *
 *   schema SCHEMA.json FILE.json     prints the first place that does not fit; exit code 0 or 1
 */
#include "../runtime/io/file.h"
#include "../runtime/io/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <regex.h>
#include <string.h>

enum { MAX_JSON = 64 << 20, MAX_DEPTH = 64 };

typedef struct Check {
    const json_t *root; /* of the schema, for $ref */
    char path[1024];    /* of the value being checked: "/full_ft/runs/0/seed" */
    int depth;
    PeftError *err;
} Check;

static bool fits(Check *c, const json_t *schema, json_t *v);

static bool misfit(Check *c, const json_t *v, const char *expected) {
    char shown[JSON_SHOWN];
    return peft_fail(c->err, "%s: expected %s, found %s", c->path[0] ? c->path : "/", expected,
                     json_show(v, shown));
}

/* Checks a member or an item, with its name on the path meanwhile. */
static bool fits_at(Check *c, const char *name, const json_t *schema, json_t *v) {
    size_t n = strlen(c->path);
    snprintf(c->path + n, sizeof c->path - n, "/%s", name);
    bool ok = fits(c, schema, v);
    c->path[n] = 0;
    return ok;
}

/* ---- keywords: each checks one value against one keyword's argument ---- */

static bool is_type(const json_t *v, const char *type) {
    if (strcmp(type, "number") == 0) return json_is_number(v);
    if (strcmp(type, "integer") == 0) return json_is_integer(v);
    if (strcmp(type, "string") == 0) return json_is_string(v);
    if (strcmp(type, "object") == 0) return json_is_object(v);
    if (strcmp(type, "array") == 0) return json_is_array(v);
    if (strcmp(type, "boolean") == 0) return json_is_boolean(v);
    return strcmp(type, "null") == 0 && json_is_null(v);
}

static bool fits_type(Check *c, const json_t *arg, json_t *v) {
    char expected[128] = "the type ";
    size_t i, at = strlen(expected);
    const json_t *one;
    if (json_is_string(arg)) {
        if (is_type(v, json_string_value(arg))) return true;
        snprintf(expected + at, sizeof expected - at, "%s", json_string_value(arg));
    }
    json_array_foreach(arg, i, one) {
        const char *type = json_string_value(one);
        if (type && is_type(v, type)) return true;
        at += (size_t)snprintf(expected + at, sizeof expected - at, "%s%s", i ? " or " : "", type);
    }
    return misfit(c, v, expected);
}

static bool fits_limit(Check *c, const json_t *arg, json_t *v, bool least) {
    char expected[64];
    double limit = json_number_value(arg), found = json_number_value(v);
    if (!json_is_number(v) || (least ? found >= limit : found <= limit)) return true;
    snprintf(expected, sizeof expected, "%s %g", least ? "at least" : "at most", limit);
    return misfit(c, v, expected);
}

static bool fits_size(Check *c, const json_t *arg, const json_t *v, size_t size, const char *what) {
    char expected[64];
    if ((json_int_t)size >= json_integer_value(arg)) return true;
    snprintf(expected, sizeof expected, "at least %lld %s", (long long)json_integer_value(arg),
             what);
    return misfit(c, v, expected);
}

static bool fits_required(Check *c, const json_t *arg, json_t *v) {
    size_t i;
    const json_t *name;
    char expected[128];
    json_array_foreach(arg, i, name) {
        if (!json_is_object(v) || json_object_get(v, json_string_value(name))) continue;
        snprintf(expected, sizeof expected, "a member %s", json_string_value(name));
        return misfit(c, v, expected);
    }
    return true;
}

static bool fits_members(Check *c, const json_t *schema, json_t *v) {
    const json_t *named = json_object_get(schema, "properties");
    json_t *others = json_object_get(schema, "additionalProperties"), *member;
    const char *name;
    if (!json_is_object(v)) return true;
    json_object_foreach(v, name, member) {
        const json_t *s = json_object_get(named, name);
        if (!s) s = others;
        if (!s || json_is_true(s)) continue;
        if (json_is_false(s))
            return peft_fail(c->err, "%s: a member %s, which the schema does not have",
                             c->path[0] ? c->path : "/", name);
        if (!fits_at(c, name, s, member)) return false;
    }
    return true;
}

static bool fits_items(Check *c, const json_t *arg, json_t *v) {
    size_t i;
    json_t *item;
    json_array_foreach(v, i, item) {
        char name[32];
        snprintf(name, sizeof name, "%zu", i);
        if (!fits_at(c, name, arg, item)) return false;
    }
    return true;
}

static bool fits_reference(Check *c, const json_t *arg, json_t *v) {
    static const char prefix[] = "#/$defs/";
    const char *to = json_string_value(arg);
    const json_t *defs = json_object_get(c->root, "$defs"), *schema = NULL;
    if (to && strncmp(to, prefix, strlen(prefix)) == 0)
        schema = json_object_get(defs, to + strlen(prefix));
    return schema ? fits(c, schema, v)
                  : peft_fail(c->err, "the schema has no %s", to ? to : "$ref");
}

/* JSON Schema's patterns are ECMA's; those used here mean the same to POSIX. */
static bool fits_pattern(Check *c, const json_t *arg, json_t *v) {
    regex_t regex;
    const char *pattern = json_string_value(arg);
    if (!json_is_string(v)) return true;
    if (!pattern || regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0)
        return peft_fail(c->err, "the schema has a pattern that this program cannot read");
    bool ok = regexec(&regex, json_string_value(v), 0, NULL, 0) == 0;
    regfree(&regex);
    return ok || misfit(c, v, pattern);
}

/* ---- all keywords of a schema ---- */

static bool is_note(const char *key) {
    static const char *const notes[] = {"$schema", "$defs", "title", "description", "properties"};
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        if (strcmp(key, notes[i]) == 0) return true;
    return false;
}

static bool fits_keyword(Check *c, const char *key, const json_t *arg, json_t *v) {
    if (is_note(key) || strcmp(key, "additionalProperties") == 0) return true; /* fits_members */
    if (strcmp(key, "type") == 0) return fits_type(c, arg, v);
    if (strcmp(key, "minimum") == 0) return fits_limit(c, arg, v, true);
    if (strcmp(key, "maximum") == 0) return fits_limit(c, arg, v, false);
    if (strcmp(key, "required") == 0) return fits_required(c, arg, v);
    if (strcmp(key, "items") == 0) return fits_items(c, arg, v);
    if (strcmp(key, "$ref") == 0) return fits_reference(c, arg, v);
    if (strcmp(key, "pattern") == 0) return fits_pattern(c, arg, v);
    if (strcmp(key, "const") == 0)
        return json_equal(arg, v) || misfit(c, v, "the schema's constant");
    if (strcmp(key, "minItems") == 0)
        return !json_is_array(v) || fits_size(c, arg, v, json_array_size(v), "items");
    if (strcmp(key, "minLength") == 0)
        return !json_is_string(v) || fits_size(c, arg, v, json_string_length(v), "bytes");
    if (strcmp(key, "minProperties") == 0)
        return !json_is_object(v) || fits_size(c, arg, v, json_object_size(v), "members");
    return peft_fail(c->err, "the schema uses the keyword %s, which this program does not know",
                     key);
}

static bool fits(Check *c, const json_t *schema, json_t *v) {
    const char *key;
    json_t *arg;
    if (c->depth == MAX_DEPTH) return peft_fail(c->err, "%s: nested too deeply", c->path);
    c->depth++;
    bool ok = fits_members(c, schema, v);
    json_object_foreach((json_t *)schema, key, arg) {
        ok = ok && fits_keyword(c, key, arg, v);
    }
    c->depth--;
    return ok;
}

static json_t *load(const char *path, PeftError *err) {
    size_t n;
    char *text = file_read(path, MAX_JSON, &n, err);
    json_t *root = text ? json_parse(text, n, path, err) : NULL;
    free(text);
    return root;
}

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    if (argc != 3) {
        fprintf(stderr, "usage: schema SCHEMA.json FILE.json\n");
        return 2;
    }
    json_t *schema = load(argv[1], &err), *file = schema ? load(argv[2], &err) : NULL;
    Check c = {.root = schema, .err = &err};
    bool ok = file && fits(&c, schema, file);
    if (!ok) fprintf(stderr, "schema: %s: %s\n", argv[2], err.msg);
    json_decref(file);
    json_decref(schema);
    return ok ? 0 : 1;
}
