"""Cores that all who burn on them share: processor sharing, as a system's scheduler comes near it.

Each gets an equal part of the cores, but at most its width; what those leave who are narrower than
their part is the others'. So all of one width burn at the same rate, and of each width one clock
tells how much everybody of it has burnt: who began at B and wants w is through when it says B + w.
To begin, to leave and to be through cost the logarithm of how many there are.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf


@dataclass(slots=True, eq=False)
class Burn:
    """A command's CPU seconds, from when it begins."""

    width: int
    """Cores that it can use at most."""
    until_s: float
    """What its width's clock then says."""
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Width:
    count: int = 0
    rate: float = 0.0
    """Cores that each of them has."""
    clock_s: float = 0.0
    """CPU seconds that one has burnt who was there from the start."""
    ends: list[tuple[float, int, Burn]] = field(default_factory=list)
    """A heap; who has left stays in it until it is first."""


class SharedCores:
    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._widths: dict[int, _Width] = {}
        self._seen_s = 0.0
        self._begun = 0

    def begin(self, width: int, cpu_s: float, now_s: float) -> Burn:
        self._go_to(now_s)
        if width not in self._widths:
            self._widths[width] = _Width()
            self._widths = dict(sorted(self._widths.items()))
        own = self._widths[width]
        burn = Burn(width, own.clock_s + cpu_s)
        own.count += 1
        self._begun += 1
        heappush(own.ends, (burn.until_s, self._begun, burn))
        self._divide()
        return burn

    def leave(self, burn: Burn, now_s: float) -> float:
        """CPU seconds that it had still to burn. Not of one that is through."""
        self._go_to(now_s)
        own = self._widths[burn.width]
        burn.is_over = True
        own.count -= 1
        self._divide()
        return max(0.0, burn.until_s - own.clock_s)

    @property
    def next_s(self) -> float:
        """When the next one is through if nobody comes or leaves; inf: nobody burns."""
        return min((self._end_s(own) for own in self._widths.values()), default=inf)

    def take(self, now_s: float) -> Burn:
        """The one that is through at `next_s`."""
        own = min(self._widths.values(), key=self._end_s)
        self._go_to(now_s)
        until_s, _, burn = heappop(own.ends)
        own.clock_s = until_s
        burn.is_over = True
        own.count -= 1
        self._divide()
        return burn

    def _end_s(self, own: _Width) -> float:
        while own.ends and own.ends[0][2].is_over:
            heappop(own.ends)
        if not own.ends:
            return inf
        return self._seen_s + max(0.0, own.ends[0][0] - own.clock_s) / own.rate

    def _go_to(self, now_s: float) -> None:
        for own in self._widths.values():
            own.clock_s += own.rate * (now_s - self._seen_s)
        self._seen_s = now_s

    def _divide(self) -> None:
        cores, many = float(self._cores), sum(own.count for own in self._widths.values())
        for width, own in self._widths.items():  # the narrowest first
            own.rate = min(float(width), cores / many) if many else 0.0
            cores -= own.count * own.rate
            many -= own.count
