/* Deadlines. libmicrohttpd drops a connection without traffic; a client that sends a byte now and
 * then would hold its place forever, so that a few of them shut out everybody. Here a request has
 * to be complete REQUEST_SECONDS after its connection was opened or the one before was answered.
 *
 * A late connection's socket is shut down, not closed: its own thread then sees the end and cleans
 * up. The lock is held from finding the socket to shutting it down, and a closing connection leaves
 * the table first, so that the descriptor is still the same connection's. */
#include "demo.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "connections.h"

typedef struct Slot {
    struct Connections *owner;
    int fd;          /* -1: free */
    time_t deadline; /* CLOCK_MONOTONIC; 0: none */
} Slot;

struct Connections {
    pthread_mutex_t lock;
    Slot slot[MAX_CONNECTIONS + 8];
};

enum { SLOTS = sizeof((Connections *)0)->slot / sizeof(Slot) };

static time_t seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

Connections *connections_new(PeftError *err) {
    Connections *c = peft_zalloc(1, sizeof *c, err);
    if (!c) return NULL;
    pthread_mutex_init(&c->lock, NULL);
    for (int i = 0; i < SLOTS; i++) c->slot[i] = (Slot){.owner = c, .fd = -1};
    return c;
}

static void set_deadline(struct MHD_Connection *connection, time_t deadline) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    Slot *slot = info ? info->socket_context : NULL;
    if (!slot) return;
    pthread_mutex_lock(&slot->owner->lock);
    slot->deadline = deadline;
    pthread_mutex_unlock(&slot->owner->lock);
}

void connection_request_read(struct MHD_Connection *connection) {
    set_deadline(connection, 0);
}

void connection_request_done(struct MHD_Connection *connection) {
    set_deadline(connection, seconds_now() + REQUEST_SECONDS);
}

void connections_notify(void *cls, struct MHD_Connection *connection, void **context,
                        enum MHD_ConnectionNotificationCode code) {
    Connections *c = cls;
    Slot *slot = *context;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    pthread_mutex_lock(&c->lock);
    if (code == MHD_CONNECTION_NOTIFY_CLOSED && slot) slot->fd = -1;
    for (int i = 0; code == MHD_CONNECTION_NOTIFY_STARTED && info && i < SLOTS; i++)
        if (c->slot[i].fd < 0) {
            *context = slot = &c->slot[i];
            slot->fd = info->connect_fd;
            slot->deadline = seconds_now() + REQUEST_SECONDS;
            break;
        }
    pthread_mutex_unlock(&c->lock);
}

void connections_sweep(Connections *c) {
    time_t now = seconds_now();
    pthread_mutex_lock(&c->lock);
    for (int i = 0; i < SLOTS; i++) {
        Slot *slot = &c->slot[i];
        if (slot->fd < 0 || !slot->deadline || now < slot->deadline) continue;
        shutdown(slot->fd, SHUT_RDWR);
        slot->deadline = 0;
    }
    pthread_mutex_unlock(&c->lock);
}

void connections_free(Connections *c) {
    if (!c) return;
    pthread_mutex_destroy(&c->lock);
    free(c);
}
