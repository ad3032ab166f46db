/* HTTP, on libmicrohttpd with a thread per connection: an answer may wait, for a model or for an
 * event, without holding up another. What a request may be is decided here, before anything acts
 * on it:
 *
 *   Host is localhost, a numeric address or the name given with --host: a page of another site
 *   whose name was made to resolve to this machine (DNS rebinding) gets nothing. POST takes JSON
 *   from a page of the same origin only. A body has a length, of at most MAX_BODY bytes. Names in
 *   a URL are plain (is_plain_name) and looked up in one folder.
 *
 * Every response carries the headers that keep the page from loading or running anything else. */
#include "demo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "connections.h"

extern const char page_text[], page_policy[]; /* made from page.html */

enum { MAX_PROGRAM = 64 << 10, MAX_PICTURE = 8 << 20, HEARTBEAT_SECONDS = 5 };

struct Server {
    struct MHD_Daemon *daemon;
    Connections *connections;
    State *state;
    Models *models;
    const char *host;
    pthread_mutex_t lock;
    int listeners;
};

typedef struct Request { /* from its header to its end */
    char *body;
    size_t n;
} Request;

typedef enum MHD_Result Result;

/* ---- responses ---- */

static struct MHD_Response *text_response(char *text, size_t n) {
    struct MHD_Response *r = MHD_create_response_from_buffer(n, text, MHD_RESPMEM_MUST_FREE);
    if (!r) free(text);
    return r;
}

static void header(struct MHD_Response *r, const char *name, const char *value) {
    MHD_add_response_header(r, name, value);
}

/* Takes over the response; NULL (no memory) ends the connection. */
static Result reply(struct MHD_Connection *c, unsigned code, const char *type, const char *policy,
                    struct MHD_Response *r) {
    if (!r) return MHD_NO;
    header(r, "Content-Type", type);
    header(r, "Content-Security-Policy", policy);
    header(r, "X-Content-Type-Options", "nosniff");
    header(r, "X-Frame-Options", "DENY");
    header(r, "Referrer-Policy", "no-referrer");
    header(r, "Cross-Origin-Resource-Policy", "same-origin");
    header(r, "Cross-Origin-Opener-Policy", "same-origin");
    header(r, "Permissions-Policy", "camera=(), geolocation=(), microphone=()");
    header(r, "Cache-Control", "no-store");
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED) header(r, "Allow", "GET, HEAD, POST");
    Result sent = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return sent;
}

#define NO_CONTENT_POLICY "default-src 'none'; frame-ancestors 'none'"
/* A picture opened by itself: its own style, no script. */
#define PICTURE_POLICY \
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"

static Result send_json(struct MHD_Connection *c, unsigned code, json_t *root) {
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(root);
    return text ? reply(c, code, "application/json", NO_CONTENT_POLICY,
                        text_response(text, strlen(text)))
                : MHD_NO;
}

static Result refuse(struct MHD_Connection *c, unsigned code, const char *why) {
    return send_json(c, code, json_pack("{s:s}", "error", why));
}

/* A regular file DIR/NAME of at most `limit` bytes; `name` is plain. */
static Result send_file(struct MHD_Connection *c, const char *dir, const char *name, off_t limit,
                        const char *type) {
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > limit) {
        if (fd >= 0) close(fd);
        return refuse(c, MHD_HTTP_NOT_FOUND, "there is no such file");
    }
    struct MHD_Response *r = MHD_create_response_from_fd64((uint64_t)st.st_size, fd);
    if (!r) close(fd);
    return reply(c, MHD_HTTP_OK, type, PICTURE_POLICY, r);
}

/* ---- who asks ---- */

/* `host` is NAME, NAME:PORT or [ADDRESS]:PORT. */
static bool is_host_allowed(const Server *s, const char *host) {
    char name[256];
    struct in6_addr address;
    bool six = host && host[0] == '[';
    if (!host) return false;
    size_t n = strcspn(host + six, six ? "]" : ":");
    const char *rest = host + six + n;
    if (six && *rest++ != ']') return false;
    if (n >= sizeof name || (*rest && (*rest != ':' || rest[1 + strspn(rest + 1, "0123456789")])))
        return false;
    memcpy(name, host + six, n);
    name[n] = 0;
    if (inet_pton(six ? AF_INET6 : AF_INET, name, &address) == 1) return true;
    return !six && (strcasecmp(name, "localhost") == 0 || (s->host && !strcasecmp(name, s->host)));
}

static const char *header_of(struct MHD_Connection *c, const char *name) {
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

/* Browsers send Origin with every POST; other programs need not. */
static bool is_same_origin(struct MHD_Connection *c) {
    const char *origin = header_of(c, "Origin"), *site = header_of(c, "Sec-Fetch-Site");
    if (site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0) return false;
    if (!origin) return true;
    return strncmp(origin, "http://", 7) == 0 && strcasecmp(origin + 7, header_of(c, "Host")) == 0;
}

static bool is_json_type(const char *type) {
    size_t n = strlen("application/json");
    return type && strncasecmp(type, "application/json", n) == 0 &&
           (!type[n] || type[n] == ';' || type[n] == ' ');
}

/* What is wrong with a POST before its body is read; 0: nothing. */
static unsigned check_post(struct MHD_Connection *c, const char **why) {
    const char *length = header_of(c, "Content-Length");
    *why = "only the page itself may ask";
    if (!is_same_origin(c)) return MHD_HTTP_FORBIDDEN;
    *why = "the body has to be application/json";
    if (!is_json_type(header_of(c, "Content-Type"))) return MHD_HTTP_UNSUPPORTED_MEDIA_TYPE;
    *why = "Content-Length is missing";
    if (!length || header_of(c, "Transfer-Encoding")) return MHD_HTTP_LENGTH_REQUIRED;
    *why = "the body is longer than 4096 bytes";
    if (strlen(length) > 9 || atol(length) > MAX_BODY) return MHD_HTTP_CONTENT_TOO_LARGE;
    return 0;
}

/* ---- events ---- */

typedef struct Listener {
    Server *server;
    uint64_t seen;
} Listener;

/* Blocks this connection's thread until something changed; a comment now and then finds out
 * whether the client is still there. */
static ssize_t next_event(void *cls, uint64_t pos, char *buf, size_t max) {
    Listener *l = cls;
    (void)pos;
    uint64_t version = state_wait(l->server->state, l->seen, HEARTBEAT_SECONDS);
    if (!version) return MHD_CONTENT_READER_END_OF_STREAM;
    int n = version == l->seen ? snprintf(buf, max, ": still here\n\n")
                               : snprintf(buf, max, "event: change\ndata: {\"version\": %llu}\n\n",
                                          (unsigned long long)version);
    l->seen = version;
    return n < (int)max ? n : MHD_CONTENT_READER_END_WITH_ERROR;
}

static bool count_listener(Server *s, int change) {
    pthread_mutex_lock(&s->lock);
    bool ok = s->listeners + change <= MAX_LISTENERS;
    if (ok) s->listeners += change;
    pthread_mutex_unlock(&s->lock);
    return ok;
}

static void end_events(void *cls) {
    Listener *l = cls;
    count_listener(l->server, -1);
    free(l);
}

static Result send_events(Server *s, struct MHD_Connection *c) {
    if (!count_listener(s, 1))
        return refuse(c, MHD_HTTP_SERVICE_UNAVAILABLE, "too many pages are listening");
    Listener *l = malloc(sizeof *l);
    if (l) *l = (Listener){s, 0};
    struct MHD_Response *r =
        l ? MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 1024, next_event, l, end_events)
          : NULL;
    if (!r) {
        count_listener(s, -1);
        free(l);
    }
    return reply(c, MHD_HTTP_OK, "text/event-stream", NO_CONTENT_POLICY, r);
}

/* ---- predict ---- */

/* The text of {"text": "..."}, borrowed from root; NULL when the body is anything else. jansson
 * refuses what is not UTF-8 and U+0000. */
static const char *text_of(json_t *root) {
    const char *text = json_string_value(json_object_get(root, "text"));
    return text && json_object_size(root) == 1 && text[strspn(text, " \t\r\n")] ? text : NULL;
}

static Result predict(Server *s, struct MHD_Connection *c, const Request *q) {
    json_t *root = json_loadb(q->body, q->n, JSON_REJECT_DUPLICATES, NULL);
    const char *text = text_of(root);
    json_t *answer = NULL;
    if (text) answer = json_pack("{s:s, s:o}", "text", text, "models", models_ask(s->models, text));
    json_decref(root);
    if (!text)
        return refuse(c, MHD_HTTP_BAD_REQUEST,
                      "the body has to be {\"text\": \"...\"} in UTF-8, with a text in it");
    return send_json(c, MHD_HTTP_OK, answer);
}

/* ---- routes ---- */

static const char *argument(struct MHD_Connection *c, const char *name) {
    const char *v = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, name);
    return v ? v : "";
}

static Result send_program(struct MHD_Connection *c) {
    char file[128];
    const char *name = argument(c, "name");
    if (!is_plain_name(name, false))
        return refuse(c, MHD_HTTP_BAD_REQUEST, "name has to be that of a program in models/");
    snprintf(file, sizeof file, "%s.bert", name);
    return send_file(c, "models", file, MAX_PROGRAM, "text/plain; charset=utf-8");
}

static Result send_graph(struct MHD_Connection *c) {
    char file[128];
    const char *name = argument(c, "name");
    if (!is_plain_name(name, true))
        return refuse(c, MHD_HTTP_BAD_REQUEST, "name has to be PROGRAM.VIEW");
    snprintf(file, sizeof file, "%s.svg", name);
    return send_file(c, "docs/graphs", file, MAX_PICTURE, "image/svg+xml");
}

static Result send_figure(struct MHD_Connection *c, const char *name) {
    const char *dot = strrchr(name, '.');
    bool svg = dot && strcmp(dot, ".svg") == 0, png = dot && strcmp(dot, ".png") == 0;
    if (!is_plain_name(name, true) || !(svg || png))
        return refuse(c, MHD_HTTP_NOT_FOUND, "figures are NAME.svg and NAME.png");
    return send_file(c, "figures", name, MAX_PICTURE, svg ? "image/svg+xml" : "image/png");
}

static Result get(Server *s, struct MHD_Connection *c, const char *url) {
    if (strcmp(url, "/") == 0)
        return reply(c, MHD_HTTP_OK, "text/html; charset=utf-8", page_policy,
                     MHD_create_response_from_buffer(strlen(page_text), (void *)page_text,
                                                     MHD_RESPMEM_PERSISTENT));
    if (strcmp(url, "/api/comparison") == 0) {
        char *text = state_text(s->state);
        return text ? reply(c, MHD_HTTP_OK, "application/json", NO_CONTENT_POLICY,
                            text_response(text, strlen(text)))
                    : MHD_NO;
    }
    if (strcmp(url, "/api/events") == 0) return send_events(s, c);
    if (strcmp(url, "/api/program") == 0) return send_program(c);
    if (strcmp(url, "/graph") == 0) return send_graph(c);
    if (strncmp(url, "/figures/", 9) == 0) return send_figure(c, url + 9);
    if (strcmp(url, "/api/predict") == 0)
        return refuse(c, MHD_HTTP_METHOD_NOT_ALLOWED, "this takes POST");
    return refuse(c, MHD_HTTP_NOT_FOUND, "there is nothing at this address");
}

/* ---- requests: called once for the header, then for pieces of the body, then at its end ---- */

static Result begin(Server *s, struct MHD_Connection *c, const char *url, const char *method,
                    void **context) {
    const char *why = NULL;
    bool post = strcmp(method, "POST") == 0;
    if (!is_host_allowed(s, header_of(c, "Host")))
        return refuse(c, MHD_HTTP_FORBIDDEN,
                      "Host has to be localhost or a numeric address; demo --host NAME allows one");
    if (!post && strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return refuse(c, MHD_HTTP_METHOD_NOT_ALLOWED, "this takes GET and POST");
    const char *length = header_of(c, "Content-Length");
    if (!post && (header_of(c, "Transfer-Encoding") || (length && strcmp(length, "0") != 0)))
        return refuse(c, MHD_HTTP_BAD_REQUEST, "GET takes no body");
    if (post && strcmp(url, "/api/predict") != 0)
        return refuse(c, MHD_HTTP_NOT_FOUND, "only /api/predict takes POST");
    unsigned code = post ? check_post(c, &why) : 0;
    if (code) return refuse(c, code, why);
    Request *q = calloc(1, sizeof *q);
    if (q && post) q->body = malloc(MAX_BODY);
    *context = q;
    return q && (!post || q->body) ? MHD_YES : MHD_NO;
}

static Result handle(void *cls, struct MHD_Connection *c, const char *url, const char *method,
                     const char *version, const char *data, size_t *size, void **context) {
    Server *s = cls;
    Request *q = *context;
    (void)version;
    if (!q) return begin(s, c, url, method, context);
    if (*size) {
        if (!q->body || *size > MAX_BODY - q->n) return MHD_NO;
        memcpy(q->body + q->n, data, *size);
        q->n += *size;
        *size = 0;
        return MHD_YES;
    }
    connection_request_read(c);
    return q->body ? predict(s, c, q) : get(s, c, url);
}

static void completed(void *cls, struct MHD_Connection *c, void **context,
                      enum MHD_RequestTerminationCode why) {
    Request *q = *context;
    (void)cls;
    (void)why;
    connection_request_done(c);
    if (q) free(q->body);
    free(q);
    *context = NULL;
}

/* ---- start and stop ---- */

static bool address_of(const DemoOptions *o, struct sockaddr_storage *out) {
    struct sockaddr_in *four = (struct sockaddr_in *)out;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, o->bind, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)o->port);
        return true;
    }
    six->sin6_family = AF_INET6;
    six->sin6_port = htons((uint16_t)o->port);
    return inet_pton(AF_INET6, o->bind, &six->sin6_addr) == 1;
}

/* The library's own complaints are about clients; those are not this program's failures. */
static void ignore(void *cls, const char *format, va_list values) {
    (void)cls;
    (void)format;
    (void)values;
}

static struct MHD_Daemon *start(Server *s, const struct sockaddr_storage *address) {
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
                     MHD_USE_POLL | MHD_USE_ERROR_LOG;
    if (address->ss_family == AF_INET6) flags |= MHD_USE_IPv6;
    errno = 0;
    return MHD_start_daemon(flags, 0, NULL, NULL, handle, s, MHD_OPTION_EXTERNAL_LOGGER, ignore,
                            NULL, MHD_OPTION_SOCK_ADDR, address, MHD_OPTION_CONNECTION_LIMIT,
                            (unsigned)MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
                            (unsigned)REQUEST_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                            (size_t)(32 << 10), MHD_OPTION_THREAD_STACK_SIZE, (size_t)(256 << 10),
                            MHD_OPTION_NOTIFY_COMPLETED, completed, s, MHD_OPTION_NOTIFY_CONNECTION,
                            connections_notify, s->connections, MHD_OPTION_STRICT_FOR_CLIENT, 1,
                            MHD_OPTION_END);
}

Server *server_start(const DemoOptions *o, State *state, Models *models, PeftError *err) {
    struct sockaddr_storage address;
    if (!address_of(o, &address)) {
        peft_fail(err, "--bind %s is not a numeric address; 127.0.0.1 is this machine alone",
                  o->bind);
        return NULL;
    }
    Server *s = peft_zalloc(1, sizeof *s, err);
    if (!s) return NULL;
    pthread_mutex_init(&s->lock, NULL);
    s->state = state;
    s->models = models;
    s->host = o->host;
    s->connections = connections_new(err);
    if (s->connections) s->daemon = start(s, &address);
    if (s->daemon) return s;
    peft_fail(err, "cannot listen on %s port %u: %s; --port N takes another", o->bind, o->port,
              errno ? strerror(errno) : "the HTTP library refused");
    server_stop(s);
    return NULL;
}

void server_sweep(Server *s) {
    connections_sweep(s->connections);
}

unsigned server_port(const Server *s) {
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info ? info->port : 0;
}

void server_stop(Server *s) {
    if (!s) return;
    if (s->daemon) MHD_stop_daemon(s->daemon);
    connections_free(s->connections);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
