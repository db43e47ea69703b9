"""Disks that come and go."""

from soaklib.disk import Disk
from soaklib.kinds import MIB, NotNow, event
from soaklib.loads import FrontEnd
from soaklib.site import Wrong, until


@event(4)
def visitor(soak, dice):
    """A disk is made and attached, used for a while, and erased: attached or not."""
    key_set = dice.choice(["local", "prod"]) if soak.key == "ok" else "local"
    store = dice.choice([None, "shelf"])
    disk = Disk(dice.choice(soak.sites), f"v{soak.number}", 6 * MIB, key_set=key_set, store=store,
                detached=dice.random() < 0.3)
    length, force = dice.randint(1, 4), dice.random() < 0.5
    disk.create()
    disk.attach()
    disk.load = FrontEnd(soak.options.soak_load, disk, dice.getrandbits(32))
    disk.load.start()
    soak.disks.append(disk)
    soak.later(length, "erased", lambda: erased(soak, disk, force))
    return disk.about(), f"for {length} events"


def erased(soak, disk, force):
    """Its key is destroyed, and nobody opens it any more."""
    if not soak.runs(disk):
        soak.later(1, "erased", lambda: erased(soak, disk, force))
        raise NotNow(f"{disk.short} does not run")
    if not disk.load.is_away:
        disk.load.finish()
    disk.load.end()
    soak.disks.remove(disk)
    words = ["volume", "erase", disk.volume, *disk.header_words(), "--yes"]
    if not force:
        until("it has no front end", lambda: not disk.show()["front_end"])
        disk.site.run("detach", disk.name)
    disk.site.run(*words, *(["--force"] if force else []))
    if disk.site.disk(disk.name) is not None:
        raise Wrong(f"{disk.short} was erased, and is attached")
    if disk.attach(may=range(1, 12)) == 0:
        raise Wrong(f"{disk.short} was erased, and can be attached")
    for path in (disk.volume, disk.header):
        if path is not None:
            path.unlink()
    return disk.short, "while it was attached" if force else "detached before"


@event(1)
def ephemeral(soak, dice):
    """A disk whose key is in its worker alone."""
    disk = Disk(dice.choice(soak.sites), f"e{soak.number}", 6 * MIB, key_set=None)
    length = dice.randint(1, 4)
    words = ["--ephemeral", "--size", disk.size, "--sector-size", 512, "--socket", disk.socket]
    words += ["--name", disk.name]
    disk.site.run("attach", soak.directory, *words)
    disk.load = FrontEnd(soak.options.soak_load, disk, dice.getrandbits(32))
    disk.load.start()
    soak.passing.append(disk)
    soak.later(length, "ephemeral-gone", lambda: ephemeral_gone(soak, disk))
    return disk.short, f"for {length} events"


def ephemeral_gone(soak, disk):
    soak.passing.remove(disk)
    disk.load.check()
    requests = disk.load.finish()
    disk.load.end()
    until("it has no front end", lambda: not disk.show()["front_end"])
    disk.site.run("detach", disk.name)
    return disk.short, f"{requests} requests"
