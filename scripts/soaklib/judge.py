"""What must hold all the time, and what must hold when all is over."""

import json
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path

from soaklib.site import PATIENCE, Wrong, until

# What a process may have more at its end than after it has settled. Connections of
# clients come and go, and buffers of queues that rest are given back.
MORE = {"files": 24, "threads": 24, "kib": 48 << 10}
SETTLED_SECONDS = 10
# What a manager keeps of each disk: its volume, header, listener and worker.
FILES_OF_A_DISK = 9
# What a front end without a guest writes: a count in each sixteen bytes, behind it
# the number of the write (tests/support/history.rs).
OF_A_FRONT_END = re.compile(rb"\x01[^\0].{2}\0{4}.{4}\0{4}\x02[^\0].{2}\0{4}", re.DOTALL)
OF_A_GUEST = b"sealblk-pattern seed="


def dirty(pid):
    """KiB of memory that a process has written to, and nobody else has. (What it has
    mapped of its program counts for nothing, whoever else runs that.)"""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    wanted = ("Private_Dirty:", "Private_Hugetlb:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(wanted))


def measure(pid):
    """Files, threads and memory of a process. None if it is gone."""
    try:
        files = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
        return {"files": files, "threads": threads, "kib": dirty(pid)}
    except OSError:
        return None


class Growth:
    """What the processes of a run have taken, from when each had settled."""

    def __init__(self):
        self.first = {}
        self.seen = {}
        self.peak = {}
        self.processes = 0

    def look(self, processes):
        """`processes`: the role of each, by its pid, and how many disks it keeps."""
        now = time.monotonic()
        for pid, (role, disks) in processes.items():
            found = measure(pid)
            if found is None:
                continue
            began = self.seen.setdefault(pid, now)
            if began == now:
                self.processes += 1
            peak = self.peak.setdefault(role, dict.fromkeys(MORE, 0))
            for what, much in found.items():
                peak[what] = max(peak[what], much)
            if now - began < SETTLED_SECONDS:
                continue
            first, had = self.first.setdefault(pid, (found, disks))
            for what, bound in MORE.items():
                if what == "files":
                    bound += FILES_OF_A_DISK * max(0, disks - had)
                if found[what] > first[what] + bound:
                    raise Wrong(
                        f"{role} {pid} has grown: {what} {first[what]} with {had} disks after "
                        f"{SETTLED_SECONDS} s, {found[what]} with {disks} after {now - began:.0f} s"
                    )

    def table(self):
        lines = [f"{self.processes} processes were looked at; the most that any had:"]
        for role, peak in sorted(self.peak.items()):
            lines.append(
                f"  {role:8} {peak['files']} files, {peak['threads']} threads, "
                f"{peak['kib'] / 1024:.0f} MiB"
            )
        return "\n".join(lines)


def state_is_readable(directory, started):
    """Every file of the manager's state is what its name says. What a manager that was
    killed had half made is removed by one that starts a minute later."""
    count = 0
    for path in directory.rglob("*"):
        if not path.is_file():
            continue
        if path.suffix == ".new":
            if path.stat().st_mtime < started - 60:
                raise Wrong(f"{path} was left behind")
            continue
        count += 1
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".toml":
                tomllib.loads(path.read_text())
        except (ValueError, UnicodeDecodeError) as error:
            raise Wrong(f"{path} cannot be read: {error}") from None
    return count


def no_plaintext(path):
    """Nothing that a guest or a front end wrote stands in the file."""
    with path.open("rb") as file:
        before = b""
        while block := file.read(16 << 20):
            text = before + block
            if OF_A_GUEST in text or OF_A_FRONT_END.search(text):
                raise Wrong(f"there is plaintext in {path}")
            before = text[-4096:]


def cryptsetup(disk):
    """An independent program takes the header for good, and the key for the key."""
    site = disk.site
    key = site.shared / f"{disk.short}.dek"
    try:
        words = ["volume", "export-dek", disk.volume, *disk.header_words(), "--to", key]
        site.run(*words, "--i-understand-that-this-key-decrypts-the-disk")
        header = disk.header or disk.volume
        for command in (
            ["cryptsetup", "luksDump", str(header)],
            ["cryptsetup", "open", "--type", "luks2", "--test-passphrase",
             "--volume-key-file", str(key), "--key-size", "512", str(header)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Wrong(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()}")
    finally:
        key.unlink(missing_ok=True)


def end(soak):
    """When all events are over: the loads judge all of their disks, these are
    detached, and looked at by others. What was found, a line each."""
    for disk in soak.disks:
        said = disk.load.finish()
        yield f"{disk.short}: {disk.load.kind}: {said}" + (
            " requests, and all of the disk is as written" if isinstance(said, int) else ""
        )
    for disk in soak.disks:
        disk.load.end()
        until(f"{disk.short} has no front end", lambda disk=disk: not disk.show()["front_end"])
        rest(disk)
    for disk in soak.disks:
        disk.run("detach", disk.name)
    for site in soak.sites:
        if left := site.workers():
            raise Wrong(f"workers are left: {left}")
        if site.get("/v1/disks")["disks"]:
            raise Wrong("disks are left on record")
    yield "all disks are detached, and no worker is left"
    for disk in soak.disks:
        disk.run("volume", "verify-header", disk.volume, *disk.header_words())
        disk.run("verify", disk.volume, *disk.header_words(), "--full")
        cryptsetup(disk)
        no_plaintext(disk.volume)
    yield "sealblk and cryptsetup take all headers for good; no plaintext in the files"
    for site in soak.sites:
        files = measure(site.process.pid)["files"]
        if files > site.idle["files"] + MORE["files"]:
            raise Wrong(f"with no disk the manager had {site.idle['files']} files open, and has {files}")
        if sockets := list(site.path("run").rglob("*.sock")):
            raise Wrong(f"sockets are left: {sockets}")
        if b"panicked" in site.log.read_bytes():
            raise Wrong(f"something panicked: see {site.log}")
        yield f"host {site.name}: {state_is_readable(site.path('state'), site.started)} files of state can be read"
        lines = site.run("audit", "verify")[1].strip().splitlines()
        yield f"host {site.name}: audit log: {lines[0]}"


def rest(disk):
    """Lets what is done to the data of a disk come to its end."""
    rekey = disk.show()["rekey"]
    if rekey is not None:
        disk.run("rekey", disk.name, "--limit", "0", may=(3, 5, 6))
        disk.run("rekey", disk.name, "--resume", may=(3, 5, 6))
        try:
            until("", lambda: not disk.show()["rekey"], PATIENCE * 3)
        except Wrong:
            rekey = disk.show()["rekey"]
            raise Wrong(f"the rekey of {disk.short} does not end: {rekey}") from None
