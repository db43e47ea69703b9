"""What the benchmark scripts share: running things, and saying what failed."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 30


class Problem(Exception):
    """Ends the program with a message for the person who runs it."""


def note(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **more):
    """Runs a command; its standard output."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    except FileNotFoundError:
        raise Problem(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise Problem(f"{' '.join(command)}\n  ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def load(options, words, queues=1):
    """Runs the load generator; what it printed, from JSON."""
    cpus = ",".join(str(cpu) for cpu in options.load_cpu)
    return json.loads(run([options.host_load, *words, "--cpus", cpus, "--queues", queues]))


def build(options):
    """Builds what is measured, and what measures, unless told not to."""
    if not options.no_build:
        note("building")
        target = ["--bin", "sealblk", "--example", "host_load"]
        manifest = ["--manifest-path", ROOT / "Cargo.toml"]
        run(["cargo", "build", "--release", *target, *manifest])


def environment():
    """What the numbers depend on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    qemu = shutil.which("qemu-storage-daemon")
    return {
        "kernel": platform.release(),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "qemu": run([qemu, "--version"]).splitlines()[0] if qemu else None,
        "load_average": os.getloadavg()[0],
        "command": " ".join(sys.argv),
    }


def size(text):
    """A number of bytes: 512M, 2G."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    return int(text[:-1]) << shift if shift else int(text)
