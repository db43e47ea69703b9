"""A daemon of its own, a disk that it serves, and how fast that is re-encrypted."""

import contextlib
import json
import mmap
import os
import signal
import subprocess
import time

from benchlib.common import START_SECONDS, Problem, run

CHUNK = 16 << 20


class Daemon:
    """`sealblk daemon` in a directory, with the built-in key."""

    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.config = directory / "sealblk.toml"
        self.log = directory / "daemon.log"
        self.process = None
        self.worker = None
        self.config.write_text(
            f'[key_sets.default]\nprovider = "file"\nkey_file = "{directory}/key"\n'
            f'[daemon]\nsocket = "{directory}/api.sock"\nstate_dir = "{directory}/state"\n'
            f'run_dir = "{directory}/run"\n[audit]\npath = "{directory}/audit.jsonl"\n'
        )

    def sealblk(self, *words):
        """Runs a command; its standard output."""
        return run([self.options.sealblk, "--config", self.config, *words])

    def start(self):
        self.sealblk("key", "init", "--key-file", self.directory / "key")
        with self.log.open("w") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [str(self.options.sealblk), "--config", str(self.config), "daemon"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self.directory / "api.sock").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Problem(f"the daemon did not start\n{self.said()}")
            time.sleep(0.01)

    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self):
        """Ends it and its worker, which would go on without it."""
        if self.worker is not None:
            with contextlib.suppress(Problem):
                self.sealblk("detach", self.worker)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=START_SECONDS)


class Disk:
    """A volume that the daemon serves."""

    name = "bench"

    def __init__(self, daemon, options):
        self.daemon = daemon
        self.image = daemon.directory / "bench.img"
        self.socket = daemon.directory / "bench.sock"
        size = ["--size", options.size, "--sector-size", options.sector_size]
        daemon.sealblk("volume", "create", *size, self.image)
        self.attach()

    def attach(self):
        self.daemon.sealblk("attach", self.image, "--socket", self.socket, "--name", self.name)
        self.daemon.worker = self.name

    def detach(self):
        self.daemon.sealblk("detach", self.name)
        self.daemon.worker = None

    def show(self):
        return json.loads(self.daemon.sealblk("show", self.name, "--json"))

    def target(self):
        """How the load generator finds it."""
        return ["--socket", self.socket, "--server-pid", self.show()["pid"]]

    def rekey(self, *words):
        self.daemon.sealblk("rekey", self.name, *words)

    def state(self):
        """What is done to its data; None if nothing is."""
        return self.show().get("rekey")

    def move(self, words):
        """Begins a rekey, or goes on with one that has enough left to do; how many
        bytes were moved before."""
        state = self.state()
        if state and state["done"] > 0.4 * state["size"]:
            self.finish()
            state = None
        self.rekey("--resume" if state else "--start", *words)
        self.wait(lambda state: state and state["state"] == "moving")
        return state["done"] if state else 0

    def pause(self):
        if self.state():
            self.rekey("--pause")
            self.wait(lambda state: not state or state["state"] == "paused")

    def finish(self):
        """Lets the rekey that is under way go to its end."""
        if self.state():
            self.rekey("--resume", "--limit", "0")
            self.wait(lambda state: not state)

    def wait(self, fits, seconds=600):
        deadline = time.monotonic() + seconds
        while not fits(self.state()):
            if time.monotonic() > deadline:
                raise Problem(f"the rekey does not get on: {self.state()}\n{self.daemon.said()}")
            time.sleep(0.02)


class Moved:
    """What a rekey moves in the time of a measurement, all through which it has
    to run. It is at rest before and after it, when what is said of it is exact."""

    def __init__(self, disk, words):
        self.disk = disk
        self.before, self.began = disk.move(words), time.monotonic()

    def end(self):
        """Bytes per second."""
        self.disk.pause()
        seconds, state = time.monotonic() - self.began, self.disk.state()
        if not state:
            raise Problem("the rekey ended during a measurement: use a larger --size")
        return (state["done"] - self.before) / seconds


def copy(source, target):
    """Copies a file past the page cache; how many seconds it takes."""
    memory = mmap.mmap(-1, CHUNK)
    began = time.monotonic()
    flags = os.O_RDONLY | os.O_DIRECT
    reader = os.open(source, flags)
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    try:
        while length := os.readv(reader, [memory]):
            os.write(writer, memoryview(memory)[:length])
        os.fdatasync(writer)
    finally:
        os.close(reader)
        os.close(writer)
    return time.monotonic() - began


def whole(options, disk):
    """Bytes per second of whole rekeys, and of a copy."""
    disk.finish()
    rates = {}
    target = disk.image.with_suffix(".copy")
    try:
        rates["copy"] = options.size / copy(disk.image, target)
    finally:
        target.unlink(missing_ok=True)
    began = time.monotonic()
    disk.rekey("--start", "--limit", "0")
    disk.wait(lambda state: not state)
    rates["served, nobody uses it"] = options.size / (time.monotonic() - began)
    disk.detach()
    began = time.monotonic()
    disk.daemon.sealblk("volume", "rekey", disk.image)
    rates["not served"] = options.size / (time.monotonic() - began)
    disk.attach()
    return rates
