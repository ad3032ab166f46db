/* The live demo: a page over a folder of runs. state.c watches the folder and holds what the page
 * shows as text, predict.c keeps one child per trained model, connections.c bounds what a client
 * can take of the server's time, server.c speaks HTTP.
 *
 * Everything that comes over the network is hostile: bodies and names are bounded and checked in
 * server.c before anything else sees them. */
#ifndef DEMO_H
#define DEMO_H

#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

#include "../../runtime/error.h"
#include "../compare/compare.h"

enum {
    MAX_BODY = 4096,       /* bytes of a request's body */
    MAX_CONNECTIONS = 64,  /* at one time */
    MAX_LISTENERS = 16,    /* of them, on /api/events */
    REQUEST_SECONDS = 10,  /* from the first byte of a request to its last; also without traffic */
    PREDICT_SECONDS = 10,  /* for one model's answer, and for waiting until it is free */
    MAX_ANSWER = 64 << 10, /* bytes of one answer */
};

typedef struct DemoOptions {
    const char *runs, *bind, *host; /* host: a name that Host may have beside localhost, or NULL */
    unsigned port;
} DemoOptions;

/* ---- predict.c: children that answer lines ---- */

typedef struct Child {
    pid_t pid; /* 0: none */
    int in, out;
} Child;

typedef struct Target { /* which run a question goes to */
    char program[64], dir[2048], exe[2048];
    int64_t seed, finished;
    bool present; /* finished and there */
} Target;

typedef struct Model {
    Target target;        /* guarded by Models.lock */
    pthread_mutex_t busy; /* held while asking; guards the two below */
    Child child;          /* of the run that finished at `child_of` */
    int64_t child_of;
} Model;

typedef struct Models {
    pthread_mutex_t lock; /* guards targets and n */
    Model model[MAX_VARIANTS];
    int n;
} Models;

void models_init(Models *m);
/* Takes the finished runs, the lowest seed of each program, as what can be asked. */
void models_update(Models *m, const Comparison *c, const char *runs);
/* Array of {program, seed, label, probabilities, ms} or {program, seed, error}. `text` is UTF-8. */
json_t *models_ask(Models *m, const char *text);
void models_free(Models *m);

/* ---- state.c: what the page shows ---- */

typedef struct State {
    const char *runs;
    Models *models;
    pthread_t watcher;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* also when stopping */
    char *text;             /* JSON; replaced whole */
    uint64_t version, signature;
    bool stopping;
    int trained; /* finished variants */
} State;

bool state_start(State *s, const char *runs, Models *models, PeftError *err);
/* A copy of the text, to be freed; NULL when there is no memory. */
char *state_text(State *s);
/* Waits until the version is not `seen`, the time is over or the server stops. Returns the version,
 * 0 when the server stops. */
uint64_t state_wait(State *s, uint64_t seen, int seconds);
/* Wakes and refuses all waiting; the watcher has ended afterwards. */
void state_stop(State *s);
void state_free(State *s);

/* ---- progress.c: runs that are not finished ---- */

/* Array of {program, seed, step, loss, epoch, val_f1_macro, seconds_ago} over RUNS/PROGRAM/seedN
 * without run.json; a field that is not known yet is absent. */
json_t *progress_read(const char *runs);
/* Changes whenever a file that the page depends on does. */
uint64_t progress_signature(const char *runs);
/* Names in `dir` that end in .svg or .png, sorted, that a URL may ask for. */
json_t *names_of_pictures(const char *dir);
/* Letters, digits, _ and -, with dots inside when `dots`: never a way out of a folder. */
bool is_plain_name(const char *name, bool dots);

/* ---- connections.c: deadlines ---- */

struct MHD_Connection;
typedef struct Connections Connections;
Connections *connections_new(PeftError *err);
/* Cuts off those that are late; to be called about once a second. */
void connections_sweep(Connections *c);
void connections_free(Connections *c);
/* The request is read: no deadline until it is answered. */
void connection_request_read(struct MHD_Connection *connection);
/* The answer is sent: the next request of this connection has its time from now. */
void connection_request_done(struct MHD_Connection *connection);

/* ---- server.c ---- */

typedef struct Server Server;
Server *server_start(const DemoOptions *o, State *state, Models *models, PeftError *err);
void server_sweep(Server *s);
unsigned server_port(const Server *s); /* the one bound, also when port 0 was asked for */
void server_stop(Server *s);           /* after state_stop, so that nobody waits for an event */

#endif
