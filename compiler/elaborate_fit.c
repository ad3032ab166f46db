/* Numbers a program is run with: the `fit` statement and configs, each open to --set.
 *
 * Every setting of `fit` is a row of one table, used by the statement, by --set and by suggestions.
 * A config is evaluated in the order of its fields with all replacements in place, so that a field
 * computed from another follows it.
 */
#include "elaborate_int.h"

#include <math.h>
#include <string.h>

/* ---- fit ---- */

void fit_defaults(PeftFit *f) {
    *f = (PeftFit){.epochs = 3, .batch = 32, .accumulate = 1, .lr = 5e-5, .clip_norm = 1};
    f->beta1 = 0.9;
    f->beta2 = 0.999;
    f->eps = 1e-8;
    f->warmup_steps = -1;
    f->seed = 42;
}

static bool set_count(Scope *s, const Expr *x, const char *what, int32_t *out) {
    int64_t n;
    if (!eval_whole(s, x, what, 1, 1000000, &n)) return false;
    *out = (int32_t)n;
    return true;
}

static bool set_number(Scope *s, const Expr *x, const char *what, double below, double *out) {
    double v;
    if (!eval_number(s, x, what, &v)) return false;
    if (!(v >= 0 && v < below))
        return diag_error(s->e->diag, x->span, "%s must be at least 0 and less than %g, found %g",
                          what, below, v);
    *out = v;
    return true;
}

static bool is_word(const Expr *x, const char *word) {
    return x->kind == EX_NAME && x->name.n == 1 && strcmp(x->name.part[0].text, word) == 0;
}

static bool set_epochs(Scope *s, const Expr *x, PeftFit *f) {
    return set_count(s, x, "epochs", &f->epochs);
}

static bool set_batch(Scope *s, const Expr *x, PeftFit *f) {
    return set_count(s, x, "batch", &f->batch);
}

static bool set_accumulate(Scope *s, const Expr *x, PeftFit *f) {
    s->e->accumulate = x;
    return set_count(s, x, "accumulate", &f->accumulate);
}

static bool set_lr(Scope *s, const Expr *x, PeftFit *f) {
    return set_number(s, x, "lr", 1000, &f->lr);
}

static bool set_decay(Scope *s, const Expr *x, PeftFit *f) {
    return set_number(s, x, "weight_decay", 1000, &f->weight_decay);
}

static bool set_clip(Scope *s, const Expr *x, PeftFit *f) {
    if (is_word(x, "none")) {
        f->clip_norm = INFINITY;
        return true;
    }
    return set_number(s, x, "clip", 1e30, &f->clip_norm);
}

static bool set_seed(Scope *s, const Expr *x, PeftFit *f) {
    int64_t seed;
    if (!eval_whole(s, x, "seed", 0, (int64_t)1 << 53, &seed)) return false;
    f->seed = (uint64_t)seed;
    return true;
}

static bool set_warmup(Scope *s, const Expr *x, PeftFit *f) {
    Value v = eval(s, x);
    if (v.kind == VAL_ERROR) return false;
    double n = v.kind == VAL_NUMBER ? v.number.value : -1;
    Unit unit = v.kind == VAL_NUMBER ? v.number.unit : UNIT_NONE;
    bool plain = unit == UNIT_NONE && n != 0;
    if (plain || (unit == UNIT_STEPS ? n != floor(n) || n > 1e9 : !(n >= 0 && n <= 1)))
        return diag_error(s->e->diag, x->span,
                          "warmup is a share or a number of steps: 10%%, 100 steps");
    f->warmup_steps = unit == UNIT_STEPS ? (int64_t)n : -1;
    f->warmup_ratio = unit == UNIT_STEPS ? 0 : n;
    return true;
}

static bool set_adamw(Scope *s, const Arg *a, PeftFit *f) {
    static const char *const names[] = {"beta1", "beta2", "eps"};
    double *const to[] = {&f->beta1, &f->beta2, &f->eps};
    Nearest near = nearest_to(a->name.text ? a->name.text : "");
    for (int i = 0; i < 3; i++) {
        if (a->name.text && strcmp(a->name.text, names[i]) == 0)
            return set_number(s, a->value, names[i], 1, to[i]);
        nearest_offer(&near, names[i]);
    }
    return diag_error(s->e->diag, a->name.text ? a->name.span : a->value->span,
                      "adamw takes beta1, beta2 and eps by name%s",
                      nearest_hint(s->e->diag, &near));
}

static bool set_optimizer(Scope *s, const Expr *x, PeftFit *f) {
    if (is_word(x, "adamw")) return true;
    bool call = x->kind == EX_CALL && x->call.callee.n == 1 &&
                strcmp(x->call.callee.part[0].text, "adamw") == 0;
    if (!call) return diag_error(s->e->diag, x->span, "the optimizer is `adamw`");
    bool ok = true;
    for (int i = 0; i < x->call.narg; i++) ok &= set_adamw(s, &x->call.arg[i], f);
    return ok;
}

static const struct FitField {
    const char *name;
    bool (*set)(Scope *s, const Expr *x, PeftFit *f);
} fit_field[] = {
    {"epochs", set_epochs}, {"batch", set_batch},   {"accumulate", set_accumulate},
    {"lr", set_lr},         {"warmup", set_warmup}, {"optimizer", set_optimizer},
    {"clip", set_clip},     {"seed", set_seed},     {"weight_decay", set_decay},
};
enum { NFIT = sizeof fit_field / sizeof *fit_field };

static bool set_field(Elab *e, const Setting *set) {
    const char *name = set->key.part[0].text;
    Scope s = {.e = e};
    Nearest near = nearest_to(name);
    for (int i = 0; i < NFIT; i++) {
        if (strcmp(fit_field[i].name, name) == 0)
            return fit_field[i].set(&s, set->value, &e->info->fit);
        nearest_offer(&near, fit_field[i].name);
    }
    return diag_error(e->diag, set->key.span, "`fit` has no setting `%s`%s", name,
                      nearest_hint(e->diag, &near));
}

bool run_fit(Elab *e, const Stmt *st) {
    bool ok = true;
    for (int i = 0; i < st->nfit; i++) {
        for (int k = 0; k < i; k++)
            if (strcmp(st->fit[i].key.part[0].text, st->fit[k].key.part[0].text) == 0) {
                diag_error(e->diag, st->fit[i].key.span, "`%s` is set twice",
                           st->fit[i].key.part[0].text);
                ok = false;
            }
        ok &= set_field(e, &st->fit[i]);
    }
    return ok;
}

bool finish_fit(Elab *e) {
    Scope s = {.e = e};
    PeftFit *f = &e->info->fit;
    bool ok = true;
    for (int i = 0; i < NFIT; i++) {
        const Expr *x = overrides_find(&e->overrides, "fit", fit_field[i].name);
        if (x) ok &= fit_field[i].set(&s, x, f);
    }
    if (ok && f->accumulate > f->batch)
        return diag_error(e->diag, e->accumulate->span,
                          "a batch of %d cannot be accumulated in %d parts", f->batch,
                          f->accumulate);
    return ok;
}

/* ---- configs ---- */

static const BaseField *base_field(const Settings *s, const char *name) {
    for (int i = 0; i < s->nbase; i++)
        if (strcmp(s->base[i].name, name) == 0) return &s->base[i];
    return NULL;
}

/* The fields of a config and those of the config it is made from, where it does not replace them.
 */
typedef struct Fields {
    const Setting **at;
    int n, cap;
} Fields;

static bool add_field(Elab *e, Fields *f, int inherited, const Setting *set) {
    const char *key = set->key.part[0].text;
    for (int i = 0; i < f->n; i++) {
        if (strcmp(f->at[i]->key.part[0].text, key) != 0) continue;
        if (i >= inherited) return diag_error(e->diag, set->key.span, "`%s` is set twice", key);
        f->at[i] = set;
        return true;
    }
    *POOL_PUSH(e->pool, f->at, f->n, f->cap) = set;
    return true;
}

static bool collect_fields(Elab *e, Fields *f, const Config *decl, int depth) {
    if (depth > MAX_DEPTH)
        return diag_error(e->diag, decl->base.span, "config `%s` is made from itself",
                          decl->name.text);
    if (decl->base.text) {
        const Config *base = ast_find_config(e->ast, decl->base.text);
        if (!base) return unknown_config(e, decl->base);
        if (!collect_fields(e, f, base, depth + 1)) return false;
    }
    bool ok = true;
    int inherited = f->n;
    for (int i = 0; i < decl->nfield; i++) ok &= add_field(e, f, inherited, &decl->field[i]);
    return ok;
}

/* A field's expression may use the fields before it: replacing one changes what follows from it. */
static bool eval_field(Elab *e, ConfigValue *c, Env *env, const Setting *set) {
    Ident key = set->key.part[0];
    const Expr *x = overrides_find(&e->overrides, "config", key.text);
    const BaseField *base = x ? NULL : base_field(e->settings, key.text);
    Scope s = {.e = e, .env = x ? NULL : env};
    double v = base ? base->value : 0;
    if (!base && !eval_number(&s, x ? x : set->value, "a field of a config", &v)) return false;
    c->from_base |= base != NULL;
    env_add(e, env, key, value_number(v));
    return true;
}

bool unknown_config(Elab *e, Ident name) {
    Nearest near = nearest_to(name.text);
    for (int i = 0; i < e->ast->nconfig; i++) nearest_offer(&near, e->ast->config[i]->name.text);
    return diag_error(e->diag, name.span, "there is no config `%s`%s", name.text,
                      nearest_hint(e->diag, &near));
}

ConfigValue *config_value(Elab *e, const Config *decl) {
    ConfigValue *c = pool_alloc(e->pool, sizeof *c);
    Env env = {0};
    Fields f = {0};
    bool ok = collect_fields(e, &f, decl, 0);
    for (int i = 0; ok && i < f.n; i++) ok &= eval_field(e, c, &env, f.at[i]);
    *c = (ConfigValue){decl, env.at, env.n, c->from_base};
    return ok ? c : NULL;
}
