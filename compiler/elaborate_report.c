/* The effective settings as text: what the program was after config.json and --set had their say.
 * It is stored in the executable and printed by it.
 *
 * One fact to a line, a key of at most 8 characters, then the value; the lines of statements also
 * say what their paths matched.
 */
#include "elaborate_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_env(FILE *to, const Env *env, const char *between, bool configs) {
    bool first = true;
    for (int i = 0; i < env->n; i++) {
        Value v = env->at[i].value;
        if (v.kind != VAL_NUMBER && !(configs && v.kind == VAL_CONFIG)) continue;
        fprintf(to, "%s%s%s", first ? "" : ", ", env->at[i].name, between);
        if (v.kind == VAL_NUMBER)
            fprintf(to, "%.10g", v.number.value);
        else
            fputs(v.config->decl->name.text, to);
        first = false;
    }
}

static void print_fit(FILE *to, const PeftFit *f) {
    fprintf(to, "fit      epochs %d, batch %d, accumulate %d, lr %.10g, warmup ", f->epochs,
            f->batch, f->accumulate, f->lr);
    if (f->warmup_steps >= 0)
        fprintf(to, "%lld steps", (long long)f->warmup_steps);
    else
        fprintf(to, "%.10g%%", f->warmup_ratio * 100);
    fprintf(to, ", weight_decay %.10g, clip ", f->weight_decay);
    if (isfinite(f->clip_norm))
        fprintf(to, "%.10g", f->clip_norm);
    else
        fputs("none", to);
    fprintf(to, ", seed %llu\n", (unsigned long long)f->seed);
    fprintf(to, "         adamw(beta1 = %.10g, beta2 = %.10g, eps = %.10g)\n", f->beta1, f->beta2,
            f->eps);
}

void describe_settings(Elab *e, const Model *m, const Block *block, const Env *args) {
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    if (!to) PANIC(NULL, "no memory for the settings' text");
    fprintf(to, "model    %s = %s(", m->name.text, block->name.text);
    print_env(to, args, " = ", true);
    fprintf(to, ")  in %s\n", e->info->source);
    if (e->config) {
        Env fields = {e->config->field, e->config->nfield, 0};
        fprintf(to, "config   %s: ", e->config->decl->name.text);
        print_env(to, &fields, " ", false);
        fputs("\n", to);
        if (e->config->from_base)
            fprintf(to, "         dimensions from %s\n",
                    e->settings->base_path ? e->settings->base_path : "config.json");
    }
    for (int i = 0; i < e->info->nstmt; i++) {
        const StmtReport *s = &e->info->stmt[i];
        int key = (int)strcspn(s->text, " ");
        fprintf(to, "%-8.*s%s: %lld %s\n", key, s->text, s->text + key, (long long)s->count,
                s->unit);
    }
    for (int i = 0; i < e->overrides.n; i++)
        fprintf(
            to, "--set    %s\n",
            source_slice(e->diag->sources, (Span){e->overrides.at[i].setting->key.span.file,
                                                  e->overrides.at[i].setting->key.span.begin,
                                                  e->overrides.at[i].setting->value->span.end}));
    print_fit(to, &e->info->fit);
    fclose(to);
    e->info->settings = graph_printf(e->g, "%s", text);
    free(text);
}
