#!/usr/bin/env python3
"""What a cache is worth to a boot: coverage, time, memory, file sizes; one table for each kernel.

    cache.py [--bin build/bin] [--kernels 6.1,6.12] [--runs 3] [--files profiled,whole,unprofiled] [--tcg] [--memory 512M] [--json FILE] [--page FILE]

For each kernel: precompile-cache makes a file of the whole kernel with two jobs ("unprofiled"), boots of one and two processors from it make profiles,
and with these two more files are made: of the whole kernel ("whole") and of what the profiles saw ("profiled"), as docs/pipeline.md has it. Then the kernel boots to the first line of user space, in turn without
a cache and with each file, unpacked by the launcher (KASLR off) and by its own decompressor (on), on one processor, pinned like all of
compare.py's runs, whose guest this is. At that line the launcher is asked for its counters, and its mappings are read.

    coverage   places that the translator was asked for in ring 0 and that came from the cache, by distinct place
    saved      1 - (look-up, comparison, checks, relocation, linking of cached code, asking for parts of the file + translation of what it lacked,
               both ring 0, + opening) / translation in ring 0 of a boot without a cache
    opening    copying, verifying, mapping, and asking for parts later
    private    anonymous memory in the mappings of the cache: what a second VM does not share

Medians. The boot time includes opening the file, which is verified already but for "first VM". Exits with 1 when a run failed. Needs what
compare.py needs; --page puts the tables between the markers of docs/benchmarks.md.
"""
import argparse
import datetime
import json
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

import compare
import report

BEGIN, END = "<!-- cache figures begin -->", "<!-- cache figures end -->"
MEMORY_FILE = "memfd:nestor-cache"
CMDLINE = "console=ttyS0 panic=-1"
CAP_SECONDS = 300


def guests():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
    return os.environ.get("NESTOR_GUESTS") or os.path.join(cache, "nestor", "guests")


def anonymous_bytes(pid):
    """What of the mappings of cache files is the process's own."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = MEMORY_FILE in line
            elif inside and line.startswith("Anonymous:"):
                total += int(line.split()[1]) << 10
    return total


class Bench:
    def __init__(self, arguments, directory):
        self.a, self.d = arguments, directory
        self.env = dict(os.environ, XDG_RUNTIME_DIR=directory)  # A store of our own.
        _, self.initramfs = compare.build(directory, ":")
        self.key = os.path.join(directory, "key")
        subprocess.check_call([self.tool("nestor-cache"), "keygen", "--out", self.key], stdout=subprocess.DEVNULL)

    def tool(self, name):
        return os.path.join(self.a.bin, name)

    def forget(self):
        """The next VM is the first one."""
        subprocess.check_call([self.tool("nestor-cache"), "store", "stop"], env=self.env, stdout=subprocess.DEVNULL)

    def precompile(self, name, kernel, initrd, *more):
        path = os.path.join(self.d, name + ".ntc")
        argv = [self.tool("precompile-cache"), "--kernel", kernel, "--initrd", initrd, "--jobs", "2", "--sign-key", self.key, "-o", path, *more]
        begin = time.monotonic()
        p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text = p.stdout.read()
        _, status, usage = os.wait4(p.pid, 0)
        if status:
            sys.exit(f"cache: {shlex.join(argv)} failed:\n{text}")
        loaded = int(re.search(r"loaded (\d+) bytes", text)[1])
        return {"file": path, "seconds": time.monotonic() - begin, "peak_bytes": usage.ru_maxrss << 10,
                "file_bytes": os.path.getsize(path), "loaded_bytes": loaded}

    def boot(self, kernel, *more, cpus=1):
        """One boot: its counters and mappings at the first line of user space. None: it failed."""
        stats = os.path.join(self.d, "stats.json")
        if os.path.exists(stats):
            os.unlink(stats)
        pin = ["taskset", "-c", "0"] if cpus == 1 else []
        argv = [*pin, self.tool("nestor"), "run", "--engine", "dbt", "--memory", self.a.memory, "--cpus", str(cpus), "--kernel", kernel,
                "--initrd", self.initramfs, "--append", CMDLINE, "--serial", "stdio", "--stats", stats, *more]
        compare.warm_host(3 << 28)
        result, tail, begin = {}, [], time.monotonic()
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env,
                             start_new_session=True)
        timer = threading.Timer(CAP_SECONDS, lambda: os.killpg(p.pid, signal.SIGKILL))
        timer.start()
        for raw in p.stdout:
            line = raw.decode(errors="replace").strip()
            tail = (tail + [line])[-15:]
            if "INIT_START" not in line or result:
                continue
            result["boot_seconds"] = time.monotonic() - begin
            p.send_signal(signal.SIGSTOP)
            result["private_bytes"] = anonymous_bytes(p.pid)
            p.send_signal(signal.SIGUSR1)
            p.send_signal(signal.SIGCONT)
            while not os.path.exists(stats) and p.poll() is None:
                time.sleep(0.001)
            with open(stats) as f:
                counters = json.load(f)
            for key in ("cached_blocks", "cached_units", "cache_misses", "cache_differs", "cache_ns", "translate_ring0_ns"):
                result[key] = sum(cpu[key] for cpu in counters["vcpus"])
            for cache in counters["caches"]:
                result["open_ns"] = cache["open_ns"]
                result["load_ns"] = cache["load_ns"]
        timer.cancel()
        if p.wait() or not result:
            print(f"{shlex.join(argv)} ended with {p.returncode}; its last lines:", *tail, sep="\n  ", file=sys.stderr)
            return None
        return result

    def tcg(self, kernel):
        """Seconds to the first line of user space under the better of two TCGs."""
        times = {}
        for model in ("max", "qemu64") * self.a.runs:
            argv = ["taskset", "-c", "0", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", self.a.memory, "-nographic", "-nodefaults",
                    "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", self.initramfs, "-append", CMDLINE, "-cpu", model]
            compare.warm_host(3 << 28)
            got = compare.run(argv, CAP_SECONDS, {})
            if got and "boot_to_init" in got:
                times.setdefault(model, []).append(got["boot_to_init"])
        return min(statistics.median(t) for t in times.values()) if times else None

    def kernel(self, name):
        path, initrd = (os.path.join(guests(), part) for part in (f"kernels/{name}/vmlinuz", f"busybox-{name}.cpio.gz"))
        trust = ["--trust", self.key + ".pub", "--cache-required"]
        files, runs, profiles = {}, {}, []
        wanted = self.a.files.split(",")
        unprofiled = self.precompile(f"{name}-unprofiled", path, initrd)
        for cpus, layout in ((1, "setup"), (2, "auto")) if {"profiled", "whole"} & set(wanted) else ():
            profiles += ["--profile", os.path.join(self.d, f"{name}-{cpus}.profile")]
            if not self.boot(path, "--boot", layout, "--cache", unprofiled["file"], *trust, "--record-profile", profiles[-1], cpus=cpus):
                return None
        if "profiled" in wanted:
            files["profiled"] = self.precompile(f"{name}-profiled", path, initrd, *profiles, "--profiled-only")
        if "whole" in wanted:
            files["whole"] = self.precompile(f"{name}-whole", path, initrd, *profiles)
        if "unprofiled" in wanted:
            files["unprofiled"] = unprofiled
        else:
            os.unlink(unprofiled["file"])
        first = {}
        for kind, made in files.items():
            for _ in range(self.a.runs):
                self.forget()
                first.setdefault(kind, []).append(self.boot(path, "--cache", made["file"], *trust))
        for made in files.values():  # forget() was for all of them: the store holds the last one only
            self.boot(path, "--cache", made["file"], *trust)
        for _ in range(self.a.runs):
            for layout in ("auto", "setup"):
                runs.setdefault((layout, "none"), []).append(self.boot(path, "--boot", layout))
                for kind, made in files.items():
                    runs.setdefault((layout, kind), []).append(self.boot(path, "--boot", layout, "--cache", made["file"], *trust))
        self.forget()
        if None in sum([*runs.values(), *first.values()], []):
            return None
        return {"files": files, "first": first, "runs": {f"{layout} {kind}": r for (layout, kind), r in runs.items()},
                "tcg_seconds": self.tcg(path) if self.a.tcg else None}


def median(runs, key):
    return statistics.median(run.get(key, 0) for run in runs)


def coverage(runs):
    return statistics.median(100 * run["cached_blocks"] / (run["cached_blocks"] + run["cache_misses"]) for run in runs)


def saved(runs, without):
    """Percent of a boot's ring-0 translation that is no longer done, the cache's own costs taken off."""
    spent = statistics.median(run["cache_ns"] + run["translate_ring0_ns"] + run["open_ns"] for run in runs)
    return 100 * (1 - spent / median(without, "translate_ring0_ns"))


def rows(result):
    """(What, bar, value by file) for one kernel."""
    kinds, runs = list(result["files"]), result["runs"]
    table = []

    def row(what, bar, figure):
        table.append((what, bar, [figure(kind) for kind in kinds]))

    for layout, kaslr in (("auto", "off"), ("setup", "on")):
        row(f"coverage, KASLR {kaslr} (%)", ">= 97", lambda kind: f"{coverage(runs[f'{layout} {kind}']):.1f}")
    for layout, kaslr in (("auto", "off"), ("setup", "on")):
        row(f"translation saved, KASLR {kaslr} (%)", ">= 80", lambda kind: f"{saved(runs[f'{layout} {kind}'], runs[f'{layout} none']):.0f}")
    row("using cached code / translating the rest / translating all (ms)", "", lambda kind: " / ".join(
        f"{value / 1e6:.0f}" for value in (median(runs[f"auto {kind}"], "cache_ns"), median(runs[f"auto {kind}"], "translate_ring0_ns"),
                                           median(runs["auto none"], "translate_ring0_ns"))))
    for layout, kaslr in (("auto", "off"), ("setup", "on")):
        row(f"boot to init with / without, KASLR {kaslr} (s)", "faster", lambda kind: " / ".join(
            f"{median(runs[key], 'boot_seconds'):.3f}" for key in (f"{layout} {kind}", f"{layout} none")))
    if result["tcg_seconds"]:
        row("faster than the better TCG by", ">= 3.5", lambda kind: f"{result['tcg_seconds'] / median(runs[f'auto {kind}'], 'boot_seconds'):.2f}")
    for who, bar, opened in (("first VM", 150, result["first"]), ("later VMs", 10, {kind: runs[f"auto {kind}"] for kind in kinds})):
        row(f"opening + asking for parts: {who} (ms)", f"<= {bar}", lambda kind: " + ".join(
            f"{median(opened[kind], key) / 1e6:.1f}" for key in ("open_ns", "load_ns")))
    row("coverage, first VM (%)", "", lambda kind: f"{coverage(result['first'][kind]):.1f}")
    row("private memory of a later VM, KASLR off (KiB)", "<= 1024", lambda kind: f"{median(runs[f'auto {kind}'], 'private_bytes') / 1024:.0f}")
    row("precompile-cache with two jobs (s)", "<= 120", lambda kind: f"{result['files'][kind]['seconds']:.1f}")
    row("its memory (MiB)", "<= 4096", lambda kind: f"{result['files'][kind]['peak_bytes'] / (1 << 20):.0f}")
    row("file / loaded part (MB)", "", lambda kind: " / ".join(f"{result['files'][kind][key] / 1e6:.0f}" for key in ("file_bytes", "loaded_bytes")))
    row("units / places used", "", lambda kind: f"{median(runs[f'auto {kind}'], 'cached_units'):.0f} / {median(runs[f'auto {kind}'], 'cached_blocks'):.0f}")
    row("candidates that differed", "", lambda kind: f"{median(runs[f'auto {kind}'], 'cache_differs'):.0f}")
    return kinds, table


def table(name, result):
    kinds, lines = rows(result)
    text = [f"| Debian {name} | bar | {' | '.join(kinds)} |", f"| --- | --- |{' ---: |' * len(kinds)}"]
    return "\n".join(text + [f"| {what} | {bar} | {' | '.join(values)} |" for what, bar, values in lines])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", default="build/bin")
    ap.add_argument("--kernels", default="6.1,6.12")
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--files", default="profiled,whole,unprofiled")
    ap.add_argument("--tcg", action="store_true", help="run the peer, too")
    ap.add_argument("--memory", default="512M")
    ap.add_argument("--json")
    ap.add_argument("--page", help="a page with the markers, in which the tables are replaced")
    a = ap.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as d:
        bench = Bench(a, d)
        for name in a.kernels.split(","):
            results[name] = bench.kernel(name)
            print(table(name, results[name]) if results[name] else f"{name}: a run failed", flush=True)
    if a.json:
        with open(a.json, "w") as f:
            json.dump(results, f, indent=1)
    if None in results.values():
        sys.exit(1)
    if a.page:
        with open(a.page) as f:
            text = f.read()
        if BEGIN not in text or END not in text:
            sys.exit(f"cache: {a.page} lacks the markers {BEGIN} and {END}")
        body = f"Measured {datetime.date.today()} on {report.processor()}; medians of {a.runs} runs.\n\n" + "\n\n".join(
            table(name, result) for name, result in results.items())
        with open(a.page, "w") as f:
            f.write(text[:text.index(BEGIN)] + BEGIN + "\n" + body + "\n" + text[text.index(END):])


if __name__ == "__main__":
    main()
