/* A small BERT classifier as elaboration leaves it, built by hand, and its evaluation in double
 * precision: what the tests of autodiff, the passes and the textual graph work on. The batch has 9
 * tokens in 3 sequences. */
#ifndef PEFTC_TEST_MINI_BERT_H
#define PEFTC_TEST_MINI_BERT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "../../compiler/interp.h"
#include "../../compiler/op/rules.h"

typedef enum MiniKind { MINI_FULL, MINI_LORA, MINI_QLORA, MINI_HOULSBY, MINI_KINDS } MiniKind;

enum { MINI_H = 8, MINI_FFN = 12, MINI_VOCAB = 11, MINI_LAYERS = 2, MINI_T = 9, MINI_S = 3 };

typedef struct Mini {
    Graph *g;
    MiniKind kind;
    double p; /* every dropout probability */
} Mini;

static inline Node *mini_param(Mini *m, const char *path, const char *name, Type t,
                               bool trainable) {
    Var v = {.type = t, .trainable = trainable, .group = -1, .span = {0, 0, 0}};
    v.name = graph_printf(m->g, "%s.%s", path, name);
    v.init = (Init){PEFT_NORMAL, 0.02};
    v.decay = t.rank == 2;
    v.block = strstr(name, "lora") ? "lora" : "linear";
    v.fresh = !strcmp(path, "classifier");
    v.span = (Span){0, m->g->nvar * 10, m->g->nvar * 10 + 5};
    return nd_var(m->g, graph_var(m->g, v));
}

static inline bool mini_trains_base(const Mini *m) {
    return m->kind == MINI_FULL;
}

static inline Node *mini_linear(Mini *m, const char *path, Node *x, int64_t in, int64_t out,
                                bool trainable) {
    Type t = type_f32(2, out, in);
    if (m->kind == MINI_QLORA && !trainable) t.dt = DT_NF4;
    Node *w = mini_param(m, path, "weight", t, trainable);
    if (t.dt == DT_NF4) w = nd1(m->g, OP_DEQUANT, w);
    Node *b = mini_param(m, path, "bias", type_f32(1, out, 0), trainable);
    return nd2(m->g, OP_ADD, nd_matmul(m->g, x, nd1(m->g, OP_TRANSPOSE, w), false, false), b);
}

/* Rows are tokens, or the first tokens of the sequences. */
static inline Node *mini_dropout(Mini *m, Node *x) {
    Graph *g = m->g;
    bool tokens = x->type.dim[0] == DIM_T;
    Node *position = nd_input(g, PEFT_IN_positions);
    if (!tokens) position = nd2(g, OP_GATHER, position, nd_input(g, PEFT_IN_first));
    Attr a = attr_zero();
    a.dropout.p = m->p;
    a.dropout.site = g->nsite++;
    return NODE(g, OP_DROPOUT, a, x, nd_input(g, PEFT_IN_rng),
                nd_input(g, tokens ? PEFT_IN_token_sample : PEFT_IN_seq_sample), position);
}

static inline Node *mini_norm(Mini *m, const char *path, Node *x) {
    Attr a = attr_zero();
    a.norm.eps = 1e-12;
    bool train = mini_trains_base(m);
    Node *gamma = mini_param(m, path, "weight", type_f32(1, MINI_H, 0), train);
    Node *beta = mini_param(m, path, "bias", type_f32(1, MINI_H, 0), train);
    return nd_proj(m->g, NODE(m->g, OP_LAYER_NORM, a, x, gamma, beta), 0);
}

/* x A' B' times alpha / rank, on a dropped x */
static inline Node *mini_lora(Mini *m, const char *path, Node *x, Node *y) {
    if (m->kind != MINI_LORA && m->kind != MINI_QLORA) return y;
    Graph *g = m->g;
    Node *a = mini_param(m, path, "lora_A.weight", type_f32(2, 2, MINI_H), true);
    Node *b = mini_param(m, path, "lora_B.weight", type_f32(2, MINI_H, 2), true);
    Node *down = nd2(g, OP_MATMUL, mini_dropout(m, x), nd1(g, OP_TRANSPOSE, a));
    Node *up = nd2(g, OP_MATMUL, down, nd1(g, OP_TRANSPOSE, b));
    return nd2(g, OP_ADD, y, nd_scale(g, up, 2));
}

static inline Node *mini_projection(Mini *m, const char *layer, const char *name, Node *x) {
    const char *path = graph_printf(m->g, "%s.attention.self.%s", layer, name);
    Node *y = mini_linear(m, path, x, MINI_H, MINI_H, mini_trains_base(m));
    return strcmp(name, "key") ? mini_lora(m, path, x, y) : y;
}

static inline Node *mini_sublayer_output(Mini *m, const char *path, Node *h, int64_t in,
                                         Node *residual) {
    Graph *g = m->g;
    bool train = mini_trains_base(m);
    const char *dense = graph_printf(g, "%s.dense", path);
    Node *h0 = mini_dropout(m, mini_linear(m, dense, h, in, MINI_H, train));
    if (m->kind == MINI_HOULSBY) {
        const char *down = graph_printf(g, "%s.adapter_down.0", path);
        const char *up = graph_printf(g, "%s.adapter_up", path);
        Node *mid = nd1(g, OP_SILU, mini_linear(m, down, h0, MINI_H, 3, true));
        h0 = nd2(g, OP_ADD, h0, mini_linear(m, up, mid, 3, MINI_H, true));
    }
    return mini_norm(m, graph_printf(g, "%s.LayerNorm", path), nd2(g, OP_ADD, h0, residual));
}

static inline Node *mini_attention(Mini *m, const char *layer, Node *x) {
    Graph *g = m->g;
    Node *q = mini_projection(m, layer, "query", x);
    Node *k = mini_projection(m, layer, "key", x);
    Node *v = mini_projection(m, layer, "value", x);
    Attr a = attr_zero();
    a.attention.heads = 2;
    a.attention.scale = 0.5;
    a.attention.p = m->p;
    a.attention.site = g->nsite++;
    Node *n = NODE(g, OP_ATTENTION, a, q, k, v, nd_input(g, PEFT_IN_offsets),
                   nd_input(g, PEFT_IN_rng), nd_input(g, PEFT_IN_seq_sample));
    return nd_proj(g, n, 0);
}

static inline Node *mini_layer(Mini *m, int i, Node *x) {
    Graph *g = m->g;
    const char *layer = graph_printf(g, "bert.encoder.layer.%d", i);
    const char *output = graph_printf(g, "%s.attention.output", layer);
    Node *a = mini_sublayer_output(m, output, mini_attention(m, layer, x), MINI_H, x);
    const char *dense = graph_printf(g, "%s.intermediate.dense", layer);
    Node *h = mini_linear(m, dense, a, MINI_H, MINI_FFN, mini_trains_base(m));
    output = graph_printf(g, "%s.output", layer);
    return mini_sublayer_output(m, output, nd1(g, OP_GELU, h), MINI_FFN, a);
}

static inline Node *mini_embedding(Mini *m, const char *name, int64_t rows, PeftInputId index) {
    Node *table =
        mini_param(m, "bert.embeddings", name, type_f32(2, rows, MINI_H), mini_trains_base(m));
    return nd2(m->g, OP_GATHER, table, nd_input(m->g, index));
}

static inline Node *mini_encoder(Mini *m) {
    Graph *g = m->g;
    Node *word = mini_embedding(m, "word_embeddings.weight", MINI_VOCAB, PEFT_IN_tokens);
    Node *type = mini_embedding(m, "token_type_embeddings.weight", 2, PEFT_IN_token_types);
    Node *place = mini_embedding(m, "position_embeddings.weight", 6, PEFT_IN_positions);
    Node *x = nd2(g, OP_ADD, nd2(g, OP_ADD, word, type), place);
    x = mini_dropout(m, mini_norm(m, "bert.embeddings.LayerNorm", x));
    for (int i = 0; i < MINI_LAYERS; i++) x = mini_layer(m, i, x);
    return x;
}

/* The whole classifier, as the outputs "loss" and "logits" of PEFT_FN_EVAL. Free with graph_free.
 */
static inline Graph *mini_bert(MiniKind kind, double p) {
    Mini m = {graph_new(), kind, p};
    Graph *g = m.g;
    Node *x = mini_encoder(&m);
    Node *first = nd2(g, OP_GATHER, x, nd_input(g, PEFT_IN_first));
    Node *pooled =
        mini_linear(&m, "bert.pooler.dense", first, MINI_H, MINI_H, mini_trains_base(&m));
    pooled = mini_dropout(&m, nd1(g, OP_TANH, pooled));
    Node *logits = mini_linear(&m, "classifier", pooled, MINI_H, 2, true);
    Node *each = NODE(g, OP_CROSS_ENTROPY, attr_zero(), logits, nd_input(g, PEFT_IN_labels));
    Node *sum = nd_sum(g, nd_proj(g, each, 0), -1);
    graph_output(g, PEFT_FN_EVAL, "loss", nd2(g, OP_DIV, sum, nd_input(g, PEFT_IN_sequences)));
    graph_output(g, PEFT_FN_EVAL, "logits", logits);
    return g;
}

/* Masked-language-model head on the same encoder: the decoder is the word embedding. */
static inline Graph *mini_mlm(double p) {
    Mini m = {graph_new(), MINI_FULL, p};
    Graph *g = m.g;
    Node *x = mini_encoder(&m);
    Node *rows = nd2(g, OP_GATHER, x, nd_input(g, PEFT_IN_masked_positions));
    Node *table = nd_var(g, graph_find_var(g, "bert.embeddings.word_embeddings.weight"));
    Node *logits = nd_matmul(g, rows, table, false, true);
    Node *each = NODE(g, OP_CROSS_ENTROPY, attr_zero(), logits, nd_input(g, PEFT_IN_masked_ids));
    Node *sum = nd_sum(g, nd_proj(g, each, 0), -1);
    graph_output(g, PEFT_FN_EVAL, "loss", nd2(g, OP_DIV, sum, nd_input(g, PEFT_IN_masked)));
    return g;
}

/* ---- values ---- */

typedef struct MiniBatch {
    InterpEnv env;
    RefTensor input[PEFT_IN_COUNT];
    RefTensor *var;
    int nvar;
} MiniBatch;

static inline RefTensor mini_tensor(const double *v, int64_t count) {
    RefTensor t = {.data = malloc((size_t)count * sizeof(double)), .count = count};
    for (int64_t i = 0; i < count; i++) t.data[i] = v ? v[i] : 0;
    return t;
}

static inline void mini_set(MiniBatch *b, PeftInputId id, const double *v, int64_t count) {
    free(b->input[id].data);
    b->input[id] = mini_tensor(v, count);
}

static inline void mini_scalar(MiniBatch *b, PeftInputId id, double v) {
    mini_set(b, id, &v, 1);
}

/* Values of a variable depend on its name alone: the same in every graph that has it. */
static inline void mini_fill(const char *name, double *v, int64_t n) {
    uint64_t s = 0x9e3779b97f4a7c15u;
    for (; *name; name++) s = (s ^ (unsigned char)*name) * 0x100000001b3u;
    for (int64_t i = 0; i < n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        v[i] = ((double)(s >> 11) / 9007199254740992.0 - 0.5) * 1.2;
    }
}

/* (Re)binds all variables of the graph; state starts at zero. */
static inline void mini_bind_vars(MiniBatch *b, const Graph *g) {
    for (int i = 0; i < b->nvar; i++) free(b->var[i].data);
    free(b->var);
    b->nvar = g->nvar;
    b->var = calloc((size_t)g->nvar + 1, sizeof *b->var);
    for (int i = 0; i < g->nvar; i++) {
        b->var[i] = mini_tensor(NULL, type_count(g->var[i].type));
        if (g->var[i].kind == VAR_PARAM) mini_fill(g->var[i].name, b->var[i].data, b->var[i].count);
    }
    b->env.var = b->var;
}

static inline void mini_sizes(MiniBatch *b, int64_t t, int64_t s, int64_t masked) {
    b->env.sym[PEFT_SYM_T] = t;
    b->env.sym[PEFT_SYM_S] = s;
    b->env.sym[PEFT_SYM_M] = masked;
}

static inline void mini_batch(MiniBatch *b, const Graph *g, bool dropout) {
    memset(b, 0, sizeof *b);
    static const double tokens[] = {1, 4, 2, 7, 7, 1, 3, 9, 10},
                        types[] = {0, 0, 1, 0, 0, 1, 0, 1, 0};
    static const double positions[] = {0, 1, 0, 1, 2, 3, 0, 1, 2}, offsets[] = {0, 2, 6, 9};
    static const double token_sample[] = {5, 5, 8, 8, 8, 8, 6, 6, 6}, sample[] = {5, 8, 6};
    mini_sizes(b, MINI_T, MINI_S, 4);
    mini_set(b, PEFT_IN_tokens, tokens, 9);
    mini_set(b, PEFT_IN_token_types, types, 9);
    mini_set(b, PEFT_IN_positions, positions, 9);
    mini_set(b, PEFT_IN_token_sample, token_sample, 9);
    mini_set(b, PEFT_IN_offsets, offsets, 4);
    mini_set(b, PEFT_IN_first, offsets, 3);
    mini_set(b, PEFT_IN_seq_sample, sample, 3);
    mini_set(b, PEFT_IN_labels, (double[]){1, 0, 1}, 3);
    mini_set(b, PEFT_IN_masked_positions, (double[]){1, 3, 4, 8}, 4);
    mini_set(b, PEFT_IN_masked_ids, (double[]){4, 0, 10, 2}, 4);
    mini_scalar(b, PEFT_IN_sequences, 3);
    mini_scalar(b, PEFT_IN_masked, 4);
    mini_scalar(b, PEFT_IN_lr, 0.01);
    mini_scalar(b, PEFT_IN_warmup_steps, 0);
    mini_scalar(b, PEFT_IN_total_steps, 10);
    mini_scalar(b, PEFT_IN_weight_decay, 0.1);
    mini_scalar(b, PEFT_IN_clip_norm, 1);
    b->env.input = b->input;
    b->env.seed = 42;
    b->env.step = 3;
    b->env.dropout = dropout;
    mini_bind_vars(b, g);
}

static inline void mini_batch_free(MiniBatch *b) {
    for (int i = 0; i < PEFT_IN_COUNT; i++) free(b->input[i].data);
    for (int i = 0; i < b->nvar; i++) free(b->var[i].data);
    free(b->var);
}

/* ---- comparing ---- */

/* All outputs and updates of a function. */
typedef struct MiniValues {
    RefTensor *value;
    int n;
} MiniValues;

static inline MiniValues mini_run(const Graph *g, PeftFn fn, const MiniBatch *b) {
    const Function *f = &g->fn[fn];
    MiniValues v = {calloc((size_t)(f->nout + f->nupdate) + 1, sizeof(RefTensor)),
                    f->nout + f->nupdate};
    PeftError err = {0};
    if (!interp_function(g, fn, &b->env, v.value, v.value + f->nout, &err)) fail_msg("%s", err.msg);
    return v;
}

static inline void mini_values_free(MiniValues *v) {
    interp_free(v->value, v->n);
    free(v->value);
}

/* Both were computed in double precision from equal formulas; only the order of sums may differ. */
static inline void mini_assert_close(const RefTensor *a, const RefTensor *b, const char *what) {
    if (a->count != b->count) fail_msg("%s: %d values, not %d", what, (int)a->count, (int)b->count);
    double size = 0;
    for (int64_t i = 0; i < a->count; i++) size = fmax(size, fabs(b->data[i]));
    for (int64_t i = 0; i < a->count; i++)
        if (!(fabs(a->data[i] - b->data[i]) <= 1e-11 * (1 + size)))
            fail_msg("%s[%d]: %.17g, not %.17g", what, (int)i, a->data[i], b->data[i]);
}

static inline void mini_assert_same_values(const MiniValues *a, const MiniValues *b,
                                           const char *what) {
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) mini_assert_close(&a->value[i], &b->value[i], what);
}

#endif
