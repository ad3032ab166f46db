/* compare RUNS [--out FILE] [--replace] [--brief]
 * compare --check RUN
 *
 * Prints the table of the finished runs in RUNS/PROGRAM/seedN on stdout and, with --out, writes
 * comparison.json. --brief: only the lines of the table, for the time between two runs. --check:
 * whether one run's folder can be read.
 *
 * Exit code 0; 1 when something failed or a run had to be left out; 2 for a wrong command line. */
#include "compare.h"

#include <string.h>

typedef struct Arguments {
    const char *runs, *out, *check;
    bool replace, brief;
} Arguments;

static bool parse(Arguments *a, int argc, char **argv) {
    *a = (Arguments){0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--replace") == 0)
            a->replace = true;
        else if (strcmp(argv[i], "--brief") == 0)
            a->brief = true;
        else if (strcmp(argv[i], "--check") == 0 && i + 1 < argc)
            a->check = argv[++i];
        else if (strcmp(argv[i], "--out") == 0 && i + 1 < argc)
            a->out = argv[++i];
        else if (argv[i][0] != '-' && !a->runs)
            a->runs = argv[i];
        else
            return false;
    }
    return !a->runs != !a->check;
}

int main(int argc, char **argv) {
    static Comparison c;
    Arguments a;
    PeftError err = {{0}, 0};
    if (!parse(&a, argc, argv)) {
        fprintf(stderr, "usage: compare RUNS [--out comparison.json] [--replace] [--brief]\n"
                        "       compare --check RUN\n");
        return 2;
    }
    if (a.check) {
        if (run_check(a.check, &err)) return 0;
        fprintf(stderr, "compare: error: %s\n", err.msg);
        return 1;
    }
    bool ok = comparison_read(&c, a.runs, &err);
    if (ok) comparison_print(&c, a.brief, stdout);
    if (ok && a.out) ok = comparison_write(&c, a.out, a.replace, &err);
    if (!ok) fprintf(stderr, "compare: error: %s\n", err.msg);
    bool whole = ok && !c.broken;
    comparison_free(&c);
    return whole ? 0 : 1;
}
