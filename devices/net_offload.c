/* Checksums (RFC 1071), TCP segmentation and its reverse, for IPv4 and IPv6 over Ethernet II. All offsets are
 * checked against the frame before they are used; header lengths are read once. */
#include "devices/net_offload.h"

#include <string.h>

enum {
    ETHERTYPE_IP4 = 0x0800,
    PROTOCOL_TCP = 6,
    IP4_HEADER = 20,
    IP4_TOTAL_LENGTH = 2,
    IP4_IDENTIFICATION = 4,
    IP4_FRAGMENT = 6,
    IP4_PROTOCOL = 9,
    IP4_CHECKSUM = 10,
    IP4_ADDRESSES = 12,
    IP6_HEADER = 40,
    IP6_PAYLOAD_LENGTH = 4,
    IP6_ADDRESSES = 8,
    TCP_HEADER = 20,
    TCP_SEQUENCE = 4,
    TCP_ACKNOWLEDGED = 8,
    TCP_DATA_OFFSET = 12,
    TCP_FLAGS = 13,
    TCP_WINDOW = 14,
    TCP_CHECKSUM = 16,
    TCP_FIN = 0x01,
    TCP_PSH = 0x08,
    TCP_ACK = 0x10,
    TCP_CWR = 0x80,
};

static uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, uint16_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

uint16_t net_checksum(const uint8_t *bytes, size_t length, uint32_t sum) {
    uint64_t total = sum, other = 0;
    uint32_t words[4];
    for (; length >= sizeof words; bytes += sizeof words, length -= sizeof words) {
        memcpy(words, bytes, sizeof words);
        total += (uint64_t)words[0] + words[1];
        other += (uint64_t)words[2] + words[3];
    }
    if (length) {
        memset(words, 0, sizeof words);
        memcpy(words, bytes, length);
        total += (uint64_t)words[0] + words[1];
        other += (uint64_t)words[2] + words[3];
    }
    total = (total & UINT32_MAX) + (total >> 32) + (other & UINT32_MAX) + (other >> 32);
    total = (total & UINT16_MAX) + (total >> 16 & UINT16_MAX) + (total >> 32);
    total = (total & UINT16_MAX) + (total >> 16);
    total = (total & UINT16_MAX) + (total >> 16);
    return (uint16_t)total;
}

/* net_checksum() works on memory order, so its complement is stored as it is. A sum of 0 means "none" to UDP.
 */
static void store_checksum(uint8_t *at, uint16_t sum) {
    uint16_t value = (uint16_t)~sum;
    if (!value)
        value = 0xffff;
    memcpy(at, &value, sizeof value);
}

static void ip4_checksum(uint8_t *ip, size_t header) {
    put16(ip + IP4_CHECKSUM, 0);
    uint16_t value = (uint16_t)~net_checksum(ip, header, 0);
    memcpy(ip + IP4_CHECKSUM, &value, sizeof value);
}

/* Sum of the pseudo header of a TCP segment of this length. */
static uint16_t tcp_pseudo_sum(const uint8_t *addresses, size_t addresses_length, size_t tcp_length) {
    uint8_t tail[4] = {0, PROTOCOL_TCP, (uint8_t)(tcp_length >> 8), (uint8_t)tcp_length};
    return net_checksum(tail, sizeof tail, net_checksum(addresses, addresses_length, 0));
}

struct segmenter {
    uint8_t *frame;
    size_t ip, tcp, headers; /* where each starts; all headers' length */
    bool ip6;
};

/* Set one segment's headers, its payload in place behind them. */
static void segment_finish(const struct segmenter *layout, size_t payload) {
    uint8_t *ip = layout->frame + layout->ip;
    uint8_t *tcp = layout->frame + layout->tcp;
    size_t tcp_length = layout->headers - layout->tcp + payload;
    uint16_t sum;
    if (layout->ip6) {
        put16(ip + IP6_PAYLOAD_LENGTH, (uint16_t)(layout->tcp - layout->ip - IP6_HEADER + tcp_length));
        sum = tcp_pseudo_sum(ip + IP6_ADDRESSES, 32, tcp_length);
    } else {
        put16(ip + IP4_TOTAL_LENGTH, (uint16_t)(layout->tcp - layout->ip + tcp_length));
        ip4_checksum(ip, layout->tcp - layout->ip);
        sum = tcp_pseudo_sum(ip + IP4_ADDRESSES, 8, tcp_length);
    }
    put16(tcp + TCP_CHECKSUM, 0);
    store_checksum(tcp + TCP_CHECKSUM, net_checksum(tcp, tcp_length, sum));
}

static bool send_segments(uint8_t *frame, size_t length, const struct net_offload *offload, size_t frame_max,
                          net_emit *emit, void *context) {
    struct segmenter layout = {.frame = frame, .ip = NET_ETHERNET_HEADER, .tcp = offload->checksum_start};
    layout.ip6 = offload->segmentation == NET_SEGMENT_TCP6;
    if (length < layout.tcp + TCP_HEADER || layout.tcp < layout.ip + (layout.ip6 ? IP6_HEADER : IP4_HEADER))
        return false;
    if (!layout.ip6 && layout.tcp - layout.ip != (frame[layout.ip] & 15u) * 4)
        return false;
    uint8_t *tcp = frame + layout.tcp;
    size_t tcp_header = (tcp[TCP_DATA_OFFSET] >> 4) * 4u;
    layout.headers = layout.tcp + tcp_header;
    if (tcp_header < TCP_HEADER || layout.headers >= length || !offload->segment_size ||
        layout.headers + offload->segment_size > frame_max)
        return false;
    size_t left = length - layout.headers;
    uint8_t flags = tcp[TCP_FLAGS];
    uint32_t sequence = get32(tcp + TCP_SEQUENCE);
    uint16_t identification = get16(frame + layout.ip + IP4_IDENTIFICATION);
    /* The headers move forward over the payload already sent, so that every segment is finished in place. */
    for (bool first = true; left; first = false) {
        size_t payload = left < offload->segment_size ? left : offload->segment_size;
        left -= payload;
        tcp = layout.frame + layout.tcp;
        put32(tcp + TCP_SEQUENCE, sequence);
        tcp[TCP_FLAGS] = flags & (uint8_t) ~((first ? 0 : TCP_CWR) | (left ? TCP_FIN | TCP_PSH : 0));
        if (!layout.ip6)
            put16(layout.frame + layout.ip + IP4_IDENTIFICATION, identification++);
        segment_finish(&layout, payload);
        emit(context, layout.frame, layout.headers + payload);
        sequence += (uint32_t)payload;
        memmove(layout.frame + payload, layout.frame, layout.headers);
        layout.frame += payload;
    }
    return true;
}

bool net_offload_send(uint8_t *frame, size_t length, const struct net_offload *offload, size_t frame_max,
                      net_emit *emit, void *context) {
    if (length < NET_ETHERNET_HEADER)
        return false;
    if (offload->segmentation != NET_SEGMENT_NONE && (!offload->checksum || length > frame_max))
        return offload->checksum && send_segments(frame, length, offload, frame_max, emit, context);
    if (length > frame_max)
        return false;
    if (offload->checksum) {
        size_t start = offload->checksum_start, field = start + offload->checksum_offset;
        if (start >= length || field + 2 > length)
            return false;
        store_checksum(frame + field, net_checksum(frame + start, length - start, 0));
    }
    emit(context, frame, length);
    return true;
}

/* Whether a frame is a plain data segment that may be joined with others; payload and header lengths of it.
 */
static bool merge_candidate(const uint8_t *frame, size_t length, size_t *headers, size_t *payload) {
    const uint8_t *ip = frame + NET_ETHERNET_HEADER;
    const uint8_t *tcp = ip + IP4_HEADER;
    if (length < NET_ETHERNET_HEADER + IP4_HEADER + TCP_HEADER || get16(frame + 12) != ETHERTYPE_IP4)
        return false;
    if (ip[0] != 0x45 || ip[IP4_PROTOCOL] != PROTOCOL_TCP || get16(ip + IP4_FRAGMENT) & 0x3fff)
        return false;
    size_t total = get16(ip + IP4_TOTAL_LENGTH);
    size_t tcp_header = (tcp[TCP_DATA_OFFSET] >> 4) * 4u;
    if (tcp_header < TCP_HEADER || total + NET_ETHERNET_HEADER > length || total <= IP4_HEADER + tcp_header)
        return false;
    if ((tcp[TCP_FLAGS] & ~TCP_PSH) != TCP_ACK)
        return false;
    *headers = NET_ETHERNET_HEADER + IP4_HEADER + tcp_header;
    *payload = total - IP4_HEADER - tcp_header;
    return true;
}

/* Everything but lengths, identification, checksums, sequence, acknowledgement, window and PSH is the same.
 */
static bool same_flow(const struct net_merge *merge, const uint8_t *frame, size_t headers) {
    const uint8_t *pending = merge->frame;
    const size_t ip = NET_ETHERNET_HEADER, tcp = ip + IP4_HEADER;
    return headers == merge->headers && !memcmp(pending, frame, ip + IP4_TOTAL_LENGTH) &&
           !memcmp(pending + ip + IP4_FRAGMENT, frame + ip + IP4_FRAGMENT, IP4_CHECKSUM - IP4_FRAGMENT) &&
           !memcmp(pending + ip + IP4_ADDRESSES, frame + ip + IP4_ADDRESSES, 8 + 4) &&
           pending[tcp + TCP_DATA_OFFSET] == frame[tcp + TCP_DATA_OFFSET] &&
           !memcmp(pending + tcp + TCP_HEADER, frame + tcp + TCP_HEADER, headers - tcp - TCP_HEADER);
}

bool net_merge_add(struct net_merge *merge, const uint8_t *frame, size_t length) {
    const size_t tcp = NET_ETHERNET_HEADER + IP4_HEADER;
    size_t headers, payload;
    if (!merge_candidate(frame, length, &headers, &payload))
        return false;
    uint32_t sequence = get32(frame + tcp + TCP_SEQUENCE);
    bool push = frame[tcp + TCP_FLAGS] & TCP_PSH;
    if (!merge->length) {
        merge->length = headers + payload; /* less what an Ethernet frame was padded with */
        memcpy(merge->frame, frame, merge->length);
        merge->segments = 1;
        merge->headers = headers;
        merge->segment_size = payload;
        merge->next_sequence = sequence + (uint32_t)payload;
        merge->complete = push;
        return true;
    }
    if (merge->complete || sequence != merge->next_sequence || payload > merge->segment_size ||
        merge->length + payload > NET_ETHERNET_HEADER + UINT16_MAX || !same_flow(merge, frame, headers))
        return false;
    memcpy(merge->frame + merge->length, frame + headers, payload);
    memcpy(merge->frame + tcp + TCP_ACKNOWLEDGED, frame + tcp + TCP_ACKNOWLEDGED, 4);
    memcpy(merge->frame + tcp + TCP_FLAGS, frame + tcp + TCP_FLAGS, 3); /* and the window */
    merge->length += payload;
    merge->segments++;
    merge->next_sequence += (uint32_t)payload;
    merge->complete = push || payload < merge->segment_size;
    return true;
}

void net_merge_finish(struct net_merge *merge, struct net_offload *offload) {
    uint8_t *ip = merge->frame + NET_ETHERNET_HEADER;
    uint8_t *tcp = ip + IP4_HEADER;
    *offload = (struct net_offload){0};
    if (merge->segments < 2)
        return;
    put16(ip + IP4_TOTAL_LENGTH, (uint16_t)(merge->length - NET_ETHERNET_HEADER));
    ip4_checksum(ip, IP4_HEADER);
    uint16_t sum = tcp_pseudo_sum(ip + IP4_ADDRESSES, 8, merge->length - NET_ETHERNET_HEADER - IP4_HEADER);
    memcpy(tcp + TCP_CHECKSUM, &sum, sizeof sum);
    offload->checksum = true;
    offload->checksum_start = NET_ETHERNET_HEADER + IP4_HEADER;
    offload->checksum_offset = TCP_CHECKSUM;
    offload->segmentation = NET_SEGMENT_TCP4;
    offload->segment_size = (uint16_t)merge->segment_size;
}
