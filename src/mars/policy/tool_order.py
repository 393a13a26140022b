"""Which of the tool calls that wait for cores goes first: the CPU is on the critical path too.

    ToolCallView    a waiting call as a tool server may truthfully describe it
    ToolOrder       learns from facts, ranks waiting calls
    Fifo            in the order they asked
    ShortestFirst   by learned core seconds; nobody is passed for ever
    ToolLine        the calls that wait, for a lease book that knows no policy

The simulated tool pool and the live tool server keep one `ToolLine` each.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from mars.core import events as ev
from mars.core.family import start_s
from mars.core.ids import SessionId, ToolId
from mars.policy.base import Key
from mars.policy.settings import ToolOrderSettings

ToolOrderEvent = ev.ToolEvent | ev.SessionArrived | ev.SessionEnded


@dataclass(frozen=True, slots=True)
class ToolCallView:
    tool_id: ToolId
    session_id: SessionId
    tool: str
    """Its name: what durations are learned by."""
    cores: int
    queued_s: float
    """When it asked."""
    session_arrived_s: float
    """When its session (its root: core.family) first came, or was first seen."""


class ToolOrder(Protocol):
    def observe(self, event: ToolOrderEvent) -> None: ...

    def key(self, call: ToolCallView, now_s: float) -> Key:
        """Ascending: the least key is granted first; among equals, who asked first."""


class Fifo:
    def observe(self, event: ToolOrderEvent) -> None:
        del event

    def key(self, call: ToolCallView, now_s: float) -> Key:
        del now_s
        return (call.queued_s,)


class ShortestFirst:
    """Few expected core seconds first; among equals the older session; nobody past its patience.

        expected = cores * mean run_s of that tool        (core seconds that a lease takes)
        due      = queued_s + patience_s * expected       (from then on it is not passed)

    Of two calls side by side the one with the lesser *arithmetic* mean goes first: to swap them
    changes the expected sum of waits by the difference of their means, whatever their spread. A
    mean of logarithms would call a heavy-tailed tool short because most of its runs are.

    The bound is in proportion to size: one in seconds for all is passed by everybody under load,
    and what is left is first come, first served. Whoever asked later than a call's `due` never goes
    before it, so nobody starves. A tool hardly known counts as the mean of all; before anything is
    known every call is due at once, which is first come, first served.
    """

    def __init__(self, settings: ToolOrderSettings) -> None:
        self._set = settings
        self._mean_s: dict[str, tuple[float, int]] = {}
        self._all_s: tuple[float, int] = (0.0, 0)

    def observe(self, event: ToolOrderEvent) -> None:
        if not isinstance(event, ev.ToolFinished) or event.exit_code is None:
            return
        if event.why == "cancelled":
            return  # it would have run for longer: nobody knows how long
        known = self._mean_s.get(event.tool, (0.0, 0))
        self._mean_s[event.tool] = _with(known, event.run_s)
        self._all_s = _with(self._all_s, event.run_s)

    def expected_core_s(self, call: ToolCallView) -> float:
        mean_s, runs = self._mean_s.get(call.tool, (0.0, 0))
        return call.cores * (mean_s if runs >= self._set.tool_samples else self._all_s[0])

    def key(self, call: ToolCallView, now_s: float) -> Key:
        expected_s = self.expected_core_s(call)
        due_s = call.queued_s + self._set.patience_s * expected_s
        if now_s > due_s:
            return (0.0, due_s, call.session_arrived_s, call.queued_s)
        return (1.0, expected_s, call.session_arrived_s, call.queued_s)


def _with(known: tuple[float, int], run_s: float) -> tuple[float, int]:
    """A mean over at most the last 50 runs or so: an average that forgets."""
    mean_s, runs = known[0], min(known[1] + 1, 50)
    return mean_s + (run_s - mean_s) / runs, runs


_MOST_SESSIONS: Final = 10_000
"""A tool server hears of no session's end: beyond so many it forgets whom it saw longest ago."""


class ToolLine:
    """What a lease book's `rank` needs to know, out of the facts that its shell tells."""

    def __init__(self, order: ToolOrder) -> None:
        self._order = order
        self._now_s = 0.0
        self._calls: dict[ToolId, ToolCallView] = {}
        self._arrived_s: dict[SessionId, float] = {}

    def observe(self, event: ToolOrderEvent) -> None:
        """Before the book is told: what it grants then is ranked as of this fact."""
        self._now_s = event.at_s
        match event:
            case ev.SessionArrived():
                self._arrived_s.setdefault(event.session_id, start_s(event, self._arrived_s))
                self._seen_s(event.session_id)
            case ev.SessionEnded():
                self._arrived_s.pop(event.session_id, None)
            case ev.ToolQueued():
                self._calls[event.tool_id] = ToolCallView(
                    tool_id=event.tool_id,
                    session_id=event.session_id,
                    tool=event.tool,
                    cores=event.cores,
                    queued_s=event.at_s,
                    session_arrived_s=self._seen_s(event.session_id),
                )
            case ev.ToolStarted() | ev.ToolFinished():
                self._calls.pop(event.tool_id, None)
            case ev.ToolProgressed():
                pass
        self._order.observe(event)

    def rank(self, tool_id: ToolId) -> Key:
        return self._order.key(self._calls[tool_id], self._now_s)

    def _seen_s(self, session_id: SessionId) -> float:
        """When it first came; it is the newest in the table of those that did something."""
        arrived_s = self._arrived_s.pop(session_id, self._now_s)
        self._arrived_s[session_id] = arrived_s
        if len(self._arrived_s) > _MOST_SESSIONS:
            del self._arrived_s[next(iter(self._arrived_s))]
        return arrived_s
