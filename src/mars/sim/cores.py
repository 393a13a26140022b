"""Cores that all who burn on them share, in proportion to the cores that each of them asked for.

While those are no more than there are, everybody has them; else everybody has the same part of
them. So one clock tells how far everybody is: it goes as fast as those with all their cores do, and
who begins at B with s CPU seconds on w cores is through when it says B + s / w.
To begin, to leave and to be through cost the logarithm of how many there are.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf


@dataclass(slots=True, eq=False)
class Burn:
    """A command's CPU seconds, from when it begins."""

    cores: int
    until_s: float
    """What the clock then says."""
    is_over: bool = False


class SharedCores:
    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._asked = 0
        """Cores, by all who burn."""
        self._clock_s = self._seen_s = 0.0
        self._ends: list[tuple[float, int, Burn]] = []
        """A heap; who has left stays in it until it is first."""
        self._begun = 0

    def begin(self, cores: int, cpu_s: float, now_s: float) -> Burn:
        self._go_to(now_s)
        burn = Burn(cores, self._clock_s + cpu_s / cores)
        self._asked += cores
        self._begun += 1
        heappush(self._ends, (burn.until_s, self._begun, burn))
        return burn

    def leave(self, burn: Burn, now_s: float) -> float:
        """CPU seconds that it had still to burn. Not of one that is through."""
        self._go_to(now_s)
        self._end(burn)
        return max(0.0, burn.until_s - self._clock_s) * burn.cores

    @property
    def next_s(self) -> float:
        """When the next one is through if nobody comes or leaves; inf: nobody burns."""
        while self._ends and self._ends[0][2].is_over:
            heappop(self._ends)
        if not self._ends:
            return inf
        return self._seen_s + max(0.0, self._ends[0][0] - self._clock_s) / self._rate

    def take(self, now_s: float) -> Burn:
        """The one that is through at `next_s`, which is now."""
        self._go_to(now_s)
        self._clock_s, _, burn = heappop(self._ends)
        self._end(burn)
        return burn

    @property
    def _rate(self) -> float:
        return min(1.0, self._cores / self._asked) if self._asked else 0.0

    def _go_to(self, now_s: float) -> None:
        self._clock_s += self._rate * (now_s - self._seen_s)
        self._seen_s = now_s

    def _end(self, burn: Burn) -> None:
        burn.is_over = True
        self._asked -= burn.cores
