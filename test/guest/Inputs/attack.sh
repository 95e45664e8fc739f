#!/bin/sh
# The attack suite in both sizes (or only phase=NAME, bits=N), then proof that the guest is whole: its kernel complains of nothing and work comes out right.
phase=$(sed -n 's/.*phase=\([a-z-]*\).*/\1/p' /proc/cmdline)
sizes=$(sed -n 's/.*bits=\([0-9]*\).*/\1/p' /proc/cmdline)
# The kernel reports each of many deaths.
dmesg -n 3
echo 0 >/proc/sys/debug/exception-trace
echo "ATTACK begins"
status=0
for bits in ${sizes:-64 32}; do
    [ -e "/attack_$bits" ] || continue
    "/attack_$bits" $phase || status=1
done
dmesg | grep -E 'BUG:|Oops|WARNING:|Call Trace' && status=1
[ "$(seq 1 20000 | sha256sum | cut -c1-16)" = f6351f5ead9a700e ] || status=1
echo "ATTACK over, $(ls /tmp/attack-jail | wc -l) files left"
exit $status
