/* What a network card's hardware would do to packets: checksums, cutting large TCP packets into segments, and
 * joining segments into large ones. Frames are Ethernet II; all of their content is hostile. */
#ifndef NESTOR_DEVICES_NET_OFFLOAD_H
#define NESTOR_DEVICES_NET_OFFLOAD_H

#include "base/types.h"
#include "devices/net_backend.h"

enum net_segmentation { NET_SEGMENT_NONE, NET_SEGMENT_TCP4, NET_SEGMENT_TCP6 };

/* What remains to be done to a frame that the guest sends. */
struct net_offload {
    bool checksum; /* sum from checksum_start to the end into the field at checksum_start + checksum_offset,
                      which holds the pseudo header's sum; with segmentation checksum_start is where the TCP
                      header is */
    uint16_t checksum_start;
    uint16_t checksum_offset;
    enum net_segmentation segmentation;
    uint16_t segment_size; /* TCP payload bytes of each */
};

typedef void net_emit(void *context, const uint8_t *frame, size_t length);

/* Internet checksum (RFC 1071) of bytes, folded to 16 bits but not complemented, in memory byte order. */
uint16_t net_checksum(const uint8_t *bytes, size_t length, uint32_t sum);

/* Finish a frame and pass it to emit(): whole if it is no longer than frame_max, else in segments. frame[] is
 * changed. A frame whose offload makes no sense is dropped: false. */
bool net_offload_send(uint8_t *frame, size_t length, const struct net_offload *offload, size_t frame_max,
                      net_emit *emit, void *context);

/* Joins consecutive TCP segments of one IPv4 connection into one packet, of which `segment_size` tells how it
 * was cut. Usage: while net_merge_add() says false, deliver what is pending and net_merge_clear(), then try
 * again; a frame that is refused with nothing pending goes its own way. */
struct net_merge {
    uint8_t frame[NET_FRAME_MAX];
    size_t length;       /* 0: nothing is pending */
    unsigned segments;   /* joined so far */
    size_t headers;      /* Ethernet, IPv4 and TCP */
    size_t segment_size; /* payload of all but the last */
    uint32_t next_sequence;
    bool complete; /* nothing can follow */
};

bool net_merge_add(struct net_merge *merge, const uint8_t *frame, size_t length);
/* Make what is pending a valid packet; if it was joined its TCP checksum is that of the pseudo header only,
 * and offload says what is left to do. */
void net_merge_finish(struct net_merge *merge, struct net_offload *offload);
static inline void net_merge_clear(struct net_merge *merge) {
    merge->length = 0;
}

#endif
