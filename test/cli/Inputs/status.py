"""status.py N COMMAND...: run the command and require that it exits with N and says at most one line on standard error."""
import subprocess
import sys

result = subprocess.run(sys.argv[2:], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
sys.stderr.buffer.write(result.stderr)
if result.returncode != int(sys.argv[1]):
    sys.exit(f"status.py: exit status {result.returncode}, not {sys.argv[1]}")
lines = result.stderr.count(b"\n")
if lines != 1 and not result.stderr.startswith(b"Usage"):
    sys.exit(f"status.py: {lines} lines on standard error, not 1")
