"""What policies learn from the facts of sessions: how long things last, how much is left."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from itertools import accumulate
from math import inf
from typing import Final

_NEWEST: Final = 500


_STALE_FRAC: Final = 0.05
"""So many new values, of all, do not move an optimum far: it is found anew after that."""


class Sample:
    """The newest values of something, sorted; older ones are forgotten, which bounds the work."""

    def __init__(self, newest: int = _NEWEST) -> None:
        self._most = newest
        self._in_order: deque[float] = deque()
        self.sorted: list[float] = []
        self._sums: list[float] | None = None
        self._corners: list[tuple[float, float]] = []
        self._unseen = 0
        """Values that came since the corners were found."""

    def __len__(self) -> int:
        return len(self.sorted)

    def add(self, value: float) -> None:
        if len(self._in_order) == self._most:
            del self.sorted[bisect_left(self.sorted, self._in_order.popleft())]
        self._in_order.append(value)
        insort(self.sorted, value)
        self._sums = None
        self._unseen += 1

    @property
    def sums(self) -> list[float]:
        """sums[i]: of the i least values."""
        if self._sums is None:
            self._sums = [0.0, *accumulate(self.sorted)]
        return self._sums

    def left(self, done: float) -> float:
        """E[n - done | n > done], with one more value of 2 x `done` among them.

        That one keeps a runaway from looking as if it were always about to end: beyond all that
        was ever seen, as much is expected to come as has been.
        """
        at = bisect_right(self.sorted, done)
        beyond = len(self.sorted) - at
        more = self.sums[-1] - self.sums[at] - beyond * done
        return (more + done) / (beyond + 1)

    def wait_for(self, bound: float) -> float:
        """argmax_tau  P(n <= tau) * bound - E[min(n, tau)]: one of the values, or 0.

        With i of N values not above tau this is (i * bound - S_i) / N, where S_i is the sum of them
        and N - i times tau: a line in `bound` for each i. The best ones are the lower convex hull
        of the points (i, S_i), each from a slope S' on.
        """
        if not self._corners or self._unseen > _STALE_FRAC * len(self.sorted):
            self._corners, self._unseen = self._hull(), 0
        at = bisect_left(self._corners, (bound,)) - 1
        return self._corners[at][1] if at >= 0 else 0.0

    def _hull(self) -> list[tuple[float, float]]:
        """(slope, value): this value is the best for bounds above the slope, up to the next one."""
        total, sums = len(self.sorted), self.sums
        hull: list[tuple[float, int, float, float]] = [(-inf, 0, 0.0, 0.0)]  # slope, i, S_i, value
        for i, value in enumerate(self.sorted, 1):
            cost = sums[i] + (total - i) * value
            while (slope := (cost - hull[-1][2]) / (i - hull[-1][1])) <= hull[-1][0]:
                hull.pop()
            hull.append((slope, i, cost, value))
        return [(slope, value) for slope, _, _, value in hull[1:]]
