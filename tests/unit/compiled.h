/* A graph compiled to C, loaded into the test and run by the runtime's executor, beside the
 * interpreter's values for the same bindings. The generated code is built as a shared object
 * together with the runtime files it calls, by the flags that programs are built with. */
#ifndef PEFTC_TEST_COMPILED_H
#define PEFTC_TEST_COMPILED_H

#include "scratch.h"

#include <dlfcn.h>
#include <math.h>

#include "../../compiler/emit/emit.h"
#include "../../compiler/interp.h"
#include "../../compiler/pass/schedule.h"
#include "../../runtime/cpu/isa.h"
#include "../../runtime/exec.h"
#include "../../runtime/io/quantize.h"

/* Generated code is checked by the sanitizers that check the test. */
#ifdef __SANITIZE_ADDRESS__
#define SANITIZE "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
#else
#define SANITIZE ""
#endif

typedef struct Compiled {
    Graph *g;
    Program *tables; /* what the compiler has in memory */
    void *object;
    const PeftProgram *program; /* what the generated C says */
    void (*use_isa)(Isa isa);   /* for the generated code */
} Compiled;

typedef struct Bindings { /* of variables and batch, in doubles, and the NF4 bytes of the former */
    InterpEnv env;
    RefTensor *var, *input;
    void **nf4; /* by variable, or NULL */
} Bindings;

/* ---- compiling ---- */

static inline Program *build_tables(Graph *g, bool skip_fusion) {
    static const PeftFit fit = {.epochs = 1, .batch = 3, .accumulate = 1, .lr = 0.01};
    ProgramInfo info = {
        .name = "test", .source = "test.bert", .text = "one\ntwo */ \"?\"\n", .fit = fit};
    FuseOptions options = {.skip = skip_fusion};
    Schedule *sched[PEFT_FN_COUNT] = {NULL};
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        int32_t n;
        if (!g->fn[fn].nout && !g->fn[fn].nupdate) continue;
        Kernel **k = fuse_function(g, (PeftFn)fn, &options, &n);
        sched[fn] = schedule_function(g, (PeftFn)fn, k, n);
    }
    return program_build(g, &info, sched);
}

static inline void run_command(const char *command) {
    if (system(command) != 0) fail_msg("failed: %s", command);
}

/* The runtime files that kernels call, as one object; built once. */
static inline const char *support_object(void) {
    static char path[512];
    char command[2048];
    if (path[0]) return path;
    snprintf(path, sizeof path, "%s/support.o", scratch);
    const char *cc = getenv("CC");
    snprintf(command, sizeof command,
             "cd %s && for f in cpu/isa cpu/philox cpu/nf4 error; do "
             "printf '#include \"%%s/runtime/%%s.c\"\\n' \"$OLDPWD\" $f > s.c; "
             "%s -std=gnu11 -O2 -fPIC -c -o s_$(basename $f).o s.c || exit 1; done; "
             "ld -r -o support.o s_*.o",
             scratch, cc ? cc : "cc");
    run_command(command);
    return path;
}

static inline void write_source(const Program *p, const char *path) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(emit_c(f, p));
    fputs(
        "const PeftProgram *test_program(void);\n"
        "const PeftProgram *test_program(void) { return &program; }\n"
        "int peft_main(const PeftProgram *p, int argc, char **argv) { return !p + argc + !argv; }\n",
        f);
    assert_int_equal(fclose(f), 0);
}

static inline void load_object(Compiled *c, const char *path) {
    const PeftProgram *(*get)(void);
    c->object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!c->object) fail_msg("%s", dlerror());
    *(void **)&get = dlsym(c->object, "test_program");
    *(void **)&c->use_isa = dlsym(c->object, "isa_use");
    assert_non_null(get);
    assert_non_null(c->use_isa);
    c->program = get();
}

/* The graph's functions, compiled at an optimisation level. The graph is the caller's. */
static inline Compiled compiled_open(Graph *g, bool skip_fusion, int level) {
    static int count;
    char source[512], object[512], command[4096];
    Compiled c = {.g = g, .tables = build_tables(g, skip_fusion)};
    snprintf(source, sizeof source, "%s/program%d.c", scratch, count);
    snprintf(object, sizeof object, "%s/program%d.so", scratch, count++);
    write_source(c.tables, source);
    const char *cc = getenv("CC");
    snprintf(
        command, sizeof command,
        "%s -std=gnu11 -O%d -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp "
        "-Wall -Wno-unused-function -Werror -Iruntime -fPIC -shared -Dmain=generated_main " SANITIZE
        " -o %s %s %s -lm -lpthread",
        cc ? cc : "cc", level, object, source, support_object());
    run_command(command);
    load_object(&c, object);
    return c;
}

static inline void compiled_close(Compiled *c) {
    dlclose(c->object);
}

/* ---- bindings ---- */

static inline void *quantised(RefTensor *t, bool dq) {
    PeftError err = {{0}, 0};
    NfQuantizer q;
    float *w = malloc((size_t)t->count * sizeof *w + 1);
    void *bytes = aligned_alloc(64, (nf4_bytes(t->count, dq) + 63) / 64 * 64);
    assert_non_null(w);
    assert_non_null(bytes);
    for (int64_t i = 0; i < t->count; i++) w[i] = (float)t->data[i];
    if (!nf_quantizer_init(&q, bytes, t->count, dq, &err) ||
        !nf_quantizer_push(&q, w, t->count, &err) || !nf_quantizer_finish(&q, &err))
        fail_msg("%s", err.msg);
    Nf4View v = nf4_view(bytes, t->count, dq);
    for (int64_t i = 0; i < t->count; i++) t->data[i] = nf4_value(&v, i);
    free(w);
    return bytes;
}

/* Rounds variables to their stored form: the interpreter sees what the kernels will. */
static inline void store_vars(const Graph *g, Bindings *b) {
    b->nf4 = graph_alloc((Graph *)g, (size_t)g->nvar * sizeof *b->nf4 + 1);
    for (int i = 0; i < g->nvar; i++) {
        int dt = g->var[i].type.dt;
        RefTensor *t = &b->var[i];
        if (peft_is_nf4(dt)) b->nf4[i] = quantised(t, dt == DT_NF4);
        for (int64_t k = 0; dt == DT_F32 && k < t->count; k++) t->data[k] = (float)t->data[k];
    }
}

static inline void bindings_close(const Graph *g, Bindings *b) {
    for (int i = 0; i < g->nvar; i++) free(b->nf4[i]);
}

static inline void store_values(void *to, const RefTensor *t, uint8_t dtype) {
    for (int64_t i = 0; i < t->count; i++)
        if (dtype == DT_I32)
            ((int32_t *)to)[i] = (int32_t)t->data[i];
        else
            ((float *)to)[i] = (float)t->data[i];
}

static inline void fill_arena(Exec *x, const Graph *g, const Bindings *b) {
    memset(x->arena, 0xff, (size_t)x->plan.peak); /* NaN wherever nothing is written */
    for (int i = 0; i < g->nvar; i++) {
        const Type t = g->var[i].type;
        if (b->nf4[i])
            memcpy(exec_var(x, i), b->nf4[i], nf4_bytes(b->var[i].count, t.dt == DT_NF4));
        else
            store_values(exec_var(x, i), &b->var[i], t.dt);
    }
    static const uint8_t dtype[PEFT_IN_COUNT] = {
#define X(name, dtype, rank, d0, d1) dtype,
        PEFT_INPUTS(X)
#undef X
    };
    for (int i = 0; i < PEFT_IN_COUNT; i++)
        if (i != PEFT_IN_rng && b->input[i].data)
            store_values(exec_input(x, (PeftInputId)i), &b->input[i], dtype[i]);
    int32_t *rng = exec_input(x, PEFT_IN_rng);
    rng[0] = (int32_t)(uint32_t)b->env.seed;
    rng[1] = (int32_t)(uint32_t)(b->env.seed >> 32);
    rng[2] = b->env.step;
    rng[3] = b->env.dropout;
}

/* ---- running ---- */

static inline void open_exec(Exec *x, const Compiled *c, const Bindings *b, PeftFn fn,
                             int threads) {
    PeftError err = {{0}, 0};
    int64_t sym[PEFT_SYM_COUNT];
    memcpy(sym, b->env.sym, sizeof sym);
    sym[PEFT_SYM_L] = sym[PEFT_SYM_T];
    sym[PEFT_SYM_P] = threads;
    sym[PEFT_SYM_W] = sizeof(float);
    if (!exec_open(x, c->program, 1u << fn, DEVICE_CPU, COMPUTE_FP32, threads, sym, sym, 0, &err))
        fail_msg("%s", err.msg);
    fill_arena(x, c->g, b);
    if (!exec_run(x, fn, sym, &err)) fail_msg("%s", err.msg);
}

typedef struct Worst {
    double share; /* of the tolerance, the largest so far */
    char what[128];
} Worst;

/* float32 against float64. Errors are measured against the tensor's largest value: a sum that
 * nearly cancels is as inexact as its terms. The constant covers values that are zero in exact
 * arithmetic. */
static const double relative_tolerance = 3e-6, absolute_tolerance = 1e-7;

static inline double largest(const RefTensor *t) {
    double size = 0;
    for (int64_t i = 0; i < t->count; i++)
        if (isfinite(t->data[i])) size = fmax(size, fabs(t->data[i]));
    return size;
}

static inline double largest_operand(const Bindings *b, const Node *n) {
    double size = 0;
    n = n->op == OP_PROJ ? n->in[0] : n;
    for (int i = 0; i < n->nin; i++)
        if (n->in[i]->op == OP_VAR && n->in[i]->type.dt == DT_F32)
            size = fmax(size, largest(&b->var[n->in[i]->attr.leaf.index]));
    return size;
}

static inline void compare_tensor(Worst *w, const void *found, uint8_t dtype, const RefTensor *want,
                                  double operand, const char *name) {
    double size = fmax(largest(want), operand);
    double tolerance = relative_tolerance * size + absolute_tolerance;
    for (int64_t i = 0; i < want->count; i++) {
        double a =
            dtype == DT_I32 ? ((const int32_t *)found)[i] : (double)((const float *)found)[i];
        double b = want->data[i];
        bool same = isinf(b) ? a == b : fabs(a - b) <= tolerance;
        if (!same) fail_msg("%s[%lld]: found %.9g, wanted %.9g", name, (long long)i, a, b);
        if (isinf(b) || !(fabs(a - b) / tolerance > w->share)) continue;
        w->share = fabs(a - b) / tolerance;
        snprintf(w->what, sizeof w->what, "%s[%lld]", name, (long long)i);
    }
}

/* Runs a function and compares every output and every updated variable with the interpreter. */
static inline void compare_function(Worst *w, const Compiled *c, const Bindings *b, PeftFn fn,
                                    int threads) {
    const Function *f = &c->g->fn[fn];
    RefTensor *want = calloc((size_t)(f->nout + f->nupdate) + 1, sizeof *want);
    PeftError err = {{0}, 0};
    Exec x;
    if (!interp_function(c->g, fn, &b->env, want, want + f->nout, &err)) fail_msg("%s", err.msg);
    open_exec(&x, c, b, fn, threads);
    for (int i = 0; i < f->nout; i++) {
        const void *found = exec_output(&x, fn, f->out[i].name, NULL);
        assert_non_null(found);
        compare_tensor(w, found, f->out[i].node->type.dt, &want[i],
                       largest_operand(b, f->out[i].node), f->out[i].name);
    }
    for (int i = 0; i < f->nupdate; i++) {
        const Var *v = &c->g->var[f->update[i].var];
        compare_tensor(w, exec_var(&x, f->update[i].var), v->type.dt, &want[f->nout + i], 0,
                       v->name);
    }
    assert_true(x.high_water <= x.plan.peak);
    exec_close(&x);
    interp_free(want, f->nout + f->nupdate);
    free(want);
}

static inline void compare_all(Worst *w, const Compiled *c, const Bindings *b, int threads) {
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++)
        if (c->g->fn[fn].nout || c->g->fn[fn].nupdate)
            compare_function(w, c, b, (PeftFn)fn, threads);
}

/* The same on every instruction set of this machine. */
static inline void compare_isas(Worst *w, const Compiled *c, const Bindings *b) {
    Isa current = isa_current();
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (!isa_supported((Isa)isa)) continue;
        isa_use((Isa)isa);
        c->use_isa((Isa)isa);
        compare_all(w, c, b, 2);
    }
    isa_use(current);
    c->use_isa(current);
}

#endif
