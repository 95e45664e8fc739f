#!/bin/busybox sh
# What udhcpc calls with a lease: give it to the interface.
case $1 in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route replace default via "$gateway" dev "$interface"
    done
    for server in $dns; do
        echo "nameserver $server"
    done >/etc/resolv.conf
    echo "LEASE $ip"
    ;;
esac
