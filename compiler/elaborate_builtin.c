/* The functions of the language: names of ops, and the few that know about batches (dropout,
 * attention, first_token, batch_mean). Functions of numbers fold.
 *
 * Arguments are checked for what they are (a tensor, a number, a share) here; shapes are checked by
 * the op itself, except where a message in the program's words says more.
 */
#include "elaborate_int.h"

#include <math.h>
#include <string.h>

enum { MAX_ARGS = 5 };

typedef struct Call {
    Scope *s;
    const Expr *at;
    const Expr *x[MAX_ARGS];
    Value arg[MAX_ARGS];
} Call;

/* ---- arguments ---- */

static Node *tensor(const Call *c, int i) {
    return value_tensor(c->s, c->x[i], c->arg[i]);
}

static Node *node(const Call *c, OpCode op, Attr attr, Node *const *in, int nin) {
    for (int i = 0; i < nin; i++)
        if (!in[i]) return NULL;
    return trace(c->s, c->at, op, attr, in, nin);
}

static Node *input(const Call *c, PeftInputId id) {
    return nd_input(c->s->e->g, id);
}

static bool fraction(const Call *c, int i, const char *what, double *out) {
    Value v = c->arg[i];
    if (v.kind == VAL_NUMBER && v.number.value >= 0 && v.number.value < 1) {
        *out = v.number.value;
        return true;
    }
    return diag_error(c->s->e->diag, c->x[i]->span,
                      "%s must be a number of at least 0 and less than 1", what);
}

/* ---- functions of one number or tensor ---- */

static double square(double v) {
    return v * v;
}

static const struct Unary {
    const char *name;
    OpCode op;
    double (*fold)(double);
} unary[] = {
    {"exp", OP_EXP, exp},          {"log", OP_LOG, log},          {"sqrt", OP_SQRT, sqrt},
    {"square", OP_SQUARE, square}, {"tanh", OP_TANH, tanh},       {"sigmoid", OP_SIGMOID, NULL},
    {"relu", OP_RELU, NULL},       {"gelu", OP_GELU, NULL},       {"gelu_tanh", OP_GELU_TANH, NULL},
    {"silu", OP_SILU, NULL},       {"softmax", OP_SOFTMAX, NULL}, {"detach", OP_DETACH, NULL},
};
enum { NUNARY = sizeof unary / sizeof *unary };

static Value call_unary(const Call *c, const struct Unary *u) {
    if (c->arg[0].kind == VAL_NUMBER && u->fold) {
        double v = u->fold(c->arg[0].number.value);
        if (isfinite(v)) return value_number(v);
        diag_error(c->s->e->diag, c->at->span, "%s of %.10g is not a finite number", u->name,
                   c->arg[0].number.value);
        return value_error;
    }
    Node *x = tensor(c, 0);
    return value_node(node(c, u->op, no_attr(), &x, 1));
}

/* ---- initial values ---- */

static Value initial(const Call *c, PeftInit kind, bool kaiming) {
    Value v = c->arg[0];
    if (v.kind == VAL_NUMBER && v.number.value >= 0)
        return (Value){.kind = VAL_INIT, .init = {{kind, v.number.value}, kaiming}};
    diag_error(c->s->e->diag, c->x[0]->span, "a number that is not negative is expected here");
    return value_error;
}

static Value call_normal(const Call *c) {
    return initial(c, PEFT_NORMAL, false);
}

static Value call_uniform(const Call *c) {
    return initial(c, PEFT_UNIFORM, false);
}

static Value call_kaiming(const Call *c) {
    return initial(c, PEFT_UNIFORM, true);
}

/* ---- functions that know the batch ---- */

/* Data-set row and position of what each row of an activation belongs to: what counts dropout's
 * random numbers, so that they do not depend on how sequences are packed. */
static bool row_ids(const Call *c, Type t, Node **sample, Node **position) {
    int64_t rows = t.rank == 2 ? t.dim[0] : 0;
    Node *at = rows == DIM_S   ? input(c, PEFT_IN_first)
               : rows == DIM_M ? input(c, PEFT_IN_masked_positions)
                               : NULL;
    if (rows == DIM_T || at) {
        *sample = input(c, PEFT_IN_token_sample);
        *position = input(c, PEFT_IN_positions);
    } else {
        char text[64];
        diag_error(c->s->e->diag, c->x[0]->span,
                   "dropout needs a row for each token, sequence or masked "
                   "position; this is %s",
                   type_str(t, text));
        note_context(c->s);
        return false;
    }
    if (rows == DIM_S) *sample = input(c, PEFT_IN_seq_sample);
    if (rows == DIM_M) *sample = node(c, OP_GATHER, no_attr(), (Node *[]){*sample, at}, 2);
    if (at) *position = node(c, OP_GATHER, no_attr(), (Node *[]){*position, at}, 2);
    return *sample && *position;
}

static Value call_dropout(const Call *c) {
    double p = 0;
    Node *in[4] = {tensor(c, 0), input(c, PEFT_IN_rng)};
    if (!in[0] || !fraction(c, 1, "the share that is dropped", &p)) return value_error;
    if (p == 0) return c->arg[0];
    if (!row_ids(c, in[0]->type, &in[2], &in[3])) return value_error;
    Attr a = no_attr();
    a.dropout.p = p;
    a.dropout.site = c->s->e->g->nsite++;
    return value_node(node(c, OP_DROPOUT, a, in, 4));
}

/* attention(q, k, v, heads, p): softmax(q k' / sqrt(head size)) v within each sequence, head by
 * head, with dropout p on the probabilities. */
static Value call_attention(const Call *c) {
    Attr a = no_attr();
    Node *q = tensor(c, 0), *k = tensor(c, 1), *v = tensor(c, 2);
    if (!q || !k || !v || !fraction(c, 4, "the share that is dropped", &a.attention.p))
        return value_error;
    double heads = c->arg[3].kind == VAL_NUMBER ? c->arg[3].number.value : 0;
    if (!(heads >= 1 && heads <= 4096 && heads == floor(heads))) {
        diag_error(c->s->e->diag, c->x[3]->span,
                   "the number of heads must be a whole number from 1 to 4096");
        return value_error;
    }
    if (k->type.rank != 2 || k->type.dim[0] != DIM_T) {
        char t[64];
        diag_error(c->s->e->diag, c->x[1]->span, "attention needs a key for each token; this is %s",
                   type_str(k->type, t));
        note_context(c->s);
        return value_error;
    }
    int64_t width = q->type.rank == 2 ? q->type.dim[1] : 1;
    a.attention.heads = (int32_t)heads;
    a.attention.scale = 1 / sqrt((double)(width > 0 ? width : 1) / heads);
    if (a.attention.p > 0) a.attention.site = c->s->e->g->nsite++;
    Node *in[] = {
        q, k, v, input(c, PEFT_IN_offsets), input(c, PEFT_IN_rng), input(c, PEFT_IN_seq_sample)};
    Node *both = node(c, OP_ATTENTION, a, in, 6);
    return both ? value_node(nd_proj(c->s->e->g, both, 0)) : value_error;
}

static Value call_gather(const Call *c) {
    return value_node(node(c, OP_GATHER, no_attr(), (Node *[]){tensor(c, 0), tensor(c, 1)}, 2));
}

static Value call_first_token(const Call *c) {
    Node *in[] = {tensor(c, 0), input(c, PEFT_IN_first)};
    if (in[0] && (in[0]->type.rank != 2 || in[0]->type.dim[0] != DIM_T)) {
        char t[64];
        diag_error(c->s->e->diag, c->x[0]->span,
                   "first_token needs a row for each token; this is %s", type_str(in[0]->type, t));
        note_context(c->s);
        return value_error;
    }
    return value_node(node(c, OP_GATHER, no_attr(), in, 2));
}

static Value call_layer_norm(const Call *c) {
    Value eps = c->arg[3];
    if (eps.kind != VAL_NUMBER || !(eps.number.value >= 0)) {
        diag_error(c->s->e->diag, c->x[3]->span, "eps must be a number that is not negative");
        return value_error;
    }
    Attr a = no_attr();
    a.norm.eps = eps.number.value;
    Node *in[] = {tensor(c, 0), tensor(c, 1), tensor(c, 2)};
    Node *all = node(c, OP_LAYER_NORM, a, in, 3);
    return all ? value_node(nd_proj(c->s->e->g, all, 0)) : value_error;
}

static Value call_cross_entropy(const Call *c) {
    Node *both = node(c, OP_CROSS_ENTROPY, no_attr(), (Node *[]){tensor(c, 0), tensor(c, 1)}, 2);
    return both ? value_node(nd_proj(c->s->e->g, both, 0)) : value_error;
}

static Value call_sum_along(const Call *c, int axis) {
    Attr a = no_attr();
    a.sum.axis = axis;
    Node *x = tensor(c, 0);
    return value_node(node(c, OP_SUM, a, &x, 1));
}

static Value call_sum(const Call *c) {
    return call_sum_along(c, -1);
}

static Value call_row_sum(const Call *c) {
    return call_sum_along(c, 1);
}

/* Mean of one value per sequence (or masked position) over the whole batch, however many parts it
 * is accumulated in: the count is an input. */
static Value call_batch_mean(const Call *c) {
    Node *x = tensor(c, 0);
    if (!x) return value_error;
    int64_t rows = x->type.rank == 2 && x->type.dim[1] == 1 ? x->type.dim[0] : 0;
    if (rows != DIM_S && rows != DIM_M) {
        char t[64];
        diag_error(c->s->e->diag, c->x[0]->span,
                   "batch_mean needs one value for each sequence or masked position; this is %s",
                   type_str(x->type, t));
        note_context(c->s);
        return value_error;
    }
    Value total = call_sum(c);
    Node *count = input(c, rows == DIM_S ? PEFT_IN_sequences : PEFT_IN_masked);
    Node *in[] = {total.kind == VAL_TENSOR ? total.node : NULL,
                  node(c, OP_RECIP, no_attr(), &count, 1)};
    return value_node(node(c, OP_MUL, no_attr(), in, 2));
}

/* ---- the table ---- */

static const struct Builtin {
    const char *name;
    const char *arg[MAX_ARGS];
    Value (*call)(const Call *c);
} builtin[] = {
    {"dropout", {"x", "p"}, call_dropout},
    {"attention", {"q", "k", "v", "heads", "p"}, call_attention},
    {"layer_norm", {"x", "weight", "bias", "eps"}, call_layer_norm},
    {"gather", {"table", "ids"}, call_gather},
    {"first_token", {"x"}, call_first_token},
    {"cross_entropy", {"logits", "labels"}, call_cross_entropy},
    {"batch_mean", {"x"}, call_batch_mean},
    {"row_sum", {"x"}, call_row_sum},
    {"sum", {"x"}, call_sum},
    {"normal", {"std"}, call_normal},
    {"uniform", {"bound"}, call_uniform},
    {"kaiming_uniform", {"a"}, call_kaiming},
};
enum { NBUILTIN = sizeof builtin / sizeof *builtin };

static const struct Unary *find_unary(const char *name) {
    for (int i = 0; i < NUNARY; i++)
        if (strcmp(unary[i].name, name) == 0) return &unary[i];
    return NULL;
}

static const struct Builtin *find_builtin(const char *name) {
    for (int i = 0; i < NBUILTIN; i++)
        if (strcmp(builtin[i].name, name) == 0) return &builtin[i];
    return NULL;
}

bool is_builtin(const char *name) {
    return find_unary(name) || find_builtin(name);
}

void offer_builtins(Nearest *n) {
    for (int i = 0; i < NUNARY; i++) nearest_offer(n, unary[i].name);
    for (int i = 0; i < NBUILTIN; i++) nearest_offer(n, builtin[i].name);
}

static int argument_index(const char *const *names, int n, const Arg *a, int position) {
    if (!a->name.text) return position < n ? position : -1;
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], a->name.text) == 0) return i;
    return -1;
}

static const char *signature(const Call *c, const char *name, const char *const *names, int n) {
    const char *text = graph_printf(c->s->e->g, "%s(%s", name, names[0]);
    for (int i = 1; i < n; i++) text = graph_printf(c->s->e->g, "%s, %s", text, names[i]);
    return text;
}

/* Each argument once; evaluated in the order of the text. */
static bool bind(Call *c, const char *name, const char *const *names, int n) {
    bool ok = true;
    for (int i = 0; i < c->at->call.narg; i++) {
        const Arg *a = &c->at->call.arg[i];
        int k = argument_index(names, n, a, i);
        Span at = a->name.text ? a->name.span : a->value->span;
        if (k < 0)
            return diag_error(c->s->e->diag, at, "this argument does not fit %s)",
                              signature(c, name, names, n));
        if (c->x[k]) return diag_error(c->s->e->diag, at, "`%s` is given twice", names[k]);
        c->x[k] = a->value;
        c->arg[k] = eval(c->s, a->value);
        ok &= c->arg[k].kind != VAL_ERROR;
    }
    for (int k = 0; k < n; k++)
        if (!c->x[k])
            return diag_error(c->s->e->diag, c->at->span, "the argument `%s` is missing in %s)",
                              names[k], signature(c, name, names, n));
    return ok;
}

Value call_builtin(Scope *s, const Expr *at) {
    const char *name = at->call.callee.part[0].text;
    const struct Unary *u = find_unary(name);
    const struct Builtin *b = find_builtin(name);
    static const char *const x[] = {"x"};
    const char *const *names = u ? x : b->arg;
    int n = 0;
    while (n < (u ? 1 : MAX_ARGS) && names[n]) n++;
    Call c = {.s = s, .at = at};
    if (!bind(&c, name, names, n)) return value_error;
    Origin old = graph_set_origin(s->e->g, (Origin){at->span, NULL});
    Value v = u ? call_unary(&c, u) : b->call(&c);
    graph_set_origin(s->e->g, old);
    return v;
}

bool is_init(const Scope *s, const Expr *x) {
    const Name *n = x->kind == EX_NAME ? &x->name : x->kind == EX_CALL ? &x->call.callee : NULL;
    if (!n || n->n != 1) return false;
    const char *name = n->part[0].text;
    const Binding *b = env_find(s->env, name);
    if (x->kind == EX_NAME && b) return b->value.kind == VAL_INIT;
    if (x->kind == EX_NAME) return strcmp(name, "zeros") == 0 || strcmp(name, "ones") == 0;
    return strcmp(name, "normal") == 0 || strcmp(name, "uniform") == 0 ||
           strcmp(name, "kaiming_uniform") == 0;
}
