/* What the backward pass keeps of the forward pass, and when things run: rematerialisation against
 * a brute-force search for the cheapest set, and the execution order that dce gives. */
#include "mini_bert.h"

#include "../../compiler/autodiff.h"
#include "../../compiler/optimizer.h"
#include "../../compiler/pass.h"
#include "../../compiler/verify.h"

static const PeftFit fit_plain = {.accumulate = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
static const PassContext context = {&fit_plain};

static Graph *compiled(MiniKind kind, const char *skip) {
    Graph *g = mini_bert(kind, 0.1);
    passes_run(g, &(PassOptions){.fit = &fit_plain, .skip = skip, .log = stderr});
    return g;
}

/* ---- what is kept ---- */

/* By id: needed for the loss or the logits of TRAIN; results of such ops included. */
static uint8_t *forward_set(Graph *g) {
    uint8_t *forward = calloc(1, (size_t)g->n + 1);
    const char *const roots[] = {"loss", "logits"};
    for (int i = 0; i < 2; i++) {
        const Node *root = graph_find_output(g, PEFT_FN_TRAIN, roots[i]);
        if (root) forward[root->id] = 1;
    }
    for (int32_t id = g->n - 1; id >= 0; id--)
        for (int i = 0; forward[id] && i < g->node[id]->nin; i++)
            forward[g->node[id]->in[i]->id] = 1;
    for (int32_t id = 0; id < g->n; id++)
        if (g->node[id]->op == OP_PROJ && forward[g->node[id]->in[0]->id]) forward[id] = 1;
    return forward;
}

static bool is_free(const Node *n) {
    return op_info[n->op].class == CLASS_LEAF || type_count(n->type) == 1;
}

/* By id: forward values that the backward pass reads. */
static uint8_t *kept_set(Graph *g, const uint8_t *forward) {
    uint8_t *kept = calloc(1, (size_t)g->n + 1);
    int32_t n;
    Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
    for (int32_t i = 0; i < n; i++)
        for (int k = 0; !forward[live[i]->id] && k < live[i]->nin; k++) {
            const Node *in = live[i]->in[k];
            if (forward[in->id] && !is_free(in)) kept[in->id] = 1;
        }
    return kept;
}

/* Columns of the kept [T, ...] values of the given op, or of all (OP_COUNT). */
static int64_t kept_columns(Graph *g, OpCode op) {
    uint8_t *forward = forward_set(g), *kept = kept_set(g, forward);
    int64_t sum = 0;
    for (int32_t id = 0; id < g->n; id++) {
        const Node *n = g->node[id];
        if (kept[id] && (op == OP_COUNT || n->op == op) && n->type.dim[0] == DIM_T)
            sum += n->type.rank == 2 ? n->type.dim[1] : 1;
    }
    free(forward);
    free(kept);
    return sum;
}

/* Full fine-tuning, per [T, ...] row. Embedding: mean, 1/std, output. A layer: q, k, v, lse of 2
 * heads, context, two norms with input, mean, 1/std and output, and one FFN-wide value. The last
 * layer: its keys and values. */
static void full_keeps_the_preactivation_alone(void **state) {
    (void)state;
    Graph *g = compiled(MINI_FULL, NULL), *off = compiled(MINI_FULL, "remat");
    int64_t layer = 4 * MINI_H + 2 + 2 * (2 * MINI_H + 2) + MINI_FFN;
    assert_int_equal(kept_columns(g, OP_COUNT), MINI_H + 2 + layer + 2 * MINI_H);
    assert_int_equal(kept_columns(g, OP_GELU), 0);
    /* without the pass: the GELU next to its input, and the embedding norm's input */
    assert_int_equal(kept_columns(off, OP_COUNT) - kept_columns(g, OP_COUNT), MINI_FFN + MINI_H);
    assert_int_equal(kept_columns(off, OP_GELU), MINI_FFN);
    graph_free(g);
    graph_free(off);
}

/* LoRA: the embedding output once instead of its two dropped copies; no norm output but layer 0's,
 * which layer 1's adapters read; no context, as the output weight is frozen. */
static void lora_keeps_no_dropped_copies(void **state) {
    (void)state;
    Graph *g = compiled(MINI_LORA, NULL);
    int64_t layer = 3 * MINI_H + 2 + 2 * (MINI_H + 2) + MINI_FFN + 2 * 2;
    assert_int_equal(kept_columns(g, OP_COUNT), MINI_H + layer + MINI_H + 2 * MINI_H + 2);
    assert_int_equal(kept_columns(g, OP_DROPOUT), MINI_H);
    graph_free(g);
}

/* Design: a dequantised weight must never be kept from forward to backward. */
static void dequantised_weights_live_for_one_product(void **state) {
    (void)state;
    Graph *g = compiled(MINI_QLORA, NULL);
    uint8_t *forward = forward_set(g);
    int32_t n;
    int found = 0;
    Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
    for (int32_t i = 0; i < n; i++)
        for (int k = 0; k < live[i]->nin; k++) {
            const Node *in = live[i]->in[k];
            if (in->op != OP_DEQUANT) continue;
            assert_int_equal(live[i]->op, OP_MATMUL);
            assert_int_equal(forward[in->id], forward[live[i]->id]);
            assert_true(live[i]->id - in->id <= 4);
            found++;
        }
    /* forward: 6 weights in 2 layers and the pooler; backward: those above layer 0's attention */
    assert_int_equal(found, 13 + 10);
    free(forward);
    graph_free(g);
}

/* ---- the minimum, by brute force ---- */

static uint32_t random_below(uint64_t *s, uint32_t n) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*s >> 33) % n;
}

static Node *random_weight(Graph *g, int64_t rows, int64_t cols) {
    Var v = {.name = graph_printf(g, "w%d", g->nvar), .type = type_f32(2, rows, cols)};
    v.trainable = true;
    v.span = SPAN_NONE;
    return nd_var(g, graph_var(g, v));
}

/* One more node over earlier ones: cheap and dear ops, narrow and wide values. */
static Node *random_step(Graph *g, Node *const *pool, int n, uint64_t *s) {
    Node *a = pool[random_below(s, (uint32_t)n)], *b = pool[random_below(s, (uint32_t)n)];
    Type both;
    switch (random_below(s, 8)) {
    case 0: return nd1(g, OP_GELU, a);
    case 1: return nd1(g, OP_SILU, a);
    case 2: return nd1(g, OP_TANH, a);
    case 3: return nd1(g, OP_RELU, a);
    case 4: return nd_sum(g, a, 1);
    case 5: return nd_matmul(g, a, random_weight(g, a->type.dim[1], 1 + random_below(s, 6)), 0, 0);
    default:
        if (!type_broadcast(a->type, b->type, &both)) return nd1(g, OP_SIGMOID, a);
        return nd2(g, random_below(s, 2) ? OP_MUL : OP_ADD, a, b);
    }
}

static Graph *random_graph(uint64_t seed) {
    uint64_t s = seed * 77 + 5;
    Graph *g = graph_new();
    Node *pool[8], *loss = NULL;
    pool[0] = nd2(g, OP_GATHER, random_weight(g, MINI_VOCAB, 3), nd_input(g, PEFT_IN_tokens));
    int n = 1;
    while (n < 8) {
        pool[n] = random_step(g, pool, n, &s);
        n++;
    }
    for (int i = 5; i < 8; i++) {
        Node *sum = nd_sum(g, pool[i], -1);
        loss = loss ? nd2(g, OP_ADD, loss, sum) : sum;
    }
    graph_output(g, PEFT_FN_EVAL, "loss", loss);
    return g;
}

/* Whether the node can be had from the kept values of `set` by cheap ops alone. */
static bool derivable(const Node *n, Node *const *candidate, int count, unsigned set) {
    if (is_free(n)) return true;
    for (int i = 0; i < count; i++)
        if (candidate[i] == n && set >> i & 1) return true;
    OpClass class = op_info[n->op].class;
    if (!(op_info[n->op].flags & OPF_CHEAP) && class != CLASS_LOAD && class != CLASS_VIEW)
        return false;
    for (int i = 0; i < n->nin; i++)
        if (!derivable(n->in[i], candidate, count, set)) return false;
    return true;
}

static int64_t columns(const Node *n) {
    return n->type.rank == 2 ? n->type.dim[1] : 1;
}

/* The fewest columns that suffice for what the backward pass of an untouched graph reads. */
static int64_t cheapest_set(Graph *g) {
    uint8_t *forward = forward_set(g), *wanted = kept_set(g, forward);
    Node *candidate[16];
    int count = 0;
    int64_t best = INT64_MAX;
    for (int32_t id = 0; id < g->n; id++)
        if (forward[id] && !is_free(g->node[id])) {
            assert_true(count < 16);
            candidate[count++] = g->node[id];
        }
    for (unsigned set = 0; set < 1u << count; set++) {
        int64_t cost = 0;
        for (int i = 0; i < count; i++)
            if (set >> i & 1) cost += columns(candidate[i]);
        bool enough = cost < best;
        for (int32_t id = 0; enough && id < g->n; id++)
            if (wanted[id]) enough = derivable(g->node[id], candidate, count, set);
        if (enough) best = cost;
    }
    free(forward);
    free(wanted);
    return best;
}

static bool all_finite(const MiniValues *v) {
    for (int i = 0; i < v->n; i++)
        for (int64_t k = 0; k < v->value[i].count; k++)
            if (!isfinite(v->value[i].data[k])) return false;
    return true;
}

static void kept_bytes_are_minimal(void **state) {
    (void)state;
    int saved = 0, kept_some = 0, compared = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        Graph *g = random_graph(seed);
        (void)pass_simplify(g, &context);
        int32_t var[16];
        int unused = autodiff_unreached(g, graph_find_output(g, PEFT_FN_EVAL, "loss"), var);
        for (int i = 0; i < unused; i++) g->var[var[i]].trainable = false;
        build_train(g, &fit_plain);
        int64_t before = kept_columns(g, OP_COUNT), want = cheapest_set(g);
        MiniBatch b;
        mini_batch(&b, g, false);
        MiniValues x = mini_run(g, PEFT_FN_GRADIENTS, &b);
        bool changed = pass_remat(g, &context);
        verify_graph(g, "remat");
        int64_t after = kept_columns(g, OP_COUNT);
        if (after != want)
            fail_msg("seed %d: keeps %d columns, the least is %d", (int)seed, (int)after,
                     (int)want);
        if (after < before) assert_true(changed);
        MiniValues y = mini_run(g, PEFT_FN_GRADIENTS, &b);
        if (all_finite(&x)) { /* a product of products may overflow */
            mini_assert_same_values(&x, &y, "remat");
            compared++;
        }
        saved += after < before;
        kept_some += after > 0;
        mini_values_free(&x);
        mini_values_free(&y);
        mini_batch_free(&b);
        graph_free(g);
    }
    assert_true(saved > 50 && kept_some > 50 && compared > 200);
}

/* ---- order ---- */

/* Most [T, ...] columns alive at once when nodes run in id order, one by one. */
static int64_t peak_columns(Graph *g) {
    int32_t n;
    Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
    int32_t *last = calloc((size_t)g->n + 1, sizeof *last);
    int64_t now = 0, peak = 0;
    for (int32_t i = 0; i < n; i++)
        for (int k = 0; k < live[i]->nin; k++) last[live[i]->in[k]->id] = i;
    for (int32_t i = 0; i < n; i++) {
        const Node *node = live[i];
        bool counts = op_info[node->op].class != CLASS_LEAF && op_info[node->op].nout == 1 &&
                      node->type.rank == 2 && node->type.dim[0] == DIM_T;
        if (counts) now += node->type.dim[1];
        if (now > peak) peak = now;
        for (int32_t k = 0; k <= i; k++) { /* frees what was read for the last time */
            const Node *in = live[k];
            if (last[in->id] != i || in->type.dim[0] != DIM_T || in->type.rank != 2) continue;
            if (op_info[in->op].class == CLASS_LEAF || op_info[in->op].nout > 1) continue;
            now -= in->type.dim[1];
            last[in->id] = -1;
        }
    }
    free(last);
    return peak;
}

static void recomputing_lowers_the_peak(void **state) {
    (void)state;
    Graph *on = compiled(MINI_FULL, NULL), *off = compiled(MINI_FULL, "remat");
    assert_true(peak_columns(on) < peak_columns(off));
    graph_free(on);
    graph_free(off);
}

/* Forward before backward; gradients from the last forward node to the first; a recomputed value
 * with the gradients of one forward node, the first that reads it. */
static void nodes_are_in_execution_order(void **state) {
    (void)state;
    for (int kind = 0; kind < MINI_KINDS; kind++) {
        Graph *g = compiled((MiniKind)kind, NULL);
        uint8_t *forward = forward_set(g);
        int32_t n, clones = 0, of = INT32_MAX;
        Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
        bool backward = false;
        for (int32_t i = 0; i < n; i++) {
            const Node *node = live[i];
            if (op_info[node->op].class == CLASS_LEAF) continue;
            backward |= !forward[node->id];
            assert_true(backward != forward[node->id]);
            clones += node->stream != 0;
            if (node->stream || !node->of || forward[node->id]) continue;
            assert_true(node->of->id <= of);
            of = node->of->id;
        }
        assert_true(clones > 0);
        free(forward);
        graph_free(g);
    }
}

/* The squares of a gradient for the norm, and an accumulator's sum, come before gradients of
 * earlier layers: a gradient is read while it is fresh. */
static void gradients_are_used_at_once(void **state) {
    (void)state;
    PeftFit parts = fit_plain;
    parts.accumulate = 2;
    const PeftFit *const fit[] = {&fit_plain, &parts};
    for (int k = 0; k < 2; k++) {
        Graph *g = mini_bert(MINI_FULL, 0.1);
        passes_run(g, &(PassOptions){.fit = fit[k], .log = stderr});
        int32_t n, used = -1, lowest = -1;
        Node **live = graph_live(g, PEFT_FN_TRAIN, &n);
        for (int32_t i = 0; i < n; i++) {
            bool uses = k ? live[i]->op == OP_ADD && !live[i]->of && live[i]->in[1]->op == OP_VAR
                          : live[i]->op == OP_SQUARE && !live[i]->of;
            if (uses && used < 0 && live[i]->in[0]->of) used = live[i]->id;
            if (live[i]->op == OP_SEGMENT_SUM) lowest = live[i]->id;
        }
        assert_true(used > 0 && used < lowest);
        graph_free(g);
    }
}

static void dead_nodes_are_dropped(void **state) {
    (void)state;
    Graph *g = compiled(MINI_LORA, NULL);
    uint8_t *live = calloc(1, (size_t)g->n);
    for (PeftFn fn = 0; fn < PEFT_FN_COUNT; fn++) {
        int32_t n;
        Node **list = graph_live(g, fn, &n);
        for (int32_t i = 0; i < n; i++) live[list[i]->id] = 1;
    }
    for (int32_t i = 0; i < g->n; i++) assert_true(live[i] && g->node[i]->id == i);
    free(live);
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_keeps_the_preactivation_alone),
        cmocka_unit_test(lora_keeps_no_dropped_copies),
        cmocka_unit_test(dequantised_weights_live_for_one_product),
        cmocka_unit_test(kept_bytes_are_minimal),
        cmocka_unit_test(recomputing_lowers_the_peak),
        cmocka_unit_test(nodes_are_in_execution_order),
        cmocka_unit_test(gradients_are_used_at_once),
        cmocka_unit_test(dead_nodes_are_dropped),
    };
    return cmocka_run_group_tests_name("remat", tests, NULL, NULL);
}
