/* The --set options: each is parsed as a line of program text of its own, so that a mistake in one
 * is shown like any other.
 *
 * Nobody lists what can be set. Whoever needs a number asks here first, by its key; an option that
 * nobody asked for does not exist in this program, and the keys that were asked for are what it may
 * have meant.
 */
#include "config.h"

#include <string.h>

bool overrides_parse(Overrides *o, Ast *a, Diag *d, const Settings *s) {
    o->pool = a->pool;
    o->at = pool_alloc(a->pool, (size_t)s->nset * sizeof *o->at + 1);
    bool ok = true;
    for (int i = 0; i < s->nset; i++) {
        PeftError err = {{0}, 0};
        int32_t file = sources_add(d->sources, "--set", s->set[i], strlen(s->set[i]), &err);
        Setting *setting =
            file < 0 ? diag_error(d, SPAN_NONE, "%s", err.msg) : ast_parse_setting(a, d, file);
        ok &= setting != NULL;
        if (setting) o->at[o->n++] = (Override){name_str(a->pool, &setting->key), setting, false};
    }
    return ok;
}

static const char *full_key(Overrides *o, const char *prefix, const char *name) {
    if (!prefix || !*prefix) return name;
    size_t n = strlen(prefix);
    char *key = pool_alloc(o->pool, n + strlen(name) + 2);
    memcpy(key, prefix, n);
    key[n] = '.';
    strcpy(key + n + 1, name);
    return key;
}

static void remember(Overrides *o, const char *key) {
    for (int i = 0; i < o->nknown; i++)
        if (strcmp(o->known[i], key) == 0) return;
    o->known = pool_grow(o->pool, o->known, (size_t)o->nknown, (size_t)o->nknown + 1,
                         sizeof *o->known, &o->cap);
    o->known[o->nknown++] = key;
}

Expr *overrides_find(Overrides *o, const char *prefix, const char *name) {
    if (!o->n) return NULL;
    const char *key = full_key(o, prefix, name);
    remember(o, key);
    Expr *value = NULL;
    for (int i = 0; i < o->n; i++) {
        if (strcmp(o->at[i].key, key) != 0) continue;
        o->at[i].used = true;
        value = o->at[i].setting->value; /* the last one wins */
    }
    return value;
}

bool overrides_check(const Overrides *o, Diag *d) {
    bool ok = true;
    for (int i = 0; i < o->n; i++) {
        if (o->at[i].used) continue;
        Nearest near = nearest_to(o->at[i].key);
        for (int k = 0; k < o->nknown; k++) nearest_offer(&near, o->known[k]);
        diag_error(d, o->at[i].setting->key.span, "this program has no setting `%s`%s",
                   o->at[i].key, nearest_hint(d, &near));
        ok = false;
    }
    return ok;
}
