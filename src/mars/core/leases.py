"""Which tool call gets which cores.

A lease is a number of cores, and of bytes of memory if that is limited, for as long as a command's
process tree lives. Where `share` is 1 it names cores, and nobody else has them meanwhile. Where it
is more there are so many leases for each core, and all of them are for all cores: one that is idle
is anybody's, and the system's scheduler finds it (docs/adr/0027).

Who goes first is the `rank`'s to say; by default, who asked first. Whoever is first and does not
fit is not overtaken by those behind it, so a call for many cores is not starved by calls for few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mars.core.decisions import Grant
from mars.core.errors import InputError
from mars.core.ids import ToolId

LEASES_A_CORE: Final = 8
"""`share` where nobody says. Commands of agents mostly wait: cores that take one lease at a time
stand idle while others queue for them. More than eight cost the tail what they win of the mean
(docs/adr/0022, 0027)."""


@dataclass(frozen=True, slots=True)
class _Lease:
    cores: int
    memory_bytes: int
    own: tuple[int, ...] = ()
    """CPU numbers that nobody else has; of shared ones none."""


@dataclass(slots=True)
class LeaseBook:
    cores: Sequence[int]
    """CPU numbers that may be lent."""
    share: int = 1
    memory_bytes: int | None = None
    """For all leases together; None: not limited."""
    rank: Callable[[ToolId], tuple[float, ...]] | None = None
    """Ascending; asked when there is a core for one of several calls. None: who asked first."""
    _queue: dict[ToolId, _Lease] = field(default_factory=dict)
    _leases: dict[ToolId, _Lease] = field(default_factory=dict)
    _own: set[int] = field(default_factory=set)
    _used: int = 0
    _used_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.cores:
            raise InputError("no cores to lend: give the tool server at least one")
        if self.share < 1:
            raise InputError(f"a core cannot be shared by {self.share} leases: give at least 1")

    @property
    def running(self) -> int:
        return len(self._leases)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def slots(self) -> int:
        return len(self.cores) * self.share

    def ask(self, tool_id: ToolId, cores: int, memory_bytes: int = 0) -> list[Grant]:
        """Queue a tool call. Raises InputError as `check_ask` does."""
        self.check_ask(tool_id, cores, memory_bytes)
        self._queue[tool_id] = _Lease(cores, memory_bytes)
        return self._grant()

    def check_ask(self, tool_id: ToolId, cores: int, memory_bytes: int = 0) -> None:
        """Raise InputError when it could never be granted; else change nothing."""
        if not 1 <= cores <= len(self.cores):
            raise InputError(
                f"a tool asked for {cores} cores; this server lends {len(self.cores)} at most"
            )
        if self.memory_bytes is not None and memory_bytes > self.memory_bytes:
            raise InputError(
                f"a tool asked for {memory_bytes} bytes; this server lends {self.memory_bytes}"
            )
        if tool_id in self._leases or tool_id in self._queue:
            raise InputError(f"tool call {tool_id} is already known")

    def give_back(self, tool_id: ToolId) -> list[Grant]:
        """End a lease or leave the queue; an id that is not known is no error (cancels race)."""
        if lease := self._leases.pop(tool_id, None):
            self._used -= lease.cores
            self._used_bytes -= lease.memory_bytes
            self._own.difference_update(lease.own)
        self._queue.pop(tool_id, None)
        return self._grant()

    def _grant(self) -> list[Grant]:
        grants: list[Grant] = []
        while self._queue and self._used < self.slots:
            tool_id = self._first()
            asked = self._queue[tool_id]
            if not self._fits(asked):
                break
            del self._queue[tool_id]
            self._used += asked.cores
            self._used_bytes += asked.memory_bytes
            own = self._take(asked.cores) if self.share == 1 else ()
            self._leases[tool_id] = _Lease(asked.cores, asked.memory_bytes, own)
            grants.append(Grant(tool_id=tool_id, cores=own or tuple(self.cores)))
        return grants

    def _first(self) -> ToolId:
        if self.rank is None or len(self._queue) == 1:
            return next(iter(self._queue))
        return min(self._queue, key=self.rank)

    def _fits(self, asked: _Lease) -> bool:
        used_bytes = self._used_bytes + asked.memory_bytes
        return self._used + asked.cores <= self.slots and (
            self.memory_bytes is None or used_bytes <= self.memory_bytes
        )

    def _take(self, cores: int) -> tuple[int, ...]:
        own = tuple(sorted({*self.cores} - self._own)[:cores])
        self._own.update(own)
        return own

    def check(self) -> None:
        """Raise AssertionError when the book does not add up (tests call it after every event)."""
        leases = self._leases.values()
        own = [core for lease in leases for core in lease.own]
        used_bytes = sum(lease.memory_bytes for lease in leases)
        assert sum(lease.cores for lease in leases) == self._used, "no lease names what is used"  # noqa: S101
        assert used_bytes == self._used_bytes, "memory is lent that no lease names"  # noqa: S101
        assert self._used <= self.slots, "more is lent than there is"  # noqa: S101
        assert {*own} == self._own, "a core is lent that no lease names"  # noqa: S101
        assert len({*own}) == len(own), "a core is lent twice"  # noqa: S101
