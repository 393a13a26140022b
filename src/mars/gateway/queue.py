"""How fast the queue at the gate moves: for those that find it full."""

from collections import deque
from math import ceil
from typing import Final

from mars.core import events as ev
from mars.core.control import ControlPlane
from mars.gateway.stay import QueueFullError

_SEEN: Final = 16
"""Sessions that left the queue, of which the pace is taken."""


class Queue:
    """A reader of facts."""

    def __init__(self, limit: int | None) -> None:
        """`limit`: so many may wait (gateway.queue_limit); None: any number."""
        self._limit = limit
        self._waiting = 0
        self._left_s: deque[float] = deque(maxlen=_SEEN + 1)
        """First when the queue formed, or one left long ago; then when each of the others left."""

    def observe(self, event: ev.Event, waiting: int) -> None:
        """`waiting`: sessions at the gate after it."""
        if waiting and not self._waiting:
            self._left_s.clear()
            self._left_s.append(event.at_s)
        for _ in range(self._waiting - waiting):
            self._left_s.append(event.at_s)
        self._waiting = waiting

    def full_for(self, tenant: str, control: ControlPlane, now_s: float) -> QueueFullError | None:
        """What a newcomer of this tenant is to be told; None: it may wait.

        Those that wait for the limit of a tenant are a queue of their own: they fill nobody
        else's.
        """
        if self._limit is None:
            return None
        kept_out = control.held_back
        of_it = sum(control.sessions[it].tenant == tenant for it in kept_out)
        waiting = of_it or control.gated - len(kept_out)
        if waiting < self._limit:
            return None
        return QueueFullError(waiting, self.retry_after_s(now_s))

    def retry_after_s(self, now_s: float) -> int:
        """In how many seconds one place is expected to be free, in whole ones, at least 1.

        The mean time between departures; while nobody leaves it grows with the time that passes.
        Of a queue that nobody has left yet: as long again as it has been there.
        """
        if not self._left_s:
            return 1
        departures = max(1, len(self._left_s) - 1)
        return max(1, ceil((now_s - self._left_s[0]) / departures))
