"""status_of.py NESTOR-CACHE FILE CACHE-SAMPLE: every way to cut or damage the file ends in exit status 1 and one line.

Cut: at every section's ends, at chunk and page borders, in the header. Damaged: a byte of every field of the header and of
its section table, and bytes all over the sections; each once as it is (the digest must tell) and, for what lies in sections,
once with digests made right again (then verify may find nothing wrong, but must not crash).
"""
import json
import struct
import subprocess
import sys

tool, path, sample = sys.argv[1:]
original = open(path, "rb").read()


def check(data, what, statuses=(1,), redigest=False):
    with open("damaged.ntc", "wb") as f:
        f.write(data)
    if redigest:
        subprocess.run([sample, "damaged.ntc", "redigest"], check=True)
    done = subprocess.run([tool, "verify", "--no-signature", "damaged.ntc"], capture_output=True, text=True)
    lines = done.stderr.count("\n")
    if done.returncode not in statuses or (done.returncode == 1 and (lines != 1 or not done.stderr.startswith("nestor: "))):
        sys.exit(f"{what}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr


sections = [struct.unpack_from("<IIQQII", original, 256 + 32 * i) for i in range(21)]
cuts = {0, 1, 7, 8, 100, 4095, 4096, 65536 + 4096, len(original) - 1}
for _, _, offset, length, _, _ in sections:
    cuts |= {offset, offset + 1, offset + length - 1, offset + length}
for cut in sorted(c for c in cuts if 0 <= c < len(original)):
    message = check(original[:cut], f"cut at {cut}")
    assert ("not a cache file" if cut < 8 else "truncated") in message, message

fields = [0, 8, 12, 16, 24, 32, 40, 44, 48, 52, 56, 60, 64, 72, 80, 128, 255, 1279, 1280, 3839, 3840, 3872, 3876, 3880, 3896, 3960, 4095]
for at in fields + list(range(256, 256 + 32 * 21, 8)):
    damaged = bytearray(original)
    damaged[at] ^= 0x41
    check(damaged, f"header byte {at}")
    check(damaged, f"header byte {at}, digests right", (0, 1), redigest=True)

found = 0
for kind, _, offset, length, record, _ in sections:
    for at in range(offset, offset + length, max(1, length // 8)):
        damaged = bytearray(original)
        damaged[at] ^= 0x81
        message = check(damaged, f"section {kind}, byte {at - offset}")
        assert "its digest does not match" in message, message
        if kind != 18:  # making the leaves right again undoes it
            found += "malformed" in check(damaged, f"section {kind}, byte {at - offset}, digests right", (0, 1), redigest=True)
assert found > 25, found
