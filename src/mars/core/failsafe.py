"""Fail-open: when the control plane cannot judge, traffic flows as if it were not there.

    no samples   the engine has open calls and has told nothing for `blind_s`: our sight of it is
                 lost, or it hangs. From here the two look alike, and a gate helps in neither: a
                 hung engine serves nobody, and one that works must not stand idle.
                 Over with the first sample that is younger than the loss.
    fault        a bug of ours. Over when there was none for `blind_s`.

Only the first of two causes is told; the gate is open for either.
"""

from dataclasses import dataclass
from math import inf

from mars.core.decisions import FailOpen
from mars.core.events import Outage
from mars.core.pressure import Pressure


@dataclass(slots=True)
class Failsafe:
    blind_s: float
    cause: Outage = ""
    """Why the gate is open for all; empty: it is not."""
    why: str = ""
    _seen_s: float = -inf
    """When the cause was last seen."""

    def look(self, pressure: Pressure, now_s: float) -> list[FailOpen]:
        """What there is to say, if anything has changed."""
        blind_s = pressure.blind_s(now_s)
        if blind_s > self.blind_s:
            return self._open("no samples", f"no engine samples for {blind_s:.0f} s", now_s)
        if self.cause and self._is_over(pressure, now_s):
            over, self.cause = self.cause, ""
            return [FailOpen(cause="", why=_OVER[over])]
        return []

    def fault(self, error: Exception, now_s: float) -> list[FailOpen]:
        return self._open("fault", f"the control plane failed: {error!r}", now_s)

    def _open(self, cause: Outage, why: str, now_s: float) -> list[FailOpen]:
        if self.cause in {"", cause}:
            self._seen_s = now_s
        if self.cause:
            return []
        self.cause, self.why = cause, why
        return [FailOpen(cause=cause, why=why)]

    def _is_over(self, pressure: Pressure, now_s: float) -> bool:
        if self.cause == "fault":
            return now_s - self._seen_s > self.blind_s
        return pressure.engine_at_s is not None and pressure.engine_at_s >= self._seen_s


_OVER = {
    "": "",
    "no samples": "the engine is heard again",
    "fault": "the control plane has not failed for a while",
}
