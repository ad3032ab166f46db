/* Parser and elaboration on any text: a message or a sound graph, never both, never neither. Lines
 * "#set KEY=VALUE" at the start of the input are --set options. The libraries of models/lib can be
 * used; no other file is opened. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/params.h"
#include "compiler/verify.h"

enum { MAX_LIBS = 16, MAX_SETS = 4 };

static const char *const lib_path[MAX_LIBS] = {
    "lib/bert.bert", "lib/lora.bert",    "lib/rslora.bert",   "lib/dora.bert",    "lib/ia3.bert",
    "lib/vera.bert", "lib/houlsby.bert", "lib/pfeiffer.bert", "lib/parallel.bert"};
static char *lib_text[MAX_LIBS];
static FILE *nowhere;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *read_text(const char *path) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = fopen(path, "rb");
    if (!f || getdelim(&text, &size, '\0', f) < 0) {
        fprintf(stderr, "%s: run this from the root of the repository\n", path);
        exit(1);
    }
    fclose(f);
    return text;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    nowhere = fopen("/dev/null", "w");
    if (!nowhere) exit(1);
    for (int i = 0; lib_path[i]; i++) {
        char path[64];
        snprintf(path, sizeof path, "models/%s", lib_path[i]);
        lib_text[i] = read_text(path);
    }
    return 0;
}

/* Takes the "#set " lines off the front of the text; the options point into it. */
static char *take_settings(char *text, const char **set, int *nset) {
    *nset = 0;
    while (*nset < MAX_SETS && strncmp(text, "#set ", 5) == 0) {
        set[(*nset)++] = text + 5;
        text += strcspn(text, "\n");
        if (*text) *text++ = '\0';
    }
    return text;
}

static void check(Graph *g, const ModelInfo *info, const Diag *d) {
    if (!g != (d->nerror > 0)) abort();
    if (!g) return;
    verify_graph(g, "elaboration");
    params_print(nowhere, g, info, false);
    params_print(nowhere, g, info, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *copy = calloc(1, size + 1);
    if (!copy) abort();
    memcpy(copy, data, size);
    const char *set[MAX_SETS];
    Settings settings = {.set = set};
    char *text = take_settings(copy, set, &settings.nset);

    Sources *sources = sources_new();
    sources->memory_only = true;
    Diag d;
    diag_init(&d, sources, nowhere);
    PeftError err = {{0}, 0};
    int32_t file = sources_add(sources, "fuzz.bert", text, size - (size_t)(text - copy), &err);
    for (int i = 0; lib_path[i]; i++)
        sources_add(sources, lib_path[i], lib_text[i], strlen(lib_text[i]), &err);
    Ast *ast = ast_new();
    if (file == 0) {
        bool parsed = ast_load(ast, &d, file);
        if (parsed == (d.nerror > 0)) abort();
        ModelInfo info;
        Graph *g = parsed ? elaborate(ast, file, &settings, &d, &info) : NULL;
        check(g, &info, &d);
        graph_free(g);
    }
    ast_free(ast);
    sources_free(sources);
    free(copy);
    return 0;
}
