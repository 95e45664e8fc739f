#!/bin/sh
# The host's file system has 6 MiB left for this disk: what goes beyond is refused, the rest goes on, and what was written is there.
dd if=/bin/busybox of=/dev/vda bs=64k seek=64 count=8 conv=fsync 2>/dev/null && echo "ROOM first write: done"
dd if=/dev/zero of=/dev/vda bs=1M seek=8 count=16 conv=fsync 2>/dev/null || echo "ROOM second write: refused"
echo 3 >/proc/sys/vm/drop_caches
a=$(dd if=/bin/busybox bs=64k count=8 2>/dev/null | md5sum)
b=$(dd if=/dev/vda bs=64k skip=64 count=8 2>/dev/null | md5sum)
[ "$a" = "$b" ] && echo "ROOM the first write is there"
dd if=/bin/busybox of=/dev/vda bs=64k seek=64 count=1 conv=fsync 2>/dev/null && echo "ROOM written again: done"
