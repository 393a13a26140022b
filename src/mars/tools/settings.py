"""What the tool server lends, and for how long."""

import os
from typing import Annotated

import msgspec

from mars.core.errors import InputError
from mars.core.leases import LEASES_A_CORE


class ToolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cores: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    """CPU numbers to lend. Empty: the last of those that affinity and CPU quota leave to this
    process, without `kept_cores`."""
    kept_cores: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Never lent: for gateway, engine and tool server. One at least is lent all the same."""
    share: Annotated[int, msgspec.Meta(ge=1, le=64)] = LEASES_A_CORE
    """Leases for each core. 1: a command has its cores to itself; more: all share all of them, in
    equal parts."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] = 600.0
    """Longest run of a command that does not name its own."""
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0
    """Between SIGTERM and SIGKILL, when a process tree has to end."""
    output_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 1 << 20
    """Kept of each of a command's two streams, half from its start and half from its end; what is
    between is read, dropped and counted."""
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Lent to all commands together; None: not limited."""
    command_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of a command that does not name its own; 0: it is asked for none and has no limit."""
    processes: Annotated[int, msgspec.Meta(ge=1, le=4_194_304)] = 4096
    """Most processes and threads of a command, where a control group can limit them."""
    weight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100
    """CPU time of a command beside a process of somebody else's on its core, which has 100."""
    cgroups: bool = True
    """Use control groups as far as the system allows. Off: affinity and nice only."""
    sandbox: bool = False
    """Put every command into the sandbox, not only those that ask for it."""


def lendable(settings: ToolSettings, quota_cores: float | None) -> tuple[int, ...]:
    """The CPU numbers to lend, in order. `quota_cores`: CPU time that this process may use.

    Raises InputError when one is named that this process may not run on.
    """
    usable = sorted(os.sched_getaffinity(0))
    if not settings.cores:
        worth = len(usable) if quota_cores is None else min(len(usable), int(quota_cores))
        return tuple(usable[-max(1, worth - settings.kept_cores) :])
    for core in settings.cores:
        if core not in usable:
            raise InputError(
                f"tools.cores names core {core}; this process may run on"
                f" {', '.join(map(str, usable))}"
            )
    return tuple(sorted(set(settings.cores)))
