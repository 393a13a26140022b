"""What the tool server lends, and for how long."""

import os
from typing import Annotated

import msgspec

from mars.core.errors import InputError


class ToolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cores: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    """CPU numbers to lend. Empty: all but the first, which is left to the server and the engine."""
    share: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Leases that may be on one core at once."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] = 600.0
    """Longest run of a command that does not name its own."""
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0
    """Between SIGTERM and SIGKILL, when a process tree has to end."""
    output_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 1 << 20
    """Kept of each of a command's two streams; the rest is read, dropped and counted."""


def lendable(settings: ToolSettings) -> tuple[int, ...]:
    """The CPU numbers to lend, in order.

    Raises InputError when one is named that this process may not run on.
    """
    usable = sorted(os.sched_getaffinity(0))
    if not settings.cores:
        return tuple(usable[1:] or usable)
    for core in settings.cores:
        if core not in usable:
            raise InputError(
                f"tools.cores names core {core}; this process may run on"
                f" {', '.join(map(str, usable))}"
            )
    return tuple(sorted(set(settings.cores)))
