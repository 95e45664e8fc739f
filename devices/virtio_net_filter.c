#include "devices/virtio_net_filter.h"

#include "devices/net_backend.h"

#include <string.h>

enum { RX_PROMISCUOUS, RX_ALL_MULTICAST, RX_ALL_UNICAST, RX_NO_MULTICAST, RX_NO_UNICAST, RX_NO_BROADCAST };
enum { MAC_TABLE_SET = 0, MAC_ADDRESS_SET = 1 };
enum { VLAN_ADD = 0, VLAN_DELETE = 1 };
enum { ETHERTYPE_VLAN = 0x8100 };

void net_filter_init(struct net_filter *filter, const uint8_t *mac, bool by_vlan) {
    *filter = (struct net_filter){.by_vlan = by_vlan};
    memcpy(filter->mac, mac, sizeof filter->mac);
}

static bool listed(const uint8_t (*table)[6], unsigned count, const uint8_t *address) {
    for (unsigned i = 0; i < count; i++)
        if (!memcmp(table[i], address, 6))
            return true;
    return false;
}

bool net_filter_passes(const struct net_filter *filter, const uint8_t *frame, size_t length) {
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    if (filter->by_vlan && length >= NET_ETHERNET_HEADER + 4 &&
        (frame[12] << 8 | frame[13]) == ETHERTYPE_VLAN) {
        unsigned vlan = (frame[14] << 8 | frame[15]) & 0xfff;
        if (!(filter->vlans[vlan / 8] >> (vlan & 7) & 1))
            return false;
    }
    if (filter->promiscuous)
        return true;
    if (!memcmp(frame, broadcast, sizeof broadcast))
        return !filter->no_broadcast;
    if (frame[0] & 1)
        return !filter->no_multicast &&
               (filter->all_multicast || listed(filter->multicast, filter->multicast_count, frame));
    return !filter->no_unicast && (filter->all_unicast || !memcmp(frame, filter->mac, 6) ||
                                   listed(filter->unicast, filter->unicast_count, frame));
}

static bool command_rx(struct net_filter *filter, uint8_t command, const uint8_t *data, size_t length) {
    bool *const switches[] = {
        [RX_PROMISCUOUS] = &filter->promiscuous, [RX_ALL_MULTICAST] = &filter->all_multicast,
        [RX_ALL_UNICAST] = &filter->all_unicast, [RX_NO_MULTICAST] = &filter->no_multicast,
        [RX_NO_UNICAST] = &filter->no_unicast,   [RX_NO_BROADCAST] = &filter->no_broadcast,
    };
    if (length != 1 || command >= ARRAY_SIZE(switches))
        return false;
    *switches[command] = data[0] != 0;
    return true;
}

/* One {count, addresses} table; a longer one than there is room for means: let all of its kind pass. */
static bool table_set(const uint8_t **data, size_t *length, uint8_t (*table)[6], uint8_t *count, bool *all) {
    uint32_t entries;
    if (*length < sizeof entries)
        return false;
    memcpy(&entries, *data, sizeof entries);
    *data += sizeof entries;
    *length -= sizeof entries;
    if (entries > *length / 6)
        return false;
    *all = entries > NET_FILTER_ADDRESSES;
    *count = *all ? 0 : (uint8_t)entries;
    memcpy(table, *data, *count * 6u);
    *data += entries * 6;
    *length -= entries * 6;
    return true;
}

static bool command_mac(struct net_filter *filter, uint8_t command, const uint8_t *data, size_t length) {
    struct net_filter changed = *filter;
    bool all_unicast, all_multicast;
    switch (command) {
    case MAC_TABLE_SET:
        if (!table_set(&data, &length, changed.unicast, &changed.unicast_count, &all_unicast) ||
            !table_set(&data, &length, changed.multicast, &changed.multicast_count, &all_multicast) || length)
            return false;
        changed.all_unicast |= all_unicast;
        changed.all_multicast |= all_multicast;
        break;
    case MAC_ADDRESS_SET:
        if (length != sizeof changed.mac)
            return false;
        memcpy(changed.mac, data, sizeof changed.mac);
        break;
    default:
        return false;
    }
    *filter = changed;
    return true;
}

static bool command_vlan(struct net_filter *filter, uint8_t command, const uint8_t *data, size_t length) {
    uint16_t vlan;
    if (length != sizeof vlan)
        return false;
    memcpy(&vlan, data, sizeof vlan);
    if (vlan >= 4096 || command > VLAN_DELETE)
        return false;
    if (command == VLAN_ADD)
        filter->vlans[vlan / 8] |= (uint8_t)(1 << (vlan & 7));
    else
        filter->vlans[vlan / 8] &= (uint8_t) ~(1 << (vlan & 7));
    return true;
}

bool net_filter_command(struct net_filter *filter, uint8_t class, uint8_t command, const uint8_t *data,
                        size_t length) {
    switch (class) {
    case NET_CONTROL_RX:
        return command_rx(filter, command, data, length);
    case NET_CONTROL_MAC:
        return command_mac(filter, command, data, length);
    case NET_CONTROL_VLAN:
        return command_vlan(filter, command, data, length);
    default:
        return false;
    }
}
