/* What scanner, grammar and the tree builders share while one file is parsed. */
#ifndef PEFTC_PARSER_H
#define PEFTC_PARSER_H

#include "../compiler/ast.h"

/* An array under construction, in malloc memory until list_take moves it to the tree. */
typedef struct List {
    void *data;
    int n, cap;
} List;

typedef struct Flags {
    bool is_new, is_shared, is_frozen;
    Span span; /* file -1: no flag */
} Flags;

typedef struct Part { /* one line of a block: an item, or its forward function */
    Item item;
    Forward *forward;
} Part;

typedef struct Body { /* of a block or a patch */
    List item;
    Forward *forward;
} Body;

typedef struct Parser {
    Ast *ast;
    Diag *diag;
    int32_t file;
    int first;       /* pseudo token that selects what is parsed, or 0 once it is given */
    void *scanner;   /* flex state */
    int32_t offset;  /* bytes scanned */
    int32_t newline; /* offset of the first line end since the last token, or -1 */
    int parens;      /* open parentheses and brackets: lines do not end inside */
    Span open;       /* the outermost of them */
    int braces;
    int last;     /* token given last */
    int skip;     /* after a syntax error: brace depth at which skipping ends, or -1 */
    struct Held { /* the token after a NEWLINE that was put before it */
        int token;
        Span at;
        Ident ident;
        Number number;
    } held;
    List use;
    Setting *setting;
} Parser;

void list_push(List *l, const void *item, size_t size);
void *list_take(Pool *p, List *l, size_t size);

/* ---- the scanner (peft.l) ---- */

void parser_open(Parser *px, const char *text, int32_t length);
void parser_close(Parser *px);

/* ---- messages (parser.c) ---- */

/* A token that does not fit; `expected` is ", expected A or B", or "". */
void parser_unexpected(Parser *px, Span at, const char *token, const char *expected);
/* A byte that begins no token; a word with characters that names do not have. */
void parser_stray(Parser *px, Span at);
void parser_wide_word(Parser *px, Span at);

/* ---- tree builders (parser.c) ---- */

Span span_join(Span a, Span b);
/* A part of the text as an identifier, or as the content of a string in quotes. */
Ident parser_word(Parser *px, Span at);
Ident parser_string(Parser *px, Span at);
Number parser_number(Parser *px, Span at);

Name name_one(Parser *px, Ident word);
Name name_append(Parser *px, Name n, Ident word);

Expr *expr_number(Parser *px, Number n, Span at);
Expr *expr_name(Parser *px, Name n);
Expr *expr_call(Parser *px, Name callee, List *args, Span at);
/* Unary when b is NULL; `caret` is the operator's place. */
Expr *expr_op(Parser *px, ExprKind kind, Expr *a, Expr *b, Span at, Span caret);

Forward *forward_new(Parser *px, List *inputs, List *assigns, List *results, Span at);
Part part_param(Parser *px, Flags flags, Name name, List *dims, Expr *value, Span at);
Part part_value(Parser *px, Flags flags, Name name, Expr *value);
void body_add(Parser *px, Body *b, const Part *part);

Pat pat_name(Ident word);
Pat pat_range(Parser *px, Number low, Number high, Span at);
Pat pat_alt(Parser *px, List *alts);
Pattern pattern_one(Parser *px, Pat p, Span at);
Pattern pattern_append(Parser *px, Pattern p, Pat part, Span at);

Setting *setting_new(Parser *px, Name key, Expr *value);
Stmt stmt_new(Parser *px, StmtKind kind, List *paths, Expr *with, Span at);
Stmt stmt_fit(Parser *px, List *fields, Span at);

void add_use(Parser *px, Ident string);
void add_block(Parser *px, Ident name, List *formals, Body *body);
void add_patch(Parser *px, Ident name, List *formals, Ident on, List *on_formals, Body *body);
void add_config(Parser *px, Ident name, Ident base, List *fields);
void add_model(Parser *px, Ident name, Expr *of, List *stmts);

#endif
