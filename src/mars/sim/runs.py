"""Cached KV blocks as runs: neighbours in one context that are referenced, freed and evicted alike.

What mars.sim.kv keeps as one count per session has to be several where a model has two KV groups:
a call finds less than is cached (mars.sim.windows), computes the rest anew, and both copies stay
until they are evicted. vLLM finds the one that was hashed first (v1/core/block_pool.py).
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from mars.sim.kv import Chain, Prefix


@dataclass(slots=True, eq=False)
class Run:
    """Hashed blocks `low` to `high` (not included) of a context, in one KV group."""

    owner: Chain | Prefix | None
    copies: "list[Run]"
    """All runs of this owner and group, in the order in which they were hashed."""
    low: int
    high: int
    references: int = 1
    """Calls and holds. 0: it is free, and in the LRU queue."""
    rest: "Run | None" = None
    """What a split has taken off its end."""
    before: "Run | None" = None
    after: "Run | None" = None
    """Neighbours in the LRU queue."""


@dataclass(slots=True)
class Share:
    """Blocks that one call or hold references, up to `high`: `run`, and what was split off it."""

    run: Run
    high: int

    def __iter__(self) -> Iterator[Run]:
        run = self.run
        yield run
        while run.high < self.high:
            assert run.rest is not None, "a share with a hole"  # noqa: S101
            run = run.rest
            yield run


@dataclass(slots=True, eq=False)
class Contents:
    """The runs of one owner."""

    whole: list[Run] = field(default_factory=list)
    """In the group that sees everything."""
    window: list[Run] = field(default_factory=list)
    """In the group that sees a window."""


class RunQueue:
    """The LRU queue of free runs: the first is evicted first, each from its end."""

    def __init__(self) -> None:
        self._ends = Run(None, [], 0, 0)
        self._ends.before = self._ends.after = self._ends
        self.blocks = 0

    def __iter__(self) -> Iterator[Run]:
        run = self._ends.after
        while run is not None and run is not self._ends:
            yield run
            run = run.after

    def remove(self, run: Run) -> None:
        self.blocks -= run.high - run.low
        before, after = run.before, run.after
        assert before is not None and after is not None, "not in the queue"  # noqa: S101, PT018
        before.after, after.before = after, before
        run.before = run.after = None

    def split(self, run: Run, at: int) -> Run:
        """Make two of a run; returns its end, which is evicted first."""
        rest = Run(run.owner, run.copies, at, run.high, run.references, run.rest)
        run.high, run.rest = at, rest
        run.copies.insert(run.copies.index(run) + 1, rest)
        if run.references == 0:
            self._insert(rest, run)
        return rest

    def evict(self, blocks: int) -> list[Chain | Prefix]:
        """Whose runs they were."""
        owners: list[Chain | Prefix] = []
        self.blocks -= blocks
        while blocks:
            run = next(iter(self))
            gone = min(blocks, run.high - run.low)
            blocks -= gone
            run.high -= gone
            if run.owner is not None:
                owners.append(run.owner)
            if run.high == run.low:
                self.remove(run)
                run.copies.remove(run)
        return owners

    def reference(self, run: Run) -> int:
        """One more has it; returns how many free blocks that takes."""
        taken = 0
        if run.references == 0:
            self.remove(run)
            taken = run.high - run.low
        run.references += 1
        return taken

    def release(self, run: Run) -> int:
        """One less has it; returns how many blocks that frees."""
        run.references -= 1
        if run.references:
            return 0
        blocks, last = run.high - run.low, self._ends.before
        self.blocks += blocks
        assert last is not None, "not in the queue"  # noqa: S101
        if last.copies is not run.copies or last.low != run.high or not self._joined(run, last):
            self._insert(run, self._ends)
        return blocks

    @staticmethod
    def _joined(run: Run, last: Run) -> bool:
        """Make one of a run and the one that goes on where it ends and has been freed just before,
        unless another copy of the one that was hashed later stands between them.
        """
        copies = run.copies
        one, other = sorted((copies.index(run), copies.index(last)))
        later = copies[other]
        if any(c.low < later.high and later.low < c.high for c in copies[one + 1 : other]):
            return False
        del copies[other]
        copies[one] = last
        last.low = run.low
        return True

    def found(self, copies: list[Run], low: int, high: int) -> list[Run]:
        """The runs that a call finds from `low` to `high`, all of which are cached: of several
        copies the first. Runs are split to fit.
        """
        ahead = [
            (run.low, order, run)
            for order, run in enumerate(copies)
            if run.low < high and low < run.high
        ]
        if len(ahead) == 1:
            return [self._cut(ahead[0][2], low, high)]
        ahead.sort()
        found: list[Run] = []
        here: list[tuple[int, Run]] = []
        """Those that have `low`, the first hashed on top."""
        seen = 0
        while low < high:
            while seen < len(ahead) and ahead[seen][0] <= low:
                heapq.heappush(here, ahead[seen][1:])
                seen += 1
            while here[0][1].high <= low:
                heapq.heappop(here)
            order, run = heapq.heappop(here)
            earlier = (start for start, other, _ in ahead[seen:] if other < order)
            end = min(high, run.high, next(earlier, high))
            if run.low < low:
                run = self.split(run, low)
            if run.high > end:
                heapq.heappush(here, (order, self.split(run, end)))
            found.append(run)
            low = end
        return found

    def _cut(self, run: Run, low: int, high: int) -> Run:
        if run.low < low:
            run = self.split(run, low)
        if run.high > high:
            self.split(run, high)
        return run

    @staticmethod
    def _insert(run: Run, after: Run) -> None:
        before = after.before
        assert before is not None, "not in the queue"  # noqa: S101
        run.before, run.after = before, after
        before.after = after.before = run


def reach(copies: list[Run], low: int) -> int:
    """How far all is cached from `low` on."""
    moved = True
    while moved:
        moved = False
        for run in copies:
            if run.low <= low < run.high:
                low, moved = run.high, True
    return low


def covered(copies: list[Run]) -> list[tuple[int, int]]:
    """What is cached, as (low, high) in order."""
    parts: list[tuple[int, int]] = []
    for low, high in sorted((run.low, run.high) for run in copies):
        if parts and low <= parts[-1][1]:
            parts[-1] = parts[-1][0], max(high, parts[-1][1])
        else:
            parts.append((low, high))
    return parts
