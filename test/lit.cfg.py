# lit's configuration for all tests. Parameters (--param name=value):
#   guests=DIR   the guests that tools/check and tools/quickstart made (default: their cache directory)
#   engine=NAME  run all guests with --engine NAME, but where a test names one itself
# NESTOR_VMM=tcg in the environment boots the guest tests under QEMU instead, which tests the tests.
import os
import shutil
import subprocess
import sys

import lit.formats

source, build = config.nestor_source, config.nestor_build
sys.path.insert(0, os.path.join(source, "test", "lib"))

config.name = "nestor"
config.test_format = lit.formats.ShTest(execute_external=True)
config.suffixes = [".test"]
config.excludes = ["Inputs", "CMakeLists.txt"]
config.test_source_root = os.path.join(source, "test")
lit_config.maxIndividualTestTime = 300


def tool(name, package):
    """The path of a program that tests call; its absence is an error, not a reason to skip."""
    path = shutil.which(name)
    if not path:
        lit_config.fatal(f"{name} is missing; apt-get install {package}, or run tools/check")
    return path


cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".cache")
guests = lit_config.params.get("guests") or os.environ.get("NESTOR_GUESTS") or os.path.join(cache, "nestor", "guests")
vmm = os.environ.get("NESTOR_VMM") or os.path.join(build, "bin", "nestor")
engine = lit_config.params.get("engine")
console = os.path.join(source, "test", "lib", "console.py")

for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "ASAN_OPTIONS", "UBSAN_OPTIONS"):
    if name in os.environ:
        config.environment[name] = os.environ[name]

if vmm == "tcg":
    tool("qemu-system-x86_64", "qemu-system-x86")
    config.available_features.add("tcg")
else:
    config.available_features.add("nestor")
if config.nestor_sanitize:
    config.available_features.add("sanitize")
if os.access("/dev/kvm", os.R_OK | os.W_OK):
    config.available_features.add("kvm")  # Never needed by a test: only ever a reference to compare with.
for feature, path in (("guests", "busybox-6.1.cpio.gz"), ("debian-disk", "debian12.img"),
                      ("bench-disk", "bench.img"), ("xen", "xen/vmlinuz"), ("selftests", "selftests-x86.tar")):
    if os.path.exists(os.path.join(guests, path)):
        config.available_features.add(feature)

# A small file system of a test's own, that fills up or is read-only.
if shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"],
                                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
    config.available_features.add("tmpfs")

python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
# In this order: lit replaces one after the other, so no name may be the beginning of a later one.
config.substitutions += [("%{kernel:" + name + "}", f"{guests}/kernels/{name}/vmlinuz") for name in ("6.1", "6.12", "686-pae")]
config.substitutions += [("%{initrd:" + name + "}", f"{guests}/busybox-{name}.cpio.gz") for name in ("6.1", "6.12", "686-pae")]
# "%programs:NAME": console.py's arguments that put both sizes of test/guest/programs' NAME into the guest.
programs = os.path.join(build, "test", "guest", "programs")
config.substitutions += [
    (f"%programs:{name}", " ".join(f"--add {programs}/{name}_{bits}:{name}_{bits}" for bits in (64, 32)
                                   if os.path.exists(f"{programs}/{name}_{bits}"))) for name in ("ring3", "attack")]
config.substitutions += [
    ("%boot", f"{python} {console} --vmm '{vmm}'" + (f" --engine {engine}" if engine else "")),
    ("%nestor", os.path.join(build, "bin", "nestor")),
    ("%kernels", os.path.join(build, "test", "kernels")),
    ("%guests", guests),
    ("%unit", os.path.join(build, "bin", "tests")),
    ("%fuzz", os.path.join(build, "bin", "fuzz")),
    ("%bin", os.path.join(build, "bin")),
    ("%source", source),
    ("%build", build),
    ("%python", python),
    ("FileCheck", tool("FileCheck-14", "llvm-14-tools") + " --dump-input-context=25"),
]
