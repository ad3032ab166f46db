/* figures COMPARISON DIR
 *
 * Writes into DIR what gnuplot needs to draw the figures of a comparison.json: NAME.gp and NAME.dat
 * for curves, memory, time, quality and table, and table.md. `make figures` runs it and gnuplot
 * (tools/figures.sh). Exit code 0; 1 with one line on stderr; 2 for a wrong command line. */
#include "figures.h"

int main(int argc, char **argv) {
    static Figures f;
    PeftError err = {{0}, 0};
    if (argc != 3 || argv[1][0] == '-') {
        fprintf(stderr, "usage: figures comparison.json DIR\n");
        return 2;
    }
    const char *dir = argv[2];
    bool ok = figures_read(&f, argv[1], &err) && curves_write(&f, dir, &err) &&
              memory_write(&f, dir, &err) && time_write(&f, dir, &err) &&
              quality_write(&f, dir, &err) && table_write(&f, dir, &err);
    if (!ok) fprintf(stderr, "figures: error: %s\n", err.msg);
    figures_free(&f);
    return ok ? 0 : 1;
}
