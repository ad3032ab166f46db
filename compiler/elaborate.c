/* The model: which one, what it is derived from, its arguments, its inputs and outputs.
 *
 * Order of work: the module tree of the block, then the statements (which add patches and mark
 * parameters), then one trace of the block's forward function. By then it is known how each
 * parameter is stored, and which layers each block has. */
#include "autodiff.h"
#include "elaborate_int.h"

#include <string.h>

/* ---- choosing a model ---- */

static const Model *find_model(Elab *e, Ident name) {
    const Model *m = ast_find_model(e->ast, name.text);
    if (m) return m;
    Nearest near = nearest_to(name.text);
    for (int i = 0; i < e->ast->nmodel; i++) nearest_offer(&near, e->ast->model[i]->name.text);
    return diag_error(e->diag, name.span, "there is no model `%s`%s", name.text,
                      nearest_hint(e->diag, &near));
}

static const Model *choose_model(Elab *e, int32_t file) {
    if (e->settings->model) return find_model(e, (Ident){e->settings->model, SPAN_NONE});
    const Model *found = NULL;
    for (int i = 0; i < e->ast->nmodel; i++) {
        const Model *m = e->ast->model[i];
        if (m->name.span.file != file) continue;
        if (found) {
            diag_error(e->diag, m->name.span,
                       "there is more than one model here; choose with --model");
            diag_note(e->diag, found->name.span, "`%s` is another", found->name.text);
            return NULL;
        }
        found = m;
    }
    if (found) return found;
    return diag_error(e->diag, SPAN_NONE, "%s declares no model",
                      e->diag->sources->file[file].path);
}

/* ---- derived models ---- */

/* model c = b, model b = a(...): from the block at the bottom to the model asked for. */
typedef struct Chain {
    const Model **model;
    int n, cap;
    const Block *block;
    Expr *call; /* of the block, with the arguments that derived models replace */
} Chain;

static const Name *model_of(Elab *e, const Model *m) {
    if (m->of->kind == EX_CALL) return &m->of->call.callee;
    if (m->of->kind == EX_NAME) return &m->of->name;
    return diag_error(e->diag, m->of->span, "a model is a block or another model");
}

static void unknown_block(Elab *e, Ident name) {
    Nearest near = nearest_to(name.text);
    for (int i = 0; i < e->ast->nblock; i++) nearest_offer(&near, e->ast->block[i]->name.text);
    for (int i = 0; i < e->ast->nmodel; i++) nearest_offer(&near, e->ast->model[i]->name.text);
    diag_error(e->diag, name.span, "there is no block or model `%s`%s", name.text,
               nearest_hint(e->diag, &near));
}

/* Down to the block; the chain is then from last to first. */
static bool follow_models(Elab *e, const Model *m, Chain *c) {
    while (!c->block) {
        const Name *of = model_of(e, m);
        if (!of) return false;
        for (int i = 0; i < c->n; i++)
            if (c->model[i] == m)
                return diag_error(e->diag, m->name.span, "model `%s` is made from itself",
                                  m->name.text);
        *POOL_PUSH(e->pool, c->model, c->n, c->cap) = m;
        c->block = of->n == 1 ? ast_find_block(e->ast, of->part[0].text) : NULL;
        if (c->block) break;
        m = of->n == 1 ? ast_find_model(e->ast, of->part[0].text) : NULL;
        if (!m) {
            unknown_block(e, (Ident){name_str(e->pool, of), of->span});
            return false;
        }
    }
    for (int i = 0; i < c->n / 2; i++) {
        const Model *t = c->model[i];
        c->model[i] = c->model[c->n - 1 - i];
        c->model[c->n - 1 - i] = t;
    }
    return true;
}

/* The name of the i-th argument of a call of the block. */
static const char *argument_name(const Chain *c, int i) {
    const char *name = c->call->call.arg[i].name.text;
    return name ? name : i < c->block->nformal ? c->block->formal[i].name.text : "";
}

static void replace_arg(Elab *e, Chain *c, int *cap, Arg a) {
    for (int i = 0; i < c->call->call.narg; i++)
        if (strcmp(argument_name(c, i), a.name.text) == 0) {
            c->call->call.arg[i].value = a.value;
            return;
        }
    *POOL_PUSH(e->pool, c->call->call.arg, c->call->call.narg, *cap) = a;
}

/* The call of the block, with the arguments that derived models give in place of its own. */
static bool merge_args(Elab *e, Chain *c) {
    const Expr *of = c->model[0]->of;
    int cap = 0;
    c->call = pool_alloc(e->pool, sizeof *c->call);
    *c->call = (Expr){.kind = EX_CALL, .span = of->span, .caret = of->caret};
    c->call->call.callee = *model_of(e, c->model[0]);
    for (int i = 0; of->kind == EX_CALL && i < of->call.narg; i++)
        *POOL_PUSH(e->pool, c->call->call.arg, c->call->call.narg, cap) = of->call.arg[i];
    for (int m = 1; m < c->n; m++) {
        of = c->model[m]->of;
        for (int i = 0; of->kind == EX_CALL && i < of->call.narg; i++) {
            if (!of->call.arg[i].name.text)
                return diag_error(e->diag, of->call.arg[i].value->span,
                                  "arguments of a derived model are given by name");
            replace_arg(e, c, &cap, of->call.arg[i]);
        }
    }
    return true;
}

/* ---- inputs and outputs ---- */

/* What a model's block can take, and the task that follows from it. */
static const struct ModelInput {
    const char *name;
    bool is_record;
    Record record;
    PeftInputId id;
    int task; /* PeftTask, or -1 */
} model_input[] = {
    {"text", true, RECORD_TEXT, 0, -1},
    {"labels", false, 0, PEFT_IN_labels, PEFT_TASK_CLASSIFY},
    {"targets", false, 0, PEFT_IN_targets, PEFT_TASK_REGRESS},
    {"masked", true, RECORD_MASKED, 0, PEFT_TASK_MLM},
};
enum { NMODEL_INPUT = sizeof model_input / sizeof *model_input };

static const struct ModelInput *find_input(Elab *e, Ident name) {
    Nearest near = nearest_to(name.text);
    for (int i = 0; i < NMODEL_INPUT; i++) {
        if (strcmp(model_input[i].name, name.text) == 0) return &model_input[i];
        nearest_offer(&near, model_input[i].name);
    }
    return diag_error(e->diag, name.span,
                      "a model's inputs are text, labels, targets and masked, not `%s`%s",
                      name.text, nearest_hint(e->diag, &near));
}

static bool bind_inputs(Elab *e, const Forward *f, Value *in) {
    int ntask = 0;
    bool ok = true;
    for (int i = 0; i < f->ninput; i++) {
        const struct ModelInput *m = find_input(e, f->input[i]);
        ok &= m != NULL;
        if (!m) continue;
        in[i] = m->is_record ? (Value){.kind = VAL_RECORD, .record = m->record}
                             : value_node(nd_input(e->g, m->id));
        if (m->task < 0) continue;
        e->info->task = (PeftTask)m->task;
        ntask++;
    }
    if (ok && ntask != 1)
        return diag_error(e->diag, f->span,
                          "a model takes one of labels, targets and masked: its task");
    return ok;
}

/* Results are named by the variable returned; one without a name is the loss. */
static const char *output_name(Elab *e, const Forward *f, int i) {
    const Expr *x = f->result[i];
    const char *name = x->kind == EX_NAME && x->name.n == 1 ? x->name.part[0].text : "";
    if (strcmp(name, "logits") == 0) return "logits";
    if (strcmp(name, "loss") == 0 || f->nresult == 1) return "loss";
    return diag_error(e->diag, x->span, "a model returns `loss` and `logits`, by these names");
}

static bool check_output(Elab *e, const Expr *x, const char *name, const Node *n) {
    char t[64];
    Type type = n->type;
    if (strcmp(name, "loss") == 0 && (type.rank || type.dt != DT_F32))
        return diag_error(e->diag, x->span,
                          "the loss must be one number; this is %s: reduce it with "
                          "batch_mean",
                          type_str(type, t));
    if (strcmp(name, "logits") == 0 &&
        (type.rank != 2 || type.dim[0] != DIM_S || type.dt != DT_F32))
        return diag_error(e->diag, x->span, "logits have a row for each sequence; this is %s",
                          type_str(type, t));
    return true;
}

static bool add_outputs(Elab *e, Scope *s, const Forward *f, const Value *result) {
    Node *loss = NULL, *logits = NULL;
    for (int i = 0; i < f->nresult; i++) {
        const char *name = output_name(e, f, i);
        Node *n = name ? value_tensor(s, f->result[i], result[i]) : NULL;
        if (!n || !check_output(e, f->result[i], name, n)) return false;
        Node **to = strcmp(name, "loss") == 0 ? &loss : &logits;
        if (*to) return diag_error(e->diag, f->result[i]->span, "`%s` is returned twice", name);
        *to = n;
    }
    if (!loss) return diag_error(e->diag, f->result[0]->span, "a model returns its `loss`");
    if (!logits && e->info->task != PEFT_TASK_MLM)
        return diag_error(
            e->diag, f->result[0]->span,
            "a model that classifies or estimates returns its logits too: return loss, logits");
    graph_output(e->g, PEFT_FN_EVAL, "loss", loss);
    if (logits) graph_output(e->g, PEFT_FN_EVAL, "logits", logits);
    if (logits) e->info->config.classes = logits->type.dim[1];
    return true;
}

static bool trace_model(Elab *e) {
    const Layer *top = &e->root->layer[0];
    const Forward *f = top->decl->forward;
    Scope s = {.e = e, .module = e->root, .env = &top->env, .tracing = true};
    Value *in = pool_alloc(e->pool, (size_t)f->ninput * sizeof *in + 1);
    Value *result = pool_alloc(e->pool, (size_t)f->nresult * sizeof *result + 1);
    return bind_inputs(e, f, in) && trace_forward(&s, f, in, result) &&
           add_outputs(e, &s, f, result);
}

/* ---- initial values that are expressions ---- */

static bool start_value(Elab *e, const Pending *p) {
    const Expr *x = p->item->value;
    Scope s = {.e = e, .module = p->module, .level = p->level, .tracing = true};
    s.env = &p->module->layer[p->level].env;
    Value v = eval(&s, x);
    Var *var = &e->g->var[p->var];
    if (v.kind == VAL_NUMBER) {
        var->init = (Init){PEFT_CONSTANT, v.number.value};
        return true;
    }
    Node *n = value_tensor(&s, x, v);
    if (!n) return false;
    Type want = var->type;
    want.dt = DT_F32;
    char a[64], b[64];
    if (type_count(n->type) != type_count(want) || n->type.dt != DT_F32)
        return diag_error(e->diag, x->span, "this is %s, the parameter is %s", type_str(n->type, a),
                          type_str(want, b));
    Attr attr = no_attr();
    attr.reshape.to = want;
    if (!type_equal(n->type, want)) n = trace(&s, x, OP_RESHAPE, attr, &n, 1);
    if (n) e->info->start[e->info->nstart++] = (StartValue){p->var, n};
    return n != NULL;
}

/* All start values are computed at once from what parameters begin with: none may need another.
 * (None can need the batch: inputs have no names here, and every function that reads one wants its
 * rows.) */
static bool check_start(Elab *e, const StartValue *start, bool *seen) {
    memset(seen, 0, (size_t)e->g->n);
    seen[start->value->id] = true;
    for (int i = start->value->id; i >= 0; i--) {
        const Node *n = e->g->node[i];
        if (!seen[i]) continue;
        for (int k = 0; k < n->nin; k++) seen[n->in[k]->id] = true;
        for (int k = 0; n->op == OP_VAR && k < e->info->nstart; k++) {
            if (e->info->start[k].var != n->attr.leaf.index) continue;
            const Var *var = &e->g->var[start->var], *other = &e->g->var[n->attr.leaf.index];
            diag_error(e->diag, var->span,
                       "`%s` begins as an expression of `%s`, which is itself one", var->name,
                       other->name);
            diag_note(e->diag, other->span, "it is declared here");
            return false;
        }
    }
    return true;
}

static bool trace_start(Elab *e) {
    bool ok = true;
    e->info->start = graph_alloc(e->g, (size_t)e->npending * sizeof *e->info->start + 1);
    for (int i = 0; i < e->npending; i++) ok &= start_value(e, &e->pending[i]);
    bool *seen = pool_alloc(e->pool, (size_t)e->g->n + 1);
    for (int i = 0; ok && i < e->info->nstart; i++) ok &= check_start(e, &e->info->start[i], seen);
    return ok;
}

/* ---- checks on the whole ---- */

/* A trainable parameter without a path to the loss would never change. */
static bool check_trainable(Elab *e) {
    int32_t *lost = pool_alloc(e->pool, (size_t)e->g->nvar * sizeof *lost + 1);
    int n = autodiff_unreached(e->g, graph_find_output(e->g, PEFT_FN_EVAL, "loss"), lost);
    for (int i = 0; i < n; i++) {
        const Var *v = &e->g->var[lost[i]];
        diag_error(e->diag, v->span, "this is trainable, but the loss does not depend on it");
        diag_note(e->diag, SPAN_NONE, "in `%s`; freeze it, or use it", v->name);
    }
    for (int32_t i = 0; i < e->g->nvar; i++)
        if (e->g->var[i].trainable) return n == 0;
    return diag_error(e->diag, SPAN_NONE,
                      "nothing is trainable: name something in a `train` statement");
}

/* A frozen one is only dead weight. */
static void warn_unused(Elab *e) {
    bool *used = pool_alloc(e->pool, (size_t)e->g->nvar + 1);
    for (int32_t i = 0; i < e->g->n; i++)
        if (e->g->node[i]->op == OP_VAR) used[e->g->node[i]->attr.leaf.index] = true;
    for (int32_t i = 0; i < e->g->nvar; i++) {
        const Var *v = &e->g->var[i];
        if (used[i] || v->trainable) continue;
        diag_warning(e->diag, v->span, "this parameter is never used");
        diag_note(e->diag, SPAN_NONE, "in `%s`", v->name);
    }
}

static void fill_config(Elab *e) {
    PeftConfig *c = &e->info->config;
    const struct {
        const char *name;
        int64_t *whole;
        double *real;
    } to[] = {{"vocab", &c->vocab, NULL},     {"hidden", &c->hidden, NULL},
              {"layers", &c->layers, NULL},   {"heads", &c->heads, NULL},
              {"ffn", &c->ffn, NULL},         {"positions", &c->positions, NULL},
              {"types", &c->types, NULL},     {"eps", NULL, &c->eps},
              {"dropout", NULL, &c->dropout}, {"attention_dropout", NULL, &c->attention_dropout}};
    for (int i = 0; e->config && i < e->config->nfield; i++)
        for (size_t k = 0; k < sizeof to / sizeof *to; k++) {
            if (strcmp(to[k].name, e->config->field[i].name) != 0) continue;
            double v = e->config->field[i].value.number.value;
            if (to[k].real)
                *to[k].real = v;
            else if (v >= 0 && v < 1e15)
                *to[k].whole = (int64_t)v;
        }
}

/* ---- the whole ---- */

static bool run_model(Elab *e, const Chain *c) {
    Scope globals = {.e = e, .configs = true};
    Env args = {0};
    if (!bind_args(&globals, c->block, c->call, "", &args)) return false;
    for (int i = 0; i < args.n && !e->config; i++)
        if (args.at[i].value.kind == VAL_CONFIG) e->config = args.at[i].value.config;
    fill_config(e);
    if (!module_root(e, c->block, args, c->call->span)) return false;
    fit_defaults(&e->info->fit);
    bool ok = true;
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->model[i]->nstmt && !e->exhausted; k++)
            ok &= run_stmt(e, &c->model[i]->stmt[k]);
    ok &= finish_fit(e);
    ok &= overrides_check(&e->overrides, e->diag);
    ok &= check_stores(e);
    bool traced = !e->broken && trace_model(e) && trace_start(e);
    if (!ok || !traced) return false;
    warn_unused(e);
    describe_settings(e, c->model[c->n - 1], c->block, &args);
    return check_trainable(e);
}

static bool elaborate_into(Elab *e, int32_t file) {
    if (!overrides_parse(&e->overrides, e->ast, e->diag, e->settings)) return false;
    Chain c = {0};
    const Model *m = choose_model(e, file);
    bool ok = check_blocks(e);
    if (!m || !ok || !follow_models(e, m, &c) || !merge_args(e, &c)) return false;
    e->info->name = graph_printf(e->g, "%s", m->name.text);
    e->info->source = graph_printf(e->g, "%s", e->diag->sources->file[file].path);
    return run_model(e, &c);
}

Graph *elaborate(Ast *ast, int32_t main_file, const Settings *settings, Diag *diag,
                 ModelInfo *info) {
    Graph *g = graph_new();
    Elab e = {
        .ast = ast, .diag = diag, .g = g, .pool = g->pool, .settings = settings, .info = info};
    memset(info, 0, sizeof *info);
    if (elaborate_into(&e, main_file)) return g;
    if (diag->nerror == 0) PANIC(NULL, "elaboration failed without a message");
    graph_free(g);
    return NULL;
}

Graph *elaborate_file(const char *path, const Settings *settings, Diag *diag, ModelInfo *info) {
    PeftError err = {{0}, 0};
    int32_t file = sources_open(diag->sources, path, &err);
    if (file < 0) return diag_error(diag, SPAN_NONE, "%s", err.msg);
    Ast *ast = ast_new();
    Graph *g = ast_load(ast, diag, file) ? elaborate(ast, file, settings, diag, info) : NULL;
    ast_free(ast);
    return g;
}
