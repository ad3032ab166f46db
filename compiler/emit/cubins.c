/* Prints GPU code compiled ahead as C: an array for each cubin, whose bytes are a string literal,
 * since a compiler reads those many times faster than lists of numbers. */
#include "internal.h"

enum { WIDTH = 96 }; /* of a source line, about */

/* The shortest way to write a byte; an octal escape must not swallow the digit behind it. */
static int print_byte(FILE *out, unsigned char c, unsigned char next) {
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\' && c != '?') {
        fputc(c, out);
        return 1;
    }
    return fprintf(out, next >= '0' && next <= '7' ? "\\%03o" : "\\%o", c);
}

static void print_image(FILE *out, const PeftCubin *c, int i) {
    const unsigned char *byte = c->image;
    int column = 0;
    fprintf(out, "static const unsigned char cubin_%d[%zu] __attribute__((aligned(64))) =\n    \"",
            i, c->bytes);
    for (size_t k = 0; k < c->bytes; k++) {
        column += print_byte(out, byte[k], k + 1 < c->bytes ? byte[k + 1] : 0);
        if (column < WIDTH || k + 1 == c->bytes) continue;
        fputs("\"\n    \"", out);
        column = 0;
    }
    fputs("\";\n", out);
}

void print_cubins(FILE *out, const PeftProgram *t) {
    if (!t->ncubin) return;
    for (int i = 0; i < t->ncubin; i++) print_image(out, &t->cubin[i], i);
    fputs("\n/* major, minor, bytes of a work value, part */\nstatic const PeftCubin cubin[] = {\n",
          out);
    for (int i = 0; i < t->ncubin; i++) {
        const PeftCubin *c = &t->cubin[i];
        fprintf(out, "    {%d, %d, %d, %d, %zu, cubin_%d},\n", c->major, c->minor, c->work, c->part,
                c->bytes, i);
    }
    fputs("};\n\n", out);
}
