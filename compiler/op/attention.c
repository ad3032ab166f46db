/* Multi-head attention within each sequence of the packed batch, and its gradient. Per head, with
 * s_j = scale q . k_j over the tokens j of the query's sequence:
 *   lse = log sum_j exp s_j,   p_j = exp(s_j - lse),   context = sum_j keep_j p_j v_j
 * keep_j is dropout's factor on p_j, counted by (site, sample, head << 16 | query position, key
 * position), positions within the sequence. q has a row for every token, or one for the first token
 * of every sequence. The backward pass recomputes p from lse: no [T, T] value is ever stored. */
#include "rules.h"
#include "sample.h"

#include <math.h>

/* ---- what both ops check ---- */

static bool infer_heads(const Node *n, int q, int offsets, char why[256]) {
    if (!is_matrix(n, q, "q", why) || !is_matrix(n, q + 1, "k", why) ||
        !is_type(n, q + 2, "v", n->in[q + 1]->type, why))
        return false;
    const Type tq = n->in[q]->type, tk = n->in[q + 1]->type;
    int32_t heads = n->attr.attention.heads;
    if (tq.dim[1] != tk.dim[1])
        return why_not(why, "q has %lld columns, k has %lld", (long long)tq.dim[1],
                       (long long)tk.dim[1]);
    if (heads < 1 || heads > INT16_MAX || tq.dim[1] % heads)
        return why_not(why, "%lld columns do not split into %d heads", (long long)tq.dim[1], heads);
    if (!isfinite(n->attr.attention.scale)) return why_not(why, "the scale must be finite");
    if (!is_dropout(n->attr.attention.p, why)) return false;

    if (!is_index(n, offsets + 2, "sample", why)) return false;
    int64_t sequences = n->in[offsets + 2]->type.dim[0];
    char tokens[64], rows[64];
    if (tq.dim[0] != tk.dim[0] && tq.dim[0] != sequences)
        return why_not(why, "q needs a row for each of %s tokens or %s sequences",
                       dim_str(tk.dim[0], tokens), dim_str(sequences, rows));
    return is_type(n, offsets, "offsets", type_i32(DIM_PLUS_ONE(sequences)), why) &&
           is_type(n, offsets + 1, "rng", type_i32(4), why);
}

/* ---- the definition in doubles ---- */

typedef struct Heads { /* the operands and the size of one head */
    const Node *n;
    const RefContext *c;
    const RefTensor *q, *k, *v, *offsets, *sample;
    int64_t width;
} Heads;

typedef struct Query { /* one head of one row of q */
    int64_t row, column, head;
    int64_t begin, end, position; /* its sequence's tokens; its place among them */
    double sample, lse;
} Query;

static double score(const Heads *h, const Query *q, int64_t key) {
    const double *a = h->q->data + q->row * h->q->dim[1] + q->column;
    const double *b = h->k->data + key * h->k->dim[1] + q->column;
    double dot = 0;
    for (int64_t i = 0; i < h->width; i++) dot += a[i] * b[i];
    return h->n->attr.attention.scale * dot;
}

static double probability(const Heads *h, const Query *q, int64_t key) {
    return exp(score(h, q, key) - q->lse);
}

static double keep(const Heads *h, const Query *q, int64_t key) {
    double position = (double)(q->head << 16 | q->position);
    return ref_keep(h->c, h->n->attr.attention.p, h->n->attr.attention.site, q->sample, position,
                    key - q->begin);
}

static double log_sum_exp(const Heads *h, const Query *q) {
    double max = -INFINITY, sum = 0;
    for (int64_t j = q->begin; j < q->end; j++) max = fmax(max, score(h, q, j));
    for (int64_t j = q->begin; j < q->end; j++) sum += exp(score(h, q, j) - max);
    return max + log(sum);
}

/* Finds the sequence of a row; false when the offsets do not say one. */
static bool find_query(const Heads *h, int64_t row, int64_t head, Query *q) {
    int64_t tokens = h->k->dim[0], sequences = h->sample->count;
    bool first_only = h->q->dim[0] != tokens;
    for (int64_t s = first_only ? row : 0; s < sequences; s++) {
        int64_t begin = ref_index(h->offsets->data[s], tokens);
        int64_t end = ref_index(h->offsets->data[s + 1], tokens + 1);
        if (begin < 0 || end < begin) return false;
        if (!first_only && row >= end) continue;
        int64_t position = first_only ? 0 : row - begin;
        *q = (Query){row, head * h->width, head, begin, end, position, h->sample->data[s], 0};
        q->lse = log_sum_exp(h, q);
        return position >= 0;
    }
    return false;
}

/* ---- attention(q [R, H], k [T, H], v [T, H], offsets i32 [S + 1], rng i32 [4], sample i32 [S])
 *      -> context [R, H], lse [R, heads] ---- */

bool infer_ATTENTION(const Node *n, Type out[], char why[256]) {
    if (!infer_heads(n, 0, 3, why)) return false;
    out[0] = n->in[0]->type;
    out[1] = type_f32(2, out[0].dim[0], n->attr.attention.heads);
    return true;
}

/* One node gives dq, dk and dv; its `need` says which of them to compute. */
void grad_ATTENTION(Graph *g, Node *y, Node *const dy[], const bool need[], Node *dx[]) {
    if (dy[1]) PANIC(y, "no gradient through an attention's log-sum-exp");
    Attr a = attr_zero();
    a.attention.scale = y->attr.attention.scale;
    a.attention.p = y->attr.attention.p;
    a.attention.heads = y->attr.attention.heads;
    a.attention.site = y->attr.attention.site;
    for (uint32_t i = 0; i < 3; i++) a.attention.need |= need[i] ? 1u << i : 0;
    if (!a.attention.need) return;
    Node **in = y->in;
    Node *d = NODE(g, OP_ATTENTION_GRAD, a, dy[0], in[0], in[1], in[2], nd_proj(g, y, 1), in[3],
                   in[4], in[5]);
    for (int i = 0; i < 3; i++)
        if (need[i]) dx[i] = nd_proj(g, d, i);
}

void ref_ATTENTION(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    int64_t heads = n->attr.attention.heads, cols = in[0].dim[1];
    Heads h = {n, c, &in[0], &in[1], &in[2], &in[3], &in[5], cols / heads};
    Query q = {0};
    ref_fill(&out[0], 0);
    for (int64_t i = 0; i < in[0].dim[0] * heads; i++) {
        bool found = find_query(&h, i / heads, i % heads, &q);
        double *context = out[0].data + i / heads * cols + i % heads * h.width;
        out[1].data[i] = found ? q.lse : NAN;
        for (int64_t d = 0; d < h.width && !found; d++) context[d] = NAN;
        for (int64_t j = q.begin; found && j < q.end; j++) {
            double weight = keep(&h, &q, j) * probability(&h, &q, j);
            for (int64_t d = 0; d < h.width; d++)
                context[d] += weight * h.v->data[j * cols + q.column + d];
        }
    }
}

typedef struct Attention { /* inputs of a sample */
    Node *q, *k, *v, *sample;
    Attr attr;
} Attention;

static bool sample_attention(Graph *g, int k, Attention *a) {
    static const struct {
        int64_t rows, cols;
        int heads;
        double p;
    } list[] = {{DIM_T, 6, 2, 0},
                {DIM_S, 6, 3, 0},
                {DIM_T, 3, 1, 0.25},
                {DIM_S, 4, 2, 0.5},
                {DIM_T, 2, 2, 0.1}};
    if (k >= (int)(sizeof list / sizeof *list)) return false;
    a->q = sample_real(g, 2, list[k].rows, list[k].cols);
    a->k = sample_real(g, 2, DIM_T, list[k].cols);
    a->v = sample_real(g, 2, DIM_T, list[k].cols);
    a->sample = sample_index(g, DIM_S, 100000);
    a->attr = attr_zero();
    a->attr.attention.scale = 0.7;
    a->attr.attention.p = list[k].p;
    a->attr.attention.heads = list[k].heads;
    a->attr.attention.site = k + 1;
    return true;
}

Node *sample_ATTENTION(Graph *g, int k) {
    Attention a;
    if (!sample_attention(g, k, &a)) return NULL;
    return NODE(g, OP_ATTENTION, a.attr, a.q, a.k, a.v, nd_input(g, PEFT_IN_offsets),
                nd_input(g, PEFT_IN_rng), a.sample);
}

/* ---- its gradient: (dcontext, q, k, v, lse, offsets, rng, sample) -> dq, dk, dv ---- */

bool infer_ATTENTION_GRAD(const Node *n, Type out[], char why[256]) {
    if (!infer_heads(n, 1, 5, why)) return false;
    const Type q = n->in[1]->type;
    for (int i = 0; i < 3; i++) out[i] = n->in[i + 1]->type;
    return is_type(n, 0, "dcontext", q, why) &&
           is_type(n, 4, "lse", type_f32(2, q.dim[0], n->attr.attention.heads), why);
}

/* With D the gradient of the context of one query:
 *   dv_j += keep_j p_j D,   dp_j = keep_j (D . v_j),   ds_j = p_j (dp_j - sum_i p_i dp_i)
 *   dq = scale sum_j ds_j k_j,   dk_j += scale ds_j q
 * (dx = y (dy - sum y dy) is softmax's own gradient). Adds one query's share to out. */
static void add_query(const Heads *h, const Query *q, const RefTensor *dcontext, RefTensor out[]) {
    int64_t cols = h->q->dim[1], width = h->width;
    const double *d = dcontext->data + q->row * cols + q->column,
                 scale = h->n->attr.attention.scale;
    double mean = 0;
    for (int pass = 0; pass < 2; pass++) { /* the mean of dp under p, then the gradients */
        for (int64_t j = q->begin; j < q->end; j++) {
            int64_t at = j * cols + q->column, from = q->row * cols + q->column;
            double p = probability(h, q, j), kept = keep(h, q, j), dp = 0;
            for (int64_t i = 0; i < width; i++) dp += kept * d[i] * h->v->data[at + i];
            if (pass == 0) mean += p * dp;
            double ds = p * (dp - mean);
            for (int64_t i = 0; i < width && pass == 1; i++) {
                out[0].data[from + i] += scale * ds * h->k->data[at + i];
                out[1].data[at + i] += scale * ds * h->q->data[from + i];
                out[2].data[at + i] += kept * p * d[i];
            }
        }
    }
}

void ref_ATTENTION_GRAD(const Node *n, const RefContext *c, const RefTensor in[], RefTensor out[]) {
    int64_t heads = n->attr.attention.heads;
    Heads h = {n, c, &in[1], &in[2], &in[3], &in[5], &in[7], in[1].dim[1] / heads};
    Query q = {0};
    bool found = true;
    for (int i = 0; i < 3; i++) ref_fill(&out[i], 0);
    for (int64_t i = 0; found && i < in[1].dim[0] * heads; i++) {
        found = find_query(&h, i / heads, i % heads, &q);
        if (found) add_query(&h, &q, &in[0], out);
    }
    for (int i = 0; i < 3; i++) /* a result that is not needed must not be used */
        if (!found || !(n->attr.attention.need >> i & 1)) ref_fill(&out[i], NAN);
}

/* k counts the sample of attention and, in the three low bits, what is needed. */
Node *sample_ATTENTION_GRAD(Graph *g, int k) {
    Attention a;
    if (!sample_attention(g, k / 7, &a)) return NULL;
    a.attr.attention.need = (uint32_t)k % 7 + 1;
    Type lse = type_f32(2, a.q->type.dim[0], a.attr.attention.heads);
    Node *d = sample_var(g, SAMPLE_REAL, a.q->type);
    return NODE(g, OP_ATTENTION_GRAD, a.attr, d, a.q, a.k, a.v, sample_var(g, SAMPLE_REAL, lse),
                nd_input(g, PEFT_IN_offsets), nd_input(g, PEFT_IN_rng), a.sample);
}
