/* Indexed loads, and the deterministic way back: an embedding's gradient is a sum over groups of
 * equal indices in a fixed order, never an atomic addition.
 *
 * index(i) of a vector of R indices below `rows` numbers its distinct values in ascending order and
 * gives order [R], the positions sorted by (value, position); start [R + 1], where the u-th value's
 * group begins in order (R for values that do not exist); slot [rows], the number of each value, -1
 * where it does not occur. So  start[u] <= j < start[u + 1]  ->  i[order[j]] is the u-th value. */
#include "rules.h"
#include "sample.h"

#include <math.h>

/* ---- gather: y[r] = table[index[r]] ---- */

/* f32 [N, C], i32 [R] -> f32 [R, C];  i32 [N], i32 [R] -> i32 [R] */
bool infer_GATHER(const Node *n, Type out[], char why[256]) {
    char found[64];
    const Type table = n->in[0]->type;
    bool rows = table.dt == DT_F32 && table.rank == 2, ids = table.dt == DT_I32 && table.rank == 1;
    if (!rows && !ids)
        return why_not(why, "the table must be an f32 matrix or an i32 vector, found %s",
                       type_str(table, found));
    if (!is_index(n, 1, "the index", why)) return false;
    int64_t count = n->in[1]->type.dim[0];
    out[0] = rows ? type_f32(2, count, table.dim[1]) : type_i32(count);
    return true;
}

/* Row v of dtable is the sum of dy over the rows that took row v. The first tokens of the batch's
 * sequences are ascending and all different, so each is a group of its own: no sum. */
void grad_GATHER(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    Node *table = y->in[0], *index = y->in[1], *sums = dy[0];
    if (!need[0] || table->type.dt != DT_F32) return;
    Attr a = attr_zero();
    a.index.rows = table->type.dim[0];
    Node *groups = NODE(g, OP_INDEX, a, index);
    if (index->op != OP_INPUT || index->attr.leaf.index != PEFT_IN_first)
        sums = NODE(g, OP_SEGMENT_SUM, attr_zero(), dy[0], nd_proj(g, groups, 0),
                    nd_proj(g, groups, 1));
    dx[0] = nd2(g, OP_SCATTER, sums, nd_proj(g, groups, 2));
}

void ref_GATHER(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t cols = in[0].rank == 2 ? in[0].dim[1] : 1;
    for (int64_t r = 0; r < in[1].count; r++) {
        int64_t from = ref_index(in[1].data[r], in[0].dim[0]);
        for (int64_t i = 0; i < cols; i++)
            out[0].data[r * cols + i] = from < 0 ? NAN : in[0].data[from * cols + i];
    }
}

/* Rows of a quantised table are dequantised as they are read: the whole table never exists. */
void lower_GATHER(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    const Node *table = n->in[0]->op == OP_DEQUANT ? n->in[0]->in[0] : n->in[0];
    out[0] = kb_gather(b, table, in[1]);
}

Node *sample_GATHER(Graph *g, int k) {
    switch (k) {
    case 0: return nd2(g, OP_GATHER, sample_real(g, 2, 5, 3), sample_index(g, 8, 5));
    case 1: return nd2(g, OP_GATHER, sample_real(g, 2, 1, 1), sample_index(g, 1, 1));
    case 2: return nd2(g, OP_GATHER, sample_real(g, 2, 9, 1), sample_index(g, 2, 9));
    case 3: /* first tokens, through the slots alone */
        return nd2(g, OP_GATHER, sample_real(g, 2, DIM_T, 3), nd_input(g, PEFT_IN_first));
    case 4:
        return nd2(g, OP_GATHER, sample_real(g, 2, DIM_T, 3),
                   nd_input(g, PEFT_IN_masked_positions));
    case 5: return nd2(g, OP_GATHER, sample_index(g, 6, 11), sample_index(g, 4, 6));
    case 6:
        return nd2(g, OP_GATHER, nd1(g, OP_DEQUANT, sample_nf4(g, 5, 3, false)),
                   sample_index(g, 4, 5));
    default: return NULL;
    }
}

/* ---- scatter: y[n] = x[slot[n]], zeros where slot[n] < 0 ---- */

/* x [U, C], slot i32 [N] -> [N, C] */
bool infer_SCATTER(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "the rows", why) || !is_index(n, 1, "the slots", why)) return false;
    out[0] = type_f32(2, n->in[1]->type.dim[0], n->in[0]->type.dim[1]);
    return true;
}

void ref_SCATTER(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t cols = in[0].dim[1];
    for (int64_t r = 0; r < in[1].count; r++) {
        int64_t from = ref_index(in[1].data[r], in[0].dim[0]);
        double absent = in[1].data[r] < 0 ? 0 : NAN;
        for (int64_t i = 0; i < cols; i++)
            out[0].data[r * cols + i] = from < 0 ? absent : in[0].data[from * cols + i];
    }
}

void lower_SCATTER(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    out[0] = kb_scatter(b, n->in[0], in[1]);
}

Node *sample_SCATTER(Graph *g, int k) {
    switch (k) {
    case 0: return nd2(g, OP_SCATTER, sample_real(g, 2, 5, 3), sample_slot(g, 8, 5));
    case 1: return nd2(g, OP_SCATTER, sample_real(g, 2, 1, 1), sample_slot(g, 6, 1));
    case 2: return nd2(g, OP_SCATTER, sample_real(g, 2, DIM_S, 4), sample_slot(g, DIM_T, SAMPLE_S));
    default: return NULL;
    }
}

/* ---- dequant: an NF4 variable as f32 ---- */

bool infer_DEQUANT(const Node *n, Type out[], char why[256]) {
    char found[64];
    const Type t = n->in[0]->type;
    if (n->in[0]->op != OP_VAR || (t.dt != DT_NF4 && t.dt != DT_NF4_PLAIN))
        return why_not(why, "only an NF4 parameter is dequantised, found %s", type_str(t, found));
    out[0] = t;
    out[0].dt = DT_F32;
    return true;
}

/* An NF4 variable is bound to its dequantised values: the codes are the runtime's business. */
void ref_DEQUANT(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    ref_copy(&in[0], &out[0]);
}

void lower_DEQUANT(KBody *b, const Node *n, const KVal in[], KVal out[]) {
    (void)in;
    out[0] = kb_load(b, n->in[0]);
}

Node *sample_DEQUANT(Graph *g, int k) {
    switch (k) {
    case 0: return nd1(g, OP_DEQUANT, sample_nf4(g, 5, 13, false));
    case 1: return nd1(g, OP_DEQUANT, sample_nf4(g, 1, 1, true));
    default: return NULL;
    }
}

/* ---- index ---- */

/* i32 [R] -> order i32 [R], start i32 [R + 1], slot i32 [rows] */
bool infer_INDEX(const Node *n, Type out[], char why[256]) {
    if (!is_index(n, 0, "the index", why)) return false;
    int64_t count = n->in[0]->type.dim[0];
    out[0] = type_i32(count);
    out[1] = type_i32(DIM_PLUS_ONE(count));
    out[2] = type_i32(n->attr.index.rows);
    return is_sound(out[1], why) && is_sound(out[2], why);
}

void ref_INDEX(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t count = in[0].count, rows = out[2].count, placed = 0, groups = 0;
    ref_fill(&out[0], NAN); /* entries outside the table are in no group */
    ref_fill(&out[1], (double)count);
    for (int64_t v = 0; v < rows; v++) {
        int64_t begin = placed;
        for (int64_t r = 0; r < count; r++)
            if (in[0].data[r] == (double)v) out[0].data[placed++] = (double)r;
        out[2].data[v] = placed > begin ? (double)groups : -1;
        if (placed > begin) out[1].data[groups++] = (double)begin;
    }
}

Node *sample_INDEX(Graph *g, int k) {
    static const int64_t shapes[][2] = {{8, 5}, {1, 1}, {3, 11}, {16, 2}}; /* entries, rows */
    Attr a = attr_zero();
    if (k < (int)(sizeof shapes / sizeof *shapes)) {
        a.index.rows = shapes[k][1];
        return NODE(g, OP_INDEX, a, sample_index(g, shapes[k][0], shapes[k][1]));
    }
    a.index.rows = DIM_T;
    bool last = k == sizeof shapes / sizeof *shapes;
    return last ? NODE(g, OP_INDEX, a, nd_input(g, PEFT_IN_first)) : NULL;
}

/* ---- segment sum: y[u] = sum of dy[order[j]] over start[u] <= j < start[u + 1] ---- */

/* dy [R, C], order i32 [R], start i32 [R + 1] -> [R, C]; rows without a group are zero */
bool infer_SEGMENT_SUM(const Node *n, Type out[], char why[256]) {
    if (!is_matrix(n, 0, "dy", why)) return false;
    int64_t rows = n->in[0]->type.dim[0];
    out[0] = n->in[0]->type;
    return is_type(n, 1, "order", type_i32(rows), why) &&
           is_type(n, 2, "start", type_i32(DIM_PLUS_ONE(rows)), why);
}

void ref_SEGMENT_SUM(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    (void)n, (void)c;
    int64_t rows = in[0].dim[0], cols = in[0].dim[1];
    ref_fill(&out[0], 0);
    for (int64_t u = 0; u < rows; u++) {
        int64_t begin = ref_index(in[2].data[u], rows + 1);
        int64_t end = ref_index(in[2].data[u + 1], rows + 1);
        bool sound = begin >= 0 && end >= 0;
        for (int64_t j = sound ? begin : 0; j < (sound ? end : 1); j++) {
            int64_t from = sound ? ref_index(in[1].data[j], rows) : -1;
            for (int64_t i = 0; i < cols; i++)
                out[0].data[u * cols + i] += from < 0 ? NAN : in[0].data[from * cols + i];
        }
    }
}

Node *sample_SEGMENT_SUM(Graph *g, int k) {
    static const int64_t shapes[][3] = {
        {8, 3, 5}, {1, 1, 1}, {6, 4, 1}, {3, 2, 11}}; /* R, C, rows */
    if (k >= (int)(sizeof shapes / sizeof *shapes)) return NULL;
    const int64_t *s = shapes[k];
    Attr a = attr_zero();
    a.index.rows = s[2];
    Node *groups = NODE(g, OP_INDEX, a, sample_index(g, s[0], s[2]));
    return NODE(g, OP_SEGMENT_SUM, attr_zero(), sample_real(g, 2, s[0], s[1]),
                nd_proj(g, groups, 0), nd_proj(g, groups, 1));
}
