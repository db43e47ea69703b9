"""What happens to the key service, and who has which key."""

import time

from soaklib.kinds import NotNow, attached, event, pick
from soaklib.site import PATIENCE, Wrong, until


@event(4)
def key_away(soak, dice):
    """The service does not answer: disks run on."""
    if soak.key != "ok":
        raise NotNow(f"it is {soak.key} already")
    length, seal = dice.randint(1, 4), dice.random() < 0.3
    if seal:
        soak.service.seal()
    else:
        soak.service.stop_answering()
    soak.key = "away"
    soak.later(length, "key-back", lambda: key_back(soak, seal))
    return "sealed" if seal else "stopped", f"for {length} events"


def key_back(soak, seal):
    if seal:
        soak.service.unseal()
    else:
        soak.service.go_on()
    until("the key service answers", soak.service.answers)
    soak.key = "ok"
    return "unsealed" if seal else "goes on", "answers"


@event(4)
def key_denied(soak, dice):
    """The key is taken away: its disks pause, and nothing fails."""
    if soak.key != "ok":
        raise NotNow(f"it is {soak.key} already")
    length = dice.randint(1, 3)
    soak.service.deny()
    soak.key = "denied"
    began = time.monotonic()
    for disk in soak.disks:
        soak.settled(disk)
    soak.later(length, "key-granted", lambda: key_granted(soak))
    return "key denied", f"paused after {time.monotonic() - began:.1f} s, for {length} events"


def key_granted(soak):
    soak.service.grant()
    soak.key = "ok"
    began = time.monotonic()
    for disk in soak.disks:
        soak.settled(disk)
    return "key granted", f"all go on after {time.monotonic() - began:.1f} s"


@event(4)
def key_rotated(soak, _dice):
    """Volumes follow a new version; when the ledger says so, the old one is disabled."""
    if soak.key != "ok":
        raise NotNow(f"the key service is {soak.key}")
    version = soak.service.new_version()
    for site in soak.sites:
        site.run("keyset", "rotate", "prod", "--no-wait")
    soak.later(3, "version-retired", lambda: version_retired(soak, version))
    return "prod", f"version {version}"


def version_retired(soak, version):
    """What the ledger calls safe is safe: everything goes on without it."""
    behind = [disk.short for disk in soak.disks if disk.is_frozen or disk.is_out]
    if soak.key != "ok" or behind:
        soak.later(1, "version-retired", lambda: version_retired(soak, version))
        raise NotNow(f"the key service is {soak.key}; not served: {behind}")
    if soak.service.version() != version:
        return "prod", "rotated again since"

    try:
        until("", lambda: not needed(soak, version), PATIENCE * 2)
    except Wrong:
        why = needed(soak, version)
        raise Wrong(f"versions before {version} are needed still: {why}") from None
    soak.service.retire(version)
    for site in soak.sites:
        site.run("keyset", "check", "prod")
    return "prod", f"versions before {version} are disabled"


def needed(soak, version):
    """What the ledgers say of versions before this one that are needed."""
    ledgers = [of for site in soak.sites for of in site.get("/v1/ledger")]
    return [
        of
        for ledger in ledgers
        if ledger["key_set"] == "prod"
        for of in ledger["versions"]
        if int(of["key_version"]) < version and not of["safe_to_disable"]
    ]


@event(2)
def wrapped(soak, dice):
    """A disk has a second wrap for a while, by the platform key."""
    able = [disk for disk in attached(soak) if disk.key_set == "prod" and not disk.is_frozen]
    disk = pick(dice, able)
    # In the header or the key store of the volume, also while its data is moved.
    words = [disk.volume, *disk.header_words(), "--key-set", "local"]
    may = soak.may_fail(disk)
    status, _ = disk.run("volume", "add-wrap", *words, may=may)
    if status != 0:
        return disk.short, f"add-wrap refused with {status}"
    disk.run("volume", "remove-wrap", *words)
    return disk.short, "added and removed"
