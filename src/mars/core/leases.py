"""Which tool call gets which cores.

A lease is a number of whole cores, and of bytes of memory if that is limited, for as long as a
command's process tree lives. `share` leases may be on a core at once (1: a core belongs to one
command).

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
stand idle while others queue for them. More than eight bring nothing (docs/adr/0022)."""


@dataclass(slots=True)
class LeaseBook:
    cores: Sequence[int]
    """CPU numbers that may be lent."""
    share: int = 1
    memory_bytes: int | None = None
    """For all leases together; None: not limited."""
    rank: Callable[[ToolId], tuple[float, ...]] | None = None
    """Ascending; asked when there is a core for one of several calls. None: who asked first."""
    _load: dict[int, int] = field(default_factory=dict)
    _queue: dict[ToolId, tuple[int, int]] = field(default_factory=dict)
    _leases: dict[ToolId, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    _used_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.cores:
            raise InputError("no cores to lend: give the tool server at least one")
        if self.share < 1:
            raise InputError(f"a core cannot be shared by {self.share} leases: give at least 1")
        self._load = dict.fromkeys(self.cores, 0)

    @property
    def running(self) -> int:
        return len(self._leases)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def slots(self) -> int:
        return len(self._load) * self.share

    def ask(self, tool_id: ToolId, cores: int, memory_bytes: int = 0) -> list[Grant]:
        """Queue a tool call. Raises InputError as `check_ask` does."""
        self.check_ask(tool_id, cores, memory_bytes)
        self._queue[tool_id] = (cores, memory_bytes)
        return self._grant()

    def check_ask(self, tool_id: ToolId, cores: int, memory_bytes: int = 0) -> None:
        """Raise InputError when it could never be granted; else change nothing."""
        if not 1 <= cores <= len(self._load):
            raise InputError(
                f"a tool asked for {cores} cores; this server lends {len(self._load)} at most"
            )
        if self.memory_bytes is not None and memory_bytes > self.memory_bytes:
            raise InputError(
                f"a tool asked for {memory_bytes} bytes; this server lends {self.memory_bytes}"
            )
        if tool_id in self._leases or tool_id in self._queue:
            raise InputError(f"tool call {tool_id} is already known")

    def give_back(self, tool_id: ToolId) -> list[Grant]:
        """End a lease or leave the queue; an id that is not known is no error (cancels race)."""
        cores, memory_bytes = self._leases.pop(tool_id, ((), 0))
        for core in cores:
            self._load[core] -= 1
        self._used_bytes -= memory_bytes
        self._queue.pop(tool_id, None)
        return self._grant()

    def _grant(self) -> list[Grant]:
        grants: list[Grant] = []
        while self._queue and (free := self._free()):
            tool_id = self._first()
            cores, memory_bytes = self._queue[tool_id]
            if len(free) < cores or not self._has_memory(memory_bytes):
                break
            del self._queue[tool_id]
            lent = tuple(sorted(free[:cores]))
            for core in lent:
                self._load[core] += 1
            self._used_bytes += memory_bytes
            self._leases[tool_id] = (lent, memory_bytes)
            grants.append(Grant(tool_id=tool_id, cores=lent))
        return grants

    def _first(self) -> ToolId:
        if self.rank is None or len(self._queue) == 1:
            return next(iter(self._queue))
        return min(self._queue, key=self.rank)

    def _free(self) -> list[int]:
        """Cores that take one more lease, the calmest first."""
        free = (core for core, load in self._load.items() if load < self.share)
        return sorted(free, key=lambda core: (self._load[core], core))

    def _has_memory(self, memory_bytes: int) -> bool:
        return self.memory_bytes is None or self._used_bytes + memory_bytes <= self.memory_bytes

    def check(self) -> None:
        """Raise AssertionError when the book does not add up (tests call it after every event)."""
        lent = dict.fromkeys(self._load, 0)
        for cores, _ in self._leases.values():
            for core in cores:
                lent[core] += 1
        assert lent == self._load, "a core is lent that no lease names"  # noqa: S101
        used_bytes = sum(memory for _, memory in self._leases.values())
        assert used_bytes == self._used_bytes, "memory is lent that no lease names"  # noqa: S101
        assert all(load <= self.share for load in lent.values()), "a core is lent twice"  # noqa: S101
