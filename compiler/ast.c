/* Loading a program: its file and, through `use`, all files it needs, each once. Also the look-up
 * of declarations by name.
 *
 * Files are told apart by what they are on disk, not by how a program spells their path. A file
 * that is being loaded may not be used again before it is complete: that is a circle.
 */
#include "ast.h"

#include <string.h>

Ast *ast_new(void) {
    Pool *p = pool_new();
    Ast *a = pool_alloc(p, sizeof *a);
    a->pool = p;
    return a;
}

void ast_free(Ast *a) {
    if (a) pool_free(a->pool);
}

/* ---- look-up ---- */

Block *ast_find_block(const Ast *a, const char *name) {
    for (int i = 0; i < a->nblock; i++)
        if (strcmp(a->block[i]->name.text, name) == 0) return a->block[i];
    return NULL;
}

Block *ast_find_patch(const Ast *a, const char *name) {
    for (int i = 0; i < a->npatch; i++)
        if (strcmp(a->patch[i]->name.text, name) == 0) return a->patch[i];
    return NULL;
}

Config *ast_find_config(const Ast *a, const char *name) {
    for (int i = 0; i < a->nconfig; i++)
        if (strcmp(a->config[i]->name.text, name) == 0) return a->config[i];
    return NULL;
}

Model *ast_find_model(const Ast *a, const char *name) {
    for (int i = 0; i < a->nmodel; i++)
        if (strcmp(a->model[i]->name.text, name) == 0) return a->model[i];
    return NULL;
}

char *name_str(Pool *p, const Name *n) {
    size_t size = 1;
    for (int i = 0; i < n->n; i++) size += strlen(n->part[i].text) + 1;
    char *s = pool_alloc(p, size), *at = s;
    for (int i = 0; i < n->n; i++) {
        if (i) *at++ = '.';
        size_t length = strlen(n->part[i].text);
        memcpy(at, n->part[i].text, length);
        at += length;
    }
    return s;
}

/* ---- use ---- */

#define MAX_USE_DEPTH 64

/* A file being loaded, and the one that uses it. */
typedef struct Loading {
    int32_t file;
    const struct Loading *by;
    int depth;
} Loading;

typedef struct Loader {
    Ast *ast;
    Diag *diag;
    bool *done; /* by file */
    int cap;
} Loader;

static bool load(Loader *l, Loading at);

static bool mark_done(Loader *l, int32_t file) {
    l->done = pool_grow(l->ast->pool, l->done, (size_t)l->cap, (size_t)file + 1, sizeof *l->done,
                        &l->cap);
    bool before = l->done[file];
    l->done[file] = true;
    return before;
}

/* "a.bert uses b.bert uses a.bert" ends where it began: an error at the line that closes the
 * circle. */
static bool is_circle(Loader *l, const Loading *by, int32_t file, Span at) {
    for (const Loading *u = by; u; u = u->by) {
        if (u->file != file) continue;
        diag_error(l->diag, at, "`%s` uses itself", l->diag->sources->file[file].path);
        return true;
    }
    return false;
}

static bool follow(Loader *l, const Loading *by, const Use *use) {
    PeftError err = {{0}, 0};
    if (!*use->path) return diag_error(l->diag, use->span, "`use` needs the path of a file");
    if (by->depth >= MAX_USE_DEPTH)
        return diag_error(l->diag, use->span, "files use each other more than %d deep",
                          MAX_USE_DEPTH);
    const char *path = sources_resolve(l->diag->sources, by->file, use->path);
    int32_t file = sources_open(l->diag->sources, path, &err);
    if (file < 0) return diag_error(l->diag, use->span, "cannot use %s", err.msg);
    if (is_circle(l, by, file, use->span)) return false;
    return load(l, (Loading){file, by, by->depth + 1});
}

static bool load(Loader *l, Loading at) {
    if (mark_done(l, at.file)) return true;
    Use *use;
    int nuse;
    bool ok = ast_parse(l->ast, l->diag, at.file, &use, &nuse);
    for (int i = 0; i < nuse; i++) ok &= follow(l, &at, &use[i]);
    return ok;
}

bool ast_load(Ast *a, Diag *d, int32_t file) {
    Loader l = {a, d, NULL, 0};
    return load(&l, (Loading){file, NULL, 0});
}
