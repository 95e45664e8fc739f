"""memory.py COMMAND...: the counters of memory that it writes to standard output, with each engine that keeps the guest's RAM in its own way."""
import json
import subprocess
import sys

for engine in ("auto", "dbt"):
    result = subprocess.run(sys.argv[1:] + ["--engine", engine], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    memory = json.loads(result.stdout)["memory"]
    touched, resident = memory["guest_touched_bytes"], memory["resident_bytes"]
    if not 0 < touched < resident or memory["overhead_bytes"] != resident - touched:
        sys.exit(f"memory.py: {engine}: {memory}")
    print(f"{engine}: exit {result.returncode}, the guest touched memory, less than is resident")
