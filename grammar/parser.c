/* Between scanner and grammar: where lines end, how a syntax error is skipped, and the functions
 * that the grammar's actions build the tree with.
 *
 * A NEWLINE token is given between two tokens on different lines unless parentheses are open, the
 * first awaits more (`=`, an operator, `{`) or the second goes on with the line (`->`, an
 * operator). After a syntax error whole groups in braces are skipped, so that the line end or brace
 * that ends the skipping is at the level of the mistake and one mistake gives one message.
 */
#include "peft.tab.h"

#include <stdlib.h>
#include <string.h>

int peft_scan(PEFT_STYPE *value, Span *at, void *scanner);
int peft_lex(PEFT_STYPE *value, Span *at, Parser *px);

/* ---- lines ---- */

static bool is_keyword(int token) {
    return token >= USE && token <= FIT;
}

static bool is_one_of(const char *signs, int token) {
    return token != END && token < 256 && strchr(signs, token);
}

/* A line that begins like this goes on with the one before. */
static bool continues_line(int token) {
    return token == ARROW || token == ON || token == WITH || token == AS ||
           is_one_of("+-*/@{", token);
}

/* After this more has to follow. (After `*` too, unless it ends a path: the grammar knows.) */
static bool awaits_more(int token) {
    return token == PROGRAM || token == SETTING || token == NEWLINE || token == ARROW ||
           token == RETURN || is_one_of("+-/@={,", token);
}

/* Whether the line break before `token` ends a statement. */
static bool ends_line(Parser *px, int token) {
    if (awaits_more(px->last) || continues_line(token)) return false;
    if (px->parens) { /* an unclosed one: no line inside begins like this */
        if (!is_keyword(token) && token != '}' && token != END) return false;
        px->parens = 0;
    }
    return true;
}

static int scan(PEFT_STYPE *value, Span *at, Parser *px) {
    if (px->held.token >= 0) {
        int token = px->held.token;
        px->held.token = -1;
        *at = px->held.at;
        if (token == NUMBER)
            value->number = px->held.number;
        else
            value->ident = px->held.ident;
        return token;
    }
    px->newline = -1;
    int token = peft_scan(value, at, px->scanner);
    int32_t end = px->newline >= 0 ? px->newline : px->offset;
    if (token == END) *at = (Span){px->file, end, end};
    if (px->newline < 0 || !ends_line(px, token)) return token;
    px->held.token = token;
    px->held.at = *at;
    if (token == NUMBER)
        px->held.number = value->number;
    else if (token == NAME || token == INDEX || token == STRING)
        px->held.ident = value->ident;
    *at = (Span){px->file, end, end};
    return NEWLINE;
}

static void count_brackets(Parser *px, int token, Span at) {
    if ((token == '(' || token == '[') && px->parens++ == 0) px->open = at;
    if ((token == ')' || token == ']') && px->parens) px->parens--;
    if (token == '{') px->braces++;
    if (token == '}' && px->braces) px->braces--;
}

int peft_lex(PEFT_STYPE *value, Span *at, Parser *px) {
    if (px->first) {
        px->last = px->first;
        px->first = 0;
        *at = (Span){px->file, 0, 0};
        return px->last;
    }
    for (;;) {
        int token = scan(value, at, px);
        count_brackets(px, token, *at);
        px->last = token;
        if (px->skip < 0 || token == END) return token;
        if (px->braces > px->skip || (token == '}' && px->braces == px->skip)) continue;
        if (token == NEWLINE || token == '}') px->skip = -1;
        return token;
    }
}

/* ---- messages ---- */

static bool on_one_line(const char *text, int32_t from, int32_t to) {
    return !memchr(text + from, '\n', (size_t)(to - from));
}

void parser_unexpected(Parser *px, Span at, const char *token, const char *expected) {
    const char *text = px->diag->sources->file[px->file].text;
    int length = at.end - at.begin;
    bool shown = px->last == NAME || px->last == NUMBER || px->last == STRING || px->last == INDEX;
    if (shown)
        diag_error(px->diag, at, "unexpected `%.*s`%s", length, text + at.begin, expected);
    else
        diag_error(px->diag, at, "unexpected %s%s%s", is_keyword(px->last) ? "keyword " : "", token,
                   expected);
    if (px->parens && !on_one_line(text, px->open.begin, at.begin))
        diag_note(px->diag, px->open, "this is still open");
    bool ended = px->last == NEWLINE || px->last == '}' || px->last == END;
    px->skip = ended ? -1 : px->braces - (px->last == '{');
}

void parser_stray(Parser *px, Span at) {
    unsigned char c = (unsigned char)px->diag->sources->file[px->file].text[at.begin];
    if (c < 0x20 || c >= 0x7f)
        diag_error(px->diag, at, "unexpected byte 0x%02x", c);
    else
        diag_error(px->diag, at, "unexpected character `%c`", c);
}

void parser_wide_word(Parser *px, Span at) {
    const char *text = px->diag->sources->file[px->file].text;
    diag_error(px->diag, at, "`%.*s` is no name: names have letters a to z, digits and _",
               at.end - at.begin, text + at.begin);
}

/* ---- lists ---- */

void list_push(List *l, const void *item, size_t size) {
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 4;
        l->data = realloc(l->data, (size_t)l->cap * size);
        if (!l->data) abort(); /* as the pool does: a program of 4 MiB fits any machine */
    }
    memcpy((char *)l->data + (size_t)l->n++ * size, item, size);
}

void *list_take(Pool *p, List *l, size_t size) {
    void *array = pool_alloc(p, (size_t)l->n * size + 1);
    if (l->n) memcpy(array, l->data, (size_t)l->n * size);
    free(l->data);
    *l = (List){0};
    return array;
}

/* ---- words ---- */

Span span_join(Span a, Span b) {
    return (Span){a.file, a.begin, b.end};
}

static Ident ident(Parser *px, Span at, int quotes) {
    const char *text = px->diag->sources->file[px->file].text + at.begin + quotes;
    return (Ident){pool_strndup(px->ast->pool, text, (size_t)(at.end - at.begin - 2 * quotes)), at};
}

Ident parser_word(Parser *px, Span at) {
    return ident(px, at, 0);
}

Ident parser_string(Parser *px, Span at) {
    return ident(px, at, 1);
}

/* The scanner has checked the form: digits, then an optional unit. */
Number parser_number(Parser *px, Span at) {
    const char *text = px->diag->sources->file[px->file].text + at.begin;
    char *end;
    Number n = {strtod(text, &end), UNIT_NONE};
    if (n.value > 1e300) {
        diag_error(px->diag, at, "this number is too large");
        n.value = 1;
    }
    if (*end == '%') {
        n.value /= 100;
        n.unit = UNIT_PERCENT;
    } else if (text + (at.end - at.begin) > end) {
        n.unit = UNIT_STEPS;
    }
    return n;
}

Name name_one(Parser *px, Ident word) {
    Name n = {.part = pool_alloc(px->ast->pool, sizeof word), .n = 1, .span = word.span};
    n.part[0] = word;
    return n;
}

Name name_append(Parser *px, Name n, Ident word) {
    if ((n.n & (n.n - 1)) == 0) { /* full at powers of two */
        Ident *part = pool_alloc(px->ast->pool, 2 * (size_t)n.n * sizeof *part);
        memcpy(part, n.part, (size_t)n.n * sizeof *part);
        n.part = part;
    }
    n.part[n.n++] = word;
    n.span = span_join(n.span, word.span);
    return n;
}

/* ---- expressions ---- */

static Expr *expr(Parser *px, ExprKind kind, Span at, int depth) {
    Expr *e = pool_alloc(px->ast->pool, sizeof *e);
    *e = (Expr){.kind = kind, .span = at, .caret = at.begin, .depth = depth + 1};
    if (e->depth > EXPR_MAX_DEPTH) {
        diag_error(px->diag, at, "this expression is nested more than %d deep", EXPR_MAX_DEPTH);
        e->depth = 0; /* once is enough */
    }
    return e;
}

Expr *expr_number(Parser *px, Number n, Span at) {
    Expr *e = expr(px, EX_NUMBER, at, 0);
    e->number = n;
    return e;
}

Expr *expr_name(Parser *px, Name n) {
    Expr *e = expr(px, EX_NAME, n.span, 0);
    e->name = n;
    return e;
}

Expr *expr_call(Parser *px, Name callee, List *args, Span at) {
    int n = args->n, depth = 0;
    Arg *arg = list_take(px->ast->pool, args, sizeof *arg);
    for (int i = 0; i < n; i++)
        if (arg[i].value->depth > depth) depth = arg[i].value->depth;
    Expr *e = expr(px, EX_CALL, at, depth);
    e->call.callee = callee;
    e->call.arg = arg;
    e->call.narg = n;
    return e;
}

Expr *expr_op(Parser *px, ExprKind kind, Expr *a, Expr *b, Span at, Span caret) {
    Expr *e = expr(px, kind, at, b && b->depth > a->depth ? b->depth : a->depth);
    e->caret = caret.begin;
    e->op.a = a;
    e->op.b = b;
    return e;
}

/* ---- blocks ---- */

Forward *forward_new(Parser *px, List *inputs, List *assigns, List *results, Span at) {
    Pool *p = px->ast->pool;
    Forward *f = pool_alloc(p, sizeof *f);
    *f = (Forward){.span = at, .ninput = inputs->n, .nassign = assigns->n, .nresult = results->n};
    f->input = list_take(p, inputs, sizeof *f->input);
    f->assign = list_take(p, assigns, sizeof *f->assign);
    f->result = list_take(p, results, sizeof *f->result);
    for (int i = 0; i < f->ninput; i++)
        for (int k = 0; k < i; k++)
            if (strcmp(f->input[i].text, f->input[k].text) == 0)
                diag_error(px->diag, f->input[i].span, "`%s` is already an input",
                           f->input[i].text);
    return f;
}

Part part_param(Parser *px, Flags flags, Name name, List *dims, Expr *value, Span at) {
    Item it = {.name = name, .is_param = true, .is_new = flags.is_new, .rank = dims->n};
    it.is_shared = flags.is_shared;
    it.is_frozen = flags.is_frozen;
    it.dim = list_take(px->ast->pool, dims, sizeof *it.dim);
    it.value = value;
    it.span = span_join(flags.span.file >= 0 ? flags.span : at, value->span);
    if (it.rank > PEFT_MAX_RANK)
        diag_error(px->diag, it.dim[PEFT_MAX_RANK]->span, "a parameter has at most %d dimensions",
                   PEFT_MAX_RANK);
    return (Part){it, NULL};
}

Part part_value(Parser *px, Flags flags, Name name, Expr *value) {
    Item it = {.name = name, .is_new = flags.is_new, .value = value};
    it.span = span_join(flags.span.file >= 0 ? flags.span : name.span, value->span);
    if (flags.is_shared || flags.is_frozen)
        diag_error(px->diag, flags.span, "only a `param` can be shared or frozen");
    return (Part){it, NULL};
}

void body_add(Parser *px, Body *b, const Part *part) {
    if (!part->forward) {
        list_push(&b->item, &part->item, sizeof part->item);
    } else if (b->forward) {
        diag_error(px->diag, part->forward->span, "a block computes its result in one place");
        diag_note(px->diag, b->forward->span, "the first one is here");
    } else {
        b->forward = part->forward;
    }
}

/* ---- paths ---- */

Pat pat_name(Ident word) {
    return (Pat){.kind = PAT_NAME, .name = word};
}

Pat pat_range(Parser *px, Number low, Number high, Span at) {
    bool whole = low.value == (int64_t)low.value && high.value == (int64_t)high.value;
    if (!whole || low.unit || high.unit || low.value > high.value)
        diag_error(px->diag, at, "a range goes from a whole number to one that is not smaller");
    return (Pat){.kind = PAT_RANGE, .low = (int64_t)low.value, .high = (int64_t)high.value};
}

Pat pat_alt(Parser *px, List *alts) {
    Pat p = {.kind = PAT_ALT, .nalt = alts->n};
    p.alt = list_take(px->ast->pool, alts, sizeof *p.alt);
    return p;
}

Pattern pattern_one(Parser *px, Pat part, Span at) {
    Pattern p = {.part = pool_alloc(px->ast->pool, sizeof part), .n = 1, .span = at};
    p.part[0] = part;
    return p;
}

Pattern pattern_append(Parser *px, Pattern p, Pat part, Span at) {
    if ((p.n & (p.n - 1)) == 0) {
        Pat *grown = pool_alloc(px->ast->pool, 2 * (size_t)p.n * sizeof *grown);
        memcpy(grown, p.part, (size_t)p.n * sizeof *grown);
        p.part = grown;
    }
    p.part[p.n++] = part;
    p.span = at;
    return p;
}

/* ---- statements and declarations ---- */

Setting *setting_new(Parser *px, Name key, Expr *value) {
    Setting *s = pool_alloc(px->ast->pool, sizeof *s);
    *s = (Setting){key, value};
    return s;
}

Stmt stmt_new(Parser *px, StmtKind kind, List *paths, Expr *with, Span at) {
    Stmt s = {.kind = kind, .span = at, .npath = paths->n, .with = with};
    s.path = list_take(px->ast->pool, paths, sizeof *s.path);
    return s;
}

Stmt stmt_fit(Parser *px, List *fields, Span at) {
    Stmt s = {.kind = ST_FIT, .span = at, .nfit = fields->n};
    s.fit = list_take(px->ast->pool, fields, sizeof *s.fit);
    return s;
}

void add_use(Parser *px, Ident string) {
    if (!string.text) return;
    Use u = {string.text, string.span};
    list_push(&px->use, &u, sizeof u);
}

/* False when there is one of this name; reported at both places. */
static bool is_first(Parser *px, const char *what, Ident name, const Ident *earlier) {
    if (!earlier) return true;
    diag_error(px->diag, name.span, "there is already a %s `%s`", what, name.text);
    diag_note(px->diag, earlier->span, "it is declared here");
    return false;
}

#define APPEND(ast, list, n, cap, decl)                                                        \
    ((ast)->list = pool_grow((ast)->pool, (ast)->list, (size_t)(ast)->n, (size_t)(ast)->n + 1, \
                             sizeof *(ast)->list, &(ast)->cap),                                \
     (ast)->list[(ast)->n++] = (decl))

static Block *block_new(Parser *px, Ident name, List *formals, Body *body) {
    Pool *p = px->ast->pool;
    Block *b = pool_alloc(p, sizeof *b);
    *b = (Block){.name = name, .nformal = formals->n, .nitem = body->item.n};
    b->formal = list_take(p, formals, sizeof *b->formal);
    b->item = list_take(p, &body->item, sizeof *b->item);
    b->forward = body->forward;
    for (int i = 0; i < b->nformal; i++) {
        Ident f = b->formal[i].name;
        for (int k = 0; k < i; k++)
            if (strcmp(f.text, b->formal[k].name.text) == 0)
                diag_error(px->diag, f.span, "`%s` is already an argument", f.text);
    }
    return b;
}

void add_block(Parser *px, Ident name, List *formals, Body *body) {
    Block *b = block_new(px, name, formals, body);
    Block *other = ast_find_block(px->ast, name.text);
    if (is_first(px, "block", name, other ? &other->name : NULL))
        APPEND(px->ast, block, nblock, cap_block, b);
}

void add_patch(Parser *px, Ident name, List *formals, Ident on, List *on_formals, Body *body) {
    Block *b = block_new(px, name, formals, body);
    b->on = on;
    b->non = on_formals->n;
    b->on_formal = list_take(px->ast->pool, on_formals, sizeof *b->on_formal);
    Block *other = ast_find_patch(px->ast, name.text);
    if (is_first(px, "patch", name, other ? &other->name : NULL))
        APPEND(px->ast, patch, npatch, cap_patch, b);
}

void add_config(Parser *px, Ident name, Ident base, List *fields) {
    Config *c = pool_alloc(px->ast->pool, sizeof *c);
    *c = (Config){.name = name, .base = base, .nfield = fields->n};
    c->field = list_take(px->ast->pool, fields, sizeof *c->field);
    Config *other = ast_find_config(px->ast, name.text);
    if (is_first(px, "config", name, other ? &other->name : NULL))
        APPEND(px->ast, config, nconfig, cap_config, c);
}

void add_model(Parser *px, Ident name, Expr *of, List *stmts) {
    Model *m = pool_alloc(px->ast->pool, sizeof *m);
    *m = (Model){.name = name, .of = of, .nstmt = stmts->n};
    m->stmt = list_take(px->ast->pool, stmts, sizeof *m->stmt);
    Model *other = ast_find_model(px->ast, name.text);
    if (is_first(px, "model", name, other ? &other->name : NULL))
        APPEND(px->ast, model, nmodel, cap_model, m);
}

/* ---- one file ---- */

static Parser parser(Ast *a, Diag *d, int32_t file, int first) {
    Parser px = {.ast = a, .diag = d, .file = file, .first = first, .skip = -1, .newline = -1};
    px.held.token = -1;
    return px;
}

static bool parse(Parser *px) {
    const Source *f = &px->diag->sources->file[px->file];
    int before = px->diag->nerror;
    parser_open(px, f->text, f->length);
    bool ok = peft_parse(px) == 0;
    parser_close(px);
    return ok && px->diag->nerror == before;
}

bool ast_parse(Ast *a, Diag *d, int32_t file, Use **use, int *nuse) {
    Parser px = parser(a, d, file, PROGRAM);
    bool ok = parse(&px);
    *nuse = px.use.n;
    *use = list_take(a->pool, &px.use, sizeof **use);
    return ok;
}

Setting *ast_parse_setting(Ast *a, Diag *d, int32_t file) {
    Parser px = parser(a, d, file, SETTING);
    return parse(&px) ? px.setting : NULL;
}
