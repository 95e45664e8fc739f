#!/usr/bin/env python3
"""Run one guest workload under Nestor, under QEMU's TCG (two CPU models) and on the host itself, in turn; print medians and ratios.

    compare.py [--nestor build/bin/nestor] [--kernel VMLINUZ] [--runs 3] [--seconds 0.4] [--only ITEM] [--cpus 1]
            [--engines nestor,tcg,tcg64,native] [--nestor-args "..."] [--json FILE]

The guest is Debian's stock kernel with an initramfs of busybox-static and ubench (beside this file, built -static). It prints
INIT_START when user space begins and BENCH_DONE at the end, then powers off. The host's memory is touched just before
every run, because a page that the cloud host does not back can cost 50 us; with one vCPU everything is pinned to one CPU,
because a wake-up across CPUs can cost as much. Exits with 1 when a run failed; an item that some run lacks is left out. Times are seconds from the start of the VMM's process. The peer is, item by
item, the better of TCG with -cpu max (tcg) and with -cpu qemu64 (tcg64). Needs: gcc, cpio, gzip, busybox-static, and for the peer qemu-system-x86.
"""
import argparse
import json
import mmap
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HIGHER_IS_BETTER = ("MB/s", "GB/s", "MFLOPS")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /tmp; mount -t tmpfs tmp /tmp
echo "INIT_START uptime=$(cut -d' ' -f1 /proc/uptime) kernel=$(uname -r) cpus=$(nproc)"
%s
echo "BENCH_DONE uptime=$(cut -d' ' -f1 /proc/uptime)"
poweroff -f
"""


def find_busybox():
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path):
            return path
    sys.exit("compare: no busybox; apt-get install busybox-static")


def build(directory, command):
    """Build ubench and the initramfs in directory; returns (ubench, initramfs)."""
    ubench = os.path.join(directory, "ubench")
    subprocess.check_call(["gcc", "-O2", "-static", "-pthread", "-o", ubench, os.path.join(HERE, "ubench.c")])
    root = os.path.join(directory, "root")
    for sub in ("bin", "proc", "sys", "dev", "tmp"):
        os.makedirs(os.path.join(root, sub))
    subprocess.check_call(["cp", find_busybox(), ubench, os.path.join(root, "bin")])
    with open(os.path.join(root, "init"), "w") as f:
        f.write(INIT % command)
    os.chmod(os.path.join(root, "init"), 0o755)
    initramfs = os.path.join(directory, "initramfs.cpio.gz")
    subprocess.check_call(f"cd {shlex.quote(root)} && find . | cpio -o -H newc --quiet | gzip -1 > {shlex.quote(initramfs)}",
                          shell=True)
    return ubench, initramfs


def warm_host(size):
    """Have the cloud host back that much memory just before a run: a page it has taken away costs 50 us to touch again."""
    with mmap.mmap(-1, size) as m:
        for offset in range(0, size, mmap.PAGESIZE):
            m[offset] = 1


def parse(line, figures, units):
    m = re.match(r"([a-z]\w*) ([-+.\de]+) (\S+)$", line)
    if m:
        figures[m[1]] = float(m[2])
        units[m[1]] = m[3]


def run(argv, cap, units):
    """One run: a dict of figures, with boot_to_init and total seconds for a VMM."""
    figures, begin = {}, time.monotonic()
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         start_new_session=True)
    timer = threading.Timer(cap, lambda: os.killpg(p.pid, signal.SIGKILL))
    timer.start()
    tail = []
    for raw in p.stdout:
        line = raw.decode(errors="replace").strip()
        tail = (tail + [line])[-15:]
        if "INIT_START" in line:
            figures["boot_to_init"] = time.monotonic() - begin
            units["boot_to_init"] = "s"
        parse(line, figures, units)
    timer.cancel()
    if p.wait() != 0 or not figures:
        print(f"{shlex.join(argv)} ended with {p.returncode}; its last lines:", *tail, sep="\n  ", file=sys.stderr)
        return None
    return figures


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--nestor", default="build/bin/nestor")
    ap.add_argument("--nestor-args", default="", help="further arguments for `nestor run`")
    ap.add_argument("--kernel", help="default: the 6.1 kernel that tools/quickstart fetched")
    ap.add_argument("--engines", default="nestor,tcg,tcg64,native")
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=0.4, help="for each item")
    ap.add_argument("--only", help="one item of ubench; 'none': boot and power off")
    ap.add_argument("--cpus", type=int, default=1)
    ap.add_argument("--memory", default="1G")
    ap.add_argument("--cap", type=int, default=600, help="seconds before a run is killed")
    ap.add_argument("--json")
    a = ap.parse_args()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
    guests = os.environ.get("NESTOR_GUESTS") or os.path.join(cache, "nestor", "guests")
    kernel = a.kernel or os.path.join(guests, "kernels", "6.1", "vmlinuz")
    if not os.path.exists(kernel):
        sys.exit(f"compare: no kernel at {kernel}; run tools/quickstart --no-run, or name one with --kernel")
    tail = f" {a.only}" if a.only else ""
    command = ":" if a.only == "none" else f"/bin/ubench {a.seconds} /bin/busybox{tail}"
    units, results = {}, {e: [] for e in a.engines.split(",")}
    with tempfile.TemporaryDirectory() as d:
        ubench, initramfs = build(d, command)
        cmdline = "console=ttyS0 panic=-1"
        pin = ["taskset", "-c", "0"] if a.cpus == 1 else []
        qemu = [*pin, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", str(a.cpus), "-m", a.memory, "-nographic",
                "-nodefaults", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel), "-initrd", initramfs,
                "-append", cmdline]
        argv = {
            "nestor": [*pin, a.nestor, "run", "--memory", a.memory, "--cpus", str(a.cpus), "--kernel", str(kernel),
                       "--initrd", initramfs, "--append", cmdline, "--serial", "stdio", *shlex.split(a.nestor_args)],
            "tcg": [*qemu, "-cpu", "max"],
            "tcg64": [*qemu, "-cpu", "qemu64"],
            "native": [*pin, ubench, str(a.seconds), "/bin/busybox", *([a.only] if a.only else [])],
        }
        for _ in range(a.runs):
            for e in results:
                if e != "native" or a.only != "none":
                    warm_host(3 << 29)
                    results[e].append(run(argv[e], a.cap, units))
    failed = [e for e, rs in results.items() if None in rs]
    complete = {e: [r for r in rs if r] for e, rs in results.items()}
    medians = {e: {k: statistics.median([r[k] for r in rs]) for k in units if rs and all(k in r for r in rs)}
               for e, rs in complete.items()}
    judge = "nestor" in medians
    print(f"{'item':20}{'unit':14}" + "".join(f"{e:>12}" for e in medians)
          + ("   nestor faster than the better TCG by; slower than native by" if judge else ""))
    ratios = {}
    for k in units:
        value = {e: m[k] for e, m in medians.items() if m.get(k)}
        row = f"{k:20}{units[k]:14}" + "".join(f"{value.get(e, float('nan')):12.5g}" for e in medians)
        if judge and "nestor" in value:
            better = max if units[k] in HIGHER_IS_BETTER else min
            peers = [value[e] for e in ("tcg", "tcg64") if e in value]
            speed = (lambda x, y: x / y) if units[k] in HIGHER_IS_BETTER else (lambda x, y: y / x)
            vs_tcg = speed(value["nestor"], better(peers)) if peers else None
            vs_native = speed(value["native"], value["nestor"]) if "native" in value else None
            ratios[k] = {"faster_than_tcg": vs_tcg, "slower_than_native": vs_native}
            row += "".join(f"{r:10.2f}" if r else "         -" for r in (vs_tcg, vs_native))
        print(row)
    for e in failed:
        print(f"{e}: {results[e].count(None)} of {len(results[e])} runs failed", file=sys.stderr)
    if a.json:
        with open(a.json, "w") as f:
            json.dump({"units": units, "medians": medians, "ratios": ratios, "runs": results}, f, indent=1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
