"""What processes take of memory and of CPUs, by what the kernel says."""

from pathlib import Path


def family(pids):
    """The processes, and all that they have started."""
    found, left = [], list(pids)
    while left:
        pid = left.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            left += [int(child) for child in children.read_text().split()]
    return found


def _fields(path):
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def memory(pid):
    """KiB of a process: all that is resident, its part of what it shares with
    others, and what is its alone."""
    fields = _fields(f"/proc/{pid}/smaps_rollup")
    own = fields["Private_Clean"] + fields["Private_Dirty"]
    huge = fields.get("Private_Hugetlb", 0)
    return {
        "resident_kib": fields["Rss"] + huge,
        "proportional_kib": fields["Pss"] + huge,
        "own_kib": own + huge,
    }


def forget_peak(pids):
    """Begins anew with the peak of resident memory."""
    for pid in family(pids):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_kib(pids):
    """The most KiB that were resident, of all these processes together."""
    return sum(_fields(f"/proc/{pid}/status")["VmHWM"] for pid in family(pids))


def cpu_ns(pids):
    """CPU time of all threads that are there, in nanoseconds."""
    total = 0
    for pid in family(pids):
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(stat.read_text().split()[0])
    return total


def switches(pids):
    """How often their threads left a CPU by themselves."""
    total = 0
    for pid in family(pids):
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    return total
