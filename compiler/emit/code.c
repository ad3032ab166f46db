/* Identity of kernels: the order of their arguments, and a canonical key of their code. Two kernels
 * with equal keys get the same code: the key names everything a printer looks at (instructions, how
 * each argument is indexed, columns) and nothing else (nodes, rows, dropout sites). */
#include "internal.h"

#include <stdarg.h>
#include <string.h>

/* ---- arguments ---- */

Access access_of(const KBody *b, Type t) {
    int64_t rows, cols;
    type_space(t, &rows, &cols);
    if (rows == 1 && cols == 1) return ACCESS_SCALAR;
    if (cols == 1) return ACCESS_ROW;
    return rows == b->rows ? ACCESS_ELEMENT : ACCESS_COLUMN;
}

static int find_arg(const Args *args, int begin, int end, const Node *n) {
    for (int i = begin; i < end; i++)
        if (args->node[i] == n) return i;
    return -1;
}

static void add_arg(Args *args, Node *n) {
    args->node[args->n++] = n;
}

/* The node a result of a template is asked for by, or NULL. */
static Node *result_node(const Kernel *k, int r) {
    for (int i = 0; i < k->nout; i++) {
        Node *n = k->out[i];
        int which = n->op == OP_PROJ ? n->attr.proj.k : 0;
        if (which == r) return n;
    }
    return NULL;
}

static bool is_read(const Kernel *k, const Node *n) {
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] == n) return true;
    return false;
}

/* An operand of a runtime routine: a buffer, or the NF4 variable that the routine dequantises. */
static Node *operand_buffer(const Kernel *k, Node *n) {
    Node *at = buffer_of(n);
    return at->op == OP_DEQUANT && !is_read(k, at) ? at->in[0] : at;
}

static void routine_args(Args *args, const Kernel *k) {
    const Node *anchor = k->anchor;
    for (int i = 0; i < anchor->nin; i++) add_arg(args, operand_buffer(k, anchor->in[i]));
    if (k->kind == PEFT_KERNEL_GEMM) add_arg(args, k->out[0]);
}

Args kernel_args(Graph *g, const Kernel *k) {
    Args args = {0};
    size_t room = (size_t)(k->nin + k->nout + 2 * (k->anchor ? k->anchor->nin : 0) + 4);
    args.node = graph_alloc(g, room * sizeof *args.node);
    if (k->anchor) routine_args(&args, k);
    bool template = k->anchor && k->kind != PEFT_KERNEL_GEMM;
    for (int i = 0; !template && i < k->nin; i++)
        if (find_arg(&args, 0, k->anchor ? k->anchor->nin : args.n, k->in[i]) < 0)
            add_arg(&args, k->in[i]);
    args.nread = args.n;
    int results = template ? op_info[k->anchor->op].nout : k->nout;
    for (int i = k->kind == PEFT_KERNEL_GEMM; i < results; i++)
        add_arg(&args, template ? result_node(k, i) : k->out[i]);
    return args;
}

int arg_read(const Kernel *k, const Args *args, const Node *tensor) {
    const Node *n = buffer_of(tensor);
    if (n == k->anchor) return k->anchor->nin; /* C */
    int first = find_arg(args, 0, k->anchor ? k->anchor->nin : args->nread, n);
    return first >= 0 ? first : find_arg(args, 0, args->nread, n);
}

int arg_written(const Kernel *k, const Args *args, int out) {
    if (k->kind != PEFT_KERNEL_GEMM) return args->nread + out;
    return out == 0 ? k->anchor->nin : args->nread + out - 1;
}

/* ---- keys ---- */

bool is_padded_dim(int64_t d) {
    return d == DIM_T || d == DIM_M;
}

typedef struct Key {
    char *text;
    size_t n, cap;
} Key;

static void append(Key *key, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void append(Key *key, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(key->text + key->n, key->cap - key->n, fmt, ap);
    va_end(ap);
    key->n += (size_t)n;
}

/* The places of NF4 values and of a master's second plane depend on the number of elements. */
static void append_count(Key *key, uint8_t storage, Type t) {
    if (peft_is_nf4(storage) || storage == DT_MASTER)
        append(key, ".%lld", (long long)type_count(t));
}

/* Tables are read by their width. */
static void append_tensor(Key *key, const Kernel *k, const Args *args, const KInstr *in) {
    const Type t = in->tensor->type;
    int a = arg_read(k, args, in->tensor);
    append(key, "a%d.%d", a, args->storage[a]);
    if (in->op == K_LOAD)
        append(key, ".%d", access_of(k->body, t));
    else
        append(key, ".%lld", t.rank == 2 ? (long long)t.dim[1] : 1LL);
    append_count(key, args->storage[a], t);
}

static void append_body(Key *key, const Kernel *k, const Args *args) {
    const KBody *b = k->body;
    append(key, "%d:%lld", k->kind, (long long)b->cols);
    if (is_padded_dim(b->rows)) append(key, "p");
    if (k->kind == PEFT_KERNEL_COLUMN_SUM) append(key, "x%lld", (long long)b->rows);
    for (int i = 0; i < b->n; i++) {
        const KInstr *in = &b->instr[i];
        append(key, ";%d=%d.%d(%d,%d,%d)", i, in->op, in->level, in->a, in->b, in->c);
        if (in->number != 0) append(key, "#%a", in->number);
        if (in->tensor) append_tensor(key, k, args, in);
    }
    for (int i = 0; i < k->nout; i++) {
        int a = arg_written(k, args, i);
        if (k->out_val[i] < 0) continue;
        append(key, ">%d:a%d.%d.%d", k->out_val[i], a, args->storage[a],
               access_of(b, k->out[i]->type));
        append_count(key, args->storage[a], k->out[i]->type);
    }
}

/* Live instructions numbered without gaps: what a dead one would shift is not part of the code. */
static KBody *without_dead(Graph *g, const KBody *b, bool *live, KVal *to) {
    KBody *out = graph_alloc(g, sizeof *out);
    *out = *b;
    out->instr = graph_alloc(g, (size_t)b->n * sizeof *out->instr + 1);
    out->n = 0;
    for (int i = 0; i < b->n; i++) {
        if (!live[i]) continue;
        KInstr in = b->instr[i];
        if (in.a >= 0) in.a = to[in.a];
        if (in.b >= 0) in.b = to[in.b];
        if (in.c >= 0) in.c = to[in.c];
        to[i] = out->n;
        out->instr[out->n++] = in;
    }
    return out;
}

const Kernel *compact_kernel(Graph *g, const Kernel *k) {
    size_t n = (size_t)k->body->n;
    bool *live = graph_alloc(g, n + 1);
    KVal *to = graph_alloc(g, n * sizeof *to + 1);
    Kernel *out = graph_alloc(g, sizeof *out);
    *out = *k;
    kernel_live(k, live);
    out->body = without_dead(g, k->body, live, to);
    out->out_val = graph_alloc(g, (size_t)k->nout * sizeof *out->out_val + 1);
    for (int i = 0; i < k->nout; i++) out->out_val[i] = k->out_val[i] >= 0 ? to[k->out_val[i]] : -1;
    return out;
}

static char *make_key(Graph *g, const Kernel *k, const Args *args) {
    Key key = {.cap = 128 * ((size_t)k->body->n + (size_t)k->nout + 1)};
    key.text = graph_alloc(g, key.cap);
    append_body(&key, k, args);
    return key.text;
}

/* ---- names ---- */

char *kernel_label(Graph *g, const Kernel *k, char join, int most) {
    size_t room = 16, n = 0;
    for (int i = 0; i < k->nnode; i++) room += strlen(op_info[k->node[i]->op].name) + 1;
    char *label = graph_alloc(g, room);
    int shown = 0;
    OpCode last = OP_CONST;
    for (int i = 0; i < k->nnode; i++) {
        OpCode op = k->node[i]->op;
        if (op == OP_CONST || op == last) continue;
        if (shown++ == most) break;
        if (n) label[n++] = join;
        n += (size_t)sprintf(label + n, "%s", op_info[op].name);
        last = op;
    }
    if (n == 0) sprintf(label, "%s", k->nnode ? "fill" : "copy");
    return label;
}

static uint64_t hash_text(const char *s) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* ---- finding ---- */

static void list_sites(Graph *g, const Kernel *k, CodeEntry *entry) {
    int32_t *site = graph_alloc(g, (size_t)k->body->n * sizeof *site + 1);
    for (int i = 0; i < k->body->n; i++)
        if (k->body->instr[i].op == K_KEEP) site[entry->nsite++] = k->body->instr[i].site;
    entry->site = site;
}

/* The code that has this key, for one step more; -1: none. */
static int32_t known_code(Program *p, const char *key, uint64_t hash) {
    for (int32_t i = 0; i < p->ncode; i++) {
        if (p->code[i].hash != hash || strcmp(p->code[i].key, key) != 0) continue;
        p->code[i].steps++;
        return i;
    }
    return -1;
}

int32_t code_find(Graph *g, Program *p, const Kernel *k, const Args *args, const char *where,
                  CodeEntry *entry) {
    k = compact_kernel(g, k);
    list_sites(g, k, entry);
    const char *key = make_key(g, k, args);
    uint64_t hash = hash_text(key);
    int32_t known = known_code(p, key, hash);
    if (known >= 0) return known;
    Code *c = &p->code[p->ncode];
    *c = (Code){.kernel = k, .where = where, .hash = hash, .key = key, .steps = 1};
    c->storage = args->storage;
    c->vector = cuda_vector(g, c);
    c->name = graph_printf(g, "k%03d_%s_%lld", p->ncode, kernel_label(g, k, '_', 4),
                           (long long)k->body->cols);
    return p->ncode++;
}

/* Codes are told apart already: their places tell pairs of them apart. */
static char *make_join_key(Graph *g, const Program *p, const CodeJoin *join) {
    const Kernel *epilogue = join->epilogue->kernel, *rows = join->rows->kernel;
    int32_t narg = kernel_args(g, rows).n;
    Key key = {.cap = 64 + 12 * (size_t)(epilogue->nout + narg)};
    key.text = graph_alloc(g, key.cap);
    append(&key, "join:%d+%d", (int)(join->epilogue - p->code), (int)(join->rows - p->code));
    for (int i = 0; i < epilogue->nout; i++) append(&key, "%c", join->stored[i] ? '!' : '.');
    for (int i = 0; i < narg; i++) append(&key, ",%d", join->result[i]);
    return key.text;
}

static char *make_narrow_key(Graph *g, const Program *p, const CodeNarrow *n) {
    const Kernel *epilogue = n->epilogue->kernel;
    Key key = {.cap = 192 + (size_t)epilogue->nout};
    key.text = graph_alloc(g, key.cap);
    append(&key, "narrow:%d:%d.%d.%d.%d.%d%d.%d,%d%d,%a", (int)(n->epilogue - p->code), n->k, n->r,
           n->n, n->columns, n->nt[0], n->nt[1], n->middle, n->addend, n->bias, n->scale);
    for (int i = 0; i < epilogue->nout; i++) append(&key, "%c", n->stored[i] ? '!' : '.');
    if (n->finish) append(&key, "+%d", (int)(n->finish - p->code));
    return key.text;
}

int32_t code_find_narrow(Graph *g, Program *p, const CodeNarrow *narrow, const char *where) {
    const char *key = make_narrow_key(g, p, narrow);
    const Code *epilogue = narrow->epilogue, *finish = narrow->finish;
    uint64_t hash = hash_text(key);
    int32_t known = known_code(p, key, hash);
    if (known >= 0) return known;
    p->code[p->ncode] = (Code){.kernel = epilogue->kernel,
                               .where = where,
                               .storage = epilogue->storage,
                               .vector = epilogue->vector,
                               .hash = hash,
                               .key = key,
                               .steps = 1,
                               .narrow = narrow};
    p->code[p->ncode].name = graph_printf(
        g, "k%03d_%s_%d_%s_%d", p->ncode, kernel_label(g, epilogue->kernel, '_', 4), narrow->r,
        finish ? kernel_label(g, finish->kernel, '_', 4) : "matmul", narrow->n);
    return p->ncode++;
}

int32_t code_find_join(Graph *g, Program *p, const CodeJoin *join, const char *where) {
    const char *key = make_join_key(g, p, join);
    const Code *rows = join->rows;
    uint64_t hash = hash_text(key);
    int32_t known = known_code(p, key, hash);
    if (known >= 0) return known;
    p->code[p->ncode] = (Code){.kernel = rows->kernel,
                               .where = where,
                               .storage = rows->storage,
                               .hash = hash,
                               .key = key,
                               .steps = 1,
                               .join = join};
    p->code[p->ncode].vector = cuda_vector(g, &p->code[p->ncode]);
    p->code[p->ncode].name = graph_printf(
        g, "k%03d_%s_%s_%lld", p->ncode, kernel_label(g, join->epilogue->kernel, '_', 4),
        kernel_label(g, rows->kernel, '_', 2), (long long)rows->kernel->body->cols);
    return p->ncode++;
}
