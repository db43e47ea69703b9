"""Manager and workers are replaced by another build, under what they serve."""

import json
import os
import signal
import threading
import time

from soaklib.kinds import NotNow, attached, event, pick
from soaklib.site import Wrong, until


@event(5, needs=["upgrade --binary"])
def upgraded(soak, dice):
    """Workers, or the manager and all workers, without anybody connecting anew."""
    site = dice.choice(soak.sites)
    disks = [disk for disk in attached(soak) + soak.passing if disk.site is site]
    whole = dice.random() < 0.4
    if not whole:
        disks = [pick(dice, disks)]
    words = ["--all"] if whole else [disks[0].name]
    # The same program under another path, in turns: another version is a matter of
    # the tests of upgrades.
    soak.builds.rotate(1)
    before = {disk.name: disk.show() for disk in disks}
    with soak.pause([disk for disk in disks if disk in soak.disks], "upgraded") as pause:
        _, out = site.run("upgrade", *words, "--binary", soak.builds[0], "--json")
        report = json.loads(out)
    for one in report["disks"]:
        name = one["disk"]["name"]
        if one["pause_us"] is not None:
            soak.journal.pause("upgraded", "requests", one["pause_us"] / 1e3)
        now, was = site.disk(name), before.get(name)
        if was is None:
            continue
        if now["pid"] == was["pid"]:
            raise Wrong(f"{name} was upgraded, and has the worker that it had")
        if now["restarts"] > was["restarts"] or now["front_end"] != was["front_end"]:
            raise Wrong(f"{name} was upgraded: {was}, and now {now}")
    what = f"{site.name}, all" if whole else disks[0].short
    return what, f"{len(report['disks'])} workers{pause.said()}"


@event(3, needs=["upgrade --binary"])
def killed_upgrading(soak, dice):
    """Somebody dies in an upgrade: one serves all the same."""
    running = [disk for disk in attached(soak) if soak.runs(disk)]
    disk = pick(dice, running)
    if soak.passing:
        raise NotNow("the key of an ephemeral disk would be lost")
    site, wait = disk.site, dice.uniform(0, 0.4)
    victim = dice.choice(["manager", "old", "any", "old and manager"])
    soak.builds.rotate(1)
    status = []
    words = ["upgrade", disk.name, "--binary", soak.builds[0]]
    old = disk.show()["pid"]
    thread = threading.Thread(target=lambda: status.append(site.try_run(*words)[0]))
    with soak.pause([disk], "killed-upgrading") as pause:
        thread.start()
        time.sleep(wait)
        if "manager" in victim:
            site.stop(signal.SIGKILL)
        pids = site.workers().get(disk.name, [])
        if "old" in victim:
            pids = [pid for pid in pids if pid == old]
        for pid in pids if victim != "manager" else []:
            os.kill(pid, signal.SIGKILL)
        if "manager" in victim:
            site.start()
        thread.join()
        soak.settled(disk)
        until("one worker is left", lambda: len(site.workers().get(disk.name, [])) == 1)
    return disk.short, f"{victim} killed after {wait * 1e3:.0f} ms, status {status[0]}{pause.said()}"
