"""tidy.py BUILD: run clang-tidy over every C file of the build's compile_commands.json, two at a time."""
import concurrent.futures
import json
import os
import subprocess
import sys


def tidy(build, path):
    command = ["clang-tidy-14", "--quiet", "-p", build, "--extra-arg=-Wno-unknown-warning-option",
               "--extra-arg=-Wno-ignored-optimization-argument", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return path, done.returncode, done.stdout


def main():
    build = sys.argv[1]
    with open(os.path.join(build, "compile_commands.json")) as f:
        paths = sorted({entry["file"] for entry in json.load(f) if entry["file"].endswith(".c")})
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for path, status, output in pool.map(lambda path: tidy(build, path), paths):
            if status:
                bad += 1
                print(output or f"{path}: clang-tidy ended with {status}")
    print(f"{len(paths)} files, {bad} with findings")
    return 1 if bad or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
