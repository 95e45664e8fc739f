#!/bin/bash
# Real programs, one after the other, in a Debian root that has them (bench.img, or its unpacked copy): for each a line
#     PROGRAM name seconds
# programs.sh LINES XZ_MIB REDIS_REQUESTS [NAME...]
set -u
lines=$1 megabytes=$2 requests=$3
shift 3
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(gcc xz python redis)
work=$(mktemp -d)
cd "$work" || exit 1

# A C file of that many lines: functions of loops, switches, structures and arrays, all different.
make_source() {
    python3 - "$1" <<'END'
import sys
lines = int(sys.argv[1])
out = ["#include <stdint.h>", "#include <string.h>", "struct node { uint32_t key; double weight; struct node *next; };"]
number = 0
while len(out) < lines:
    number += 1
    a, b, c = number * 2654435761 % 251 + 1, number * 40503 % 127 + 1, number % 7 + 2
    out += [f"uint64_t work{number}(const uint32_t *data, unsigned count, struct node *list) {{",
            f"    uint64_t sum = {a};",
            f"    for (unsigned i = 0; i < count; i += {c}) {{",
            f"        switch (data[i] % {c}) {{",
            f"        case 0: sum += data[i] * {b}u; break;",
            f"        case 1: sum ^= sum << {a % 31 + 1}; break;",
            f"        default: sum = sum * {a * 2 + 1} + data[(i + {b}) % count];",
            "        }",
            "    }",
            "    for (struct node *at = list; at; at = at->next)",
            f"        at->weight = at->weight * {a}.5 + (double)(at->key + sum % {b});",
            f"    return sum + work{number - 1}(data, count / 2 + 1, list);" if number > 1 else "    return sum;",
            "}"]
print("\n".join(out))
END
}

# The shell's own clock: no process is started for it.
timed() {
    local name=$1 begin=$EPOCHREALTIME end
    shift
    "$@" >"$work/log" 2>&1 || { echo "PROGRAM $name failed"; tail -n 5 "$work/log"; return; }
    end=$EPOCHREALTIME
    echo "PROGRAM $name $(awk "BEGIN { printf \"%.3f\", $end - $begin }")"
}

for name in "${names[@]}"; do
    case $name in
    gcc)
        make_source "$lines" >source.c
        timed gcc gcc -O2 -c source.c -o source.o
        ;;
    xz)
        cat /usr/lib/python3.11/*.py /usr/bin/* 2>/dev/null | head -c "${megabytes}M" >data
        timed xz xz -9 -k -f data
        ;;
    python) timed python python3 -m test test_json test_re ;;
    redis)
        redis-server --save '' --daemonize yes --dir "$work" --port 6399 >/dev/null
        until redis-cli -p 6399 ping >/dev/null 2>&1; do sleep 0.1; done
        timed redis redis-benchmark -p 6399 -n "$requests" -c 20 -t set,get -q
        redis-cli -p 6399 shutdown nosave
        ;;
    esac
done
cd / && rm -rf "$work"
