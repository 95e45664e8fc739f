"""streams.py NESTOR KERNEL DIRECTORY: run VMs whose standard streams, outputs and ports are not as they should be, and tell how each ends."""
import json
import os
import signal
import socket
import subprocess
import sys

nestor, kernel, directory = sys.argv[1:]
command = [nestor, "run", "--memory", "64M", "--kernel", kernel, "--debug-exit", "0xf4"]
PIPE = subprocess.PIPE


def start(*more, **streams):
    return subprocess.Popen([*command, *more], **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **streams})


def tell(name, process, said):
    said = said.decode().rstrip("\n")
    print(f"{name}: exit {process.returncode}" + (f", {said}" if said else ""))


def run(name, *more, **streams):
    """The guest is told to write 3 to the debug-exit port."""
    process = start(*more, **streams)
    try:
        _, said = process.communicate(b"x3", timeout=60)
    finally:
        process.kill()
    tell(name, process, said)


run("full disk", "--stats", "/dev/full")
run("full disk for the trace", "--trace", "pio,file=/dev/full")
run("full disk for the serial line", "--serial", "stdio", stdout=open("/dev/full", "wb"))

first, second = start("--name", "same"), start("--name", "same")
try:
    for process in (first, second):
        process.communicate(b"x3", timeout=60)
finally:
    first.kill()
    second.kill()
print(f"two of one name: exit {first.returncode} and {second.returncode}")

with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen(1)
    run("port in use", "--net", f"user,hostfwd=tcp:127.0.0.1:{taken.getsockname()[1]}-:22")

process = start()
try:
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(b"nx3")  # the answer to n finds nobody; x3 is obeyed all the same
    process.stdin.close()
    process.wait(timeout=60)
    tell("reader gone", process, process.stderr.read())
finally:
    process.kill()

run("no output", stdout=None, preexec_fn=lambda: os.close(1))

# No standard input, and no key that could end the VM: a signal does.
process = start(stdin=None, preexec_fn=lambda: os.close(0))
try:
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    tell("no input", process, said)
finally:
    process.kill()

path = os.path.join(directory, "counters")
process = start("--stats", path)
process.communicate(b"x3", timeout=60)
with open(path) as f:
    print(f"counters: exit {process.returncode}, {'vcpus' if json.load(f)['vcpus'] else 'nothing'}")
