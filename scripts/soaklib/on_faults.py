"""What lies below a disk fails."""

import subprocess

from soaklib.disk import Disk
from soaklib.kinds import MIB, event
from soaklib.loads import FrontEnd
from soaklib.site import Wrong, until


def command(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Wrong(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


@event(2, needs=["root", "attach --on-error"])
def out_of_space(soak, dice):
    """A disk on a file system that is full waits until there is room."""
    site, by_hand = dice.choice(soak.sites), dice.random() < 0.5
    killed = dice.choice([None, "worker", "manager"])
    disk = Disk(site, f"o{soak.number}", 8 * MIB, key_set="local")
    small = soak.directory / f"small{soak.number}"
    small.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=12M,mode=0700", "soak", small)
    soak.mounts.append(small)
    disk.volume, filler = small / "disk.img", small / "filler"
    filler.write_bytes(bytes(8 * MIB))
    disk.create()
    disk.attach("--on-error", "stop")
    disk.load = FrontEnd(soak.options.soak_load, disk, dice.getrandbits(32), sparse=1)
    soak.passing.append(disk)
    disk.load.start()
    until(f"{disk.short} is stopped", lambda: disk.show()["state"] == "stopped")
    if killed == "manager":
        site.stop(9)
        site.start()
    elif killed == "worker":
        soak.kill_worker(disk)
    if killed:
        until(f"{disk.short} is stopped again", lambda: disk.show()["state"] == "stopped")
    filler.unlink()
    if by_hand:
        # It may have gone on by itself just now.
        site.run("resume", disk.name, may=(5, 6))
    until(f"{disk.short} goes on", lambda: disk.show()["state"] == "running")
    disk.load.tell("report")
    until(f"{disk.short} answers", disk.load.moves)
    requests = disk.load.finish()
    disk.load.end()
    until("it has no front end", lambda: not disk.show()["front_end"])
    site.run("detach", disk.name)
    site.run("keyset", "forget-volume", disk.uuid)
    soak.passing.remove(disk)
    # The ring of a process that was killed is taken down after its end.
    until("it can be unmounted", lambda: subprocess.run(["umount", str(small)]).returncode == 0)
    soak.mounts.remove(small)
    small.rmdir()
    how = "told to go on" if by_hand else "went on by itself"
    return disk.short, f"stopped; {killed or 'nobody'} killed; {how}; {requests} requests"
