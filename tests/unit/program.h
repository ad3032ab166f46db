/* Programs given as text, for the tests of parser and elaboration. */
#ifndef PEFTC_TEST_PROGRAM_H
#define PEFTC_TEST_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/params.h"

/* One compilation: what it was given, what it said and what came out. It must not move in memory
 * once it is open: `out` writes to it. */
typedef struct Program {
    Sources *sources;
    Diag diag;
    Ast *ast;
    Graph *g;
    ModelInfo info;
    char *said; /* all messages */
    size_t length;
    FILE *out;
} Program;

static inline Program program_new(void) {
    return (Program){.sources = sources_new()};
}

static inline void program_open(Program *p) {
    p->out = open_memstream(&p->said, &p->length);
    diag_init(&p->diag, p->sources, p->out);
    p->ast = ast_new();
}

static inline int32_t program_text(Program *p, const char *name, const char *text, size_t length) {
    PeftError err = {{0}, 0};
    int32_t file = sources_add(p->sources, name, text, length, &err);
    if (file < 0) fprintf(p->out, "%s\n", err.msg);
    return file;
}

/* Parses a text; true without messages. */
static inline bool program_parse(Program *p, const char *text) {
    program_open(p);
    int32_t file = program_text(p, "test.bert", text, strlen(text));
    bool ok = file >= 0 && ast_load(p->ast, &p->diag, file);
    fflush(p->out);
    return ok;
}

/* Elaborates a text whose `use` paths start at the repository's root. */
static inline bool program_run(Program *p, const char *text, const Settings *s) {
    program_open(p);
    int32_t file = program_text(p, "test.bert", text, strlen(text));
    if (file >= 0 && ast_load(p->ast, &p->diag, file))
        p->g = elaborate(p->ast, file, s, &p->diag, &p->info);
    fflush(p->out);
    return p->g != NULL;
}

/* Elaborates a file of the repository with --set options up to a NULL. */
static inline bool program_file(Program *p, const char *path, const char *const *set) {
    program_open(p);
    Settings s = {.set = set};
    while (set && set[s.nset]) s.nset++;
    p->g = elaborate_file(path, &s, &p->diag, &p->info);
    fflush(p->out);
    return p->g != NULL;
}

static inline void program_free(Program *p) {
    graph_free(p->g);
    ast_free(p->ast);
    sources_free(p->sources);
    fclose(p->out);
    free(p->said);
}

#define assert_said(p, text)                                                  \
    do {                                                                      \
        if (!strstr((p)->said, text))                                         \
            fail_msg("\"%s\" is not in what was said:\n%s", text, (p)->said); \
    } while (0)
#define assert_quiet(p) assert_string_equal((p)->said, "")

#endif
