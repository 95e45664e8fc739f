"""Boot a guest, hold a conversation with it over its serial line, and judge how it ended. Standard library only.

    console.py [--script FILE] [--add HOSTFILE:GUESTFILE]... [--serve DIRECTORY] [--deadline SECONDS]
               [--vmm COMMAND] [--engine NAME] -- ARGUMENT-OF-NESTOR-RUN...

The script is every line of FILE that holds "CONSOLE:"; what follows is one of
    expect REGEX       wait until the serial output after the last match holds REGEX (Python syntax, multi-line)
    within SECONDS     the deadline of the expects that follow (default 120)
    send TEXT          type TEXT and Enter
    raw TEXT           type TEXT with Python's escapes, no Enter
    signal NAME        send the VMM that signal
    sleep SECONDS
    exit N|nonzero     wait for the VMM's end and require that exit status (default, at the end: exit 0)
    get URL TEXT       fetch the URL from the host (retried until the deadline); the answer must hold TEXT
    kill               end the VMM; its status no longer matters
    idle SECONDS PERCENT   over that long, the VMM may use at most that much of one CPU
    footprint              note what the VMM and its helpers hold on the host (footprint.py)
    grown WHAT=N...        within 10 s each of processes, threads, descriptors, mappings, memory (MiB) is at most N more than noted
When the VMM has ended, none of the processes that it was seen with may be left.
Everything the guest printed goes to standard output (for FileCheck) in whole lines, what the VMM said on standard error likewise
to standard error. "{port}" in a script and in arguments is the port of the web server that --serve starts on the loopback,
"{free}" a free TCP port. --add puts a file into the guest by appending to a copy of the (last) initrd.

The VMM is `nestor run`, or with NESTOR_VMM=tcg the QEMU that stands in for it, which is how the guests and the tests are
themselves tested: arguments are translated, those that QEMU has no like of are dropped.
"""
import argparse
import codecs
import functools
import http.server
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import footprint

OUTPUT_LIMIT = 32 << 20


class Failure(Exception):
    """The guest did not do what the script says."""


def cpio_entry(name, mode, data=b""):
    """One member of a newc archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    pad = lambda blob: blob + b"\0" * (-len(blob) % 4)
    return pad(header + path) + pad(data)


def cpio_archive(files):
    """files: {path in the guest: (mode, bytes)}; parent directories are added."""
    out, directories = b"", set()
    for path, (mode, data) in files.items():
        path = path.lstrip("/")
        parents = path.split("/")[:-1]
        for depth in range(len(parents)):
            directory = "/".join(parents[: depth + 1])
            if directory not in directories:
                directories.add(directory)
                out += cpio_entry(directory, 0o040755)
        out += cpio_entry(path, 0o100000 | mode, data)
    return out + cpio_entry("TRAILER!!!", 0)


def initrd_with(initrd, additions, directory):
    """A copy of the initrd with HOSTFILE:GUESTFILE additions; archives follow each other on 4-byte boundaries."""
    files = {}
    for addition in additions:
        host, guest = addition.rsplit(":", 1)
        with open(host, "rb") as f:
            files[guest] = (0o755 if os.access(host, os.X_OK) or host.endswith(".sh") else 0o644, f.read())
    result = os.path.join(directory, "initrd")
    shutil.copyfile(initrd, result)
    with open(result, "ab") as f:
        f.write(b"\0" * (-f.tell() % 4))
        f.write(cpio_archive(files))
    return result


def serve(directory):
    """A web server for that directory on the loopback; returns its port."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def qemu_command(arguments):
    """`nestor run` arguments as QEMU's."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option, default in (("memory", "512M"), ("cpus", "1"), ("kernel", None), ("initrd", None), ("append", ""),
                            ("serial", "stdio"), ("debug-exit", None), ("engine", None)):
        parser.add_argument("--" + option, default=default)
    parser.add_argument("--disk", action="append", default=[])
    parser.add_argument("--net", action="append", default=[])
    parser.add_argument("--no-reboot", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-display", "none",
               "-m", known.memory, "-smp", known.cpus, "-serial", known.serial, "-append", known.append,
               "-device", "virtio-rng-pci"]
    if known.kernel:
        command += ["-kernel", known.kernel]
    if known.initrd:
        command += ["-initrd", known.initrd]
    if known.no_reboot:
        command += ["-no-reboot"]
    if known.debug_exit:
        command += ["-device", f"isa-debug-exit,iobase={known.debug_exit},iosize=1"]
    for number, disk in enumerate(known.disk):
        words = [word for word in disk.split(",") if not word.startswith(("format=", "bus="))]
        device = [f"virtio-blk-pci,drive=d{number}"] + [word for word in words if word.startswith("serial=")]
        backend = ["if=none", "format=raw", f"id=d{number}"] + [word for word in words if word not in device]
        command += ["-drive", ",".join(backend), "-device", ",".join(device)]
    for number, net in enumerate(known.net):
        if net != "none":
            rest = net.split(",")[1:]
            device = [f"virtio-net-pci,netdev=n{number}"] + [word for word in rest if word.startswith("mac=")]
            backend = ["user", f"id=n{number}"] + [word for word in rest if not word.startswith("mac=")]
            command += ["-netdev", ",".join(backend), "-device", ",".join(device)]
    return command


class Console:
    """A VMM whose serial line is its standard input and output."""

    def __init__(self, command, transcript, qmp=None):
        self.transcript, self.qmp = transcript, qmp
        self.text, self.partial, self.position, self.closed = "", "", 0, False
        self.told = 0
        self.family, self.noted, self.looked = {}, None, 0.0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        os.set_blocking(self.process.stdout.fileno(), False)

    def read(self, until):
        """Take what the guest prints until that moment or for one piece; False when the line is closed."""
        stdout = self.process.stdout.fileno()
        if not select.select([stdout], [], [], max(0.0, min(1.0, until - time.monotonic())))[0]:
            return True
        data = os.read(stdout, 65536)
        if not data:
            self.closed = True
            return False
        # Carriage returns and colours would be in every pattern's way.
        text = self.partial + self.decoder.decode(data).replace("\r", "")
        partial = re.search(r"\x1b(\[[0-9;?]*)?$", text)
        self.partial = partial.group() if partial else ""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[: len(text) - len(self.partial)])
        self.text += text
        # Whole lines only: where a test joins both streams, what the VMM says may stand between the guest's lines, not in one.
        self.tell(self.text.rfind("\n") + 1)
        if len(self.text) > OUTPUT_LIMIT:
            raise Failure("the guest printed more than this test can hold")
        return True

    def tell(self, end):
        """Pass on what the guest printed, up to that position."""
        if end > self.told:
            self.transcript.write(self.text[self.told : end])
            self.transcript.flush()
            self.told = end

    def expect(self, pattern, seconds):
        compiled, until = re.compile(pattern, re.MULTILINE), time.monotonic() + seconds
        while True:
            match = compiled.search(self.text, self.position)
            if match:
                self.position = match.end()
                return match
            if self.closed:
                raise Failure(f"the VMM ended (status {self.process.wait()}) before the guest printed /{pattern}/")
            if time.monotonic() > until:
                raise Failure(f"/{pattern}/ was not printed within {seconds:g} s")
            self.read(until)

    def send(self, data):
        try:
            # Byte by byte as a typist would: a UART's FIFO and a shell that is busy both lose bursts.
            for start in range(0, len(data), 8):
                self.process.stdin.write(data[start : start + 8])
                self.process.stdin.flush()
                time.sleep(0.002)
        except BrokenPipeError as error:
            raise Failure(f"the VMM ended (status {self.process.wait()}) and takes no more input") from error

    def signal(self, name):
        if self.qmp and name == "TERM":
            # QEMU dies of it where Nestor presses the guest's power button.
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(self.qmp)
                monitor.sendall(b'{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}')
                monitor.settimeout(1)
                monitor.recv(4096)
                time.sleep(0.5)
        else:
            self.process.send_signal(getattr(signal, "SIG" + name))

    def look(self):
        """Remember which processes the VMM has, at most once a second."""
        if time.monotonic() > self.looked + 1:
            self.looked = time.monotonic()
            self.family.update(footprint.family(self.process.pid))

    def wait(self, seconds):
        until = time.monotonic() + seconds
        while not self.closed and time.monotonic() < until:
            self.look()
            self.read(until)
        try:
            status = self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the VMM still ran after {seconds:g} s") from error
        self.require_gone()
        return status

    def require_gone(self):
        """A helper may outlive its VMM by the moment that the host's kernel takes to end it."""
        until = time.monotonic() + 5
        while left := footprint.still_running(self.family):
            if time.monotonic() > until:
                raise Failure(f"the VMM has ended, and its processes {left} have not")
            time.sleep(0.05)

    def note_footprint(self):
        self.family.update(footprint.family(self.process.pid))
        self.noted = footprint.footprint(self.process.pid)

    def require_growth(self, limits):
        until = time.monotonic() + 10
        while True:
            self.family.update(footprint.family(self.process.pid))
            now = footprint.footprint(self.process.pid)
            over = {name: f"{self.noted[name]:g} -> {now[name]:g}" for name, most in limits.items()
                    if now[name] > self.noted[name] + most}
            if not over:
                print(f"footprint: {self.noted} -> {now}", file=sys.stderr)
                return
            if time.monotonic() > until:
                raise Failure(f"the VMM's footprint has grown too much: {over}")
            self.read(time.monotonic() + 0.5)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.tell(len(self.text))


def get(console, url, text, seconds):
    until, answer = time.monotonic() + seconds, "nothing"
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                answer = response.read().decode(errors="replace")
            break
        except OSError as error:
            answer = str(error)
            console.read(time.monotonic() + 0.5)
    if text not in answer:
        raise Failure(f"{url} gave {answer!r}, not {text!r}")


def play(console, script, default_deadline):
    """Follow the script; returns nothing, raises Failure."""
    deadline, judged = default_deadline, False
    for number, verb, rest in script:
        try:
            if verb == "expect":
                console.expect(rest, deadline)
            elif verb == "within":
                deadline = float(rest)
            elif verb == "send":
                console.send(rest.encode() + b"\n")
            elif verb == "raw":
                console.send(codecs.decode(rest, "unicode_escape").encode("latin-1"))
            elif verb == "signal":
                console.signal(rest)
            elif verb == "sleep":
                until = time.monotonic() + float(rest)
                while time.monotonic() < until and console.read(until):
                    pass
            elif verb == "idle":
                seconds, percent = map(float, rest.split())
                before, until = console.cpu_seconds(), time.monotonic() + seconds
                while time.monotonic() < until and console.read(until):
                    pass
                used = (console.cpu_seconds() - before) / seconds * 100
                print(f"idle: {used:.1f} % of a CPU", file=sys.stderr)
                if used > percent:
                    raise Failure(f"an idle guest used {used:.1f} % of a CPU, more than {percent:g} %")
            elif verb == "exit":
                status, judged = console.wait(deadline), True
                if (status == 0) if rest == "nonzero" else (status != int(rest)):
                    raise Failure(f"the VMM ended with status {status}, not {rest}")
            elif verb == "get":
                get(console, *rest.split(None, 1), deadline)
            elif verb == "footprint":
                console.note_footprint()
            elif verb == "grown":
                console.require_growth({name: float(most) for name, most in (word.split("=") for word in rest.split())})
            elif verb == "kill":
                console.kill()
                console.require_gone()
                judged = True
            else:
                raise SystemExit(f"line {number}: no such verb: {verb}")
        except Failure as failure:
            raise Failure(f"line {number}: {failure}") from failure
    if not judged:
        status = console.wait(deadline)
        if status != 0:
            raise Failure(f"the VMM ended with status {status}, not 0")


def read_script(path, values):
    script = []
    if path:
        with open(path) as f:
            for number, line in enumerate(f, 1):
                if "CONSOLE:" in line:
                    words = line.split("CONSOLE:", 1)[1].strip().split(None, 1)
                    rest = words[1] if len(words) > 1 else ""
                    for name, value in values.items():
                        rest = rest.replace("{%s}" % name, str(value))
                    script.append((number, words[0], rest))
    return script


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script")
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--serve")
    parser.add_argument("--deadline", type=float, default=120)
    parser.add_argument("--vmm", default=os.environ.get("NESTOR_VMM", "build/bin/nestor"))
    parser.add_argument("--engine", help="added to the arguments unless they name one")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    values = {"free": free_port()}
    if options.serve:
        values["port"] = serve(options.serve)
    arguments = options.arguments
    for name, value in values.items():
        arguments = [argument.replace("{%s}" % name, str(value)) for argument in arguments]
    script = read_script(options.script, values)
    with tempfile.TemporaryDirectory() as directory:
        # A VMM that is started as another user reads its initrd here.
        os.chmod(directory, 0o755)
        if options.add:
            at = len(arguments) - arguments[::-1].index("--initrd")
            arguments[at] = initrd_with(arguments[at], options.add, directory)
        if options.engine and "--engine" not in arguments:
            arguments += ["--engine", options.engine]
        if "--serial" not in arguments:
            arguments += ["--serial", "stdio"]
        if options.vmm == "tcg":
            qmp = os.path.join(directory, "qmp")
            command = [*qemu_command(arguments), "-qmp", f"unix:{qmp},server=on,wait=off"]
        else:
            qmp, command = None, [*shlex.split(options.vmm), "run", *arguments]
        begin = time.monotonic()
        console = Console(command, sys.stdout, qmp)
        try:
            play(console, script, options.deadline)
        except Failure as failure:
            sys.stdout.flush()
            last = "\n  | ".join(console.text.splitlines()[-25:])
            print(f"console: after {time.monotonic() - begin:.1f} s: {failure}\n  command: {shlex.join(command)}\n"
                  f"  the guest's last lines:\n  | {last}", file=sys.stderr)
            return 1
        finally:
            console.kill()
        print(f"console: done after {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
