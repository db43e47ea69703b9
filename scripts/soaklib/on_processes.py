"""Workers and managers die, hang, and are started again."""

import os
import signal
import threading
import time

from soaklib.kinds import MIB, NotNow, attached, event, front_ends, pick
from soaklib.site import Wrong, until


@event(8)
def worker_killed(soak, dice):
    disk = pick(dice, attached(soak))
    before = disk.show()
    runs = soak.runs(disk)
    with soak.pause([disk], "worker-killed") as pause:
        began = time.monotonic()
        os.kill(before["pid"], signal.SIGKILL)

        def again():
            now = disk.show()
            back = now["restarts"] > before["restarts"] and now["state"] in soak.state_of(disk)
            return back and (now["front_end"] or not runs or getattr(disk.load, "is_away", False))

        until(f"{disk.short} has another worker", again)
        away = (time.monotonic() - began) * 1e3
    if runs and disk.load.kind == "guest":
        soak.journal.pause("worker-killed", "QEMU", away)
        return disk.short, f"QEMU was back after {away:.0f} ms"
    return disk.short, f"another serves after {away:.0f} ms{pause.said()}"


@event(4)
def manager_killed(soak, dice):
    number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    down = dice.uniform(0, 1.5)
    site = dice.choice(soak.sites)
    before = site.workers()
    with soak.pause(soak.disks, "manager-killed") as pause:
        site.stop(number)
        time.sleep(down)
        site.start()
    now = site.workers()
    if any(now.get(name) != pids for name, pids in before.items()):
        raise Wrong(f"workers were {before} and are {now}")
    return f"{site.name} {number.name}", f"down for {down:.1f} s, the same workers{pause.said()}"


@event(4)
def killed_at_work(soak, dice):
    """The manager, a worker or both are killed while something is done."""
    disk = pick(dice, [disk for disk in front_ends(soak) if soak.runs(disk)])
    work = dice.choice(["attach", "detach", "resize", "rekey", "limit", "rotate", "freeze"])
    if work == "rekey" and disk.store is not None:
        work = "limit"
    victim = dice.choice(["manager", "manager", "worker", "both"])
    wait = dice.uniform(0, 0.25)
    if victim != "manager" and soak.passing:
        victim = "manager"
    if work in ("attach", "detach"):
        if soak.may_fail(disk):
            raise NotNow("its key cannot be had")
        disk.load.leave()
        if work == "attach":
            disk.site.run("detach", disk.name)
    words = {
        "attach": lambda: disk.attach(may=range(1, 12)),
        "detach": lambda: disk.site.try_run("detach", disk.name)[0],
        "resize": lambda: disk.site.try_run("resize", disk.name, disk.size + 2 * MIB)[0],
        "rekey": lambda: disk.site.try_run("rekey", disk.name, "--start")[0],
        "limit": lambda: disk.site.try_run("limit", disk.name, "--iops-total", 1500)[0],
        "rotate": lambda: disk.site.try_run("keyset", "rotate", "prod", "--no-wait")[0],
        "freeze": lambda: disk.site.try_run("freeze", disk.name, "--timeout", "2s")[0],
    }
    status = []
    thread = threading.Thread(target=lambda: status.append(words[work]()))
    thread.start()
    time.sleep(wait)
    if victim != "worker":
        disk.site.stop(signal.SIGKILL)
    if victim != "manager":
        for pid in disk.site.workers().get(disk.name, []):
            os.kill(pid, signal.SIGKILL)
    if victim != "worker":
        disk.site.start()
    thread.join()
    if work in ("attach", "detach"):
        # On record or not: both may be, and nothing in between.
        if disk.site.disk(disk.name) is None:
            disk.attach()
        soak.settled(disk)
        disk.load.enter()
    if work == "resize":
        soak.settled(disk)
        disk.size = disk.show()["size"]
        disk.load.larger(disk.size)
    if work == "freeze":
        until("the freeze is over", lambda: disk.show()["state"] == "running")
    return f"{disk.short} {work}", f"{victim} killed after {wait * 1e3:.0f} ms, status {status[0]}"


@event(2)
def worker_hung(soak, dice):
    """A worker does not run for a while, and goes on."""
    disk = pick(dice, attached(soak))
    length = dice.uniform(0.2, 3)
    pid = disk.show()["pid"]
    with soak.pause([disk], "worker-hung") as pause:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(length)
        os.kill(pid, signal.SIGCONT)
    soak.settled(disk)
    if (now := disk.show()["pid"]) != pid:
        raise Wrong(f"{disk.short} had worker {pid}, which hung, and has {now}")
    return disk.short, f"for {length:.1f} s{pause.said()}"


@event(1)
def manager_hung(soak, dice):
    length = dice.uniform(0.2, 3)
    site = dice.choice(soak.sites)
    with soak.pause(soak.disks, "manager-hung") as pause:
        site.process.send_signal(signal.SIGSTOP)
        time.sleep(length)
        site.process.send_signal(signal.SIGCONT)
    return site.name, f"for {length:.1f} s{pause.said()}"


@event(1)
def all_killed(soak, dice):
    """Manager and workers die together, as by the kernel when memory is short."""
    if soak.key != "ok":
        raise NotNow(f"the key service is {soak.key}")
    if soak.passing:
        raise NotNow("the key of an ephemeral disk would be lost")
    site, down = dice.choice(soak.sites), dice.uniform(0, 1)
    disks = [disk for disk in soak.disks if disk.site is site]
    with soak.pause(disks, "all-killed") as pause:
        site.stop(signal.SIGKILL)
        for pids in site.workers().values():
            os.kill(pids[0], signal.SIGKILL)
        # Nobody is left who knows of it.
        for disk in disks:
            disk.is_frozen = False
        time.sleep(down)
        site.start()
        for disk in disks:
            soak.settled(disk)
    return site.name, f"{len(disks)} disks{pause.said()}"
