/* The order of real programs' steps on a GPU, with bert-base's dimensions: every conflict that
 * their tables tell of is ordered, by a search over all pairs. */
#include "order_steps.h"

#include "model_program.h"
#include "runtime/cuda/batched.h"
#include "runtime/cuda/internal.h"

typedef struct Compiled {
    Sources *sources;
    Program *program;
    ProgramPlan plan;
    int64_t sym[PEFT_SYM_COUNT];
} Compiled;

static void open_model(Compiled *m, const char *path, const char *set, bool skip_join) {
    const Settings settings = {.set = &set, .nset = set != NULL};
    PeftError err = {{0}, 0};
    *m = (Compiled){.sources = sources_new(),
                    .sym = {[PEFT_SYM_T] = 430,
                            [PEFT_SYM_S] = 32,
                            [PEFT_SYM_M] = 64,
                            [PEFT_SYM_L] = 45,
                            [PEFT_SYM_W] = 4}};
    m->program = model_program(path, &settings, skip_join, m->sources);
    if (!program_plan(&m->program->table, 1u << PEFT_FN_TRAIN, m->sym, m->sym, &m->plan, &err))
        fail_msg("%s", err.msg);
}

static void close_model(Compiled *m) {
    program_plan_free(&m->plan);
    graph_free(m->program->graph);
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

/* Of two products through a narrow middle the second is multiplied where the first is, without a
 * workspace of its own; what is left of it is its epilogue, unless that is computed there, too. */
static const PeftGemm *gemm_of(const Compiled *m, const PeftStep *s) {
    return m->program->table.kernel[s->kernel].kind == PEFT_KERNEL_GEMM ? s->desc : NULL;
}

/* Of a step: all of it, or a product and the kernel behind it, which may be launched apart; beside
 * either, the dequantising of the product's weight. */
typedef enum Part { WHOLE, PRODUCT, EPILOGUE, PREPARES } Part;

static bool is_gemm(const Compiled *m, const PeftStep *s) {
    return gemm_of(m, s) != NULL;
}

static bool has_epilogue(const Compiled *m, const PeftStep *s) {
    const PeftGemm *g = s->desc;
    return is_gemm(m, s) && !g->plain && !g->joined && !g->finished;
}

/* Arguments of the second of two products, from 1 on, that belong to the first's launch. */
static int second_args(const PeftStep *second) {
    const PeftGemm *g = second->desc;
    return g->plain || g->finished ? second->narg : 3;
}

static int own_touches(const Compiled *m, const PeftStep *s, Part part, Touch *out) {
    const PeftGemm *g = gemm_of(m, s);
    bool product = part == PRODUCT || (g && g->joined), multiplied = g && g->back;
    int n = 0;
    assert_true(2 * s->narg < MOST_TOUCHED);
    for (int k = part == EPILOGUE || multiplied ? 2 : 0; k < s->narg; k++)
        if (!product || k <= 2) out[n++] = touch_of(m, s, k);
    for (int k = 1; g && g->ahead && k < second_args(s + g->ahead); k++)
        out[n++] = touch_of(m, s + g->ahead, k);
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

static int touches(const Compiled *m, const PeftStep *s, Part part, Touch *out) {
    const PeftStep *product = joined_product(m, s);
    int n = own_touches(m, s, part, out);
    return product ? n + epilogue_touches(m, product, out + n) : n;
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
            assert_false(touches_conflict(epilogue, n, other, touches(m, k, WHOLE, other)));
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

/* Kernels that launch l of a function consists of. Two products through a narrow middle are one. */
static int launch_kernels(const Compiled *m, const Order *o, int l) {
    const PeftStep *s = &m->program->table.fn[PEFT_FN_TRAIN].step[o->member[o->first_member[l]]];
    const PeftGemm *g = gemm_of(m, s);
    if (!g || o->part[l] != ORDER_WHOLE) return 1;
    return !g->back + (has_epilogue(m, s) && !g->ahead);
}

/* Kernels that are launched, and those of the longest chain. */
static int count_kernels(const Compiled *m, const Order *o, const bool *before, int *chain) {
    int *depth = calloc((size_t)o->nstep + 1, sizeof *depth), all = 0;
    assert_non_null(depth);
    *chain = 0;
    for (int l = 0; l < o->nstep; l++) {
        int kernels = launch_kernels(m, o, l);
        for (int k = 0; k < l; k++)
            if (before[l * (o->nstep + 1) + k] && depth[k] > depth[l]) depth[l] = depth[k];
        depth[l] += kernels;
        all += kernels;
        if (depth[l] > *chain) *chain = depth[l];
    }
    free(depth);
    return all;
}

/* What is written at the second of two products by the first's launch lives from there on, lies
 * over nothing that the launch reads, and what is in between does not touch it. */
static void check_results(const Compiled *m, const PeftStep *first, const PeftStep *second) {
    Touch other[MOST_TOUCHED];
    for (int a = 2; a < second_args(second); a++) {
        Touch result = touch_of(m, second, a);
        if (!result.written) continue;
        const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
        const PeftTemp *t = &f->temp[PEFT_REF_INDEX(second->arg[a])];
        assert_int_equal(PEFT_REF_KIND(second->arg[a]), PEFT_REF_TEMP);
        assert_true(t->first <= first - f->step && second - f->step <= t->last);
        for (int k = 0; k <= first->narg; k++) {
            other[0] = touch_of(m, first, k);
            assert_false(touches_conflict(&result, 1, other, 1));
        }
        for (int k = 0; k < second_args(second); k++) {
            other[0] = touch_of(m, second, k);
            assert_true(k == a || !touches_conflict(&result, 1, other, 1));
        }
        for (const PeftStep *k = first + 1; k < second; k++)
            for (int b = 0; b <= k->narg; b++) {
                other[0] = touch_of(m, k, b);
                assert_false(touches_conflict(&result, 1, other, 1));
            }
    }
}

/* All that the second of two products through a narrow middle reads is there before the first, and
 * so is what its epilogue reads where that is finished. */
static int check_pairs(const Compiled *m, int *finished) {
    const PeftProgram *p = &m->program->table;
    const PeftFunction *f = &p->fn[PEFT_FN_TRAIN];
    int pairs = 0;
    *finished = 0;
    for (int i = 0; i < f->nstep; i++) {
        const PeftStep *s = &f->step[i], *second = peft_second(p, s);
        if (!second) continue;
        const PeftGemm *g = second->desc;
        Touch other[MOST_TOUCHED];
        PeftSpan span[PEFT_SPANS];
        assert_true(second > s && second < f->step + f->nstep && second - g->back == s);
        assert_int_equal(p->kernel[((const PeftGemm *)s->desc)->narrow].launch, PEFT_LAUNCH_NARROW);
        check_results(m, s, second);
        peft_spans(p, s, span);
        assert_true(span[2].step == second && span[2].begin == 1);
        assert_int_equal(span[2].end, second_args(second));
        for (const PeftStep *k = s; k < second; k++) {
            int n = 0;
            for (int a = k->nread; a < k->narg; a++) other[n++] = touch_of(m, k, a);
            if (k != s && p->kernel[k->kernel].kind == PEFT_KERNEL_GEMM)
                other[n++] = touch_of(m, k, 2);
            if (k != s && k->workspace != (int32_t)PEFT_REF_NONE)
                other[n++] = touch_of(m, k, k->narg);
            for (int a = 1; a < second_args(second); a++) {
                Touch read = touch_of(m, second, a);
                assert_false(touches_conflict(&read, 1, other, n));
            }
        }
        pairs++;
        *finished += g->finished;
    }
    return pairs;
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
    const PlanSpan *span = m->plan.temp_span[PEFT_FN_TRAIN];
    int reused = 0;
    for (int i = 0; i < f->ntemp; i++) {
        assert_true(span[i].first <= f->temp[i].first && f->temp[i].last <= span[i].last);
        for (int j = 0; j < f->ntemp; j++) {
            if (offset[i] != offset[j] || f->temp[j].first <= f->temp[i].last) continue;
            assert_true(f->temp[j].first > f->temp[i].last + PLAN_GPU_SLACK);
            reused++;
        }
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

/* Where a step of the program is launched: its product and the kernel behind it, mostly the same
 * launch; one that it is prepared by, or -1; and whose workspace the product has. */
typedef struct Place {
    int product, epilogue, prepared;
    int32_t workspace;
} Place;

static int64_t operand_offset(const Compiled *m, const PeftStep *s, int k) {
    return touch_of(m, s, k).begin;
}

/* Where a product reads operand k: a quantised B in its workspace. */
static int64_t product_operand(const Compiled *m, const PeftStep *s, int k) {
    return operand_offset(m, s, k == 1 && peft_is_nf4(gemm_of(m, s)->b_dtype) ? s->narg : k);
}

/* Products of a batch, and what one launch dequantises for them, have one shape, and A, B and C lie
 * at equal distances; other steps of a launch run the same kernel over as many rows. */
static void check_members(const Compiled *m, const Order *o, int l) {
    const PeftStep *step = m->program->table.fn[PEFT_FN_TRAIN].step;
    const int32_t *member = &o->member[o->first_member[l]];
    int n = o->first_member[l + 1] - o->first_member[l];
    const PeftStep *a = &step[member[0]];
    bool products = o->part[l] == ORDER_PRODUCTS || o->part[l] == ORDER_PREPARES;
    for (int i = 1; i < n; i++) {
        const PeftStep *b = &step[member[i]];
        if (!products) {
            assert_true(a->kernel == b->kernel && a->rows == b->rows);
            continue;
        }
        const PeftGemm *x = a->desc, *y = b->desc;
        assert_true(x->m == y->m && x->n == y->n && x->k == y->k);
        assert_true(x->trans_a == y->trans_a && x->trans_b == y->trans_b);
        assert_int_equal(x->b_dtype, y->b_dtype);
        for (int k = 0; k < 3; k++) {
            int64_t first = product_operand(m, a, k);
            int64_t stride = product_operand(m, &step[member[1]], k) - first;
            assert_int_equal(product_operand(m, b, k) - first, i * stride);
            assert_true(stride > 0 || (stride == 0 && k < 2));
        }
    }
    assert_in_range(n, 1, products ? BATCH_MOST : PEFT_GROUP);
}

/* By step of the program. Each is launched once. */
static Place *launches(const Compiled *m, const Order *o) {
    const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
    Place *of = malloc((size_t)f->nstep * sizeof *of);
    assert_non_null(of);
    for (int i = 0; i < f->nstep; i++) of[i] = (Place){-1, -1, -1, i};
    for (int l = 0; l < o->nstep; l++) {
        int first = o->first_member[l], end = o->first_member[l + 1];
        int32_t least = o->member[first];
        check_members(m, o, l);
        for (int k = first; k < end; k++)
            if (o->member[k] < least) least = o->member[k];
        for (int k = first; k < end; k++) {
            Place *p = &of[o->member[k]];
            int *at = o->part[l] == ORDER_PREPARES   ? &p->prepared
                      : o->part[l] == ORDER_EPILOGUE ? &p->epilogue
                                                     : &p->product;
            assert_int_equal(*at, -1);
            *at = l;
            if (o->part[l] == ORDER_PRODUCTS) p->workspace = least;
        }
    }
    for (int i = 0; i < f->nstep; i++) {
        const PeftGemm *g = f->step[i].desc;
        bool quantised = is_gemm(m, &f->step[i]) && peft_is_nf4(g->b_dtype);
        assert_true(of[i].product >= 0);
        assert_int_equal(of[i].prepared >= 0, quantised);
        if (quantised) of[i].workspace = i;
        if (of[i].epilogue < 0)
            of[i].epilogue = of[i].product;
        else
            assert_true(has_epilogue(m, &f->step[i]));
    }
    return of;
}

typedef struct Launched { /* a part of a step */
    int launch, n;
    Touch touch[MOST_TOUCHED];
} Launched;

static Launched launched_part(const Compiled *m, const Place *place, int i, Part part) {
    const PeftStep *step = m->program->table.fn[PEFT_FN_TRAIN].step;
    Launched p = {.launch = part == EPILOGUE   ? place[i].epilogue
                            : part == PREPARES ? place[i].prepared
                                               : place[i].product};
    const PeftGemm *g = gemm_of(m, &step[i]);
    if (part == PREPARES)
        p.touch[p.n++] = touch_of(m, &step[i], 1);
    else
        p.n = touches(m, &step[i], part, p.touch);
    if (part != EPILOGUE && place[i].workspace == i && !(g && g->back)) {
        p.touch[p.n] = touch_of(m, &step[i], step[i].narg);
        p.touch[p.n++].written = true;
    }
    return p;
}

/* Launches of conflicting parts keep the program's order. */
static void check_parts(const Launched *later, const Launched *earlier, const bool *before,
                        int width) {
    if (before[later->launch * width + earlier->launch]) return;
    assert_false(touches_conflict(later->touch, later->n, earlier->touch, earlier->n));
}

/* The parts of a step of the program that are launched apart. */
static int parts_of(const Place *place, Part part[3]) {
    bool split = place->product != place->epilogue;
    int n = 0;
    if (place->prepared >= 0) part[n++] = PREPARES;
    part[n++] = split ? PRODUCT : WHOLE;
    if (split) part[n++] = EPILOGUE;
    return n;
}

/* The same for whole steps; those that share counters do not run at the same time. */
static void check_pair(const Compiled *m, const bool *before, int width, const Place *place, int i,
                       int j) {
    const PeftFunction *f = &m->program->table.fn[PEFT_FN_TRAIN];
    Part part_i[3], part_j[3];
    int parts_i = parts_of(&place[i], part_i), parts_j = parts_of(&place[j], part_j);
    for (int a = 0; a < parts_i; a++)
        for (int b = 0; b < parts_j; b++) {
            Launched x = launched_part(m, place, i, part_i[a]);
            Launched y = launched_part(m, place, j, part_j[b]);
            check_parts(&x, &y, before, width);
        }
    int later = place[i].product, earlier = place[j].product;
    if (later == earlier || before[later * width + earlier] || before[earlier * width + later])
        return;
    assert_false(share_counters(m, &f->step[i], &f->step[j]));
}

/* What products that are launched together read dequantised comes from one launch, which
 * dequantises nothing else and ends before. Returns how many there are. */
static int check_prepared(const Order *o, const bool *before, const Place *place) {
    int prepared = 0;
    for (int l = 0; l < o->nstep; l++) {
        const int32_t *member = &o->member[o->first_member[l]];
        int n = o->first_member[l + 1] - o->first_member[l], by = place[*member].prepared;
        if (o->part[l] == ORDER_PREPARES || o->part[l] == ORDER_EPILOGUE || by < 0) continue;
        for (int i = 0; i < n; i++) assert_int_equal(place[member[i]].prepared, by);
        assert_int_equal(o->first_member[by + 1] - o->first_member[by], n);
        assert_true(before[l * (o->nstep + 1) + by]);
        prepared++;
    }
    for (int l = 0; l < o->nstep; l++) prepared -= o->part[l] == ORDER_PREPARES;
    assert_int_equal(prepared, 0);
    for (int l = 0; l < o->nstep; l++) prepared += o->part[l] == ORDER_PREPARES;
    return prepared;
}

/* Queries, keys and values in both directions of each layer, at least. */
static void check_batches(const Order *o) {
    int batches = 0;
    for (int l = 0; l < o->nstep; l++) batches += o->part[l] == ORDER_PRODUCTS;
    assert_in_range(batches, 2 * 12 - 1, o->nstep);
}

/* Returns how many kernels are launched. */
static int check_program(const char *path, const char *set, double most, bool skip_join) {
    Compiled m;
    int chain, finished;
    open_model(&m, path, set, skip_join);
    const PeftFunction *f = &m.program->table.fn[PEFT_FN_TRAIN];
    check_written_first(&m);
    check_slack(&m);
    int joins = check_joins(&m);
    assert_int_equal(joins == 0, skip_join);
    bool paired = !skip_join && strstr(path, "adapters");
    assert_int_equal(check_pairs(&m, &finished) > 0, paired);
    assert_int_equal(finished > 0, paired);
    int streams = CUDA_STREAMS;
    Order o = program_order(&m, streams), free_order = program_order(&m, f->nstep);
    bool *before = all_pairs(&o, -1);
    Place *place = launches(&m, &o);
    int prepared = check_prepared(&o, before, place);
    for (int i = 0; i < f->nstep; i++) {
        assert_true(place[i].product == place[i].epilogue ||
                    before[place[i].epilogue * (o.nstep + 1) + place[i].product]);
        for (int j = 0; j < i; j++) check_pair(&m, before, o.nstep + 1, place, i, j);
    }
    int kernels = count_kernels(&m, &o, before, &chain);
    check_batches(&o);
    print_message(
        "%s: %d steps, %d joined, %d finished, in %d launches, %d of them to dequantise, longest chain"
        " %d on %d streams (%d waits), %d on any; %d kernels, %d in a chain; %.1f MB\n",
        path, f->nstep, joins, finished, o.nstep, prepared, o.longest, streams, o.nwait,
        free_order.longest, kernels, chain, (double)m.plan.peak / 1e6);
    assert_true(o.first_member[o.nstep] > o.nstep); /* some are launched together */
    free(place);
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
        const char *path, *set;
        double most;
    } c[] = {{"models/lora_r16.bert", NULL, 0.60},
             {"models/qlora_r16.bert", NULL, 0.65},
             {"models/adapters.bert", NULL, 0.55},
             {"tests/unit/scaled_adapters.bert", NULL, 0.55},
             {"models/full_ft.bert", NULL, 0.45},
             {"models/mlm.bert", NULL, 0.60},
             /* products of one shape that read each other's epilogue */
             {"models/full_ft.bert", "config.ffn=768", 0.45},
             {"models/lora_r16.bert", "config.ffn=768", 0.60}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        int apart = check_program(c[i].path, c[i].set, c[i].most, true);
        assert_in_range(check_program(c[i].path, c[i].set, c[i].most, false), 1, apart - 20);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_programs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
