/* Sums of matrix products become sums of short chains that can be computed side by side. The
 * gradient of what q, k, v and their patches read is a sum of up to five products; one after the
 * other, each adding to the last, they would be the longest path through a layer.
 *
 * requires: simplify has run: no constant factor on an operand of a product.
 * gives: no sum of three or more products in which a product waits for more than one other.
 * leaves alone: partial sums that something else reads too; the terms and their number. The order
 *   of addition changes, so results may round differently. */
#include "../op/rules.h"
#include "../pass.h"

enum { MOST_TERMS = 64 };

typedef struct Sum { /* the terms of a sum, rewritten */
    Node *other[MOST_TERMS], *product[MOST_TERMS];
    int nother, nproduct;
} Sum;

static bool is_product(const Node *n) {
    if (n->op == OP_MUL && (n->in[0]->op == OP_CONST || n->in[1]->op == OP_CONST))
        n = n->in[n->in[0]->op == OP_CONST];
    return n->op == OP_MATMUL;
}

/* What is known of a function's nodes, by id. */
typedef struct Facts {
    int *users;
    bool *inner; /* a sum read by nothing but another sum of the same shape */
    Node **now;  /* terms of sums: rewritten */
} Facts;

/* The terms below a sum's operand. False when there are too many. */
static bool collect(const Facts *f, const Node *old, Sum *s) {
    Node *now = f->now[old->id];
    if (f->inner[old->id]) return collect(f, old->in[0], s) && collect(f, old->in[1], s);
    if (s->nother == MOST_TERMS || s->nproduct == MOST_TERMS) return false;
    if (is_product(now) && f->users[old->id] == 1)
        s->product[s->nproduct++] = now;
    else
        s->other[s->nother++] = now;
    return true;
}

static Node *add(Graph *g, Node *a, Node *b) {
    return a ? nd2(g, OP_ADD, a, b) : b;
}

/* The other terms and one product, or two; then pairs of products. */
static Node *pairs(Graph *g, const Sum *s) {
    Node *sum = NULL, *chain = NULL;
    for (int i = 0; i < s->nother; i++) chain = add(g, chain, s->other[i]);
    int room = chain ? 1 : 2;
    for (int i = 0; i < s->nproduct; i++) {
        if (room == 0) {
            sum = add(g, sum, chain);
            chain = NULL;
            room = 2;
        }
        chain = add(g, chain, s->product[i]);
        room--;
    }
    return add(g, sum, chain);
}

static Node *balance(Graph *g, const Node *old, Node *const *in, void *ctx) {
    const Facts *f = ctx;
    Sum s = {.nother = 0};
    if (old->op != OP_ADD) return NULL;
    for (int i = 0; i < 2; i++) f->now[old->in[i]->id] = in[i];
    if (f->inner[old->id]) return NULL;
    bool fits = collect(f, old->in[0], &s) && collect(f, old->in[1], &s);
    return fits && s.nproduct > 2 ? pairs(g, &s) : NULL;
}

static Facts find_facts(Graph *g, PeftFn fn) {
    Facts facts = {.users = graph_alloc(g, (size_t)g->n * sizeof(int) + 1),
                   .inner = graph_alloc(g, (size_t)g->n + 1),
                   .now = graph_alloc(g, (size_t)g->n * sizeof(Node *) + 1)};
    int32_t n;
    Node **live = graph_live(g, fn, &n);
    const Function *f = &g->fn[fn];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < live[i]->nin; k++) facts.users[live[i]->in[k]->id]++;
    for (int i = 0; i < f->nout; i++) facts.users[f->out[i].node->id]++;
    for (int i = 0; i < f->nupdate; i++) facts.users[f->update[i].value->id]++;
    for (int i = 0; i < n; i++)
        for (int k = 0; live[i]->op == OP_ADD && k < 2; k++) {
            const Node *term = live[i]->in[k];
            facts.inner[term->id] = term->op == OP_ADD && facts.users[term->id] == 1 &&
                                    type_equal(term->type, live[i]->type);
        }
    return facts;
}

bool pass_balance(Graph *g, const PassContext *c) {
    (void)c;
    bool changed = false;
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        Facts facts = find_facts(g, (PeftFn)fn);
        changed |= graph_rewrite(g, 1u << fn, balance, &facts);
    }
    return changed;
}
