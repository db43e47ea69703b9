"""What operators do to disks."""

import time

from soaklib.kinds import MIB, NotNow, attached, event, front_ends, pick
from soaklib.site import Wrong, until


@event(5)
def resized(soak, dice):
    disk = pick(dice, [disk for disk in attached(soak) if disk.size < 96 * MIB])
    wanted = disk.size + dice.choice([1, 2, 4]) * MIB
    may = (5, 6) if disk.is_frozen or disk.show()["rekey"] else ()
    status, _ = disk.run("resize", disk.name, wanted, may=may)
    if status != 0:
        if disk.show()["size"] != disk.size:
            raise Wrong(f"{disk.short} was not to be resized, and was")
        return disk.short, "refused: it is frozen, or its data is moved"
    disk.size = wanted
    disk.load.larger(wanted)
    if soak.runs(disk) and disk.load.kind == "guest":
        until("QEMU has read the size", lambda: disk.show()["size_read"] == wanted)
    return disk.short, f"now {wanted >> 20} MiB"


@event(5)
def reattached(soak, dice):
    """Detached and attached, with or without its front end's consent."""
    disk = pick(dice, [disk for disk in attached(soak) if not disk.is_frozen])
    force = disk.load.kind == "guest" or not soak.runs(disk) or dice.random() < 0.5
    wait, no_block = dice.uniform(0, 1), dice.random() < 0.5
    if not force:
        disk.load.leave()
    disk.run("detach", disk.name, *(["--force"] if force else []))
    time.sleep(wait)
    may = soak.may_fail(disk)
    status = disk.attach(may=may)
    seen = f"detached for {wait:.1f} s"
    if status != 0:
        disk.is_out = True
        seen += f", attach refused with {status}"
        if no_block and soak.key == "away":
            disk.attach("--wait", "--no-block")
            seen += ", waits for the key"
        soak.later(1, "reattached", lambda: come_back(soak, disk, force))
    elif not force:
        disk.load.enter()
    return disk.short + (" by force" if force else ""), seen


def come_back(soak, disk, force):
    """A disk that could not be attached is, when its key can be had."""
    if soak.may_fail(disk):
        soak.later(1, "reattached", lambda: come_back(soak, disk, force))
        raise NotNow("its key cannot be had")
    seen = "attached by itself"
    if disk.site.disk(disk.name) is None:
        disk.attach()
        seen = "attached"
    disk.is_out = False
    soak.settled(disk)
    if not force:
        disk.load.enter()
    return disk.short, seen


@event(3)
def frozen(soak, dice):
    disk = pick(dice, [disk for disk in attached(soak) if not disk.is_frozen])
    length = dice.randint(1, 3)
    disk.run("freeze", disk.name, "--timeout", "300s")
    disk.is_frozen = True
    soak.later(length, "thawed", lambda: thawed(soak, disk))
    return disk.short, f"for {length} events"


def thawed(soak, disk):
    was, disk.is_frozen = disk.is_frozen, False
    disk.run("thaw", disk.name, may=() if was else (6,))
    return disk.short, "goes on" if was else "was over"


@event(4)
def limited(soak, dice):
    disk = pick(dice, attached(soak))
    words = dice.choice(
        [
            ["--iops-total", 1500],
            ["--iops-total", 300, "--iops-total-max", 3000, "--iops-total-max-length", 2],
            ["--iops-read", 800, "--iops-write", 300, "--iops-size", "16K"],
            ["--bps-total", "8M"],
            ["--bps-total", 0],
        ]
    )
    disk.run("limit", disk.name, *words)
    return disk.short, " ".join(map(str, words))


@event(3)
def backed_up(soak, dice):
    """A backup of a header is made, known, good, destroyed and forgotten."""
    disk = pick(dice, attached(soak))
    backup = disk.site.shared / f"{disk.short}.backup"
    words = ["volume", "backup-header", disk.volume, *disk.header_words(), "--to", backup]
    disk.run(*words)
    if str(backup) not in disk.run("volume", "backups", disk.volume)[1]:
        raise Wrong(f"nobody knows of {backup}")
    size = backup.stat().st_size
    backup.unlink()
    disk.run("volume", "forget-backup", backup)
    return disk.short, f"{size >> 10} KiB"


@event(3)
def verified(soak, dice):
    """Stored bytes are ciphertext: that is never disproved."""
    disk = pick(dice, attached(soak))
    seed = f"{dice.getrandbits(128):032x}"
    status, out = disk.run("verify", disk.name, "--sample", 300, "--seed", seed, may=(13,))
    verdict = out.strip().splitlines()[-1] if out.strip() else ""
    return disk.short, f"status {status} {verdict[:60]}"


@event(2)
def looked_at(soak, dice):
    """Somebody reads whatever can be read, and has the configuration read again."""
    site = dice.choice(soak.sites)
    for words in (["list"], ["status"], ["keyset", "list"], ["audit", "tail"], ["reload"],
                  ["keyset", "ledger"], ["volume", "backups"]):
        site.run(*words)
    site.run("audit", "verify")
    return site.name, "list, status, records, ledger; audit log verified"


@event(7)
def rekeyed(soak, dice):
    """A rekey begins, rests, goes on, turns, is slower or faster: what fits."""
    disk = pick(dice, [disk for disk in attached(soak) if disk.store is None])
    pace = dice.choice([["--limit", "2M"], ["--limit", "8M"], ["--limit", 0, "--latency", "5ms"]])
    doing = dice.choice(["--pause", "--resume", "--resume", "--back", "--forward", "--limit"])
    rekey = disk.show()["rekey"]
    if rekey is None:
        may = soak.may_fail(disk) + ((5,) if disk.is_frozen else ())
        status, _ = disk.run("rekey", disk.name, "--start", *pace, may=may)
        return disk.short, f"start {' '.join(map(str, pace))}: status {status}"
    words = pace if doing == "--limit" else [doing]
    # It may have come to its end just now, or be what it is told to be.
    status, _ = disk.run("rekey", disk.name, *words, may=(3, 5, 6, 8, 9))
    return disk.short, f"{' '.join(map(str, words))} at {rekey['done'] >> 20} MiB, {rekey['state']}: {status}"


@event(1)
def rekeyed_offline(soak, dice):
    """All data is given another key while nobody uses it."""
    able = [disk for disk in front_ends(soak) if soak.runs(disk) and disk.store is None]
    disk = pick(dice, [disk for disk in able if not soak.may_fail(disk)])
    disk.load.leave()
    disk.run("detach", disk.name)
    disk.run("volume", "rekey", disk.volume, *disk.header_words())
    disk.attach()
    disk.load.enter()
    return disk.short, f"{disk.size >> 20} MiB"
