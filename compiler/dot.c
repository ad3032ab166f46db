/* Graphviz drawings. A node belongs to the module whose parameters it uses; a node without
 * parameters to the module its most recent operand belongs to; a gradient to that of what it
 * differentiates. Kinds differ in shape and border as well as in fill, and fills are of Okabe and
 * Ito's palette, so that the drawing reads in grey and by every eye. */
#include "dot.h"

#include <ctype.h>
#include <string.h>

typedef struct Item { /* a box to draw: a node, or a kernel of the fused view */
    const char *name, *label, *style, *module;
    size_t block, inner; /* lengths of the module's prefixes that box it */
} Item;

typedef struct Dot {
    FILE *to;
    Graph *g;
    const DotOptions *o;
    const char **module; /* by id; "" when it belongs to none */
    uint8_t *param;      /* by id: computed from variables alone */
    uint8_t *forward;    /* by id: needed for the loss or the logits */
    uint8_t *active;     /* by id: depends on a trainable parameter */
    uint8_t *shown;      /* by id: in the function and of interest */
    Item *item;
    int nitem;
} Dot;

/* ---- module paths ---- */

/* Length of the longest common prefix of two paths that ends at a component. */
static size_t common_prefix(const char *a, const char *b) {
    size_t i = 0, end = 0;
    for (; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.') end = i;
    bool ends_a = !a[i] || a[i] == '.', ends_b = !b[i] || b[i] == '.';
    return ends_a && ends_b ? i : end;
}

static bool is_within(const char *path, const char *module) {
    size_t n = strlen(module);
    return common_prefix(path, module) == n;
}

/* The part of a path that boxes a layer: up to its first numbered component, or without its last.
 */
static size_t block_length(const char *path) {
    for (size_t i = 0; path[i]; i++) {
        if (i && path[i - 1] != '.') continue;
        size_t digits = strspn(path + i, "0123456789");
        if (digits && (!path[i + digits] || path[i + digits] == '.')) return i + digits;
    }
    const char *last = strrchr(path, '.');
    return last ? (size_t)(last - path) : strlen(path);
}

static const char *parent_path(Graph *g, const char *name) {
    const char *last = strrchr(name, '.');
    return last ? graph_printf(g, "%.*s", (int)(last - name), name) : "";
}

/* Operand i only steers an op: index vectors of dropout and attention, constants, scalars. */
static bool is_plumbing(const Node *n, int i) {
    const Node *in = n->in[i];
    if (in->op == OP_CONST || (in->op == OP_INPUT && in->type.rank == 0)) return true;
    if (n->op == OP_DROPOUT) return i > 0;
    if (n->op == OP_ATTENTION) return i > 2;
    return n->op == OP_ATTENTION_GRAD && i > 4;
}

static size_t inner_length(const Dot *d, const char *path);

/* The common module of those operands for which `param` is as asked and which belong to the same
 * block as the latest of them; when they have nothing but the block in common (a residual sum), the
 * box of the latest. NULL when there is no such operand. */
static const char *module_of_inputs(Dot *d, const Node *n, bool param) {
    const Node *latest = NULL;
    for (int i = 0; i < n->nin; i++) {
        const Node *in = n->in[i];
        if (is_plumbing(n, i) || in->op == OP_INPUT || d->param[in->id] != param) continue;
        if (!latest || in->id > latest->id) latest = in;
    }
    if (!latest) return NULL;
    const char *path = d->module[latest->id];
    size_t block = block_length(path), keep = strlen(path);
    for (int i = 0; i < n->nin; i++) {
        const char *other = d->module[n->in[i]->id];
        if (is_plumbing(n, i) || n->in[i]->op == OP_INPUT || d->param[n->in[i]->id] != param)
            continue;
        size_t same = common_prefix(path, other);
        if (same >= block && same < keep) keep = same;
    }
    if (keep == block && path[keep]) keep = inner_length(d, path);
    return graph_printf(d->g, "%.*s", (int)keep, path);
}

static void find_modules(Dot *d) {
    for (int32_t id = 0; id < d->g->n; id++) {
        const Node *n = d->g->node[id];
        const char *module = NULL;
        if (n->op == OP_VAR) {
            d->param[id] = 1;
            module = parent_path(d->g, d->g->var[n->attr.leaf.index].name);
        } else if (n->of && n->of->id < id) {
            module = d->module[n->of->id];
        } else if (n->nin) {
            d->param[id] = 1;
            for (int i = 0; i < n->nin; i++)
                d->param[id] &= d->param[n->in[i]->id] || n->in[i]->op == OP_CONST;
            module = module_of_inputs(d, n, true);
            if (!module || !*module) module = module_of_inputs(d, n, false);
        }
        d->module[id] = module ? module : "";
    }
}

/* Whether a module has modules of its own: some variable lies deeper than its parameters. */
static bool is_container(const Dot *d, const char *path) {
    size_t n = strlen(path);
    for (int32_t i = 0; i < d->g->nvar; i++) {
        const Var *v = &d->g->var[i];
        if (v->kind == VAR_PARAM && is_within(v->name, path) && v->name[n] == '.' &&
            strchr(v->name + n + 1, '.'))
            return true;
    }
    return false;
}

/* The box inside a layer: the module that contains the node's own, between it and the layer. */
static size_t inner_length(const Dot *d, const char *path) {
    size_t block = block_length(path), length = strlen(path);
    const char *last = strrchr(path, '.');
    if (last && !is_container(d, path)) length = (size_t)(last - path);
    return length > block ? length : block;
}

static void find_active(Dot *d) {
    for (int32_t id = 0; id < d->g->n; id++) {
        const Node *n = d->g->node[id];
        if (n->op == OP_VAR) d->active[id] = d->g->var[n->attr.leaf.index].trainable;
        for (int i = 0; i < n->nin && n->op != OP_DETACH; i++)
            d->active[id] |= d->active[n->in[i]->id];
    }
}

/* ---- what is drawn ---- */

/* Views have the bytes of their operand: they are drawn as part of it. */
static const Node *base(const Node *n) {
    while (op_info[n->op].class == CLASS_VIEW) n = n->in[0];
    return n;
}

static void find_shown(Dot *d) {
    const Function *f = &d->g->fn[d->o->fn];
    for (int i = 0; i < f->nout; i++) {
        const char *name = f->out[i].name;
        int32_t id = f->out[i].node->id;
        d->shown[id] = 1;
        d->forward[id] |= !strcmp(name, "loss") || !strcmp(name, "logits");
    }
    for (int i = 0; i < f->nupdate; i++) d->shown[f->update[i].value->id] = 1;
    for (int32_t id = d->g->n - 1; id >= 0; id--) {
        const Node *n = d->g->node[id];
        for (int i = 0; i < n->nin; i++) {
            d->forward[n->in[i]->id] |= d->forward[id];
            if (!is_plumbing(n, i)) d->shown[n->in[i]->id] |= d->shown[id];
        }
    }
}

/* Whether the view draws the node as one of its own; operands of those are drawn as well. */
static bool in_view(const Dot *d, const Node *n) {
    if (!d->shown[n->id] || op_info[n->op].class == CLASS_VIEW) return false;
    if (op_info[n->op].class == CLASS_LEAF) return false;
    if (d->o->module && !is_within(d->module[n->id], d->o->module)) return false;
    return d->o->view == DOT_FORWARD ? d->forward[n->id] : !d->forward[n->id] && n->of;
}

/* ---- labels and styles ---- */

static const char style_frozen[] = "shape=box style=\"filled,dashed\" fillcolor=\"#eeeeee\"";
static const char style_trainable[] = "shape=box style=filled penwidth=2.5 fillcolor=\"#e69f00\"";
static const char style_state[] = "shape=cylinder style=filled fillcolor=\"#f0e442\"";
static const char style_input[] = "shape=cds style=solid";
static const char style_op[] = "shape=box style=\"rounded,filled\" fillcolor=white";
static const char style_active[] =
    "shape=box style=\"rounded,filled\" fillcolor=white penwidth=2.5";
static const char style_gradient[] = "shape=hexagon style=filled fillcolor=\"#56b4e9\"";
static const char style_again[] = "shape=hexagon style=\"filled,dashed\" fillcolor=\"#cde8f7\"";
static const char style_optimizer[] = "shape=octagon style=filled fillcolor=\"#009e73\"";

static const char *style_of(const Dot *d, const Node *n) {
    if (n->op == OP_INPUT) return style_input;
    if (n->op == OP_VAR) {
        const Var *v = &d->g->var[n->attr.leaf.index];
        return v->kind == VAR_STATE ? style_state : v->trainable ? style_trainable : style_frozen;
    }
    if (n->stream) return style_again;
    if (d->forward[n->id]) return d->active[n->id] ? style_active : style_op;
    return n->of ? style_gradient : style_optimizer;
}

/* The shape alone: everything drawn is f32 but what its op says is not. */
static const char *shape_of(const Node *n, char buf[64]) {
    const char *bracket = strchr(type_str(n->type, buf), '[');
    return bracket ? bracket : "scalar";
}

static const char *label_of(Dot *d, const Node *n) {
    char buf[64];
    if (n->op == OP_VAR) {
        const char *name = d->g->var[n->attr.leaf.index].name;
        size_t skip = inner_length(d, d->module[n->id]);
        if (skip && name[skip] == '.') name += skip + 1;
        return graph_printf(d->g, "%s\\n%s", name, type_str(n->type, buf));
    }
    if (n->op == OP_INPUT) {
        static const char *const name[] = {
#define X(name, dtype, rank, d0, d1) #name,
            PEFT_INPUTS(X)
#undef X
        };
        return graph_printf(d->g, "%s\\n%s", name[n->attr.leaf.index], shape_of(n, buf));
    }
    for (int i = 0; i < n->nin; i++)
        if (n->in[i]->op == OP_CONST)
            return graph_printf(d->g, "%s %.4g\\n%s", op_info[n->op].name,
                                n->in[i]->attr.constant.value, shape_of(n, buf));
    return graph_printf(d->g, "%s\\n%s", op_info[n->op].name, shape_of(n, buf));
}

/* Names of results, on the edges that carry one which is not the main one. */
static const char *result_name(const Node *n) {
    while (n->op != OP_PROJ && op_info[n->op].class == CLASS_VIEW) n = n->in[0];
    if (n->op != OP_PROJ) return NULL;
    static const struct {
        OpCode op;
        const char *name[3];
    } names[] = {
        {OP_LAYER_NORM, {NULL, "mean", "1/std"}}, {OP_CROSS_ENTROPY, {NULL, "lse", NULL}},
        {OP_ATTENTION, {NULL, "lse", NULL}},      {OP_ATTENTION_GRAD, {"dq", "dk", "dv"}},
        {OP_INDEX, {"order", "start", "slot"}},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].op == n->in[0]->op) return names[i].name[n->attr.proj.k];
    return NULL;
}

static void print_quoted(FILE *to, const char *s) {
    fputc('"', to);
    for (; *s; s++) {
        if (*s == '"') fputc('\\', to);
        fputc(isprint((unsigned char)*s) || (unsigned char)*s >= 0x80 ? *s : ' ', to);
    }
    fputc('"', to);
}

/* ---- boxes, nested by module ---- */

static void print_item(const Dot *d, const Item *it) {
    fprintf(d->to, "  %s [%s label=", it->name, it->style);
    print_quoted(d->to, it->label);
    fputs("];\n", d->to);
}

static void add_item(Dot *d, const char *name, const char *label, const char *style,
                     const char *module) {
    d->item[d->nitem++] =
        (Item){name, label, style, module, block_length(module), inner_length(d, module)};
}

static void add_node(Dot *d, const Node *n) {
    add_item(d, graph_printf(d->g, "n%d", n->id), label_of(d, n), style_of(d, n), d->module[n->id]);
}

static bool same_prefix(const char *a, size_t na, const char *b, size_t nb) {
    return na == nb && !memcmp(a, b, na);
}

static void print_box(const Dot *d, const char *path, size_t from, size_t to, const char *style) {
    char *name = graph_printf(d->g, "cluster_%.*s", (int)to, path);
    if (path[from] == '.') from++;
    fputs("  subgraph ", d->to);
    print_quoted(d->to, name);
    fputs(" { label=", d->to);
    print_quoted(d->to, graph_printf(d->g, "%.*s", (int)(to - from), path + from));
    fprintf(d->to, "; %s;\n", style);
}

/* All items of one layer: those of the layer itself, then each inner box at its first item. */
static void print_block(const Dot *d, int first, uint8_t *done) {
    const Item *layer = &d->item[first];
    print_box(d, layer->module, 0, layer->block, "style=rounded color=\"#999999\" fontsize=12");
    for (int i = first; i < d->nitem; i++) {
        const Item *a = &d->item[i];
        if (done[i] || !same_prefix(a->module, a->block, layer->module, layer->block)) continue;
        bool boxed = a->inner > a->block;
        if (boxed) print_box(d, a->module, a->block, a->inner, "style=dotted color=\"#666666\"");
        for (int k = i; k < d->nitem; k++) {
            const Item *b = &d->item[k];
            if (done[k] || !same_prefix(b->module, b->inner, a->module, a->inner)) continue;
            print_item(d, b);
            done[k] = 1;
        }
        if (boxed) fputs("  }\n", d->to);
    }
    fputs("  }\n", d->to);
}

static void print_items(const Dot *d) {
    uint8_t *done = graph_alloc(d->g, (size_t)d->nitem + 1);
    for (int i = 0; i < d->nitem; i++) {
        if (done[i]) continue;
        if (*d->item[i].module)
            print_block(d, i, done);
        else
            print_item(d, &d->item[i]);
    }
}

/* ---- views of nodes ---- */

static void print_edges(const Dot *d, const Node *n) {
    for (int i = 0; i < n->nin; i++) {
        if (is_plumbing(n, i)) continue;
        const char *label = result_name(n->in[i]);
        fprintf(d->to, "  n%d -> n%d", base(n->in[i])->id, n->id);
        if (label) fprintf(d->to, " [label=\"%s\"]", label);
        fputs(";\n", d->to);
    }
}

static void print_nodes(Dot *d) {
    uint8_t *drawn = graph_alloc(d->g, (size_t)d->g->n + 1);
    for (int32_t id = 0; id < d->g->n; id++) {
        const Node *n = d->g->node[id];
        if (!in_view(d, n)) continue;
        drawn[id] = 1;
        for (int i = 0; i < n->nin; i++)
            if (!is_plumbing(n, i)) drawn[base(n->in[i])->id] = 1;
    }
    for (int32_t id = 0; id < d->g->n; id++)
        if (drawn[id]) add_node(d, d->g->node[id]);
    print_items(d);
    for (int32_t id = 0; id < d->g->n; id++)
        if (in_view(d, d->g->node[id])) print_edges(d, d->g->node[id]);
}

/* ---- view of kernels ---- */

static const char *kernel_label(Dot *d, const Kernel *k) {
    static const char *const kind[] = {
        [PEFT_KERNEL_MAP] = "map",
        [PEFT_KERNEL_COLUMN_SUM] = "column sum",
        [PEFT_KERNEL_FULL_SUM] = "sum",
        [PEFT_KERNEL_GEMM] = "gemm",
        [PEFT_KERNEL_ATTENTION] = "attention",
        [PEFT_KERNEL_ATTENTION_GRAD] = "attention_grad",
        [PEFT_KERNEL_INDEX] = "index",
        [PEFT_KERNEL_SEGMENT_SUM] = "segment_sum",
        [PEFT_KERNEL_TRANSPOSE] = "transpose",
    };
    const char *label = kind[k->kind];
    int ops = 0;
    for (int i = 0; i < k->nnode; i++) {
        const Node *n = k->node[i];
        if (op_info[n->op].class == CLASS_VIEW || op_info[n->op].class == CLASS_LEAF) continue;
        if (n == k->anchor) continue;
        label = graph_printf(d->g, "%s%s%s", label, ops++ % 3 ? " " : "\\n", op_info[n->op].name);
    }
    char buf[64];
    for (int i = 0; i < k->nout; i++)
        label = graph_printf(d->g, "%s%s%s", label, i ? " " : "\\n", shape_of(k->out[i], buf));
    return label;
}

static const Node *main_node(const Kernel *k) {
    return k->anchor ? k->anchor : k->node[k->nnode - 1];
}

static bool kernel_shown(const Dot *d, const Kernel *k) {
    return !d->o->module || is_within(d->module[main_node(k)->id], d->o->module);
}

/* Buffers from outside the drawn kernels that are drawn beside them: variables, and token ids. */
static bool is_source(const Node *n) {
    return n->op == OP_VAR || (n->op == OP_INPUT && (n->attr.leaf.index == PEFT_IN_tokens ||
                                                     n->attr.leaf.index == PEFT_IN_labels));
}

static void print_kernels(Dot *d) {
    const Schedule *s = d->o->schedule;
    int32_t *maker = graph_alloc(d->g, (size_t)d->g->n * sizeof *maker + 1); /* kernel + 1, by id */
    uint8_t *drawn = graph_alloc(d->g, (size_t)d->g->n + 1);
    int32_t *reader =
        graph_alloc(d->g, (size_t)s->n * sizeof *reader + 1); /* last one linked, + 1 */
    for (int k = 0; k < s->n; k++) {
        const Kernel *kernel = s->kernel[k];
        for (int i = 0; i < kernel->nout; i++) maker[base(kernel->out[i])->id] = k + 1;
        if (!kernel_shown(d, kernel)) continue;
        const Node *n = main_node(kernel);
        add_item(d, graph_printf(d->g, "k%d", k), kernel_label(d, kernel), style_of(d, n),
                 d->module[n->id]);
        for (int i = 0; i < kernel->nin; i++) {
            const Node *in = base(kernel->in[i]);
            if (is_source(in) && !drawn[in->id]++) add_node(d, in);
        }
    }
    print_items(d);
    for (int k = 0; k < s->n; k++) {
        if (!kernel_shown(d, s->kernel[k])) continue;
        for (int i = 0; i < s->kernel[k]->nin; i++) {
            const Node *in = base(s->kernel[k]->in[i]);
            int from = maker[in->id] - 1;
            if (is_source(in)) {
                fprintf(d->to, "  n%d -> k%d;\n", in->id, k);
            } else if (from >= 0 && reader[from] != k + 1 && kernel_shown(d, s->kernel[from])) {
                fprintf(d->to, "  k%d -> k%d;\n", from, k);
                reader[from] = k + 1;
            }
        }
    }
}

/* ---- the whole ---- */

/* The styles that the drawing has, one below the other. */
static void print_legend(const Dot *d) {
    static const struct {
        const char *name, *style;
    } entry[] = {
        {"input", style_input},         {"frozen", style_frozen},
        {"trainable", style_trainable}, {"optimizer state", style_state},
        {"forward", style_op},          {"forward, trained through", style_active},
        {"gradient", style_gradient},   {"recomputed", style_again},
        {"optimizer", style_optimizer},
    };
    int last = -1;
    fputs("  subgraph cluster_legend { label=legend; style=dotted;\n", d->to);
    for (int i = 0; i < (int)(sizeof entry / sizeof *entry); i++) {
        bool used = false;
        for (int k = 0; k < d->nitem && !used; k++) used = d->item[k].style == entry[i].style;
        if (!used) continue;
        fprintf(d->to, "    legend%d [%s label=\"%s\"];\n", i, entry[i].style, entry[i].name);
        if (last >= 0) fprintf(d->to, "    legend%d -> legend%d [style=invis];\n", last, i);
        last = i;
    }
    fputs("  }\n", d->to);
}

void dot_print(FILE *to, Graph *g, const DotOptions *o) {
    if (o->view == DOT_FUSED && !o->schedule) PANIC(NULL, "the fused view needs a schedule");
    size_t n = (size_t)g->n + 1;
    Dot d = {.to = to, .g = g, .o = o};
    d.module = graph_alloc(g, n * sizeof *d.module);
    d.param = graph_alloc(g, n);
    d.forward = graph_alloc(g, n);
    d.active = graph_alloc(g, n);
    d.shown = graph_alloc(g, n);
    int kernels = o->schedule ? o->schedule->n : 0;
    d.item = graph_alloc(g, (n + (size_t)kernels) * sizeof *d.item);
    find_modules(&d);
    find_active(&d);
    find_shown(&d);
    fputs("digraph peftc {\n  rankdir=TB; ranksep=0.35; nodesep=0.25; fontname=Helvetica;\n"
          "  node [fontname=Helvetica fontsize=10 margin=\"0.08,0.04\"];\n"
          "  edge [fontname=Helvetica fontsize=8 color=\"#444444\" arrowsize=0.6];\n",
          to);
    if (o->view == DOT_FUSED)
        print_kernels(&d);
    else
        print_nodes(&d);
    print_legend(&d);
    fputs("}\n", to);
}
