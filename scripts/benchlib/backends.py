"""The servers that are compared, and the bare file."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from benchlib.common import START_SECONDS, Problem, load, note, run

# Servers that are measured where somebody names a command for them. They are
# not packaged, and each needs preparations of its own.
PEERS = {"spdk": "SEALBLK_BENCH_SPDK", "ubiblk": "SEALBLK_BENCH_UBIBLK"}


class Backend:
    """Something that jobs are run on; `bare` has no server."""

    name = "bare"
    process = None

    def __init__(self, options, directory, name=None):
        self.options = options
        self.directory = directory
        self.name = name or self.name
        self.plain = directory / "plain.img"
        self.socket = directory / f"{self.name}.sock"
        self.log = directory / f"{self.name}.log"

    def target(self):
        """How the load generator finds it."""
        return ["--file", self.plain]

    def pids(self):
        """The processes of its server."""
        return []

    def prepare(self):
        """Makes its files; the plain one is shared and there already."""

    def start(self):
        """Starts its server, if it has one."""

    def kill(self):
        """Ends the server at once, if it runs, and says nothing."""

    def stop(self):
        """Ends the server. A server that fails in that is a failure too."""


class Served(Backend):
    """A backend with a server process."""

    def command(self):
        raise NotImplementedError

    def environment(self):
        return None

    def target(self):
        return ["--socket", self.socket, "--server-pid", self.process.pid]

    def pids(self):
        return [self.process.pid]

    def start(self):
        cpus = set(self.options.server_cpu)
        with self.log.open("w") as log:
            try:
                # pylint: disable=subprocess-popen-preexec-fn
                self.process = subprocess.Popen(
                    [str(word) for word in self.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    preexec_fn=lambda: os.sched_setaffinity(0, cpus),
                )
            except FileNotFoundError:
                raise Problem(f"{self.command()[0]} is not installed") from None
        deadline = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None:
                raise Problem(f"{self.name} did not start\n{self.said()}")
            if time.monotonic() > deadline:
                raise Problem(f"{self.name} made no socket\n{self.said()}")
            time.sleep(0.01)

    def stop(self):
        if self.process is None:
            return
        process, self.process = self.process, None
        died = process.poll()
        if died is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Problem(f"{self.name} did not end on SIGTERM\n{self.said()}") from None
        elif sys.exc_info()[0] is None:
            raise Problem(f"{self.name} died with {died}\n{self.said()}")

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def fill(self):
        """Writes the whole disk through the server."""
        load(self.options, ["--fill", *self.target()])

    def fill_once(self):
        """The same, with a server for that alone."""
        self.start()
        self.fill()
        self.stop()
        self.socket.unlink(missing_ok=True)


class Qemu(Served):
    """qemu-storage-daemon on a plain file."""

    name = "qsd-raw"

    def file_node(self, path):
        return (
            f"driver=file,node-name=file,filename={path},"
            f"cache.direct=on,aio={self.options.qsd_aio},discard=unmap"
        )

    def nodes(self):
        return ["--blockdev", self.file_node(self.plain)], "file"

    def command(self):
        nodes, top = self.nodes()
        export = (
            f"type=vhost-user-blk,id=export,node-name={top},addr.type=unix,"
            f"addr.path={self.socket},writable=on,num-queues={max(self.options.queues)}"
        )
        return ["qemu-storage-daemon", *nodes, "--export", export]


class QemuLuks(Qemu):
    """qemu-storage-daemon with its LUKS driver."""

    name = "qsd-luks"

    def secret(self):
        return f"secret,id=key,file={self.directory / 'passphrase'}"

    def image(self):
        return self.directory / f"{self.name}.luks"

    def create(self):
        """Makes the image."""
        (self.directory / "passphrase").write_text("benchmark")
        cipher = "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256"
        run(
            ["qemu-img", "create", "-q", "-f", "luks", "--object", self.secret()]
            + ["-o", f"key-secret=key,{cipher},iter-time=10"]
            + [self.image(), self.options.size]
        )

    def prepare(self):
        self.create()
        self.fill_once()

    def nodes(self):
        file_node = ["--object", self.secret(), "--blockdev", self.file_node(self.image())]
        luks = "driver=luks,node-name=luks,file=file,key-secret=key"
        return [*file_node, "--blockdev", luks], "luks"


class Sealblk(Served):
    """sealblk on a volume of its own."""

    name = "sealblk"

    def sealblk(self, *words):
        key = ["--key-file", self.directory / "sealblk.key"]
        return [self.options.sealblk, *key, *words]

    def image(self):
        return self.directory / "sealblk.img"

    def prepare(self):
        run([self.options.sealblk, "key", "init", "--key-file", self.directory / "sealblk.key"])
        size = ["--size", self.options.size, "--sector-size", self.options.sector_size]
        run(self.sealblk("volume", "create", *size, self.image()))
        self.fill_once()

    def command(self):
        queues = ["--queues", max(self.options.queues)]
        words = ["serve", self.image(), "--socket", self.socket, *queues]
        return self.sealblk(*words, *self.options.sealblk_flags)


class Named(Served):
    """A server that somebody else's command starts, in the foreground, with
    files of its own in $DIR."""

    def __init__(self, options, directory, name, command):
        super().__init__(options, directory, name)
        self.directory = directory / name
        self.text = command

    def command(self):
        return ["/bin/sh", "-c", self.text]

    def environment(self):
        return os.environ | {
            "DIR": str(self.directory),
            "SOCKET": str(self.socket),
            "SIZE": str(self.options.size),
            "SIZE_MIB": str(self.options.size >> 20),
            "QUEUES": str(max(self.options.queues)),
            "CPU": ",".join(str(cpu) for cpu in self.options.server_cpu),
        }

    def prepare(self):
        self.directory.mkdir()
        self.fill_once()


OWN = {backend.name: backend for backend in (Backend, Sealblk, QemuLuks, Qemu)}


def commands(options):
    """The commands of other servers, by name."""
    found = {}
    for name, variable in PEERS.items():
        if os.environ.get(variable):
            found[name] = os.environ[variable]
    for text in options.backend:
        name, _, command = text.partition("=")
        if not re.fullmatch("[a-z0-9-]+", name) or not command or name in OWN:
            raise Problem(f"--backend wants NAME=COMMAND with a new name, not {text!r}")
        found[name] = command
    return found


def make(name, options, directory):
    """The backend of that name."""
    if name in OWN:
        return OWN[name](options, directory)
    return Named(options, directory, name, commands(options)[name])


def choose(options):
    """The names of all that are there, unless they were named: then they must
    be."""
    others = commands(options)
    if options.only:
        for name in options.only:
            if name not in OWN and name not in others:
                raise Problem(f"{name!r} is none of {', '.join([*OWN, *others])}")
        return options.only
    chosen = ["bare"]
    # A sealblk that cannot tell its version is one that is not built yet.
    if options.sealblk.exists() and "sealblk" in run([options.sealblk, "--version"]):
        chosen.append("sealblk")
    else:
        note(f"{options.sealblk} is not there: without sealblk")
    if shutil.which("qemu-storage-daemon"):
        chosen += ["qsd-luks", "qsd-raw"]
    else:
        note("qemu-storage-daemon is not installed (Debian: qemu-utils): without it")
    for name, variable in PEERS.items():
        if name not in others:
            note(f"without {name}: {variable} names no command that starts it")
    return [*chosen, *others]
