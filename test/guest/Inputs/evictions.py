"""evictions.py STATS [grown]: the vCPUs evicted parts of their code caches again and again, and what is in use is within its size,
or, grown: beyond that and within four times as much, after fewer evictions.
(A cache may be dropped as a whole besides, when another vCPU has written more code than it can be told of.)"""
import json
import sys

grown = sys.argv[2:] == ["grown"]
with open(sys.argv[1]) as f:
    vcpus = json.load(f)["vcpus"]
for vcpu in vcpus:
    print({name: vcpu[name] for name in ("blocks", "cache_evictions", "cache_flushes", "code_cache_bytes", "code_cache_limit")})
    if vcpu["code_cache_bytes"] > vcpu["code_cache_limit"]:
        sys.exit("evictions.py: more in use than there is")
    if grown != (vcpu["code_cache_limit"] > 3 << 20) or vcpu["code_cache_limit"] > 12 << 20:
        sys.exit("evictions.py: another limit than was to be")
if sum(vcpu["cache_evictions"] for vcpu in vcpus) < (8 if grown else 16):
    sys.exit("evictions.py: nothing was evicted as a rule")
