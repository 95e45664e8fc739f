/* The value of --net: none, or user with forwarded ports and a hardware address. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "option_values.h"

/* "[ADDRESS]:PORT", the address an IPv4 one or empty. */
static bool parse_endpoint(char *text, uint32_t *address, uint16_t *port) {
    struct in_addr parsed = {0};
    uint64_t number;
    char *colon = strrchr(text, ':');
    if (!colon)
        return false;
    *colon = 0;
    if (*text && inet_pton(AF_INET, text, &parsed) != 1)
        return false;
    if (value_parse_number(colon + 1, UINT16_MAX, &number) || !number)
        return false;
    *address = ntohl(parsed.s_addr);
    *port = (uint16_t)number;
    return true;
}

/* "tcp:[HOST]:PORT-[GUEST]:PORT", or udp. */
static bool parse_forward(char *text, struct vm_forward_config *forward) {
    *forward = (struct vm_forward_config){.is_udp = !strncmp(text, "udp:", 4)};
    if (!forward->is_udp && strncmp(text, "tcp:", 4))
        return false;
    char *host = text + 4, *guest = strchr(host, '-');
    if (!guest)
        return false;
    *guest++ = 0;
    return parse_endpoint(host, &forward->host_address, &forward->host_port) &&
           parse_endpoint(guest, &forward->guest_address, &forward->guest_port);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Six pairs of hex digits between colons or dashes; no group address, not all zeros. */
static bool parse_mac(const char *text, uint8_t mac[6]) {
    bool any = false;
    if (strlen(text) != 17)
        return false;
    for (int i = 0; i < 6; i++) {
        int high = hex_digit(text[3 * i]), low = hex_digit(text[3 * i + 1]);
        char separator = text[3 * i + 2];
        if (high < 0 || low < 0 || (i < 5 && separator != ':' && separator != '-'))
            return false;
        mac[i] = (uint8_t)(high << 4 | low);
        any |= mac[i];
    }
    return any && !(mac[0] & 1);
}

int option_parse_net(struct run_options *options, const struct option_source *source, const char *value) {
    struct vm_config *vm = &options->vm;
    struct vm_net_config net = {0};
    struct value_fields fields = {run_options_keep(options, value, strlen(value))};
    char *key, *field;

    if (vm->net_count == VM_NETS_MAX)
        return option_refuse(source, value, "is one network too many; %d are the limit", VM_NETS_MAX);
    value_fields_next(&fields, &key, &field);
    if (!field && !strcmp(key, "none"))
        net.kind = VM_NET_NONE;
    else if (!field && !strcmp(key, "user"))
        net.kind = VM_NET_USER;
    else
        return option_refuse(source, value, "starts with '%s'; start it with none or user", key);
    while (value_fields_next(&fields, &key, &field)) {
        if (net.kind == VM_NET_NONE)
            return option_refuse(source, value, "none takes no further settings");
        if (field && !strcmp(key, "mac")) {
            if (!parse_mac(field, net.mac))
                return option_refuse(
                    source, value, "mac '%s' is no unicast address; write one like 52:54:00:12:34:56", field);
            net.has_mac = true;
        } else if (field && !strcmp(key, "hostfwd")) {
            if (net.forward_count == VM_FORWARDS_MAX)
                return option_refuse(source, value, "has more than %d hostfwd", VM_FORWARDS_MAX);
            if (!parse_forward(field, &net.forward[net.forward_count++]))
                return option_refuse(
                    source, value,
                    "its hostfwd is not understood; write one like hostfwd=tcp:127.0.0.1:2222-:22");
        } else {
            return option_refuse(source, value, "'%s' is not known; hostfwd= and mac= are", key);
        }
    }
    /* "none" clears what a configuration file asked for; it is no network card itself. */
    if (net.kind == VM_NET_NONE)
        vm->net_count = 0;
    else
        vm->net[vm->net_count++] = net;
    return 0;
}
