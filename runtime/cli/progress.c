/* See progress.h. */
#include "progress.h"
#include "../measure.h"

#include <stdio.h>
#include <unistd.h>

void progress_start(Progress *p, const char *what, int64_t total) {
    *p = (Progress){.what = what, .total = total, .start = clock_seconds(), .tty = isatty(2)};
    p->shown = p->start;
}

static void show_time(double seconds, char out[16]) {
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 16, "%d:%02d:%02d", s / 3600 % 1000, s / 60 % 60, s % 60);
    else
        snprintf(out, 16, "%d:%02d", s / 60, s % 60);
}

void progress_step(Progress *p, int64_t done, const char *detail) {
    double t = clock_seconds();
    if (t - p->shown < (p->tty ? 0.1 : 10) && done < p->total) return;
    p->shown = t;
    char left[16];
    show_time(done ? (t - p->start) / (double)done * (double)(p->total - done) : 0, left);
    if (!p->tty) {
        fprintf(stderr, "%s: %lld/%lld | %s | %s left\n", p->what, (long long)done,
                (long long)p->total, detail, left);
        return;
    }
    enum { WIDTH = 24 };
    int filled = (int)(WIDTH * done / (p->total ? p->total : 1));
    fprintf(stderr, "\r\033[K%s [", p->what);
    for (int i = 0; i < WIDTH; i++) fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] %lld/%lld | %s | %s left", (long long)done, (long long)p->total, detail,
            left);
    fflush(stderr);
}

void progress_end(Progress *p) {
    if (p->tty) fprintf(stderr, "\r\033[K");
}
