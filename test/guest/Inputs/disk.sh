#!/bin/sh
# A disk of its own: fill it, or find again what the last boot wrote.
set -e
echo "DISK size $(cat /sys/block/vda/size) ro $(cat /sys/block/vda/ro) serial $(cat /sys/block/vda/serial)"
if [ "$(cat /sys/block/vda/ro)" = 1 ]; then
    mount -t ext4 -o ro /dev/vda /mnt
    if echo x 2>/dev/null >/dev/vda; then
        echo "DISK took a write"
    else
        echo "DISK refuses writes"
    fi
else
    mount -t ext4 /dev/vda /mnt
    if [ -e /mnt/file1 ]; then
        echo "DISK found"
    else
        for i in $(seq 1 20); do
            seq $i 40000 >/mnt/file$i
        done
        sync
        echo 3 >/proc/sys/vm/drop_caches
        echo "DISK made"
    fi
fi
echo "DISK sum $(cat /mnt/file* | md5sum | cut -c1-32) files $(ls /mnt | grep -c file)"
umount /mnt
! dmesg | grep -E 'I/O error|EXT4-fs error|Call Trace' || exit 1
