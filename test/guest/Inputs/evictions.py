"""evictions.py STATS: every vCPU evicted parts of its code cache, none dropped the whole of it, and what is in use is within its size."""
import json
import sys

with open(sys.argv[1]) as f:
    vcpus = json.load(f)["vcpus"]
for vcpu in vcpus:
    print({name: vcpu[name] for name in ("blocks", "cache_evictions", "cache_flushes", "code_cache_bytes")})
    if vcpu["cache_evictions"] < 8 or vcpu["cache_flushes"] or vcpu["code_cache_bytes"] > 3 << 20:
        sys.exit("evictions.py: not as expected")
