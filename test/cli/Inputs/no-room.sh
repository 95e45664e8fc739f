#!/bin/sh
# no-room.sh NESTOR KERNEL DIRECTORY: in a mount namespace of its own, VMs whose outputs are on file systems without room, or read-only.
# What is there already stays as it is, and nothing is left beside it.
nestor=$1 kernel=$2 at=$3
mkdir -p "$at"

run() {
    what=$1
    shift
    printf x3 | "$nestor" run --memory 64M --kernel "$kernel" --debug-exit 0xf4 "$@" 2>&1 >/dev/null | sed "s|$at|DIR|g; s/^/$what: /"
}

mount -t tmpfs -o size=64k none "$at"
echo before >"$at/stats"
echo before >"$at/cache"
echo before >"$at/profile"
head -c 65536 /dev/zero >"$at/filler" 2>/dev/null
run stats --stats "$at/stats"
run cache --record-cache "$at/cache"
run profile --record-profile "$at/profile"
run trace --trace "pio,file=$at/trace"
for name in stats cache profile; do
    echo "$name holds: $(cat "$at/$name")"
done
rm "$at/trace"
echo "there are:" "$(cd "$at" && echo ./*)"

mount -o remount,ro "$at"
run stats --stats "$at/stats"
run cache --record-cache "$at/cache"
run profile --record-profile "$at/profile"
run trace --trace "pio,file=$at/trace"
run serial --serial "file=$at/line"
run socket --serial "unix=$at/line"
run disk --disk "file=$at/filler"
run readonly --disk "file=$at/filler,readonly=on"
echo done
