#!/bin/sh
# Runs the ring-3 checks in both sizes; with a disk, on it as swap space, more memory than the guest has.
if [ -b /dev/vda ]; then
    mkswap /dev/vda >/dev/null && swapon /dev/vda
    RING3_MEGABYTES=$(sed -n 's/.*megabytes=\([0-9]*\).*/\1/p' /proc/cmdline)
    export RING3_MEGABYTES
fi
only=$(sed -n 's/.*only=\([a-z0-9-]*\).*/\1/p' /proc/cmdline)
status=0
for bits in 64 32; do
    [ -e /ring3_$bits ] || continue
    # shellcheck disable=SC2086
    /ring3_$bits $only || status=1
done
[ -b /dev/vda ] && echo "SWAPPED $(awk '$1 == "pswpin" { print ($2 > 1000 ? "in" : "not in") }' /proc/vmstat)"
dmesg | grep -E 'BUG:|Oops|WARNING:|soft lockup|rcu.*stall|Call Trace' && status=1
exit $status
