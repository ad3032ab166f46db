/* peftc's command line: a program in, an executable (or a view of it) out. The pipeline is
 * elaborate -> passes -> fuse -> schedule -> tables -> C -> host compiler. */
#include "ahead.h"
#include "diag.h"
#include "dot.h"
#include "elaborate.h"
#include "emit/emit.h"
#include "host_cc.h"
#include "memreport.h"
#include "options.h"
#include "params.h"
#include "pass.h"
#include "pass/schedule.h"
#include "text.h"

#include "../runtime/io/config.h"
#include "../runtime/measure.h"

#include <stdlib.h>
#include <string.h>

typedef struct Compilation {
    const Options *o;
    Sources *sources;
    Diag diag;
    ModelInfo model;
    Graph *g;
    Schedule *sched[PEFT_FN_COUNT];
    double started;
} Compilation;

static void note_time(Compilation *c, const char *what) {
    double t = clock_seconds();
    if (c->o->time_passes) fprintf(stderr, "%-12s %8.2f ms\n", what, 1e3 * (t - c->started));
    c->started = t;
}

/* ---- from text to graph ---- */

static int base_fields(const char *dir, BaseField out[16], PeftError *err) {
    BertConfig b;
    int n = 0;
    if (!config_read(dir, &b, err)) return -1;
    const BaseField fields[] = {
        {"vocab", (double)b.vocab_size}, {"hidden", (double)b.hidden},
        {"layers", (double)b.layers},    {"heads", (double)b.heads},
        {"ffn", (double)b.ffn},          {"positions", (double)b.positions},
        {"types", (double)b.types},      {"eps", b.eps},
        {"dropout", b.hidden_dropout},   {"attention_dropout", b.attention_dropout}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) out[n++] = fields[i];
    return n;
}

static bool elaborate_program(Compilation *c, PeftError *err) {
    BaseField fields[16];
    Settings s = {.model = c->o->model, .set = c->o->set, .nset = c->o->nset};
    char path[4096];
    if (c->o->base) {
        s.nbase = base_fields(c->o->base, fields, err);
        if (s.nbase < 0) return false;
        snprintf(path, sizeof path, "%s/config.json", c->o->base);
        s.base = fields;
        s.base_path = path;
    }
    c->g = elaborate_file(c->o->program, &s, &c->diag, &c->model);
    diag_finish(&c->diag);
    for (int i = 0; c->g && i < c->model.nstart; i++)
        graph_update(c->g, PEFT_FN_START, c->model.start[i].var, c->model.start[i].value);
    if (!c->g) err->code = 2;
    return c->g != NULL;
}

static bool read_graph(Compilation *c, PeftError *err) {
    int32_t file = sources_open(c->sources, c->o->from_graph, err);
    if (file < 0) return false;
    const Source *s = &c->sources->file[file];
    c->g = text_read(s->text, (size_t)s->length, s->path, err);
    c->model = (ModelInfo){.name = "graph",
                           .source = s->path,
                           .settings = "",
                           .fit = {.epochs = 1,
                                   .batch = 32,
                                   .accumulate = 1,
                                   .clip_norm = 1,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .warmup_steps = -1}};
    if (!c->g) err->code = 2;
    return c->g != NULL;
}

static bool has_trainable(const Graph *g) {
    for (int i = 0; i < g->nvar; i++)
        if (g->var[i].trainable) return true;
    return false;
}

/* ---- from graph to schedules ---- */

static bool skips(const Options *o, const char *pass) {
    if (!o->skip) return false;
    size_t n = strlen(pass);
    for (const char *at = o->skip; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if ((strncmp(at, pass, n) == 0 && (at[n] == 0 || at[n] == ',')) || strcmp(at, "all") == 0)
            return true;
    return false;
}

/* --skip without the passes that are not graph passes. */
static char *skip_list(const Options *o) {
    if (!o->skip) return NULL;
    char *list = calloc(1, strlen(o->skip) + 1), *copy = strdup(o->skip), *save = NULL;
    for (char *w = strtok_r(copy, ",", &save); w; w = strtok_r(NULL, ",", &save)) {
        if (strcmp(w, "fuse") == 0 || strcmp(w, "join") == 0) continue;
        if (*list) strcat(list, ",");
        strcat(list, w);
    }
    free(copy);
    return list;
}

static void print_remark(void *ctx, const Node *producer, const Node *consumer, const char *why) {
    Compilation *c = ctx;
    fprintf(stderr, "%s: remark: %s was not fused into %s (%s): %s\n",
            source_where(c->sources, producer->span), op_info[producer->op].name,
            op_info[consumer->op].name, source_where(c->sources, consumer->span), why);
}

static bool run_passes(Compilation *c, PeftError *err) {
    char *skip = skip_list(c->o);
    PassOptions p = {.fit = has_trainable(c->g) ? &c->model.fit : NULL,
                     .dump_after = c->o->dump_after,
                     .skip = skip && *skip ? skip : NULL,
                     .time = c->o->time_passes,
                     .log = stderr};
    bool ok = passes_check(&p, err);
    if (!ok) err->code = 2;
    if (ok && !c->o->from_graph) passes_run(c->g, &p);
    free(skip);
    return ok;
}

static void make_schedules(Compilation *c) {
    FuseOptions f = {
        .skip = skips(c->o, "fuse"), .remark = c->o->remarks ? print_remark : NULL, .ctx = c};
    for (int fn = 0; fn < PEFT_FN_COUNT; fn++) {
        int32_t n;
        if (!c->g->fn[fn].nout && !c->g->fn[fn].nupdate) continue;
        Kernel **k = fuse_function(c->g, (PeftFn)fn, &f, &n);
        c->sched[fn] = schedule_function(c->g, (PeftFn)fn, k, n);
    }
}

/* ---- outputs ---- */

static Program *build_tables(Compilation *c) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    fprintf(f, "%s\n", c->model.settings);
    if (c->model.nparam) params_print(f, c->g, &c->model, false);
    fclose(f);
    ProgramInfo info = {.name = c->model.name,
                        .source = c->model.source,
                        .text = graph_printf(c->g, "%s", text),
                        .task = c->model.task,
                        .config = c->model.config,
                        .fit = c->model.fit,
                        .method = c->model.method,
                        .nmethod = c->model.nmethod,
                        .sources = c->sources,
                        .skip_join = skips(c->o, "join")};
    free(text);
    return program_build(c->g, &info, c->sched);
}

static void write_c(FILE *f, void *program) {
    emit_c(f, program);
}

static bool print_dot(Compilation *c, FILE *out, PeftError *err) {
    static const char *const views[] = {"forward", "backward", "fused", NULL};
    DotOptions d = {.fn = PEFT_FN_TRAIN, .view = DOT_FORWARD, .module = c->o->module};
    for (int v = 0; c->o->view && views[v]; v++)
        if (strcmp(views[v], c->o->view) == 0) d.view = (DotView)v;
    if (c->o->view && strcmp(views[d.view], c->o->view) != 0) {
        err->code = 2;
        return peft_fail(err, "--view is forward, backward or fused, not '%s'", c->o->view);
    }
    if (!c->sched[PEFT_FN_TRAIN]) d.fn = PEFT_FN_EVAL;
    d.schedule = c->sched[d.fn];
    dot_print(out, c->g, &d);
    return true;
}

static bool print_plan(Compilation *c, FILE *out, PeftError *err) {
    int64_t sym[PEFT_SYM_COUNT] = {0};
    sym[PEFT_SYM_T] = c->o->tokens;
    sym[PEFT_SYM_S] =
        c->o->sequences ? c->o->sequences : c->model.fit.batch / c->model.fit.accumulate;
    sym[PEFT_SYM_L] = c->o->longest ? c->o->longest : c->o->tokens < 128 ? c->o->tokens : 128;
    sym[PEFT_SYM_M] = c->o->masked ? c->o->masked : (c->o->tokens * 15 + 99) / 100;
    sym[PEFT_SYM_P] = c->o->threads;
    sym[PEFT_SYM_W] = sizeof(float);
    return memreport_print(out, &build_tables(c)->table, sym, sym, c->o->json, err);
}

static bool make_executable(Compilation *c, PeftError *err) {
    HostCc cc = {.command = c->o->cc, .level = (int)c->o->level};
    Program *p = build_tables(c);
    Ahead ahead = {0};
    note_time(c, "emit");
    bool ok = !c->o->arch || ahead_compile(&ahead, &p->table, c->o->arch, err);
    if (c->o->arch) note_time(c, "nvrtc");
    p->table.cubin = ahead.cubin;
    p->table.ncubin = ahead.n;
    ok = ok && host_cc(c->o->out, &cc, write_c, p, err);
    note_time(c, "host cc");
    ahead_free(&ahead);
    return ok;
}

static bool produce(Compilation *c, PeftError *err) {
    const char *kind = c->o->emit;
    if (!kind && c->o->out) return make_executable(c, err);
    FILE *out = stdout;
    if (c->o->out && strcmp(c->o->out, "-") != 0) out = fopen(c->o->out, "w");
    if (!out) return peft_fail(err, "cannot write %s", c->o->out);
    bool ok = true;
    if (!kind || strcmp(kind, "params") == 0)
        params_print(out, c->g, &c->model, c->o->json);
    else if (strcmp(kind, "graph") == 0)
        text_print(out, c->g, true);
    else if (strcmp(kind, "dot") == 0)
        ok = print_dot(c, out, err);
    else if (strcmp(kind, "c") == 0)
        emit_c(out, build_tables(c));
    else if (strcmp(kind, "cuda") == 0)
        fputs(build_tables(c)->table.cuda_source, out);
    else
        ok = print_plan(c, out, err);
    ok =
        ok && (fflush(out) == 0 && !ferror(out) ? true : peft_fail(err, "cannot write the output"));
    if (out != stdout) fclose(out);
    return ok;
}

static bool compile(Compilation *c, PeftError *err) {
    c->started = clock_seconds();
    if (!(c->o->from_graph ? read_graph(c, err) : elaborate_program(c, err))) return false;
    note_time(c, "elaborate");
    if (!run_passes(c, err)) return false;
    note_time(c, "passes");
    make_schedules(c);
    note_time(c, "schedule");
    return produce(c, err);
}

int main(int argc, char **argv) {
    PeftError err = {{0}, 0};
    Options o;
    if (!options_parse(&o, argc, argv, &err)) {
        fprintf(stderr, "peftc: error: %s\n", err.msg);
        return 2;
    }
    if (o.help || (!o.program && !o.from_graph)) {
        options_help(stdout);
        return o.help ? 0 : 2;
    }
    Compilation c = {.o = &o, .sources = sources_new()};
    diag_init(&c.diag, c.sources, stderr);
    bool ok = compile(&c, &err);
    if (!ok && err.msg[0]) fprintf(stderr, "peftc: error: %s\n", err.msg);
    graph_free(c.g);
    sources_free(c.sources);
    return ok ? 0 : err.code ? err.code : 1;
}
