/* The part of connections.c that only server.c needs: what libmicrohttpd calls. */
#ifndef DEMO_CONNECTIONS_H
#define DEMO_CONNECTIONS_H

#include <microhttpd.h>

#include "demo.h"

/* For MHD_OPTION_NOTIFY_CONNECTION, with the Connections as cls. */
void connections_notify(void *cls, struct MHD_Connection *connection, void **context,
                        enum MHD_ConnectionNotificationCode code);

#endif
