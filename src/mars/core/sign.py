"""The sign at the gate: why it is shut, said when there is something new to say.

The reasons of an admission are numbers that move with every fact; a log that repeats them is of no
use. Said is the reason of the first that has to wait, and then each change in kind.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from mars.core.admission import Verdict
from mars.core.decisions import Shut
from mars.core.events import Limit

_EVERY_S: Final = 1.0
"""While somebody waits, the reason is said so often at most, if it flaps."""


@dataclass(slots=True)
class Sign:
    _limit: Limit | None = None
    """What was said last; None: nothing since the gate was empty."""
    _said_s: float = -inf

    def clear(self) -> None:
        """Nobody waits."""
        self._limit = None

    def say(self, verdict: Verdict, waiting: int, now_s: float) -> list[Shut]:
        """What there is to say after a verdict that leaves so many at the gate."""
        if not waiting:
            self.clear()
            return []
        if verdict.limit == self._limit:
            return []
        if self._limit is not None and now_s < self._said_s + _EVERY_S:
            return []
        self._limit, self._said_s = verdict.limit, now_s
        return [Shut(limit=verdict.limit, why=verdict.why_not, waiting=waiting)]
