/* See options.h. One table serves parsing and help. */
#include "options.h"
#include "diag.h"
#include "pass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef enum Kind { TEXT, COUNT, FLAG, SET } Kind;

typedef struct Row {
    const char *name, *value;
    Kind kind;
    size_t at;
    const char *help;
} Row;

static const Row rows[] = {
    {"-o", "FILE", TEXT, offsetof(Options, out), "the executable to write (with --emit: the view)"},
    {"--base", "DIR", TEXT, offsetof(Options, base), "take dimensions from DIR/config.json"},
    {"--set", "KEY=VALUE", SET, 0,
     "classes=4, lora.rank=8, config=bert_tiny, config.layers=2, fit.lr=2e-5; the last one wins"},
    {"--model", "NAME", TEXT, offsetof(Options, model), "which model, when the file has several"},
    {"--emit", "KIND", TEXT, offsetof(Options, emit),
     "params, plan, graph, dot, c or cuda instead of an executable"},
    {"--json", NULL, FLAG, offsetof(Options, json), "params and plan as JSON"},
    {"--tokens", "N", COUNT, offsetof(Options, tokens), "plan: tokens in the batch; default 512"},
    {"--sequences", "N", COUNT, offsetof(Options, sequences),
     "plan: sequences; default the program's batch"},
    {"--longest", "N", COUNT, offsetof(Options, longest), "plan: longest sequence; default 128"},
    {"--masked", "N", COUNT, offsetof(Options, masked),
     "plan: masked positions; default 15 % of the tokens"},
    {"--threads", "N", COUNT, offsetof(Options, threads), "plan: threads; default 1"},
    {"--view", "NAME", TEXT, offsetof(Options, view), "dot: forward, backward or fused"},
    {"--module", "PATH", TEXT, offsetof(Options, module),
     "dot: only this part, e.g. bert.encoder.layer.0"},
    {"--dump-after", "PASS", TEXT, offsetof(Options, dump_after),
     "print the graph after a pass, or after all"},
    {"--skip", "PASS", TEXT, offsetof(Options, skip),
     "leave passes out (also fuse and join, or all that may be)"},
    {"--time-passes", NULL, FLAG, offsetof(Options, time_passes), "milliseconds of each pass"},
    {"--remarks", NULL, FLAG, offsetof(Options, remarks), "say what could not be fused and why"},
    {"--from-graph", "FILE", TEXT, offsetof(Options, from_graph),
     "start from a printed graph instead of a program"},
    {"--arch", "LIST", TEXT, offsetof(Options, arch),
     "also compile the GPU code now, e.g. sm_80,sm_90 (needs NVRTC, no GPU); default: at first use"},
    {"--cc", "COMMAND", TEXT, offsetof(Options, cc), "host C compiler; default $CC or cc"},
    {"--opt", "LEVEL", COUNT, offsetof(Options, level), "its optimisation, 1 to 3; default 3"},
    {"--help", NULL, FLAG, offsetof(Options, help), "this text"},
};
enum { NROWS = sizeof rows / sizeof *rows };

void options_help(FILE *to) {
    fputs(
        "peftc models/lora_r16.bert --base BASE -o run     compile for the model in BASE\n"
        "peftc models/lora_r16.bert                        what it trains, exactly\n"
        "peftc models/lora_r16.bert --emit plan --tokens 714   its memory, before anything runs\n\n",
        to);
    for (int i = 0; i < NROWS; i++) {
        char left[40];
        snprintf(left, sizeof left, "%s %s", rows[i].name, rows[i].value ? rows[i].value : "");
        fprintf(to, "  %-22s %s\n", left, rows[i].help);
    }
    fputs("\npasses: ", to);
    passes_list(to);
}

static bool unknown(const char *what, const char *word, const char *const *known, PeftError *err) {
    Nearest n = nearest_to(word);
    for (; *known; known++) nearest_offer(&n, *known);
    if (n.best) return peft_fail(err, "unknown %s '%s'; did you mean %s?", what, word, n.best);
    return peft_fail(err, "unknown %s '%s'; --help lists what there is", what, word);
}

static const Row *find(const char *name, PeftError *err) {
    const char *names[NROWS + 1] = {NULL};
    for (int i = 0; i < NROWS; i++) {
        if (strcmp(rows[i].name, name) == 0) return &rows[i];
        names[i] = rows[i].name;
    }
    unknown("option", name, names, err);
    return NULL;
}

static bool store(Options *o, const Row *r, const char *value, PeftError *err) {
    char *at = (char *)o + r->at, *end;
    switch (r->kind) {
    case FLAG: *(bool *)at = true; return true;
    case TEXT: *(const char **)at = value; return true;
    case SET:
        if (o->nset == MAX_SETS) return peft_fail(err, "more than %d --set options", MAX_SETS);
        o->set[o->nset++] = value;
        return true;
    case COUNT:
        errno = 0;
        long long v = strtoll(value, &end, 10);
        if (errno || end == value || *end || v < 1 || v > 100000000)
            return peft_fail(err, "%s takes a whole number from 1 to 100000000, not '%s'", r->name,
                             value);
        *(int64_t *)at = v;
        return true;
    }
    return false;
}

static bool check(const Options *o, PeftError *err) {
    static const char *const kinds[] = {"params", "plan", "graph", "dot", "c", "cuda", NULL};
    if (o->level > 3) return peft_fail(err, "--opt takes 1, 2 or 3");
    if (o->program && o->from_graph)
        return peft_fail(err, "give a program or --from-graph, not both");
    if (o->arch && (o->emit || !o->out))
        return peft_fail(err, "--arch goes into an executable: give -o FILE and no --emit");
    if (!o->emit) return true;
    for (int i = 0; kinds[i]; i++)
        if (strcmp(kinds[i], o->emit) == 0) return true;
    return unknown("--emit kind", o->emit, kinds, err);
}

bool options_parse(Options *o, int argc, char **argv, PeftError *err) {
    *o = (Options){.tokens = 512, .threads = 1, .level = 3};
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (word[0] != '-' || !word[1]) {
            if (o->program)
                return peft_fail(err, "one program at a time: '%s' and '%s'", o->program, word);
            o->program = word;
            continue;
        }
        char name[64];
        const char *eq = strncmp(word, "--", 2) == 0 ? strchr(word, '=') : NULL;
        size_t n = eq ? (size_t)(eq - word) : strlen(word);
        if (n >= sizeof name)
            return peft_fail(err, "unknown option '%s'; --help lists what there is", word);
        memcpy(name, word, n);
        name[n] = 0;
        const Row *r = find(strcmp(name, "-h") == 0 ? "--help" : name, err);
        if (!r) return false;
        const char *value = eq ? eq + 1 : NULL;
        if (r->kind != FLAG && !value && i + 1 < argc) value = argv[++i];
        if (r->kind == FLAG && value) return peft_fail(err, "%s takes no value", r->name);
        if (r->kind != FLAG && !value)
            return peft_fail(err, "%s needs a value: %s", r->name, r->value);
        if (!store(o, r, value, err)) return false;
    }
    return check(o, err);
}
