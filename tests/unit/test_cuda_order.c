/* Which steps may run at the same time on a GPU: conflicts of random steps and of real programs
 * against a search over all pairs, and what reaches the driver, whose streams and events are
 * followed by one of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/elaborate.h"
#include "compiler/emit/emit.h"
#include "compiler/pass.h"
#include "compiler/pass/schedule.h"
#include "runtime/cuda/internal.h"

enum { MOST_STEPS = 60, MOST_RANGES = 4 };

static uint32_t random_state = 1;

static int below(int n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int)((random_state >> 8) % (uint32_t)n);
}

/* ---- all pairs ---- */

/* before[i * (n + 1) + j]: step j ends before step i (n: the end) begins, by streams and waits, but
 * for one wait that is left out (-1: none). The caller's. */
static bool *all_pairs(const Order *o, int left_out) {
    int n = o->nstep, width = n + 1;
    bool *before = calloc((size_t)width * (size_t)width, 1);
    assert_non_null(before);
    for (int i = 0; i <= n; i++) {
        int stream = i < n ? o->stream[i] : 0, last = i - 1;
        while (last >= 0 && o->stream[last] != stream) last--;
        for (int k = o->first_wait[i] - 1; k < o->first_wait[i + 1]; k++) {
            int j = k < o->first_wait[i] ? last : k == left_out ? -1 : o->wait[k];
            if (j < 0) continue; /* the start, or nothing */
            assert_true(j < i);
            before[i * width + j] = true;
            for (int x = 0; x < j; x++)
                if (before[j * width + x]) before[i * width + x] = true;
        }
    }
    return before;
}

static bool ranges_conflict(OrderRange a, OrderRange b) {
    for (int64_t at = a.begin; at < a.end; at++)
        if (at >= b.begin && at < b.end) return a.written || b.written;
    return false;
}

static bool steps_conflict(const OrderStep *a, const OrderStep *b) {
    for (int i = 0; i < a->n; i++)
        for (int k = 0; k < b->n; k++)
            if (ranges_conflict(a->range[i], b->range[k])) return true;
    return false;
}

static Order order_of(const OrderStep *step, int n, int streams) {
    Order o;
    PeftError err = {{0}, 0};
    if (!order_steps(step, n, streams, &o, &err)) fail_msg("%s", err.msg);
    return o;
}

/* ---- random steps ---- */

typedef struct Steps {
    OrderStep step[MOST_STEPS];
    OrderRange range[MOST_STEPS][MOST_RANGES];
    int n;
} Steps;

static void make_steps(Steps *s, int n, int bytes) {
    s->n = n;
    for (int i = 0; i < n; i++) {
        s->step[i] = (OrderStep){s->range[i], below(MOST_RANGES + 1)};
        for (int k = 0; k < s->step[i].n; k++) {
            int64_t begin = below(bytes) - 2;
            s->range[i][k] = (OrderRange){begin, begin + below(6), below(3) == 0};
        }
    }
}

/* A stream begins with a wait: for steps, or for what came before the function. */
static void check_starts(const Order *o, int streams) {
    bool seen[64] = {true};
    for (int i = 0; i < o->nstep; i++) {
        int waits = o->first_wait[i + 1] - o->first_wait[i];
        assert_in_range(o->stream[i], 0, streams - 1);
        assert_true(seen[o->stream[i]] || waits > 0);
        for (int k = o->first_wait[i]; k < o->first_wait[i + 1]; k++)
            assert_true(o->wait[k] != ORDER_START || (waits == 1 && !seen[o->stream[i]]));
        seen[o->stream[i]] = true;
    }
}

static void check_order(const Steps *s, const Order *o) {
    int n = s->n, width = n + 1;
    bool *before = all_pairs(o, -1);
    for (int i = 0; i < n; i++) {
        assert_true(before[n * width + i]); /* the end waits for all */
        for (int j = 0; j < i; j++)
            if (steps_conflict(&s->step[i], &s->step[j])) assert_true(before[i * width + j]);
    }
    free(before);
    for (int i = 0; i <= n; i++) /* no wait follows from the others */
        for (int k = o->first_wait[i]; k < o->first_wait[i + 1]; k++) {
            if (o->wait[k] == ORDER_START) continue;
            before = all_pairs(o, k);
            assert_false(before[i * width + o->wait[k]]);
            free(before);
        }
}

static void test_random_steps(void **state) {
    (void)state;
    for (int round = 0; round < 400; round++) {
        Steps s;
        int streams = 1 + round % 8;
        make_steps(&s, below(MOST_STEPS + 1), 10 + below(120));
        Order o = order_of(s.step, s.n, streams), again = order_of(s.step, s.n, streams);
        check_starts(&o, streams);
        check_order(&s, &o);
        assert_int_equal(o.nwait, again.nwait);
        assert_memory_equal(o.stream, again.stream, (size_t)s.n * sizeof *o.stream);
        assert_memory_equal(o.wait, again.wait, (size_t)o.nwait * sizeof *o.wait);
        if (streams == 1) {
            assert_int_equal(o.nwait, 0);
            assert_int_equal(o.longest, s.n);
        }
        order_free(&o);
        order_free(&again);
    }
}

/* With a stream for every step nothing is ordered that does not have to be. */
static void test_nothing_else_is_ordered(void **state) {
    (void)state;
    for (int round = 0; round < 100; round++) {
        Steps s;
        int depth[MOST_STEPS], longest = 0;
        make_steps(&s, 1 + below(MOST_STEPS), 10 + below(120));
        bool must[MOST_STEPS][MOST_STEPS] = {{false}};
        for (int i = 0; i < s.n; i++) {
            depth[i] = 1;
            for (int j = 0; j < i; j++) {
                if (!steps_conflict(&s.step[i], &s.step[j])) continue;
                must[i][j] = true;
                for (int x = 0; x < j; x++) must[i][x] = must[i][x] || must[j][x];
                if (depth[j] + 1 > depth[i]) depth[i] = depth[j] + 1;
            }
            if (depth[i] > longest) longest = depth[i];
        }
        Order o = order_of(s.step, s.n, MOST_STEPS);
        assert_int_equal(o.longest, longest);
        bool *before = all_pairs(&o, -1);
        for (int i = 0; i < s.n; i++) /* streams are shared only by steps that must be in order */
            for (int j = 0; j < i; j++) assert_int_equal(before[i * (s.n + 1) + j], must[i][j]);
        free(before);
        order_free(&o);
    }
}

/* ---- known cases ---- */

#define READ(at) \
    { (at), (at) + 1, false }
#define WRITE(at) \
    { (at), (at) + 1, true }
#define STEP(...) \
    { (const OrderRange[]){__VA_ARGS__}, sizeof((OrderRange[]){__VA_ARGS__}) / sizeof(OrderRange) }

static void check_waits(const Order *o, int step, int n, const int *wait) {
    assert_int_equal(o->first_wait[step + 1] - o->first_wait[step], n);
    for (int k = 0; k < n; k++) assert_int_equal(o->wait[o->first_wait[step] + k], wait[k]);
}

/* Queries, keys and values of one input, then what reads the three, then a fork in two. */
static void test_fork_and_join(void **state) {
    (void)state;
    const OrderStep step[] = {
        STEP(WRITE(0)),          STEP(READ(0), WRITE(1)), STEP(READ(0), WRITE(2)),
        STEP(READ(0), WRITE(3)), STEP(READ(2), WRITE(4)), STEP(READ(1), READ(3), READ(4), WRITE(5)),
        STEP(READ(5), WRITE(6)), STEP(READ(5), WRITE(7)),
    };
    /* The longest chain stays on its stream, and streams with nothing to do are used again. */
    static const int32_t stream[] = {0, 0, 1, 2, 1, 1, 1, 0};
    Order o = order_of(step, 8, 8);
    assert_memory_equal(o.stream, stream, sizeof stream);
    check_waits(&o, 0, 0, NULL);
    check_waits(&o, 1, 0, NULL);
    check_waits(&o, 2, 1, (int[]){0});
    check_waits(&o, 3, 1, (int[]){0});
    check_waits(&o, 4, 0, NULL);
    check_waits(&o, 5, 2, (int[]){3, 1});
    check_waits(&o, 6, 0, NULL);
    check_waits(&o, 7, 1, (int[]){5});
    check_waits(&o, 8, 1, (int[]){6});
    assert_int_equal(o.longest, 5);
    order_free(&o);
}

static void test_kinds_of_conflict(void **state) {
    (void)state;
    const struct {
        OrderStep step[2];
        bool ordered;
    } c[] = {
        {{STEP({0, 8, true}), STEP({7, 9, false})}, true}, /* read after write */
        {{STEP({0, 8, false}), STEP({7, 9, true})}, true}, /* write after read: reused memory */
        {{STEP({0, 8, true}), STEP({7, 9, true})}, true},  /* write after write */
        {{STEP({0, 8, false}), STEP({0, 8, false})}, false},
        {{STEP({0, 8, true}), STEP({8, 9, true})}, false}, /* neighbours */
        {{STEP({0, 8, true}), STEP({4, 4, true})}, false}, /* nothing */
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        Order o = order_of(c[i].step, 2, 2);
        assert_int_equal(o.stream[1], c[i].ordered ? 0 : 1);
        check_waits(&o, 1, c[i].ordered ? 0 : 1, (int[]){ORDER_START});
        check_waits(&o, 2, c[i].ordered ? 0 : 1, (int[]){1});
        order_free(&o);
    }
}

static void test_nothing_to_do(void **state) {
    (void)state;
    Order o = order_of(NULL, 0, 4);
    assert_int_equal(o.nwait, 0);
    assert_int_equal(o.longest, 0);
    check_waits(&o, 0, 0, NULL);
    order_free(&o);
}

/* ---- real programs, with bert-base's dimensions ---- */

typedef struct Compiled {
    Sources *sources;
    Graph *g;
    Program *program;
    ProgramPlan plan;
    int64_t sym[PEFT_SYM_COUNT];
} Compiled;

static void open_model(Compiled *m, const char *path, bool skip_join) {
    Settings none = {0};
    ModelInfo info;
    Diag diag;
    PeftError err = {{0}, 0};
    Schedule *sched[PEFT_FN_COUNT] = {NULL};
    *m = (Compiled){.sources = sources_new(),
                    .sym = {[PEFT_SYM_T] = 430,
                            [PEFT_SYM_S] = 32,
                            [PEFT_SYM_M] = 64,
                            [PEFT_SYM_L] = 45,
                            [PEFT_SYM_W] = 4}};
    diag_init(&diag, m->sources, stderr);
    m->g = elaborate_file(path, &none, &diag, &info);
    assert_non_null(m->g);
    PassOptions passes = {.fit = &info.fit, .log = stderr};
    passes_run(m->g, &passes);
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        FuseOptions fuse = {0};
        int32_t n;
        if (!m->g->fn[fn].nout && !m->g->fn[fn].nupdate) continue;
        Kernel **k = fuse_function(m->g, (PeftFn)fn, &fuse, &n);
        sched[fn] = schedule_function(m->g, (PeftFn)fn, k, n);
    }
    ProgramInfo about = {.name = path, .source = path, .text = "", .fit = info.fit};
    about.skip_join = skip_join;
    m->program = program_build(m->g, &about, sched);
    if (!program_plan(&m->program->table, 1u << PEFT_FN_TRAIN, m->sym, m->sym, &m->plan, &err))
        fail_msg("%s", err.msg);
}

static void close_model(Compiled *m) {
    program_plan_free(&m->plan);
    graph_free(m->g);
    sources_free(m->sources);
}

typedef struct Touch { /* of one argument or the workspace of a step */
    int64_t begin, end;
    bool written;
} Touch;

static Touch touch_of(const Compiled *m, const PeftStep *s, int k) {
    const PeftProgram *p = &m->program->table;
    int32_t ref = k < s->narg ? s->arg[k] : s->workspace;
    int i = PEFT_REF_INDEX(ref);
    bool gemm = p->kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
    Touch t = {.written = k >= s->nread || (gemm && k == 2)};
    if (PEFT_REF_KIND(ref) == PEFT_REF_VAR) {
        const PeftVar *v = &p->var[i];
        t.begin = m->plan.var_offset[i];
        t.end = t.begin + plan_bytes(v->dtype, v->rank, v->dim, m->sym);
    } else if (PEFT_REF_KIND(ref) == PEFT_REF_TEMP) {
        const PeftTemp *temp = &p->fn[PEFT_FN_TRAIN].temp[i];
        t.begin = m->plan.persistent + m->plan.temp_offset[PEFT_FN_TRAIN][i];
        t.end = t.begin + (k < s->narg ? plan_bytes(temp->dtype, temp->rank, temp->dim, m->sym)
                                       : step_workspace_bytes(p, s, m->sym));
    }
    return t;
}

enum { MOST_TOUCHED = 512 };

/* The earlier product whose epilogue the step's kernel computes, or NULL. */
static const PeftStep *joined_product(const Compiled *m, const PeftStep *s) {
    bool map = m->program->table.kernel[s->kernel].kind == PEFT_KERNEL_MAP;
    return map && s->desc ? s - ((const PeftJoin *)s->desc)->back : NULL;
}

/* What a product's epilogue touches: its first result, too. */
static int epilogue_touches(const Compiled *m, const PeftStep *product, Touch *out) {
    int n = 0;
    for (int k = 2; k < product->narg; k++) out[n++] = touch_of(m, product, k);
    return n;
}

static int own_touches(const Compiled *m, const PeftStep *s, Touch *out) {
    bool gemm = m->program->table.kernel[s->kernel].kind == PEFT_KERNEL_GEMM;
    bool joined = gemm && ((const PeftGemm *)s->desc)->joined;
    int n = 0;
    assert_true(2 * s->narg < MOST_TOUCHED);
    for (int k = 0; k <= s->narg; k++)
        if (!joined || k <= 2 || k == s->narg) out[n++] = touch_of(m, s, k);
    return n;
}

static bool touches_conflict(const Touch *a, int na, const Touch *b, int nb) {
    for (int i = 0; i < na; i++)
        for (int k = 0; k < nb; k++) {
            int64_t begin = a[i].begin > b[k].begin ? a[i].begin : b[k].begin;
            if (begin < a[i].end && begin < b[k].end && (a[i].written || b[k].written)) return true;
        }
    return false;
}

static int touches(const Compiled *m, const PeftStep *s, Touch *out) {
    const PeftStep *product = joined_product(m, s);
    int n = own_touches(m, s, out);
    return product ? n + epilogue_touches(m, product, out + n) : n;
}

static bool program_conflict(const Compiled *m, const PeftStep *a, const PeftStep *b) {
    Touch x[MOST_TOUCHED], y[MOST_TOUCHED];
    return touches_conflict(x, touches(m, a, x), y, touches(m, b, y));
}

/* An epilogue may wait for the step whose kernel computes it: nothing in between touches what it
 * does, and all of it lives until then. */
static int check_joins(const Compiled *m) {
    const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
    int joins = 0;
    for (const PeftStep *s = f->step; s < f->step + f->nstep; s++) {
        const PeftStep *product = joined_product(m, s);
        Touch epilogue[MOST_TOUCHED], other[MOST_TOUCHED];
        if (!product) continue;
        assert_true(product >= f->step && ((const PeftGemm *)product->desc)->joined);
        int n = epilogue_touches(m, product, epilogue);
        for (const PeftStep *k = product + 1; k < s; k++)
            assert_false(touches_conflict(epilogue, n, other, touches(m, k, other)));
        for (int k = 2; k < product->narg; k++) {
            if (PEFT_REF_KIND(product->arg[k]) != PEFT_REF_TEMP) continue;
            const PeftTemp *t = &f->temp[PEFT_REF_INDEX(product->arg[k])];
            assert_in_range(s - f->step, t->first, t->last);
        }
        joins++;
    }
    for (int i = 0; i < f->nstep; i++) /* every product that waits is waited for */
        if (m->program->table.kernel[f->step[i].kernel].kind == PEFT_KERNEL_GEMM)
            joins -= ((const PeftGemm *)f->step[i].desc)->joined;
    assert_int_equal(joins, 0);
    for (int i = 0; i < f->nstep; i++) joins += joined_product(m, &f->step[i]) != NULL;
    return joins;
}

/* Kernels that a step launches once it is prepared: a product, generated code. */
static int step_kernels(const Compiled *m, const PeftStep *s) {
    const PeftGemm *g = s->desc;
    if (m->program->table.kernel[s->kernel].kind != PEFT_KERNEL_GEMM) return 1;
    return 1 + !(g->plain || g->joined);
}

/* Kernels that are launched, and those of the longest chain. */
static int count_kernels(const Compiled *m, const Order *o, const bool *before, int *chain) {
    const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
    int *depth = calloc((size_t)o->nstep + 1, sizeof *depth), all = 0;
    assert_non_null(depth);
    *chain = 0;
    for (int l = 0; l < o->nstep; l++) {
        const PeftStep *s = &f->step[o->member[o->first_member[l]]];
        int kernels = o->prepares[l] ? 1 : step_kernels(m, s);
        for (int k = 0; k < l; k++)
            if (before[l * (o->nstep + 1) + k] && depth[k] > depth[l]) depth[l] = depth[k];
        depth[l] += kernels;
        all += kernels;
        if (depth[l] > *chain) *chain = depth[l];
    }
    free(depth);
    return all;
}

static bool share_counters(const Compiled *m, const PeftStep *a, const PeftStep *b) {
    const PeftKernel *x = &m->program->table.kernel[a->kernel],
                     *y = &m->program->table.kernel[b->kernel];
    return (x->kind == PEFT_KERNEL_FULL_SUM || x->kind == PEFT_KERNEL_INDEX) &&
           strcmp(x->name, y->name) == 0;
}

/* Every temporary is written before it is read: the tables say what a step writes. */
static void check_written_first(const Compiled *m) {
    const PeftProgram *p = &m->program->table;
    const PeftFunction *f = &p->fn[PEFT_FN_TRAIN];
    bool *written = calloc((size_t)f->ntemp + 1, 1);
    assert_non_null(written);
    for (int i = 0; i < f->nstep; i++) {
        const PeftStep *s = &f->step[i];
        int writes = 0;
        assert_in_range(s->nread, 0, s->narg);
        for (int pass = 0; pass < 2; pass++) /* operands, then results */
            for (int k = 0; k < s->narg; k++) {
                if (touch_of(m, s, k).written != (pass == 1)) continue;
                if (pass == 1) writes += s->arg[k] != (int32_t)PEFT_REF_NONE;
                if (PEFT_REF_KIND(s->arg[k]) != PEFT_REF_TEMP) continue;
                if (pass == 1) written[PEFT_REF_INDEX(s->arg[k])] = true;
                assert_true(written[PEFT_REF_INDEX(s->arg[k])]);
            }
        assert_true(writes > 0);
    }
    free(written);
}

/* Bytes serve another temporary only when some steps have passed. */
static void check_slack(const Compiled *m) {
    const PeftProgram *p = &m->program->table;
    const PeftFunction *f = &p->fn[PEFT_FN_TRAIN];
    const int64_t *offset = m->plan.temp_offset[PEFT_FN_TRAIN];
    int reused = 0;
    for (int i = 0; i < f->ntemp; i++)
        for (int j = 0; j < f->ntemp; j++) {
            if (offset[i] != offset[j] || f->temp[j].first <= f->temp[i].last) continue;
            assert_true(f->temp[j].first > f->temp[i].last + PLAN_GPU_SLACK);
            reused++;
        }
    assert_true(reused > 0);
}

static Order program_order(const Compiled *m, int streams) {
    Order o;
    PeftError err = {{0}, 0};
    if (!order_function(&m->program->table, &m->plan, PEFT_FN_TRAIN, m->sym, streams, &o, &err))
        fail_msg("%s", err.msg);
    return o;
}

/* By step of the program: the launch that it is part of. Each is in one; those of a launch run the
 * same kernel over as many rows, and are in the program's order. */
static int *launches(const PeftFunction *f, const Order *o) {
    int *of = malloc((size_t)f->nstep * sizeof *of);
    assert_non_null(of);
    for (int i = 0; i < f->nstep; i++) of[i] = -1;
    int prepared = 0;
    for (int l = 0; l < o->nstep; l++) {
        if (o->prepares[l]) {
            prepared++;
            assert_int_equal(o->member[o->first_member[l]], o->member[o->first_member[l + 1]]);
            continue;
        }
        int first = o->first_member[l], end = o->first_member[l + 1];
        assert_in_range(end - first, 1, PEFT_GROUP);
        for (int m = first; m < end; m++) {
            const PeftStep *a = &f->step[o->member[first]], *b = &f->step[o->member[m]];
            assert_int_equal(of[o->member[m]], -1);
            assert_true(m == first || o->member[m] > o->member[m - 1]);
            assert_true(a->kernel == b->kernel && a->rows == b->rows);
            of[o->member[m]] = l;
        }
    }
    assert_int_equal(o->first_member[o->nstep], f->nstep + prepared);
    return of;
}

/* Launches of conflicting steps keep the program's order; those that share counters do not run at
 * the same time. */
static void check_pair(const Compiled *m, const bool *before, int width, const int *launch, int i,
                       int j) {
    const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
    bool kept = before[launch[i] * width + launch[j]];
    if (!kept) assert_false(program_conflict(m, &f->step[i], &f->step[j]));
    if (kept || launch[i] == launch[j] || before[launch[j] * width + launch[i]]) return;
    assert_false(share_counters(m, &f->step[i], &f->step[j]));
}

/* Returns how many kernels are launched. */
static int check_program(const char *path, double most, bool skip_join) {
    Compiled m;
    int chain;
    open_model(&m, path, skip_join);
    const PeftFunction *f = &m.program->table.fn[PEFT_FN_TRAIN];
    check_written_first(&m);
    check_slack(&m);
    int joins = check_joins(&m);
    assert_int_equal(joins == 0, skip_join);
    Order o = program_order(&m, CUDA_STREAMS), free_order = program_order(&m, f->nstep);
    bool *before = all_pairs(&o, -1);
    int *launch = launches(f, &o);
    for (int l = 0; l < o.nstep; l++) /* prepared in time */
        assert_true(!o.prepares[l] ||
                    before[launch[o.member[o.first_member[l]]] * (o.nstep + 1) + l]);
    for (int i = 0; i < f->nstep; i++)
        for (int j = 0; j < i; j++) check_pair(&m, before, o.nstep + 1, launch, i, j);
    int kernels = count_kernels(&m, &o, before, &chain);
    print_message("%s: %d steps, %d joined, in %d launches, longest chain %d on %d streams (%d"
                  " waits), %d on any; %d kernels, %d in a chain; %.1f MB\n",
                  path, f->nstep, joins, o.nstep, o.longest, CUDA_STREAMS, o.nwait,
                  free_order.longest, kernels, chain, (double)m.plan.peak / 1e6);
    assert_true(o.first_member[o.nstep] > o.nstep); /* some are launched together */
    free(launch);
    assert_true(o.longest < most * f->nstep);
    free(before);
    order_free(&o);
    order_free(&free_order);
    close_model(&m);
    return kernels;
}

static void test_programs(void **state) {
    (void)state;
    const struct {
        const char *path;
        double most;
    } c[] = {{"models/lora_r16.bert", 0.60},
             {"models/qlora_r16.bert", 0.60},
             {"models/adapters.bert", 0.55},
             {"models/full_ft.bert", 0.45},
             {"models/mlm.bert", 0.60}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        int apart = check_program(c[i].path, c[i].most, true);
        assert_in_range(check_program(c[i].path, c[i].most, false), 1, apart - 20);
    }
}

/* ---- what reaches the driver ---- */

/* Bits of what has ended before what comes next on a stream, or before an event: the steps, and
 * what was on the function's stream before it was launched. */
enum { EARLIER = MOST_STEPS, FAKE_EVENTS = MOST_STEPS + 1 };
typedef struct Driver {
    uint64_t stream[CUDA_MAX_STREAMS], event[FAKE_EVENTS];
    uint64_t before[MOST_STEPS]; /* each step */
    bool in_capture[CUDA_MAX_STREAMS], event_in_capture[FAKE_EVENTS];
    bool capturing;
    int launched, fails_at; /* steps; -1: none */
    int nstream, nevent, ngraph, graph_launches, live;
} Driver;

static Driver driver;

static int handle(const void *p) {
    assert_non_null(p);
    return (int)(uintptr_t)p - 1;
}

static void *handle_of(int i) {
    return (void *)(uintptr_t)(i + 1);
}

/* While something is captured, work on a stream outside it would run at once. */
static uint64_t *use_stream(CUstream stream) {
    int s = handle(stream);
    assert_in_range(s, 0, driver.nstream - 1);
    assert_int_equal(driver.in_capture[s], driver.capturing);
    return &driver.stream[s];
}

static CUresult fake_stream_create(CUstream *stream, unsigned flags) {
    assert_int_equal(flags, CU_STREAM_NON_BLOCKING);
    assert_false(driver.capturing);
    *stream = handle_of(driver.nstream++);
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_stream_destroy(CUstream stream) {
    driver.live -= handle(stream) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_event_create(CUevent *event, unsigned flags) {
    assert_int_equal(flags, CU_EVENT_DISABLE_TIMING);
    assert_in_range(driver.nevent, 0, FAKE_EVENTS - 1);
    *event = handle_of(driver.nevent++);
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_event_destroy(CUevent event) {
    driver.live -= handle(event) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_record(CUevent event, CUstream stream) {
    driver.event[handle(event)] = *use_stream(stream);
    driver.event_in_capture[handle(event)] = driver.capturing;
    return CUDA_SUCCESS;
}

static CUresult fake_wait(CUstream stream, CUevent event, unsigned flags) {
    int s = handle(stream), e = handle(event);
    assert_int_equal(flags, 0);
    assert_int_equal(driver.event_in_capture[e], driver.capturing);
    driver.in_capture[s] = driver.capturing;
    *use_stream(stream) |= driver.event[e];
    return CUDA_SUCCESS;
}

static CUresult fake_launch(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, CUstream stream,
                            void **arg, void **extra) {
    int step = handle(f);
    uint64_t *done = use_stream(stream);
    assert_true(x == 1 && y == 1 && z == 1 && block_x == 32 && block_y == 1 && block_z == 1);
    assert_true(shared == 0 && arg && !extra);
    if (step == driver.fails_at) return CUDA_ERROR_INVALID_VALUE;
    assert_int_equal(step, driver.launched++);
    driver.before[step] = *done;
    *done |= 1ull << step;
    return CUDA_SUCCESS;
}

static CUresult fake_begin_capture(CUstream stream, CUstreamCaptureMode mode) {
    assert_int_equal(mode, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    assert_false(driver.capturing);
    driver.capturing = driver.in_capture[handle(stream)] = true;
    return CUDA_SUCCESS;
}

/* Every stream of the capture must have been joined to its first one, or there is no graph. */
static CUresult fake_end_capture(CUstream stream, CUgraph *graph) {
    uint64_t done = *use_stream(stream), all = done;
    for (int s = 0; s < driver.nstream; s++)
        if (driver.in_capture[s]) all |= driver.stream[s];
    memset(driver.in_capture, 0, sizeof driver.in_capture);
    driver.capturing = false;
    *graph = NULL;
    if (all != done) return CUDA_ERROR_INVALID_VALUE;
    driver.ngraph++;
    *graph = handle_of(0);
    return CUDA_SUCCESS;
}

static CUresult fake_instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    assert_int_equal(flags, 0);
    *exec = handle_of(handle(graph));
    driver.live++;
    return CUDA_SUCCESS;
}

static CUresult fake_graph_destroy(CUgraph graph) {
    return handle(graph) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult fake_exec_destroy(CUgraphExec exec) {
    driver.live -= handle(exec) >= 0;
    return CUDA_SUCCESS;
}

static CUresult fake_graph_launch(CUgraphExec exec, CUstream stream) {
    assert_int_equal(handle(exec), 0);
    assert_int_equal(handle(stream), 0);
    driver.graph_launches++;
    return CUDA_SUCCESS;
}

static CudaApi fake_api = {
    .cuStreamCreate = fake_stream_create,
    .cuStreamDestroy = fake_stream_destroy,
    .cuStreamWaitEvent = fake_wait,
    .cuStreamBeginCapture = fake_begin_capture,
    .cuStreamEndCapture = fake_end_capture,
    .cuEventCreate = fake_event_create,
    .cuEventDestroy = fake_event_destroy,
    .cuEventRecord = fake_record,
    .cuGraphInstantiate = fake_instantiate,
    .cuGraphLaunch = fake_graph_launch,
    .cuGraphDestroy = fake_graph_destroy,
    .cuGraphExecDestroy = fake_exec_destroy,
    .cuLaunchKernel = fake_launch,
};

/* Random steps as a program of maps over variables, which overlap as the ranges do. */
typedef struct Machine {
    PeftKernel kernel[MOST_STEPS];
    CUfunction function[MOST_STEPS];
    PeftStep step[MOST_STEPS];
    PeftVar var[MOST_STEPS * MOST_RANGES];
    int32_t ref[MOST_STEPS * MOST_RANGES];
    int64_t offset[MOST_STEPS * MOST_RANGES];
    void *arg[MOST_STEPS * MOST_RANGES], *workspace[MOST_STEPS];
    char arena[1024];
    PeftProgram program;
    CudaExec cuda;
    Exec x;
} Machine;

static void add_step(Machine *m, const OrderStep *from, int i) {
    int32_t *n = &m->program.nvar;
    m->kernel[i] = (PeftKernel){.name = "map",
                                .kind = PEFT_KERNEL_MAP,
                                .launch = PEFT_LAUNCH_ELEMENTS,
                                .block = 32,
                                .vector = 1};
    m->function[i] = handle_of(i);
    m->step[i] = (PeftStep){.kernel = i,
                            .arg = &m->ref[*n],
                            .rows = 1,
                            .cols = 1,
                            .workspace = PEFT_REF_NONE,
                            .where = "test.bert:7"};
    for (int written = 0; written < 2; written++)
        for (int k = 0; k < from->n; k++) {
            OrderRange r = from->range[k];
            if (r.written != (written == 1)) continue;
            m->var[*n] = (PeftVar){.dtype = DT_F32, .rank = 1, .dim = {r.end - r.begin}};
            m->offset[*n] = 4 * (r.begin + 2);
            m->arg[*n] = m->arena + m->offset[*n];
            m->ref[*n] = PEFT_REF_VAR | *n;
            m->step[i].narg++;
            m->step[i].nread += !written;
            ++*n;
        }
}

static void open_machine(Machine *m, const Steps *s, const char *streams) {
    memset(m, 0, sizeof *m);
    driver = (Driver){.nstream = 1, .stream = {1ull << EARLIER}, .live = 1, .fails_at = -1};
    for (int i = 0; i < s->n; i++) add_step(m, &s->step[i], i);
    m->program.kernel = m->kernel;
    m->program.var = m->var;
    m->program.fn[PEFT_FN_TRAIN] = (PeftFunction){.step = m->step, .nstep = s->n};
    m->cuda = (CudaExec){.api = &fake_api, .stream = handle_of(0), .kernel = m->function};
    m->cuda.graph = calloc(CUDA_MAX_GRAPHS, sizeof *m->cuda.graph);
    assert_non_null(m->cuda.graph);
    m->x = (Exec){.program = &m->program, .plan.var_offset = m->offset, .arena = m->arena};
    m->x.cuda = &m->cuda;
    m->x.arg[PEFT_FN_TRAIN] = m->arg;
    m->x.workspace[PEFT_FN_TRAIN] = m->workspace;
    setenv(CUDA_STREAMS_VARIABLE, streams, 1);
}

static void close_machine(Machine *m) {
    cuda_close_functions(&m->cuda);
    assert_int_equal(driver.live, 1); /* the first stream is the device's */
    unsetenv(CUDA_STREAMS_VARIABLE);
}

/* Launches the function and follows what was launched or captured. */
static void launch(Machine *m) {
    static const int64_t sym[PEFT_SYM_COUNT] = {0, 1, 1, 1, 1};
    PeftError err = {{0}, 0};
    memset(driver.stream, 0, sizeof driver.stream);
    driver.stream[0] = 1ull << EARLIER;
    driver.launched = 0;
    driver.fails_at = -1;
    if (!cuda_launch_function(&m->x, PEFT_FN_TRAIN, sym, &err)) fail_msg("%s", err.msg);
}

static void check_launches(const Steps *s) {
    assert_int_equal(driver.launched, s->n);
    assert_int_equal(driver.stream[0], (1ull << EARLIER) | ((1ull << s->n) - 1));
    for (int i = 0; i < s->n; i++) {
        assert_true(driver.before[i] >> EARLIER & 1);
        for (int j = 0; j < i; j++)
            if (steps_conflict(&s->step[i], &s->step[j])) assert_true(driver.before[i] >> j & 1);
    }
}

static void test_launches(void **state) {
    (void)state;
    static const char *const limit[] = {"", "1", "2", "3", "32"};
    for (int round = 0; round < 100; round++) {
        static Machine m;
        Steps s;
        make_steps(&s, below(MOST_STEPS + 1), 10 + below(120));
        open_machine(&m, &s, limit[round % 5]);
        launch(&m);
        check_launches(&s);
        assert_int_equal(driver.ngraph, 0);
        if (round % 5 == 1) assert_int_equal(driver.nstream + driver.nevent, 1);
        if (round % 5 == 2) assert_in_range(driver.nstream, 1, 2);
        launch(&m); /* captured */
        check_launches(&s);
        assert_int_equal(driver.ngraph, 1);
        assert_int_equal(driver.graph_launches, 1);
        launch(&m);
        assert_int_equal(driver.launched, 0);
        assert_int_equal(driver.graph_launches, 2);
        close_machine(&m);
    }
}

static void test_launch_failures(void **state) {
    (void)state;
    static Machine m;
    static const int64_t sym[PEFT_SYM_COUNT] = {0, 1, 1, 1, 1};
    static const char *const wrong[] = {"0", "33", "two", "2x", "99999999999999999999"};
    Steps s;
    make_steps(&s, 20, 40);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        PeftError err = {{0}, 0};
        open_machine(&m, &s, wrong[i]);
        assert_false(cuda_launch_function(&m.x, PEFT_FN_TRAIN, sym, &err));
        assert_non_null(strstr(err.msg, "PEFTC_CUDA_STREAMS is '"));
        assert_non_null(strstr(err.msg, "to 32"));
        close_machine(&m);
    }
    open_machine(&m, &s, "4");
    for (int launches = 0; launches < 2; launches++) { /* the second one is captured */
        PeftError err = {{0}, 0};
        driver.fails_at = 7;
        driver.launched = 0;
        assert_false(cuda_launch_function(&m.x, PEFT_FN_TRAIN, sym, &err));
        assert_int_equal(driver.launched, 7);
        assert_ptr_equal(strstr(err.msg, "map (test.bert:7): launch a kernel"), err.msg);
        assert_false(driver.capturing);
        if (launches == 0) launch(&m);
    }
    close_machine(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_steps),  cmocka_unit_test(test_nothing_else_is_ordered),
        cmocka_unit_test(test_fork_and_join), cmocka_unit_test(test_kinds_of_conflict),
        cmocka_unit_test(test_nothing_to_do), cmocka_unit_test(test_programs),
        cmocka_unit_test(test_launches),      cmocka_unit_test(test_launch_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
