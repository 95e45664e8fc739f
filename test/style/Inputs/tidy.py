"""tidy.py BUILD: run clang-tidy over every C file of the build's compile_commands.json, two at a time.

The commands are those of the build's own compiler; options that only gcc knows are left out.
"""
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile

GCC_ONLY = re.compile(r"\s-fno-tree-\S+")


def tidy(build, path):
    command = ["clang-tidy-14", "--quiet", "-p", build, "--extra-arg=-Wno-unknown-warning-option",
               "--extra-arg=-Wno-ignored-optimization-argument", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return path, done.returncode, done.stdout


def main():
    with open(os.path.join(sys.argv[1], "compile_commands.json")) as f:
        entries = [entry for entry in json.load(f) if entry["file"].endswith(".c")]
    for entry in entries:
        entry["command"] = GCC_ONLY.sub("", entry["command"])
    paths, bad = sorted({entry["file"] for entry in entries}), 0
    with tempfile.TemporaryDirectory() as build:
        with open(os.path.join(build, "compile_commands.json"), "w") as f:
            json.dump(entries, f)
        with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            for path, status, output in pool.map(lambda path: tidy(build, path), paths):
                if status:
                    bad += 1
                    print(output or f"{path}: clang-tidy ended with {status}")
    print(f"{len(paths)} files, {bad} with findings")
    return 1 if bad or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
