/* What a network card needs of the network behind it, and the other way round. A backend has one thread, on
 * which all of a card's work is done: it serves the card's queues when the card was kicked, and delivers
 * frames to it. So a frame passes from the guest to the network and back without another thread.
 *
 * Frames are Ethernet II without the frame check sequence.
 */
#ifndef NESTOR_DEVICES_NET_BACKEND_H
#define NESTOR_DEVICES_NET_BACKEND_H

#include "base/types.h"

#define NET_ETHERNET_HEADER 14
/* The longest frame that passes between card and backend: the largest IP packet and a VLAN tag. */
#define NET_FRAME_MAX (NET_ETHERNET_HEADER + 4 + 65535)

/* All called on the backend's thread. */
struct net_client {
    /* The card was kicked. True: there is more to do, come back after looking after the network. */
    bool (*service)(void *context);
    void (*receive)(void *context, const uint8_t *frame, size_t length);
    /* The end of a batch of receive(): what was held back for the sake of larger units goes out now. */
    void (*received)(void *context);
};

struct net_backend;

struct net_backend_ops {
    /* Start the thread. 0 or -errno, with one line told. */
    int (*start)(struct net_backend *backend, const struct net_client *client, void *context);
    /* Have service() called soon. From any thread; never blocks. */
    void (*kick)(struct net_backend *backend);
    /* From service() only. The frame has all its checksums. */
    void (*send)(struct net_backend *backend, const uint8_t *frame, size_t length);
    /* Stop the thread, if it was started, and free the backend. */
    void (*destroy)(struct net_backend *backend);
};

struct net_backend {
    const struct net_backend_ops *ops;
    size_t frame_max; /* the longest frame that send() takes; longer TCP packets are cut up before */
};

#endif
