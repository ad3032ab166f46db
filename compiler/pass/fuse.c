/* Groups ops into kernels. Nodes are visited from the last to the first, so that every reader of a
 * node has been placed before it: a node then either joins the group of a reader, is repeated in
 * all of them (loads and other free values), or starts a group of its own.
 *
 * Invariant: the graph of groups has no cycle. Each group knows the set of groups that depend on
 * it; a node may join group K unless another of its readers leads to K, for that reader would then
 * have to run both after and before K. */
#include "fuse_internal.h"

#include <string.h>

#include "../pool.h"

enum {
    FREE_COST = 4, /* ops worth repeating instead of storing a value */
    NEVER_FREE = 1 << 20,
    DROPOUT_COST = 3
};

static NodeInfo *info_of(const Fuser *f, const Node *n) {
    return &f->info[n->id];
}

/* ---- what a node is ---- */

Node *buffer_of(const Node *n) {
    while (op_info[n->op].class == CLASS_VIEW &&
           !(n->op == OP_PROJ && op_info[n->in[0]->op].nout > 1))
        n = n->in[0];
    return (Node *)n;
}

bool space_equal(Type a, Type b) {
    int64_t ar, ac, br, bc;
    type_space(a, &ar, &ac);
    type_space(b, &br, &bc);
    return ar == br && ac == bc;
}

Node *producer_of(Node *n, int *k) {
    *k = 0;
    while (op_info[n->op].class == CLASS_VIEW) {
        if (n->op == OP_PROJ && op_info[n->in[0]->op].nout > 1) {
            *k = n->attr.proj.k;
            return n->in[0];
        }
        if (!space_equal(n->type, n->in[0]->type)) return n;
        n = n->in[0];
    }
    return n;
}

bool has_row_reduction(const Node *n) {
    return op_info[n->op].class == CLASS_ROW || (n->op == OP_SUM && n->attr.sum.axis == 1);
}

/* Code of MAP kernels: everything that lower_ writes. */
static bool is_scalar_code(const Node *n) {
    OpClass class = op_info[n->op].class;
    return class == CLASS_EW || class == CLASS_LOAD || n->op == OP_CONST || has_row_reduction(n);
}

/* The space a node is computed in: that of its result, or of what it reduces. */
static void node_space(const Node *n, int64_t *rows, int64_t *cols) {
    bool reduces = n->op == OP_SUM || op_info[n->op].class == CLASS_ROW;
    type_space(reduces ? n->in[0]->type : n->type, rows, cols);
}

static bool is_uniform(const Node *n) {
    int64_t rows, cols;
    node_space(n, &rows, &cols);
    return rows == 1 && cols == 1;
}

OperandMode operand_mode(const Fuser *f, const Node *n, int i) {
    const Node *in = n->in[i];
    bool quantised = in->op == OP_DEQUANT && in->in[0]->op == OP_VAR;
    switch (n->op) {
    case OP_GATHER: return i == 1 ? OPERAND_VALUE : quantised ? OPERAND_NONE : OPERAND_BUFFER;
    case OP_SCATTER: return i == 1 ? OPERAND_VALUE : OPERAND_BUFFER;
    case OP_DROPOUT: return i == 1 ? OPERAND_BUFFER : OPERAND_VALUE;
    case OP_DEQUANT: return OPERAND_NONE;
    case OP_MATMUL: /* NF4 weights are dequantised while B is packed */
        return i == 1 && quantised && !f->options->skip ? OPERAND_NONE : OPERAND_BUFFER;
    default: return op_info[n->op].class == CLASS_TEMPLATE ? OPERAND_BUFFER : OPERAND_VALUE;
    }
}

/* ---- facts about all nodes, before grouping ---- */

static void find_roots(Fuser *f) {
    const Function *fn = &f->g->fn[f->fn];
    for (int i = 0; i < fn->nout; i++) info_of(f, fn->out[i].node)->root = true;
    for (int i = 0; i < fn->nupdate; i++) info_of(f, fn->update[i].value)->root = true;
    for (int i = 0; i < f->nlive; i++) {
        Node *n = f->live[i];
        NodeInfo *in = info_of(f, n);
        in->node = n;
        in->sum_group = in->home = in->lowered_in = -1;
        in->nuser += in->root;
        for (int k = 0; k < n->nin; k++) info_of(f, n->in[k])->nuser++;
        if (n->op == OP_PROJ && op_info[n->in[0]->op].nout > 1)
            info_of(f, n->in[0])->proj[n->attr.proj.k] = n;
    }
}

/* Ops to compute a node from variables and inputs; gathering a row of a variable is one. */
static int32_t free_cost(const Fuser *f, const Node *n) {
    OpClass class = op_info[n->op].class;
    if (class == CLASS_LEAF) return 0;
    bool cheap = op_info[n->op].flags & OPF_CHEAP;
    if (!cheap && class != CLASS_VIEW) return NEVER_FREE;
    int32_t cost = class == CLASS_VIEW ? 0 : n->op == OP_DROPOUT ? DROPOUT_COST : 1;
    for (int i = 0; i < n->nin && cost < NEVER_FREE; i++) cost += info_of(f, n->in[i])->free_cost;
    return cost < NEVER_FREE ? cost : NEVER_FREE;
}

/* Whether a product waits for another one. */
static bool is_late(const Fuser *f, const Node *product) {
    int k;
    return info_of(f, producer_of(product->in[0], &k))->chain != NULL;
}

/* Single-use elementwise ops on a matrix product of the same pass become its epilogue. A product
 * that waits for another one anyway, such as a patch's second one, goes on from the result of one
 * that does not; more would make a chain of what can run side by side. */
static Node *chain_of(const Fuser *f, Node *n, ProductCount *count) {
    Node *last = NULL;
    bool last_late = false;
    *count = (ProductCount){0, 0};
    if (n->op == OP_MATMUL) {
        *(is_late(f, n) ? &count->late : &count->early) = 1;
        return n;
    }
    if (op_info[n->op].class != CLASS_EW || op_info[n->op].nout > 1) return NULL;
    for (int i = 0; i < n->nin; i++) {
        int k;
        Node *in = producer_of(n->in[i], &k);
        const NodeInfo *from = info_of(f, in);
        if (!from->chain || from->nuser != 1 || from->pass != info_of(f, n)->pass ||
            !space_equal(in->type, n->type))
            continue;
        count->early += from->products.early;
        count->late += from->products.late;
        bool late = from->products.late > 0;
        if (!last || late > last_late || (late == last_late && in->id > last->id)) {
            last = in;
            last_late = late;
        }
    }
    return count->early <= 1 && count->late <= 1 ? last : NULL;
}

static uint8_t first_pass(const NodePass *of, const Node *n) {
    if (n->op == OP_ADAMW) return PASS_OPTIMIZER;
    if (n->of) return PASS_BACKWARD;
    for (int i = 0; i < n->nin; i++)
        if (of[n->in[i]->id].pass != PASS_FORWARD) return PASS_OPTIMIZER;
    return PASS_FORWARD;
}

/* Cheap forward values and scalars are computed in the pass that uses them. */
static bool can_defer(const Node *n) {
    OpClass class = op_info[n->op].class;
    return class == CLASS_VIEW || op_info[n->op].flags & OPF_CHEAP ||
           (class == CLASS_EW && is_uniform(n));
}

static NodePass *find_passes(Graph *g, Node *const *live, int32_t nlive) {
    enum { NO_USER = UINT8_MAX };
    NodePass *of = graph_alloc(g, (size_t)g->n * sizeof *of + 1);
    uint8_t *user = graph_alloc(g, (size_t)g->n + 1); /* earliest pass of a user */
    memset(user, NO_USER, (size_t)g->n + 1);
    for (int i = 0; i < nlive; i++) {
        NodePass *p = &of[live[i]->id];
        p->pass = first_pass(of, live[i]);
        p->deferred = live[i]->stream != 0; /* remat's clones */
    }
    for (int i = nlive - 1; i >= 0; i--) {
        const Node *n = live[i];
        NodePass *p = &of[n->id];
        if (p->pass == PASS_FORWARD && user[n->id] != NO_USER && user[n->id] != PASS_FORWARD &&
            can_defer(n))
            *p = (NodePass){user[n->id], true};
        for (int k = 0; k < n->nin; k++)
            if (p->pass < user[n->in[k]->id]) user[n->in[k]->id] = p->pass;
    }
    return of;
}

NodePass *node_passes(Graph *g, PeftFn fn) {
    int32_t n;
    Node **live = graph_live(g, fn, &n);
    return find_passes(g, live, n);
}

static void find_facts(Fuser *f) {
    find_roots(f);
    const NodePass *pass = find_passes(f->g, f->live, f->nlive);
    for (int i = 0; i < f->nlive; i++) {
        NodeInfo *in = info_of(f, f->live[i]);
        in->pass = pass[f->live[i]->id].pass;
        in->deferred = pass[f->live[i]->id].deferred;
        in->free_cost = free_cost(f, f->live[i]);
        in->chain = chain_of(f, f->live[i], &in->products);
    }
}

/* ---- groups and what depends on them ---- */

static bool has_bit(const uint64_t *set, int32_t i) {
    return set[i >> 6] >> (i & 63) & 1;
}

/* b |= a; true when that added something. */
static bool add_bits(uint64_t *b, const uint64_t *a, int32_t words) {
    uint64_t fresh = 0;
    for (int32_t i = 0; i < words; i++) {
        fresh |= a[i] & ~b[i];
        b[i] |= a[i];
    }
    return fresh != 0;
}

/* Group k now feeds the readers of a node: so does everything that leads to k. */
static void add_downstream(Fuser *f, int32_t k, const NodeInfo *n) {
    uint64_t *down = f->group[k].down;
    bool grew = false;
    for (int i = 0; i < n->nuse; i++) {
        int32_t r = n->use[i].group;
        if (r == k) continue;
        grew |= !has_bit(down, r);
        down[r >> 6] |= (uint64_t)1 << (r & 63);
        grew |= add_bits(down, f->group[r].down, f->words);
    }
    for (int32_t i = 0; grew && i < f->ngroup; i++)
        if (has_bit(f->group[i].down, k)) add_bits(f->group[i].down, down, f->words);
}

/* No reader of the node other than k may lead to k. */
static bool keeps_order(const Fuser *f, int32_t k, const NodeInfo *n) {
    for (int i = 0; i < n->nuse; i++)
        if (n->use[i].group != k && has_bit(f->group[n->use[i].group].down, k)) return false;
    return true;
}

static void add_site(Fuser *f, NodeInfo *n, int32_t k) {
    n->site = pool_grow(f->g->pool, n->site, (size_t)n->nsite, (size_t)n->nsite + 1,
                        sizeof *n->site, &n->cap_site);
    n->site[n->nsite++] = k;
    f->group[k].has_row |= has_row_reduction(n->node);
    f->group[k].dropout |= n->node->op == OP_DROPOUT;
    if (n->chain) f->group[k].chain = n->chain;
}

static void join_group(Fuser *f, int32_t k, NodeInfo *n) {
    add_downstream(f, k, n);
    add_site(f, n, k);
    n->home = k;
}

static int32_t new_group(Fuser *f, PeftKernelKind kind, NodeInfo *n) {
    int32_t k = f->ngroup++;
    Group *group = &f->group[k];
    *group = (Group){.kind = kind, .head = n->node, .pass = n->pass};
    group->down = graph_alloc(f->g, (size_t)f->words * sizeof *group->down);
    node_space(n->node, &group->rows, &group->cols);
    join_group(f, k, n);
    return k;
}

static void add_use(Fuser *f, NodeInfo *n, Use use) {
    for (int i = 0; i < n->nuse; i++) {
        if (n->use[i].group != use.group) continue;
        n->use[i].value |= use.value;
        n->use[i].buffer |= use.buffer;
        return;
    }
    n->use = pool_grow(f->g->pool, n->use, (size_t)n->nuse, (size_t)n->nuse + 1, sizeof *n->use,
                       &n->cap_use);
    n->use[n->nuse++] = use;
}

/* The groups that compute a node read its operands. */
static void use_operands(Fuser *f, const NodeInfo *n) {
    for (int i = 0; i < n->node->nin; i++) {
        OperandMode mode = operand_mode(f, n->node, i);
        if (mode == OPERAND_NONE) continue;
        for (int s = 0; s < n->nsite; s++)
            add_use(f, info_of(f, n->node->in[i]),
                    (Use){n->site[s], mode == OPERAND_VALUE, mode == OPERAND_BUFFER});
    }
}

/* ---- may a node be computed inside a group? ---- */

/* Element-wide operands that are not variables or inputs: what a deferred node keeps alive. */
static int wide_operands(const Node *n) {
    int count = 0;
    for (int i = 0; i < n->nin; i++) {
        int k;
        const Node *in = producer_of(n->in[i], &k);
        count += op_info[in->op].class != CLASS_LEAF && space_equal(n->in[i]->type, n->type);
    }
    return count;
}

static const char *refuse_pass(const Group *k, const NodeInfo *n) {
    if (n->pass == k->pass && !n->deferred) return NULL;
    if (n->pass != k->pass) return "it belongs to another pass";
    if (n->node->stream || is_uniform(n->node) || wide_operands(n->node) <= 1) return NULL;
    return "deferring it would keep several of its operands alive";
}

/* Does the node's space fit into the group's, as it is, by broadcasting, or by widening a group
 * that has had one column so far? */
static const char *refuse_space(const Group *k, const NodeInfo *n, bool stored) {
    int64_t rows, cols;
    node_space(n->node, &rows, &cols);
    if (rows == k->rows && cols == k->cols) return NULL;
    if (n->node->op == OP_DROPOUT) return "dropout counts the columns of its own rows";
    if (k->kind == PEFT_KERNEL_MAP && k->cols == 1 && rows == k->rows && rows != 1 && !k->dropout)
        return NULL;
    bool fits = (rows == 1 || rows == k->rows) && (cols == 1 || cols == k->cols);
    if (!fits || has_row_reduction(n->node)) return "their index spaces differ";
    bool once_a_row = rows == k->rows && rows != 1 && k->kind == PEFT_KERNEL_MAP;
    if (stored) return once_a_row && !k->chain ? NULL : "it is stored once, not for each row";
    if (once_a_row || op_info[n->node->op].flags & OPF_CHEAP) return NULL;
    return "it would be computed again for each row";
}

static const char *refuse_kind(const Group *k, const NodeInfo *n, bool stored) {
    bool row = has_row_reduction(n->node);
    if (n->chain && k->chain && k->chain != n->node) return "it is the epilogue of another GEMM";
    switch (k->kind) {
    case PEFT_KERNEL_MAP:
        if (row && k->chain) return "a row reduction cannot follow a GEMM's tiles";
        if (k->has_row && n->chain) return "it is the epilogue of its GEMM";
        return NULL;
    case PEFT_KERNEL_GEMM: return row ? "a row reduction cannot run in a GEMM's epilogue" : NULL;
    case PEFT_KERNEL_COLUMN_SUM:
    case PEFT_KERNEL_FULL_SUM:
        if (row) return "a row reduction cannot feed a sum over rows";
        if (n->chain) return "it is the epilogue of its GEMM";
        return stored ? "a sum stores nothing but its result" : NULL;
    default: return "the consumer is a runtime routine";
    }
}

static const char *refuse(const Fuser *f, const Use *use, const NodeInfo *n, bool stored) {
    const Group *group = &f->group[use->group];
    if (f->options->skip) return "fusion is switched off";
    if (use->buffer) return "its reader needs all of it in memory";
    const char *why = refuse_kind(group, n, stored);
    if (!why) why = refuse_space(group, n, stored);
    if (!why) why = refuse_pass(group, n);
    if (!why && !keeps_order(f, use->group, n)) why = "another user of it must run before this one";
    return why;
}

static void remark(const Fuser *f, const NodeInfo *n, int32_t k, const char *why) {
    if (!f->options->remark || f->options->skip) return;
    f->options->remark(f->options->ctx, n->node, f->group[k].head, why);
}

/* ---- placing scalar code ---- */

/* Loads, and cheap values that variables and inputs give anyway, cost nothing to repeat. */
static bool is_repeated(const NodeInfo *n) {
    if (op_info[n->node->op].class == CLASS_LOAD || n->node->op == OP_BROADCAST ||
        n->node->op == OP_CONST)
        return true;
    return !n->root && n->free_cost <= FREE_COST;
}

static const char *refuse_repeat(const Fuser *f, int32_t k, const NodeInfo *n) {
    const Group *group = &f->group[k];
    if (n->node->op == OP_CONST) return NULL;
    if (f->options->skip) return "fusion is switched off";
    const char *why = refuse_kind(group, n, false);
    return why ? why : refuse_space(group, n, false);
}

static void repeat_in_users(Fuser *f, NodeInfo *n) {
    int kept = 0;
    n->stored |= n->root;
    for (int i = 0; i < n->nuse; i++) {
        Use use = n->use[i];
        const char *why = use.value ? refuse_repeat(f, use.group, n) : NULL;
        if (why) remark(f, n, use.group, why);
        bool inlined = use.value && !why;
        if (inlined) add_site(f, n, use.group);
        if (use.buffer || !inlined) n->use[kept++] = use;
    }
    n->nuse = kept;
    n->stored |= kept > 0;
    if (n->stored) new_group(f, PEFT_KERNEL_MAP, n);
}

/* Which of two groups a stored value should rather join: one of its own space, the earlier one. */
static bool better_group(const Fuser *f, const NodeInfo *n, int32_t a, int32_t b) {
    int64_t rows, cols;
    if (b < 0) return true;
    node_space(n->node, &rows, &cols);
    bool exact_a = f->group[a].rows == rows && f->group[a].cols == cols;
    bool exact_b = f->group[b].rows == rows && f->group[b].cols == cols;
    return exact_a != exact_b ? exact_a : a > b;
}

static bool reads_from_memory(const NodeInfo *n, int32_t k) {
    for (int i = 0; i < n->nuse; i++)
        if (n->use[i].group == k && n->use[i].buffer) return true;
    return false;
}

/* Scalars need not share anything to share a kernel: a launch is all they cost. */
static int32_t scalar_group(const Fuser *f, const NodeInfo *n) {
    if (f->options->skip || !is_uniform(n->node)) return -1;
    for (int32_t k = f->ngroup - 1; k >= 0; k--) {
        const Group *group = &f->group[k];
        if (group->kind == PEFT_KERNEL_MAP && group->rows == 1 && group->cols == 1 &&
            group->pass == n->pass && !reads_from_memory(n, k) && keeps_order(f, k, n))
            return k;
    }
    return -1;
}

static void place_scalar_code(Fuser *f, NodeInfo *n) {
    bool elsewhere = n->nuse != 1 || n->root;
    for (int i = 0; i < n->nuse; i++) elsewhere |= n->use[i].buffer;
    int32_t best = -1;
    for (int i = 0; i < n->nuse; i++) {
        if (!n->use[i].value) continue;
        const char *why = refuse(f, &n->use[i], n, elsewhere);
        if (why)
            remark(f, n, n->use[i].group, why);
        else if (better_group(f, n, n->use[i].group, best))
            best = n->use[i].group;
    }
    n->stored = elsewhere || best < 0;
    if (best < 0) best = scalar_group(f, n);
    if (best < 0) {
        best = new_group(f, PEFT_KERNEL_MAP, n);
    } else {
        Group *group = &f->group[best];
        int64_t rows, cols;
        node_space(n->node, &rows, &cols);
        if (rows == group->rows && group->cols == 1) group->cols = cols;
        join_group(f, best, n);
    }
    Group *group = &f->group[best];
    int64_t rows, cols;
    type_space(n->node->type, &rows, &cols);
    group->row_out |= n->stored && cols != group->cols;
}

/* ---- placing the rest ---- */

/* The group whose elementwise ops can be this product's epilogue, or -1. */
static int32_t epilogue_group(const Fuser *f, const NodeInfo *n) {
    int32_t best = -1;
    for (int i = 0; i < n->nuse; i++) {
        int32_t k = n->use[i].group;
        const Group *group = &f->group[k];
        int64_t rows, cols;
        type_space(n->node->type, &rows, &cols);
        if (!n->use[i].value || n->use[i].buffer || group->kind != PEFT_KERNEL_MAP) continue;
        const char *why = NULL;
        if (f->options->skip) why = "fusion is switched off";
        if (!why && (group->has_row || group->row_out))
            why = "a row reduction cannot run in a GEMM's epilogue";
        if (!why && group->chain && group->chain != n->node)
            why = "it is the epilogue of another GEMM";
        if (!why && (group->rows != rows || group->cols != cols)) why = "their index spaces differ";
        if (!why && group->pass != n->pass) why = "it belongs to another pass";
        if (!why && !keeps_order(f, k, n)) why = "another user of it must run before this one";
        if (why)
            remark(f, n, k, why);
        else if (k > best)
            best = k;
    }
    return best;
}

static void place_gemm(Fuser *f, NodeInfo *n) {
    int32_t k = epilogue_group(f, n);
    if (k >= 0) {
        f->group[k].kind = PEFT_KERNEL_GEMM;
        join_group(f, k, n);
        n->stored = n->root || n->nuse > 1 || n->use[0].buffer;
    } else {
        k = new_group(f, PEFT_KERNEL_GEMM, n);
        n->stored = true;
    }
    f->group[k].anchor = n->node;
}

static void place_template(Fuser *f, NodeInfo *n) {
    PeftKernelKind kind;
    switch (n->node->op) {
    case OP_ATTENTION: kind = PEFT_KERNEL_ATTENTION; break;
    case OP_ATTENTION_GRAD: kind = PEFT_KERNEL_ATTENTION_GRAD; break;
    case OP_INDEX: kind = PEFT_KERNEL_INDEX; break;
    case OP_SEGMENT_SUM: kind = PEFT_KERNEL_SEGMENT_SUM; break;
    case OP_TRANSPOSE: kind = PEFT_KERNEL_TRANSPOSE; break;
    default: PANIC(n->node, "no kernel computes %s", op_info[n->node->op].name);
    }
    int32_t k = new_group(f, kind, n);
    f->group[k].anchor = n->node;
    n->stored = true;
}

/* The group of an earlier column sum that reads one of the buffers n reads: through operands that
 * are used once and so computed in the sum. With mark >= 0, notes that this group reads them. */
static int32_t shared_sum(Fuser *f, Node *n, int32_t mark) {
    int k;
    Node *at = producer_of(n, &k);
    NodeInfo *info = info_of(f, at);
    int32_t found = info->sum_group;
    if (mark >= 0) info->sum_group = mark;
    if (info->nuser != 1 || op_info[at->op].class != CLASS_EW) return found;
    for (int i = 0; i < at->nin; i++) {
        if (!space_equal(at->in[i]->type, n->type)) continue;
        int32_t deeper = shared_sum(f, at->in[i], mark);
        if (deeper > found) found = deeper;
    }
    return found;
}

/* Column sums that read the same values run over them together. */
static void place_column_sum(Fuser *f, NodeInfo *n) {
    int32_t k = f->options->skip ? -1 : shared_sum(f, n->node->in[0], -1);
    const Group *group = k >= 0 ? &f->group[k] : NULL;
    int64_t rows, cols;
    node_space(n->node, &rows, &cols);
    if (group && group->rows == rows && group->cols == cols && group->pass == n->pass &&
        keeps_order(f, k, n))
        join_group(f, k, n);
    else
        k = new_group(f, PEFT_KERNEL_COLUMN_SUM, n);
    shared_sum(f, n->node->in[0], k);
    n->stored = true;
}

/* A view passes its readers on; one that changes the index space is a barrier to fusion. */
static void pass_through_view(Fuser *f, NodeInfo *n) {
    NodeInfo *in = info_of(f, n->node->in[0]);
    bool same = space_equal(n->node->type, n->node->in[0]->type);
    in->root |= n->root;
    for (int i = 0; i < n->nuse; i++) {
        Use use = n->use[i];
        if (!same) use = (Use){use.group, false, true};
        add_use(f, in, use);
    }
}

/* A multi-result op is read by the readers of all its results. */
static void gather_results(Fuser *f, NodeInfo *n) {
    for (int k = 0; k < FUSE_RESULTS; k++) {
        if (!n->proj[k]) continue;
        const NodeInfo *p = info_of(f, n->proj[k]);
        n->root |= p->root;
        for (int i = 0; i < p->nuse; i++) add_use(f, n, p->use[i]);
    }
}

/* A result is stored when a group that does not compute it reads it. */
static void store_results(Fuser *f, NodeInfo *n) {
    for (int k = 0; k < FUSE_RESULTS; k++) {
        if (!n->proj[k]) continue;
        NodeInfo *p = info_of(f, n->proj[k]);
        p->stored = p->root || n->nsite == 0;
        for (int i = 0; i < p->nuse; i++)
            p->stored |= p->use[i].buffer || p->use[i].group != n->site[0];
    }
}

static void place(Fuser *f, NodeInfo *n) {
    OpClass class = op_info[n->node->op].class;
    bool multi = op_info[n->node->op].nout > 1;
    if (class == CLASS_VIEW) {
        bool result = n->node->op == OP_PROJ && op_info[n->node->in[0]->op].nout > 1;
        if (!result) pass_through_view(f, n);
        return;
    }
    if (class == CLASS_LEAF && n->node->op != OP_CONST) return;
    if (multi) gather_results(f, n);
    if (class == CLASS_GEMM)
        place_gemm(f, n);
    else if (class == CLASS_TEMPLATE)
        place_template(f, n);
    else if (!is_scalar_code(n->node) && n->node->attr.sum.axis == 0)
        place_column_sum(f, n);
    else if (!is_scalar_code(n->node)) {
        new_group(f, PEFT_KERNEL_FULL_SUM, n);
        n->stored = true;
    } else if (is_repeated(n))
        repeat_in_users(f, n);
    else
        place_scalar_code(f, n);
    if (multi) store_results(f, n);
    use_operands(f, n);
}

/* ---- the pass ---- */

static void add_node(Fuser *f, int32_t k, Node *n) {
    Group *group = &f->group[k];
    group->node = pool_grow(f->g->pool, group->node, (size_t)group->nnode, (size_t)group->nnode + 1,
                            sizeof *group->node, &group->cap_node);
    group->node[group->nnode++] = n;
}

Kernel **fuse_function(Graph *g, PeftFn fn, const FuseOptions *options, int32_t *n) {
    Fuser f = {.g = g, .fn = fn, .options = options};
    f.live = graph_live(g, fn, &f.nlive);
    f.info = graph_alloc(g, (size_t)g->n * sizeof *f.info + 1);
    f.group = graph_alloc(g, (size_t)f.nlive * sizeof *f.group + 1);
    f.words = f.nlive / 64 + 1;
    find_facts(&f);
    for (int i = f.nlive - 1; i >= 0; i--) place(&f, info_of(&f, f.live[i]));
    for (int i = 0; i < f.nlive; i++) {
        const NodeInfo *in = info_of(&f, f.live[i]);
        for (int s = 0; s < in->nsite; s++) add_node(&f, in->site[s], in->node);
    }
    Kernel **kernel = graph_alloc(g, (size_t)f.ngroup * sizeof *kernel + 1);
    KVal *value = graph_alloc(g, (size_t)g->n * FUSE_RESULTS * sizeof *value + 1);
    for (int32_t k = 0; k < f.ngroup; k++) kernel[k] = group_kernel(&f, k, value);
    *n = f.ngroup;
    return kernel;
}
