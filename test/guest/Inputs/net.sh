#!/bin/sh
# The user network: a lease, a fetch from the host's loopback by 10.0.2.2, and a server that the host can reach.
set -e
udhcpc -i eth0 -s /etc/udhcpc.sh -q -n -t 5 -T 2 2>/dev/null
port=$(sed -n 's/.*http=\([0-9]*\).*/\1/p' /proc/cmdline)
wget -q -O - "http://10.0.2.2:$port/hello.txt" | sed 's/^/NET got: /'
wget -q -O /tmp/big "http://10.0.2.2:$port/big"
echo "NET big $(sha256sum /tmp/big | cut -c1-64)"
mkdir -p /tmp/www
echo 'served by the guest' >/tmp/www/index.html
httpd -p 80 -h /tmp/www
echo "NET serving"
sleep 600
