"""Guests move between hosts."""

import time

from soaklib.kinds import NotNow, attached, event, pick
from soaklib.site import Wrong, until


@event(3, needs=["attach --incoming"])
def migrated(soak, dice):
    """A guest moves to another host, with none, one or several attempts that are
    cancelled before."""
    able = [disk for disk in attached(soak) if disk.load.kind == "guest" and soak.runs(disk)]
    disk = pick(dice, [disk for disk in able if not soak.may_fail(disk)])
    ends = dice.choice([["done"], ["done"], ["early", "done"], ["late", "done"], ["early", "late"]])
    to = dice.choice([site for site in soak.sites if site is not disk.site])
    if disk.show()["rekey"] is not None:
        raise NotNow(f"the data of {disk.short} is moved")
    if disk.load.is_over():
        raise NotNow(f"the guest of {disk.short} has ended")
    words = disk.attach_words(to)
    to.run("attach", *words, "--incoming", "--dry-run")
    to.run("attach", *words, "--incoming")
    seen = []
    for number, end in enumerate(ends):
        seen.append(move(soak, disk, to, end, f"{soak.number}-{number}"))
    if ends[-1] != "done":
        to.run("detach", to.prefix + disk.short)
    return f"{disk.short} to {to.name}: {', '.join(ends)}", "; ".join(seen)


def move(soak, disk, to, end, label):
    """One attempt, that ends so."""
    there = to.prefix + disk.short
    other = disk.load.elsewhere(to.path(f"{disk.short}.sock"), label)
    soak.guests.append(other)
    other.start()
    until("the other QEMU has connected", lambda: other.check() or to.disk(there)["front_end"])
    until("the other QEMU listens", other.incoming.exists)
    here = disk.load.monitor()
    late = {"capability": "pause-before-switchover", "state": end == "late"}
    here.execute("migrate-set-capabilities", capabilities=[late])
    limit = 1 << 20 if end == "early" else 4 << 30
    here.execute("migrate-set-parameters", **{"max-bandwidth": limit, "downtime-limit": 500})
    here.execute("migrate", uri=f"unix:{other.incoming}")
    wanted = {"done": "completed", "early": "active", "late": "pre-switchover"}[end]

    def is_so(status):
        if status.get("status") == "failed":
            raise Wrong(f"the migration of {disk.short} has failed: {status}, {other.said()}")
        return status.get("status") == wanted

    status = here.until("query-migrate", is_so)
    if end != "done":
        time.sleep(0.2)
        here.execute("migrate_cancel")
        here.until("query-migrate", lambda status: status["status"] == "cancelled")
        here.until("query-status", lambda status: status["status"] == "running")
        here.close()
        until("the other QEMU has ended", other.is_over)
        until("the other host waits", lambda: not to.disk(there)["front_end"])
        soak.settled(disk)
        return "goes on here"
    until("the guest runs there", lambda: to.disk(there)["state"] == "running")
    # Each manager hears it from its own worker, in its own time.
    until("the disk is moved here", lambda: disk.show()["state"] == "moved")
    here.execute("quit")
    here.close()
    disk.load.left()
    until("its key is gone here", lambda: disk.show()["pid"] is None)
    disk.run("detach", disk.name)
    disk.site, disk.load = to, other
    soak.journal.pause("migrated", "QEMU", status["downtime"])
    return f"stopped for {status['downtime']} ms"
