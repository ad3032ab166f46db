/* Trained models as children: `RUNS/PROGRAM/run predict --from RUNS/PROGRAM/seedN --json` reads a
 * text a line and answers a line of JSON. A child is started (without a shell) when it is first
 * asked and kept, so that an answer costs a forward pass and not the loading of weights. One that
 * is late, answers nonsense or too much is killed; the next question starts a new one. Children
 * end by themselves when this process does: their stdin closes. */
#define _GNU_SOURCE /* pipe2 */
#include "demo.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* ---- a child ---- */

static void child_end(Child *c) {
    if (!c->pid) return;
    close(c->in);
    close(c->out);
    kill(c->pid, SIGKILL);
    while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) {}
    c->pid = 0;
}

/* stdin and stdout from the pipes, stderr nowhere; the signals that this process ignores are
 * as usual again. Descriptors of this process are all close-on-exec. */
static int spawn(pid_t *pid, char *const argv[], int in, int out) {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t all;
    sigset_t none;
    sigfillset(&all);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_adddup2(&files, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setsigmask(&attr, &none);
    /* A group of its own: ctrl-C on the terminal stops the server, which ends its children. */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
                                        POSIX_SPAWN_SETPGROUP);
    int rc = posix_spawn(pid, argv[0], &files, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    return rc;
}

static bool child_start(Child *c, const Target *m, PeftError *err) {
    char *const argv[] = {(char *)m->exe, "predict",   "--from", (char *)m->dir,
                          "--json",       "--threads", "1",      NULL};
    int to[2], from[2];
    pid_t pid = 0;
    if (pipe2(to, O_CLOEXEC) != 0) return peft_fail(err, "cannot make a pipe: %s", strerror(errno));
    if (pipe2(from, O_CLOEXEC) != 0) {
        close(to[0]);
        close(to[1]);
        return peft_fail(err, "cannot make a pipe: %s", strerror(errno));
    }
    int rc = spawn(&pid, argv, to[0], from[1]);
    close(to[0]);
    close(from[1]);
    *c = (Child){.pid = rc == 0 ? pid : 0, .in = to[1], .out = from[0]};
    if (rc == 0 && fcntl(c->in, F_SETFL, O_NONBLOCK) == 0) return true;
    if (rc == 0) {
        child_end(c);
    } else {
        close(to[1]);
        close(from[0]);
    }
    return peft_fail(err, "cannot start the trained program: %s", strerror(rc ? rc : errno));
}

/* Waits for the descriptor until `end` (now_ms). */
static bool ready(int fd, short what, double end, PeftError *err) {
    for (;;) {
        struct pollfd p = {.fd = fd, .events = what};
        double left = end - now_ms();
        int rc = left > 0 ? poll(&p, 1, (int)left + 1) : 0;
        if (rc > 0) return true;
        if (rc == 0) return peft_fail(err, "no answer within %d s", PREDICT_SECONDS);
        if (errno != EINTR) return peft_fail(err, "poll: %s", strerror(errno));
    }
}

static bool child_write(const Child *c, const char *line, size_t n, double end, PeftError *err) {
    for (size_t at = 0; at < n;) {
        ssize_t k = write(c->in, line + at, n - at);
        if (k > 0)
            at += (size_t)k;
        else if (k < 0 && errno == EAGAIN) {
            if (!ready(c->in, POLLOUT, end, err)) return false;
        } else if (k == 0 || errno != EINTR)
            return peft_fail(err, "the trained program ended");
    }
    return true;
}

/* One line into `answer`, which has room for MAX_ANSWER bytes. */
static bool child_read(const Child *c, char *answer, size_t *n, double end, PeftError *err) {
    for (*n = 0; *n < MAX_ANSWER;) {
        if (!ready(c->out, POLLIN, end, err)) return false;
        ssize_t k = read(c->out, answer + *n, MAX_ANSWER - *n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0)
            return peft_fail(err, "the trained program ended; `predict` in a terminal says why");
        *n += (size_t)k;
        if (answer[*n - 1] == '\n') return true;
    }
    return peft_fail(err, "an answer of more than %d bytes", MAX_ANSWER);
}

/* ---- a question ---- */

static bool is_answer(const json_t *a) {
    const json_t *p = json_object_get(a, "probabilities");
    if (!json_is_integer(json_object_get(a, "label")) || !json_array_size(p)) return false;
    for (size_t i = 0; i < json_array_size(p); i++)
        if (!json_is_number(json_array_get(p, i))) return false;
    return true;
}

static json_t *child_ask(const Child *c, const char *line, PeftError *err) {
    double end = now_ms() + 1e3 * PREDICT_SECONDS;
    size_t n = 0;
    json_t *a = NULL;
    char *answer = peft_alloc(MAX_ANSWER, 1, err);
    if (answer && child_write(c, line, strlen(line), end, err) &&
        child_read(c, answer, &n, end, err)) {
        a = json_loadb(answer, n, JSON_REJECT_DUPLICATES, NULL);
        if (!is_answer(a)) {
            json_decref(a);
            a = NULL;
            peft_fail(err, "the answer is not one: weights that are not numbers?");
        }
    }
    free(answer);
    return a;
}

/* With m->busy held. `target` is a copy taken under the lock. */
static json_t *ask_held(Model *m, const Target *target, const char *line, double *ms,
                        PeftError *err) {
    if (m->child_of != target->finished) child_end(&m->child);
    if (!m->child.pid) {
        /* The first answer would measure the loading of the weights. */
        json_t *first = NULL;
        if (child_start(&m->child, target, err)) first = child_ask(&m->child, "warm\n", err);
        m->child_of = target->finished;
        json_decref(first);
        if (!first) {
            child_end(&m->child);
            return NULL;
        }
    }
    double start = now_ms();
    json_t *a = child_ask(&m->child, line, err);
    *ms = now_ms() - start;
    if (!a) child_end(&m->child);
    return a;
}

static json_t *ask(Model *m, const Target *target, const char *line) {
    PeftError err = {{0}, 0};
    struct timespec t;
    json_t *a = NULL;
    double ms = 0;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += PREDICT_SECONDS;
    if (pthread_mutex_timedlock(&m->busy, &t) == 0) {
        a = ask_held(m, target, line, &ms, &err);
        pthread_mutex_unlock(&m->busy);
    } else {
        peft_fail(&err, "busy with other questions; try again");
    }
    json_t *out =
        json_pack("{s:s, s:I}", "program", target->program, "seed", (json_int_t)target->seed);
    if (a) {
        json_object_set(out, "label", json_object_get(a, "label"));
        json_object_set(out, "probabilities", json_object_get(a, "probabilities"));
        json_object_set_new(out, "ms", json_real(ms));
    } else {
        json_object_set_new(out, "error", json_string(err.msg));
    }
    json_decref(a);
    return out;
}

/* The text as one line: control characters, which no tokenizer keeps, become spaces. */
static char *as_line(const char *text) {
    size_t n = strlen(text);
    char *line = malloc(n + 2);
    if (!line) return NULL;
    for (size_t i = 0; i < n; i++)
        line[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? ' ' : text[i];
    memcpy(line + n, "\n", 2);
    return line;
}

json_t *models_ask(Models *m, const char *text) {
    json_t *list = json_array();
    char *line = as_line(text);
    Target target;
    pthread_mutex_lock(&m->lock);
    int n = line ? m->n : 0;
    pthread_mutex_unlock(&m->lock);
    for (int i = 0; i < n; i++) {
        pthread_mutex_lock(&m->lock);
        target = m->model[i].target;
        pthread_mutex_unlock(&m->lock);
        if (target.present) json_array_append_new(list, ask(&m->model[i], &target, line));
    }
    free(line);
    return list;
}

/* ---- which models there are ---- */

void models_init(Models *m) {
    memset(m, 0, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    for (int i = 0; i < MAX_VARIANTS; i++) pthread_mutex_init(&m->model[i].busy, NULL);
}

static Target *find_or_add(Models *m, const char *program) {
    for (int i = 0; i < m->n; i++)
        if (strcmp(m->model[i].target.program, program) == 0) return &m->model[i].target;
    if (m->n == MAX_VARIANTS || !is_plain_name(program, false)) return NULL;
    Target *new = &m->model[m->n].target;
    if (snprintf(new->program, sizeof new->program, "%s", program) >= (int)sizeof new->program)
        return NULL;
    m->n++;
    return new;
}

/* Slots keep their place: somebody may be asking one. */
void models_update(Models *m, const Comparison *c, const char *runs) {
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < m->n; i++) m->model[i].target.present = false;
    for (int i = 0; i < c->n; i++) {
        const Run *r = &c->variant[i]->run[0];
        Target *slot = find_or_add(m, r->program);
        if (!slot) continue;
        size_t room = sizeof slot->exe;
        slot->present = snprintf(slot->exe, room, "%s/%s/run", runs, r->program) < (int)room &&
                        snprintf(slot->dir, sizeof slot->dir, "%s", r->dir) < (int)sizeof slot->dir;
        slot->seed = r->seed;
        slot->finished = r->finished;
    }
    pthread_mutex_unlock(&m->lock);
}

void models_free(Models *m) {
    for (int i = 0; i < MAX_VARIANTS; i++) {
        child_end(&m->model[i].child);
        pthread_mutex_destroy(&m->model[i].busy);
    }
    pthread_mutex_destroy(&m->lock);
}
