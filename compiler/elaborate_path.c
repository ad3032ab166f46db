/* Paths: `**.attention.self.{query,value}`, `linear(bert.**)`. Alternatives are expanded first, so
 * that what is matched is a flat row of names, `*` and `**`; each alternative has to match
 * something by itself, or a misspelt one would go unnoticed.
 */
#include "elaborate_int.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_FLATS = 64, MAX_PARTS = 64 };

/* ---- expansion ---- */

/* What follows the parts taken so far: a pattern in braces, then what stands behind the braces. */
typedef struct Rest {
    const Pattern *p;
    int from;
    const struct Rest *next;
} Rest;

typedef struct Expansion {
    Elab *e;
    const Path *path;
    const Pat *part[MAX_PARTS];
    Flat *flat;
    int n;
    bool too_long;
} Expansion;

static void finish_flat(Expansion *x, int nparts) {
    if (x->n++ >= MAX_FLATS) return;
    Flat *f = &x->flat[x->n - 1];
    *f = (Flat){.path = x->path, .n = nparts};
    f->part = pool_alloc(x->e->pool, (size_t)nparts * sizeof *f->part);
    memcpy(f->part, x->part, (size_t)nparts * sizeof *f->part);
}

static void expand(Expansion *x, int nparts, const Rest *rest) {
    while (rest && rest->from == rest->p->n) rest = rest->next;
    if (!rest) {
        finish_flat(x, nparts);
        return;
    }
    const Pat *part = &rest->p->part[rest->from];
    Rest after = {rest->p, rest->from + 1, rest->next};
    if (part->kind != PAT_ALT) {
        x->too_long |= nparts == MAX_PARTS;
        if (x->too_long) return;
        x->part[nparts] = part;
        expand(x, nparts + 1, &after);
        return;
    }
    for (int i = 0; i < part->nalt && x->n <= MAX_FLATS && !x->too_long; i++)
        expand(x, nparts, &(Rest){&part->alt[i], 0, &after});
}

static bool is_known_kind(Elab *e, const Path *p) {
    if (!p->kind.text || ast_find_block(e->ast, p->kind.text)) return true;
    Nearest near = nearest_to(p->kind.text);
    for (int i = 0; i < e->ast->nblock; i++) nearest_offer(&near, e->ast->block[i]->name.text);
    return diag_error(e->diag, p->kind.span, "there is no block `%s`%s", p->kind.text,
                      nearest_hint(e->diag, &near));
}

int path_expand(Elab *e, const Path *p, Flat **out) {
    if (!is_known_kind(e, p)) return 0;
    Expansion x = {.e = e, .path = p};
    *out = x.flat = pool_alloc(e->pool, MAX_FLATS * sizeof *x.flat);
    expand(&x, 0, &(Rest){&p->pattern, 0, NULL});
    if (x.too_long) diag_error(e->diag, p->span, "this path has more than %d names", MAX_PARTS);
    if (x.n > MAX_FLATS)
        diag_error(e->diag, p->span, "this path has more than %d alternatives", MAX_FLATS);
    return x.too_long || x.n > MAX_FLATS ? 0 : x.n;
}

/* ---- matching ---- */

static bool matches_one(const Pat *p, const char *name) {
    if (p->kind == PAT_ANY) return true;
    if (p->kind == PAT_NAME) return strcmp(p->name.text, name) == 0;
    char *end;
    long long n = strtoll(name, &end, 10); /* PAT_RANGE */
    return *name && !*end && n >= p->low && n <= p->high;
}

/* As a shell matches `*` in a file name: on a mismatch the last `**` takes one name more. */
static bool matches(const Flat *f, const char *const *name, int n) {
    int at = 0, i = 0, retry = -1, taken = 0;
    while (i < n) {
        if (at < f->n && f->part[at]->kind == PAT_DEEP) {
            retry = at++;
            taken = i;
        } else if (at < f->n && matches_one(f->part[at], name[i])) {
            at++;
            i++;
        } else if (retry >= 0) {
            at = retry + 1;
            i = ++taken;
        } else {
            return false;
        }
    }
    while (at < f->n && f->part[at]->kind == PAT_DEEP) at++;
    return at == f->n;
}

static bool has_kind(const Flat *f, const Module *m) {
    const char *wanted = f->path->kind.text, *kind = module_kind(m);
    return !wanted || (kind && strcmp(kind, wanted) == 0);
}

bool flat_matches_module(const Flat *f, const Module *m) {
    return has_kind(f, m) && matches(f, m->part, m->npart);
}

bool flat_matches_param(const Flat *f, const Module *m, const Param *param) {
    const char *name[MAX_DEPTH + 2];
    if (!has_kind(f, m)) return false;
    memcpy(name, m->part, (size_t)m->npart * sizeof *name);
    name[m->npart] = param->name;
    return matches(f, name, m->npart + 1);
}

/* ---- a path that matches nothing ---- */

/* Whether it finds anything at all in the tree, of whatever kind. */
static bool finds(const Elab *e, const Pat *const *part, int n) {
    const Path any = {0};
    const Flat f = {.part = (const Pat **)part, .n = n, .path = &any};
    for (int i = 0; i < e->nmodule; i++) {
        const Module *m = e->module[i];
        if (flat_matches_module(&f, m)) return true;
        for (int k = 0; k < m->nparam; k++)
            if (flat_matches_param(&f, m, &m->param[k])) return true;
    }
    return false;
}

/* The name in the tree nearest to one that stands in the path; NULL when that name exists. */
static const char *nearest_part(const Elab *e, const char *wrong) {
    Nearest near = nearest_to(wrong);
    for (int i = 0; i < e->nmodule; i++) {
        const Module *m = e->module[i];
        if (strcmp(m->name, wrong) == 0) return NULL;
        nearest_offer(&near, m->name);
        for (int k = 0; k < m->nparam; k++) {
            if (strcmp(m->param[k].name, wrong) == 0) return NULL;
            nearest_offer(&near, m->param[k].name);
        }
    }
    return near.best;
}

/* Reports an unknown name when the nearest known one in its place makes the path match. */
static bool offer_name(Elab *e, const Flat *f, const char *text, const char *wanted) {
    for (int i = 0; i < f->n; i++) {
        const Pat *p = f->part[i];
        const char *right = p->kind == PAT_NAME ? nearest_part(e, p->name.text) : NULL;
        if (!right) continue;
        Pat fixed = {.kind = PAT_NAME, .name = {right, p->name.span}};
        const Pat *part[MAX_PARTS];
        memcpy(part, f->part, (size_t)f->n * sizeof *part);
        part[i] = &fixed;
        if (!finds(e, part, f->n)) continue;
        diag_error(e->diag, p->name.span,
                   "`%s` matches no %s: nothing is called `%s`; did you mean `%s`?", text, wanted,
                   p->name.text, right);
        return true;
    }
    return false;
}

void flat_unmatched(Elab *e, const Flat *f, const char *wanted) {
    const Path *path = f->path;
    const char *text = source_slice(e->diag->sources, path->span);
    if (finds(e, f->part, f->n)) {
        diag_error(e->diag, path->span, "`%s` matches no %s", text, wanted);
        return;
    }
    if (offer_name(e, f, text, wanted)) return;
    for (int i = 0; i < f->n; i++) { /* a name that is nowhere is the reason */
        const Pat *p = f->part[i];
        if (p->kind != PAT_NAME || finds(e, (const Pat *[]){&(Pat){.kind = PAT_DEEP}, p}, 2))
            continue;
        diag_error(e->diag, p->name.span, "`%s` matches no %s: nothing is called `%s`", text,
                   wanted, p->name.text);
        return;
    }
    const Pat *deep[MAX_PARTS + 1] = {&(Pat){.kind = PAT_DEEP}};
    memcpy(deep + 1, f->part, (size_t)f->n * sizeof *deep);
    bool below = f->part[0]->kind != PAT_DEEP && finds(e, deep, f->n + 1);
    if (below)
        diag_error(e->diag, path->span, "`%s` matches no %s from the top; did you mean `**.%s`?",
                   text, wanted, source_slice(e->diag->sources, path->pattern.span));
    else
        diag_error(e->diag, path->span, "`%s` matches no %s", text, wanted);
}
