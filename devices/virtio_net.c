/* virtio network card (virtio 1.2, clause 5.1): one pair of queues and the control queue.
 *
 * Everything but the register accesses runs on the backend's thread: a doorbell kicks it, net_service() then
 * sends what the guest queued, and frames from the network come in between by net_receive(). So the state
 * below needs no lock; `wanted` carries start and stop over from the vCPU threads.
 *
 * Frames that find no buffer in the receive queue wait in a bounded backlog instead of being lost, since a
 * lost TCP segment costs the guest a retransmission timeout.
 */
#include "devices/virtio_net.h"

#include "base/diag.h"
#include "devices/net_offload.h"
#include "devices/virtio_net_filter.h"
#include "devices/virtio_pci.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE 256
#define CONTROL_QUEUE_SIZE 64
#define CHAIN_PIECES 256
#define FRAME_BUFFERS_MAX 128 /* receive buffers that one frame is spread over */
#define TRANSMIT_BUDGET 64    /* frames in a row before the network gets its turn */
#define BACKLOG_BYTES_MAX (2 * MIB)
#define CONTROL_BYTES_MAX 4096
#define PCI_CLASS_ETHERNET 0x020000

enum queue_index { QUEUE_RECEIVE, QUEUE_TRANSMIT, QUEUE_CONTROL, QUEUE_COUNT };

enum feature {
    NET_F_CSUM = 0,
    NET_F_GUEST_CSUM = 1,
    NET_F_GUEST_OFFLOADS = 2,
    NET_F_MTU = 3,
    NET_F_MAC = 5,
    NET_F_GUEST_TSO4 = 7,
    NET_F_GUEST_TSO6 = 8,
    NET_F_HOST_TSO4 = 11,
    NET_F_HOST_TSO6 = 12,
    NET_F_MRG_RXBUF = 15,
    NET_F_STATUS = 16,
    NET_F_CTRL_VQ = 17,
    NET_F_CTRL_RX = 18,
    NET_F_CTRL_VLAN = 19,
    NET_F_CTRL_RX_EXTRA = 20,
    NET_F_CTRL_MAC_ADDR = 23,
};
#define FEATURE(name) (1ull << NET_F_##name)
/* Those of them that the driver may turn on and off while it runs. */
#define RUNTIME_OFFLOADS (FEATURE(GUEST_CSUM) | FEATURE(GUEST_TSO4) | FEATURE(GUEST_TSO6))

/* Precedes every frame in a buffer (clause 5.1.6). */
struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers;
};
_Static_assert(sizeof(struct net_header) == 12, "clause 5.1.6");
enum { HEADER_NEEDS_CSUM = 1, HEADER_DATA_VALID = 2 };
enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_ECN = 0x80 };

struct __attribute__((packed)) net_layout {
    uint8_t mac[6];
    uint16_t status;
    uint16_t max_virtqueue_pairs;
    uint16_t mtu;
};
enum { STATUS_LINK_UP = 1 };

struct backlog_frame {
    struct backlog_frame *next;
    struct net_header header;
    size_t length;
    uint8_t frame[];
};

struct virtio_net {
    struct virtio_device device; /* first */
    struct virtio_pci transport;
    struct net_backend *backend;
    bool wanted;  /* atomic: the queues are to be served */
    bool link_up; /* atomic */
    const struct trace *trace;
    struct virtio_net_counters counters; /* atomic; only the backend's thread writes */

    /* The backend thread's. */
    bool running;
    bool fresh;            /* the driver begins anew, as opposed to a resume */
    uint64_t offloads;     /* receive offloads in force */
    uint64_t receive_room; /* about the most bytes of receive buffers that the driver ever had posted */
    struct net_filter filter;
    struct backlog_frame *backlog_first, *backlog_last;
    size_t backlog_bytes;
    struct iovec pieces[CHAIN_PIECES];
    struct iovec first_pieces[CHAIN_PIECES];
    struct net_merge merge;
    uint8_t transmit[NET_FRAME_MAX];
};

/* Count a frame of at least an Ethernet header, and tell the log. */
static void frame_account(const struct virtio_net *net, const char *direction, const uint8_t *frame,
                          size_t length, uint64_t *frames, uint64_t *bytes) {
    __atomic_store_n(frames, *frames + 1, __ATOMIC_RELAXED);
    __atomic_store_n(bytes, *bytes + length, __ATOMIC_RELAXED);
    if (UNLIKELY(net->trace && net->trace->subjects & TRACE_NET))
        trace_line(net->trace,
                   "net frame %s the network: %zu bytes, %02x:%02x:%02x:%02x:%02x:%02x -> "
                   "%02x:%02x:%02x:%02x:%02x:%02x, type %02x%02x",
                   direction, length, frame[6], frame[7], frame[8], frame[9], frame[10], frame[11], frame[0],
                   frame[1], frame[2], frame[3], frame[4], frame[5], frame[12], frame[13]);
}

/* Receiving. */

/* Put a frame into receive buffers: 1 done (or not to be helped), 0 no buffers, -EPROTO broken queue. */
static int ring_put(struct virtio_net *net, struct net_header *header, const uint8_t *frame, size_t length) {
    struct virtqueue *ring = &net->device.queues[QUEUE_RECEIVE];
    bool mergeable = virtio_device_has(&net->device, FEATURE(MRG_RXBUF));
    struct virtqueue_chain first = {.iov = net->first_pieces, .capacity = CHAIN_PIECES};
    struct virtqueue_chain more = {.iov = net->pieces, .capacity = CHAIN_PIECES};
    struct {
        uint16_t head;
        uint32_t written;
    } used[FRAME_BUFFERS_MAX];
    unsigned count = 0;
    for (size_t done = 0; done < length || !count; count++) {
        struct virtqueue_chain *chain = count ? &more : &first;
        if (count == FRAME_BUFFERS_MAX || (count && !mergeable)) {
            virtqueue_rewind(ring, count); /* the buffers are too small: the frame is lost */
            return 1;
        }
        int result = virtqueue_pop(ring, chain);
        if (result <= 0) {
            virtqueue_rewind(ring, count);
            return result;
        }
        uint64_t room =
            chain->writable_bytes * (uint64_t)(uint16_t)(ring->seen_available - ring->next_available);
        if (room > net->receive_room)
            net->receive_room = room;
        size_t skip = count ? 0 : sizeof *header;
        if (chain->writable_bytes <= skip)
            return virtqueue_break(ring);
        size_t piece = virtqueue_chain_write(net->device.mem, chain, skip, frame + done, length - done);
        done += piece;
        used[count].head = chain->head;
        used[count].written = (uint32_t)(skip + piece);
    }
    header->num_buffers = (uint16_t)count;
    virtqueue_chain_write(net->device.mem, &first, 0, header, sizeof *header);
    for (unsigned i = 0; i < count; i++)
        virtqueue_push(ring, used[i].head, used[i].written);
    virtqueue_publish(ring);
    return 1;
}

/* The same; out of buffers, ask to be told when there are some. */
static bool ring_put_or_ask(struct virtio_net *net, struct net_header *header, const uint8_t *frame,
                            size_t length) {
    struct virtqueue *ring = &net->device.queues[QUEUE_RECEIVE];
    int result;
    do
        result = ring_put(net, header, frame, length);
    while (!result && virtqueue_enable_kick(ring));
    if (result < 0)
        virtio_device_broken(&net->device);
    return result != 0;
}

static void backlog_append(struct virtio_net *net, const struct net_header *header, const uint8_t *frame,
                           size_t length) {
    struct backlog_frame *entry;
    if (net->backlog_bytes + length > BACKLOG_BYTES_MAX || !(entry = malloc(sizeof *entry + length)))
        return;
    entry->next = NULL;
    entry->header = *header;
    entry->length = length;
    memcpy(entry->frame, frame, length);
    if (net->backlog_first)
        net->backlog_last->next = entry;
    else
        net->backlog_first = entry;
    net->backlog_last = entry;
    net->backlog_bytes += length;
}

static void backlog_remove(struct virtio_net *net) {
    struct backlog_frame *entry = net->backlog_first;
    net->backlog_first = entry->next;
    net->backlog_bytes -= entry->length;
    free(entry);
}

static void backlog_deliver(struct virtio_net *net) {
    while (net->backlog_first && ring_put_or_ask(net, &net->backlog_first->header, net->backlog_first->frame,
                                                 net->backlog_first->length))
        backlog_remove(net);
}

static void frame_deliver(struct virtio_net *net, struct net_header *header, const uint8_t *frame,
                          size_t length) {
    if (net->backlog_first || !ring_put_or_ask(net, header, frame, length))
        backlog_append(net, header, frame, length);
}

static void segment_deliver(void *context, const uint8_t *frame, size_t length) {
    struct net_header header = {.flags = HEADER_DATA_VALID};
    frame_deliver(context, &header, frame, length);
}

/* A joined frame. One that the driver hardly ever has room for is taken apart again. */
static void joined_deliver(struct virtio_net *net, struct net_header *header,
                           const struct net_offload *offload) {
    struct net_merge *merge = &net->merge;
    if (!net->backlog_first && ring_put_or_ask(net, header, merge->frame, merge->length))
        return;
    if (merge->length <= net->receive_room / 2)
        backlog_append(net, header, merge->frame, merge->length);
    else
        (void)net_offload_send(merge->frame, merge->length, offload, merge->headers + merge->segment_size,
                               segment_deliver, net);
}

static void merge_deliver(struct virtio_net *net) {
    struct net_offload offload;
    if (!net->merge.length)
        return;
    net_merge_finish(&net->merge, &offload);
    struct net_header header = {.flags = HEADER_DATA_VALID};
    if (offload.checksum) {
        header = (struct net_header){
            .flags = HEADER_NEEDS_CSUM,
            .gso_type = GSO_TCPV4,
            .hdr_len = (uint16_t)net->merge.headers,
            .gso_size = offload.segment_size,
            .csum_start = offload.checksum_start,
            .csum_offset = offload.checksum_offset,
        };
        joined_deliver(net, &header, &offload);
    } else {
        frame_deliver(net, &header, net->merge.frame, net->merge.length);
    }
    net_merge_clear(&net->merge);
}

static void net_receive(void *context, const uint8_t *frame, size_t length) {
    struct virtio_net *net = context;
    if (!net->running || length < NET_ETHERNET_HEADER || length > NET_FRAME_MAX ||
        !__atomic_load_n(&net->link_up, __ATOMIC_RELAXED) ||
        !net_filter_passes(&net->filter, frame, length) ||
        !virtio_device_queue_live(&net->device, QUEUE_RECEIVE))
        return;
    frame_account(net, "from", frame, length, &net->counters.received_frames, &net->counters.received_bytes);
    if (net->offloads & FEATURE(GUEST_TSO4)) {
        if (net_merge_add(&net->merge, frame, length))
            return;
        merge_deliver(net);
        if (net_merge_add(&net->merge, frame, length))
            return;
    }
    struct net_header header = {.flags = net->offloads & FEATURE(GUEST_CSUM) ? HEADER_DATA_VALID : 0};
    frame_deliver(net, &header, frame, length);
}

static void net_received(void *context) {
    struct virtio_net *net = context;
    if (!net->running || !virtio_device_queue_live(&net->device, QUEUE_RECEIVE))
        return;
    merge_deliver(net);
    virtio_device_publish(&net->device, QUEUE_RECEIVE);
}

/* Sending. */

static void frame_emit(void *context, const uint8_t *frame, size_t length) {
    struct virtio_net *net = context;
    frame_account(net, "to", frame, length, &net->counters.sent_frames, &net->counters.sent_bytes);
    net->backend->ops->send(net->backend, frame, length);
}

/* What the guest wants done to a frame: false for what it may not want. */
static bool offload_parse(const struct virtio_net *net, const struct net_header *header,
                          struct net_offload *offload) {
    *offload = (struct net_offload){
        .checksum = header->flags & HEADER_NEEDS_CSUM,
        .checksum_start = header->csum_start,
        .checksum_offset = header->csum_offset,
        .segment_size = header->gso_size,
    };
    if (offload->checksum && !virtio_device_has(&net->device, FEATURE(CSUM)))
        return false;
    switch (header->gso_type & ~GSO_ECN) {
    case GSO_NONE:
        return true;
    case GSO_TCPV4:
        offload->segmentation = NET_SEGMENT_TCP4;
        return virtio_device_has(&net->device, FEATURE(HOST_TSO4));
    case GSO_TCPV6:
        offload->segmentation = NET_SEGMENT_TCP6;
        return virtio_device_has(&net->device, FEATURE(HOST_TSO6));
    default:
        return false;
    }
}

static void chain_send(struct virtio_net *net, const struct virtqueue_chain *chain) {
    struct net_header header;
    struct net_offload offload;
    if (chain->readable_bytes < sizeof header + NET_ETHERNET_HEADER ||
        chain->readable_bytes > sizeof header + sizeof net->transmit)
        return;
    virtqueue_chain_read(chain, 0, &header, sizeof header);
    if (!offload_parse(net, &header, &offload) || !__atomic_load_n(&net->link_up, __ATOMIC_RELAXED))
        return;
    /* Copied before anyone looks at it: the guest could change it meanwhile. */
    size_t length = virtqueue_chain_read(chain, sizeof header, net->transmit, sizeof net->transmit);
    (void)net_offload_send(net->transmit, length, &offload, net->backend->frame_max, frame_emit, net);
}

/* True if there is more to send. */
static bool queue_send(struct virtio_net *net) {
    struct virtqueue *ring = &net->device.queues[QUEUE_TRANSMIT];
    struct virtqueue_chain chain = {.iov = net->pieces, .capacity = CHAIN_PIECES};
    unsigned budget = TRANSMIT_BUDGET;
    int result = 1;
    if (!virtio_device_queue_live(&net->device, QUEUE_TRANSMIT))
        return false;
    virtqueue_disable_kick(ring);
    do {
        while (budget && (result = virtio_device_pop(&net->device, QUEUE_TRANSMIT, &chain)) > 0) {
            budget--;
            uint16_t head = chain.head;
            chain_send(net, &chain);
            virtqueue_push(ring, head, 0);
        }
    } while (budget && !result && virtqueue_enable_kick(ring));
    virtio_device_publish(&net->device, QUEUE_TRANSMIT);
    if (result < 0)
        virtio_device_broken(&net->device);
    return !budget;
}

/* Control queue (clause 5.1.6.5). */

static bool control_command(struct virtio_net *net, const uint8_t *bytes, size_t length) {
    if (length < 2)
        return false;
    uint8_t class = bytes[0], command = bytes[1];
    const uint8_t *data = bytes + 2;
    length -= 2;
    if (class != NET_CONTROL_OFFLOADS)
        return net_filter_command(&net->filter, class, command, data, length);
    uint64_t offloads;
    if (command || length != sizeof offloads)
        return false;
    memcpy(&offloads, data, sizeof offloads);
    if (offloads & ~(net->device.accepted & RUNTIME_OFFLOADS) ||
        (offloads && !(offloads & FEATURE(GUEST_CSUM))))
        return false;
    net->offloads = offloads;
    return true;
}

static void control_serve(struct virtio_net *net) {
    struct virtqueue *ring = &net->device.queues[QUEUE_CONTROL];
    struct virtqueue_chain chain = {.iov = net->pieces, .capacity = CHAIN_PIECES};
    uint8_t bytes[CONTROL_BYTES_MAX];
    int result;
    if (!virtio_device_queue_live(&net->device, QUEUE_CONTROL))
        return;
    do {
        virtqueue_disable_kick(ring);
        while ((result = virtio_device_pop(&net->device, QUEUE_CONTROL, &chain)) > 0) {
            size_t length = virtqueue_chain_read(&chain, 0, bytes, sizeof bytes);
            bool ok = length == chain.readable_bytes && control_command(net, bytes, length);
            uint8_t acknowledge = !ok;
            virtqueue_push(ring, chain.head,
                           (uint32_t)virtqueue_chain_write(net->device.mem, &chain, 0, &acknowledge, 1));
        }
    } while (!result && virtqueue_enable_kick(ring));
    virtio_device_publish(&net->device, QUEUE_CONTROL);
    if (result < 0)
        virtio_device_broken(&net->device);
}

/* Starting and stopping. */

static void net_begin(struct virtio_net *net) {
    const struct net_layout *layout = (const void *)net->device.config;
    net->running = true;
    net->receive_room = 0;
    if (!net->fresh)
        return;
    net->fresh = false;
    net->offloads = net->device.accepted & RUNTIME_OFFLOADS;
    net_filter_init(&net->filter, layout->mac, virtio_device_has(&net->device, FEATURE(CTRL_VLAN)));
    if (!virtio_device_has(&net->device, FEATURE(CTRL_RX)))
        net->filter.promiscuous = true;
}

static bool net_service(void *context) {
    struct virtio_net *net = context;
    if (!__atomic_load_n(&net->wanted, __ATOMIC_ACQUIRE)) {
        net->running = false;
        net_merge_clear(&net->merge);
        while (net->backlog_first)
            backlog_remove(net);
        virtio_device_stopped(&net->device); /* heeded only if that was asked for */
        return false;
    }
    if (!net->running)
        net_begin(net);
    control_serve(net);
    if (virtio_device_queue_live(&net->device, QUEUE_RECEIVE)) {
        virtqueue_disable_kick(&net->device.queues[QUEUE_RECEIVE]);
        backlog_deliver(net);
    }
    return queue_send(net);
}

static const struct net_client net_client = {
    .service = net_service,
    .receive = net_receive,
    .received = net_received,
};

static bool net_features_ok(struct virtio_device *device, uint64_t features) {
    (void)device;
    uint64_t control = FEATURE(CTRL_RX) | FEATURE(CTRL_VLAN) | FEATURE(CTRL_RX_EXTRA) |
                       FEATURE(CTRL_MAC_ADDR) | FEATURE(GUEST_OFFLOADS);
    if ((features & (FEATURE(GUEST_TSO4) | FEATURE(GUEST_TSO6))) && !(features & FEATURE(GUEST_CSUM)))
        return false;
    if ((features & (FEATURE(HOST_TSO4) | FEATURE(HOST_TSO6))) && !(features & FEATURE(CSUM)))
        return false;
    return !(features & control) || (features & FEATURE(CTRL_VQ));
}

static void net_want(struct virtio_net *net, bool wanted) {
    __atomic_store_n(&net->wanted, wanted, __ATOMIC_RELEASE);
    net->backend->ops->kick(net->backend);
}

static void net_start(struct virtio_device *device) {
    net_want((struct virtio_net *)device, true);
}

static void net_stop(struct virtio_device *device) {
    net_want((struct virtio_net *)device, false);
}

static void net_notify(struct virtio_device *device, unsigned queue) {
    struct virtio_net *net = (struct virtio_net *)device;
    (void)queue;
    net->backend->ops->kick(net->backend);
}

static void net_forget(struct virtio_device *device) {
    ((struct virtio_net *)device)->fresh =
        true; /* the queues have stopped, so the backend's thread does not look */
}

static const struct virtio_device_ops net_ops = {
    .forget = net_forget,
    .features_ok = net_features_ok,
    .start = net_start,
    .notify = net_notify,
    .stop = net_stop,
};

int virtio_net_create(struct virtio_net **result_net, const struct virtio_net_config *config,
                      struct guest_mem *mem) {
    static const uint8_t default_mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
    static const uint8_t no_mac[6];
    static const uint16_t sizes[QUEUE_COUNT] = {QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE};
    uint64_t features = FEATURE(CSUM) | FEATURE(GUEST_CSUM) | FEATURE(GUEST_OFFLOADS) | FEATURE(MTU) |
                        FEATURE(MAC) | FEATURE(GUEST_TSO4) | FEATURE(GUEST_TSO6) | FEATURE(HOST_TSO4) |
                        FEATURE(HOST_TSO6) | FEATURE(MRG_RXBUF) | FEATURE(STATUS) | FEATURE(CTRL_VQ) |
                        FEATURE(CTRL_RX) | FEATURE(CTRL_VLAN) | FEATURE(CTRL_RX_EXTRA) |
                        FEATURE(CTRL_MAC_ADDR);
    struct net_layout layout = {
        .status = STATUS_LINK_UP, .max_virtqueue_pairs = 1, .mtu = config->mtu ? config->mtu : 1500};
    memcpy(layout.mac, memcmp(config->mac, no_mac, 6) ? config->mac : default_mac, 6);
    int result = -ENOMEM;
    struct virtio_net *net = calloc(1, sizeof *net);
    if (!net)
        goto destroy_backend;
    net->backend = config->backend;
    net->link_up = net->fresh = true;
    net->trace = config->trace;
    result = virtio_device_init(&net->device, &net_ops, VIRTIO_ID_NET, mem, features, QUEUE_COUNT, sizes);
    if (result)
        goto free_net;
    memcpy(net->device.config, &layout, sizeof layout);
    net->device.config_size = sizeof layout;
    result = virtio_pci_init(&net->transport, "virtio-net", &net->device, PCI_CLASS_ETHERNET);
    if (result)
        goto destroy_device;
    result = net->backend->ops->start(net->backend, &net_client, net);
    if (result)
        goto destroy_pci;
    *result_net = net;
    return 0;
destroy_pci:
    virtio_pci_destroy(&net->transport);
destroy_device:
    virtio_device_destroy(&net->device);
free_net:
    free(net);
destroy_backend:
    config->backend->ops->destroy(config->backend);
    return result;
}

void virtio_net_destroy(struct virtio_net *net) {
    virtio_device_quiesce(&net->device);
    net->backend->ops->destroy(net->backend);
    while (net->backlog_first)
        backlog_remove(net);
    virtio_pci_destroy(&net->transport);
    virtio_device_destroy(&net->device);
    free(net);
}

struct pci_device *virtio_net_pci(struct virtio_net *net) {
    return &net->transport.pci;
}

void virtio_net_set_link(struct virtio_net *net, bool up) {
    uint16_t status = up ? STATUS_LINK_UP : 0;
    __atomic_store_n(&net->link_up, up, __ATOMIC_RELAXED);
    virtio_device_config_update(&net->device, offsetof(struct net_layout, status), &status, sizeof status);
}

void virtio_net_quiesce(struct virtio_net *net) {
    virtio_device_quiesce(&net->device);
}

void virtio_net_resume(struct virtio_net *net) {
    virtio_device_resume(&net->device);
}

int net_mac_parse(uint8_t mac[6], const char *text) {
    unsigned bytes[6];
    int used = 0;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4],
               &bytes[5], &used) != 6 ||
        text[used] || (bytes[0] & 1) || !(bytes[0] | bytes[1] | bytes[2] | bytes[3] | bytes[4] | bytes[5])) {
        diag_error("net: mac=%s is not a unicast address like 52:54:00:12:34:56", text);
        return -EINVAL;
    }
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)bytes[i];
    return 0;
}

void virtio_net_count(const struct virtio_net *net, struct virtio_net_counters *counters) {
    const struct virtio_net_counters *from = &net->counters;
    *counters = (struct virtio_net_counters){
        .sent_frames = __atomic_load_n(&from->sent_frames, __ATOMIC_RELAXED),
        .sent_bytes = __atomic_load_n(&from->sent_bytes, __ATOMIC_RELAXED),
        .received_frames = __atomic_load_n(&from->received_frames, __ATOMIC_RELAXED),
        .received_bytes = __atomic_load_n(&from->received_bytes, __ATOMIC_RELAXED),
    };
}
