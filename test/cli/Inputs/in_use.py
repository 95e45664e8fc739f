"""in_use.py NESTOR KERNEL DISK: a second VM is refused a disk that a first one has, which goes on undisturbed."""
import subprocess
import sys

nestor, kernel, disk = sys.argv[1:]
command = [nestor, "run", "--memory", "64M", "--kernel", kernel, "--debug-exit", "0xf4", "--disk"]
first = subprocess.Popen([*command, f"file={disk}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
try:
    greeting = first.stdout.readline()
    second = subprocess.run([*command, f"file={disk}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30)
    reader = subprocess.run([*command, f"file={disk},readonly=on"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30)
    print(second.stderr.decode(), end="")
    if not greeting.startswith(b"boot 1") or second.returncode != 1 or reader.returncode != 1:
        sys.exit(f"in_use.py: {greeting!r}, exit statuses {second.returncode} and {reader.returncode}, not 1")
    answer, _ = first.communicate(b"x3", timeout=30)
    if first.returncode != 7:
        sys.exit(f"in_use.py: the first VM ended with {first.returncode}, not 7: {answer!r}")
    print("the first went on")
finally:
    first.kill()
