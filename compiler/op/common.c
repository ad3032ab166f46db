/* Helpers of the op rules: operand checks with their messages, access to reference values, and the
 * row reductions of kernel bodies. */
#include "rules.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- building ---- */

Attr attr_zero(void) {
    Attr a;
    memset(&a, 0, sizeof a);
    return a;
}

Attr attr_to(Type to) {
    Attr a = attr_zero();
    a.reshape.to = to;
    return a;
}

Node *nd_broadcast(Graph *g, Node *a, Type to) {
    if (type_equal(a->type, to)) return a;
    return NODE(g, OP_BROADCAST, attr_to(to), a);
}

/* ---- inference ---- */

bool why_not(char why[256], const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, 256, fmt, ap);
    va_end(ap);
    return false;
}

const char *dim_str(int64_t d, char buf[64]) {
    type_str(type_i32(d), buf); /* "i32[768]" */
    size_t n = strlen(buf) - strlen("i32[]");
    memmove(buf, buf + strlen("i32["), n);
    buf[n] = '\0';
    return buf;
}

bool is_f32(const Node *n, int i, const char *what, char why[256]) {
    char found[64];
    if (n->in[i]->type.dt == DT_F32) return true;
    return why_not(why, "%s must be f32, found %s", what, type_str(n->in[i]->type, found));
}

bool is_matrix(const Node *n, int i, const char *what, char why[256]) {
    char found[64];
    const Type t = n->in[i]->type;
    if (t.dt == DT_F32 && t.rank == 2) return true;
    return why_not(why, "%s must be an f32 matrix, found %s", what, type_str(t, found));
}

bool is_index(const Node *n, int i, const char *what, char why[256]) {
    char found[64];
    const Type t = n->in[i]->type;
    if (t.dt == DT_I32 && t.rank == 1) return true;
    return why_not(why, "%s must be an i32 vector, found %s", what, type_str(t, found));
}

bool is_type(const Node *n, int i, const char *what, Type want, char why[256]) {
    char found[64], wanted[64];
    if (type_equal(n->in[i]->type, want)) return true;
    return why_not(why, "%s must be %s, found %s", what, type_str(want, wanted),
                   type_str(n->in[i]->type, found));
}

bool is_dropout(double p, char why[256]) {
    if (p >= 0 && p < 1) return true;
    return why_not(why, "the dropout probability must be at least 0 and less than 1, found %g", p);
}

bool is_sound(Type t, char why[256]) {
    char found[64];
    if (t.dt < DT_F32 || t.dt > DT_NF4_PLAIN)
        return why_not(why, "there is no data type number %d", t.dt);
    if (t.rank < 0 || t.rank > PEFT_MAX_RANK)
        return why_not(why, "a tensor has 0 to %d dimensions, found %d", PEFT_MAX_RANK, t.rank);
    for (int i = 0; i < t.rank; i++) {
        if (t.dim[i] == 0 || t.dim[i] > INT32_MAX)
            return why_not(why, "a dimension must be from 1 to %d, found %lld", INT32_MAX,
                           (long long)t.dim[i]);
        int64_t sym = -t.dim[i] & 15;
        if (t.dim[i] < 0 && (t.dim[i] < -31 || sym == 0 || sym >= PEFT_SYM_COUNT))
            return why_not(why, "%lld is not a dimension symbol", (long long)t.dim[i]);
    }
    if (t.rank == 2 && t.dim[1] < 0)
        return why_not(why, "only rows may be symbolic, found %s", type_str(t, found));
    return true;
}

/* ---- reference values ---- */

int64_t ref_rows(const RefTensor *t) {
    return t->rank == 2 ? t->dim[0] : 1;
}

int64_t ref_cols(const RefTensor *t) {
    return t->rank ? t->dim[t->rank - 1] : 1;
}

double ref_at(const RefTensor *t, int64_t r, int64_t c) {
    int64_t rows = ref_rows(t), cols = ref_cols(t);
    return t->data[(rows == 1 ? 0 : r) * cols + (cols == 1 ? 0 : c)];
}

int64_t ref_index(double v, int64_t n) {
    return v >= 0 && v < (double)n && v == floor(v) ? (int64_t)v : -1;
}

void ref_copy(const RefTensor *from, RefTensor *to) {
    if (to->count) memcpy(to->data, from->data, (size_t)to->count * sizeof *to->data);
}

void ref_fill(RefTensor *t, double value) {
    for (int64_t i = 0; i < t->count; i++) t->data[i] = value;
}

/* ---- lowering ---- */

KVal lower_row_sum(KBody *b, const Node *operand, KVal x) {
    return operand->type.dim[1] == 1 ? x : kb_row_sum(b, x);
}

KVal lower_row_max(KBody *b, const Node *operand, KVal x) {
    return operand->type.dim[1] == 1 ? x : kb_row_max(b, x);
}
