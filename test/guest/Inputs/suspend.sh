#!/bin/sh
# Suspend to RAM and to idle until the RTC's alarm, with work before and after. An alarm that comes too early (on a busy host)
# is an event that the count knows of, so the kernel refuses to sleep, and it is tried again.
disk() {
    echo 3 >/proc/sys/vm/drop_caches
    echo "SLEEP disk $(md5sum </dev/vda | cut -c1-32)"
}
sleep_in() {
    until
        cat /sys/power/wakeup_count >/tmp/count
        cat /tmp/count >/sys/power/wakeup_count
        echo 0 >/sys/class/rtc/rtc0/wakealarm
        echo +8 >/sys/class/rtc/rtc0/wakealarm
        echo "$1" >/sys/power/state
    do :; done
    echo "SLEEP $1 over, cpus $(nproc)"
    disk
}
echo "SLEEP states $(cat /sys/power/state) $(cat /sys/power/mem_sleep)"
disk
for state in mem freeze; do
    sleep_in "$state"
done
echo "SLEEP sum $(seq 1 20000 | sha256sum | cut -c1-16)"
! dmesg | grep -E 'BUG:|Oops|WARNING:|soft lockup|rcu.*stall|Call Trace' || exit 1
