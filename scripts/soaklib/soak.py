"""A run: the disks, what is true of them at the moment, and the loop of events."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import deque

from benchlib.common import note
from soaklib import events, judge
from soaklib.disk import Disk
from soaklib.journal import Journal
from soaklib.loads import FrontEnd, Guest
from soaklib.site import PATIENCE, KeyService, Site, Wrong, until

MIB = 1 << 20
# What the hosts are called.
HOSTS = ["a", "b"]


class Soak:
    """What events are given, and what they may change."""

    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.journal = Journal(directory / "soak.log")
        self.growth = judge.Growth()
        self.service = None
        self.sites = []
        self.disks = []
        # Of which only what concerns them knows.
        self.passing = []
        self.mounts = []
        # QEMUs that a guest moves to, whatever becomes of that.
        self.guests = []
        # The program under two paths, to be upgraded to.
        self.builds = deque([options.sealblk.absolute(), directory / "other-sealblk"])
        # What the key service does at the moment: ok, away, denied.
        self.key = "ok"
        # What begins now and ends later: after how many events, what, how.
        self.agenda = []
        self.number = 0

    def later(self, events_from_now, kind, do):
        self.agenda.append((self.number + events_from_now, kind, do))

    def state_of(self, disk):
        """The states that the disk may be in now: none if it is not attached."""
        if disk.is_out:
            return set()
        denied = self.key == "denied" and disk.key_set == "prod"
        if denied and disk.is_frozen:
            return {"paused", "frozen"}
        return {"paused"} if denied else {"frozen"} if disk.is_frozen else {"running"}

    def runs(self, disk):
        return self.state_of(disk) == {"running"}

    def may_fail(self, disk):
        """The statuses of a command that needs a key which cannot be had."""
        return (8, 9) if self.key != "ok" and disk.key_set == "prod" else ()

    def settle(self):
        """Waits until everything is as it has to be now, and looks that nobody has
        seen an error."""
        for disk in self.disks:
            self.settled(disk)
        processes = {}
        for site in self.sites:
            workers = site.workers()
            for name, pids in workers.items():
                if len(pids) > 1:
                    raise Wrong(f"{name} has {len(pids)} workers: {pids}")
                processes |= {pid: ("worker", 0) for pid in pids}
            processes[site.process.pid] = ("manager", len(workers))
        for disk in self.disks:
            disk.load.check()
            if self.runs(disk) and not getattr(disk.load, "is_away", False):
                until(f"{disk.short} answers", disk.load.moves)
        self.growth.look(processes)

    def settled(self, disk):
        """Waits until the disk is as it has to be now."""
        wanted = self.state_of(disk)
        if not wanted:
            return
        try:
            until("", lambda: disk.show()["state"] in wanted)
        except Wrong:
            shown = disk.show()
            raise Wrong(f"{disk.short} has to be {' or '.join(wanted)}: {shown}") from None

    def kill_worker(self, disk):
        """Ends its worker at once, and waits for another one."""
        before = disk.show()
        os.kill(before["pid"], signal.SIGKILL)

        def again():
            now = disk.show()
            return now["restarts"] > before["restarts"] and now["pid"] not in (None, before["pid"])

        until(f"{disk.short} has another worker", again)

    def pause(self, disks, kind):
        """A context that notes how long each had no answer."""
        return Pause(self, disks, kind)


class Pause:
    def __init__(self, soak, disks, kind):
        self.soak = soak
        self.kind = kind
        self.disks = [
            disk
            for disk in disks
            if disk.load.kind == "front end" and not disk.load.is_away and soak.runs(disk)
        ]
        self.worst = None

    def __enter__(self):
        for disk in self.disks:
            disk.load.tell("report")
            disk.load.longest = 0
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            return
        for disk in self.disks:
            # What was answered before it says nothing.
            disk.load.tell("report")
            until(f"{disk.short} answers", disk.load.moves)
            self.soak.journal.pause(self.kind, "front end", disk.load.longest)
            self.worst = max(self.worst or 0, disk.load.longest)

    def said(self):
        return "" if self.worst is None else f", {self.worst:.0f} ms without an answer"


def prepare(soak):
    """The key service, the manager, the disks, and their loads."""
    options, directory = soak.options, soak.directory
    soak.service = KeyService(directory)
    shutil.copy2(*soak.builds)
    for name in HOSTS:
        site = Site(directory, name, options.sealblk, soak.service)
        soak.sites.append(site)
        site.start()
        site.idle = judge.measure(site.process.pid)
    # As different as they may be, in turn.
    kinds = [
        {"key_set": "prod"},
        {"key_set": "local"},
        {"key_set": "prod", "detached": True},
        {"key_set": "prod", "store": "shelf"},
    ]
    for number in range(options.guests):
        disk = Disk(soak.sites[number % len(soak.sites)], f"g{number}", 40 * MIB, **kinds[number % 2])
        disk.load = Guest(disk, options.for_seconds)
        soak.disks.append(disk)
    for number in range(options.front_ends):
        disk = Disk(soak.sites[number % len(soak.sites)], f"f{number}", 24 * MIB, **kinds[number % len(kinds)])
        disk.load = FrontEnd(options.soak_load, disk, options.seed + number)
        soak.disks.append(disk)
    for disk in soak.disks:
        disk.create()
        disk.attach()
        disk.load.start()
        soak.journal.line(f"{disk.about()}: {disk.load.kind}")
    guests = [disk for disk in soak.disks if disk.load.kind == "guest"]
    for disk in guests:
        until("the guest has begun", disk.load.has_begun, PATIENCE * 4)


def go_on(soak, end):
    """Events, until the time is over, and the ends of those that are under way."""
    kinds = soak.options.only or sorted(events.KINDS)
    missing = [kind for kind in kinds if not events.able(soak.options.sealblk, kind)]
    if missing:
        soak.journal.line(f"not with this sealblk and user: {', '.join(missing)}")
        kinds = [kind for kind in kinds if kind not in missing]
    weights = [events.KINDS[kind].weight for kind in kinds]
    order = random.Random(soak.options.seed)
    while time.monotonic() < end:
        for one in [one for one in soak.agenda if one[0] <= soak.number]:
            soak.agenda.remove(one)
            step(soak, one[1], one[2])
        soak.number += 1
        kind = order.choices(kinds, weights)[0]
        # Of its own: what an event draws does not change those behind it.
        dice = random.Random(f"{soak.options.seed}/{soak.number}")
        step(soak, kind, lambda kind=kind, dice=dice: events.KINDS[kind].do(soak, dice))
        time.sleep(min(dice.expovariate(1 / soak.options.rest), 5 * soak.options.rest))
    while soak.agenda:
        soak.number += 1
        _, kind, do = soak.agenda.pop(0)
        step(soak, kind, do)


def step(soak, kind, do):
    """One event, and that all is well after it."""
    began = time.monotonic()
    try:
        what, seen = do()
        soak.settle()
    except events.NotNow as reason:
        soak.journal.line(f"{soak.number:4}  {kind:18} left out: {reason}")
        return
    soak.journal.event(soak.number, kind, what, seen, time.monotonic() - began)


def run(options, directory):
    """A whole soak. Whether all was well."""
    soak = Soak(options, directory)
    journal = soak.journal
    journal.line(f"seed {options.seed}, {options.for_seconds:.0f} s, {directory}")
    began = time.monotonic()
    try:
        prepare(soak)
        soak.settle()
        go_on(soak, time.monotonic() + options.for_seconds)
        for line in judge.end(soak):
            journal.line(line)
    except Wrong as wrong:
        journal.error("soak", str(wrong))
    finally:
        for disk in soak.disks + soak.passing:
            if disk.load is not None:
                disk.load.end()
        for guest in soak.guests:
            guest.end()
        for site in soak.sites:
            site.end()
        if soak.service is not None:
            soak.service.end()
        for mount in soak.mounts:
            subprocess.run(["umount", "-l", str(mount)], check=False)
    for line in (soak.growth.table() + "\n\n" + journal.table()).splitlines():
        print(line)
        print(line, file=journal.file)
    well = not journal.wrong
    took = time.monotonic() - began
    said = f"{soak.number} events in {took:.0f} s, seed {options.seed}: "
    said += "all is well" if well else "WRONG: " + "; ".join(journal.wrong)
    print(said)
    print(said, file=journal.file, flush=True)
    if not well:
        note(f"to repeat the events: scripts/soak --seed {options.seed} with the same options")
    return well
