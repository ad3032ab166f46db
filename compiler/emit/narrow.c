/* Which products a GPU multiplies two at a time: those through a narrow middle, as an adapter's or
 * its gradient's, where a kernel for 16 rows has room for all that it needs (cuda/narrow.cu). The
 * second product moves to the place of the first, which stays the right one for the library, too,
 * and with it an epilogue over its elements that no kernel over rows computes. Invariant: all that
 * the second product, and such an epilogue, reads is there before the first one's step, and no step
 * from there on writes it; what lies where is up to temps.c. */
#include "internal.h"

#include <string.h>

/* As in narrow.cu; MEMORY in bytes. MOST_COLUMNS of a block let two parts have those of bert-base.
 */
enum { ROWS = PEFT_NARROW_ROWS, WARPS = 8, GAP = 8, MEMORY = 232448 };
enum { TILE = 16, MOST_K = 1024, MOST_R = 64, MOST_COLUMNS = 384 };

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Narrow<...>::BYTES of narrow.cu. */
static int64_t shared_bytes(int64_t k, int64_t r, int64_t columns, bool nt1, bool nt2) {
    int64_t b1 = nt1 ? r * (k + GAP) : k * (r + GAP);
    int64_t b2 = nt2 ? columns * (r + GAP) : r * (columns + GAP);
    int64_t middle = ROWS * (r + GAP), parts = 2 * WARPS * middle;
    return 2 * (most(ROWS * (k + GAP) + b1, parts) + b2 + middle);
}

/* Columns of a block: as many as it has room for, since the middle is computed once for each part,
 * but two parts at least, which share the load; 0: it has room for none. */
static int32_t part_columns(int64_t k, int64_t r, int64_t n, bool nt1, bool nt2) {
    for (int32_t c = MOST_COLUMNS; c >= 64; c -= 64)
        if (n % c == 0 && (c < n || n == 64) && shared_bytes(k, r, c, nt1, nt2) <= MEMORY) return c;
    return 0;
}

static bool is_matrix(uint8_t storage) {
    return storage == DT_WORK || storage == DT_MASTER;
}

/* A [m, k] B in bf16, to bf16. */
static bool multiplies(Graph *g, const Kernel *k, const Storage *storage, Args *args) {
    if (k->kind != PEFT_KERNEL_GEMM || k->anchor->attr.matmul.trans_a) return false;
    *args = kernel_args(g, k);
    args->storage = graph_alloc(g, (size_t)args->n + 1);
    for (int i = 0; i < args->n; i++) args->storage[i] = storage_of(storage, args->node[i]);
    return k->anchor->in[0]->type.rank == 2 && k->anchor->in[1]->type.rank == 2 &&
           k->out[0]->op != OP_VAR && args->storage[0] == DT_WORK && is_matrix(args->storage[1]) &&
           args->storage[PEFT_GEMM_C] == DT_WORK;
}

static bool in_tiles(int64_t d, int64_t tile, int64_t limit) {
    return d > 0 && d % tile == 0 && d <= limit;
}

/* An epilogue, not just terms of a product, over elements alone, that is computed by vectors. */
static bool has_vector_epilogue(Graph *g, const Kernel *k, const Args *args) {
    PeftGemm product;
    if (!k->body || plain_product(k, args, &product)) return false;
    Code code = {.kernel = compact_kernel(g, k), .storage = args->storage};
    for (int i = 0; i < k->nout; i++)
        if (k->out[i]->op == OP_VAR || !stored_in_loop(k, i) ||
            access_of(k->body, k->out[i]->type) != ACCESS_ELEMENT)
            return false;
    return cuda_launch(code.kernel) == PEFT_LAUNCH_ELEMENTS && cuda_vector(g, &code) == CUDA_VECTOR;
}

/* A product of few columns, with an epilogue. */
static bool is_first(Graph *g, const Kernel *k, const Storage *storage) {
    Args args;
    return multiplies(g, k, storage, &args) && has_vector_epilogue(g, k, &args) &&
           in_tiles(k->anchor->in[0]->type.dim[1], TILE, MOST_K) &&
           in_tiles(k->anchor->type.dim[1], TILE, MOST_R);
}

static int32_t result_index(const Kernel *k, const Node *n) {
    for (int i = 0; i < k->nout; i++)
        if (k->out[i] == n) return i;
    return -1;
}

static bool writes(const Kernel *k, const Node *n) {
    for (int i = 0; i < k->nout; i++)
        if (k->out[i] == n || (n->op == OP_VAR && k->out[i]->op == OP_VAR &&
                               k->out[i]->attr.leaf.index == n->attr.leaf.index))
            return true;
    return false;
}

/* Whether a GPU computes the buffer in a step from i on, but before j. */
static bool is_written(const Schedule *s, Joins joins, int32_t i, int32_t j, const Node *n) {
    for (int32_t step = i; step < j; step++) {
        int32_t product = joins.product[step];
        if (writes(s->kernel[step], n) || (product >= 0 && writes(s->kernel[product], n)))
            return true;
    }
    return false;
}

/* Whether step j of the schedule multiplies a result of step i by a matrix, which it could where
 * step i stands. */
static bool is_second(Graph *g, const Schedule *s, int32_t i, int32_t j, const Storage *storage,
                      Joins joins) {
    const Kernel *first = s->kernel[i], *k = s->kernel[j];
    Args args;
    PeftGemm product;
    if (!multiplies(g, k, storage, &args)) return false;
    int32_t middle = result_index(first, args.node[0]);
    if (middle < 0 || k->anchor->type.dim[0] != first->anchor->type.dim[0] ||
        !type_same_shape(k->anchor->in[0]->type, first->anchor->type) ||
        storage_of(storage, first->out[middle]) != DT_WORK)
        return false;
    bool plain = plain_product(k, &args, &product);
    for (int a = 1; a < (plain ? args.nread : PEFT_GEMM_C); a++)
        if (a != PEFT_GEMM_C && is_written(s, joins, i, j, args.node[a])) return false;
    const Node *n1 = first->anchor, *n2 = k->anchor;
    return part_columns(n1->in[0]->type.dim[1], n1->type.dim[1], n2->type.dim[1],
                        n1->attr.matmul.trans_b, n2->attr.matmul.trans_b) > 0;
}

/* Whether the epilogue of step j, the second of two products, could be computed where step i, the
 * first one, stands: no other kernel computes it, and all that it reads is there. */
static bool is_finished(Graph *g, const Schedule *s, int32_t i, int32_t j, const Storage *storage,
                        Joins joins) {
    const Kernel *first = s->kernel[i], *k = s->kernel[j];
    Args args;
    if (joins.rows[j] >= 0 || !multiplies(g, k, storage, &args) ||
        !has_vector_epilogue(g, k, &args) || k->body->rows != first->body->rows ||
        k->body->cols != k->anchor->type.dim[1] || body_reads(k, args.node[0]))
        return false;
    for (int a = PEFT_GEMM_C + 1; a < args.nread; a++)
        if (is_written(s, joins, i, j, args.node[a])) return false;
    return true;
}

Pairs find_pairs(Graph *g, PeftFn fn, const Schedule *s, const Storage *storage, Joins joins,
                 bool skip) {
    size_t bytes = (size_t)s->n * sizeof(int32_t);
    Pairs p = {.second = graph_alloc(g, bytes + 1),
               .first = graph_alloc(g, bytes + 1),
               .finished = graph_alloc(g, (size_t)s->n + 1)};
    const NodePass *pass = node_passes(g, fn);
    memset(p.second, -1, bytes);
    memset(p.first, -1, bytes);
    for (int32_t i = 0; i < s->n && !skip; i++) {
        if (p.first[i] >= 0 || joins.rows[i] >= 0 || !is_first(g, s->kernel[i], storage)) continue;
        int32_t j = i + 1;
        while (j < s->n && !is_second(g, s, i, j, storage, joins)) j++;
        if (j == s->n || pass[s->kernel[i]->out[0]->id].pass != pass[s->kernel[j]->out[0]->id].pass)
            continue;
        p.second[i] = j;
        p.first[j] = i;
        p.finished[j] = is_finished(g, s, i, j, storage, joins);
    }
    return p;
}

/* Whether anything but the second product reads result `out` of step `first`. */
static bool is_stored(Graph *g, PeftFn fn, const Schedule *s, int32_t first, int32_t second,
                      const Node *out) {
    if (is_output(&g->fn[fn], out)) return true;
    for (int32_t j = first + 1; j < s->n; j++)
        for (int i = 0; i < s->kernel[j]->nin; i++)
            if (s->kernel[j]->in[i] == out && (j != second || body_reads(s->kernel[j], out)))
                return true;
    return false;
}

CodeNarrow *describe_narrow(Graph *g, PeftFn fn, const Schedule *s, const PeftGemm *first,
                            const PeftGemm *second, int32_t at) {
    CodeNarrow *n = graph_alloc(g, sizeof *n);
    const Kernel *k = s->kernel[at], *then = s->kernel[at + first->ahead];
    bool *stored = graph_alloc(g, (size_t)k->nout + 1);
    for (int i = 0; i < k->nout; i++)
        stored[i] = is_stored(g, fn, s, at, at + first->ahead, k->out[i]);
    *n = (CodeNarrow){.k = (int32_t)first->k,
                      .r = (int32_t)first->n,
                      .n = (int32_t)second->n,
                      .nt = {first->trans_b, second->trans_b},
                      .middle = result_index(k, kernel_args(g, then).node[0]),
                      .stored = stored,
                      .addend = second->addend >= 0,
                      .bias = second->bias >= 0,
                      .scale = second->scale};
    n->columns = part_columns(n->k, n->r, n->n, n->nt[0], n->nt[1]);
    n->shared = (int32_t)shared_bytes(n->k, n->r, n->columns, n->nt[0], n->nt[1]);
    return n;
}
