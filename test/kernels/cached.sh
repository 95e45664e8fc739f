#!/bin/sh
# usage: cached.sh NESTOR NESTOR-CACHE KEY PREFIX "MACHINE OPTIONS" KERNEL...
# Records, signs and runs each kernel again from its cache; prints what the second run prints.
set -eu
nestor=$1 tool=$2 key=$3 prefix=$4 machine=$5
shift 5
for kernel; do
    rm -f "$prefix.json" "$prefix.recorded"
    # shellcheck disable=SC2086 # several options
    "$nestor" run --kernel "$kernel" $machine --engine dbt --record-cache "$prefix.recorded" >/dev/null || [ $? -eq 1 ]
    "$tool" sign --sign-key "$key" --out "$prefix.ntc" "$prefix.recorded"
    # shellcheck disable=SC2086
    "$nestor" run --kernel "$kernel" $machine --engine dbt --cache "$prefix.ntc" --trust "$key.pub" \
        --cache-required --stats "$prefix.json" || [ $? -eq 1 ]
    grep -q '"cached_blocks":[[:space:]]*[1-9]' "$prefix.json"
done
