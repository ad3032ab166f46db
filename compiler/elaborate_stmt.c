/* The statements of a model in their order: `freeze` and `train` mark parameters, `patch` adds
 * layers to blocks, `store` chooses how parameters are kept.
 *
 * freeze and train see everything, what patches have added before them included. patch and store
 * are about the model as its block declares it: they see no block that a patch made, and store sees
 * no parameter that is absent from the base weights. */
#include "elaborate_int.h"

#include <string.h>

/* ---- reports ---- */

static void report(Elab *e, const Stmt *s, int64_t count, const char *unit) {
    *POOL_PUSH(e->pool, e->info->stmt, e->info->nstmt, e->cap_stmt) = (StmtReport){
        graph_printf(e->g, "%s", source_slice(e->diag->sources, s->span)), count, unit};
}

/* ---- freeze, train ---- */

/* The variables a path names, as marks by index. */
typedef struct Marks {
    bool *var;
    int64_t count;
} Marks;

typedef bool (*Wanted)(const Elab *e, int32_t var);

static bool any_param(const Elab *e, int32_t var) {
    (void)e;
    (void)var;
    return true;
}

static int64_t mark(const Elab *e, Marks *m, int32_t var, Wanted wanted) {
    if (!wanted(e, var)) return 0;
    m->count += !m->var[var];
    m->var[var] = true;
    return 1;
}

static int64_t mark_below(const Elab *e, Marks *marks, const Module *m, Wanted wanted) {
    int64_t found = 0;
    for (int i = 0; i < m->nparam; i++) found += mark(e, marks, m->param[i].var, wanted);
    for (int i = 0; i < m->nchild; i++) found += mark_below(e, marks, m->child[i], wanted);
    return found;
}

/* A path that names a block means all parameters in it. */
static int64_t mark_flat(const Elab *e, Marks *marks, const Flat *f, Wanted wanted) {
    int64_t found = 0;
    for (int i = 0; i < e->nmodule; i++) {
        const Module *m = e->module[i];
        if (flat_matches_module(f, m)) found += mark_below(e, marks, m, wanted);
        for (int k = 0; k < m->nparam; k++)
            if (flat_matches_param(f, m, &m->param[k]))
                found += mark(e, marks, m->param[k].var, wanted);
    }
    return found;
}

static bool mark_paths(Elab *e, const Stmt *s, Wanted wanted, const char *what, Marks *marks) {
    *marks = (Marks){pool_alloc(e->pool, (size_t)e->g->nvar + 1), 0};
    bool ok = true;
    for (int i = 0; i < s->npath; i++) {
        Flat *flat;
        int n = path_expand(e, &s->path[i], &flat);
        ok &= n > 0;
        for (int k = 0; k < n; k++) {
            if (mark_flat(e, marks, &flat[k], wanted)) continue;
            flat_unmatched(e, &flat[k], what);
            ok = false;
        }
    }
    return ok;
}

static bool run_train(Elab *e, const Stmt *s, bool trainable) {
    Marks marks;
    if (!mark_paths(e, s, any_param, "parameter", &marks)) return false;
    for (int32_t i = 0; i < e->g->nvar; i++)
        if (marks.var[i]) e->g->var[i].trainable = trainable;
    report(e, s, marks.count, "tensors");
    return true;
}

/* ---- patch ---- */

static const char *callee_name(const Expr *x) {
    const Name *n = x->kind == EX_CALL ? &x->call.callee : x->kind == EX_NAME ? &x->name : NULL;
    return n && n->n == 1 ? n->part[0].text : NULL;
}

static const Block *find_patch(Elab *e, const Expr *x) {
    const char *name = callee_name(x);
    if (!name) return diag_error(e->diag, x->span, "a patch and its arguments are expected here");
    const Block *p = ast_find_patch(e->ast, name);
    if (p) return p;
    Nearest near = nearest_to(name);
    for (int i = 0; i < e->ast->npatch; i++) nearest_offer(&near, e->ast->patch[i]->name.text);
    diag_error(e->diag, x->span, "there is no patch `%s`%s", name, nearest_hint(e->diag, &near));
    if (ast_find_block(e->ast, name))
        diag_note(e->diag, ast_find_block(e->ast, name)->name.span, "`%s` is a block", name);
    return NULL;
}

static bool is_target(const Module *m, const Block *patch) {
    return !m->patch && m->nlayer && strcmp(m->layer[0].decl->name.text, patch->on.text) == 0;
}

/* Marks the modules that the statement's paths name; false: one of them names none. */
static bool find_targets(Elab *e, const Stmt *s, const Block *patch, bool *target) {
    bool ok = true;
    for (int i = 0; i < s->npath; i++) {
        Flat *flat;
        int n = path_expand(e, &s->path[i], &flat);
        ok &= n > 0;
        for (int k = 0; k < n; k++) {
            int found = 0;
            for (int j = 0; j < e->nmodule; j++)
                if (is_target(e->module[j], patch) && flat_matches_module(&flat[k], e->module[j]))
                    found += target[j] = true;
            if (found) continue;
            flat_unmatched(e, &flat[k], graph_printf(e->g, "`%s` block", patch->on.text));
            diag_note(e->diag, patch->on.span, "`%s` applies to `%s` blocks", patch->name.text,
                      patch->on.text);
            ok = false;
        }
    }
    return ok;
}

static bool same_method(const PeftMethod *m, const Block *patch, const char *target,
                        const Env *args) {
    if (strcmp(m->patch, patch->name.text) || strcmp(m->target, target)) return false;
    for (int i = 0, k = 0; i < args->n && k < m->nparam; i++)
        if (args->at[i].value.kind == VAL_NUMBER &&
            !(m->param_value[k++] == args->at[i].value.number.value))
            return false;
    return true;
}

static bool ends_in(const char *path, const char *names) {
    size_t n = strlen(path), m = strlen(names);
    return n >= m && strcmp(path + n - m, names) == 0 && (n == m || path[n - m - 1] == '.');
}

/* What peft would call the target: as few last names of its path as no other module ends in. */
static const char *target_name(const Elab *e, const Module *m, const bool *target, int n) {
    const char *names = strrchr(m->path, '.');
    names = names ? names + 1 : m->path;
    for (int i = 0; i < n && names > m->path; i++) {
        if (target[i] || !ends_in(e->module[i]->path, names)) continue;
        names--; /* the dot before it: take one name more */
        while (names > m->path && names[-1] != '.') names--;
        i = -1;
    }
    return names;
}

/* Facts for adapter_config.json: one row per patch, arguments and name of the target. */
static void count_method(Elab *e, const Block *patch, const char *target, const Env *args) {
    for (int i = 0; i < e->info->nmethod; i++)
        if (same_method(&e->info->method[i], patch, target, args)) {
            e->info->method[i].count++;
            return;
        }
    PeftMethod *m = POOL_PUSH(e->pool, e->info->method, e->info->nmethod, e->cap_method);
    *m = (PeftMethod){.patch = patch->name.text, .target = target, .count = 1};
    m->patch = graph_printf(e->g, "%s", patch->name.text);
    m->target = graph_printf(e->g, "%s", target);
    int room = sizeof m->param_name / sizeof *m->param_name;
    for (int i = 0; i < args->n && m->nparam < room; i++) {
        if (args->at[i].value.kind != VAL_NUMBER) continue;
        m->param_name[m->nparam] = graph_printf(e->g, "%s", args->at[i].name);
        m->param_value[m->nparam++] = args->at[i].value.number.value;
    }
}

static bool run_patch(Elab *e, const Stmt *s) {
    const Block *patch = find_patch(e, s->with);
    if (!patch) return false;
    Env args = {0};
    Scope scope = {.e = e, .configs = true};
    int n = e->nmodule; /* patching makes more */
    bool *target = pool_alloc(e->pool, (size_t)n);
    bool ok = bind_args(&scope, patch, s->with, patch->name.text, &args);
    ok &= find_targets(e, s, patch, target);
    if (!ok) return false;
    int64_t count = 0;
    for (int i = 0; i < n; i++) {
        if (!target[i]) continue;
        if (!module_patch(e, e->module[i], patch, &args, s->span)) {
            e->broken = true;
            return false;
        }
        count_method(e, patch, target_name(e, e->module[i], target, n), &args);
        count++;
    }
    report(e, s, count, "blocks");
    return true;
}

/* ---- store ---- */

static bool is_base_matrix(const Elab *e, int32_t var) {
    const Var *v = &e->g->var[var];
    return !v->fresh && v->type.rank == 2 && v->type.dim[0] > 1 && v->type.dim[1] > 1;
}

static bool eval_nf4(Elab *e, const Expr *x, DType *dt) {
    Scope s = {.e = e};
    int64_t block = 64, twice = 1;
    for (int i = 0; x->kind == EX_CALL && i < x->call.narg; i++) {
        const Arg *a = &x->call.arg[i];
        const char *name = a->name.text ? a->name.text : "";
        if (strcmp(name, "block") == 0) {
            if (!eval_whole(&s, a->value, "the block", 1, INT32_MAX, &block)) return false;
        } else if (strcmp(name, "double_quant") == 0) {
            if (!eval_whole(&s, a->value, "double_quant", 0, 1, &twice)) return false;
        } else {
            Nearest near = nearest_to(name);
            nearest_offer(&near, "block");
            nearest_offer(&near, "double_quant");
            return diag_error(e->diag, a->name.text ? a->name.span : a->value->span,
                              "nf4 takes block = 64 and double_quant = true%s",
                              nearest_hint(e->diag, &near));
        }
        if (block != 64)
            return diag_error(e->diag, a->value->span, "nf4 has blocks of 64, not of %lld",
                              (long long)block);
    }
    *dt = twice ? DT_NF4 : DT_NF4_PLAIN;
    return true;
}

static bool eval_format(Elab *e, const Expr *x, DType *dt) {
    const char *name = callee_name(x);
    if (name && strcmp(name, "nf4") == 0) return eval_nf4(e, x, dt);
    *dt = DT_F32;
    if (name && strcmp(name, "f32") == 0 && x->kind == EX_NAME) return true;
    return diag_error(e->diag, x->span, "a parameter is stored as `f32` or `nf4`");
}

static bool run_store(Elab *e, const Stmt *s) {
    DType dt = DT_F32;
    Marks marks;
    bool ok = eval_format(e, s->with, &dt);
    ok &= mark_paths(e, s, is_base_matrix, "matrix of the base weights", &marks);
    if (!ok) return false;
    for (int32_t i = 0; i < e->g->nvar; i++) {
        if (!marks.var[i]) continue;
        e->g->var[i].type.dt = dt;
        e->info->param[i].stored = s->span;
    }
    report(e, s, marks.count, "tensors");
    return true;
}

/* Training may come after storing, so this is checked at the end. One message for each statement.
 */
bool check_stores(Elab *e) {
    Span last = SPAN_NONE;
    for (int32_t i = 0; i < e->g->nvar; i++) {
        const Var *v = &e->g->var[i];
        Span stored = e->info->param[i].stored;
        if (!v->trainable || v->type.dt == DT_F32) continue;
        if (stored.file != last.file || stored.begin != last.begin)
            diag_error(e->diag, stored,
                       "`%s` is trainable: only frozen parameters are stored as nf4", v->name);
        last = stored;
    }
    return last.file < 0;
}

bool run_stmt(Elab *e, const Stmt *s) {
    switch (s->kind) {
    case ST_FREEZE: return run_train(e, s, false);
    case ST_TRAIN: return run_train(e, s, true);
    case ST_PATCH: return run_patch(e, s);
    case ST_STORE: return run_store(e, s);
    case ST_FIT: return run_fit(e, s);
    }
    return false;
}
