"""evictions.py STATS: the vCPUs evicted parts of their code caches again and again, and what is in use is within its size.
(A cache may be dropped as a whole besides, when another vCPU has written more code than it can be told of.)"""
import json
import sys

with open(sys.argv[1]) as f:
    vcpus = json.load(f)["vcpus"]
for vcpu in vcpus:
    print({name: vcpu[name] for name in ("blocks", "cache_evictions", "cache_flushes", "code_cache_bytes")})
    if vcpu["code_cache_bytes"] > 3 << 20:
        sys.exit("evictions.py: more in use than there is")
if sum(vcpu["cache_evictions"] for vcpu in vcpus) < 16:
    sys.exit("evictions.py: nothing was evicted as a rule")
