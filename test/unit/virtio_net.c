/* virtio-net in front of real libslirp, driven as a guest would: DHCP, ARP, a name server's answer if there
 * is one, TCP both ways against a server on the host's loopback with segmentation offloads on and off, a
 * forwarded port, the control queue, starved receive rings, and the offload code by itself. */
#include "devices/virtio_net.h"
#include "devices/net_offload.h"
#include "devices/net_user.h"
#include "devices/virtio_net_filter.h"
#include "virtio_guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define F_CSUM (1ull << 0)
#define F_GUEST_CSUM (1ull << 1)
#define F_GUEST_TSO4 (1ull << 7)
#define F_HOST_TSO4 (1ull << 11)
#define F_MRG_RXBUF (1ull << 15)
#define ALL_FEATURES (~0ull)
#define TRANSFER (4 * MIB)

struct header {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

struct card {
    struct guest guest;
    struct virtio_net *net;
    struct guest_queue rx, tx, control;
    uint64_t rx_at, tx_at, control_at;
    uint32_t rx_size;
    unsigned rx_count;
    unsigned frames, joined;
};

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 1, 2, 3};
static const uint8_t host_mac[6] = {0x52, 0x55, 10, 0, 2, 2};

static void put16(uint8_t *at, unsigned value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}
static void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}
static unsigned get16(const uint8_t *at) {
    return at[0] << 8 | at[1];
}
static uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

/* A slow and simple checksum to hold the fast one against. */
static uint16_t simple_sum(const uint8_t *bytes, size_t length, uint32_t sum) {
    for (size_t i = 0; i < length; i++)
        sum += i & 1 ? bytes[i] : (uint32_t)bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static uint32_t pseudo_sum(const uint8_t *ip, unsigned length) {
    return simple_sum(ip + 12, 8, ip[9] + length);
}

static void rx_post(struct card *card, unsigned slot) {
    struct guest_buffer buffer = {card->rx_at + slot * card->rx_size, card->rx_size, true};
    guest_add(&card->rx, &buffer, 1, false);
}

static void card_open(struct card *card, uint64_t features, uint32_t rx_size, unsigned rx_count,
                      const char *const *forwards, unsigned forward_count) {
    struct net_backend *backend;
    struct net_forward parsed[4];
    memset(card, 0, sizeof *card);
    for (unsigned i = 0; i < forward_count; i++)
        CHECK(!net_forward_parse(&parsed[i], forwards[i]));
    struct net_user_config user = {.forwards = parsed, .forward_count = forward_count};
    CHECK(!net_user_create(&backend, &user));
    guest_open(&card->guest, 32 * MIB);
    struct virtio_net_config config = {.backend = backend};
    memcpy(config.mac, guest_mac, 6);
    CHECK(!virtio_net_create(&card->net, &config, &card->guest.mem));
    guest_attach(&card->guest, virtio_net_pci(card->net), 1);
    guest_negotiate(&card->guest, features, true);
    guest_queue_setup(&card->guest, &card->rx, 0, 256);
    guest_queue_setup(&card->guest, &card->tx, 1, 64);
    if (card->guest.features & (1ull << 17))
        guest_queue_setup(&card->guest, &card->control, 2, 16);
    guest_driver_ok(&card->guest);
    for (unsigned i = 0; i < 6; i++)
        CHECK(guest_read(&card->guest, card->guest.config + i, 1) == guest_mac[i]);
    card->rx_size = rx_size;
    card->rx_count = rx_count;
    card->rx_at = guest_alloc(&card->guest, (uint64_t)rx_size * rx_count);
    card->tx_at = guest_alloc(&card->guest, 80 * KIB);
    card->control_at = guest_alloc(&card->guest, 8192);
    for (unsigned i = 0; i < rx_count; i++)
        rx_post(card, i);
    guest_kick(&card->rx);
}

static void card_close(struct card *card) {
    virtio_net_destroy(card->net);
    guest_close(&card->guest);
}

static void frame_send(struct card *card, struct header header, const uint8_t *frame, uint32_t length) {
    memcpy(guest_ptr(&card->guest, card->tx_at), &header, sizeof header);
    memcpy(guest_ptr(&card->guest, card->tx_at + 12), frame, length);
    /* Cut anywhere: framing carries no meaning. */
    struct guest_buffer buffers[] = {{card->tx_at, 20, false}, {card->tx_at + 20, length - 8, false}};
    guest_add(&card->tx, buffers, 2, false);
    guest_kick(&card->tx);
    guest_wait(&card->tx, NULL);
}

/* The next frame, put together from its buffers; at[0..len) holds it. */
static uint32_t frame_receive(struct card *card, struct header *header, uint8_t *frame) {
    uint32_t length, total = 0;
    for (unsigned i = 0; !i || i < header->num_buffers; i++) {
        int head = guest_wait(&card->rx, &length);
        unsigned slot = (unsigned)((card->rx.descriptors[head].address - card->rx_at) / card->rx_size);
        const uint8_t *at = guest_ptr(&card->guest, card->rx_at + slot * card->rx_size);
        CHECK(length <= card->rx_size);
        if (!i) {
            CHECK(length > 12);
            memcpy(header, at, 12);
            at += 12;
            length -= 12;
            CHECK(header->num_buffers >= 1);
        }
        CHECK(total + length <= 80 * KIB);
        memcpy(frame + total, at, length);
        total += length;
        rx_post(card, slot);
    }
    guest_kick(&card->rx);
    card->frames++;
    card->joined += header->gso_type != 0;
    return total;
}

static void ethernet(uint8_t *frame, const uint8_t *to, unsigned type) {
    memcpy(frame, to, 6);
    memcpy(frame + 6, guest_mac, 6);
    put16(frame + 12, type);
}

static void ip4(uint8_t *frame, unsigned protocol, unsigned payload, const char *from, const char *to) {
    uint8_t *ip = frame + 14;
    memset(ip, 0, 20);
    ip[0] = 0x45;
    put16(ip + 2, 20 + payload);
    ip[8] = 64;
    ip[9] = (uint8_t)protocol;
    CHECK(inet_pton(AF_INET, from, ip + 12) == 1 && inet_pton(AF_INET, to, ip + 16) == 1);
    put16(ip + 10, (uint16_t)~simple_sum(ip, 20, 0));
}

static void test_dhcp_and_arp(struct card *card) {
    static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
    uint8_t frame[80 * KIB] = {0};
    struct header header = {0};
    uint8_t *dhcp = frame + 42;
    ethernet(frame, broadcast, 0x0800);
    ip4(frame, 17, 8 + 300, "0.0.0.0", "255.255.255.255");
    put16(frame + 34, 68);
    put16(frame + 36, 67);
    put16(frame + 38, 308);
    dhcp[0] = 1;
    dhcp[1] = 1;
    dhcp[2] = 6;
    put32(dhcp + 4, 0x12345678);
    memcpy(dhcp + 28, guest_mac, 6);
    memcpy(dhcp + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8);
    frame_send(card, header, frame, 14 + 20 + 308);
    for (;;) {
        uint32_t length = frame_receive(card, &header, frame);
        if (length < 342 || get16(frame + 12) != 0x0800 || frame[23] != 17 || get16(frame + 36) != 68)
            continue;
        CHECK(get32(dhcp + 4) == 0x12345678);
        CHECK(get32(dhcp + 16) == 0x0a00020f); /* yours: 10.0.2.15 */
        CHECK(!memcmp(dhcp + 236, "\x63\x82\x53\x63\x35\x01\x02", 7));
        break;
    }
    memset(frame, 0, 60);
    ethernet(frame, broadcast, 0x0806);
    memcpy(frame + 14, "\0\1\x08\0\6\4\0\1", 8);
    memcpy(frame + 22, guest_mac, 6);
    put32(frame + 28, 0x0a00020f);
    put32(frame + 38, 0x0a000202);
    frame_send(card, header, frame, 42);
    do
        frame_receive(card, &header, frame);
    while (get16(frame + 12) != 0x0806 || get16(frame + 20) != 2);
    CHECK(get32(frame + 28) == 0x0a000202 && !memcmp(frame + 22, host_mac, 6));
}

struct tcp {
    struct card *card;
    uint16_t port, peer;
    uint32_t next, acknowledged, expected;
    unsigned window; /* what the peer has room for behind acknowledged; it drops what is beyond */
    bool finished;
};

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static void tcp_send(struct tcp *tcp, unsigned flags, const uint8_t *data, uint32_t length) {
    static uint8_t frame[80 * KIB];
    struct header header = {0};
    unsigned option = flags & SYN ? 4 : 0;
    uint8_t *segment = frame + 34;
    ethernet(frame, host_mac, 0x0800);
    ip4(frame, 6, 20 + option + length, "10.0.2.15", "10.0.2.2");
    memset(segment, 0, 24);
    put16(segment, tcp->port);
    put16(segment + 2, tcp->peer);
    put32(segment + 4, tcp->next);
    put32(segment + 8, tcp->expected);
    segment[12] = (uint8_t)((20 + option) << 2);
    segment[13] = (uint8_t)flags;
    put16(segment + 14, 65535);
    if (option)
        memcpy(segment + 20, "\2\4\x05\xb4", 4);
    if (length)
        memcpy(segment + 20 + option, data, length);
    uint32_t pseudo = pseudo_sum(frame + 14, 20 + option + length);
    if (tcp->card->guest.features & F_CSUM) {
        while (pseudo >> 16)
            pseudo = (pseudo & 0xffff) + (pseudo >> 16);
        put16(segment + 16, pseudo);
        header.flags = 1;
        header.csum_start = 34;
        header.csum_offset = 16;
        if (length > 1460) {
            header.gso_type = 1;
            header.gso_size = 1460;
            header.hdr_len = 54;
        }
    } else {
        put16(segment + 16, (uint16_t)~simple_sum(segment, 20 + option + length, pseudo));
    }
    frame_send(tcp->card, header, frame, 34 + 20 + option + length);
    tcp->next += length + !!(flags & (SYN | FIN));
}

/* Take in one TCP segment of this connection; its payload into data. */
static uint32_t tcp_receive(struct tcp *tcp, uint8_t *data, unsigned *flags) {
    static uint8_t frame[80 * KIB];
    struct header header;
    for (;;) {
        uint32_t length = frame_receive(tcp->card, &header, frame);
        uint8_t *segment = frame + 34;
        if (length < 54 || get16(frame + 12) != 0x0800 || frame[23] != 6 || get16(segment + 2) != tcp->port)
            continue;
        unsigned total = get16(frame + 16);
        CHECK(simple_sum(frame + 14, 20, 0) == 0xffff && total + 14 <= length);
        if (header.flags & 1) {
            CHECK(header.gso_type == 1 && header.csum_start == 34 && header.csum_offset == 16);
            CHECK(header.hdr_len == 54 && header.gso_size && header.gso_size <= 1460);
            CHECK(simple_sum(segment + 16, 2, 0) == simple_sum(NULL, 0, pseudo_sum(frame + 14, total - 20)));
        } else {
            CHECK(!header.gso_type);
            CHECK(simple_sum(segment, total - 20, pseudo_sum(frame + 14, total - 20)) == 0xffff);
        }
        CHECK(!(segment[13] & RST));
        *flags = segment[13];
        if (*flags & SYN)
            tcp->expected = get32(segment + 4) + 1;
        tcp->acknowledged = get32(segment + 8);
        tcp->window = get16(segment + 14);
        uint32_t header_length = (segment[12] >> 4) * 4u, payload = total - 20 - header_length;
        if (*flags & SYN)
            return 0;
        if (get32(segment + 4) != tcp->expected)
            return 0; /* a repetition */
        memcpy(data, segment + header_length, payload);
        tcp->expected += payload + (*flags & FIN ? 1 : 0);
        tcp->finished |= *flags & FIN;
        return payload;
    }
}

static int server_socket(uint16_t *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof address) && !listen(fd, 4));
    CHECK(!getsockname(fd, (struct sockaddr *)&address, &length));
    *port = ntohs(address.sin_port);
    return fd;
}

static uint8_t pattern(size_t at) {
    return (uint8_t)(at * 31 + at / 251);
}

/* Reads TRANSFER bytes, checks them, and sends as many. */
static void *server_run(void *argument) {
    int connection = accept(*(int *)argument, NULL, NULL);
    static uint8_t buffer[64 * KIB];
    CHECK(connection >= 0);
    for (size_t at = 0; at < TRANSFER;) {
        ssize_t count = read(connection, buffer, sizeof buffer);
        CHECK(count > 0);
        for (ssize_t i = 0; i < count; i++)
            CHECK(buffer[i] == pattern(at + (size_t)i));
        at += (size_t)count;
    }
    for (size_t at = 0; at < TRANSFER; at += sizeof buffer) {
        for (size_t i = 0; i < sizeof buffer; i++)
            buffer[i] = pattern(at + i);
        for (size_t done = 0; done < sizeof buffer;) {
            ssize_t count = write(connection, buffer + done, sizeof buffer - done);
            CHECK(count > 0);
            done += (size_t)count;
        }
    }
    close(connection);
    return NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void test_tcp(const char *name, uint64_t features, uint32_t rx_size, unsigned rx_count) {
    static uint8_t data[80 * KIB];
    struct card card;
    uint16_t port;
    unsigned flags;
    pthread_t thread;
    int listener = server_socket(&port);
    card_open(&card, features, rx_size, rx_count, NULL, 0);
    test_dhcp_and_arp(&card);
    CHECK(!pthread_create(&thread, NULL, server_run, &listener));
    struct tcp tcp = {.card = &card, .port = 1234, .peer = port, .next = 1000};
    tcp_send(&tcp, SYN, NULL, 0);
    do
        tcp_receive(&tcp, data, &flags);
    while (!(flags & SYN));
    tcp_send(&tcp, ACK, NULL, 0);
    uint32_t piece = card.guest.features & F_HOST_TSO4 ? 32768 : 1460;
    double begin = seconds();
    for (uint32_t at = 0; at < TRANSFER;) {
        while (tcp.acknowledged != tcp.next || !tcp.window)
            tcp_receive(&tcp, data, &flags);
        uint32_t length = TRANSFER - at < piece ? TRANSFER - at : piece;
        length = length < tcp.window ? length : tcp.window;
        for (uint32_t i = 0; i < length; i++)
            data[i] = pattern(at + i);
        tcp_send(&tcp, ACK | PSH, data, length);
        at += length;
    }
    while (tcp.acknowledged != tcp.next)
        tcp_receive(&tcp, data, &flags);
    double middle = seconds();
    card.frames = card.joined = 0;
    for (uint32_t at = 0; at < TRANSFER;) {
        uint32_t length = tcp_receive(&tcp, data, &flags);
        for (uint32_t i = 0; i < length; i++)
            CHECK(data[i] == pattern(at + i));
        at += length;
        tcp_send(&tcp, ACK, NULL, 0);
    }
    double end = seconds();
    tcp_send(&tcp, ACK | FIN, NULL, 0);
    pthread_join(thread, NULL);
    close(listener);
    printf("tcp: %s: up %.0f MB/s, down %.0f MB/s in %u frames (%u joined)\n", name,
           TRANSFER / (middle - begin) / 1e6, TRANSFER / (end - middle) / 1e6, card.frames, card.joined);
    CHECK(!!card.joined == !!(card.guest.features & F_GUEST_TSO4));
    card_close(&card);
}

/* A connection from the host through a forwarded port reaches the guest. */
static void test_forward(void) {
    struct card card;
    uint16_t port;
    static uint8_t data[80 * KIB];
    unsigned flags = 0;
    int probe = server_socket(&port); /* a port that is free in a moment */
    char text[64];
    struct net_forward parsed;
    struct net_backend *backend;
    snprintf(text, sizeof text, "tcp:127.0.0.1:%u-:22", port);
    CHECK(!net_forward_parse(&parsed, text));
    struct net_user_config taken = {.forwards = &parsed, .forward_count = 1};
    CHECK(net_user_create(&backend, &taken) == -EADDRINUSE);
    close(probe);
    const char *forwards[] = {text};
    card_open(&card, ALL_FEATURES, 2048, 64, forwards, 1);
    test_dhcp_and_arp(&card);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons(port)};
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS);
    struct tcp tcp = {.card = &card, .port = 22, .next = 5000};
    static uint8_t frame[80 * KIB];
    struct header header;
    for (;;) {
        frame_receive(&card, &header, frame);
        if (get16(frame + 12) == 0x0800 && frame[23] == 6 && get16(frame + 36) == 22 && (frame[47] & SYN))
            break;
    }
    tcp.peer = (uint16_t)get16(frame + 34);
    tcp.expected = get32(frame + 38) + 1;
    tcp_send(&tcp, SYN | ACK, NULL, 0);
    while (!(flags & ACK))
        tcp_receive(&tcp, data, &flags);
    tcp_send(&tcp, ACK | PSH, (const uint8_t *)"hello from the guest", 20);
    char line[32] = "";
    for (unsigned i = 0; i < 60000 && read(client, line, sizeof line) < 0; i++)
        usleep(1000);
    CHECK(!strcmp(line, "hello from the guest"));
    close(client);
    card_close(&card);

    CHECK(net_forward_parse(&parsed, "udp::53-10.0.2.9:5353") == 0);
    CHECK(parsed.udp && parsed.host.s_addr == INADDR_ANY && parsed.guest_port == htons(5353));
    const char *bad[] = {
        "",           "tcp",
        "tcp:22-:22", "sctp::1-:1",
        "tcp::0-:1",  "tcp::1-:65536",
        "tcp::1-:",   "tcp:x:1-:1",
        "tcp::1-:1x", "tcp:::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::::1-:1"};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        CHECK(net_forward_parse(&parsed, bad[i]) == -EINVAL);
    uint8_t mac[6];
    CHECK(!net_mac_parse(mac, "52:54:00:12:34:99") && mac[5] == 0x99);
    CHECK(net_mac_parse(mac, "53:54:00:12:34:99") && net_mac_parse(mac, "52:54:00:12:34") &&
          net_mac_parse(mac, "52:54:00:12:34:567") && net_mac_parse(mac, "00:00:00:00:00:00"));
}

static uint8_t control(struct card *card, const void *command, uint32_t length) {
    memcpy(guest_ptr(&card->guest, card->control_at), command, length);
    uint8_t *acknowledge = guest_ptr(&card->guest, card->control_at + 6000);
    *acknowledge = 0xee;
    struct guest_buffer buffers[] = {{card->control_at, 2, false},
                                     {card->control_at + 2, length - 2, false},
                                     {card->control_at + 6000, 1, true}};
    guest_add(&card->control, buffers, 3, false);
    guest_kick(&card->control);
    guest_wait(&card->control, NULL);
    return *acknowledge;
}

static void test_control(void) {
    struct card card;
    card_open(&card, ALL_FEATURES, 2048, 64, NULL, 0);
    CHECK(control(&card, "\0\0\1", 3) == 0);
    CHECK(control(&card, "\0\0\1\1", 4) == 1);
    CHECK(control(&card, "\0\7\1", 3) == 1);
    CHECK(control(&card, "\1\0\1\0\0\0abcdef\0\0\0\0", 16) == 0);
    CHECK(control(&card, "\1\0\1\0\0\0abcdef\1\0\0\0", 16) == 1);
    CHECK(control(&card, "\1\0\xff\xff\xff\xff", 6) == 1);
    CHECK(control(&card, "\1\1abcdef", 8) == 0);
    CHECK(control(&card, "\2\0\5\0", 4) == 0);
    CHECK(control(&card, "\2\1\0\x10", 4) == 1);
    CHECK(control(&card, "\5\0\2\0\0\0\0\0\0\0", 10) == 0);
    CHECK(control(&card, "\5\0\x80\0\0\0\0\0\0\0", 10) == 1);
    CHECK(control(&card, "\5\0\0\0\0\1\0\0\0\0", 10) == 1);
    CHECK(control(&card, "\x77\0\0", 3) == 1);
    unsigned before = guest_messages(&card.guest, 0);
    CHECK(guest_read(&card.guest, card.guest.config + 6, 2) == 1);
    virtio_net_set_link(card.net, false);
    CHECK(guest_wait_messages(&card.guest, 0, before + 1, 1000));
    CHECK(guest_read(&card.guest, card.guest.config + 6, 2) == 0);
    virtio_net_set_link(card.net, true);
    virtio_net_quiesce(card.net);
    virtio_net_resume(card.net);
    test_dhcp_and_arp(&card);
    for (unsigned i = 0; i < 50; i++) {
        guest_reset(&card.guest);
        guest_negotiate(&card.guest, ALL_FEATURES, true);
        guest_queue_setup(&card.guest, &card.rx, 0, 256);
        guest_queue_setup(&card.guest, &card.tx, 1, 64);
        guest_driver_ok(&card.guest);
        rx_post(&card, 0);
        guest_kick(&card.rx);
    }
    card_close(&card);

    struct net_filter filter;
    uint8_t frame[18] = {0};
    net_filter_init(&filter, guest_mac, true);
    memcpy(frame, guest_mac, 6);
    CHECK(net_filter_passes(&filter, frame, 14));
    frame[5]++;
    CHECK(!net_filter_passes(&filter, frame, 14));
    frame[0] = 1;
    CHECK(!net_filter_passes(&filter, frame, 14));
    CHECK(net_filter_command(&filter, 0, 1, (const uint8_t *)"\1", 1) &&
          net_filter_passes(&filter, frame, 14));
    put16(frame + 12, 0x8100);
    put16(frame + 14, 77);
    CHECK(!net_filter_passes(&filter, frame, 18));
    CHECK(net_filter_command(&filter, 2, 0, (const uint8_t *)"\x4d\0", 2) &&
          net_filter_passes(&filter, frame, 18));
}

struct collected {
    struct net_merge merge;
    unsigned frames;
    bool split;
};

static void collect(void *context, const uint8_t *frame, size_t length) {
    struct collected *collected = context;
    unsigned total = get16(frame + 16);
    CHECK(length <= 1514 && total + 14 == length);
    CHECK(simple_sum(frame + 14, 20, 0) == 0xffff);
    CHECK(simple_sum(frame + 34, total - 20, pseudo_sum(frame + 14, total - 20)) == 0xffff);
    collected->frames++;
    collected->split |= !net_merge_add(&collected->merge, frame, length);
}

/* Cutting up and joining again gives what there was; checksums hold against the simple one. */
static void test_offload(void) {
    static uint8_t frame[NET_FRAME_MAX], copy[NET_FRAME_MAX];
    static struct collected collected;
    for (size_t length = 0; length < 200; length++)
        for (size_t shift = 0; shift < 4; shift++) {
            for (size_t i = 0; i < length; i++)
                frame[shift + i] = (uint8_t)(rand() | (length & 1 ? 0xf0 : 0));
            uint16_t sum = net_checksum(frame + shift, length, 0);
            CHECK(get16((uint8_t *)&sum) == simple_sum(frame + shift, length, 0));
        }
    for (unsigned payload = 1461; payload < 65000; payload += 3001) {
        memset(frame, 0, 54);
        ethernet(frame, host_mac, 0x0800);
        ip4(frame, 6, 20 + payload, "10.0.2.15", "10.0.2.2");
        put32(frame + 38, 0xfffff000);
        frame[46] = 5 << 4;
        frame[47] = ACK | PSH;
        for (unsigned i = 0; i < payload; i++)
            frame[54 + i] = pattern(i);
        memcpy(copy, frame, 54 + payload);
        struct net_offload offload = {.checksum = true,
                                      .checksum_start = 34,
                                      .checksum_offset = 16,
                                      .segmentation = NET_SEGMENT_TCP4,
                                      .segment_size = 1460};
        memset(&collected, 0, sizeof collected);
        CHECK(net_offload_send(frame, 54 + payload, &offload, 1514, collect, &collected));
        CHECK(collected.frames == (payload + 1459) / 1460 && !collected.split);
        net_merge_finish(&collected.merge, &offload);
        CHECK(offload.segment_size == 1460 && collected.merge.length == 54 + payload);
        CHECK(!memcmp(collected.merge.frame + 54, copy + 54, payload));
        CHECK(!memcmp(collected.merge.frame, copy, 50)); /* with the IPv4 checksum */
    }
    /* IPv6: the last segment's checksum with the pseudo header of RFC 8200. */
    struct net_offload nonsense[] = {
        {.checksum = true, .checksum_start = 65535, .checksum_offset = 65535},
        {.checksum = true, .checksum_start = 33, .segmentation = NET_SEGMENT_TCP4, .segment_size = 1},
        {.checksum = true, .checksum_start = 34, .segmentation = NET_SEGMENT_TCP4, .segment_size = 0},
        {.checksum = true, .checksum_start = 34, .segmentation = NET_SEGMENT_TCP4, .segment_size = 60000},
        {.checksum = false, .checksum_start = 34, .segmentation = NET_SEGMENT_TCP4, .segment_size = 1460},
        {.checksum = true, .checksum_start = 40, .segmentation = NET_SEGMENT_TCP6, .segment_size = 1460},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(nonsense); i++)
        CHECK(!net_offload_send(copy, 3000, &nonsense[i], 1514, collect, &collected));
}

static unsigned open_files(void) {
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* A backend with a bound, and a guest that begins a connection or a flow from each of many ports. */
struct flood {
    struct net_backend *backend;
    unsigned protocol, peer;
    bool sent; /* atomic */
};

static bool flood_service(void *context) {
    struct flood *flood = context;
    uint8_t frame[64] = {0}, *segment = frame + 34;
    unsigned length = flood->protocol == 6 ? 20 : 8;
    for (unsigned port = 20000; port < 20200; port++) {
        ethernet(frame, host_mac, 0x0800);
        ip4(frame, flood->protocol, length, "10.0.2.15", "10.0.2.2");
        memset(segment, 0, length);
        put16(segment, port);
        put16(segment + 2, flood->peer);
        if (flood->protocol == 6) {
            segment[12] = 5 << 4;
            segment[13] = SYN;
            put16(segment + 14, 65535);
            put16(segment + 16, (uint16_t)~simple_sum(segment, length, pseudo_sum(frame + 14, length)));
        } else {
            put16(segment + 4, length);
        }
        flood->backend->ops->send(flood->backend, frame, 34 + length);
    }
    __atomic_store_n(&flood->sent, true, __ATOMIC_RELEASE);
    return false;
}

static void flood_receive(void *context, const uint8_t *frame, size_t length) {
    (void)context;
    (void)frame;
    (void)length;
}

static void flood_received(void *context) {
    (void)context;
}

static unsigned flood_sockets(unsigned protocol, unsigned peer, unsigned connections, unsigned rounds) {
    static const struct net_client client = {flood_service, flood_receive, flood_received};
    struct flood flood = {.protocol = protocol, .peer = peer};
    const struct net_user_config user = {.connections = connections};
    unsigned before = open_files();
    CHECK(!net_user_create(&flood.backend, &user));
    CHECK(!flood.backend->ops->start(flood.backend, &client, &flood));
    unsigned alone = open_files();
    for (unsigned round = 0; round < rounds; round++) {
        __atomic_store_n(&flood.sent, false, __ATOMIC_RELEASE);
        flood.backend->ops->kick(flood.backend);
        while (!__atomic_load_n(&flood.sent, __ATOMIC_ACQUIRE))
            usleep(1000);
        usleep(5000);
    }
    unsigned sockets = open_files() - alone;
    flood.backend->ops->destroy(flood.backend);
    CHECK(open_files() == before);
    return sockets;
}

static void test_bound(void) {
    uint16_t port;
    int server = server_socket(&port);
    unsigned bounded = flood_sockets(6, port, 16, 4), free_count = flood_sockets(6, port, 500, 4);
    printf("connections: %u at a bound of 16, %u at one of 500\n", bounded, free_count);
    CHECK(bounded >= 8 && bounded <= 16 && free_count >= 200);
    bounded = flood_sockets(17, port, 16, 4), free_count = flood_sockets(17, port, 500, 4);
    printf("flows: %u at a bound of 16, %u at one of 500\n", bounded, free_count);
    CHECK(bounded >= 8 && bounded <= 20 && free_count >= 200);
    close(server);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_offload();
    test_tcp("all offloads, mergeable", ALL_FEATURES, 2048, 128);
    test_tcp("all offloads, few buffers", ALL_FEATURES, 1536, 16);
    test_tcp("all offloads, large buffers", ~F_MRG_RXBUF, 68 * KIB, 16);
    test_tcp("checksums only", F_CSUM | F_GUEST_CSUM | F_MRG_RXBUF | GUEST_EVENT_IDX, 2048, 128);
    test_tcp("nothing", 0, 2048, 128);
    test_forward();
    test_control();
    test_bound();
    return 0;
}
