"""terminal.py NESTOR KERNEL: end VMs on a pseudo-terminal in every way and see whether it is as it was before."""
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

nestor, kernel = sys.argv[1:]
ECHO = termios.ECHO | termios.ICANON | termios.ISIG


def read_until(master, text, seconds=20):
    """What comes from the terminal up to that text."""
    got, end = b"", time.monotonic() + seconds
    while text not in got:
        if not select.select([master], [], [], max(0.0, end - time.monotonic()))[0]:
            sys.exit(f"terminal.py: {text!r} did not come, but {got!r}")
        got += os.read(master, 4096)
    return got


def run(name, keys=b"", number=None):
    """Boot, see that the terminal is raw, press the keys or send the signal, and judge."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([nestor, "run", "--memory", "64M", "--kernel", kernel, "--debug-exit", "0xf4"],
                               stdin=slave, stdout=slave, stderr=subprocess.PIPE, start_new_session=True)
    try:
        read_until(master, b"boot 1")
        raw = not termios.tcgetattr(slave)[3] & ECHO
        if keys:
            os.write(master, keys)
        if number:
            process.send_signal(number)
        if name == "counters":
            said = process.stderr.readline() + process.stderr.readline() + process.stderr.readline() + process.stderr.readline()
            os.write(master, b"\x01x")
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    until = time.monotonic() + 5  # after SIGKILL it is the keeper that does it, soon
    while termios.tcgetattr(slave) != before and time.monotonic() < until:
        time.sleep(0.02)
    restored = termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    if name == "counters":
        print("counters on standard error:", said.decode().replace("\n", " "))
        return
    end = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
    print(f"{name}: {end}, {'restored' if restored and raw else 'NOT RESTORED' if raw else 'WAS NOT RAW'}")
    if name == "SEGV":
        print(errors.decode(), end="")


run("key x", b"\x01x")
run("guest's end", b"x3")
run("triple fault", b"t")
run("INT", number=signal.SIGINT)
run("HUP", number=signal.SIGHUP)
run("SEGV", number=signal.SIGSEGV)
run("KILL", number=signal.SIGKILL)
run("counters", b"\x01c")
