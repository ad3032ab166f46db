/* What the parts of elaboration share.
 *
 *   elaborate.c          the model: its chain of derived models, arguments, outputs, report
 *   elaborate_module.c   blocks and patches become a tree of modules with named variables
 *   elaborate_path.c     paths find modules and parameters in that tree
 *   elaborate_stmt.c     freeze, train, patch, store
 *   elaborate_fit.c      fit, and configs
 *   elaborate_eval.c     expressions become numbers or nodes
 *   elaborate_builtin.c  the functions a program can call
 *
 * A Value of kind VAL_ERROR, and a NULL, mean that the mistake has been reported.
 */
#ifndef PEFTC_ELABORATE_INT_H
#define PEFTC_ELABORATE_INT_H

#include "elaborate.h"

/* Bounds on what a program may ask for: far above any model, far below what hurts. */
enum {
    MAX_MODULES = 20000,
    MAX_DEPTH = 64,      /* blocks within blocks, and dots in a name */
    MAX_LAYERS = 32,     /* patches on one block */
    MAX_NESTING = 1500,  /* expressions and calls being evaluated at once */
    MAX_CALLS = 1 << 18, /* applications of blocks in one model */
    MAX_NODES = 1 << 18,
    MAX_NAME = 512 /* bytes of a tensor's name */
};
#define MAX_ELEMENTS ((int64_t)1 << 36) /* of one parameter */

/* ---- values ---- */

typedef struct Binding Binding;

typedef struct ConfigValue {
    const Config *decl;
    Binding *field;
    int nfield;
    bool from_base; /* a field was replaced by config.json */
} ConfigValue;

typedef struct InitValue { /* normal(0.02); kaiming_uniform waits for the parameter's shape */
    Init init;
    bool kaiming;
} InitValue;

typedef enum Record { RECORD_TEXT, RECORD_MASKED } Record;

typedef enum ValueKind {
    VAL_ERROR,
    VAL_NUMBER,
    VAL_CONFIG,
    VAL_INIT,
    VAL_TENSOR,
    VAL_RECORD /* text, masked: fields of the batch */
} ValueKind;

typedef struct Value {
    ValueKind kind;
    union {
        Number number;
        ConfigValue *config;
        InitValue init;
        Node *node;
        Record record;
    };
} Value;

struct Binding {
    const char *name;
    Value value;
    Span span;
};

typedef struct Env {
    Binding *at;
    int n, cap;
} Env;

/* ---- modules ---- */

typedef struct Module Module;

typedef struct Param {
    const char *name;
    int32_t var;
    bool is_shared; /* one for the whole model: belongs to the root, every block sees it */
    Span span;
} Param;

/* Parameters that are counted together: those of one block without its parts, or all that one
 * application of a patch adds. */
typedef struct CountUnit {
    const char *kind;  /* name of the block or patch */
    const char *patch; /* the same when it is a patch, else NULL */
    const char *path;  /* of the module that the names in it start at */
    int32_t id;
} CountUnit;

/* What a module computes: its block, or a patch around what was there before. */
typedef struct Layer {
    const Block *decl;
    Env env;   /* arguments and constants */
    Span span; /* where the block is made a part, or the patch is applied */
    const CountUnit *unit;
} Layer;

struct Module {
    const char *name;  /* "query" */
    const char *path;  /* "bert.encoder.layer.0.attention.self.query", "" for the model */
    const char **part; /* the names in path */
    int npart;
    Module *parent;
    Module **child;
    Param *param;
    Layer *layer; /* [0] the block, then its patches; none: a name on the way, or a repeat */
    int nchild, cap_child, nparam, cap_param, nlayer, cap_layer;
    bool is_repeat;
    bool fresh;        /* its weights may be absent from the base */
    const char *patch; /* the patch that made it, or NULL: part of the model's block */
    int depth;
    int32_t id;
    Span span;
};

/* A parameter whose initial value is an expression of parameters, traced after the model. */
typedef struct Pending {
    Module *module;
    int level;
    const Item *item;
    int32_t var;
} Pending;

typedef struct Elab {
    Ast *ast;
    Diag *diag;
    Graph *g;
    Pool *pool; /* the graph's */
    const Settings *settings;
    Overrides overrides;
    ModelInfo *info;
    Module *root, **module;
    int nmodule, cap_module;
    Pending *pending;
    int npending, cap_pending;
    int cap_param, cap_method, cap_stmt;
    int32_t nunit;
    const ConfigValue *config; /* the model's, or NULL */
    int nesting, ncall;
    const Expr *accumulate; /* set in `fit`, for messages */
    bool exhausted;         /* a bound was hit and reported */
    bool broken;            /* a patch could not be applied: tracing would report it again */
} Elab;

/* ---- expressions (elaborate_eval.c) ---- */

typedef struct Scope Scope;
struct Scope {
    Elab *e;
    Module *module; /* whose parts and parameters have names here; NULL: none, only constants */
    int level;      /* index of the layer being evaluated */
    const Env *env; /* arguments and constants */
    Env local;      /* inputs and assigned names */
    const Scope *caller;
    Span call;
    bool configs; /* config names are values here */
    bool tracing; /* parameters have values; else only constants do */
};

#define POOL_PUSH(pool, array, count, cap)                                                       \
    ((array) = pool_grow((pool), (array), (size_t)(count), (size_t)(count) + 1, sizeof *(array), \
                         &(cap)),                                                                \
     &(array)[(count)++])

extern const Value value_error;
Value value_number(double v);
Value value_node(Node *n);
const char *value_kind(Value v); /* "a number", "a tensor": for messages */

void env_add(Elab *e, Env *env, Ident name, Value v);
const Binding *env_find(const Env *env, const char *name);

Value eval(Scope *s, const Expr *x);
/* A number; false: reported ("the number of layers must be ..."). */
bool eval_number(Scope *s, const Expr *x, const char *what, double *out);
bool eval_whole(Scope *s, const Expr *x, const char *what, int64_t low, int64_t high, int64_t *out);

/* The node of a tensor or a number; NULL: reported. */
Node *value_tensor(Scope *s, const Expr *x, Value v);
Attr no_attr(void); /* all zero */

/* Evaluates a forward function in its own scope; room for all results. */
bool trace_forward(Scope *s, const Forward *f, const Value *in, Value *results);

/* Makes a node; a type error is reported at `at`, with the declarations of the parameters in it. */
Node *trace(Scope *s, const Expr *at, OpCode op, Attr attr, Node *const *in, int nin);
void note_context(const Scope *s); /* where the block that failed is applied */

/* ---- functions (elaborate_builtin.c) ---- */

bool is_builtin(const char *name);
Value call_builtin(Scope *s, const Expr *call);
bool is_init(const Scope *s, const Expr *x); /* zeros, normal(0.02), an argument that is one */
void offer_builtins(Nearest *n);

/* ---- modules (elaborate_module.c) ---- */

bool check_blocks(Elab *e);
Module *module_root(Elab *e, const Block *decl, Env args, Span at);
bool module_patch(Elab *e, Module *m, const Block *patch, const Env *args, Span at);
/* Arguments of a block or a patch: by position, then by name, then defaults. `prefix`: --set keys
 * "prefix.name" and "name" replace them; NULL: none do; "": only plain names. */
bool bind_args(Scope *s, const Block *decl, const Expr *call, const char *prefix, Env *out);
Module *module_child(const Module *m, const char *name);
const Param *module_param(const Module *m, const char *name);
const char *module_kind(const Module *m); /* "linear", or NULL */

/* ---- paths (elaborate_path.c) ---- */

/* One alternative of a path: `a.{b,c}` has two. */
typedef struct Flat {
    const Pat **part; /* names, ranges, `*` and `**` */
    int n;
    const Path *path;
} Flat;

/* All alternatives of a path; 0: reported. */
int path_expand(Elab *e, const Path *p, Flat **out);
bool flat_matches_module(const Flat *f, const Module *m);
bool flat_matches_param(const Flat *f, const Module *m, const Param *param);
/* Reports that it matches nothing (of what is wanted: "parameters"), with the nearest that exists.
 */
void flat_unmatched(Elab *e, const Flat *f, const char *wanted);

/* ---- statements (elaborate_stmt.c, elaborate_fit.c) ---- */

bool run_stmt(Elab *e, const Stmt *s);
bool check_stores(Elab *e);
void fit_defaults(PeftFit *f);
bool run_fit(Elab *e, const Stmt *s);
bool finish_fit(Elab *e);
ConfigValue *config_value(Elab *e, const Config *decl);
bool unknown_config(Elab *e, Ident name); /* reports; false */
void describe_settings(Elab *e, const Model *m, const Block *block, const Env *args);

#endif
