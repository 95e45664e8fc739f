#!/usr/bin/env python3
"""Time real programs inside a Debian guest under Nestor and under QEMU's TCG, and in the same root on the host itself.

    programs.py [--nestor build/bin/nestor] [--nestor-args "--engine auto"] [--engines nestor,tcg,native] [--runs 1]
                [--only gcc,xz,python,redis] [--lines 5000] [--xz-mib 32] [--redis-requests 20000] [--guests DIRECTORY]
                [--cpus 1] [--deadline 1200] [--json FILE]

The disk is bench.img of DIRECTORY (tools/lib/guest.sh, guest_bench_disk); programs.sh beside this file is written into a copy.
Natively it runs in that image's unpacked root by chroot, which takes root; without, leave native out. Everything runs on
one CPU of the host, engines in turn; the results are medians in seconds and ratios. What it started ends with it, however it
ends. Needs e2fsprogs, util-linux, and qemu-system-x86 for tcg. Standard library only.
"""
import argparse
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import console  # noqa: E402

CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
GUESTS = os.environ.get("NESTOR_GUESTS") or os.path.join(CACHE, "nestor", "guests")
PROMPT = r"root@nestor:~# $"
NAMES = ("gcc", "xz", "python", "redis")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
RESULT = re.compile(r"^PROGRAM (\w+) (\S+)$", re.MULTILINE)
# A guest has a session of its own: it would outlive a benchmark that is killed.
TIED = ["setpriv", "--pdeathsig", "KILL"]


def debugfs(image, command, write=False):
    subprocess.run(["debugfs", *(["-w"] if write else []), "-R", command, image], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, env={**os.environ, "PATH": PATH})


def guest_command(options, engine, disk):
    kernel = os.path.join(options.guests, "kernels", "6.1", "vmlinuz")
    arguments = ["--memory", "2G", "--cpus", options.cpus, "--kernel", kernel, "--initrd",
                 os.path.join(options.guests, "busybox-6.1.cpio.gz"), "--append", "console=ttyS0 quiet root=/dev/vda rw",
                 "--disk", f"file={disk}", "--serial", "stdio"]
    if engine == "nestor":
        return [options.nestor, "run", *arguments, *shlex.split(options.nestor_args)]
    return console.qemu_command(arguments)


def run_guest(options, engine, disk, work):
    """{program: seconds} of one boot."""
    results = {}
    with open(os.path.join(work, f"transcript-{engine}"), "w") as transcript:
        command = guest_command(options, engine, disk)
        guest = console.Console([*TIED, *(["taskset", "-c", options.cpu] if options.cpus == "1" else []), *command], transcript)
        try:
            guest.expect(PROMPT, options.deadline)
            for name in options.names:
                guest.send(f"bash /root/programs.sh {options.sizes} {name}\n".encode())
                results[name] = guest.expect(rf"^PROGRAM {name} (\S+)\n", options.deadline).group(1)
                guest.expect(PROMPT, options.deadline)
            guest.send(b"poweroff\n")
            guest.wait(options.deadline)
        finally:
            guest.kill()
    return results


def run_native(options, root):
    command = [*TIED, "taskset", "-c", options.cpu, "chroot", root, "/bin/bash", "/root/programs.sh", *options.sizes.split(),
               *options.names]
    programs = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                                     "LC_ALL": "C"})
    try:
        output = programs.communicate()[0]
    finally:
        if programs.poll() is None:
            os.killpg(programs.pid, signal.SIGKILL)
            programs.wait()
    if programs.returncode:
        raise subprocess.CalledProcessError(programs.returncode, command)
    return dict(RESULT.findall(output))


def unpack(disk, work):
    root = os.path.join(work, "root")
    os.mkdir(root)
    debugfs(disk, f"rdump / {root}")
    for name, minor in (("null", 3), ("zero", 5), ("urandom", 9)):
        path = os.path.join(root, "dev", name)
        if not os.path.exists(path):
            os.mknod(path, 0o20666, os.makedev(1, minor))
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    return root


def report(options, times):
    medians = {engine: {name: statistics.median(runs) for name, runs in rows.items() if runs} for engine, rows in times.items()}
    print(f"{'program':10}" + "".join(f"{engine:>12}" for engine in medians) + f"{'TCG / Nestor':>14}{'of native':>12}")
    for name in options.names:
        row = [medians[engine].get(name) for engine in medians]
        ours, tcg, native = (medians.get(engine, {}).get(name) for engine in ("nestor", "tcg", "native"))
        print(f"{name:10}" + "".join(f"{value:12.3f}" if value else f"{'-':>12}" for value in row) +
              (f"{tcg / ours:14.2f}" if ours and tcg else f"{'-':>14}") + (f"{native / ours:12.2f}" if ours and native else f"{'-':>12}"))
    if options.json:
        with open(options.json, "w") as f:
            json.dump({"sizes": options.sizes, "medians": medians, "runs": times}, f, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nestor", default=os.path.join(HERE, "..", "..", "build", "bin", "nestor"))
    parser.add_argument("--nestor-args", default="--engine auto")
    parser.add_argument("--engines", default="nestor,tcg,native")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--lines", default="5000")
    parser.add_argument("--xz-mib", default="32")
    parser.add_argument("--redis-requests", default="20000")
    parser.add_argument("--guests", default=GUESTS)
    parser.add_argument("--cpus", default="1")
    parser.add_argument("--cpu", default=str(max(os.sched_getaffinity(0))), help="the host's CPU to run on")
    parser.add_argument("--deadline", type=float, default=1200)
    parser.add_argument("--json")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    options.names = options.only.split(",")
    options.sizes = f"{options.lines} {options.xz_mib} {options.redis_requests}"
    engines, failed = options.engines.split(","), False
    if unknown := (set(options.names) - set(NAMES)) | (set(engines) - {"nestor", "tcg", "native"}):
        sys.exit(f"programs: unknown: {', '.join(sorted(unknown))}")
    image = os.path.join(options.guests, "bench.img")
    if not os.path.exists(image):
        sys.exit(f"programs: {image} is missing; guest_bench_disk of tools/lib/guest.sh makes it")
    times = {engine: {name: [] for name in options.names} for engine in engines}
    with tempfile.TemporaryDirectory() as work:
        disk = os.path.join(work, "disk.img")
        subprocess.check_call(["cp", "--sparse=always", image, disk])
        debugfs(disk, f"write {os.path.join(HERE, 'programs.sh')} /root/programs.sh", write=True)
        root = unpack(disk, work) if "native" in engines else None
        for _ in range(options.runs):
            for engine in engines:
                try:
                    results = run_native(options, root) if engine == "native" else run_guest(options, engine, disk, work)
                except (console.Failure, subprocess.CalledProcessError) as error:
                    print(f"programs: {engine}: {error}", file=sys.stderr)
                    failed = True
                    continue
                for name, value in results.items():
                    if value == "failed":
                        print(f"programs: {engine}: {name} failed", file=sys.stderr)
                        failed = True
                    else:
                        times[engine][name].append(float(value))
        if root:
            shutil.rmtree(root, ignore_errors=True)
    report(options, times)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
