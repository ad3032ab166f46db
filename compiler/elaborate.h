/* Elaboration: from the syntax tree to the graph. Configs are folded, repeats unrolled, paths
 * resolved, patches applied, and the model's block is traced into nodes that carry the text they
 * come from.
 */
#ifndef PEFTC_ELABORATE_H
#define PEFTC_ELABORATE_H

#include "config.h"
#include "graph.h"

/* What one statement of the model did. */
typedef struct StmtReport {
    const char *text; /* "patch **.attention.self.{query,value} with lora(rank = 16, alpha = 32)" */
    int64_t count;    /* what its paths matched */
    const char *unit; /* "blocks", "tensors" */
} StmtReport;

/* Where a parameter comes from; parallel to the graph's variables. */
typedef struct ParamInfo {
    const char *path;      /* of the module it belongs to */
    const char *local;     /* its name within its unit: "lora_A.weight" */
    const char *unit_kind; /* the block or the patch whose parameters are counted together */
    int32_t unit;          /* number of that application of the block or patch */
    bool by_patch;
    const char *dim_text[PEFT_MAX_RANK]; /* as declared: "rank", "in" */
    Span stored;                         /* of the last `store` statement that names it */
} ParamInfo;

/* A parameter that starts from an expression of others (DoRA's magnitudes): `value` is to be
 * computed once, from the base weights and initial values, before the first step. */
typedef struct StartValue {
    int32_t var;
    Node *value; /* of the variable's type */
} StartValue;

typedef struct ModelInfo {
    const char *name;   /* "lora_r16" */
    const char *source; /* path of the program text */
    PeftTask task;
    PeftConfig config;
    PeftFit fit;
    PeftMethod *method;
    int nmethod;
    StmtReport *stmt;
    int nstmt;
    ParamInfo *param;
    int nparam;
    StartValue *start;
    int nstart;
    const char *settings; /* effective settings, one "key   value" line each */
} ModelInfo;

/* Elaborates the model of a parsed program (settings->model, or the only one `main_file` declares)
 * to a graph whose PEFT_FN_EVAL gives "loss" and, except for masked language models, "logits",
 * dropout included. The graph owns everything in `info`. NULL: errors were reported. */
Graph *elaborate(Ast *ast, int32_t main_file, const Settings *settings, Diag *diag,
                 ModelInfo *info);

/* The same from the path of the program's file. */
Graph *elaborate_file(const char *path, const Settings *settings, Diag *diag, ModelInfo *info);

#endif
