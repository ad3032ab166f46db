/* Printer and reader of the textual graph. One table says which attributes an op has; both
 * directions work from it. The reader trusts nothing: every name, number and type is checked before
 * a node is built, and the finished graph is verified. It does not recurse and its work is bounded
 * by the text. */
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "op/rules.h"
#include "pool.h"
#include "verify.h"

/* ---- vocabulary ---- */

typedef enum FieldKind { FIELD_REAL, FIELD_INT, FIELD_FLAG, FIELD_DIM } FieldKind;

typedef struct Field {
    OpCode op;
    const char *name; /* "": the value alone is written */
    FieldKind kind;
    size_t at; /* offset in Attr */
} Field;

#define AT(member) offsetof(Attr, member)
#define ATTENTION_FIELDS(op)                                                                \
    {op, "scale", FIELD_REAL, AT(attention.scale)}, {op, "p", FIELD_REAL, AT(attention.p)}, \
        {op, "heads", FIELD_INT, AT(attention.heads)}, {                                    \
        op, "site", FIELD_INT, AT(attention.site)                                           \
    }

/* RESHAPE and BROADCAST have their attribute written as their type, VAR and INPUT as a name. */
static const Field fields[] = {
    {OP_CONST, "", FIELD_REAL, AT(constant.value)},
    {OP_PROJ, "k", FIELD_INT, AT(proj.k)},
    {OP_SUM, "axis", FIELD_INT, AT(sum.axis)},
    {OP_MATMUL, "trans_a", FIELD_FLAG, AT(matmul.trans_a)},
    {OP_MATMUL, "trans_b", FIELD_FLAG, AT(matmul.trans_b)},
    {OP_LAYER_NORM, "eps", FIELD_REAL, AT(norm.eps)},
    {OP_DROPOUT, "p", FIELD_REAL, AT(dropout.p)},
    {OP_DROPOUT, "site", FIELD_INT, AT(dropout.site)},
    ATTENTION_FIELDS(OP_ATTENTION),
    ATTENTION_FIELDS(OP_ATTENTION_GRAD),
    {OP_ATTENTION_GRAD, "need", FIELD_INT, AT(attention.need)},
    {OP_INDEX, "rows", FIELD_DIM, AT(index.rows)},
    {OP_BIAS_CORRECTION, "beta", FIELD_REAL, AT(decay.beta)},
    {OP_ADAMW, "beta1", FIELD_REAL, AT(adamw.beta1)},
    {OP_ADAMW, "beta2", FIELD_REAL, AT(adamw.beta2)},
    {OP_ADAMW, "eps", FIELD_REAL, AT(adamw.eps)},
};

enum { FIELD_COUNT = sizeof fields / sizeof *fields };

static const char *const fn_name[PEFT_FN_COUNT] = {
    [PEFT_FN_EVAL] = "eval",           [PEFT_FN_TRAIN] = "train", [PEFT_FN_UPDATE] = "update",
    [PEFT_FN_GRADIENTS] = "gradients", [PEFT_FN_START] = "start",
};

static const char *const input_name[PEFT_IN_COUNT] = {
#define X(name, dtype, rank, d0, d1) #name,
    PEFT_INPUTS(X)
#undef X
};

static const char *const init_name[] = {"zeros", "ones", "constant", "normal", "uniform"};
static const char *const dtype_name[] = {"f32", "i32", "nf4", "nf4_plain"};
static const char symbol_name[PEFT_SYM_COUNT] = {0, 'T', 'S', 'M', 'L', 'P', 'W'};

enum {
    INIT_COUNT = sizeof init_name / sizeof *init_name,
    DTYPE_COUNT = sizeof dtype_name / sizeof *dtype_name
};

static bool is_view_to(OpCode op) {
    return op == OP_RESHAPE || op == OP_BROADCAST;
}

/* ---- printing ---- */

/* The shortest decimal that reads back to the same double. */
static void print_real(FILE *to, double v) {
    char s[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v) break;
    }
    fputs(s, to);
}

static void print_dim(FILE *to, int64_t d) {
    if (d >= 0)
        fprintf(to, "%lld", (long long)d);
    else
        fprintf(to, "%c%s", symbol_name[-d & 15], -d >> 4 ? "+1" : "");
}

static void print_type(FILE *to, Type t) {
    fputs(dtype_name[t.dt], to);
    for (int i = 0; i < t.rank; i++) {
        fputs(i ? ", " : "[", to);
        print_dim(to, t.dim[i]);
    }
    if (t.rank) fputc(']', to);
}

static void print_string(FILE *to, const char *s) {
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(to, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(to, "\\x%02x", c);
        else
            fputc(c, to);
    }
    fputc('"', to);
}

static void print_span(FILE *to, Span s, bool spans) {
    if (spans && s.file >= 0) fprintf(to, " at %d:%d-%d", s.file, s.begin, s.end);
}

static void print_var(FILE *to, const Var *v, bool spans) {
    fputs("var ", to);
    print_string(to, v->name);
    fputs(" : ", to);
    print_type(to, v->type);
    fprintf(to, " = %s", init_name[v->init.kind]);
    if (v->init.kind >= PEFT_CONSTANT) {
        fputc('(', to);
        print_real(to, v->init.a);
        fputc(')', to);
    }
    if (v->kind == VAR_STATE) fputs(" state", to);
    if (v->trainable) fputs(" trainable", to);
    if (v->decay) fputs(" decay", to);
    if (v->fresh) fputs(" fresh", to);
    if (v->group >= 0) fprintf(to, " group %d", v->group);
    if (v->block) {
        fputs(" block ", to);
        print_string(to, v->block);
    }
    print_span(to, v->span, spans);
    fputc('\n', to);
}

static void print_field(FILE *to, const Field *f, const Attr *attr) {
    const void *at = (const char *)attr + f->at;
    int32_t number;
    double real;
    int64_t dim;
    switch (f->kind) {
    case FIELD_FLAG:
        memcpy(&number, at, sizeof number);
        if (number) fprintf(to, " %s", f->name);
        return;
    case FIELD_INT:
        memcpy(&number, at, sizeof number);
        fprintf(to, " %s=%d", f->name, number);
        return;
    case FIELD_REAL:
        memcpy(&real, at, sizeof real);
        fprintf(to, " %s%s", f->name, *f->name ? "=" : "");
        print_real(to, real);
        return;
    case FIELD_DIM:
        memcpy(&dim, at, sizeof dim);
        fprintf(to, " %s=", f->name);
        print_dim(to, dim);
        return;
    }
}

/* Nodes are numbered by their place among the printed ones: number[id]. */
static void print_node(FILE *to, const Graph *g, const Node *n, const int32_t *number, bool spans) {
    fprintf(to, "%%%d = %s", number[n->id], op_info[n->op].name);
    for (int i = 0; i < n->nin; i++) fprintf(to, "%s %%%d", i ? "," : "", number[n->in[i]->id]);
    if (n->op == OP_VAR) {
        fputc(' ', to);
        print_string(to, g->var[n->attr.leaf.index].name);
    }
    if (n->op == OP_INPUT) fprintf(to, " %s", input_name[n->attr.leaf.index]);
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields[i].op == n->op) print_field(to, &fields[i], &n->attr);
    fputs(" : ", to);
    print_type(to, n->type);
    if (n->stream) fprintf(to, " stream %d", n->stream);
    if (n->of) fprintf(to, " of %%%d", number[n->of->id]);
    print_span(to, n->span, spans);
    fputc('\n', to);
}

/* number[id] of all live nodes, of the nodes they differentiate, and of what those need; -1 for the
 * others. */
static int32_t *number_nodes(Graph *g) {
    uint8_t *mark = graph_alloc(g, (size_t)g->n + 1);
    int32_t *number = graph_alloc(g, (size_t)g->n * sizeof *number + 1), count = 0;
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        for (int i = 0; i < g->fn[f].nout; i++) mark[g->fn[f].out[i].node->id] = 1;
        for (int i = 0; i < g->fn[f].nupdate; i++) mark[g->fn[f].update[i].value->id] = 1;
    }
    for (int32_t id = g->n - 1; id >= 0; id--) {
        const Node *n = g->node[id];
        if (!mark[id]) continue;
        for (int i = 0; i < n->nin; i++) mark[n->in[i]->id] = 1;
        if (n->of) mark[n->of->id] = 1;
    }
    for (int32_t id = 0; id < g->n; id++) number[id] = mark[id] ? count++ : -1;
    return number;
}

static void print_function(FILE *to, const Graph *g, int fn, const int32_t *number) {
    const Function *f = &g->fn[fn];
    if (!f->nout && !f->nupdate) return;
    fprintf(to, "\n%s {\n", fn_name[fn]);
    for (int i = 0; i < f->nout; i++) {
        fputs("  output ", to);
        print_string(to, f->out[i].name);
        fprintf(to, " %%%d\n", number[f->out[i].node->id]);
    }
    for (int i = 0; i < f->nupdate; i++) {
        fputs("  update ", to);
        print_string(to, g->var[f->update[i].var].name);
        fprintf(to, " %%%d\n", number[f->update[i].value->id]);
    }
    fputs("}\n", to);
}

void text_print(FILE *to, Graph *g, bool spans) {
    const int32_t *number = number_nodes(g);
    fprintf(to, "sites %d\n\n", g->nsite);
    for (int32_t i = 0; i < g->nvar; i++) print_var(to, &g->var[i], spans);
    fputc('\n', to);
    for (int32_t id = 0; id < g->n; id++)
        if (number[id] >= 0) print_node(to, g, g->node[id], number, spans);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) print_function(to, g, fn, number);
}

/* ---- reading ---- */

enum { MAX_VARS = 1 << 14, MAX_ROOTS = 1 << 12, MAX_SITES = 1 << 20, MAX_INPUTS = 16 };

typedef struct Reader {
    Graph *g;
    const char *name, *at, *end;
    int line;
    PeftError *err;
    Node **node; /* by number */
    int count, cap;
} Reader;

static bool fail(Reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Always false. The first failure is kept. */
static bool fail(Reader *r, const char *fmt, ...) {
    char why[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    return peft_fail(r->err, "%s:%d: %s", r->name, r->line, why);
}

static void skip_blanks(Reader *r) {
    for (; r->at < r->end; r->at++) {
        if (*r->at == '#')
            while (r->at + 1 < r->end && r->at[1] != '\n') r->at++;
        else if (*r->at == '\n')
            r->line++;
        else if (*r->at != ' ' && *r->at != '\t' && *r->at != '\r')
            return;
    }
}

/* What is next, for messages: a few bytes, or the end of the file. */
static const char *found(const Reader *r, char buf[24]) {
    if (r->at >= r->end) return "the end of the file";
    int n = 0;
    while (n < 16 && r->at + n < r->end && isprint((unsigned char)r->at[n])) n++;
    snprintf(buf, 24, n ? "'%.*s'" : "a byte that is not text", n, r->at);
    return buf;
}

static bool accept(Reader *r, char c) {
    skip_blanks(r);
    if (r->at >= r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static bool expect(Reader *r, char c) {
    char buf[24];
    return accept(r, c) || fail(r, "expected '%c', found %s", c, found(r, buf));
}

/* A word of letters, digits and underscores; "" when there is none. The longest is 31 bytes. */
static bool read_word(Reader *r, char word[32]) {
    int n = 0;
    skip_blanks(r);
    while (r->at < r->end && (isalnum((unsigned char)*r->at) || *r->at == '_')) {
        if (n == 31) return fail(r, "a word of more than 31 letters");
        word[n++] = *r->at++;
    }
    word[n] = 0;
    return true;
}

static bool accept_word(Reader *r, const char *want) {
    const char *at = r->at;
    int line = r->line;
    char word[32];
    if (read_word(r, word) && !strcmp(word, want)) return true;
    r->at = at;
    r->line = line;
    return false;
}

static int find_name(const char *word, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (!strcmp(word, list[i])) return i;
    return -1;
}

/* One of a list of names. */
static bool read_name(Reader *r, const char *what, const char *const *list, int n, int *out) {
    char word[32], buf[24];
    skip_blanks(r);
    const char *next = found(r, buf);
    if (!read_word(r, word)) return false;
    *out = find_name(word, list, n);
    if (*out >= 0) return true;
    return word[0] ? fail(r, "unknown %s '%s'", what, word)
                   : fail(r, "expected %s, found %s", what, next);
}

static bool read_integer(Reader *r, int64_t low, int64_t high, int64_t *out) {
    char buf[24], *end;
    skip_blanks(r);
    errno = 0;
    long long v = strtoll(r->at, &end, 10);
    if (end == r->at) return fail(r, "expected a whole number, found %s", found(r, buf));
    if (errno || v < low || v > high)
        return fail(r, "%.*s is not from %lld to %lld", (int)(end - r->at < 20 ? end - r->at : 20),
                    r->at, (long long)low, (long long)high);
    r->at = end;
    *out = v;
    return true;
}

static bool read_int32(Reader *r, int64_t low, int64_t high, int32_t *out) {
    int64_t v;
    if (!read_integer(r, low, high, &v)) return false;
    *out = (int32_t)v;
    return true;
}

static bool read_real(Reader *r, double *out) {
    char buf[24], *end;
    skip_blanks(r);
    *out = strtod(r->at, &end);
    if (end == r->at) return fail(r, "expected a number, found %s", found(r, buf));
    r->at = end;
    return true;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character of a string, escapes decoded; -1 when malformed. */
static int read_char(Reader *r) {
    unsigned char c = (unsigned char)*r->at++;
    if (c < 0x20 || c == 0x7f) return -1;
    if (c != '\\') return c;
    if (r->at >= r->end) return -1;
    c = (unsigned char)*r->at++;
    if (c == '"' || c == '\\') return c;
    if (c != 'x' || r->end - r->at < 2) return -1;
    int high = hex_digit(r->at[0]), low = hex_digit(r->at[1]);
    r->at += 2;
    return high < 0 || low < 0 || !(high | low) ? -1 : high << 4 | low;
}

static bool read_string(Reader *r, const char **out) {
    if (!expect(r, '"')) return false;
    size_t size = 1;
    for (const char *p = r->at; p < r->end && *p != '"' && *p != '\n'; p++, size++)
        if (*p == '\\' && p + 1 < r->end) p++;
    char *s = graph_alloc(r->g, size), *to = s;
    while (r->at < r->end && *r->at != '"') {
        int c = read_char(r);
        if (c < 0) return fail(r, "malformed string");
        *to++ = (char)c;
    }
    *out = s;
    return expect(r, '"');
}

static bool read_dim(Reader *r, int64_t *out) {
    skip_blanks(r);
    if (r->at < r->end && !isalpha((unsigned char)*r->at))
        return read_integer(r, 1, INT32_MAX, out);
    char word[32];
    if (!read_word(r, word)) return false;
    for (int s = 1; s < PEFT_SYM_COUNT; s++) {
        if (word[0] != symbol_name[s] || word[1]) continue;
        *out = accept(r, '+') ? DIM_PLUS_ONE(-s) : -s;
        int64_t one;
        return *out == -s || read_integer(r, 1, 1, &one);
    }
    return fail(r, "expected a dimension, found '%s'", word);
}

static bool read_type(Reader *r, Type *out) {
    int dt;
    char why[256] = "";
    *out = (Type){0};
    if (!read_name(r, "type", dtype_name, DTYPE_COUNT, &dt)) return false;
    out->dt = dt;
    if (accept(r, '[')) {
        do {
            if (out->rank == PEFT_MAX_RANK)
                return fail(r, "more than %d dimensions", PEFT_MAX_RANK);
            if (!read_dim(r, &out->dim[out->rank++])) return false;
        } while (accept(r, ','));
        if (!expect(r, ']')) return false;
    }
    return is_sound(*out, why) || fail(r, "%s", why);
}

static bool read_span(Reader *r, Span *out) {
    return read_int32(r, 0, INT32_MAX, &out->file) && expect(r, ':') &&
           read_int32(r, 0, INT32_MAX, &out->begin) && expect(r, '-') &&
           read_int32(r, 0, INT32_MAX, &out->end);
}

/* ---- reading variables ---- */

static bool read_init(Reader *r, Init *out) {
    int kind;
    if (!expect(r, '=') || !read_name(r, "initial value", init_name, INIT_COUNT, &kind))
        return false;
    out->kind = (PeftInit)kind;
    if (kind < PEFT_CONSTANT) return true;
    return expect(r, '(') && read_real(r, &out->a) && expect(r, ')');
}

static bool read_var(Reader *r) {
    Var v = {.group = -1, .span = SPAN_NONE};
    if (!read_string(r, &v.name) || !expect(r, ':') || !read_type(r, &v.type) ||
        !read_init(r, &v.init))
        return false;
    if (accept_word(r, "state")) v.kind = VAR_STATE;
    v.trainable = accept_word(r, "trainable");
    v.decay = accept_word(r, "decay");
    v.fresh = accept_word(r, "fresh");
    if (accept_word(r, "group") && !read_int32(r, 0, INT32_MAX, &v.group)) return false;
    if (accept_word(r, "block") && !read_string(r, &v.block)) return false;
    if (accept_word(r, "at") && !read_span(r, &v.span)) return false;
    if (graph_find_var(r->g, v.name) >= 0) return fail(r, "a second variable \"%s\"", v.name);
    if (r->g->nvar == MAX_VARS) return fail(r, "more than %d variables", MAX_VARS);
    graph_var(r->g, v);
    return true;
}

static bool read_var_name(Reader *r, int32_t *var) {
    const char *name;
    if (!read_string(r, &name)) return false;
    *var = graph_find_var(r->g, name);
    return *var >= 0 || fail(r, "there is no variable \"%s\"", name);
}

/* ---- reading nodes ---- */

/* A node already defined. */
static bool read_ref(Reader *r, Node **out) {
    int32_t number;
    if (!expect(r, '%') || !read_int32(r, 0, INT32_MAX, &number)) return false;
    if (number >= r->count) return fail(r, "%%%d is not defined before", number);
    *out = r->node[number];
    return true;
}

static bool read_inputs(Reader *r, Node *like) {
    skip_blanks(r);
    if (r->at >= r->end || *r->at != '%') return true;
    do {
        if (like->nin == MAX_INPUTS) return fail(r, "more than %d inputs", MAX_INPUTS);
        if (!read_ref(r, &like->in[like->nin++])) return false;
    } while (accept(r, ','));
    return true;
}

static bool read_field(Reader *r, const Field *f, Attr *attr) {
    char *at = (char *)attr + f->at;
    int32_t number = 1;
    double real;
    int64_t dim;
    if (f->kind != FIELD_FLAG && *f->name && !expect(r, '=')) return false;
    switch (f->kind) {
    case FIELD_INT:
        if (!read_int32(r, INT32_MIN, INT32_MAX, &number)) return false; /* fall through */
    case FIELD_FLAG: memcpy(at, &number, sizeof number); return true;
    case FIELD_REAL:
        if (!read_real(r, &real)) return false;
        memcpy(at, &real, sizeof real);
        return true;
    case FIELD_DIM:
        if (!read_dim(r, &dim)) return false;
        memcpy(at, &dim, sizeof dim);
        return true;
    }
    return false;
}

/* Attributes up to the ':' before the type. */
static bool read_fields(Reader *r, OpCode op, Attr *attr) {
    char word[32];
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields[i].op == op && !*fields[i].name) return read_field(r, &fields[i], attr);
    while (read_word(r, word) && word[0]) {
        const Field *f = NULL;
        for (int i = 0; i < FIELD_COUNT; i++)
            if (fields[i].op == op && !strcmp(fields[i].name, word)) f = &fields[i];
        if (!f) return fail(r, "%s has no attribute '%s'", op_info[op].name, word);
        if (!read_field(r, f, attr)) return false;
    }
    return true;
}

static bool read_leaf(Reader *r, Node *like) {
    int input;
    if (like->op == OP_VAR) return read_var_name(r, &like->attr.leaf.index);
    if (!read_name(r, "batch input", input_name, PEFT_IN_COUNT, &input)) return false;
    like->attr.leaf.index = input;
    return true;
}

/* "stream", "of" and "at" after the type. */
static bool read_notes(Reader *r, Node *like) {
    if (accept_word(r, "stream") && !read_int32(r, 0, INT32_MAX, &like->stream)) return false;
    if (accept_word(r, "of") && !read_ref(r, &like->of)) return false;
    return !accept_word(r, "at") || read_span(r, &like->span);
}

/* Builds what was read; the type is inferred first, as graph_stream takes its operands on trust. */
static Node *build(Reader *r, const Node *like) {
    char why[256] = "";
    Type out[MAX_RESULTS] = {{0}};
    if (like->op == OP_VAR) return nd_var(r->g, like->attr.leaf.index);
    if (like->op == OP_INPUT) return nd_input(r->g, (PeftInputId)like->attr.leaf.index);
    int nin = op_info[like->op].nin;
    if (nin >= 0 && like->nin != nin) {
        fail(r, "%s takes %d inputs, not %d", op_info[like->op].name, nin, like->nin);
        return NULL;
    }
    if (!op_rules[like->op].infer(like, out, why)) {
        fail(r, "%s: %s", op_info[like->op].name, why);
        return NULL;
    }
    return graph_stream(r->g, like, like->in, like->stream);
}

static bool read_op(Reader *r, OpCode *op) {
    char word[32];
    if (!read_word(r, word)) return false;
    for (int i = 0; i < OP_COUNT; i++)
        if (!strcmp(op_info[i].name, word)) {
            *op = (OpCode)i;
            return true;
        }
    return fail(r, "there is no op '%s'", word);
}

/* %7 = matmul %6, %1 trans_b : f32[T, 2] */
static bool read_node(Reader *r) {
    int32_t number;
    Node *in[MAX_INPUTS], like = {.in = in, .span = SPAN_NONE};
    if (!read_int32(r, 0, INT32_MAX, &number)) return false;
    if (number != r->count) return fail(r, "expected %%%d, found %%%d", r->count, number);
    if (!expect(r, '=') || !read_op(r, &like.op) || !read_inputs(r, &like)) return false;
    bool leaf = like.op == OP_VAR || like.op == OP_INPUT;
    if (leaf ? !read_leaf(r, &like) : !read_fields(r, like.op, &like.attr)) return false;
    if (!expect(r, ':') || !read_type(r, &like.type)) return false;
    if (is_view_to(like.op)) like.attr.reshape.to = like.type;
    if (!read_notes(r, &like)) return false;

    Origin saved = graph_set_origin(r->g, (Origin){like.span, like.of});
    Node *made = build(r, &like);
    graph_set_origin(r->g, saved);
    if (!made) return false;
    char type[64], given[64];
    if (!type_equal(made->type, like.type))
        return fail(r, "%%%d is %s, not %s", number, type_str(made->type, type),
                    type_str(like.type, given));
    r->node = pool_grow(r->g->pool, r->node, (size_t)r->count, (size_t)r->count + 1,
                        sizeof *r->node, &r->cap);
    r->node[r->count++] = made;
    return true;
}

/* ---- reading functions and the whole ---- */

static bool read_function(Reader *r, PeftFn fn) {
    const char *name;
    int32_t var;
    Node *node;
    const Function *f = &r->g->fn[fn];
    if (f->nout || f->nupdate) return fail(r, "a second function %s", fn_name[fn]);
    if (!expect(r, '{')) return false;
    while (!accept(r, '}')) {
        if (f->nout + f->nupdate == MAX_ROOTS)
            return fail(r, "more than %d outputs and updates", MAX_ROOTS);
        if (accept_word(r, "output")) {
            if (!read_string(r, &name) || !read_ref(r, &node)) return false;
            graph_output(r->g, fn, name, node);
        } else if (accept_word(r, "update")) {
            if (!read_var_name(r, &var) || !read_ref(r, &node)) return false;
            graph_update(r->g, fn, var, node);
        } else {
            char buf[24];
            return fail(r, "expected output, update or '}', found %s", found(r, buf));
        }
    }
    return true;
}

static bool read_item(Reader *r) {
    int fn;
    if (accept(r, '%')) return read_node(r);
    if (accept_word(r, "var")) return read_var(r);
    if (accept_word(r, "sites")) return read_int32(r, 0, MAX_SITES, &r->g->nsite);
    return read_name(r, "variable, node or function", fn_name, PEFT_FN_COUNT, &fn) &&
           read_function(r, (PeftFn)fn);
}

static bool read_graph(Reader *r) {
    skip_blanks(r);
    while (r->at < r->end) {
        if (!read_item(r)) return false;
        skip_blanks(r);
    }
    const Node *bad;
    char why[256];
    return verify_check(r->g, &bad, why) || fail(r, "the graph is not sound: %s", why);
}

Graph *text_read(const char *text, size_t n, const char *name, PeftError *err) {
    Graph *g = graph_new();
    const char *copy = pool_strndup(g->pool, text, n); /* ends in NUL: strtod stops there */
    Reader r = {.g = g, .name = name, .at = copy, .end = copy + n, .line = 1, .err = err};
    if (read_graph(&r)) return g;
    graph_free(g);
    return NULL;
}
