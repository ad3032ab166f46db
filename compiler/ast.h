/* The syntax tree: what a program says, with the place of every word, before anything is looked up.
 * Trees of all files of a program are kept together: names of blocks, patches, configs and models
 * are global, and their order does not matter.
 *
 * Invariant: nothing here is NULL or out of order because of a syntax error; a declaration with one
 * is reported and left out.
 */
#ifndef PEFTC_AST_H
#define PEFTC_AST_H

#include "diag.h"

typedef struct Ident {
    const char *text; /* NULL: absent */
    Span span;
} Ident;

typedef struct Name { /* attention.self.query */
    Ident *part;
    int n;
    Span span;
} Name;

/* ---- expressions ---- */

typedef enum ExprKind {
    EX_NUMBER,
    EX_NAME,
    EX_CALL,
    EX_NEG,
    EX_TRANSPOSE, /* x' */
    EX_ADD,
    EX_SUB,
    EX_MUL,
    EX_DIV,
    EX_MATMUL /* x @ y */
} ExprKind;

typedef enum Unit { UNIT_NONE, UNIT_PERCENT, UNIT_STEPS } Unit;

typedef struct Number {
    double value; /* 10% is 0.1 */
    Unit unit;
} Number;

typedef struct Expr Expr;

typedef struct Arg {
    Ident name; /* text NULL: by position */
    Expr *value;
} Arg;

struct Expr {
    ExprKind kind;
    Span span;
    int32_t caret; /* byte of the operator, or the first byte */
    int depth;
    union {
        Number number;
        Name name;
        struct {
            Name callee;
            Arg *arg;
            int narg;
        } call;
        struct {
            Expr *a, *b; /* b: binary operators only */
        } op;
    };
};

#define EXPR_MAX_DEPTH 200

/* ---- blocks and patches ---- */

typedef struct Formal {
    Ident name;
    Expr *value; /* default, or NULL */
} Formal;

typedef struct Item {
    Name name;
    Span span;
    bool is_param;
    bool is_new, is_shared, is_frozen;
    Expr **dim; /* parameters: 1 or 2 dimensions */
    int rank;
    Expr *value; /* a parameter's initial value, a part's block, or a constant */
} Item;

typedef struct Assign {
    Ident name;
    Expr *value;
} Assign;

typedef struct Forward { /* (x, y) { a = f(x)  return g(a) } */
    Span span;           /* of the inputs */
    Ident *input;
    int ninput;
    Assign *assign;
    int nassign;
    Expr **result;
    int nresult;
} Forward;

typedef struct Block { /* a patch too: then `on` is the block it applies to */
    Ident name;
    Formal *formal;
    int nformal;
    Ident on;
    Ident *on_formal;
    int non;
    Item *item;
    int nitem;
    Forward *forward; /* NULL: none written */
} Block;

/* ---- paths ---- */

typedef enum PatKind {
    PAT_NAME, /* query */
    PAT_ANY,  /* *: one name */
    PAT_DEEP, /* **: any number of names */
    PAT_ALT,  /* {query,value} */
    PAT_RANGE /* 0..5, inside braces */
} PatKind;

typedef struct Pat Pat;

typedef struct Pattern {
    Pat *part;
    int n;
    Span span;
} Pattern;

struct Pat {
    PatKind kind;
    Ident name;   /* NAME */
    Pattern *alt; /* ALT */
    int nalt;
    int64_t low, high; /* RANGE, both included */
};

typedef struct Path { /* linear(bert.**): only blocks of this kind */
    Ident kind;       /* text NULL: any */
    Pattern pattern;
    Span span;
} Path;

/* ---- configs and models ---- */

typedef struct Setting { /* lr = 1e-4; on the command line also fit.lr = 1e-4 */
    Name key;
    Expr *value;
} Setting;

typedef struct Config { /* config bert_large = bert_base { layers = 24 } */
    Ident name, base;
    Setting *field;
    int nfield;
} Config;

typedef enum StmtKind { ST_FREEZE, ST_TRAIN, ST_PATCH, ST_STORE, ST_FIT } StmtKind;

typedef struct Stmt {
    StmtKind kind;
    Span span;
    Path *path;
    int npath;
    Expr *with; /* PATCH: the patch and its arguments; STORE: the format */
    Setting *fit;
    int nfit;
} Stmt;

typedef struct Model { /* model lora = bert_classifier(bert_base) { freeze ** ... } */
    Ident name;
    Expr *of; /* a call of a block, or a model's name (with arguments: those are replaced) */
    Stmt *stmt;
    int nstmt;
} Model;

typedef struct Use {
    const char *path;
    Span span;
} Use;

/* ---- a program ---- */

typedef struct Ast {
    Pool *pool;
    Block **block; /* blocks */
    Block **patch;
    Config **config;
    Model **model;
    int nblock, npatch, nconfig, nmodel;
    int cap_block, cap_patch, cap_config, cap_model;
} Ast;

Ast *ast_new(void);
void ast_free(Ast *a);

/* Parses one file into the tree. `use` lines are returned, not followed. False: errors were
 * reported. */
bool ast_parse(Ast *a, Diag *d, int32_t file, Use **use, int *nuse);
/* Parses "fit.epochs=1". NULL: errors were reported. */
Setting *ast_parse_setting(Ast *a, Diag *d, int32_t file);
/* The file and all that it uses, each once. False: errors were reported. */
bool ast_load(Ast *a, Diag *d, int32_t file);

Block *ast_find_block(const Ast *a, const char *name);
Block *ast_find_patch(const Ast *a, const char *name);
Config *ast_find_config(const Ast *a, const char *name);
Model *ast_find_model(const Ast *a, const char *name);

/* "attention.self.query" */
char *name_str(Pool *p, const Name *n);

#endif
