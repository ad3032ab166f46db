/* Prints values of a kernel body as C expressions. A value used once is written where it is used;
 * a named one is a variable vN. Names: aN is argument N, r the row, c the column. */
#include "c_print.h"

#include <math.h>
#include <string.h>

enum { INLINE_CHARS = 56 }; /* longer expressions get a name */

const char *c_number(CPrinter *p, double x) {
    float f = (float)x;
    if (isnan(f)) return "PK_NAN";
    if (isinf(f)) return f > 0 ? "PK_INF" : "(-PK_INF)";
    char text[32];
    snprintf(text, sizeof text, "%.9g", (double)f);
    const char *dot = strpbrk(text, ".e") ? "" : ".0";
    return graph_printf(p->g, f < 0 ? "(%s%sf)" : "%s%sf", text, dot);
}

static const char *column(const CPrinter *p) {
    return p->column ? p->column : "c";
}

const char *c_index(CPrinter *p, Access access) {
    int64_t cols = p->body->cols;
    switch (access) {
    case ACCESS_ELEMENT: return graph_printf(p->g, "r * %lld + %s", (long long)cols, column(p));
    case ACCESS_ROW: return "r";
    case ACCESS_COLUMN: return column(p);
    default: return "0";
    }
}

/* Position of the column in scratch that holds the columns of one block. */
const char *c_scratch(const CPrinter *p) {
    return p->block ? p->block : "c";
}

/* Values that a call fills into a scratch row before the loop: dropout factors, NF4 rows. */
bool c_is_filled(const CPrinter *p, const KInstr *in) {
    if (p->cuda || in->level != LEVEL_ELEMENT) return false;
    return in->op == K_KEEP ||
           ((in->op == K_LOAD || in->op == K_GATHER) && peft_is_nf4(in->tensor->type.dt));
}

/* The row of a table that an index names, as the start of a position. */
static const char *table_position(CPrinter *p, const KInstr *in) {
    const char *row = c_value(p, in->a), *at;
    if (p->live) row = graph_printf(p->g, "live ? %s : 0", row);
    if (in->op == K_SCATTER)
        at = graph_printf(p->g, "pk_slot(%s)", row);
    else if (p->live)
        at = graph_printf(p->g, "(int64_t)(%s)", row);
    else
        at = graph_printf(p->g, "(int64_t)%s", c_atom(p, in->a));
    if (in->level != LEVEL_ELEMENT) return at;
    return graph_printf(p->g, "%s * %lld + %s", at, (long long)p->body->cols, column(p));
}

const char *c_place(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    return in->op == K_LOAD ? c_index(p, access_of(p->body, in->tensor->type))
                            : table_position(p, in);
}

/* The place of a K_KEEP instruction among the kernel's dropout sites. */
int c_site(const CPrinter *p, KVal v) {
    int site = p->first_site;
    for (int i = 0; i < v; i++) site += p->body->instr[i].op == K_KEEP;
    return site;
}

int32_t c_joined(const CPrinter *p, int a) {
    return p->code->join ? p->code->join->result[a] : -1;
}

const char *c_access(const CPrinter *p, int a) {
    return p->code->storage[a] == DT_MASTER ? "_master" : "";
}

/* A master's second plane is placed by the number of its elements. */
const char *c_operands(CPrinter *p, int a, const char *at, Type t) {
    const char *place = graph_printf(p->g, "a%d, %s", p->first_arg + a, at);
    if (p->code->storage[a] != DT_MASTER) return place;
    return graph_printf(p->g, "%s, %lld", place, (long long)type_count(t));
}

static bool is_plain(const CPrinter *p, int a) {
    return !p->cuda || (p->code->storage[a] != DT_WORK && p->code->storage[a] != DT_MASTER);
}

/* Element `at` of argument a. */
static const char *element(CPrinter *p, int a, const char *at, Type t) {
    if (c_joined(p, a) >= 0) return graph_printf(p->g, "e%d[i]", c_joined(p, a));
    if (is_plain(p, a)) return graph_printf(p->g, "a%d[%s]", p->first_arg + a, at);
    return graph_printf(p->g, "pk_get%s(%s)", c_access(p, a), c_operands(p, a, at, t));
}

void c_store(CPrinter *p, int out, const char *at, const char *value) {
    int a = arg_written(p->kernel, &p->args, out);
    Type t = p->kernel->out[out]->type;
    if (p->live) value = graph_printf(p->g, "live ? %s : 0", value);
    if (cuda_is_vector_result(p, out))
        c_line(p, "y%d[u] = %s;", out, value);
    else if (is_plain(p, a))
        c_line(p, "a%d[%s] = %s;", p->first_arg + a, at, value);
    else
        c_line(p, "pk_put%s(%s, %s);", c_access(p, a), c_operands(p, a, at, t), value);
}

static const char *load(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    if (c_is_filled(p, in)) return graph_printf(p->g, "u%d[%s]", v, c_scratch(p));
    int a = arg_read(p->kernel, &p->args, in->tensor);
    if (in->op == K_KEEP && p->vector)
        return graph_printf(p->g, "%s[u]", cuda_vector_name(p, 'k', v));
    if (in->op == K_KEEP) return graph_printf(p->g, "pk_keep_one(%s, c)", cuda_keep_operands(p, v));
    bool vector = cuda_is_vector_load(p, v);
    const char *at = vector ? NULL : c_place(p, v);
    if (peft_is_nf4(in->tensor->type.dt))
        return graph_printf(p->g, "nf4_value(%sa%d, %s)", p->cuda ? "" : "&", a + p->first_arg, at);
    const char *value = vector ? graph_printf(p->g, "%s[u]", cuda_vector_name(p, 'x', v))
                               : element(p, a, at, in->tensor->type);
    return in->op != K_SCATTER ? value
                               : graph_printf(p->g, "%s < 0 ? 0 : %s", c_atom(p, in->a), value);
}

static const char *unary(CPrinter *p, const KInstr *in) {
    static const char *const call[K_OP_COUNT] = {
        [K_EXP] = "pk_exp",
        [K_LOG] = "pk_log",
        [K_SQRT] = "pk_sqrt",
        [K_SQUARE] = "pk_square",
        [K_TANH] = "pk_tanh",
        [K_SIGMOID] = "pk_sigmoid",
        [K_RELU] = "pk_relu",
        [K_GELU] = "pk_gelu",
        [K_GELU_TANH] = "pk_gelu_tanh",
        [K_SILU] = "pk_silu",
        [K_STEP] = "pk_step",
        [K_GELU_GRAD] = "pk_gelu_grad",
        [K_GELU_TANH_GRAD] = "pk_gelu_tanh_grad",
        [K_SILU_GRAD] = "pk_silu_grad",
    };
    if (in->op == K_NEG) return graph_printf(p->g, "-%s", c_atom(p, in->a));
    if (in->op == K_RECIP) return graph_printf(p->g, "1.0f / %s", c_atom(p, in->a));
    if (in->op == K_BIAS_CORRECTION)
        return graph_printf(p->g, "pk_bias_correction(%.17g, %s)", in->number, c_value(p, in->a));
    if (!call[in->op]) PANIC(in->tensor, "kernel op %d has no C form", (int)in->op);
    return graph_printf(p->g, "%s(%s)", call[in->op], c_value(p, in->a));
}

static const char *binary(CPrinter *p, const KInstr *in) {
    static const char *const sign[K_OP_COUNT] = {
        [K_ADD] = "+", [K_SUB] = "-", [K_MUL] = "*", [K_DIV] = "/"};
    if (in->op == K_MIN || in->op == K_MAX)
        return graph_printf(p->g, "pk_%s(%s, %s)", in->op == K_MIN ? "min" : "max",
                            c_value(p, in->a), c_value(p, in->b));
    return graph_printf(p->g, "%s %s %s", c_atom(p, in->a), sign[in->op], c_atom(p, in->b));
}

/* The code of an instruction, operands included. */
static const char *expression(CPrinter *p, KVal v) {
    const KInstr *in = &p->body->instr[v];
    switch (in->op) {
    case K_CONST: return c_number(p, in->number);
    case K_COLUMN: return "(int32_t)c";
    case K_LOAD:
    case K_GATHER:
    case K_SCATTER:
    case K_KEEP: return load(p, v);
    case K_EQ_SELECT:
        return graph_printf(p->g, "%s == %s ? %s : 0", c_atom(p, in->a), c_atom(p, in->b),
                            c_atom(p, in->c));
    case K_ADD:
    case K_SUB:
    case K_MUL:
    case K_DIV:
    case K_MIN:
    case K_MAX: return binary(p, in);
    default: return unary(p, in);
    }
}

/* A value that an earlier loop left in a scratch row. */
static bool is_kept(const CPrinter *p, KVal v) {
    return p->body->instr[v].level == LEVEL_ELEMENT && p->loops.kept[v] &&
           p->loops.phase[v] < p->loop;
}

const char *c_value(CPrinter *p, KVal v) {
    if (is_kept(p, v)) return graph_printf(p->g, p->cuda ? "w%d[i]" : "w%d[c]", v);
    return p->named[v] ? graph_printf(p->g, "v%d", v) : expression(p, v);
}

/* The same as an operand: in parentheses when it has operators outside of calls and brackets. */
const char *c_atom(CPrinter *p, KVal v) {
    const char *text = c_value(p, v);
    int depth = 0;
    for (const char *s = text; p->body->instr[v].op != K_CONST && *s; s++) {
        depth += *s == '(' || *s == '[';
        depth -= *s == ')' || *s == ']';
        if (depth == 0 && (*s == ' ' || *s == '-')) return graph_printf(p->g, "(%s)", text);
    }
    return text;
}

/* Gives a value a name, unless it is a constant or a short expression used once. */
void c_name(CPrinter *p, KVal v, bool shared) {
    const KInstr *in = &p->body->instr[v];
    if (in->op == K_CONST || p->named[v] || is_kept(p, v)) return;
    const char *text = expression(p, v);
    if (!shared && strlen(text) <= INLINE_CHARS) return;
    c_line(p, "const %s v%d = %s;", in->integer ? "int32_t" : "float", v, text);
    p->named[v] = true;
}
