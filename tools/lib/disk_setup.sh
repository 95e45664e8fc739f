#!/bin/sh
# Runs inside the new Debian root (no services, no network needed): makes it a guest with a serial login.
set -e
echo nestor >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 nestor\n' >/etc/hosts
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >/etc/fstab
echo 'root:nestor' | chpasswd
cat >/etc/systemd/network/80-ethernet.network <<'END'
[Match]
Type=ether

[Network]
DHCP=yes
END
# The user network's name server; a DHCP client that writes this file would want a resolver package.
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d
cat >/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 %I $TERM
END
printf '%s\n' 'Debian GNU/Linux 12 under Nestor, \n \l (root logs in by itself here; elsewhere the password is nestor)' '' >/etc/issue
systemctl enable systemd-networkd.service serial-getty@ttyS0.service
systemctl disable systemd-networkd-wait-online.service || true
systemctl mask getty@tty1.service apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
rm -f /etc/machine-id && : >/etc/machine-id
