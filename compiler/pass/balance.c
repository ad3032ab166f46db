/* Sums of matrix products become sums of short chains that can be computed side by side. The
 * gradient of what q, k, v and their patches read is a sum of up to five products; one after the
 * other, each adding to the last, they would be the longest path through a layer.
 *
 * requires: simplify has run: no constant factor on an operand of a product.
 * gives: of a sum of three or more products, each waits for at most one other of them; and only
 *   one that waits for a product anyway, such as a patch's second one, adds to another.
 * leaves alone: partial sums that something else reads too; the terms and their number. The order
 *   of addition changes, so results may round differently. */
#include "../op/rules.h"
#include "../pass.h"

enum { MOST_TERMS = 64 };

typedef struct Sum { /* the terms of a sum, rewritten */
    Node *other[MOST_TERMS], *product[MOST_TERMS], *late[MOST_TERMS];
    int nother, nproduct, nlate; /* late: products of a product */
} Sum;

/* The product that a term is, but for a constant factor; NULL when it is none. */
static const Node *product_of(const Node *n) {
    if (n->op == OP_MUL && (n->in[0]->op == OP_CONST || n->in[1]->op == OP_CONST))
        n = n->in[n->in[0]->op == OP_CONST];
    return n->op == OP_MATMUL ? n : NULL;
}

static bool is_late(const Node *product) {
    return product_of(product->in[0]) || product_of(product->in[1]);
}

/* What is known of a function's nodes, by id. */
typedef struct Facts {
    int *users;
    bool *inner; /* a sum read by nothing but another sum of the same shape */
    Node **now;  /* terms of sums: rewritten */
} Facts;

/* By age, whatever the shape of the sum was. */
static void insert(Node **term, int *n, Node *new) {
    int at = (*n)++;
    for (; at > 0 && term[at - 1]->id > new->id; at--) term[at] = term[at - 1];
    term[at] = new;
}

/* The terms below a sum's operand. False when there are too many. */
static bool collect(const Facts *f, const Node *old, Sum *s) {
    Node *now = f->now[old->id];
    if (f->inner[old->id]) return collect(f, old->in[0], s) && collect(f, old->in[1], s);
    if (s->nother + s->nproduct + s->nlate == MOST_TERMS) return false;
    const Node *product = f->users[old->id] == 1 ? product_of(now) : NULL;
    if (!product)
        insert(s->other, &s->nother, now);
    else if (is_late(product))
        insert(s->late, &s->nlate, now);
    else
        insert(s->product, &s->nproduct, now);
    return true;
}

static Node *add(Graph *g, Node *a, Node *b) {
    return a ? nd2(g, OP_ADD, a, b) : b;
}

/* A chain for each product that can start at once, with a late one behind it while there are any;
 * late ones that are left over are paired. The last one's kernel can add up everything. */
static Node *chains(Graph *g, const Sum *s) {
    Node *sum = NULL;
    int late = 0;
    for (int i = 0; i < s->nproduct || late < s->nlate; i++) {
        Node *chain = i < s->nproduct ? s->product[i] : s->late[late++];
        if (late < s->nlate) chain = add(g, chain, s->late[late++]);
        sum = add(g, sum, chain);
    }
    for (int i = 0; i < s->nother; i++) sum = add(g, sum, s->other[i]);
    return sum;
}

static Node *balance(Graph *g, const Node *old, Node *const *in, void *ctx) {
    const Facts *f = ctx;
    Sum s = {.nother = 0};
    if (old->op != OP_ADD) return NULL;
    for (int i = 0; i < 2; i++) f->now[old->in[i]->id] = in[i];
    if (f->inner[old->id]) return NULL;
    bool fits = collect(f, old->in[0], &s) && collect(f, old->in[1], &s);
    return fits && s.nproduct + s.nlate > 2 ? chains(g, &s) : NULL;
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
