/* Numbers that a program leaves open to its user. In increasing weight: the program's own, those of
 * the base model's config.json, --set; of two equal --set the last. What can be set:
 *
 *   fit.NAME      a setting of the `fit` statement
 *   config        the model's config, by name
 *   config.FIELD  a field of it
 *   NAME          an argument of the model's block ("classes") and of its patches ("rank")
 *   PATCH.NAME    an argument of one patch; it goes before NAME
 *
 * Anything else is an error with a suggestion.
 */
#ifndef PEFTC_CONFIG_H
#define PEFTC_CONFIG_H

#include "ast.h"

typedef struct BaseField { /* of config.json, under the program's name for it: "hidden", 768 */
    const char *name;
    double value;
} BaseField;

typedef struct Settings {
    const char *model;     /* which of the file's models; NULL: the only one */
    const char *base_path; /* "BASE/config.json", for reports; NULL: no base model is known */
    const BaseField *base;
    int nbase;
    const char *const *set; /* "fit.epochs=1" */
    int nset;
} Settings;

/* The --set options while a program is elaborated. */
typedef struct Override {
    const char *key;
    Setting *setting;
    bool used;
} Override;

typedef struct Overrides {
    Pool *pool;
    Override *at;
    int n;
    const char **known; /* every key that was asked for: what could have been set */
    int nknown, cap;
} Overrides;

/* Parses the options. False: errors were reported. */
bool overrides_parse(Overrides *o, Ast *a, Diag *d, const Settings *s);
/* The expression set for "prefix.name" (or "name" when prefix is NULL), or NULL. */
Expr *overrides_find(Overrides *o, const char *prefix, const char *name);
/* False: there are options that nothing asked for, and they were reported. */
bool overrides_check(const Overrides *o, Diag *d);

#endif
