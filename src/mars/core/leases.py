"""Which tool call gets which cores.

A lease is a number of whole cores for as long as a command's process tree lives. `share` leases may
be on a core at once (1: a core belongs to one command). First come, first served; a tool call that
does not fit is not overtaken, so a call for many cores cannot starve.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mars.core.decisions import Grant
from mars.core.errors import InputError
from mars.core.ids import ToolId


@dataclass(slots=True)
class LeaseBook:
    cores: Sequence[int]
    """CPU numbers that may be lent."""
    share: int = 1
    _load: dict[int, int] = field(default_factory=dict)
    _queue: deque[tuple[ToolId, int]] = field(default_factory=deque)
    _leases: dict[ToolId, tuple[int, ...]] = field(default_factory=dict)

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

    def ask(self, tool_id: ToolId, cores: int) -> list[Grant]:
        """Queue a tool call. Raises InputError when it could never be granted."""
        if not 1 <= cores <= len(self._load):
            raise InputError(
                f"a tool asked for {cores} cores; this server lends {len(self._load)} at most"
            )
        if tool_id in self._leases or any(tool_id == waiting for waiting, _ in self._queue):
            raise InputError(f"tool call {tool_id} is already known")
        self._queue.append((tool_id, cores))
        return self._grant()

    def give_back(self, tool_id: ToolId) -> list[Grant]:
        """End a lease or leave the queue; an id that is not known is no error (cancels race)."""
        for core in self._leases.pop(tool_id, ()):
            self._load[core] -= 1
        self._queue = deque(item for item in self._queue if item[0] != tool_id)
        return self._grant()

    def _grant(self) -> list[Grant]:
        grants: list[Grant] = []
        while self._queue:
            tool_id, cores = self._queue[0]
            free = sorted(
                (core for core, load in self._load.items() if load < self.share),
                key=lambda core: (self._load[core], core),
            )
            if len(free) < cores:
                break
            self._queue.popleft()
            lent = tuple(sorted(free[:cores]))
            for core in lent:
                self._load[core] += 1
            self._leases[tool_id] = lent
            grants.append(Grant(tool_id=tool_id, cores=lent))
        return grants

    def check(self) -> None:
        """Raise AssertionError when the book does not add up (tests call it after every event)."""
        lent = dict.fromkeys(self._load, 0)
        for cores in self._leases.values():
            for core in cores:
                lent[core] += 1
        assert lent == self._load, "a core is lent that no lease names"  # noqa: S101
        assert all(load <= self.share for load in lent.values()), "a core is lent twice"  # noqa: S101
