"""Boot a guest to its shell and hold its kernel's text against what the offline translator foresees.

    guest_text.py NESTOR SBT-COMPARE KERNEL INITRD CPUS

The guest's RAM is a memory file of the VMM's process, which a process of the same user may read while the sandbox is
off. Prints what sbt-compare prints and exits with its status. Standard library only.
"""
import os
import select
import subprocess
import sys
import tempfile
import time

MEMORY = 512 << 20
TEXT_END = 128 << 20  # kernels and their initial data lie below
DEADLINE = 150


def wait_for(stream, text):
    """Read until the guest has printed text."""
    seen, end = b"", time.monotonic() + DEADLINE
    while text not in seen:
        if not select.select([stream], [], [], max(0, end - time.monotonic()))[0]:
            sys.exit(f"no {text!r} within {DEADLINE} s; the guest printed:\n{seen[-2000:].decode(errors='replace')}")
        more = os.read(stream.fileno(), 65536)
        if not more:
            sys.exit(f"the VMM ended:\n{seen[-2000:].decode(errors='replace')}")
        seen += more


def copy_memory(process, target):
    """The first TEXT_END bytes of guest RAM: a memory file where ring 3 may run directly."""
    directory = f"/proc/{process.pid}/fd"
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if "memfd" in os.readlink(path) and os.stat(path).st_size == MEMORY:
            with open(path, "rb") as memory:
                target.write(memory.read(TEXT_END))
            target.flush()
            return
    sys.exit("guest RAM is not among the VMM's files")


def main():
    nestor, compare, kernel, initrd, cpus = sys.argv[1:]
    command = [nestor, "run", "--kernel", kernel, "--initrd", initrd, "--memory", str(MEMORY), "--cpus", cpus,
               "--engine", "auto", "--sandbox", "off", "--append", "console=ttyS0 quiet panic=-1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            wait_for(process.stdout, b"/ # ")
            process.stdin.write(b"ls /proc; echo DONE_$((1+1))\n")
            process.stdin.flush()
            wait_for(process.stdout, b"DONE_2")
            with tempfile.NamedTemporaryFile() as memory:
                copy_memory(process, memory)
                process.kill()
                sys.exit(subprocess.run([compare, kernel, memory.name, cpus]).returncode)
        finally:
            process.kill()


main()
