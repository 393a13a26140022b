"""How a call that runs is doing, told while it runs: after 1, 2, 4, 8, ... seconds.

Doubling bounds the facts of a call by the logarithm of its time, and the last one is of half of it
at least. The reading walks processes, of which there may be many: it has a thread of its own, and
the loop goes on.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from mars.tools import processes
from mars.tools.group import Group

_FIRST_S: Final = 1.0


class Using(NamedTuple):
    cpu_s: float
    """So far, with that of who has ended, as far as it can be known."""
    memory_bytes: int
    """Now."""


async def tell_progress(
    started_s: float, read: Callable[[], Using], tell: Callable[[float, Using], None]
) -> None:
    """Until cancelled; after that nothing is told. `tell` gets the present time.

    CPU time never falls: whoever has ended and was waited for by nobody of the call is lost from
    sight, not from what it has taken.
    """
    due_s, cpu_s = started_s + _FIRST_S, 0.0
    while True:
        await asyncio.sleep(due_s - time.monotonic())
        using = await asyncio.to_thread(read)
        cpu_s = max(cpu_s, using.cpu_s)
        tell(time.monotonic(), Using(cpu_s, using.memory_bytes))
        due_s += due_s - started_s


def of_command(runner: int, group: Group | None) -> Using:
    """By its control group, as far as there is one that counts, else by the tree of its runner."""
    counted = Using(group.used().cpu_s, group.memory_in_use()) if group else Using(0.0, 0)
    return Using(
        cpu_s=counted.cpu_s or processes.cpu_s_below(runner),
        memory_bytes=counted.memory_bytes or processes.memory_bytes_below(runner),
    )
