/* See model.h. What each variable gets is settled, or refused, before the first one is filled. */
#include "model.h"
#include "cpu/nf4.h"
#include "fill.h"
#include "storage.h"
#include "model_config.h"
#include "io/weights_map.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- loading ---- */

typedef struct Opened {
    Weights *weights[MODEL_MAX_SOURCES];
    int n;
    WeightMap *map;
} Opened;

static void close_all(Opened *o) {
    weight_map_free(o->map);
    for (int i = 0; i < o->n; i++) weights_close(o->weights[i]);
}

static bool open_all(Opened *o, const ModelSource *src, PeftError *err) {
    memset(o, 0, sizeof *o);
    o->map = weight_map_new(err);
    for (int i = 0; o->map && i < src->n; i++) {
        Weights *w = weights_open(src->path[i], err);
        if (!w) return false;
        o->weights[o->n++] = w;
        if (!weight_map_add(o->map, w, err)) return false;
    }
    return o->map != NULL;
}

static const char *source_names(const ModelSource *src, char *buf, size_t size) {
    buf[0] = 0;
    for (int i = 0; i < src->n; i++) {
        size_t at = strlen(buf);
        snprintf(buf + at, size - at, "%s%s", i ? ", " : "", src->path[i]);
    }
    return buf;
}

/* Gradients' moments and the like begin as zeros. */
static bool is_cleared(const Exec *x, int i) {
    const PeftVar *v = &x->program->var[i];
    return v->is_state && v->init == PEFT_ZEROS && exec_zero(x, i);
}

/* What variable i is filled from. */
static bool find_source(Exec *x, int i, Opened *o, const ModelSource *src, Fill *f, ModelReport *r,
                        PeftError *err) {
    const PeftVar *v = &x->program->var[i];
    *f = (Fill){.var = v, .at = exec_var(x, i)};
    if (v->is_state) return true;
    if (weight_map_find(o->map, v->name)) {
        f->tensor = weight_map_resolve(o->map, v->name, v->rank, v->dim, err);
        if (!f->tensor) return false;
    } else if (!v->fresh && !src->scratch) {
        char names[512];
        return peft_fail(err, "%s has no tensor %s, which %s declares; give a complete base model",
                         source_names(src, names, sizeof names), v->name, v->where);
    }
    *(f->tensor ? &r->loaded : &r->initialised) += 1;
    return true;
}

/* Fills all variables, or those that the program derives and the files have. */
static bool fill_from(Exec *x, Opened *o, const ModelSource *src, uint64_t seed, bool derived,
                      ModelReport *r, PeftError *err) {
    int n = 0;
    Fill *fill = peft_alloc((size_t)x->program->nvar, sizeof *fill, err);
    bool ok = fill != NULL;
    for (int i = 0; ok && i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        if (derived && !(v->derived && weight_map_find(o->map, v->name))) continue;
        if (is_cleared(x, i)) continue;
        ok = find_source(x, i, o, src, &fill[n++], r, err);
    }
    ok = ok && fill_all(fill, n, (int)x->train_sym[PEFT_SYM_W], seed, err);
    free(fill);
    return ok;
}

/* Computes what the program derives from the base, then puts back what the files had of it. */
static bool start_values(Exec *x, Opened *o, const ModelSource *src, uint64_t seed,
                         PeftError *err) {
    bool wanted = false;
    ModelReport ignored = {0};
    int64_t sym[PEFT_SYM_COUNT] = {0};
    for (int i = 0; i < x->program->nvar; i++) {
        const PeftVar *v = &x->program->var[i];
        wanted |= v->derived && !weight_map_find(o->map, v->name);
    }
    if (!wanted) return true;
    return exec_run(x, PEFT_FN_START, sym, err) && fill_from(x, o, src, seed, true, &ignored, err);
}

bool model_load(Exec *x, const ModelSource *src, uint64_t seed, ModelReport *report,
                PeftError *err) {
    memset(report, 0, sizeof *report);
    Opened o;
    bool ok = open_all(&o, src, err) && fill_from(x, &o, src, seed, false, report, err) &&
              start_values(x, &o, src, seed, err);
    if (ok) {
        const StTensor *one = NULL;
        report->unused = (int)weight_map_unused(o.map, &one, 1);
        if (one) snprintf(report->unused_name, sizeof report->unused_name, "%s", one->name);
    }
    close_all(&o);
    return ok;
}

/* ---- saving ---- */

static bool uses_patch(const PeftProgram *p, const char *const *names) {
    for (int i = 0; i < p->nmethod; i++)
        for (int k = 0; names[k]; k++)
            if (strcmp(p->method[i].patch, names[k]) == 0) return true;
    return false;
}

ModelCount model_count(const PeftProgram *p) {
    ModelCount c = {0};
    for (int i = 0; i < p->nvar; i++) {
        if (p->var[i].is_state) continue;
        c.total += var_count(&p->var[i]);
        c.tensors++;
        if (!p->var[i].trainable) continue;
        c.trainable += var_count(&p->var[i]);
        c.trainable_tensors++;
    }
    return c;
}

ModelLayout model_layout(const PeftProgram *p) {
    static const char *const bottleneck[] = {"houlsby", "pfeiffer", "parallel", NULL};
    ModelCount c = model_count(p);
    if (c.trainable * 2 > c.total) return LAYOUT_MODEL;
    return uses_patch(p, bottleneck) ? LAYOUT_ADAPTER : LAYOUT_PEFT;
}

void model_file(const PeftProgram *p, const char *dir, char *path, size_t size) {
    static const char *const names[] = {[LAYOUT_MODEL] = "model.safetensors",
                                        [LAYOUT_PEFT] = "adapter_model.safetensors",
                                        [LAYOUT_ADAPTER] = "adapter.safetensors"};
    snprintf(path, size, "%s/%s", dir, names[model_layout(p)]);
}

/* The name under which the method's usual library saves the tensor: the adapter's name goes before
 * the part that the patch added (AdapterHub), or everything gets a prefix (peft). */
static void saved_name(const PeftProgram *p, const PeftVar *v, ModelLayout layout, char *out,
                       size_t size) {
    const char *part = strstr(v->name, ".adapter_");
    if (layout == LAYOUT_PEFT && strncmp(v->name, "base_model.", 11) != 0)
        snprintf(out, size, "base_model.model.%s", v->name);
    else if (layout == LAYOUT_ADAPTER && part)
        snprintf(out, size, "%.*s.adapters.%s%s", (int)(part - v->name), v->name, p->name, part);
    else
        snprintf(out, size, "%s", v->name);
}

static bool is_saved(const PeftVar *v, ModelLayout layout) {
    return !v->is_state && (layout == LAYOUT_MODEL || v->trainable || v->fresh);
}

enum { PIECE = 1 << 16 };

static bool put_var(StWriter *w, int handle, const Exec *x, int i, PeftError *err) {
    const PeftVar *v = &x->program->var[i];
    int64_t n = var_count(v);
    const char *at = exec_value(x, i);
    bool quantised = peft_is_nf4(v->dtype);
    Nf4View view = {0};
    if (quantised) view = nf4_view(at, n, v->dtype == DT_NF4);
    float *piece = peft_alloc(PIECE, sizeof *piece, err);
    bool ok = piece != NULL;
    for (int64_t k = 0; ok && k < n; k += PIECE) {
        int64_t m = n - k < PIECE ? n - k : PIECE;
        if (quantised)
            nf4_dequant_row(&view, k, m, piece);
        else
            storage_get(at, v->dtype, (int)x->train_sym[PEFT_SYM_W], n, k, m, piece);
        ok = st_writer_put(w, handle, piece, (uint64_t)m * sizeof(float), err);
    }
    free(piece);
    return ok;
}

static bool save_tensors(const Exec *x, const char *path, ModelLayout layout, PeftError *err) {
    const PeftProgram *p = x->program;
    StWriter *w = st_writer_new(path, err);
    int *handle = peft_zalloc((size_t)p->nvar, sizeof *handle, err);
    bool ok = w && handle;
    for (int i = 0; ok && i < p->nvar; i++) {
        char name[512];
        if (!is_saved(&p->var[i], layout)) continue;
        saved_name(p, &p->var[i], layout, name, sizeof name);
        handle[i] = st_writer_add(w, name, ST_F32, p->var[i].rank, p->var[i].dim, err);
        ok = handle[i] >= 0;
    }
    ok = ok && st_writer_begin(w, err);
    for (int i = 0; ok && i < p->nvar; i++)
        if (is_saved(&p->var[i], layout)) ok = put_var(w, handle[i], x, i, err);
    free(handle);
    if (ok) return st_writer_finish(w, err);
    st_writer_abort(w);
    return false;
}

bool model_save(const Exec *x, const char *dir, const char *base, PeftError *err) {
    char path[4096];
    ModelLayout layout = model_layout(x->program);
    model_file(x->program, dir, path, sizeof path);
    return save_tensors(x, path, layout, err) && model_config_write(x->program, dir, base, err);
}
