/* The grammar of *.bert programs. Actions only build the tree (compiler/ast.h); what a name means is
 * decided by elaboration.
 *
 * A line ends a statement: the scanner gives NEWLINE where one can end (parser.c), so a broken line
 * is skipped and reported alone. Lists grow in malloc memory and move to the tree when complete;
 * %destructor frees those that an error leaves behind.
 */
%define api.pure full
%define api.prefix {peft_}
%define api.location.type {Span}
%define parse.error custom
%define parse.lac full
%locations
%expect 0

%param {Parser *px}

%code requires {
#include "grammar/parser.h"
}

%code {
#include <stdio.h>
#include <stdlib.h>

#define YYMAXDEPTH 10000
#define YYLLOC_DEFAULT(current, rhs, n)                                                  \
    ((current) = (n) ? span_join(YYRHSLOC(rhs, 1), YYRHSLOC(rhs, n))                     \
                     : (Span){YYRHSLOC(rhs, 0).file, YYRHSLOC(rhs, 0).end, YYRHSLOC(rhs, 0).end})

int peft_lex(PEFT_STYPE *value, Span *at, Parser *px);
static void peft_error(Span *at, Parser *px, const char *what);

#define PUSH(list, item)  list_push(&(list), &(item), sizeof(item))
#define EMPTY(list)       ((list) = (List){0})
}

%union {
    Ident ident;
    Number number;
    Name name;
    Expr *expr;
    Arg arg;
    Formal formal;
    List list;
    Flags flags;
    Forward *forward;
    Part part;
    Body body;
    Pat pat;
    Pattern pattern;
    Path path;
    Setting setting;
    Stmt stmt;
}

%token PROGRAM SETTING                 /* select what is parsed */
%token END 0 "end of file"
%token NEWLINE "end of line"
%token <ident> NAME "a name"
%token <ident> INDEX "a part number"   /* .0 in layer.0 */
%token <number> NUMBER "a number"
%token <ident> STRING "a string"
%token DEEP "`**`" ARROW "`->`" RANGE "`..`"
%token USE "`use`" CONFIG "`config`" BLOCK "`block`" PATCH "`patch`" MODEL "`model`" ON "`on`"
%token WITH "`with`" AS "`as`" PARAM "`param`" NEW "`new`" SHARED "`shared`" FROZEN "`frozen`"
%token RETURN "`return`" FREEZE "`freeze`" TRAIN "`train`" STORE "`store`" FIT "`fit`"

%type <ident> word
%type <name> name key
%type <expr> expr
%type <arg> arg
%type <formal> formal
%type <list> args args1 formals formals1 names names1 exprs fields settings
%type <list> assigns stmts statements paths alts
%type <flags> flags
%type <forward> forward
%type <part> part
%type <body> body parts
%type <pat> pat
%type <pattern> pattern alt
%type <path> path
%type <setting> setting
%type <stmt> stmt

%destructor { free($$.data); } <list>
%destructor { free($$.item.data); } <body>

%left '+' '-'
%left '*' '/' '@'
%precedence NEG
%precedence '\''

%%

start: PROGRAM decls
     | SETTING key '=' expr nl          { px->setting = setting_new(px, $key, $expr); }

nl: %empty
  | NEWLINE

decls: %empty
     | decls decl nl
     | decls error NEWLINE              { yyerrok; }

decl: USE STRING                        { add_use(px, $STRING); }
    | CONFIG NAME fields                { add_config(px, $NAME, (Ident){0}, &$fields); }
    | CONFIG NAME[n] '=' NAME[b] fields { add_config(px, $n, $b, &$fields); }
    | BLOCK NAME '(' formals ')' body   { add_block(px, $NAME, &$formals, &$body); }
    | PATCH NAME[n] '(' formals ')' ON NAME[b] '(' names ')' body
                                        { add_patch(px, $n, &$formals, $b, &$names, &$body); }
    | MODEL NAME '=' expr stmts      { add_model(px, $NAME, $expr, &$stmts); }

/* ---- names ---- */

name: NAME                              { $$ = name_one(px, $NAME); }
    | name[n] '.' word                  { $$ = name_append(px, $n, $word); }
    | name[n] INDEX                     { $$ = name_append(px, $n, $INDEX); }

key: word                               { $$ = name_one(px, $word); }
   | key[k] '.' word                    { $$ = name_append(px, $k, $word); }

/* After a dot, and before the = of an argument, every word is a name. */
word: NAME
    | keyword                           { $$ = parser_word(px, @1); }

keyword: USE | CONFIG | BLOCK | PATCH | MODEL | ON | WITH | AS | PARAM | NEW | SHARED | FROZEN
       | RETURN | FREEZE | TRAIN | STORE | FIT

names: %empty                           { EMPTY($$); }
     | names1

names1: NAME                            { EMPTY($$); PUSH($$, $NAME); }
      | names1[l] ',' NAME              { $$ = $l; PUSH($$, $NAME); }

formals: %empty                         { EMPTY($$); }
       | formals1

formals1: formal                        { EMPTY($$); PUSH($$, $formal); }
        | formals1[l] ',' formal        { $$ = $l; PUSH($$, $formal); }

formal: NAME                            { $$ = (Formal){$NAME, NULL}; }
      | NAME '=' expr                   { $$ = (Formal){$NAME, $expr}; }

/* ---- blocks and patches ---- */

body: '{' parts '}'                  { $$ = $parts; }
    | '{' parts part '}'             { $$ = $parts; body_add(px, &$$, &$part); }
    | '{' parts error '}'            { $$ = $parts; yyerrok; }

/* One to a line: `a = f` and a `(x) -> ...` behind it would read as a call. */
parts: %empty                           { $$ = (Body){{0}, NULL}; }
     | parts[b] part NEWLINE            { $$ = $b; body_add(px, &$$, &$part); }
     | parts[b] error NEWLINE           { $$ = $b; yyerrok; }

part: flags PARAM name '[' exprs ']' '=' expr
                                        { $$ = part_param(px, $flags, $name, &$exprs, $expr, @PARAM); }
    | flags name '=' expr            { $$ = part_value(px, $flags, $name, $expr); }
    | forward                           { $$ = (Part){.forward = $forward}; }

flags: %empty                           { $$ = (Flags){.span = SPAN_NONE}; }
     | flags[f] NEW                     { $$ = $f; $$.is_new = true; $$.span = @NEW; }
     | flags[f] SHARED                  { $$ = $f; $$.is_shared = true; $$.span = @SHARED; }
     | flags[f] FROZEN                  { $$ = $f; $$.is_frozen = true; $$.span = @FROZEN; }

forward: '(' names ')' ARROW exprs
                { List none = {0}; $$ = forward_new(px, &$names, &none, &$exprs, span_join(@1, @3)); }
       | '(' names ')' '{' assigns RETURN exprs nl '}'
                { $$ = forward_new(px, &$names, &$assigns, &$exprs, span_join(@1, @3)); }
       | '(' names ')' '{' assigns error '}'
                { List none = {0}; $$ = forward_new(px, &$names, &$assigns, &none, span_join(@1, @3));
                  yyerrok; }

assigns: %empty                         { EMPTY($$); }
       | assigns[l] NAME '=' expr nl { Assign a = {$NAME, $expr}; $$ = $l; PUSH($$, a); }
       | assigns[l] error NEWLINE       { $$ = $l; yyerrok; }

/* ---- expressions ---- */

exprs: expr                             { EMPTY($$); PUSH($$, $expr); }
     | exprs[l] ',' expr             { $$ = $l; PUSH($$, $expr); }

expr: NUMBER                            { $$ = expr_number(px, $NUMBER, @$); }
    | name                              { $$ = expr_name(px, $name); }
    | name '(' args ')'                 { $$ = expr_call(px, $name, &$args, @$); }
    | '(' expr[e] ')'                   { $$ = $e; $$->span = @$; }
    | '-' expr[e] %prec NEG             { $$ = expr_op(px, EX_NEG, $e, NULL, @$, @1); }
    | expr[e] '\''                      { $$ = expr_op(px, EX_TRANSPOSE, $e, NULL, @$, @2); }
    | expr[a] '+' expr[b]            { $$ = expr_op(px, EX_ADD, $a, $b, @$, @2); }
    | expr[a] '-' expr[b]            { $$ = expr_op(px, EX_SUB, $a, $b, @$, @2); }
    | expr[a] '*' nl expr[b]            { $$ = expr_op(px, EX_MUL, $a, $b, @$, @2); }
    | expr[a] '/' expr[b]            { $$ = expr_op(px, EX_DIV, $a, $b, @$, @2); }
    | expr[a] '@' expr[b]            { $$ = expr_op(px, EX_MATMUL, $a, $b, @$, @2); }

args: %empty                            { EMPTY($$); }
    | args1

args1: arg                              { EMPTY($$); PUSH($$, $arg); }
     | args1[l] ',' arg                 { $$ = $l; PUSH($$, $arg); }

arg: expr                               { $$ = (Arg){{0}, $expr}; }
   | word '=' expr                      { $$ = (Arg){$word, $expr}; }

/* ---- configs and models ---- */

fields: '{' settings '}'             { $$ = $settings; }
      | '{' settings error '}'       { $$ = $settings; yyerrok; }

settings: %empty                        { EMPTY($$); }
        | settings[l] setting nl        { $$ = $l; PUSH($$, $setting); }
        | settings[l] error NEWLINE     { $$ = $l; yyerrok; }

setting: NAME '=' expr               { $$ = (Setting){name_one(px, $NAME), $expr}; }

stmts: %empty                           { EMPTY($$); }
     | '{' statements '}'            { $$ = $statements; }
     | '{' statements error '}'      { $$ = $statements; yyerrok; }

statements: %empty                      { EMPTY($$); }
          | statements[l] stmt nl       { $$ = $l; PUSH($$, $stmt); }
          | statements[l] error NEWLINE { $$ = $l; yyerrok; }

stmt: FREEZE paths                      { $$ = stmt_new(px, ST_FREEZE, &$paths, NULL, @$); }
    | TRAIN paths                       { $$ = stmt_new(px, ST_TRAIN, &$paths, NULL, @$); }
    | PATCH paths WITH expr             { $$ = stmt_new(px, ST_PATCH, &$paths, $expr, @$); }
    | STORE paths AS expr               { $$ = stmt_new(px, ST_STORE, &$paths, $expr, @$); }
    | FIT fields                        { $$ = stmt_fit(px, &$fields, @$); }

/* ---- paths ---- */

paths: path                             { EMPTY($$); PUSH($$, $path); }
     | paths[l] ',' path             { $$ = $l; PUSH($$, $path); }

path: pattern                           { $$ = (Path){{0}, $pattern, @$}; }
    | NAME '(' pattern ')'              { $$ = (Path){$NAME, $pattern, @$}; }

pattern: NAME                           { $$ = pattern_one(px, pat_name($NAME), @$); }
       | pat                            { $$ = pattern_one(px, $pat, @$); }
       | pattern[p] '.' word            { $$ = pattern_append(px, $p, pat_name($word), @$); }
       | pattern[p] INDEX               { $$ = pattern_append(px, $p, pat_name($INDEX), @$); }
       | pattern[p] '.' pat             { $$ = pattern_append(px, $p, $pat, @$); }

pat: '*'                                { $$ = (Pat){.kind = PAT_ANY}; }
   | DEEP                               { $$ = (Pat){.kind = PAT_DEEP}; }
   | '{' alts '}'                       { $$ = pat_alt(px, &$alts); }

alts: alt                               { EMPTY($$); PUSH($$, $alt); }
    | alts[l] ',' alt                   { $$ = $l; PUSH($$, $alt); }

alt: pattern
   | NUMBER                             { $$ = pattern_one(px, pat_name(parser_word(px, @1)), @$); }
   | NUMBER[a] RANGE NUMBER[b]          { $$ = pattern_one(px, pat_range(px, $a, $b, @$), @$); }

%%

static void peft_error(Span *at, Parser *px, const char *what) {
    (void)what; /* with custom syntax errors, bison calls this for one reason: its stack is full */
    diag_error(px->diag, *at, "the program is nested too deeply here");
}

/* "a name", "`(`": how a message calls a token. */
static const char *token_name(yysymbol_kind_t kind, char buf[8]) {
    const char *name = yysymbol_name(kind);
    if (name[0] != '\'') return name;
    snprintf(buf, 8, "`%.*s`", 1, name[1] == '\\' ? name + 2 : name + 1);
    return buf;
}

#define MAX_EXPECTED 6 /* a longer list helps nobody */

/* ", expected a name or `)`". An optional end of line is not worth mentioning. */
static void describe_expected(const yypcontext_t *context, char *text, size_t size) {
    yysymbol_kind_t expected[MAX_EXPECTED];
    int n = yypcontext_expected_tokens(context, expected, MAX_EXPECTED), kept = 0;
    for (int i = 0; i < n; i++)
        if (n == 1 || expected[i] != YYSYMBOL_NEWLINE) expected[kept++] = expected[i];
    char buf[8];
    size_t used = 0;
    *text = '\0';
    for (int i = 0; i < kept && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s",
                                 i == 0 ? ", expected " : i == kept - 1 ? " or " : ", ",
                                 token_name(expected[i], buf));
}

static int yyreport_syntax_error(const yypcontext_t *context, Parser *px) {
    char expected[256], buf[8];
    describe_expected(context, expected, sizeof expected);
    parser_unexpected(px, *yypcontext_location(context), token_name(yypcontext_token(context), buf),
                      expected);
    return 0;
}
