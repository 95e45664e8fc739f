"""sandbox.py NESTOR KERNEL DIRECTORY: boot, reset and end VMs behind socket and pseudo-terminal, and look at their threads."""
import glob
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import tty

nestor, kernel, directory = sys.argv[1:]
shutil.rmtree(directory, ignore_errors=True)
os.makedirs(directory)


def field(task, name):
    with open(os.path.join(task, "status")) as f:
        return re.search(rf"^{name}:\s*(\S+)", f.read(), re.MULTILINE).group(1)


def values(tasks, name):
    return " ".join(sorted({field(task, name).lstrip("0") or "0" for task in tasks}))


def read_until(fd, text):
    got = b""
    while text not in got:
        if not select.select([fd], [], [], 20)[0]:
            sys.exit(f"sandbox.py: {text!r} did not come, but {got!r}")
        got += os.read(fd, 4096)


def connect_unix(path, _):
    line = socket.socket(socket.AF_UNIX)
    end = time.monotonic() + 20
    while True:
        try:
            line.connect(path)
            return line
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def connect_pty(_, process):
    path = re.search(rb"/dev/pts/\d+", process.stderr.readline()).group().decode()
    line = open(path, "r+b", buffering=0)
    tty.setraw(line)
    return line


def run(sandbox, kind, option, connect):
    path = os.path.join(directory, f"{sandbox}-{kind}")
    process = subprocess.Popen([nestor, "run", "--memory", "64M", "--cpus", "2", "--kernel", kernel, "--debug-exit", "0xf4",
                                "--sandbox", sandbox, "--serial", option.format(path)],
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        line = connect(path, process)
        fd = line.fileno()
        read_until(fd, b"boot 1")
        tasks = glob.glob(f"/proc/{process.pid}/task/*")
        vcpus = [task for task in tasks if open(os.path.join(task, "comm")).read().startswith("vcpu")]
        print(f"{sandbox}, {kind}: Seccomp {values(tasks, 'Seccomp')}, NoNewPrivs {values(tasks, 'NoNewPrivs')}, "
              f"vCPUs' CapEff {values(vcpus, 'CapEff')}")
        os.write(fd, b"r")
        read_until(fd, b"boot 2")
        os.write(fd, b"x0")
        if process.wait(timeout=20) != 1:
            sys.exit(f"sandbox.py: exit status {process.returncode}, not 1: {process.stderr.read()!r}")
        print("boots 1 2")
    finally:
        process.kill()


run("on", "unix", "unix={}", connect_unix)
run("on", "pty", "pty", connect_pty)
run("off", "unix", "unix={}", connect_unix)
