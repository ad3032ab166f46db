/* Every example of docs/language.md. A block "```bert run" has to elaborate without a message (one
 * without a model, to parse), a block "```bert error" has to fail; a "```text" block that follows
 * one is compared with what the compiler says: the parameter report, or the messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compiler/params.h"

typedef struct Example {
    char name[48];
    const char *program, *expected; /* expected NULL: nothing follows it */
    size_t length, expected_length;
    bool fails;
} Example;

enum { MAX_EXAMPLES = 64 };

static Example example[MAX_EXAMPLES];
static struct CMUnitTest test[MAX_EXAMPLES];

/* ---- what the compiler says ---- */

typedef struct Said {
    char *text;
    size_t length;
    bool ok;
} Said;

static Graph *compile(const Example *x, Diag *d, ModelInfo *info, bool *parsed) {
    PeftError err = {{0}, 0};
    int32_t file = sources_add(d->sources, "example.bert", x->program, x->length, &err);
    assert_true(file >= 0);
    Ast *ast = ast_new();
    *parsed = ast_load(ast, d, file);
    Graph *g = *parsed && ast->nmodel ? elaborate(ast, file, &(Settings){0}, d, info) : NULL;
    *parsed &= ast->nmodel == 0;
    ast_free(ast);
    return g;
}

static Said say(const Example *x) {
    Said said = {NULL, 0, false};
    FILE *out = open_memstream(&said.text, &said.length);
    Sources *sources = sources_new();
    Diag d;
    ModelInfo info;
    diag_init(&d, sources, out);
    bool only_parsed;
    Graph *g = compile(x, &d, &info, &only_parsed);
    said.ok = d.nerror == 0 && (g || only_parsed);
    if (g && x->expected) params_print(out, g, &info, false);
    graph_free(g);
    sources_free(sources);
    fclose(out);
    return said;
}

static void check_example(void **state) {
    const Example *x = *state;
    Said said = say(x);
    if (said.ok == x->fails) print_error("%s", said.text);
    assert_int_equal(said.ok, !x->fails);
    if (!x->fails && !x->expected) assert_string_equal(said.text, "");
    if (x->expected) {
        char *expected = strndup(x->expected, x->expected_length);
        assert_string_equal(said.text, expected);
        free(expected);
    }
    free(said.text);
}

/* ---- reading the page ---- */

static char *read_page(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *page = NULL;
    size_t size = 0;
    if (getdelim(&page, &size, '\0', f) < 0) page = NULL;
    fclose(f);
    return page;
}

static int line_number(const char *page, const char *at) {
    int n = 1;
    for (; page < at; page++) n += *page == '\n';
    return n;
}

/* Whether a text block at `at` is what the example that ended at `end` says: nothing, or one line
 * that ends in a colon, stands between. */
static bool follows(const char *end, const char *at) {
    if (at - end <= 4) return true;
    return at[-3] == ':' && at[-2] == '\n' && !memchr(end + 5, '\n', (size_t)(at - 3 - end - 5));
}

static int collect(const char *page) {
    int n = 0;
    const char *last_end = NULL;
    for (const char *at = strstr(page, "```"); at; at = strstr(at, "```")) {
        const char *kind = at + 3, *body = strchr(kind, '\n') + 1, *end = strstr(body, "\n```");
        if (!end) return -1;
        bool run = strncmp(kind, "bert run\n", 9) == 0,
             fail = strncmp(kind, "bert error\n", 11) == 0;
        if (run || fail) {
            if (n == MAX_EXAMPLES) return -1;
            example[n] =
                (Example){.program = body, .length = (size_t)(end + 1 - body), .fails = fail};
            snprintf(example[n].name, sizeof example[n].name, "example_at_line_%d",
                     line_number(page, at));
            n++;
        } else if (strncmp(kind, "bert", 4) == 0) {
            return -1; /* an example that no test runs */
        } else if (n && follows(last_end, at)) {
            example[n - 1].expected = body;
            example[n - 1].expected_length = (size_t)(end + 1 - body);
        }
        last_end = end + 1;
        at = end + 4;
    }
    return n;
}

int main(void) {
    char *page = read_page("docs/language.md");
    int n = page ? collect(page) : -1;
    if (n <= 0 || chdir("models") != 0) {
        fprintf(
            stderr,
            "docs/language.md or models/ cannot be read, or the page has an untested example\n");
        return 1;
    }
    for (int i = 0; i < n; i++)
        test[i] = (struct CMUnitTest){example[i].name, check_example, NULL, NULL, &example[i]};
    int failed = _cmocka_run_group_tests("language", test, (size_t)n, NULL, NULL);
    free(page);
    return failed;
}
