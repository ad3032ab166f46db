/* See progress.h. */
#include "progress.h"
#include "../measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static double plain_interval(void) {
    const char *text = getenv("PEFTC_PROGRESS_SECONDS");
    char *end = NULL;
    double v = text ? strtod(text, &end) : -1;
    return text && end != text && !*end && v >= 0 ? v : 10;
}

void progress_start(Progress *p, const char *what, int64_t total) {
    *p = (Progress){.what = what, .total = total, .start = clock_seconds(), .tty = isatty(2)};
    p->shown = p->start;
    p->interval = p->tty ? 0.1 : plain_interval();
}

static void show_time(double seconds, char out[16]) {
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 16, "%d:%02d:%02d", s / 3600 % 1000, s / 60 % 60, s % 60);
    else
        snprintf(out, 16, "%d:%02d", s / 60, s % 60);
}

/* A line that is as long as the terminal is wide would break, and then not be overwritten. */
static void show_bar(const Progress *p, int64_t done, const char *numbers) {
    enum { WIDTH = 24 };
    struct winsize size;
    char line[512], bar[WIDTH + 1] = "";
    int room = ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
    int width = room - (int)(strlen(p->what) + strlen(numbers)) - 4;
    if (width > WIDTH) width = WIDTH;
    for (int i = 0; i < width; i++)
        bar[i] = i < (int)(width * done / (p->total ? p->total : 1)) ? '#' : '.';
    if (width >= 6)
        snprintf(line, sizeof line, "%s [%.*s] %s", p->what, width, bar, numbers);
    else
        snprintf(line, sizeof line, "%s %s", p->what, numbers);
    fprintf(stderr, "\r\033[K%.*s", room, line);
    fflush(stderr);
}

void progress_step(Progress *p, int64_t done, const char *detail) {
    double t = clock_seconds();
    if (t - p->shown < p->interval && done < p->total) return;
    p->shown = t;
    char left[16], numbers[256];
    show_time(done ? (t - p->start) / (double)done * (double)(p->total - done) : 0, left);
    snprintf(numbers, sizeof numbers, "%lld/%lld | %s | %s left", (long long)done,
             (long long)p->total, detail, left);
    if (p->tty)
        show_bar(p, done, numbers);
    else
        fprintf(stderr, "%s: %s\n", p->what, numbers);
}

void progress_end(Progress *p) {
    if (p->tty) fprintf(stderr, "\r\033[K");
}
