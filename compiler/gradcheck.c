/* Checks of gradient rules and scalar code by the op table's own samples. All numbers are doubles;
 * a NaN anywhere makes the worst error a NaN, which no tolerance accepts. */
#include "gradcheck.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "autodiff.h"
#include "kbody_eval.h"
#include "op/rules.h"
#include "op/sample.h"

enum { MAX_INPUTS = 16 };

/* ---- cases ---- */

/* Binds every variable that is not bound yet. */
static void bind_vars(OpCase *c, int bound) {
    RefTensor *var = graph_alloc(c->g, (size_t)c->g->nvar * sizeof *var);
    if (bound) memcpy(var, c->env.var, (size_t)bound * sizeof *var);
    for (int i = bound; i < c->g->nvar; i++) {
        Type t = c->g->var[i].type;
        var[i].rank = t.rank;
        var[i].count = 1;
        for (int d = 0; d < t.rank; d++)
            var[i].count *= var[i].dim[d] = peft_dim(t.dim[d], c->env.sym);
        var[i].data = graph_alloc(c->g, (size_t)var[i].count * sizeof(double));
        sample_fill(&c->g->var[i], c->seed, var[i].data, var[i].count);
    }
    c->env.var = var;
}

static void bind_inputs(OpCase *c) {
    RefTensor *input = graph_alloc(c->g, PEFT_IN_COUNT * sizeof *input);
    for (int i = 0; i < PEFT_IN_COUNT; i++) {
        Type t = nd_input(c->g, i)->type;
        input[i].count = 1;
        for (int d = 0; d < t.rank; d++) input[i].count *= peft_dim(t.dim[d], c->env.sym);
        input[i].data = graph_alloc(c->g, (size_t)input[i].count * sizeof(double));
        sample_batch(i, input[i].data, input[i].count);
    }
    c->env.input = input;
}

bool opcase_open(OpCase *c, OpCode op, int k, uint64_t seed) {
    *c = (OpCase){.g = graph_new(), .seed = seed, .env = {.seed = 7, .step = 3, .dropout = true}};
    c->node = op_rules[op].sample ? op_rules[op].sample(c->g, k) : NULL;
    if (!c->node) {
        opcase_close(c);
        return false;
    }
    if (c->node->op != op) PANIC(c->node, "sample %d of %s", k, op_info[op].name);
    sample_symbols(c->env.sym);
    bind_inputs(c);
    bind_vars(c, 0);
    return true;
}

void opcase_close(OpCase *c) {
    graph_free(c->g);
    c->g = NULL;
}

/* ---- comparing ---- */

/* Gradients are of order 1: below this the error is absolute. */
static const double absolute_below = 1e-2;

static void compare(CheckResult *r, double found, double wanted, const char *what, int64_t i) {
    double err = fabs(found - wanted) / (fabs(wanted) + absolute_below);
    r->compared++;
    if (err <= r->worst || isnan(r->worst)) return;
    r->worst = err;
    snprintf(r->what, sizeof r->what, "%s[%lld]: found %.12g, wanted %.12g", what, (long long)i,
             found, wanted);
}

static void broken(CheckResult *r, const char *rule, int input) {
    r->sound = false;
    snprintf(r->what, sizeof r->what, "input %d: %s", input, rule);
}

/* Evaluates one node; the caller frees. */
static RefTensor eval(const OpCase *c, Node *n) {
    RefTensor t;
    PeftError err = {0};
    if (!interp_roots(c->g, &c->env, &n, 1, &t, &err)) PANIC(n, "%s", err.msg);
    return t;
}

/* ---- numeric gradients ---- */

/* Result 0, which alone carries gradients. */
static Node *result0(Graph *g, Node *n) {
    return op_info[n->op].nout > 1 ? nd_proj(g, n, 0) : n;
}

/* sum(w y) with fixed weights. */
static double loss(const OpCase *c, Node *y, const RefTensor *w) {
    RefTensor t = eval(c, y);
    double sum = 0;
    for (int64_t i = 0; i < t.count; i++) sum += w->data[i] * t.data[i];
    interp_free(&t, 1);
    return sum;
}

/* (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / 12 h, error O(h^4). */
static double slope(const OpCase *c, Node *y, const RefTensor *w, double *x) {
    double x0 = *x, h = 1e-3 * fmin(fmax(fabs(x0), 0.1), 1), f[5];
    for (int i = -2; i <= 2; i++) {
        *x = x0 + i * h;
        f[i + 2] = i ? loss(c, y, w) : 0;
    }
    *x = x0;
    return (8 * (f[3] - f[1]) - (f[4] - f[0])) / (12 * h);
}

static bool is_variable(const Node *n) {
    return n->op == OP_VAR && n->type.dt == DT_F32;
}

typedef struct Numeric { /* d loss / d input, for the inputs that are f32 variables */
    OpCase c;
    double *d[MAX_INPUTS];
    int input[MAX_INPUTS], n;
} Numeric;

/* Adds the weights w of the loss: one more variable, of result 0's type. */
static Node *weight(OpCase *c) {
    int bound = c->g->nvar;
    Node *w = sample_var(c->g, SAMPLE_REAL, c->node->type);
    bind_vars(c, bound);
    return w;
}

/* False when there is nothing to differentiate. */
static bool numeric_open(Numeric *m, OpCode op, int k, uint64_t seed) {
    *m = (Numeric){0};
    if (!op_rules[op].grad || !opcase_open(&m->c, op, k, seed)) return false;
    if (m->c.node->type.dt != DT_F32) {
        opcase_close(&m->c);
        return false;
    }
    Graph *g = m->c.g;
    int32_t weights = weight(&m->c)->attr.leaf.index;
    const RefTensor *w = &m->c.env.var[weights];
    Node *y = result0(g, m->c.node);
    for (int i = 0; i < m->c.node->nin; i++) {
        const Node *x = m->c.node->in[i];
        if (!is_variable(x)) continue;
        const RefTensor *t = &m->c.env.var[x->attr.leaf.index];
        m->input[m->n++] = i;
        m->d[i] = graph_alloc(g, (size_t)t->count * sizeof(double));
        for (int64_t e = 0; e < t->count; e++) m->d[i][e] = slope(&m->c, y, w, &t->data[e]);
    }
    return true;
}

/* ---- symbolic gradients ---- */

/* Sums a gradient in a broadcast shape down to the shape of its input. */
static void sum_down(const RefTensor *d, const RefTensor *x, double *out) {
    int64_t rows = ref_rows(x), cols = ref_cols(x), wide = ref_cols(d);
    memset(out, 0, (size_t)x->count * sizeof *out);
    for (int64_t i = 0; i < d->count; i++) {
        int64_t r = rows == 1 ? 0 : i / wide, c = cols == 1 ? 0 : i % wide;
        out[r * cols + c] += d->data[i];
    }
}

static void compare_gradient(CheckResult *r, const OpCase *c, Node *x, Node *dx,
                             const double *wanted) {
    const RefTensor *t = &c->env.var[x->attr.leaf.index];
    double *found = graph_alloc(c->g, (size_t)t->count * sizeof *found);
    if (dx) {
        RefTensor d = eval(c, dx);
        sum_down(&d, t, found);
        interp_free(&d, 1);
    }
    for (int64_t i = 0; i < t->count; i++)
        compare(r, found[i], wanted[i], c->g->var[x->attr.leaf.index].name, i);
}

/* Every node since `before` is needed by one of the gradients. */
static bool all_used(const Graph *g, int before, Node *const dx[], int n) {
    bool *used = graph_alloc((Graph *)g, (size_t)g->n + 1);
    for (int i = 0; i < n; i++)
        if (dx[i]) used[dx[i]->id] = true;
    for (int id = g->n - 1; id >= before; id--) {
        if (!used[id]) return false;
        for (int i = 0; i < g->node[id]->nin; i++) used[g->node[id]->in[i]->id] = true;
    }
    return true;
}

/* One subset of the inputs, in a graph of its own. */
static void check_subset(CheckResult *r, const Numeric *m, OpCode op, int k, unsigned subset) {
    OpCase c;
    if (!opcase_open(&c, op, k, m->c.seed)) return;
    bool need[MAX_INPUTS] = {false};
    Node *dx[MAX_INPUTS] = {NULL}, *dy[MAX_RESULTS] = {weight(&c)};
    for (int i = 0; i < m->n; i++) need[m->input[i]] = subset >> i & 1;
    int before = c.g->n;
    op_rules[op].grad(c.g, c.node, dy, need, dx);
    if (!all_used(c.g, before, dx, c.node->nin)) broken(r, "the rule builds nodes in vain", -1);
    for (int i = 0; i < c.node->nin && r->sound; i++) {
        if (!need[i] && dx[i]) broken(r, "the rule gives a gradient that is not needed", i);
        if (need[i]) compare_gradient(r, &c, c.node->in[i], dx[i], m->d[i]);
    }
    opcase_close(&c);
}

CheckResult gradcheck_rule(OpCode op, int k, uint64_t seed) {
    CheckResult r = {.sound = true};
    Numeric m;
    if (!numeric_open(&m, op, k, seed)) return r;
    for (unsigned subset = 0; subset < 1u << m.n && r.sound; subset++)
        check_subset(&r, &m, op, k, subset);
    opcase_close(&m.c);
    return r;
}

CheckResult gradcheck_driver(OpCode op, int k, uint64_t seed) {
    CheckResult r = {.sound = true};
    Numeric m;
    if (!numeric_open(&m, op, k, seed)) return r;
    Node *wrt[MAX_INPUTS], *dx[MAX_INPUTS], *w = nd_var(m.c.g, m.c.g->nvar - 1);
    for (int i = 0; i < m.n; i++) wrt[i] = m.c.node->in[m.input[i]];
    Node *sum = nd_sum(m.c.g, nd2(m.c.g, OP_MUL, w, result0(m.c.g, m.c.node)), -1);
    autodiff(m.c.g, sum, wrt, m.n, dx);
    for (int i = 0; i < m.n && r.sound; i++) {
        if (dx[i] && !type_equal(dx[i]->type, wrt[i]->type))
            broken(&r, "the gradient is not of the input's type", m.input[i]);
        else
            compare_gradient(&r, &m.c, wrt[i], dx[i], m.d[m.input[i]]);
    }
    opcase_close(&m.c);
    return r;
}

/* ---- scalar code ---- */

static bool has_scalar_code(const Node *n) {
    return op_rules[n->op].lower && (n->op != OP_SUM || n->attr.sum.axis == 1);
}

/* Tables and the generator's state are named by the op, not loaded at an element. */
static bool is_loaded(const Node *n, int i) {
    if (op_info[n->op].class == CLASS_LOAD) return i == 1;
    return n->op != OP_DROPOUT || i != 1;
}

/* The index space of an op's body: its operand's where it reduces rows, else its result's. */
static Type space_of(const Node *n) {
    OpClass class = op_info[n->op].class;
    return class == CLASS_ROW || class == CLASS_SUM ? n->in[0]->type : n->type;
}

/* A row value is the same in every column, a uniform one everywhere. */
static void check_levels(CheckResult *r, const KBody *b, int64_t rows, const double *value) {
    int64_t cols = b->cols, space = rows * cols;
    for (KVal v = 0; v < b->n; v++)
        for (int64_t i = 0; i < space; i++) {
            int64_t first = b->instr[v].level == LEVEL_ROW ? i / cols * cols : 0;
            if (b->instr[v].level == LEVEL_ELEMENT ||
                value[v * space + i] == value[v * space + first])
                continue;
            broken(r, "a row or uniform value of the body varies", v);
        }
}

static void compare_result(CheckResult *r, const OpCase *c, int k, int64_t cols, int64_t rows,
                           const double *value) {
    Node *result = op_info[c->node->op].nout > 1 ? nd_proj(c->g, c->node, k) : c->node;
    RefTensor want = eval(c, result);
    int64_t trows, tcols;
    type_space(result->type, &trows, &tcols);
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t at = (trows == 1 ? 0 : i / cols) * tcols + (tcols == 1 ? 0 : i % cols);
        compare(r, value[i], want.data[at], "result", at);
    }
    interp_free(&want, 1);
}

static KBody *lower_case(const OpCase *c, KVal out[]) {
    const Node *n = c->node;
    int64_t rows, cols;
    KVal in[MAX_INPUTS];
    type_space(space_of(n), &rows, &cols);
    KBody *b = kb_new(c->g, rows, cols);
    for (int i = 0; i < n->nin; i++) in[i] = is_loaded(n, i) ? kb_load(b, n->in[i]) : -1;
    op_rules[n->op].lower(b, n, in, out);
    return b;
}

static const double *eval_body(const OpCase *c, const KBody *b, int64_t rows) {
    RefTensor *tensor = graph_alloc(c->g, (size_t)b->n * sizeof *tensor);
    for (KVal v = 0; v < b->n; v++)
        if (b->instr[v].tensor) tensor[v] = eval(c, (Node *)b->instr[v].tensor);
    double *value = graph_alloc(c->g, (size_t)(b->n * rows * b->cols) * sizeof *value);
    kbody_eval(b, rows, tensor, value);
    interp_free(tensor, b->n);
    return value;
}

CheckResult lowercheck(OpCode op, int k, uint64_t seed) {
    CheckResult r = {.sound = true};
    OpCase c;
    if (!opcase_open(&c, op, k, seed)) return r;
    if (has_scalar_code(c.node)) {
        KVal out[MAX_RESULTS];
        const KBody *b = lower_case(&c, out);
        int64_t rows = peft_dim(b->rows, c.env.sym);
        const double *value = eval_body(&c, b, rows);
        check_levels(&r, b, rows, value);
        for (int i = 0; i < op_info[op].nout && r.sound; i++)
            compare_result(&r, &c, i, b->cols, rows, value + out[i] * rows * b->cols);
    }
    opcase_close(&c);
    return r;
}
