/* live RUNS PROGRAM/SEED...
 *
 * The table that stays at the bottom of the terminal while `make compare` trains: a row a run, with
 * progress, time left, loss, F1, peak memory and speed. A filter: what the script and the programs
 * say comes in on stdin and goes out above the table, except lines of progress, which move it; a
 * finished run is read from its run.json. The terminal is sane at every moment: no mode is changed,
 * the cursor is not hidden, and every line is shorter than the terminal is wide. It ends when
 * stdin does, so signals that end the others are left to them. */
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../runtime/measure.h"
#include "compare/compare.h"

enum { MAX_ROWS = 256, LINE = 4096, WIDEST = 120, BAR = 24, NAME = 24 };

typedef enum Stage { WAITING, RUNNING, DONE, FAILED, STOPPED } Stage;

typedef struct Row {
    char name[NAME], dir[PATH_MAX];
    Stage stage;
    double share;                 /* of the training steps that are done */
    double first_at, first_share; /* when this run's first progress came, for the time left */
    double loss, f1, megabytes, speed, seconds; /* negative: not known yet */
} Row;

typedef struct Table {
    Row row[MAX_ROWS];
    int n, current; /* the row that messages are about; -1 before the first */
    double started;
    bool colour, vram;
    int drawn[MAX_ROWS + 3], ndrawn; /* lengths of the lines on the screen */
} Table;

typedef struct Text { /* what the next write sends */
    char *at;
    size_t n, size;
} Text;

static void put(Text *t, const char *s, size_t n) {
    if (t->n + n > t->size) {
        size_t size = 2 * (t->n + n);
        char *grown = realloc(t->at, size);
        if (!grown) return;
        t->at = grown, t->size = size;
    }
    memcpy(t->at + t->n, s, n);
    t->n += n;
}

static void put_text(Text *t, const char *s) {
    put(t, s, strlen(s));
}

static void send_all(Text *t) {
    for (size_t at = 0; at < t->n;) {
        ssize_t n = write(1, t->at + at, t->n - at);
        if (n <= 0) break; /* the terminal is gone; the runs go on */
        at += (size_t)n;
    }
    t->n = 0;
}

/* ---- what is said ---- */

/* A run ended: its exact numbers, when it left any. */
static void settle(Row *r) {
    PeftError err = {{0}, 0};
    Run run;
    if (r->stage != RUNNING) return;
    if (!run_read(&run, r->dir, &err)) {
        r->stage = STOPPED;
        return;
    }
    double tokens = 0;
    size_t i;
    json_t *e;
    json_array_foreach(run.epochs, i, e) {
        tokens += json_number_value(json_object_get(e, "tokens"));
        r->loss = json_number_value(json_object_get(e, "train_loss"));
    }
    r->stage = DONE;
    r->share = 1;
    r->f1 = run.f1;
    r->megabytes = (double)run.reached / 1e6;
    r->speed = run.epoch_seconds > 0 ? tokens / run.epoch_seconds : -1;
    r->seconds = run.total_time;
    run_free(&run);
}

/* "lora_r8 epoch 1/3: 120/188 | loss 0.3120 | lr 9.80e-05 | 12,345 tokens/s | 0:12 left" */
static bool take_progress(Row *r, const char *line) {
    long long epoch, epochs, step, steps;
    char speed[32];
    size_t n = strlen(line);
    const char *at = strstr(line, " epoch ");
    if (n < 5 || strcmp(line + n - 5, " left") != 0) return false;
    if (!at || sscanf(at, " epoch %lld/%lld: %lld/%lld", &epoch, &epochs, &step, &steps) != 4)
        return strstr(line, " | evaluating | ") != NULL;
    if (epochs < 1 || steps < 1 || !r) return true;
    r->share = ((double)(epoch - 1) + (double)step / (double)steps) / (double)epochs;
    if (!(r->share >= 0 && r->share <= 1)) r->share = 0;
    if (r->first_at < 0) r->first_at = clock_seconds(), r->first_share = r->share;
    at = strstr(at, "| loss ");
    if (!at || sscanf(at, "| loss %lf | lr %*s | %31[0-9,] tokens/s", &r->loss, speed) != 2)
        return true;
    r->speed = 0;
    for (const char *p = speed; *p; p++)
        if (*p != ',') r->speed = 10 * r->speed + (*p - '0');
    return true;
}

static void take_message(Table *t, const char *line) {
    int n, of;
    double v;
    Row *r = t->current >= 0 ? &t->row[t->current] : NULL;
    if (sscanf(line, "[%d/%d] ", &n, &of) == 2 && n >= 1 && n <= t->n && of == t->n) {
        if (r) settle(r);
        t->current = n - 1;
        t->row[n - 1].stage = RUNNING;
    }
    if (!r) return;
    const char *f1 = strstr(line, ", macro F1 ");
    if (strncmp(line, "epoch ", 6) == 0 && f1 && sscanf(f1, ", macro F1 %lf", &v) == 1 && v > r->f1)
        r->f1 = v;
    if (sscanf(line, "memory: %lf MB planned", &v) == 1) r->megabytes = v;
    if (strncmp(line, "make compare: ", 14) == 0 && strstr(line, " failed with exit code "))
        r->stage = FAILED;
}

/* ---- the table ---- */

static double time_left(const Row *r, double now) {
    double gained = r->share - r->first_share;
    return r->first_at >= 0 && gained > 0 ? (now - r->first_at) / gained * (1 - r->share) : -1;
}

static const char *clock_text(double seconds, char buf[16]) {
    unsigned s = seconds >= 0 && seconds < 359999 ? (unsigned)(seconds + 0.5) : 359999;
    if (s >= 3600)
        snprintf(buf, 16, "%u:%02u:%02u", s / 3600 % 100, s / 60 % 60, s % 60);
    else
        snprintf(buf, 16, "%u:%02u", s / 60 % 60, s % 60);
    return buf;
}

static const char *left_text(const Row *r, double now, char buf[16]) {
    static const char *const word[] = {"waiting", "", "done", "failed", "stopped"};
    double left = time_left(r, now);
    if (r->stage != RUNNING) return word[r->stage];
    return left >= 0 ? clock_text(left, buf) : "starting";
}

static const char *real_text(double v, int digits, char buf[32]) {
    buf[0] = 0;
    if (v >= 0) snprintf(buf, 32, "%.*f", digits, v);
    return buf;
}

/* One row, and the heads when r is NULL. Without room there is no bar. */
static void row_line(const Table *t, const Row *r, int name, int bar, double now, char line[256]) {
    char blocks[BAR + 2] = "", share[16] = "", loss[32], f1[32], mb[32], speed[32] = "", left[16];
    int at;
    if (!r) {
        snprintf(line, 256, "%-*s %*s%4s %8s %6s %6s %8s %9s", name, "", bar, "", "", "left",
                 "loss", "F1", t->vram ? "VRAM MB" : "MB", "tokens/s");
        return;
    }
    int full = (int)(r->share * (bar - 1));
    for (at = 0; at < bar - 1; at++) blocks[at] = at < full ? '#' : r->stage == WAITING ? ' ' : '.';
    if (bar) blocks[at++] = ' ';
    blocks[bar ? at : 0] = 0;
    if (r->stage != WAITING) snprintf(share, sizeof share, "%d%%", (int)(100 * r->share));
    if (r->speed >= 0) with_commas((int64_t)r->speed, speed);
    snprintf(line, 256, "%-*s %s%4s %8s %6.6s %6s %8s %9s", name, r->name, blocks, share,
             left_text(r, now, left), real_text(r->loss, 4, loss), real_text(r->f1, 4, f1),
             real_text(r->megabytes, 1, mb), speed);
}

/* How far all of it is; what waits is taken to last as long as what is known. */
static void summary_line(const Table *t, double now, char line[256]) {
    char so_far[16], left[16];
    double known = 0, rest = 0, current = -1;
    int done = 0, waiting = 0, timed = 0;
    for (int i = 0; i < t->n; i++) {
        const Row *r = &t->row[i];
        done += r->stage == DONE;
        waiting += r->stage == WAITING;
        if (r->stage == RUNNING) current = time_left(r, now);
        if (r->stage == DONE) known += r->seconds, timed++;
        if (r->stage == RUNNING && current >= 0)
            known += current + now - r->first_at, timed++, rest = current;
    }
    int n = snprintf(line, 256, "%d of %d done, %s so far", done, t->n,
                     clock_text(now - t->started, so_far));
    if (timed && (waiting || current >= 0))
        snprintf(line + n, 256 - (size_t)n, ", about %s left",
                 clock_text(rest + waiting * known / timed, left));
}

static void put_line(Table *t, Text *out, const char *line, int width, const char *colour) {
    int n = (int)strlen(line);
    if (n > width - 1) n = width - 1;
    while (n && line[n - 1] == ' ') n--;
    if (t->colour && *colour) put_text(out, colour);
    put(out, line, (size_t)n);
    if (t->colour && *colour) put_text(out, "\033[0m");
    put_text(out, "\033[K\n");
    t->drawn[t->ndrawn++] = n;
}

static void draw(Table *t, Text *out, struct winsize w) {
    static const char *const colour[] = {"\033[2m", "\033[1m", "", "\033[31m", "\033[33m"};
    char line[256];
    double now = clock_seconds();
    int width = w.ws_col < WIDEST ? w.ws_col : WIDEST, name = 8, bar, from = 0, shown = t->n;
    for (int i = 0; i < t->n; i++)
        if ((int)strlen(t->row[i].name) > name) name = (int)strlen(t->row[i].name);
    bar = width - 1 - (name + 47);
    bar = bar > BAR ? BAR : bar < 6 ? 0 : bar;
    if (shown > w.ws_row - 4) { /* those around the current one */
        shown = w.ws_row > 5 ? w.ws_row - 4 : 1;
        from = t->current - shown / 2;
        if (from > t->n - shown) from = t->n - shown;
        if (from < 0) from = 0;
    }
    t->ndrawn = 0;
    row_line(t, NULL, name, bar, now, line);
    put_line(t, out, line, width, "");
    for (int i = from; i < from + shown; i++) {
        row_line(t, &t->row[i], name, bar, now, line);
        put_line(t, out, line, width, colour[t->row[i].stage]);
    }
    summary_line(t, now, line);
    put_line(t, out, line, width, "");
    put_line(t, out, "F1: best on validation so far, on test when done", width, "\033[2m");
    put_text(out, "\033[J");
}

/* Back to where the table began. Lines drawn on a wider terminal take several now. */
static void go_to_start(Table *t, Text *out, int width) {
    char move[32];
    int up = 0;
    for (int i = 0; i < t->ndrawn; i++) up += 1 + (t->drawn[i] ? (t->drawn[i] - 1) / width : 0);
    snprintf(move, sizeof move, up ? "\r\033[%dA" : "\r", up);
    put_text(out, move);
}

/* ---- the filter ---- */

static void take_line(Table *t, Text *out, const char *line) {
    if (take_progress(t->current >= 0 ? &t->row[t->current] : NULL, line)) return;
    take_message(t, line);
    put_text(out, line);
    put_text(out, "\033[K\n");
}

/* Whole lines of what was read; one that is too long is taken in parts. */
static void take_input(Table *t, Text *out, char line[LINE], size_t *n, const char *in,
                       size_t got) {
    for (size_t i = 0; i < got; i++) {
        if (in[i] != '\n' && in[i]) line[(*n)++] = in[i];
        if (in[i] != '\n' && *n < LINE - 1) continue;
        line[*n] = 0;
        take_line(t, out, line);
        *n = 0;
    }
}

static void filter(Table *t) {
    Text out = {0};
    char in[LINE], line[LINE];
    size_t n = 0;
    for (ssize_t got = 1; got > 0;) {
        struct pollfd p = {.fd = 0, .events = POLLIN};
        struct winsize w = {0};
        bool ready = poll(&p, 1, 500) > 0;
        got = ready ? read(0, in, sizeof in) : 1;
        if (ioctl(1, TIOCGWINSZ, &w) != 0 || w.ws_col < 2) w.ws_col = 80;
        if (w.ws_row < 2) w.ws_row = 24;
        go_to_start(t, &out, w.ws_col);
        if (ready && got > 0) take_input(t, &out, line, &n, in, (size_t)got);
        if (got <= 0) {
            if (n) take_input(t, &out, line, &n, "\n", 1);
            if (t->current >= 0) settle(&t->row[t->current]);
        }
        draw(t, &out, w);
        send_all(&out);
    }
    free(out.at);
}

static bool add_row(Table *t, const char *runs, const char *run, bool seeds) {
    const char *slash = strchr(run, '/');
    if (!slash || t->n == MAX_ROWS) return false;
    Row *r = &t->row[t->n++];
    *r = (Row){.first_at = -1, .loss = -1, .f1 = -1, .megabytes = -1, .speed = -1};
    int n = snprintf(r->name, sizeof r->name, "%.*s", (int)(slash - run), run);
    if (seeds && n < (int)sizeof r->name)
        snprintf(r->name + n, sizeof r->name - (size_t)n, " %s", slash + 1);
    n = snprintf(r->dir, sizeof r->dir, "%s/%.*s/seed%s", runs, (int)(slash - run), run, slash + 1);
    return n < (int)sizeof r->dir;
}

int main(int argc, char **argv) {
    static Table t;
    const char *no_colour = getenv("NO_COLOR"), *device = getenv("DEVICE");
    bool ok = argc > 2, seeds = false;
    for (int i = 3; i < argc; i++) /* is any program here twice? */
        for (int k = 2; k < i; k++)
            seeds |= strncmp(argv[i], argv[k], strcspn(argv[i], "/") + 1) == 0;
    for (int i = 2; ok && i < argc; i++) ok = add_row(&t, argv[1], argv[i], seeds);
    if (!ok) {
        fprintf(stderr, "usage: live RUNS PROGRAM/SEED...  (at most %d)\n", MAX_ROWS);
        return 2;
    }
    static const int others[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) signal(others[i], SIG_IGN);
    t.colour = !(no_colour && *no_colour);
    t.vram = device && strcmp(device, "cuda") == 0;
    t.started = clock_seconds();
    t.current = -1;
    filter(&t);
    return 0;
}
