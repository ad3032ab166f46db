/* One training step as graph nodes: clip by global norm, linear schedule with warm-up, AdamW.
 * Formulas are those of torch.nn.utils.clip_grad_norm_, transformers' linear schedule and
 * torch.optim.AdamW. The step counter t counts completed steps: the update computed in this step is
 * number t + 1 for the bias corrections and uses the schedule's factor at t (0 when warming up).
 * Invariant: nothing here reads a dense copy of an embedding's gradient; it stays a scatter of its
 * few touched rows, which fuses into AdamW. */
#include "optimizer.h"

#include "autodiff.h"
#include "op/rules.h"

typedef struct Trainable {
    int32_t var, m, v, acc; /* variables; acc only with accumulation */
    Node *grad;             /* what AdamW consumes */
} Trainable;

typedef struct Train {
    Graph *g;
    const PeftFit *fit;
    Trainable *item;
    int n;
    int32_t step; /* the variable optimizer.step */
} Train;

/* ---- variables ---- */

static int32_t add_state(Graph *g, const char *prefix, const Var *of) {
    Var v = {.kind = VAR_STATE, .init = {.kind = PEFT_ZEROS}, .group = -1, .span = SPAN_NONE};
    v.name = of ? graph_printf(g, "optimizer.%s.%s", prefix, of->name)
                : graph_printf(g, "optimizer.%s", prefix);
    v.type = of ? of->type : type_scalar();
    if (of) v.span = of->span;
    return graph_var(g, v);
}

static void collect_trainables(Train *t) {
    Graph *g = t->g;
    int32_t nparam = g->nvar;
    t->item = graph_alloc(g, (size_t)nparam * sizeof *t->item + 1);
    t->step = add_state(g, "step", NULL);
    for (int32_t i = 0; i < nparam; i++) {
        if (g->var[i].kind != VAR_PARAM || !g->var[i].trainable) continue;
        const Var var = g->var[i]; /* a copy: adding variables moves the array */
        Trainable *item = &t->item[t->n++];
        item->var = i;
        item->m = add_state(g, "m", &var);
        item->v = add_state(g, "v", &var);
        item->acc = t->fit->accumulate > 1 ? add_state(g, "g", &var) : -1;
    }
}

static void differentiate(Train *t, Node *loss) {
    Graph *g = t->g;
    Node **wrt = graph_alloc(g, (size_t)t->n * sizeof *wrt + 1);
    Node **grad = graph_alloc(g, (size_t)t->n * sizeof *grad + 1);
    for (int i = 0; i < t->n; i++) wrt[i] = nd_var(g, t->item[i].var);
    autodiff(g, loss, wrt, t->n, grad);
    for (int i = 0; i < t->n; i++) {
        if (!grad[i]) PANIC(wrt[i], "%s does not reach the loss", g->var[t->item[i].var].name);
        t->item[i].grad = grad[i];
    }
}

/* ---- scalars ---- */

/* Learning rate after t completed steps, W warm-up steps, N steps in all:
 *   lr * (t < W ? t / max(1, W) : max(0, (N - t) / max(1, N - W)))
 * The condition is step(W - t), 0 or 1; the branch not taken is finite, so 0 times it is exact. */
static Node *learning_rate(Graph *g, Node *t) {
    Node *one = nd_const(g, 1), *zero = nd_const(g, 0);
    Node *warmup = nd_input(g, PEFT_IN_warmup_steps), *total = nd_input(g, PEFT_IN_total_steps);
    Node *rising = nd1(g, OP_STEP, nd2(g, OP_SUB, warmup, t));
    Node *up = nd2(g, OP_DIV, t, nd2(g, OP_MAX, one, warmup));
    Node *span = nd2(g, OP_MAX, one, nd2(g, OP_SUB, total, warmup));
    Node *down = nd2(g, OP_MAX, zero, nd2(g, OP_DIV, nd2(g, OP_SUB, total, t), span));
    Node *falling = nd2(g, OP_SUB, one, rising);
    Node *factor = nd2(g, OP_ADD, nd2(g, OP_MUL, rising, up), nd2(g, OP_MUL, falling, down));
    return nd2(g, OP_MUL, nd_input(g, PEFT_IN_lr), factor);
}

/* An embedding's gradient is scatter(segment_sum(dy, order, start), slot) over one index: every row
 * of the segment sum is scattered once or is empty, and empty rows are zero. So the compact rows
 * have the same sum of squares, and reading them avoids the dense form. */
static Node *compact_rows(Node *grad) {
    if (grad->op != OP_SCATTER || grad->in[0]->op != OP_SEGMENT_SUM) return grad;
    const Node *slot = grad->in[1], *order = grad->in[0]->in[1], *start = grad->in[0]->in[2];
    bool one_index = slot->op == OP_PROJ && order->op == OP_PROJ && start->op == OP_PROJ &&
                     slot->in[0]->op == OP_INDEX && slot->in[0] == order->in[0] &&
                     slot->in[0] == start->in[0] && slot->attr.proj.k == 2 &&
                     order->attr.proj.k == 0 && start->attr.proj.k == 1;
    return one_index ? grad->in[0] : grad;
}

/* sqrt of the sum of squares of all gradients, tensors added in the order of the variables. */
static Node *gradient_norm(Train *t) {
    Graph *g = t->g;
    Node *sum = NULL;
    for (int i = 0; i < t->n; i++) {
        graph_set_origin(g, (Origin){g->var[t->item[i].var].span, NULL});
        Node *squares = nd_sum(g, nd1(g, OP_SQUARE, compact_rows(t->item[i].grad)), -1);
        sum = sum ? nd2(g, OP_ADD, sum, squares) : squares;
    }
    graph_set_origin(g, (Origin){SPAN_NONE, NULL});
    return nd1(g, OP_SQRT, sum);
}

/* min(1, clip_norm / (norm + 1e-6)) */
static Node *clip_factor(Graph *g, Node *norm) {
    Node *ratio =
        nd2(g, OP_DIV, nd_input(g, PEFT_IN_clip_norm), nd2(g, OP_ADD, norm, nd_const(g, 1e-6)));
    return nd2(g, OP_MIN, nd_const(g, 1), ratio);
}

static Node *bias_correction(Graph *g, double beta, Node *step) {
    Attr attr = attr_zero();
    attr.decay.beta = beta;
    return NODE(g, OP_BIAS_CORRECTION, attr, step);
}

/* ---- functions ---- */

/* Clip, AdamW on every trainable parameter, and the step counter. */
static void add_updates(Train *t, PeftFn fn) {
    Graph *g = t->g;
    const PeftFit *fit = t->fit;
    Node *done = nd_var(g, t->step), *now = nd2(g, OP_ADD, done, nd_const(g, 1));
    Node *norm = gradient_norm(t), *rate = learning_rate(g, done), *clip = clip_factor(g, norm);
    Node *bc1 = bias_correction(g, fit->beta1, now), *bc2 = bias_correction(g, fit->beta2, now);
    graph_output(g, fn, "grad_norm", norm);
    graph_output(g, fn, "lr", rate);
    Attr attr = attr_zero();
    attr.adamw.beta1 = fit->beta1;
    attr.adamw.beta2 = fit->beta2;
    attr.adamw.eps = fit->eps;
    for (int i = 0; i < t->n; i++) {
        Trainable *item = &t->item[i];
        graph_set_origin(g, (Origin){g->var[item->var].span, NULL});
        Node *decay = g->var[item->var].decay ? nd_input(g, PEFT_IN_weight_decay) : nd_const(g, 0);
        Node *step = NODE(g, OP_ADAMW, attr, nd_var(g, item->var), item->grad, nd_var(g, item->m),
                          nd_var(g, item->v), rate, clip, bc1, bc2, decay);
        graph_update(g, fn, item->var, nd_proj(g, step, 0));
        graph_update(g, fn, item->m, nd_proj(g, step, 1));
        graph_update(g, fn, item->v, nd_proj(g, step, 2));
    }
    graph_update(g, fn, t->step, now);
}

/* TRAIN of one micro-batch: accumulators += gradients. UPDATE then reads and zeroes them. */
static void add_accumulation(Train *t) {
    Graph *g = t->g;
    for (int i = 0; i < t->n; i++) {
        Trainable *item = &t->item[i];
        graph_set_origin(g, (Origin){g->var[item->var].span, NULL});
        Node *acc = nd_var(g, item->acc);
        graph_update(g, PEFT_FN_TRAIN, item->acc, nd2(g, OP_ADD, acc, item->grad));
        item->grad = acc;
    }
    add_updates(t, PEFT_FN_UPDATE);
    for (int i = 0; i < t->n; i++) {
        int32_t acc = t->item[i].acc;
        graph_update(g, PEFT_FN_UPDATE, acc, nd_broadcast(g, nd_const(g, 0), g->var[acc].type));
    }
}

void build_train(Graph *g, const PeftFit *fit) {
    Node *loss = graph_find_output(g, PEFT_FN_EVAL, "loss");
    Node *logits = graph_find_output(g, PEFT_FN_EVAL, "logits");
    if (!loss) PANIC(NULL, "the forward graph has no loss");
    Train t = {.g = g, .fit = fit};
    Origin saved = graph_set_origin(g, (Origin){SPAN_NONE, NULL});
    collect_trainables(&t);
    differentiate(&t, loss);
    for (PeftFn fn = PEFT_FN_TRAIN; fn <= PEFT_FN_GRADIENTS; fn++) {
        if (fn == PEFT_FN_UPDATE) continue;
        graph_output(g, fn, "loss", loss);
        if (logits) graph_output(g, fn, "logits", logits);
    }
    for (int i = 0; i < t.n; i++) {
        const char *name = graph_printf(g, "grad.%s", g->var[t.item[i].var].name);
        graph_output(g, PEFT_FN_GRADIENTS, name, t.item[i].grad);
    }
    if (fit->accumulate > 1)
        add_accumulation(&t);
    else
        add_updates(&t, PEFT_FN_TRAIN);
    graph_set_origin(g, saved);
}
