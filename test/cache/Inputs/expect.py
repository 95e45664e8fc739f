"""expect.py N COMMAND...: run the command and require that it exits with N; its output passes through."""
import subprocess
import sys

result = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL)
if result.returncode != int(sys.argv[1]):
    sys.exit(f"expect.py: exit status {result.returncode}, not {sys.argv[1]}")
