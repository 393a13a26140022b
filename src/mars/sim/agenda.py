"""Simulated time: a heap of what will happen.

Ties go by the order in which they were asked for, so a run is a function of its inputs.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf


@dataclass(slots=True)
class Agenda:
    now_s: float = 0.0
    _due: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _order: int = 0

    def at(self, when_s: float, do: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (when_s, self._order, do))

    @property
    def next_s(self) -> float:
        return self._due[0][0] if self._due else inf

    def take(self) -> None:
        self.now_s, _, do = heapq.heappop(self._due)
        do(self.now_s)
