#!/bin/sh
# no-room.sh DIRECTORY COMMAND...: runs the command in a mount namespace of its own, DIRECTORY/small being a file system of 8 MiB
# that holds a disk of 64 MiB, whose first 2 MiB are there.
set -e
at=$1
shift
mkdir -p "$at/small"
mount -t tmpfs -o size=8M none "$at/small"
head -c 2097152 /dev/urandom >"$at/small/disk"
truncate -s 64M "$at/small/disk"
before=$(head -c 2097152 "$at/small/disk" | md5sum)
"$@"
[ "$(head -c 2097152 "$at/small/disk" | md5sum)" = "$before" ] && echo "HOST the first part is as it was"
echo "HOST size $(stat -c %s "$at/small/disk")"
