/* demo RUNS [--port N] [--bind ADDRESS] [--host NAME]
 *
 * Serves the live demo of the runs in RUNS until it is interrupted. The address is loopback's
 * unless another is given; --host is a name that browsers may reach it by beside localhost and
 * numeric addresses. To be started in the repository: model programs, graphs and figures are read
 * from models/, docs/graphs/ and figures/. Exit code 0; 1 when it cannot serve; 2 for a wrong
 * command line. */
#include "demo.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool parse_port(const char *text, unsigned *port) {
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    *port = (unsigned)v;
    return text[0] >= '0' && text[0] <= '9' && !*end && v <= 65535;
}

static bool parse(DemoOptions *o, int argc, char **argv) {
    *o = (DemoOptions){.bind = "127.0.0.1", .port = 8080};
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--port") == 0 && more) {
            if (!parse_port(argv[++i], &o->port)) return false;
        } else if (strcmp(argv[i], "--bind") == 0 && more)
            o->bind = argv[++i];
        else if (strcmp(argv[i], "--host") == 0 && more)
            o->host = argv[++i];
        else if (argv[i][0] != '-' && !o->runs)
            o->runs = argv[i];
        else
            return false;
    }
    return o->runs != NULL;
}

static void announce(const DemoOptions *o, unsigned port, const State *state) {
    bool six = strchr(o->bind, ':') != NULL;
    fprintf(stderr, "demo of %s: http://%s%s%s:%u\n", o->runs, six ? "[" : "", o->bind,
            six ? "]" : "", port);
    if (!state->trained)
        fprintf(stderr,
                "nothing is trained in %s yet: run `make compare` in another terminal; the page "
                "fills in while it trains\n",
                o->runs);
    fprintf(stderr, "ctrl-C ends it\n");
}

/* Until a signal; once a second late clients are cut off. */
static void serve(Server *server, const sigset_t *signals) {
    const struct timespec second = {1, 0};
    while (sigtimedwait(signals, NULL, &second) < 0) server_sweep(server);
}

static bool demo(const DemoOptions *o, const sigset_t *signals, PeftError *err) {
    static Models models;
    static State state;
    struct stat st;
    if (stat("models", &st) != 0)
        return peft_fail(err, "there is no models/ here; start it in the repository (make demo)");
    models_init(&models);
    bool ok = state_start(&state, o->runs, &models, err);
    if (ok) {
        Server *server = server_start(o, &state, &models, err);
        ok = server != NULL;
        if (ok) announce(o, server_port(server), &state);
        if (ok) serve(server, signals);
        state_stop(&state);
        server_stop(server);
        state_free(&state);
    }
    models_free(&models);
    return ok;
}

int main(int argc, char **argv) {
    DemoOptions o;
    PeftError err = {{0}, 0};
    sigset_t signals;
    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "usage: demo RUNS [--port N] [--bind ADDRESS] [--host NAME]\n");
        return 2;
    }
    /* Every thread inherits the mask; only serve() takes these. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* Children that spin while they wait would take the processor from a training run. */
    setenv("OMP_WAIT_POLICY", "passive", 0);
    if (demo(&o, &signals, &err)) return 0;
    fprintf(stderr, "demo: error: %s\n", err.msg);
    return 1;
}
