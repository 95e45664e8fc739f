"""native.py PROGRAM64 PROGRAM32: the checks of ring 3 are right, for the processor under us passes them.

A host that cannot execute 32-bit programs is a virtual machine without a processor's help; what such hosts are known to
lack is named here and may fail on them alone. Everywhere else each check must pass, of both programs (those that were built).
"""
import errno
import os
import re
import subprocess
import sys

LACKING = {"entries-compatibility-code", "entries-interrupt", "entries-own-segments", "entries-which-cpu",
           "ptrace-hardware-breakpoint", "ptrace-watchpoint"}


def run(program):
    """Names of the checks that failed; None: the host cannot execute the program."""
    try:
        done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            return None
        raise
    print(done.stdout, end="")
    if not re.search(r"^RING3 \d+ bits: \d+ checks, ", done.stdout, re.M):
        sys.exit(f"{program} did not come to its end: status {done.returncode}")
    return set(re.findall(r"^RING3 (\S+) FAILED", done.stdout, re.M))


def main():
    programs = [run(path) for path in sys.argv[1:] if os.path.exists(path)]
    allowed = LACKING if None in programs else set()
    failed = set().union(*(names for names in programs if names)) - allowed
    if failed:
        sys.exit("failed on the host itself: " + " ".join(sorted(failed)))


main()
