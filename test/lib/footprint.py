"""What a process and all that it started hold on the host: processes, descriptors, mappings, memory. Standard library only."""
import os


def stat_fields(pid):
    """The fields of /proc/PID/stat behind the name, from the state on; None for a process that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def family(root):
    """{pid: start time} of that process and its descendants, and of whoever else is in its session."""
    parents, sessions, starts = {}, {}, {}
    for name in os.listdir("/proc"):
        fields = stat_fields(name) if name.isdigit() else None
        if fields:
            pid = int(name)
            parents[pid], sessions[pid], starts[pid] = int(fields[1]), int(fields[3]), int(fields[19])
    members = {pid for pid in starts if pid == root or sessions[pid] == root}
    grown = True
    while grown:
        more = {pid for pid in starts if parents[pid] in members} - members
        members |= more
        grown = bool(more)
    return {pid: starts[pid] for pid in members}


def still_running(members):
    """Those of {pid: start time} that have not ended."""
    return [pid for pid, start in members.items()
            if (fields := stat_fields(pid)) is not None and int(fields[19]) == start]


def count(path):
    try:
        return len(os.listdir(path))
    except OSError:
        return 0


def footprint(root):
    """A dictionary of sums over family(root); memory in MiB is what belongs to it alone (RAM of a memory file is not)."""
    total = {"processes": 0, "threads": 0, "descriptors": 0, "mappings": 0, "memory": 0}
    for pid in family(root):
        try:
            with open(f"/proc/{pid}/maps") as f:
                total["mappings"] += sum(1 for _ in f)
            with open(f"/proc/{pid}/status") as f:
                fields = dict(line.split(":", 1) for line in f)
        except OSError:
            continue
        total["processes"] += 1
        total["threads"] += count(f"/proc/{pid}/task")
        total["descriptors"] += count(f"/proc/{pid}/fd")
        total["memory"] += int(fields.get("RssAnon", "0 kB").split()[0]) / 1024
    return total
