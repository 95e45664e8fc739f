"""overhead.py STATS MIB: the process used less than that beyond the guest's RAM, by the counters it wrote at its end."""
import json
import sys

with open(sys.argv[1]) as f:
    memory = json.load(f)["memory"]
overhead = memory["overhead_bytes"] / (1 << 20)
print(f"beyond guest RAM: {overhead:.1f} MiB; {memory}")
if not 0 < overhead < float(sys.argv[2]):
    sys.exit(f"overhead.py: {overhead:.1f} MiB, not under {sys.argv[2]}")
