/* The module tree: blocks and patches become modules with parameters, each with the name its tensor
 * has in a weight file.
 *
 * Invariant: in one module every child and every parameter has a name of its own, whether the block
 * or a patch declared it; so tensor names are unique.
 */
#include "elaborate_int.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* ---- the tree ---- */

Module *module_child(const Module *m, const char *name) {
    for (int i = 0; i < m->nchild; i++)
        if (strcmp(m->child[i]->name, name) == 0) return m->child[i];
    return NULL;
}

const Param *module_param(const Module *m, const char *name) {
    for (int i = 0; i < m->nparam; i++)
        if (strcmp(m->param[i].name, name) == 0) return &m->param[i];
    return NULL;
}

const char *module_kind(const Module *m) {
    return m->nlayer ? m->layer[0].decl->name.text : NULL;
}

static void *exhausted(Elab *e, Span at, const char *what, int limit) {
    if (!e->exhausted) diag_error(e->diag, at, "this makes more than %d %s", limit, what);
    e->exhausted = true;
    return NULL;
}

static char *join_path(Elab *e, const char *path, const char *name) {
    return graph_printf(e->g, "%s%s%s", path, *path ? "." : "", name);
}

/* The caller has checked that the parent has no such name. What a module inherits from its parent
 * can be changed before parts are added. */
static Module *module_new(Elab *e, Module *parent, const char *name, Span at) {
    if (e->nmodule >= MAX_MODULES) return exhausted(e, at, "blocks", MAX_MODULES);
    if (parent->depth >= MAX_DEPTH) return exhausted(e, at, "levels of blocks", MAX_DEPTH);
    if (strlen(parent->path) + strlen(name) >= MAX_NAME)
        return exhausted(e, at, "characters in the name of a tensor", MAX_NAME);
    Module *m = graph_alloc(e->g, sizeof *m);
    *m = *parent;
    m->name = name;
    m->path = join_path(e, parent->path, name);
    m->part = graph_alloc(e->g, (size_t)(parent->npart + 1) * sizeof *m->part);
    memcpy(m->part, parent->part, (size_t)parent->npart * sizeof *m->part);
    m->part[m->npart++] = name;
    m->parent = parent;
    m->child = NULL;
    m->param = NULL;
    m->layer = NULL;
    m->nchild = m->cap_child = m->nparam = m->cap_param = m->nlayer = m->cap_layer = 0;
    m->is_repeat = false;
    m->depth++;
    m->id = e->nmodule;
    m->span = at;
    *POOL_PUSH(e->pool, parent->child, parent->nchild, parent->cap_child) = m;
    *POOL_PUSH(e->pool, e->module, e->nmodule, e->cap_module) = m;
    return m;
}

static bool is_free(Elab *e, const Module *m, Ident name) {
    const Module *child = module_child(m, name.text);
    const Param *param = module_param(m, name.text);
    if (!child && !param) return true;
    diag_error(e->diag, name.span, "`%s` is declared twice", join_path(e, m->path, name.text));
    diag_note(e->diag, child ? child->span : param->span, "the first time is here");
    return false;
}

/* The module that `attention.self` declares its last name in: names before it are made on the way.
 */
static Module *place(Elab *e, Module *m, const Name *name) {
    for (int i = 0; i + 1 < name->n; i++) {
        Ident part = name->part[i];
        Module *child = module_child(m, part.text);
        if (child && (child->nlayer || child->is_repeat)) {
            diag_error(e->diag, part.span, "`%s` is a block: what is in it is declared there",
                       part.text);
            diag_note(e->diag, child->span, "it is declared here");
            return NULL;
        }
        if (!child && !is_free(e, m, part)) return NULL;
        m = child ? child : module_new(e, m, part.text, name->span);
        if (!m) return NULL;
    }
    return is_free(e, m, name->part[name->n - 1]) ? m : NULL;
}

/* ---- arguments ---- */

static int formal_index(const Block *b, const char *name) {
    for (int i = 0; i < b->nformal; i++)
        if (strcmp(b->formal[i].name.text, name) == 0) return i;
    return -1;
}

/* The formal that the i-th argument of a call is for; -1: reported. */
static int argument_for(Scope *s, const Block *decl, const Expr *call, int i) {
    const Arg *a = &call->call.arg[i];
    Diag *d = s->e->diag;
    if (!a->name.text) {
        if (i < decl->nformal) return i;
        diag_error(d, a->value->span, "`%s` takes %d argument%s", decl->name.text, decl->nformal,
                   decl->nformal == 1 ? "" : "s");
        diag_note(d, decl->name.span, "it is declared here");
        return -1;
    }
    int k = formal_index(decl, a->name.text);
    if (k >= 0) return k;
    Nearest near = nearest_to(a->name.text);
    for (int f = 0; f < decl->nformal; f++) nearest_offer(&near, decl->formal[f].name.text);
    diag_error(d, a->name.span, "`%s` has no argument `%s`%s", decl->name.text, a->name.text,
               nearest_hint(d, &near));
    diag_note(d, decl->name.span, "it is declared here");
    return -1;
}

static bool match_args(Scope *s, const Block *decl, const Expr *call, Expr **given) {
    bool ok = true, named = false;
    for (int i = 0; i < call->call.narg; i++) {
        const Arg *a = &call->call.arg[i];
        if (named && !a->name.text) {
            diag_error(s->e->diag, a->value->span,
                       "arguments by position come before those by name");
            return false;
        }
        named |= a->name.text != NULL;
        int k = argument_for(s, decl, call, i);
        ok &= k >= 0;
        if (k < 0) continue;
        if (given[k]) {
            diag_error(s->e->diag, a->name.text ? a->name.span : a->value->span,
                       "`%s` is given twice", decl->formal[k].name.text);
            ok = false;
        }
        given[k] = a->value;
    }
    return ok;
}

/* The value of one argument: --set, then the call, then the default (which sees earlier arguments).
 */
static bool bind_arg(Scope *s, const Block *decl, int k, const Expr *given, const Expr *call,
                     const char *prefix, Env *out) {
    Ident name = decl->formal[k].name;
    const Expr *near = prefix ? overrides_find(&s->e->overrides, prefix, name.text) : NULL;
    const Expr *far = prefix ? overrides_find(&s->e->overrides, NULL, name.text) : NULL;
    const Expr *set = near ? near : far;
    Scope defaults = {.e = s->e, .env = out};
    Scope options = {.e = s->e, .configs = true};
    const Expr *x = set ? set : given ? given : decl->formal[k].value;
    if (!x) {
        diag_error(s->e->diag, call->span, "`%s` needs the argument `%s`", decl->name.text,
                   name.text);
        diag_note(s->e->diag, name.span, "it is declared here, without a default");
        return false;
    }
    Value v = eval(set ? &options : given ? s : &defaults, x);
    const Expr *config = prefix && !*prefix && v.kind == VAL_CONFIG
                             ? overrides_find(&s->e->overrides, prefix, "config")
                             : NULL;
    if (config) v = eval(&options, x = config);
    if (v.kind == VAL_ERROR) return false;
    if (v.kind == VAL_TENSOR || v.kind == VAL_RECORD) {
        diag_error(s->e->diag, x->span, "an argument of a block is a constant, not %s",
                   value_kind(v));
        return false;
    }
    env_add(s->e, out, name, v);
    return true;
}

bool bind_args(Scope *s, const Block *decl, const Expr *call, const char *prefix, Env *out) {
    Expr **given = pool_alloc(s->e->pool, (size_t)decl->nformal * sizeof *given + 1);
    if (call->kind == EX_CALL && !match_args(s, decl, call, given)) return false;
    for (int k = 0; k < decl->nformal; k++)
        if (!bind_arg(s, decl, k, given[k], call, prefix, out)) return false;
    return true;
}

/* ---- parameters ---- */

static bool contains(const char *name, const char *word) {
    size_t n = strlen(word);
    for (; *name; name++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)name[i]) == word[i]) i++;
        if (i == n) return true;
    }
    return false;
}

/* As transformers' Trainer groups them: no decay for biases and layer norms. */
static bool decays(const Module *m, const char *name) {
    const char *kind = module_kind(m);
    return !contains(name, "bias") && !contains(name, "layernorm") &&
           !(kind && contains(kind, "layer_norm"));
}

static bool eval_shape(Scope *s, const Item *it, Type *type) {
    *type = (Type){.dt = DT_F32, .rank = (uint8_t)it->rank};
    for (int i = 0; i < it->rank; i++)
        if (!eval_whole(s, it->dim[i], "a dimension", 1, INT32_MAX, &type->dim[i])) return false;
    int64_t n = type_count(*type);
    if (n <= MAX_ELEMENTS) return true;
    diag_error(s->e->diag, it->span, "`%s` has %lld elements; at most %lld are possible",
               name_str(s->e->pool, &it->name), (long long)n, (long long)MAX_ELEMENTS);
    return false;
}

/* kaiming_uniform(a) = U(-b, b), b = sqrt(6 / ((1 + a^2) fan_in)): torch's, fan_in the last
 * dimension. */
static Init finish_init(InitValue v, Type type) {
    if (!v.kaiming) return v.init;
    double fan_in = (double)type.dim[type.rank - 1];
    return (Init){PEFT_UNIFORM, __builtin_sqrt(6 / ((1 + v.init.a * v.init.a) * fan_in))};
}

static const CountUnit *new_unit(Elab *e, const char *kind, bool patch, const char *path) {
    CountUnit *u = graph_alloc(e->g, sizeof *u);
    const char *name = graph_printf(e->g, "%s", kind); /* outlives the syntax tree */
    *u = (CountUnit){name, patch ? name : NULL, path, e->nunit++};
    return u;
}

/* `home` gets the parameter; `m` is the module whose block or patch declares it. */
static int32_t new_var(Elab *e, Module *home, const Module *m, const CountUnit *unit,
                       const Item *it, Type type, Init init) {
    const char *name = join_path(e, home->path, it->name.part[it->name.n - 1].text);
    Var v = {.name = name, .type = type, .kind = VAR_PARAM, .init = init, .span = it->span};
    v.trainable = !it->is_frozen;
    v.decay = decays(m, name);
    v.fresh = m->fresh || it->is_new || it->is_shared || unit->patch;
    v.group = m->id;
    v.block = unit->kind;
    int32_t index = graph_var(e->g, v);
    size_t skip = strlen(unit->path);
    ParamInfo *p = POOL_PUSH(e->pool, e->info->param, e->info->nparam, e->cap_param);
    *p = (ParamInfo){.path = m->path, .unit_kind = unit->kind, .unit = unit->id};
    p->by_patch = unit->patch != NULL;
    p->stored = SPAN_NONE;
    p->local = name + (skip ? skip + 1 : 0);
    for (int i = 0; i < it->rank; i++)
        p->dim_text[i] = graph_printf(e->g, "%s", source_slice(e->diag->sources, it->dim[i]->span));
    return index;
}

/* A shared parameter that is there already must be the same one. */
static bool same_shared(Elab *e, const Param *have, const Item *it, Type type) {
    char a[64], b[64];
    Type before = e->g->var[have->var].type;
    if (type_equal(before, type)) return true;
    return diag_error(e->diag, it->span,
                      "the model shares one `%s`: it is %s here, and %s where it was first needed",
                      have->name, type_str(type, a), type_str(before, b));
}

static bool add_param(Scope *s, Module *m, int level, const Item *it) {
    Elab *e = s->e;
    Type type;
    if (!eval_shape(s, it, &type)) return false;
    const CountUnit *unit = m->layer[level].unit;
    Module *home = m;
    if (it->is_shared) {
        const Param *have = it->name.n == 1 ? module_param(e->root, it->name.part[0].text) : NULL;
        if (have && have->is_shared) return same_shared(e, have, it, type);
        home = e->root;
        unit = new_unit(e, unit->kind, unit->patch != NULL, "");
    }
    home = place(e, home, &it->name);
    if (!home) return false;
    Init init = {PEFT_ZEROS, 0};
    bool later = !is_init(s, it->value);
    if (!later) {
        Value v = eval(s, it->value);
        if (v.kind != VAL_INIT) return false;
        init = finish_init(v.init, type);
    }
    int32_t var = new_var(e, home, m, unit, it, type, init);
    *POOL_PUSH(e->pool, home->param, home->nparam, home->cap_param) =
        (Param){it->name.part[it->name.n - 1].text, var, it->is_shared, it->span};
    if (later)
        *POOL_PUSH(e->pool, e->pending, e->npending, e->cap_pending) = (Pending){m, level, it, var};
    return true;
}

/* ---- parts ---- */

static bool build(Elab *e, Module *m, const Block *decl, Env env, const CountUnit *unit, Span at);

/* A block in itself, at any depth, would never end. */
static bool is_recursive(Elab *e, const Module *m, const Block *decl, Span at) {
    for (const Module *up = m; up; up = up->parent)
        for (int i = 0; i < up->nlayer; i++) {
            if (up->layer[i].decl != decl) continue;
            diag_error(e->diag, at, "`%s` would contain itself", decl->name.text);
            return true;
        }
    return false;
}

/* The block that `layer(c)` calls for, with its arguments; NULL: reported. */
static const Block *called_block(Scope *s, const Expr *x, Env *args) {
    Elab *e = s->e;
    const Name *callee = x->kind == EX_CALL ? &x->call.callee : NULL;
    const Block *decl =
        callee && callee->n == 1 ? ast_find_block(e->ast, callee->part[0].text) : NULL;
    if (decl) return bind_args(s, decl, x, NULL, args) ? decl : NULL;
    Nearest near = nearest_to(callee ? callee->part[0].text : "");
    for (int i = 0; callee && i < e->ast->nblock; i++)
        nearest_offer(&near, e->ast->block[i]->name.text);
    if (callee && callee->n == 1)
        return diag_error(e->diag, callee->span, "there is no block `%s`%s", near.wrong,
                          nearest_hint(e->diag, &near));
    return diag_error(e->diag, x->span, "a block and its arguments are expected here");
}

/* Adds one block under `home`. In a patch its parameters count as the patch's. */
static bool add_block(Scope *s, Module *home, const char *name, const Block *decl, Env args,
                      const Item *it, bool fresh) {
    Elab *e = s->e;
    const CountUnit *unit = s->module->layer[s->level].unit;
    if (is_recursive(e, s->module, decl, it->value->span)) return false;
    Module *m = module_new(e, home, name, it->span);
    if (!m) return false;
    m->fresh |= fresh || unit->patch;
    m->patch = unit->patch;
    if (!unit->patch) unit = new_unit(e, decl->name.text, false, m->path);
    return build(e, m, decl, args, unit, it->value->span);
}

/* name = repeat(n, block(...)): name.0 to name.(n-1), applied one after the other. */
static bool add_repeat(Scope *s, Module *home, const char *name, const Item *it) {
    Elab *e = s->e;
    const Expr *x = it->value;
    int64_t n;
    if (x->call.narg != 2 || x->call.arg[0].name.text || x->call.arg[1].name.text)
        return diag_error(e->diag, x->span,
                          "repeat takes a number and a block: repeat(12, layer(c))");
    if (!eval_whole(s, x->call.arg[0].value, "the number of blocks", 1, MAX_MODULES, &n))
        return false;
    Env args = {0};
    const Block *decl = called_block(s, x->call.arg[1].value, &args);
    if (!decl) return false;
    Module *m = module_new(e, home, name, it->span);
    if (!m) return false;
    m->is_repeat = true;
    m->fresh |= it->is_new;
    for (int64_t i = 0; i < n; i++)
        if (!add_block(s, m, graph_printf(e->g, "%d", (int)i), decl, args, it, it->is_new))
            return false;
    return true;
}

/* A number under a name: `scale = alpha / rank`. */
static bool add_constant(Scope *s, Env *env, const Item *it) {
    Value v = eval(s, it->value);
    if (v.kind == VAL_ERROR) return false;
    if (it->name.n > 1 || it->is_new || v.kind == VAL_TENSOR) {
        diag_error(s->e->diag, it->span, "only a block can have this name; this is %s",
                   value_kind(v));
        return false;
    }
    env_add(s->e, env, it->name.part[0], v);
    return true;
}

static bool is_constant(const Expr *x) {
    return x->kind != EX_CALL || (x->call.callee.n == 1 && is_builtin(x->call.callee.part[0].text));
}

static bool add_part(Scope *s, Module *m, const Item *it) {
    Elab *e = s->e;
    const Expr *x = it->value;
    const char *callee =
        x->kind == EX_CALL && x->call.callee.n == 1 ? x->call.callee.part[0].text : "";
    bool is_block = ast_find_block(e->ast, callee) != NULL;
    if (!is_block && is_constant(x)) return add_constant(s, &m->layer[s->level].env, it);
    Module *home = place(e, m, &it->name);
    if (!home) return false;
    const char *name = it->name.part[it->name.n - 1].text;
    if (!is_block && strcmp(callee, "repeat") == 0) return add_repeat(s, home, name, it);
    Env args = {0};
    const Block *decl = called_block(s, x, &args);
    return decl && add_block(s, home, name, decl, args, it, it->is_new);
}

/* Puts a block or a patch on a module and declares what is in it. */
static bool build(Elab *e, Module *m, const Block *decl, Env env, const CountUnit *unit, Span at) {
    int level = m->nlayer;
    *POOL_PUSH(e->pool, m->layer, m->nlayer, m->cap_layer) = (Layer){decl, env, at, unit};
    bool ok = true;
    for (int i = 0; i < decl->nitem && !e->exhausted; i++) {
        const Item *it = &decl->item[i];
        Scope s = {.e = e, .module = m, .level = level, .env = &m->layer[level].env};
        if (it->is_param ? add_param(&s, m, level, it) : add_part(&s, m, it)) continue;
        if ((it->is_param || level) && *m->path) /* what arguments it was made with is the reason */
            diag_note(e->diag, at, "in `%s`, made here", m->path);
        ok = false;
    }
    return ok && !e->exhausted;
}

Module *module_root(Elab *e, const Block *decl, Env args, Span at) {
    Module *m = graph_alloc(e->g, sizeof *m);
    m->name = m->path = "";
    m->part = graph_alloc(e->g, sizeof *m->part);
    m->span = at;
    *POOL_PUSH(e->pool, e->module, e->nmodule, e->cap_module) = m;
    e->root = m;
    return build(e, m, decl, args, new_unit(e, decl->name.text, false, ""), at) ? m : NULL;
}

/* ---- patches ---- */

bool module_patch(Elab *e, Module *m, const Block *patch, const Env *args, Span at) {
    if (m->nlayer > MAX_LAYERS) return exhausted(e, at, "patches on one block", MAX_LAYERS);
    const Layer *base = &m->layer[0];
    Env env = {0};
    for (int i = 0; i < patch->non; i++)
        env_add(e, &env, patch->on_formal[i], base->env.at[i].value);
    for (int i = 0; i < args->n; i++)
        env_add(e, &env, (Ident){args->at[i].name, args->at[i].span}, args->at[i].value);
    return build(e, m, patch, env, new_unit(e, patch->name.text, true, m->path), at);
}

/* ---- declarations ---- */

static bool check_patch(Elab *e, const Block *p) {
    const Block *on = ast_find_block(e->ast, p->on.text);
    if (!on) {
        Nearest near = nearest_to(p->on.text);
        for (int i = 0; i < e->ast->nblock; i++) nearest_offer(&near, e->ast->block[i]->name.text);
        diag_error(e->diag, p->on.span, "there is no block `%s`%s", p->on.text,
                   nearest_hint(e->diag, &near));
        return false;
    }
    if (on->nformal != p->non) {
        diag_error(e->diag, p->on.span, "`%s` has %d argument%s, here are %d", on->name.text,
                   on->nformal, on->nformal == 1 ? "" : "s", p->non);
        diag_note(e->diag, on->name.span, "it is declared here");
        return false;
    }
    bool ok = true;
    for (int i = 0; i < p->non; i++)
        if (formal_index(p, p->on_formal[i].text) >= 0) {
            diag_error(e->diag, p->on_formal[i].span, "`%s` is already an argument of the patch",
                       p->on_formal[i].text);
            ok = false;
        }
    return ok;
}

bool check_blocks(Elab *e) {
    bool ok = true;
    for (int i = 0; i < e->ast->npatch; i++) ok &= check_patch(e, e->ast->patch[i]);
    for (int i = 0; i < e->ast->nblock + e->ast->npatch; i++) {
        const Block *b = i < e->ast->nblock ? e->ast->block[i] : e->ast->patch[i - e->ast->nblock];
        if (b->forward) continue;
        diag_error(e->diag, b->name.span, "`%s` does not say what it computes; write (x) -> ...",
                   b->name.text);
        ok = false;
    }
    return ok;
}
