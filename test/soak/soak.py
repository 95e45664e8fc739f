#!/usr/bin/env python3
"""Stress a Debian guest's processes, memory, signals and threads for as long as is asked, and watch the launcher from outside.

    soak.py [--minutes 60] [--round 120] [--cpus 2] [--memory 1G] [--nestor build/bin/nestor] [--nestor-args "--engine auto"]
            [--guests DIRECTORY] [--kernel VMLINUZ] [--stats FILE]

Rounds of stress-ng follow each other in one VM, each of them one kind of load with the stressors' own verification on. After
each the guest rests, and what launcher and stubs hold on the host is noted: processes, threads, descriptors, mappings,
memory. The first turn of all rounds is the warm-up. What is held swings with the processes whose stubs were used last (mappings by
a third), so a later turn has grown when even the least of it is more than the most of the first plus the slack of SLACK.
Exits with 1 when a stressor failed, the guest's kernel complained, something grew, or the VM did not power off. The disk is
copied; nothing of the host is changed. Standard library only.
"""
import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import console  # noqa: E402
import footprint  # noqa: E402

CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
GUESTS = os.environ.get("NESTOR_GUESTS") or os.path.join(CACHE, "nestor", "guests")
PROMPT = r"root@nestor:~# $"
ROUNDS = (
    ("processes", "--fork 2 --vfork 1 --exec 1 --clone 1 --wait 1"),
    ("memory", "--vm 2 --vm-bytes 64M --mmap 1 --mmap-bytes 32M --mremap 1 --mremap-bytes 16M --mprotect 1 --fault 1"),
    ("signals", "--sigq 1 --sigfd 1 --sigsegv 1 --sigfpe 1 --sigsuspend 1 --sigtrap 1 --kill 1"),
    ("threads", "--pthread 1 --futex 1 --switch 1 --mutex 1 --pipe 1"),
    ("computing", "--cpu 2 --matrix 1 --vecmath 1 --qsort 1"),
)
SLACK = {"processes": 8, "threads": 16, "descriptors": 64, "mappings": 3000, "memory": 64}
COMPLAINTS = r"BUG:|Oops|WARNING:|soft lockup|rcu.*stall|Call Trace"


def rest(guest, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until and guest.read(until):
        pass


def run_round(guest, name, stressors, seconds):
    """One round; returns the footprint after it."""
    guest.send(f"stress-ng {stressors} --verify --timeout {seconds}s --oomable 2>&1 | tail -n 3; "
               "echo STATUS ${PIPESTATUS[0]}\n".encode())
    status = guest.expect(r"^STATUS (\d+)\n", seconds * 10 + 120).group(1)
    guest.expect(PROMPT, 60)
    if status != "0":
        raise console.Failure(f"stress-ng ended with status {status} in the round of {name}")
    rest(guest, 5)
    guest.look()
    return footprint.footprint(guest.process.pid)


def soak(guest, minutes, seconds):
    begin, turn, most = time.monotonic(), 0, {}
    guest.expect(PROMPT, 300)
    while turn < 2 or time.monotonic() < begin + minutes * 60:
        least = {}
        for name, stressors in ROUNDS:
            held = run_round(guest, name, stressors, seconds)
            text = " ".join(f"{what}={amount:.0f}" for what, amount in held.items())
            print(f"SOAK {time.monotonic() - begin:5.0f} s, turn {turn + 1}, {name}: {text}", flush=True)
            for what, amount in held.items():
                least[what] = min(least.get(what, amount), amount)
                if turn == 0:
                    most[what] = max(most.get(what, 0), amount)
        for what, amount in least.items():
            if amount > most[what] + SLACK[what]:
                raise console.Failure(f"{what} grew from {most[what]:.0f} to {amount:.0f}")
        turn += 1
    guest.send(f"echo COMPLAINTS $(dmesg | grep -cE '{COMPLAINTS}')\n".encode())
    complaints = guest.expect(r"^COMPLAINTS (\d+)\n", 60).group(1)
    if complaints != "0":
        raise console.Failure("the guest's kernel complained")
    guest.send(b"poweroff\n")
    status = guest.wait(120)
    if status:
        raise console.Failure(f"the VMM ended with status {status}")
    print(f"SOAK over: {turn} turns in {time.monotonic() - begin:.0f} s, nothing grew, nothing left")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--round", type=int, default=120, help="seconds of each round")
    parser.add_argument("--cpus", default="2")
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--nestor", default=os.path.join(HERE, "..", "..", "build", "bin", "nestor"))
    parser.add_argument("--nestor-args", default="--engine auto")
    parser.add_argument("--guests", default=GUESTS)
    parser.add_argument("--kernel")
    parser.add_argument("--stats", help="write the launcher's counters there at the end")
    options = parser.parse_args()
    kernel = options.kernel or os.path.join(options.guests, "kernels", "6.1", "vmlinuz")
    with tempfile.TemporaryDirectory() as directory:
        disk = os.path.join(directory, "disk.img")
        shutil.copyfile(os.path.join(options.guests, "debian12.img"), disk)
        command = [options.nestor, "run", "--memory", options.memory, "--cpus", options.cpus, "--kernel", kernel,
                   "--initrd", os.path.join(options.guests, "busybox-6.1.cpio.gz"), "--append",
                   "console=ttyS0 root=/dev/vda rw", "--disk", f"file={disk}", *shlex.split(options.nestor_args)]
        if options.stats:
            command += ["--stats", options.stats]
        with open(os.path.join(directory, "transcript"), "w") as transcript:
            guest = console.Console(command, transcript)
            try:
                soak(guest, options.minutes, options.round)
            except console.Failure as failure:
                last = "\n  | ".join(guest.text.splitlines()[-25:])
                print(f"soak: {failure}\n  command: {shlex.join(command)}\n  the guest's last lines:\n  | {last}", file=sys.stderr)
                return 1
            finally:
                guest.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
