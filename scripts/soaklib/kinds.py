"""Kinds of events, and what they share. An event waits until what it did is done,
and says what it did and what was seen; the run then looks that all is as it has to
be. All that an event draws comes from its own dice."""

import os
import subprocess
from collections import namedtuple

MIB = 1 << 20
KINDS = {}
Kind = namedtuple("Kind", "weight do needs")


class NotNow(Exception):
    """It cannot happen as things are."""


def event(weight, needs=None):
    """Registers the function as a kind of event, so often in comparison. `needs` says
    what it cannot do without: what `able` is asked for."""

    def register(do):
        KINDS[do.__name__.replace("_", "-")] = Kind(weight, do, needs)
        return do

    return register


def pick(dice, disks, why="there is no disk for it"):
    disks = list(disks)
    if not disks:
        raise NotNow(why)
    return dice.choice(disks)


def attached(soak):
    return [disk for disk in soak.disks if not disk.is_out]


def front_ends(soak):
    return [disk for disk in attached(soak) if disk.load.kind == "front end"]


def able(sealblk, kind):
    """Whether this sealblk, and whoever runs it, can do what events of that kind need:
    words for its help, the last of which it has to speak of; or to be root."""
    for words in KINDS[kind].needs or ():
        if words == "root":
            if os.geteuid() != 0:
                return False
            continue
        *command, said = words.split()
        help_ = subprocess.run(
            [str(sealblk), *command, "--help"], capture_output=True, text=True, check=False
        )
        if said not in help_.stdout:
            return False
    return True
