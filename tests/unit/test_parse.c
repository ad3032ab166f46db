/* The parser: what the tree looks like, where lines end, spans, recovery from errors, hostile
 * texts. */
#include "program.h"

/* ---- trees ---- */

/* An expression in prefix form: (+ a (' b)). */
static void print_expr(FILE *to, const Expr *x) {
    static const char *const op[] = {
        [EX_NEG] = "neg", [EX_TRANSPOSE] = "'", [EX_ADD] = "+",   [EX_SUB] = "-",
        [EX_MUL] = "*",   [EX_DIV] = "/",       [EX_MATMUL] = "@"};
    static const char *const unit[] = {"", "%", "steps"};
    switch (x->kind) {
    case EX_NUMBER: fprintf(to, "%g%s", x->number.value, unit[x->number.unit]); return;
    case EX_NAME:
    case EX_CALL: {
        const Name *n = x->kind == EX_NAME ? &x->name : &x->call.callee;
        if (x->kind == EX_CALL) fputs("(call ", to);
        for (int i = 0; i < n->n; i++) fprintf(to, "%s%s", i ? "." : "", n->part[i].text);
        if (x->kind == EX_NAME) return;
        for (int i = 0; i < x->call.narg; i++) {
            fputc(' ', to);
            if (x->call.arg[i].name.text) fprintf(to, "%s=", x->call.arg[i].name.text);
            print_expr(to, x->call.arg[i].value);
        }
        break;
    }
    default:
        fprintf(to, "(%s ", op[x->kind]);
        print_expr(to, x->op.a);
        if (x->op.b) fputc(' ', to);
        if (x->op.b) print_expr(to, x->op.b);
    }
    fputc(')', to);
}

/* Parses "f" as the value of a config field. */
static void check_expr(const char *text, const char *expected) {
    char program[512], *found;
    size_t n;
    snprintf(program, sizeof program, "config c { f = %s }\n", text);
    Program p = program_new();
    assert_true(program_parse(&p, program));
    FILE *to = open_memstream(&found, &n);
    print_expr(to, p.ast->config[0]->field[0].value);
    fclose(to);
    assert_string_equal(found, expected);
    free(found);
    program_free(&p);
}

static void operators_bind_as_documented(void **state) {
    (void)state;
    check_expr("a + b * c", "(+ a (* b c))");
    check_expr("a - b - c", "(- (- a b) c)");
    check_expr("a * b @ c / d", "(/ (@ (* a b) c) d)");
    check_expr("-a'", "(neg (' a))");
    check_expr("-a * b", "(* (neg a) b)");
    check_expr("x @ w' + b", "(+ (@ x (' w)) b)");
    check_expr("(a + b)''", "(' (' (+ a b)))");
    check_expr("f(a, b = -1, train = g())", "(call f a b=(neg 1) train=(call g))");
    check_expr("a.b.0.weight.model", "a.b.0.weight.model");
    check_expr("a.0.1.2", "a.0.1.2");
    check_expr("10%", "0.1%");
    check_expr("100 steps", "100steps");
    check_expr("1e-4", "0.0001");
    check_expr("1.5e3", "1500");
}

static void lines_end_statements(void **state) {
    (void)state;
    check_expr("a\n  + b", "(+ a b)");
    check_expr("a +\n  b", "(+ a b)");
    check_expr("\n a", "a");
    check_expr("f(a,\n\n # a comment\n b)", "(call f a b)");
    Program p = program_new();
    assert_true(program_parse(
        &p, "block a(n)\n{\n  param w[n] = zeros\n  (x)\n  -> x\n}\n"
            "patch p(n)\n  on a(n) { (x) -> base(x) }\n"
            "model m = a(3) {\n  patch a,\n    b\n    with p(2)\n  store c\n    as nf4\n}"));
    assert_int_equal(p.ast->block[0]->nitem, 1);
    assert_non_null(p.ast->block[0]->forward);
    assert_string_equal(p.ast->patch[0]->on.text, "a");
    assert_int_equal(p.ast->model[0]->nstmt, 2);
    assert_int_equal(p.ast->model[0]->stmt[0].npath, 2);
    program_free(&p);
}

static void declarations_are_complete(void **state) {
    (void)state;
    Program p = program_new();
    assert_true(program_parse(
        &p, "block b(c, n = 2 * 3) {\n"
            "  shared frozen param v.A[n, c.in] = normal(0.02)\n"
            "  new head.0 = linear(n)\n"
            "  (x, y) {\n    a = x\n    b = y\n    return a, b\n  }\n}\n"
            "config c = d { in = 3  out = 4 * in }\n"
            "model m = b(c) {\n  freeze **, linear(*.a.{b.c,0,2..5}.**)\n"
            "  fit { lr = 1e-4  warmup = 10%  optimizer = adamw(eps = 1e-6)  clip = none }\n}\n"));
    const Block *b = p.ast->block[0];
    assert_int_equal(b->nformal, 2);
    assert_null(b->formal[0].value);
    assert_non_null(b->formal[1].value);
    assert_true(b->item[0].is_param && b->item[0].is_shared && b->item[0].is_frozen &&
                !b->item[0].is_new);
    assert_int_equal(b->item[0].rank, 2);
    assert_true(b->item[1].is_new && !b->item[1].is_param);
    assert_string_equal(b->item[1].name.part[1].text, "0");
    assert_int_equal(b->forward->nassign, 2);
    assert_int_equal(b->forward->nresult, 2);
    assert_string_equal(p.ast->config[0]->base.text, "d");
    const Stmt *s = p.ast->model[0]->stmt;
    assert_int_equal(s[0].npath, 2);
    assert_string_equal(s[0].path[1].kind.text, "linear");
    const Pattern *pattern = &s[0].path[1].pattern;
    assert_int_equal(pattern->n, 4);
    assert_int_equal(pattern->part[0].kind, PAT_ANY);
    assert_int_equal(pattern->part[2].nalt, 3);
    assert_int_equal(pattern->part[2].alt[0].n, 2);
    assert_int_equal(pattern->part[2].alt[2].part[0].high, 5);
    assert_int_equal(pattern->part[3].kind, PAT_DEEP);
    assert_int_equal(s[1].nfit, 4);
    program_free(&p);
}

static void spans_are_bytes_of_the_text(void **state) {
    (void)state;
    const char *text = "# \xe7\xb7\x9a\nblock a(n) {\n\t(x) -> f(x + 1)\n}\n";
    Program p = program_new();
    assert_true(program_parse(&p, text));
    const Expr *call = p.ast->block[0]->forward->result[0], *sum = call->call.arg[0].value;
    assert_memory_equal(text + call->span.begin, "f(x + 1)", 8);
    assert_int_equal(call->span.end - call->span.begin, 8);
    assert_memory_equal(text + sum->span.begin, "x + 1", 5);
    assert_int_equal(text[sum->caret], '+');
    int line, column;
    source_locate(&p.sources->file[0], sum->span.begin, &line, &column);
    assert_int_equal(line, 3);
    assert_int_equal(column, 8 + 10); /* the tab goes to column 9 */
    program_free(&p);
}

/* ---- errors ---- */

static int count(const char *text, const char *word) {
    int n = 0;
    for (const char *at = strstr(text, word); at; at = strstr(at + 1, word)) n++;
    return n;
}

static void check_errors(const char *text, int errors) {
    Program p = program_new();
    assert_false(program_parse(&p, text));
    if (count(p.said, "error: ") != errors) fail_msg("%d errors expected:\n%s", errors, p.said);
    assert_int_equal(p.diag.nerror, errors);
    program_free(&p);
}

static void one_mistake_is_one_message(void **state) {
    (void)state;
    check_errors("block a(x { (y) -> y }\nblock b(n) { (x) -> x }\n", 1);
    check_errors("block a(n) {\n  b = = 2 {\n  x = 3\n  (y) { z = 1 }\n }\n  (x) -> x\n}\n", 1);
    check_errors("block a(n) {\n  (x) {\n    y = 1 1 {\n }\n    return y\n  }\n}\n", 1);
    check_errors("}\n}\n", 2);
    check_errors("model m = a(3) {\n  freeze **.\n  train a\n  store a as\n}\nmodel n = b(\n", 3);
    check_errors("config c { a = 1\n b 2\n c = 3 }\n", 1);
    check_errors("config c {", 1);
    check_errors("block", 1);
    check_errors("model m = a(3) { fit { a = } patch b with\n }", 2);
}

static void hostile_texts_end_in_messages(void **state) {
    (void)state;
    enum { N = 100000 };
    static const char *const unit[] = {"(",   "{", "-",  "'",   "a.",          "f(",
                                       "{a,", "[", "\"", "**.", "block a(n) {"};
    static char text[16 * N];
    for (size_t k = 0; k < sizeof unit / sizeof *unit; k++) {
        size_t n = (size_t)sprintf(text, "config c { f = ");
        if (k > 5) n = (size_t)sprintf(text, "model m = a { freeze ");
        for (int i = 0; i < N; i++) n += (size_t)sprintf(text + n, "%s", unit[k]);
        Program p = program_new();
        assert_false(program_parse(&p, text));
        assert_true(p.diag.nerror > 0);
        program_free(&p);
    }
}

static void texts_with_nul_or_too_long_are_refused(void **state) {
    (void)state;
    Program p = program_new();
    program_open(&p);
    assert_int_equal(program_text(&p, "nul.bert", "a\0b", 3), -1);
    char *big = malloc(SOURCE_MAX_BYTES + 1);
    memset(big, ' ', SOURCE_MAX_BYTES + 1);
    assert_int_equal(program_text(&p, "big.bert", big, SOURCE_MAX_BYTES + 1), -1);
    assert_int_equal(program_text(&p, "big.bert", big, SOURCE_MAX_BYTES), 0);
    fflush(p.out);
    assert_said(&p, "nul.bert: byte 1 is NUL");
    assert_said(&p, "big.bert: 4194305 bytes");
    free(big);
    program_free(&p);
}

/* ---- use ---- */

static void files_are_used_once(void **state) {
    (void)state;
    Program p = program_new();
    program_open(&p);
    program_text(&p, "lib/c.bert", "block c(n) { (x) -> x }", 23);
    program_text(&p, "lib/b.bert", "use \"c.bert\"\nuse \"../lib/./c.bert\"", 34);
    const char *text = "use \"lib/b.bert\"\nuse \"lib/c.bert\"\nuse \"x/../lib/b.bert\"\n";
    int32_t file = program_text(&p, "a.bert", text, strlen(text));
    assert_true(ast_load(p.ast, &p.diag, file));
    assert_int_equal(p.ast->nblock, 1);
    program_free(&p);
}

static void use_has_a_depth(void **state) {
    (void)state;
    Program p = program_new();
    program_open(&p);
    char name[32], text[32];
    for (int i = 0; i < 80; i++) {
        snprintf(name, sizeof name, "f%d.bert", i);
        int n = snprintf(text, sizeof text, "use \"f%d.bert\"\n", i + 1);
        program_text(&p, name, text, (size_t)n);
    }
    assert_false(ast_load(p.ast, &p.diag, 0));
    fflush(p.out);
    assert_said(&p, "f64.bert:1:5: error: files use each other more than 64 deep");
    assert_int_equal(p.diag.nerror, 1);
    program_free(&p);
}

static void paths_are_folded(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"models/a.bert", "lib/b.bert", "models/lib/b.bert"},
        {"models/a.bert", "../b.bert", "b.bert"},
        {"a.bert", "../../b.bert", "../../b.bert"},
        {"models/lib/a.bert", "./x/.././b.bert", "models/lib/b.bert"},
        {"/x/a.bert", "../../b.bert", "/../b.bert"},
        {"models/a.bert", "/etc//b.bert", "/etc/b.bert"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Program p = program_new();
        program_open(&p);
        int32_t file = program_text(&p, cases[i][0], "", 0);
        assert_string_equal(sources_resolve(p.sources, file, cases[i][1]), cases[i][2]);
        program_free(&p);
    }
}

/* ---- did you mean ---- */

static const char *nearest(const char *wrong, const char *candidate) {
    Nearest n = nearest_to(wrong);
    nearest_offer(&n, candidate);
    return n.best;
}

static void suggestions_are_near(void **state) {
    (void)state;
    assert_non_null(nearest("hiden", "hidden"));
    assert_non_null(nearest("loar", "lora"));
    assert_non_null(nearest("quer", "query"));
    assert_non_null(nearest("layernorm", "LayerNorm"));
    assert_non_null(nearest("atention", "attention"));
    assert_null(nearest("query", "query")); /* it is not wrong */
    assert_null(nearest("key", "value"));
    assert_null(nearest("a", "b"));
    assert_null(nearest("word", "ward_x"));
    assert_null(nearest("", "x"));
    char longest[300];
    memset(longest, 'a', 299);
    longest[299] = '\0';
    assert_null(nearest(longest, "a"));
    assert_null(nearest("a", longest));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operators_bind_as_documented),
        cmocka_unit_test(lines_end_statements),
        cmocka_unit_test(declarations_are_complete),
        cmocka_unit_test(spans_are_bytes_of_the_text),
        cmocka_unit_test(one_mistake_is_one_message),
        cmocka_unit_test(hostile_texts_end_in_messages),
        cmocka_unit_test(texts_with_nul_or_too_long_are_refused),
        cmocka_unit_test(files_are_used_once),
        cmocka_unit_test(use_has_a_depth),
        cmocka_unit_test(paths_are_folded),
        cmocka_unit_test(suggestions_are_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
