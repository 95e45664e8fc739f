#!/bin/sh
# Work for a busybox guest, with results that are known beforehand. Prints one WORK line for each piece.
set -e
cd /tmp
seq 1 200000 >numbers
echo "WORK sha256 $(sha256sum <numbers | cut -c1-64)"
echo "WORK md5 $(md5sum <numbers | cut -c1-32)"
echo "WORK awk $(awk '{ s += $1 * $1 } END { printf "%.0f", s }' numbers)"
echo "WORK float $(awk 'BEGIN { for (i = 0; i < 100000; i++) s += i / (i + 3.5) - 1.25; printf "%.6f", s }')"
sort -r numbers | sort -n >sorted
cmp numbers sorted && echo "WORK sort same"
gzip -c numbers | gunzip -c | cmp - numbers && echo "WORK gzip same"
bzip2 -c numbers | bunzip2 -c | cmp - numbers && echo "WORK bzip2 same"
tar cf - numbers sorted | tar tf - | sort | tr '\n' ' ' | sed 's/^/WORK tar /'
echo
echo "WORK pipes $(i=0; while [ $i -lt 200 ]; do echo $i | cat | cat; i=$((i + 1)); done | sed -n '$p')"
# Signals, sub-shells, jobs that end in any order.
for i in 1 2 3 4 5 6 7 8; do (sleep 0.1; exit $i) & done
wait
(trap 'echo "WORK signal taken"; exit 0' TERM; while :; do sleep 0.05; done) &
sleep 0.2
kill -TERM $!
wait $!
dd if=/dev/zero of=big bs=1M count=48 2>/dev/null
echo "WORK big $(sha1sum <big | cut -c1-40)"
echo "WORK cpu $(sed -n 's/^vendor_id.*: //p' /proc/cpuinfo | head -n 1)"
before=$(date +%s); sleep 2; after=$(date +%s)
elapsed=$((after - before))
[ $elapsed -ge 2 ] && [ $elapsed -le 3 ] && echo "WORK clock keeps"
! dmesg | grep -E 'BUG:|Oops|WARNING:|soft lockup|rcu.*stall|Call Trace' || exit 1
echo "WORK done"
