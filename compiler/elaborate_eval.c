/* Expressions: constants are folded to numbers, everything else becomes nodes, each with the span
 * of the text it comes from.
 *
 * Names are looked up innermost first: inputs and assigned names, arguments of the block, its parts
 * and parameters, parameters shared by the model. */
#include "elaborate_int.h"

#include <math.h>
#include <string.h>

const Value value_error = {.kind = VAL_ERROR};

Value value_number(double v) {
    return (Value){.kind = VAL_NUMBER, .number = {v, UNIT_NONE}};
}

Value value_node(Node *n) {
    return n ? (Value){.kind = VAL_TENSOR, .node = n} : value_error;
}

const char *value_kind(Value v) {
    static const char *const names[] = {"an error",         "a number", "a config",
                                        "an initial value", "a tensor", "a group of inputs"};
    return names[v.kind];
}

void env_add(Elab *e, Env *env, Ident name, Value v) {
    *POOL_PUSH(e->pool, env->at, env->n, env->cap) = (Binding){name.text, v, name.span};
}

const Binding *env_find(const Env *env, const char *name) {
    for (int i = env ? env->n - 1 : -1; i >= 0; i--) /* the last assignment counts */
        if (strcmp(env->at[i].name, name) == 0) return &env->at[i];
    return NULL;
}

/* ---- nodes ---- */

void note_context(const Scope *s) {
    if (!s->caller || !s->module) return;
    const char *kind =
        s->level ? s->module->layer[s->level].decl->name.text : module_kind(s->module);
    diag_note(s->e->diag, s->call, "in `%s` (%s), applied here", s->module->path, kind);
}

/* Where the parameter behind an operand is declared, seen through views. */
static void note_param(Scope *s, const Node *n) {
    while (n->nin == 1 && (n->op == OP_DEQUANT || n->op == OP_TRANSPOSE || n->op == OP_RESHAPE))
        n = n->in[0];
    if (n->op != OP_VAR) return;
    char t[64];
    const Var *v = &s->e->g->var[n->attr.leaf.index];
    diag_note(s->e->diag, v->span, "`%s` is %s, declared here", v->name, type_str(v->type, t));
}

/* For a product that does not fit: whether it would with the right operand the other way. */
static const char *product_hint(OpCode op, Attr attr, Node *const *in) {
    if (op != OP_MATMUL || in[0]->type.rank != 2 || in[1]->type.rank != 2) return "";
    bool tb = attr.matmul.trans_b;
    int64_t inner = in[0]->type.dim[!attr.matmul.trans_a], other = in[1]->type.dim[!tb];
    if (inner != other) return "";
    return tb ? "; without the ' it would fit" : "; with a ' on the right operand it would fit";
}

Node *trace(Scope *s, const Expr *at, OpCode op, Attr attr, Node *const *in, int nin) {
    Elab *e = s->e;
    char why[256] = "";
    Node *n = e->g->n < MAX_NODES ? graph_try(e->g, op, attr, in, nin, at->span, why) : NULL;
    if (n) return n;
    if (e->g->n >= MAX_NODES) {
        if (!e->exhausted)
            diag_error(e->diag, at->span, "the model has more than %d nodes", MAX_NODES);
        e->exhausted = true;
        return NULL;
    }
    diag_error_caret(e->diag, at->span, at->caret, "%s: %s%s", op_info[op].name, why,
                     product_hint(op, attr, in));
    for (int i = 0; i < nin; i++) note_param(s, in[i]);
    note_context(s);
    return NULL;
}

Attr no_attr(void) {
    Attr a;
    memset(&a, 0, sizeof a);
    return a;
}

static Value var_value(Scope *s, int32_t var) {
    Graph *g = s->e->g;
    Origin old = graph_set_origin(g, (Origin){g->var[var].span, NULL});
    Node *n = nd_var(g, var);
    if (g->var[var].type.dt != DT_F32) n = nd1(g, OP_DEQUANT, n);
    graph_set_origin(g, old);
    return value_node(n);
}

/* ---- names ---- */

static const struct {
    Record record;
    const char *name;
    PeftInputId id;
} record_field[] = {
    {RECORD_TEXT, "tokens", PEFT_IN_tokens},
    {RECORD_TEXT, "token_types", PEFT_IN_token_types},
    {RECORD_TEXT, "positions", PEFT_IN_positions},
    {RECORD_MASKED, "positions", PEFT_IN_masked_positions},
    {RECORD_MASKED, "ids", PEFT_IN_masked_ids},
};
enum { NRECORD_FIELD = sizeof record_field / sizeof *record_field };

static Value no_field(Scope *s, const Name *n, int i, Nearest *near, const ConfigValue *config) {
    Ident part = n->part[i];
    diag_error(s->e->diag, part.span, "`%s` has no `%s`%s", n->part[i - 1].text, part.text,
               nearest_hint(s->e->diag, near));
    if (config) diag_note(s->e->diag, config->decl->name.span, "the config is declared here");
    return value_error;
}

/* v.part: a field of a config or of a group of inputs. */
static Value field(Scope *s, Value v, const Name *n, int i) {
    Ident part = n->part[i];
    Nearest near = nearest_to(part.text);
    if (v.kind == VAL_CONFIG) {
        for (int k = 0; k < v.config->nfield; k++) {
            if (strcmp(v.config->field[k].name, part.text) == 0) return v.config->field[k].value;
            nearest_offer(&near, v.config->field[k].name);
        }
        return no_field(s, n, i, &near, v.config);
    }
    if (v.kind == VAL_RECORD) {
        for (int k = 0; k < NRECORD_FIELD; k++) {
            if (record_field[k].record != v.record) continue;
            if (strcmp(record_field[k].name, part.text) == 0)
                return value_node(nd_input(s->e->g, record_field[k].id));
            nearest_offer(&near, record_field[k].name);
        }
        return no_field(s, n, i, &near, NULL);
    }
    diag_error(s->e->diag, part.span, "`%s` is %s: it has no `%s`", n->part[i - 1].text,
               value_kind(v), part.text);
    return value_error;
}

static Value param_value(Scope *s, const Name *n, int i, const Param *p) {
    if (!s->tracing) {
        diag_error(s->e->diag, n->span, "`%s` is a parameter; a constant is needed here", p->name);
        diag_note(s->e->diag, p->span, "it is declared here");
        return value_error;
    }
    if (i + 1 < n->n) {
        diag_error(s->e->diag, n->part[i + 1].span, "`%s` is a parameter: it has no `%s`", p->name,
                   n->part[i + 1].text);
        return value_error;
    }
    return var_value(s, p->var);
}

static void offer_names(const Scope *s, Nearest *near) {
    for (int i = 0; i < s->local.n; i++) nearest_offer(near, s->local.at[i].name);
    for (int i = 0; s->env && i < s->env->n; i++) nearest_offer(near, s->env->at[i].name);
    for (int i = 0; s->configs && i < s->e->ast->nconfig; i++)
        nearest_offer(near, s->e->ast->config[i]->name.text);
}

static void offer_module(const Module *m, Nearest *near) {
    for (int i = 0; m && i < m->nparam; i++) nearest_offer(near, m->param[i].name);
    for (int i = 0; m && i < m->nchild; i++) nearest_offer(near, m->child[i]->name);
}

static Value unknown(Scope *s, Ident part, const Module *in, const char *what) {
    Nearest near = nearest_to(part.text);
    if (in == s->module) offer_names(s, &near);
    offer_module(in, &near);
    if (in && in != s->module)
        diag_error(s->e->diag, part.span, "`%s` has no %s `%s`%s", in->path, what, part.text,
                   nearest_hint(s->e->diag, &near));
    else
        diag_error(s->e->diag, part.span, "there is no %s `%s` here%s", what, part.text,
                   nearest_hint(s->e->diag, &near));
    return value_error;
}

/* A parameter of this module, of a part of it, or one that the model shares. */
static Value module_value(Scope *s, const Name *n) {
    const Module *m = s->module;
    for (int i = 0; m && i < n->n; i++) {
        const Param *p = module_param(m, n->part[i].text);
        if (!p && i == 0 && s->e->root) {
            p = module_param(s->e->root, n->part[0].text);
            if (p && !p->is_shared) p = NULL;
        }
        if (p) return param_value(s, n, i, p);
        const Module *child = module_child(m, n->part[i].text);
        if (!child) return unknown(s, n->part[i], m, i ? "part or parameter" : "name");
        m = child;
    }
    if (!m) return unknown(s, n->part[0], NULL, "name");
    diag_error(s->e->diag, n->span,
               m->nlayer || m->is_repeat
                   ? "`%s` is a block, not a value: give it inputs"
                   : "`%s` is not a value, only the beginning of longer names",
               name_str(s->e->pool, n));
    diag_note(s->e->diag, m->span, "it is declared here");
    return value_error;
}

static bool constant_word(const char *word, Value *v) {
    static const struct {
        const char *word;
        Value value;
    } words[] = {
        {"true", {.kind = VAL_NUMBER, .number = {1, UNIT_NONE}}},
        {"false", {.kind = VAL_NUMBER, .number = {0, UNIT_NONE}}},
        {"zeros", {.kind = VAL_INIT, .init = {{PEFT_ZEROS, 0}, false}}},
        {"ones", {.kind = VAL_INIT, .init = {{PEFT_ONES, 0}, false}}},
    };
    for (int i = 0; i < 4; i++)
        if (strcmp(words[i].word, word) == 0) return *v = words[i].value, true;
    return false;
}

static bool has_name(const Scope *s, const char *name) {
    if (!s->module) return false;
    const Param *shared = s->e->root ? module_param(s->e->root, name) : NULL;
    return module_param(s->module, name) || module_child(s->module, name) ||
           (shared && shared->is_shared);
}

static Value eval_name(Scope *s, const Name *n) {
    const char *first = n->part[0].text;
    const Binding *b = env_find(&s->local, first);
    if (!b) b = env_find(s->env, first);
    Config *config = s->configs ? ast_find_config(s->e->ast, first) : NULL;
    Value v;
    if (b) {
        v = b->value;
    } else if (has_name(s, first)) {
        return module_value(s, n);
    } else if (config) {
        ConfigValue *c = config_value(s->e, config);
        v = c ? (Value){.kind = VAL_CONFIG, .config = c} : value_error;
    } else if (!constant_word(first, &v)) {
        return module_value(s, n); /* reports */
    }
    for (int i = 1; i < n->n && v.kind != VAL_ERROR; i++) v = field(s, v, n, i);
    return v;
}

/* ---- operators ---- */

static Value number(Scope *s, const Expr *x, double v) {
    if (isfinite(v)) return value_number(v);
    diag_error_caret(s->e->diag, x->span, x->caret, "the result is not a finite number");
    return value_error;
}

Node *value_tensor(Scope *s, const Expr *x, Value v) {
    if (v.kind == VAL_TENSOR) return v.node;
    if (v.kind == VAL_NUMBER) return nd_const(s->e->g, v.number.value);
    if (v.kind != VAL_ERROR)
        diag_error(s->e->diag, x->span, "a number or a tensor is expected here, not %s",
                   value_kind(v));
    return NULL;
}

static double fold(ExprKind kind, double a, double b) {
    switch (kind) {
    case EX_ADD: return a + b;
    case EX_SUB: return a - b;
    case EX_MUL: return a * b;
    default: return a / b;
    }
}

static Value eval_binary(Scope *s, const Expr *x) {
    static const OpCode op[] = {
        [EX_ADD] = OP_ADD, [EX_SUB] = OP_SUB, [EX_MUL] = OP_MUL, [EX_DIV] = OP_DIV};
    Value a = eval(s, x->op.a), b = eval(s, x->op.b);
    if (a.kind == VAL_NUMBER && b.kind == VAL_NUMBER)
        return number(s, x, fold(x->kind, a.number.value, b.number.value));
    Node *in[2] = {value_tensor(s, x->op.a, a), value_tensor(s, x->op.b, b)};
    return in[0] && in[1] ? value_node(trace(s, x, op[x->kind], no_attr(), in, 2)) : value_error;
}

static Value eval_neg(Scope *s, const Expr *x) {
    Value a = eval(s, x->op.a);
    if (a.kind == VAL_NUMBER) return value_number(-a.number.value);
    Node *in = value_tensor(s, x->op.a, a);
    return in ? value_node(trace(s, x, OP_NEG, no_attr(), &in, 1)) : value_error;
}

/* A tensor; anything else is reported. */
static Node *eval_matrix(Scope *s, const Expr *x) {
    Value v = eval(s, x);
    if (v.kind == VAL_TENSOR) return v.node;
    if (v.kind != VAL_ERROR)
        diag_error(s->e->diag, x->span, "a matrix is expected here, not %s", value_kind(v));
    return NULL;
}

static Value eval_transpose(Scope *s, const Expr *x) {
    Node *a = eval_matrix(s, x->op.a);
    if (!a) return value_error;
    if (a->type.rank != 2) {
        char t[64];
        diag_error_caret(s->e->diag, x->span, x->caret,
                         "only a matrix can be transposed; this is %s", type_str(a->type, t));
        note_context(s);
        return value_error;
    }
    Type to = type_f32(2, a->type.dim[1], a->type.dim[0]);
    if (to.dim[0] != 1 && to.dim[1] != 1)
        return value_node(trace(s, x, OP_TRANSPOSE, no_attr(), &a, 1));
    Attr attr = no_attr(); /* one row or column: the same elements in the same order */
    attr.reshape.to = to;
    return value_node(trace(s, x, OP_RESHAPE, attr, &a, 1));
}

/* x @ w': the transposition is part of the product. */
static Value eval_matmul(Scope *s, const Expr *x) {
    const Expr *a = x->op.a, *b = x->op.b;
    Attr attr = no_attr();
    for (; a->kind == EX_TRANSPOSE; a = a->op.a) attr.matmul.trans_a ^= 1;
    for (; b->kind == EX_TRANSPOSE; b = b->op.a) attr.matmul.trans_b ^= 1;
    Node *in[2] = {eval_matrix(s, a), eval_matrix(s, b)};
    return in[0] && in[1] ? value_node(trace(s, x, OP_MATMUL, attr, in, 2)) : value_error;
}

/* ---- calls ---- */

bool trace_forward(Scope *s, const Forward *f, const Value *in, Value *results) {
    for (int i = 0; i < f->ninput; i++) env_add(s->e, &s->local, f->input[i], in[i]);
    bool ok = true;
    for (int i = 0; i < f->nassign;
         i++) { /* a name with an error is known, and silent where used */
        Value v = eval(s, f->assign[i].value);
        ok &= v.kind != VAL_ERROR;
        env_add(s->e, &s->local, f->assign[i].name, v);
    }
    for (int i = 0; i < f->nresult; i++) {
        results[i] = eval(s, f->result[i]);
        ok &= results[i].kind != VAL_ERROR;
    }
    return ok;
}

static bool count_call(Elab *e, const Expr *at) {
    if (e->ncall++ < MAX_CALLS) return true;
    if (!e->exhausted)
        diag_error(e->diag, at->span, "the model applies more than %d blocks", MAX_CALLS);
    e->exhausted = true;
    return false;
}

static Value call_layer(Scope *s, Module *m, int level, const Value *in, int nin, const Expr *at) {
    Elab *e = s->e;
    const Layer *layer = &m->layer[level];
    const Forward *f = layer->decl->forward;
    if (!count_call(e, at)) return value_error;
    if (nin != f->ninput) {
        diag_error(e->diag, at->span, "`%s` takes %d input%s, here are %d", layer->decl->name.text,
                   f->ninput, f->ninput == 1 ? "" : "s", nin);
        diag_note(e->diag, f->span, "it is declared here");
        return value_error;
    }
    if (f->nresult > 1) {
        diag_error(e->diag, f->result[1]->span,
                   "only the block of a model returns more than one value");
        return value_error;
    }
    Scope inner = {.e = e,
                   .module = m,
                   .level = level,
                   .env = &layer->env,
                   .caller = s,
                   .call = at->span,
                   .tracing = true};
    Value result;
    return trace_forward(&inner, f, in, &result) ? result : value_error;
}

static Value call_module(Scope *s, Module *m, const Value *in, int nin, const Expr *at) {
    if (m->nlayer) return call_layer(s, m, m->nlayer - 1, in, nin, at);
    if (!m->is_repeat || nin == 0) {
        diag_error(s->e->diag, at->span,
                   m->is_repeat ? "`%s` needs an input" : "`%s` is not a block", m->path);
        diag_note(s->e->diag, m->span, "it is declared here");
        return value_error;
    }
    Value *args = pool_alloc(s->e->pool, (size_t)nin * sizeof *args);
    memcpy(args, in, (size_t)nin * sizeof *args);
    for (int i = 0; i < m->nchild && args[0].kind != VAL_ERROR; i++)
        args[0] = call_module(s, m->child[i], args, nin, at);
    return args[0];
}

/* The part that a call names, or NULL. */
static Module *called_part(const Scope *s, const Name *n) {
    Module *m = s->module;
    for (int i = 0; m && i < n->n; i++) m = module_child(m, n->part[i].text);
    return m;
}

static bool is_base(const Name *n) {
    return n->n == 1 && strcmp(n->part[0].text, "base") == 0;
}

static Value unknown_function(Scope *s, const Name *n) {
    const Module *m = s->tracing ? s->module : NULL;
    int i = 0;
    while (m && i + 1 < n->n && module_child(m, n->part[i].text))
        m = module_child(m, n->part[i++].text);
    Ident part = n->part[i];
    Nearest near = nearest_to(part.text);
    for (int k = 0; m && k < m->nchild; k++) nearest_offer(&near, m->child[k]->name);
    if (i == 0) offer_builtins(&near);
    if (i)
        diag_error(s->e->diag, part.span, "`%s` has no part `%s`%s", n->part[i - 1].text, part.text,
                   nearest_hint(s->e->diag, &near));
    else
        diag_error(s->e->diag, part.span, "there is no %s `%s` here%s",
                   s->tracing ? "part or function" : "function", part.text,
                   nearest_hint(s->e->diag, &near));
    if (i == 0 && is_base(n)) diag_note(s->e->diag, part.span, "only a patch has a `base`");
    return value_error;
}

static Value eval_call(Scope *s, const Expr *x) {
    const Name *n = &x->call.callee;
    Module *part = s->tracing ? called_part(s, n) : NULL;
    bool base = !part && s->tracing && s->level > 0 && is_base(n);
    if (!part && !base)
        return n->n == 1 && is_builtin(n->part[0].text) ? call_builtin(s, x)
                                                        : unknown_function(s, n);
    Value *in = pool_alloc(s->e->pool, (size_t)x->call.narg * sizeof *in + 1);
    for (int i = 0; i < x->call.narg; i++) {
        if (x->call.arg[i].name.text) {
            diag_error(s->e->diag, x->call.arg[i].name.span,
                       "inputs of a part are given by position");
            return value_error;
        }
        in[i] = eval(s, x->call.arg[i].value);
        if (in[i].kind == VAL_ERROR) return value_error;
    }
    return base ? call_layer(s, s->module, s->level - 1, in, x->call.narg, x)
                : call_module(s, part, in, x->call.narg, x);
}

static Value eval_any(Scope *s, const Expr *x) {
    switch (x->kind) {
    case EX_NUMBER: return (Value){.kind = VAL_NUMBER, .number = x->number};
    case EX_NAME: return eval_name(s, &x->name);
    case EX_CALL: return eval_call(s, x);
    case EX_NEG: return eval_neg(s, x);
    case EX_TRANSPOSE: return eval_transpose(s, x);
    case EX_MATMUL: return eval_matmul(s, x);
    default: return eval_binary(s, x);
    }
}

Value eval(Scope *s, const Expr *x) {
    Elab *e = s->e;
    if (e->exhausted) return value_error;
    if (e->nesting >= MAX_NESTING) {
        diag_error(e->diag, x->span, "blocks and expressions are nested too deeply here");
        e->exhausted = true;
        return value_error;
    }
    e->nesting++;
    Value v = eval_any(s, x);
    e->nesting--;
    return v;
}

bool eval_number(Scope *s, const Expr *x, const char *what, double *out) {
    Value v = eval(s, x);
    if (v.kind == VAL_ERROR) return false;
    if (v.kind != VAL_NUMBER || v.number.unit == UNIT_STEPS)
        return diag_error(s->e->diag, x->span, "%s must be a number, not %s", what,
                          v.kind == VAL_NUMBER ? "a number of steps" : value_kind(v));
    *out = v.number.value;
    return true;
}

bool eval_whole(Scope *s, const Expr *x, const char *what, int64_t low, int64_t high,
                int64_t *out) {
    double v;
    if (!eval_number(s, x, what, &v)) return false;
    if (!(v >= (double)low && v <= (double)high && v == floor(v)))
        return diag_error(s->e->diag, x->span,
                          "%s must be a whole number from %lld to %lld, found %.10g", what,
                          (long long)low, (long long)high, v);
    *out = (int64_t)v;
    return true;
}
