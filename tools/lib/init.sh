#!/bin/busybox sh
# The initramfs's init. Prints one INIT line once user space runs, then does what the command line asks:
#     root=DEVICE    mount it and hand over to its init
#     run=COMMAND    run the command (a path, no arguments), print RUN_EXIT=<status>, power off
#     reset          reset the machine
#     otherwise      a shell on the console; leaving it powers off
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
load_modules() {
    for module in /modules/*.ko; do
        [ -e "$module" ] && insmod "$module"
    done
}
# A virtio console is there only once its driver is: until then nothing is open.
virtio_console=
if grep -qw console=hvc0 /proc/cmdline; then
    virtio_console=1
    load_modules
    exec </dev/console >/dev/console 2>&1
fi
echo "INIT kernel=$(uname -r) machine=$(uname -m) cpus=$(nproc) uptime=$(cut -d' ' -f1 /proc/uptime)"
# From here on only warnings: the console belongs to what runs.
dmesg -n 5
[ -n "$virtio_console" ] || load_modules
root= run= reset=
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    run=*) run=${word#run=} ;;
    reset) reset=1 ;;
    esac
done
hostname nestor
ip link set lo up
if [ -n "$root" ]; then
    tries=0
    while [ ! -b "$root" ] && [ $tries -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    mode=rw
    grep -qw ro /proc/cmdline && mode=ro
    if mount -t ext4 -o $mode "$root" /mnt; then
        mount -o move /dev /mnt/dev
        umount /dev/pts /tmp /sys /proc 2>/dev/null
        exec switch_root /mnt /sbin/init
    fi
    echo "init: cannot mount $root; a shell instead"
fi
if [ -n "$reset" ]; then
    reboot -f
fi
if [ -n "$run" ]; then
    "$run"
    echo "RUN_EXIT=$?"
    poweroff -f
fi
[ -d /sys/class/net/eth0 ] && udhcpc -i eth0 -s /etc/udhcpc.sh -q -n -t 3 -T 1 >/dev/null 2>&1
echo "A busybox shell. 'poweroff -f' (or leaving the shell) ends the VM."
setsid cttyhack sh
poweroff -f
