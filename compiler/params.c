/* Where the number of trainable parameters comes from. Parameters are grouped by the application of
 * a block or patch they belong to (ParamInfo.unit); applications with the same shapes are one
 * summand with a factor in front.
 *
 * Invariant: the derivation's arithmetic is exact; evaluating it gives the number at its end. */
#include "params.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/measure.h"

/* ---- counts ---- */

static bool is_param(const Graph *g, const ModelInfo *info, int32_t i) {
    return i < info->nparam && g->var[i].kind == VAR_PARAM;
}

ParamCounts params_count(const Graph *g) {
    ParamCounts c = {0};
    for (int32_t i = 0; i < g->nvar; i++) {
        const Var *v = &g->var[i];
        if (v->kind != VAR_PARAM) continue;
        c.tensors++;
        c.total += type_count(v->type);
        c.trainable_tensors += v->trainable;
        if (v->trainable) c.trainable += type_count(v->type);
    }
    return c;
}

static double percent(int64_t part, int64_t whole) {
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* ---- groups of equal units ---- */

enum { MAX_GROUPS = 48, MAX_TERMS = 64 };

typedef struct Group {
    int32_t var[MAX_TERMS]; /* trainable parameters of its first unit */
    int nvar;
    int64_t count; /* units */
    bool by_patch;
} Group;

typedef struct Groups {
    Group at[MAX_GROUPS];
    int n;
    int64_t rest; /* elements in units that found no place */
} Groups;

static bool same_unit(const Graph *g, const ModelInfo *info, const Group *a, const Group *b) {
    if (a->nvar != b->nvar || a->by_patch != b->by_patch) return false;
    if (strcmp(info->param[a->var[0]].unit_kind, info->param[b->var[0]].unit_kind)) return false;
    for (int i = 0; i < a->nvar; i++) {
        if (!type_same_shape(g->var[a->var[i]].type, g->var[b->var[i]].type)) return false;
        if (strcmp(info->param[a->var[i]].local, info->param[b->var[i]].local)) return false;
    }
    return true;
}

static void add_unit(const Graph *g, const ModelInfo *info, Groups *all, const Group *unit) {
    for (int i = 0; i < all->n; i++)
        if (same_unit(g, info, &all->at[i], unit)) {
            all->at[i].count++;
            return;
        }
    if (all->n < MAX_GROUPS)
        all->at[all->n++] = *unit;
    else
        for (int i = 0; i < unit->nvar; i++) all->rest += type_count(g->var[unit->var[i]].type);
}

typedef struct Ranked {
    int32_t unit, var;
} Ranked;

static int by_unit(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    int u = (x->unit > y->unit) - (x->unit < y->unit);
    return u ? u : (x->var > y->var) - (x->var < y->var);
}

static void collect(Graph *g, const ModelInfo *info, Groups *all) {
    Ranked *r = graph_alloc(g, (size_t)g->nvar * sizeof *r + 1);
    int n = 0;
    for (int32_t i = 0; i < g->nvar; i++)
        if (is_param(g, info, i) && g->var[i].trainable) r[n++] = (Ranked){info->param[i].unit, i};
    qsort(r, (size_t)n, sizeof *r, by_unit);
    for (int i = 0, end; i < n; i = end) {
        Group unit = {.count = 1, .by_patch = info->param[r[i].var].by_patch};
        for (end = i; end < n && r[end].unit == r[i].unit; end++) {
            if (unit.nvar < MAX_TERMS)
                unit.var[unit.nvar++] = r[end].var;
            else
                all->rest += type_count(g->var[r[end].var].type);
        }
        add_unit(g, info, all, &unit);
    }
}

/* ---- the formula ---- */

/* A dimension by the name it is declared with, the same in all matrices of the unit: LoRA's rank.
 * Its value, or 0 when there is none. `name` is then what to leave out. */
static int64_t common_factor(const Graph *g, const ModelInfo *info, const Group *u,
                             const char **name) {
    for (int d = 0; d < 2 && u->nvar > 1; d++) {
        *name = info->param[u->var[0]].dim_text[d];
        int64_t value = g->var[u->var[0]].type.dim[d];
        int in = 0;
        for (int i = 0; i < u->nvar; i++) {
            const ParamInfo *p = &info->param[u->var[i]];
            Type t = g->var[u->var[i]].type;
            if (t.rank != 2) return 0;
            in += (t.dim[0] == value && strcmp(p->dim_text[0], *name) == 0) ||
                  (t.dim[1] == value && strcmp(p->dim_text[1], *name) == 0);
        }
        if (in == u->nvar) return value;
    }
    return 0;
}

/* Product of the dimensions, the larger first, ones left out. */
static void print_shape(FILE *to, Type t) {
    char a[32], b[32];
    int64_t x = t.rank > 0 ? t.dim[0] : 1, y = t.rank > 1 ? t.dim[1] : 1;
    int64_t high = x > y ? x : y, low = x > y ? y : x;
    fputs(with_commas(high, a), to);
    if (low > 1) fprintf(to, " x %s", with_commas(low, b));
}

static void print_group(FILE *to, const Graph *g, const ModelInfo *info, const Group *u) {
    char text[32];
    const char *name = NULL;
    int64_t factor = common_factor(g, info, u, &name);
    bool brackets = u->nvar > 1 && (u->count > 1 || factor);
    if (u->count > 1) fprintf(to, "%s x ", with_commas(u->count, text));
    if (factor) fprintf(to, "%s x ", with_commas(factor, text));
    if (brackets) fputc('(', to);
    for (int i = 0; i < u->nvar; i++) {
        Type t = g->var[u->var[i]].type;
        if (i) fputs(" + ", to);
        if (!factor)
            print_shape(to, t);
        else
            fputs(with_commas(strcmp(info->param[u->var[i]].dim_text[0], name) == 0 &&
                                      t.dim[0] == factor
                                  ? t.dim[1]
                                  : t.dim[0],
                              text),
                  to);
    }
    if (brackets) fputc(')', to);
}

const char *params_derivation(Graph *g, const ModelInfo *info) {
    Groups *all = graph_alloc(g, sizeof *all);
    collect(g, info, all);
    char *text = NULL, number[32];
    size_t size;
    FILE *to = open_memstream(&text, &size);
    if (!to) PANIC(NULL, "no memory for a text");
    const char *plus = "";
    for (int patches = 1; patches >= 0; patches--) /* what the method adds first, then the head */
        for (int i = 0; i < all->n; i++) {
            if (all->at[i].by_patch != (patches == 1)) continue;
            fputs(plus, to);
            print_group(to, g, info, &all->at[i]);
            plus = " + ";
        }
    if (all->rest)
        fprintf(to, "%s%s", plus, with_commas(all->rest, number));
    else if (!*plus)
        fputs("0", to);
    fprintf(to, " = %s", with_commas(params_count(g).trainable, number));
    fclose(to);
    const char *kept = graph_printf(g, "%s", text);
    free(text);
    return kept;
}

/* ---- the report ---- */

typedef struct Kind {
    const char *name;
    ParamCounts c;
} Kind;

/* Rows of the table, in order of first appearance; *n of them. */
static Kind *by_kind(Graph *g, const ModelInfo *info, int *n) {
    Kind *kind = graph_alloc(g, (size_t)g->nvar * sizeof *kind + 1);
    *n = 0;
    for (int32_t i = 0; i < g->nvar; i++) {
        if (!is_param(g, info, i)) continue;
        int k = 0;
        while (k < *n && strcmp(kind[k].name, info->param[i].unit_kind)) k++;
        if (k == *n) kind[(*n)++].name = info->param[i].unit_kind;
        int64_t count = type_count(g->var[i].type);
        kind[k].c.tensors++;
        kind[k].c.total += count;
        kind[k].c.trainable_tensors += g->var[i].trainable;
        if (g->var[i].trainable) kind[k].c.trainable += count;
    }
    return kind;
}

static void print_row(FILE *to, const char *name, const ParamCounts *c) {
    char total[32], trainable[32];
    fprintf(to, "  %-16s %7d %15s %15s %9.4f %%\n", name, c->tensors, with_commas(c->total, total),
            with_commas(c->trainable, trainable), percent(c->trainable, c->total));
}

/* How often the hidden size holds an adapter's bottleneck: AdapterHub's reduction factor. */
static double reduction(const ModelInfo *info, const PeftMethod *m) {
    for (int i = 0; i < m->nparam; i++)
        if (strcmp(m->param_name[i], "bottleneck") == 0 && m->param_value[i] > 0)
            return (double)info->config.hidden / m->param_value[i];
    return 0;
}

static void print_method(FILE *to, const ModelInfo *info, const PeftMethod *m) {
    fprintf(to, "  %s(", m->patch);
    for (int i = 0; i < m->nparam; i++)
        fprintf(to, "%s%s = %.10g", i ? ", " : "", m->param_name[i], m->param_value[i]);
    fprintf(to, ") on `%s`: %d blocks", m->target, m->count);
    double factor = reduction(info, m);
    if (factor > 0)
        fprintf(to, ", bottleneck %.10g of %lld: reduction factor %.4g",
                (double)info->config.hidden / factor, (long long)info->config.hidden, factor);
    fputc('\n', to);
}

static void print_table(FILE *to, Graph *g, const ModelInfo *info) {
    ParamCounts all = params_count(g);
    int n;
    Kind *kind = by_kind(g, info, &n);
    fprintf(to, "%s\n  %-16s %7s %15s %15s %11s\n", info->name, "kind", "tensors", "elements",
            "trainable", "share");
    for (int i = 0; i < n; i++) print_row(to, kind[i].name, &kind[i].c);
    print_row(to, "total", &all);
    fprintf(to, "  trainable = %s\n", params_derivation(g, info));
    for (int i = 0; i < info->nmethod; i++) print_method(to, info, &info->method[i]);
}

/* ---- JSON ---- */

static void json_string(FILE *to, const char *s) {
    fputc('"', to);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            fprintf(to, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            fprintf(to, "\\u%04x", *s);
        else
            fputc(*s, to);
    }
    fputc('"', to);
}

static void json_counts(FILE *to, const ParamCounts *c) {
    fprintf(to,
            "\"tensors\": %d, \"total\": %" PRId64 ", \"trainable\": %" PRId64
            ", \"percent\": %.6f",
            c->tensors, c->total, c->trainable, percent(c->trainable, c->total));
}

static void json_method(FILE *to, const ModelInfo *info, const PeftMethod *m) {
    fputs("{\"patch\": ", to);
    json_string(to, m->patch);
    fputs(", \"target\": ", to);
    json_string(to, m->target);
    fprintf(to, ", \"blocks\": %d", m->count);
    for (int i = 0; i < m->nparam; i++) {
        fputs(", ", to);
        json_string(to, m->param_name[i]);
        fprintf(to, ": %.17g", m->param_value[i]);
    }
    double factor = reduction(info, m);
    if (factor > 0) fprintf(to, ", \"reduction_factor\": %.17g", factor);
    fputc('}', to);
}

static void print_json(FILE *to, Graph *g, const ModelInfo *info) {
    ParamCounts all = params_count(g);
    int n;
    Kind *kind = by_kind(g, info, &n);
    fputs("{\"model\": ", to);
    json_string(to, info->name);
    fputs(", ", to);
    json_counts(to, &all);
    fputs(", \"derivation\": ", to);
    json_string(to, params_derivation(g, info));
    fputs(",\n \"kinds\": [", to);
    for (int i = 0; i < n; i++) {
        fputs(i ? ",\n  {\"kind\": " : "\n  {\"kind\": ", to);
        json_string(to, kind[i].name);
        fputs(", ", to);
        json_counts(to, &kind[i].c);
        fputc('}', to);
    }
    fputs("],\n \"methods\": [", to);
    for (int i = 0; i < info->nmethod; i++) {
        fputs(i ? ",\n  " : "\n  ", to);
        json_method(to, info, &info->method[i]);
    }
    fputs("],\n \"statements\": [", to);
    for (int i = 0; i < info->nstmt; i++) {
        fputs(i ? ",\n  {\"text\": " : "\n  {\"text\": ", to);
        json_string(to, info->stmt[i].text);
        fprintf(to, ", \"matches\": %" PRId64 ", \"unit\": \"%s\"}", info->stmt[i].count,
                info->stmt[i].unit);
    }
    fputs("]}\n", to);
}

void params_print(FILE *to, Graph *g, const ModelInfo *info, bool json) {
    if (json)
        print_json(to, g, info);
    else
        print_table(to, g, info);
}
