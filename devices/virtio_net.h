/* virtio network card (virtio 1.2, clause 5.1) in front of a network backend. */
#ifndef NESTOR_DEVICES_VIRTIO_NET_H
#define NESTOR_DEVICES_VIRTIO_NET_H

#include "base/trace.h"
#include "base/types.h"
#include "devices/net_backend.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

struct virtio_net;

struct virtio_net_config {
    struct net_backend *backend; /* the card's from now on, also where creation fails */
    uint8_t mac[6];              /* all zero: 52:54:00:12:34:56 */
    uint16_t mtu;                /* 0: 1500 */
    const struct trace *trace;   /* for TRACE_NET; NULL: no log. Outlives the card */
};

/* Frames since the start, as they were on the wire: after segmentation, before joining. */
struct virtio_net_counters {
    uint64_t sent_frames, sent_bytes; /* by the guest */
    uint64_t received_frames, received_bytes;
};

/* 0 or -errno with one line told. */
MUST_CHECK int virtio_net_create(struct virtio_net **net, const struct virtio_net_config *config,
                                 struct guest_mem *mem);
/* Also destroys the backend. No register access may come any more. */
void virtio_net_destroy(struct virtio_net *net);
struct pci_device *virtio_net_pci(struct virtio_net *net);
/* From any thread. */
void virtio_net_count(const struct virtio_net *net, struct virtio_net_counters *counters);
/* Plug the cable in or out: the driver is told. */
void virtio_net_set_link(struct virtio_net *net, bool up);
/* Stop touching the rings and guest memory (frames that arrive are lost); and go on. */
void virtio_net_quiesce(struct virtio_net *net);
void virtio_net_resume(struct virtio_net *net);

/* "52:54:00:12:34:56", a unicast address other than zero. -EINVAL with one line told. */
MUST_CHECK int net_mac_parse(uint8_t mac[6], const char *text);

#endif
