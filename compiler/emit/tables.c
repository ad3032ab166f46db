/* Builds a program's tables in memory: variables, functions, steps, kernels. Invariant: every
 * buffer reference of a step is a variable, an input, or a temporary alive in that step. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_GROUPED = 14 }; /* arguments of a step */

typedef struct Builder {
    Graph *g;
    const ProgramInfo *info;
    Program *out;
    PeftKernel *kernel; /* grows with the steps */
    PeftFn fn;          /* the function being built */
    const Schedule *schedule;
    Storage storage;
    Joins joins;
    Pairs pairs;
    Temps temps;
    const NodePass *pass;
} Builder;

/* ---- variables ---- */

static PeftVar table_var(const Builder *b, int32_t var) {
    const Var *v = &b->g->var[var];
    PeftVar out = {.name = v->name,
                   .block = v->block ? v->block : "",
                   .where = where_of(b->g, b->info->sources, v->span),
                   .dtype = var_storage(&b->storage, var),
                   .rank = v->type.rank,
                   .is_state = v->kind == VAR_STATE,
                   .trainable = v->trainable,
                   .fresh = v->fresh,
                   .decay = v->decay,
                   .init = v->init.kind,
                   .init_value = v->init.a};
    memcpy(out.dim, v->type.dim, sizeof out.dim);
    return out;
}

static void build_vars(Builder *b) {
    PeftVar *var = graph_alloc(b->g, (size_t)b->g->nvar * sizeof *var + 1);
    for (int i = 0; i < b->g->nvar; i++) var[i] = table_var(b, i);
    const Function *start = &b->g->fn[PEFT_FN_START];
    for (int i = 0; i < start->nupdate; i++) var[start->update[i].var].derived = true;
    b->out->table.var = var;
    b->out->table.nvar = b->g->nvar;
}

/* ---- references ---- */

static int32_t reference(const Builder *b, const Node *n) {
    if (!n) return PEFT_REF_NONE;
    n = buffer_of(n);
    if (n->op == OP_VAR) return PEFT_REF_VAR | n->attr.leaf.index;
    if (n->op == OP_INPUT) return PEFT_REF_INPUT | n->attr.leaf.index;
    if (b->temps.of[n->id] >= 0) return PEFT_REF_TEMP | b->temps.of[n->id];
    int32_t var = updated_var(b->g, b->fn, b->schedule, n);
    if (var < 0) PANIC(n, "has no buffer");
    return PEFT_REF_VAR | var;
}

/* ---- what runtime routines are told ---- */

static const PeftGemm *gemm_desc(Builder *b, const Kernel *k, const Args *args, int step) {
    PeftGemm *d = graph_alloc(b->g, sizeof *d);
    const Node *n = k->anchor;
    const Type a = n->in[0]->type;
    d->m = n->type.dim[0];
    d->n = n->type.dim[1];
    d->k = a.dim[n->attr.matmul.trans_a ? 0 : 1];
    d->trans_a = n->attr.matmul.trans_a != 0;
    d->trans_b = n->attr.matmul.trans_b != 0;
    d->b_dtype = args->storage[1];
    d->c_dtype = args->storage[2];
    plain_product(k, args, d);
    d->joined = b->joins.rows[step] >= 0;
    if (b->pairs.second[step] >= 0) d->ahead = b->pairs.second[step] - step;
    if (b->pairs.first[step] >= 0) d->back = step - b->pairs.first[step];
    d->finished = b->pairs.finished[step];
    return d;
}

static const PeftAttention *attention_desc(Builder *b, const Node *n) {
    PeftAttention *d = graph_alloc(b->g, sizeof *d);
    const Type q = n->in[n->op == OP_ATTENTION_GRAD]->type;
    d->heads = n->attr.attention.heads;
    d->site = n->attr.attention.site;
    d->scale = n->attr.attention.scale;
    d->p = n->attr.attention.p;
    d->rows = q.dim[0];
    d->width = q.dim[1];
    return d;
}

/* Entries and table rows of an index; rows and columns of a segment sum's operand; rows and columns
 * of a transposed result. */
static const PeftIndex *index_desc(Builder *b, const Node *n) {
    PeftIndex *d = graph_alloc(b->g, sizeof *d);
    const Type in = n->in[0]->type;
    d->n = in.dim[0];
    d->rows = n->op == OP_INDEX ? n->attr.index.rows : n->type.dim[0];
    d->cols = n->op == OP_INDEX ? 0 : n->type.dim[1];
    return d;
}

static const void *step_desc(Builder *b, const Kernel *k, const Args *args, int step) {
    switch (k->kind) {
    case PEFT_KERNEL_GEMM: return gemm_desc(b, k, args, step);
    case PEFT_KERNEL_ATTENTION:
    case PEFT_KERNEL_ATTENTION_GRAD: return attention_desc(b, k->anchor);
    case PEFT_KERNEL_INDEX:
    case PEFT_KERNEL_SEGMENT_SUM:
    case PEFT_KERNEL_TRANSPOSE: return index_desc(b, k->anchor);
    default: return NULL;
    }
}

/* ---- kernels ---- */

static bool same_entry(const CodeEntry *a, const CodeEntry *b) {
    return a->code == b->code && a->nsite == b->nsite &&
           memcmp(a->site, b->site, (size_t)a->nsite * sizeof *a->site) == 0;
}

/* The entry of the kernel table for this code, these sites and this kind; added when new. */
static int32_t entry_index(Builder *b, PeftKernelKind kind, CodeEntry entry, const char *name) {
    PeftProgram *t = &b->out->table;
    for (int32_t i = 0; i < t->nkernel; i++)
        if (b->kernel[i].kind == kind && same_entry(&b->out->entry[i], &entry)) return i;
    b->kernel[t->nkernel] =
        (PeftKernel){.name = name, .kind = kind, .site = entry.site, .nsite = entry.nsite};
    b->out->entry[t->nkernel] = entry;
    return t->nkernel++;
}

static int32_t kernel_index(Builder *b, const Kernel *k, const Args *args, const char *where) {
    static const int32_t no_site[1];
    CodeEntry entry = {.code = -1, .site = no_site};
    if (k->body) entry.code = code_find(b->g, b->out, k, args, where, &entry);
    const char *name = k->body ? b->out->code[entry.code].name : op_info[k->anchor->op].name;
    return entry_index(b, k->kind, entry, name);
}

/* Some step launches the kernel on a GPU. */
static void mark_launched(Builder *b, int32_t kernel) {
    Code *c = &b->out->code[b->out->entry[kernel].code];
    c->launched = true;
    b->kernel[kernel].launch = c->narrow ? PEFT_LAUNCH_NARROW : cuda_launch(c->kernel);
    b->kernel[kernel].block = cuda_block(c);
    b->kernel[kernel].vector = (uint8_t)c->vector;
}

/* Two entries' dropout sites, to be those of one kernel; its code is the caller's. */
static CodeEntry both_entries(Builder *b, const CodeEntry *first, const CodeEntry *then) {
    CodeEntry both = {.nsite = first->nsite + then->nsite};
    int32_t *site = graph_alloc(b->g, (size_t)both.nsite * sizeof *site + 1);
    memcpy(site, first->site, (size_t)first->nsite * sizeof *site);
    memcpy(site + first->nsite, then->site, (size_t)then->nsite * sizeof *site);
    both.site = site;
    return both;
}

/* Of step j, whose kernel a GPU runs together with an earlier step's epilogue. */
static const PeftJoin *build_join(Builder *b, const PeftStep *step, int32_t j) {
    int32_t i = b->joins.product[j];
    const CodeEntry *first = &b->out->entry[step[i].kernel], *then = &b->out->entry[step[j].kernel];
    CodeEntry both = both_entries(b, first, then);
    CodeJoin *join = describe_join(b->g, b->fn, b->schedule, i, j);
    join->epilogue = &b->out->code[first->code];
    join->rows = &b->out->code[then->code];
    both.code = code_find_join(b->g, b->out, join, step[j].where);
    PeftJoin *d = graph_alloc(b->g, sizeof *d);
    d->back = j - i;
    d->kernel = entry_index(b, PEFT_KERNEL_MAP, both, b->out->code[both.code].name);
    mark_launched(b, d->kernel);
    return d;
}

/* Of step i, whose epilogue is multiplied by step j in its kernel, which may finish that step. */
static const PeftGemm *build_narrow(Builder *b, const PeftStep *step, int32_t i, int32_t j) {
    PeftGemm *first = graph_alloc(b->g, sizeof *first);
    const PeftGemm *second = step[j].desc;
    const CodeEntry *epilogue = &b->out->entry[step[i].kernel],
                    *finish = &b->out->entry[step[j].kernel];
    CodeEntry entry = second->finished ? both_entries(b, epilogue, finish) : *epilogue;
    *first = *(const PeftGemm *)step[i].desc;
    CodeNarrow *narrow = describe_narrow(b->g, b->fn, b->schedule, first, second, i);
    narrow->epilogue = &b->out->code[epilogue->code];
    if (second->finished) narrow->finish = &b->out->code[finish->code];
    entry.code = code_find_narrow(b->g, b->out, narrow, step[i].where);
    first->narrow = entry_index(b, PEFT_KERNEL_MAP, entry, b->out->code[entry.code].name);
    mark_launched(b, first->narrow);
    b->kernel[first->narrow].parts = narrow->n / narrow->columns;
    b->kernel[first->narrow].shared = narrow->shared;
    return first;
}

/* ---- steps ---- */

/* Where most of a kernel comes from: its routine's line, or the line of its last op that has one.
 */
static const char *kernel_where(const Builder *b, const Kernel *k) {
    if (k->anchor) return where_of(b->g, b->info->sources, k->anchor->span);
    for (int i = k->nnode - 1; i >= 0; i--)
        if (k->node[i]->span.file >= 0) return where_of(b->g, b->info->sources, k->node[i]->span);
    return "";
}

static void kernel_space(const Kernel *k, int64_t *rows, int64_t *cols) {
    type_space(k->out[0]->type, rows, cols);
    if (!k->body) return;
    *rows = k->body->rows;
    *cols = k->body->cols;
}

static PeftStep build_step(Builder *b, const Kernel *k, int step) {
    Args args = kernel_args(b->g, k);
    int32_t *ref = graph_alloc(b->g, (size_t)args.n * sizeof *ref + 1);
    args.storage = graph_alloc(b->g, (size_t)args.n + 1);
    for (int i = 0; i < args.n; i++) {
        ref[i] = reference(b, args.node[i]);
        if (args.node[i]) args.storage[i] = storage_of(&b->storage, args.node[i]);
    }
    int32_t space = b->temps.workspace[step];
    PeftStep s = {.narg = args.n,
                  .nread = args.nread,
                  .arg = ref,
                  .workspace = space < 0 ? PEFT_REF_NONE : PEFT_REF_TEMP | space,
                  .pass = k->nnode ? b->pass[k->node[k->nnode - 1]->id].pass : PASS_OPTIMIZER,
                  .desc = step_desc(b, k, &args, step),
                  .label = kernel_label(b->g, k, '+', 6),
                  .where = kernel_where(b, k)};
    kernel_space(k, &s.rows, &s.cols);
    s.kernel = kernel_index(b, k, &args, s.where);
    return s;
}

static bool reads_result(const PeftStep *t, const PeftStep *s) {
    for (int i = 0; i < t->narg; i++)
        for (int k = s->nread; k < s->narg; k++)
            if (t->arg[i] == s->arg[k]) return true;
    return false;
}

/* By step, whether nothing but the optimizer needs it in the end, as with the gradient of a bias.
 */
static bool *find_unhurried(Builder *b, const PeftFunction *f) {
    bool *unhurried = graph_alloc(b->g, (size_t)f->nstep + 1);
    for (int i = f->nstep - 1; i >= 0; i--) {
        const PeftStep *s = &f->step[i];
        unhurried[i] = s->pass != PASS_FORWARD;
        for (int j = i + 1; j < f->nstep && unhurried[i] && s->pass != PASS_OPTIMIZER; j++)
            unhurried[i] = unhurried[j] || !reads_result(&f->step[j], s);
    }
    return unhurried;
}

/* Kernels that more than one step runs, and only such steps: AdamW for one, once for each
 * parameter. */
static void find_groups(Builder *b, const PeftFunction *f) {
    size_t n = (size_t)b->out->table.nkernel + 1;
    int32_t *calls = graph_alloc(b->g, n * sizeof *calls);
    const bool *unhurried = find_unhurried(b, f);
    for (int i = 0; i < f->nstep; i++) calls[f->step[i].kernel] += unhurried[i] ? 1 : -f->nstep;
    for (int i = 0; i < f->nstep; i++) {
        int32_t k = f->step[i].kernel;
        const CodeEntry *e = &b->out->entry[k];
        if (calls[k] > 1 && b->kernel[k].kind != PEFT_KERNEL_GEMM && e->code >= 0 && !e->nsite &&
            f->step[i].narg <= MOST_GROUPED)
            b->out->code[e->code].group = true;
    }
}

/* Whether a GPU runs the kernel's own code. */
static bool is_launched(const Builder *b, const Kernel *k, const PeftStep *s) {
    const PeftGemm *g = k->kind == PEFT_KERNEL_GEMM ? s->desc : NULL;
    return b->out->entry[s->kernel].code >= 0 && !(g && (g->plain || g->joined));
}

static void build_outputs(Builder *b, PeftFunction *f) {
    const Function *from = &b->g->fn[b->fn];
    PeftOutput *out = graph_alloc(b->g, (size_t)from->nout * sizeof *out + 1);
    for (int i = 0; i < from->nout; i++) {
        const Node *n = from->out[i].node;
        out[i] =
            (PeftOutput){.name = from->out[i].name, .ref = reference(b, n), .rank = n->type.rank};
        memcpy(out[i].dim, n->type.dim, sizeof out[i].dim);
    }
    f->out = out;
    f->nout = from->nout;
}

static void build_function(Builder *b, PeftFn fn, const Schedule *s) {
    PeftFunction *f = &b->out->table.fn[fn];
    PeftStep *step = graph_alloc(b->g, (size_t)s->n * sizeof *step + 1);
    b->fn = fn;
    b->schedule = s;
    function_storage(&b->storage, b->g, fn, s, &b->out->table.needs_fp32);
    b->joins = find_joins(b->g, fn, s, &b->storage, b->info->skip_join);
    b->pairs = find_pairs(b->g, fn, s, &b->storage, b->joins, b->info->skip_join);
    b->temps = find_temps(b->g, fn, s, &b->storage, b->joins, b->pairs, b->info->sources);
    b->pass = node_passes(b->g, fn);
    for (int i = 0; i < s->n; i++) {
        step[i] = build_step(b, s->kernel[i], i);
        if (b->joins.product[i] >= 0)
            step[i].desc = build_join(b, step, i);
        else if (is_launched(b, s->kernel[i], &step[i]))
            mark_launched(b, step[i].kernel);
        int32_t first = b->pairs.first[i];
        if (first >= 0) step[first].desc = build_narrow(b, step, first, i);
    }
    f->step = step;
    f->nstep = s->n;
    f->temp = b->temps.temp;
    f->ntemp = b->temps.n;
    find_groups(b, f);
    build_outputs(b, f);
}

/* ---- identity ---- */

static uint64_t mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static uint64_t mix_int(uint64_t h, int64_t v) {
    return mix(h, &v, sizeof v);
}

/* Of what the program computes and stores: not of names of files, model lines or fit settings,
 * which may change without making a checkpoint unusable. */
static uint64_t program_hash(const Program *p) {
    uint64_t h = 0xcbf29ce484222325u;
    const PeftProgram *t = &p->table;
    for (int i = 0; i < t->nvar; i++) {
        const PeftVar *v = &t->var[i];
        h = mix(h, v->name, strlen(v->name) + 1);
        h = mix_int(mix_int(h, v->dtype), v->rank);
        for (int k = 0; k < v->rank; k++) h = mix_int(h, v->dim[k]);
    }
    for (int i = 0; i < p->ncode; i++) h = mix_int(h, (int64_t)p->code[i].hash);
    for (int f = 0; f < PEFT_FN_COUNT; f++) {
        for (int i = 0; i < t->fn[f].nstep; i++) {
            const PeftStep *s = &t->fn[f].step[i];
            const CodeEntry *e = &p->entry[s->kernel];
            h = mix_int(mix_int(h, s->kernel), s->rows);
            h = mix(h, s->arg, (size_t)s->narg * sizeof *s->arg);
            h = mix(h, e->site, (size_t)e->nsite * sizeof *e->site);
        }
    }
    return h;
}

/* ---- the whole ---- */

static const char *cuda_source(const Program *p) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    for (int i = 0; i < p->ncode; i++)
        if (p->code[i].launched) emit_kernel_cuda(f, p->graph, &p->code[i]);
    fclose(f);
    const char *copy = graph_printf(p->graph, "%s", text);
    free(text);
    return copy;
}

Program *program_build(Graph *g, const ProgramInfo *info, Schedule *const sched[PEFT_FN_COUNT]) {
    size_t steps = 1;
    for (int f = 0; f < PEFT_FN_COUNT; f++) steps += sched[f] ? (size_t)sched[f]->n : 0;
    Program *p = graph_alloc(g, sizeof *p);
    steps *= 3; /* the kernel of each, and those together with an earlier one's */
    p->code = graph_alloc(g, steps * sizeof *p->code);
    p->entry = graph_alloc(g, steps * sizeof *p->entry);
    Builder b = {.g = g, .info = info, .out = p};
    b.kernel = graph_alloc(g, steps * sizeof *b.kernel);
    p->table = (PeftProgram){.version = PEFT_PROGRAM_VERSION,
                             .name = info->name,
                             .source = info->source,
                             .text = info->text,
                             .task = info->task,
                             .config = info->config,
                             .fit = info->fit,
                             .method = info->method,
                             .nmethod = info->nmethod,
                             .cuda_source = ""};
    b.storage = new_storage(g, sched);
    build_vars(&b);
    for (int f = 0; f < PEFT_FN_COUNT; f++)
        if (sched[f]) build_function(&b, (PeftFn)f, sched[f]);
    for (int i = 0; i < p->table.nkernel; i++)
        b.kernel[i].group = p->entry[i].code >= 0 && p->code[p->entry[i].code].group;
    p->table.kernel = b.kernel;
    p->table.hash = program_hash(p);
    p->graph = g;
    p->table.cuda_source = cuda_source(p);
    return p;
}

bool emit_program(FILE *out, Graph *g, const ProgramInfo *info,
                  Schedule *const sched[PEFT_FN_COUNT]) {
    return emit_c(out, program_build(g, info, sched));
}
