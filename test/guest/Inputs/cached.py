"""usage: cached.py STATS PERCENT -- is at least that share of the ring-0 blocks that the VM met from its caches?"""
import json
import sys

met = [(cpu["cached_blocks"], cpu["cache_misses"]) for cpu in json.load(open(sys.argv[1]))["vcpus"]]
cached, missed = (sum(column) for column in zip(*met))
print(f"{cached} blocks cached, {missed} missed")
sys.exit(not cached or cached * 100 < (cached + missed) * int(sys.argv[2]))
