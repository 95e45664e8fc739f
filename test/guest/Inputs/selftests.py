"""selftests.py HOST GUEST EXPECTED RECORDED: every program had the same outcome in the guest as on the host.
selftests.py --record GUEST: print what a guest gave, for RECORDED.

HOST and GUEST are the outputs of selftests.sh. The outcome is the exit status and the set of tagged lines ([OK], [FAIL],
[SKIP]...), numbers and addresses aside. EXPECTED has a line "NAME... : REASON" (shell patterns) for programs that may print other
lines, because the two kernels differ; even those must end with the same status and fail in nothing that the host does not
fail in. A status that may differ, too, is written NAME=STATUS.

A host that is odd itself (no 32-bit code, a virtual processor that single-steps or loads segments wrongly) fails in programs or cannot
start them: there is nothing to compare with. Those are held to RECORDED, the outcome on a processor that does as the manuals say:
the same status, every recorded line but [SKIP], and no new failure. So a program passes only if host or record vouch for it.
"""
import fnmatch
import re
import sys

TAGGED = re.compile(r"^(?:\S+: )?\[(OK|FAIL|SKIP|WARN|PASS)\]\s*(.*)")
NUMBER = re.compile(r"\b(0x)*(?=[0-9a-f]*[0-9])[0-9a-f]+\b", re.IGNORECASE)


def outcomes(path):
    """{program: (status, {tagged line})}"""
    results, name, lines = {}, None, set()
    with open(path, errors="replace") as f:
        for line in f:
            line = line.replace("\r", "").rstrip("\n")
            words = line.split()
            if len(words) == 2 and words[0] == "TEST":
                name, lines = words[1], set()
            elif len(words) == 3 and words[0] == "DONE" and words[1] == name:
                results[name] = (int(words[2]), lines)
                name = None
            elif name:
                tagged = TAGGED.match(line)
                if tagged:
                    lines.add(f"[{tagged[1]}] {NUMBER.sub('N', tagged[2])}")
    return results


def expectations(path):
    """[(pattern, status or None, reason)]"""
    rows = []
    with open(path) as f:
        for line in f:
            line = line.strip()
            if line and not line.startswith("#"):
                names, reason = line.split(" : ", 1)
                for name in names.split():
                    pattern, _, status = name.partition("=")
                    rows.append((pattern, int(status) if status else None, reason))
    return rows


def record(results):
    for name, (status, lines) in sorted(results.items()):
        print(f"{name} {status}")
        for line in sorted(lines):
            print(f"    {line}")


def recorded(path):
    """What record() wrote: {program: (status, {tagged line})}"""
    results = {}
    with open(path) as f:
        for line in f:
            if line.startswith("    "):
                results[name][1].add(line[4:].rstrip("\n"))
            elif line.strip() and not line.startswith("#"):
                name, status = line.split()
                results[name] = (int(status), set())
    return results


def failures(lines):
    return {line for line in lines if line.startswith("[FAIL]")}


def agrees_with_record(record, status, lines):
    return record and status == record[0] and not failures(lines) - record[1] and not {
        line for line in record[1] - lines if not line.startswith("[SKIP]")}


def main():
    if sys.argv[1] == "--record":
        return record(outcomes(sys.argv[2]))
    host, guest, expected = outcomes(sys.argv[1]), outcomes(sys.argv[2]), expectations(sys.argv[3])
    records = recorded(sys.argv[4])
    bad = excused = vouched = 0
    if not host or set(host) != set(guest):
        sys.exit(f"selftests: not the same programs ran: {sorted(set(host) ^ set(guest)) or 'none at all'}")
    for name in sorted(host):
        (host_status, host_lines), (guest_status, guest_lines) = host[name], guest[name]
        if host_status == guest_status and host_lines == guest_lines:
            continue
        if (host_status or failures(host_lines)) and agrees_with_record(records.get(name), guest_status, guest_lines):
            vouched += 1
            print(f"{name}: status {host_status} on this host; the guest gave what is recorded")
            continue
        rows = [row for row in expected if fnmatch.fnmatchcase(name, row[0])]
        same_status = guest_status == host_status or any(row[1] == guest_status for row in rows)
        new_failures = failures(guest_lines - host_lines)
        if rows and same_status and (not new_failures or any(row[1] == guest_status for row in rows)):
            excused += 1
            print(f"{name}: differs, as {rows[0][2]}")
            continue
        bad += 1
        print(f"{name}: status {host_status} on the host, {guest_status} in the guest")
        for line in sorted(host_lines - guest_lines):
            print(f"  host only:  {line}")
        for line in sorted(guest_lines - host_lines):
            print(f"  guest only: {line}")
    alike = len(host) - bad - excused - vouched
    print(f"SELFTESTS {len(host)} programs, {alike} alike, {excused} differ for known reasons, "
          f"{vouched} as recorded since this host fails in them, {bad} differ")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
