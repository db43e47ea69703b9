"""All kinds of events: to import them is to register them."""

from soaklib import (  # noqa: F401
    on_disks,
    on_faults,
    on_keys,
    on_moves,
    on_processes,
    on_upgrades,
    on_visitors,
)
from soaklib.kinds import KINDS, NotNow, able  # noqa: F401
