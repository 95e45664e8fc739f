/* virtio network card (virtio 1.2, clause 5.1) in front of a network backend. */
#ifndef NESTOR_DEVICES_VIRTIO_NET_H
#define NESTOR_DEVICES_VIRTIO_NET_H

#include "base/types.h"
#include "devices/net_backend.h"
#include "devices/pci.h"
#include "mem/guest_mem.h"

struct virtio_net;

struct virtio_net_config {
    struct net_backend *backend; /* the card's from now on, also where creation fails */
    uint8_t mac[6];              /* all zero: 52:54:00:12:34:56 */
    uint16_t mtu;                /* 0: 1500 */
};

/* 0 or -errno with one line told. */
MUST_CHECK int virtio_net_create(struct virtio_net **net, const struct virtio_net_config *config,
                                 struct guest_mem *mem);
/* Also destroys the backend. No register access may come any more. */
void virtio_net_destroy(struct virtio_net *net);
struct pci_device *virtio_net_pci(struct virtio_net *net);
/* Plug the cable in or out: the driver is told. */
void virtio_net_set_link(struct virtio_net *net, bool up);
/* Stop touching the rings and guest memory (frames that arrive are lost); and go on. */
void virtio_net_quiesce(struct virtio_net *net);
void virtio_net_resume(struct virtio_net *net);

/* "52:54:00:12:34:56", a unicast address other than zero. -EINVAL with one line told. */
MUST_CHECK int net_mac_parse(uint8_t mac[6], const char *text);

#endif
