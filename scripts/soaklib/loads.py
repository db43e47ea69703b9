"""Who uses the disks: front ends without a guest, and real guests. Each judges all
that it reads, and ends when a disk does what it may not."""

import json
import os
import signal
import subprocess
import threading

from benchlib.common import ROOT
from soaklib.qmp import Qmp
from soaklib.site import PATIENCE, Wrong


class FrontEnd:
    """tests/support/soak_load.rs: it knows for each sector what may be read there."""

    kind = "front end"

    def __init__(self, program, disk, seed, sparse=8):
        self.disk = disk
        self.size = disk.size
        self.log = disk.site.shared / f"{disk.short}.load.log"
        self.words = [str(program), "--socket", str(disk.socket), "--size", str(disk.size)]
        self.words += ["--seed", str(seed), "--sparse", str(sparse)]
        self.process = None
        self.answered = 0
        self.longest = 0
        self.is_away = False

    def start(self):
        with self.log.open("w") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.hear("start")

    def hear(self, what):
        # Whoever holds the load up, it answers: all its own waiting has an end.
        timer = threading.Timer(4 * PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.process.wait()
            raise Wrong(f"the front end of {self.disk.short} ended at '{what}': {self.said()}")
        return json.loads(line)

    def tell(self, what):
        """What it has seen since it was last asked."""
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        seen = self.hear(what)
        self.answered = seen["answered"]
        self.longest = max(self.longest, seen["longest_ms"])
        return seen

    def said(self):
        return self.log.read_text(errors="replace")[-2000:].strip()

    def check(self):
        if self.process.poll() is not None:
            raise Wrong(f"the front end of {self.disk.short} ended: {self.said()}")

    def moves(self):
        """Whether more was answered than when it was asked last."""
        before = self.answered
        return self.tell("report")["answered"] > before

    def leave(self):
        self.tell("leave")
        self.is_away = True

    def enter(self):
        self.tell("enter")
        self.is_away = False

    def larger(self, size):
        """The disk has that size now: what is new of it is used, too."""
        if size > self.size and not self.is_away:
            self.tell(f"grow {size}")
            self.size = size

    def finish(self):
        """Judges all of the disk."""
        return self.tell("finish")["answered"]

    def end(self):
        if self.process is not None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Guest:
    """qemu/run-guest with the job qemu/jobs/soak: fio writes and verifies for a time."""

    kind = "guest"

    def __init__(self, disk, seconds, socket=None, label=None):
        self.disk = disk
        self.seconds = seconds
        shared = disk.site.shared
        name = disk.short if label is None else f"{disk.short}-{label}"
        self.results = shared / f"{name}.guest"
        self.qmp = shared / f"{name}.qmp"
        # Where a guest comes from another host.
        self.incoming = None if label is None else shared / f"{name}.in"
        self.words = [
            str(ROOT / "qemu/run-guest"), "--job", str(ROOT / "qemu/jobs/soak"),
            "--socket", str(socket or disk.socket), "--queues", "2", "--reconnect",
            "--env", f"SECONDS={int(seconds) + 5}", "--timeout", str(int(seconds * 2 + 600)),
            "--memory", "384", "--results", str(self.results), "--no-build", "--quiet",
            "--qmp", str(self.qmp),
        ]
        if self.incoming is not None:
            self.words += ["--", "-incoming", f"unix:{self.incoming}"]
        self.process = None
        self.answered = 0

    def elsewhere(self, socket, label):
        """QEMU on another host, for the same guest."""
        return Guest(self.disk, self.seconds, socket, label)

    def monitor(self):
        return Qmp(self.qmp)

    def left(self):
        """QEMU has ended without its guest, as it was told."""
        self.process.wait(timeout=PATIENCE)

    def start(self):
        with self.results.with_suffix(".log").open("w") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def console(self):
        path = self.results / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def said(self):
        log = self.results.with_suffix(".log").read_text(errors="replace")
        return f"{log[-2000:]}\n{self.console()[-2000:]}"

    def check(self):
        status = self.process.poll()
        if status not in (None, 0):
            raise Wrong(f"the guest on {self.disk.short} ended with {status}: {self.said()}")

    def is_over(self):
        return self.process.poll() is not None

    def has_begun(self):
        self.check()
        return "round 1 begins" in self.console()

    def moves(self):
        """Whether more was answered than when it was asked last, as far as the manager
        knows."""
        self.check()
        before, self.answered = self.answered, self.disk.answered()
        return self.answered > before or self.is_over()

    def larger(self, _size):
        pass

    def finish(self):
        """Waits for its end; what it said last."""
        try:
            self.process.wait(timeout=PATIENCE * 4)
        except subprocess.TimeoutExpired:
            raise Wrong(f"the guest on {self.disk.short} does not end: {self.said()}") from None
        self.check()
        output = (self.results / "output").read_text(errors="replace").strip().splitlines()
        return output[-1].split("] ", 1)[-1]

    def end(self):
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
            self.process.wait()
