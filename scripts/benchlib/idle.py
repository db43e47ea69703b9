"""Many disks that are attached and do nothing: what each costs."""

import copy
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchlib import processes
from benchlib.backends import Qemu, QemuLuks
from benchlib.common import START_SECONDS, Problem, note, run

# A disk of that size is enough to do nothing with.
SIZE = 16 << 20


class Daemon:
    """sealblk's manager, with a worker process for each disk."""

    name = "sealblk"

    def __init__(self, options, directory, disks):
        self.options = options
        self.directory = directory
        self.disks = [directory / f"disk-{number}.sock" for number in range(disks)]
        self.workers = []
        self.process = None

    def sealblk(self, *words):
        config = ["--config", self.directory / "sealblk.toml"]
        return [self.options.sealblk, *config, *words]

    def start(self):
        key = self.directory / "platform.key"
        run([self.options.sealblk, "key", "init", "--key-file", key])
        place = self.directory
        (place / "sealblk.toml").write_text(
            f'[daemon]\nsocket = "{place}/api.sock"\nstate_dir = "{place}/state"\n'
            f'run_dir = "{place}/run"\n[audit]\nenabled = false\n'
            f'[key_sets.default]\nprovider = "file"\nkey_file = "{key}"\n'
            f"[serve]\nqueues = {max(self.options.queues)}\n"
        )
        with (place / "daemon.log").open("w") as log:
            words = [str(word) for word in self.sealblk("daemon")]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        wait_for(place / "api.sock", self.process)
        for socket in self.disks:
            image = socket.with_suffix(".img")
            run(self.sealblk("volume", "create", "--size", SIZE, image))
            disk = json.loads(run(self.sealblk("attach", image, "--socket", socket, "--json")))
            self.workers.append(disk["pid"])

    def of_disks(self):
        return self.workers

    def beside(self):
        """The manager, which is there once for all."""
        return [self.process.pid]

    def stop(self):
        if self.process is None:
            return
        # The manager first: it would start another worker for one that ends.
        self.process.terminate()
        self.process.wait(timeout=START_SECONDS)
        for pid in self.workers:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        until_gone(self.workers)


class Daemons:
    """A qemu-storage-daemon for each disk."""

    def __init__(self, kind, options, directory, disks):
        self.name = kind.name
        self.servers = []
        self.disks = []
        for number in range(disks):
            server = kind(options, directory, f"{kind.name}-{number}")
            self.servers.append(server)
            self.disks.append(server.socket)

    def start(self):
        for server in self.servers:
            if isinstance(server, QemuLuks):
                server.create()
            else:
                server.plain = server.socket.with_suffix(".img")
                with server.plain.open("wb") as image:
                    image.truncate(SIZE)
            server.start()

    def of_disks(self):
        return [server.process.pid for server in self.servers]

    def beside(self):
        return []

    def stop(self):
        for server in self.servers:
            server.kill()


def until_gone(pids):
    deadline = time.monotonic() + START_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            raise Problem("workers did not end on SIGTERM")
        time.sleep(0.05)


def wait_for(path, process):
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Problem(f"nobody made {path}")
        time.sleep(0.05)


def measure(options, disks, seconds):
    """What each of so many disks costs, each with a front end that does
    nothing."""
    kinds = [Daemon]
    if shutil.which("qemu-storage-daemon"):
        kinds += [lambda *rest: Daemons(Qemu, *rest), lambda *rest: Daemons(QemuLuks, *rest)]
    found = []
    options = copy.copy(options)
    options.size = SIZE
    for kind in kinds:
        directory = Path(tempfile.mkdtemp(prefix="sealblk-idle-", dir=options.dir))
        service = kind(options, directory, disks)
        holder = None
        try:
            note(f"{disks} idle disks: {service.name}")
            service.start()
            queues = max(options.queues)
            holder = hold(options, service.disks, queues)
            found.append(costs(service, seconds) | {"disks": disks, "queues": queues})
        finally:
            if holder is not None:
                holder.stdin.close()
                holder.wait(timeout=START_SECONDS)
            service.stop()
            shutil.rmtree(directory, ignore_errors=True)
    return found


def hold(options, sockets, queues):
    """Has a front end connected to each socket until its input ends."""
    words = [options.host_load, "--hold", ",".join(str(path) for path in sockets)]
    words = [str(word) for word in [*words, "--queues", queues]]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if holder.stdout.readline().strip() != "holding":
        raise Problem("the front ends could not be connected")
    return holder


def costs(service, seconds):
    pids = service.of_disks()
    # What connecting has set in motion comes to rest.
    time.sleep(1)
    before = processes.cpu_ns(pids), processes.switches(pids)
    time.sleep(seconds)
    after = processes.cpu_ns(pids), processes.switches(pids)
    memory = [processes.memory(pid) for pid in pids]
    entry = {"backend": service.name, "seconds": seconds}
    for field in memory[0]:
        entry[field] = statistics.median(each[field] for each in memory)
    entry["beside_kib"] = sum(processes.memory(pid)["own_kib"] for pid in service.beside())
    entry["cpu_us_per_second"] = (after[0] - before[0]) / 1e3 / seconds / len(pids)
    entry["switches_per_second"] = (after[1] - before[1]) / seconds / len(pids)
    return entry
