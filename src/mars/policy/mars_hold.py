"""MARS's retention: KV is kept for as long as that is expected to pay.

Keeping C tokens of a cache of K for t seconds takes C/K of the machine's memory for so long;
letting them go costs `refill_s` of the GPU when the session is back. With the durations t seen so
far (of this tool once it is named, of all gaps between calls before that), keep for

    tau* = argmax_tau  P(t <= tau) * refill_s  -  price * C/K * E[min(t, tau)]

which is ski rental with a known distribution: for a certain t it is "keep if t < refill_s * K /
(price * C)", the bound of the unknown one. `price` is what a second of the whole memory is worth in
seconds of GPU. It is below 1: a prompt that is computed again needs that memory as well while it is
computed, and holds up every decode of its batch.

What is kept is kept: no waiting call may take it (`takes_held_at_s` is never), because a session
that is robbed robs the next one. It goes when its time is over, when a running call needs the room
(the youngest session's first), or when nothing has run for too long.

While nothing runs and a call waits, the engine idles or gives up a hold. Idling costs a second a
second, giving up costs `refill_s` of work when that session is back: so it idles for `spares` times
`refill_s`, which is ski rental once more. Where few sessions fit into the memory they are often all
in short tools at once; an engine that never idled would have each compute its context again.
"""

from math import inf
from typing import Final, TypeVar

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, EngineEvent, Hold, IdleView
from mars.policy.learned import Sample
from mars.policy.settings import WorthSettings

_MOST_SESSIONS: Final = 100_000
_MOST_TOOLS: Final = 1_000
_ROUNDING_S: Final = 1e-6
"""Sums of times are not exact: a gap may be so much below nothing."""

K = TypeVar("K")
V = TypeVar("V")


class WorthKeeping:
    def __init__(self, settings: WorthSettings) -> None:
        self._set = settings
        self._tools: dict[str, Sample] = {}
        self._gaps = Sample()
        self._left_s: dict[SessionId, float] = {}
        """When each session's last call left the engine."""
        self._started_s: dict[CallId, float] = {}

    def observe(self, event: EngineEvent) -> None:
        match event:
            case ev.CallStarted():
                self._started_s.setdefault(event.call_id, event.at_s)
                _bound(self._started_s, _MOST_SESSIONS)
            case ev.CallServed():
                self._served(event)
            case ev.ToolFinished() if event.exit_code is not None:
                seen = self._tools.pop(event.tool, None) or Sample()
                seen.add(event.run_s)
                self._tools[event.tool] = seen
                _bound(self._tools, _MOST_TOOLS)
            case ev.SessionEnded():
                self._left_s.pop(event.session_id, None)
            case _:
                pass

    def _served(self, event: ev.CallServed) -> None:
        """A gap: from the end of a session's call to the engine's intake of its next one.

        A call that came before the last one had left (a sub-agent's) ends no gap.
        """
        started_s = self._started_s.pop(event.call_id, None)
        left_s = self._left_s.pop(event.session_id, None)
        if started_s is not None and left_s is not None:
            gap_s = started_s - event.queued_s - left_s
            if gap_s > -_ROUNDING_S:
                self._gaps.add(max(0.0, gap_s))
        if event.ok:
            self._left_s[event.session_id] = event.at_s
            _bound(self._left_s, _MOST_SESSIONS)

    def hold(self, idle: IdleView) -> Hold:
        if idle.context_tokens <= 0:
            return Hold(keep_s=0.0, why="nothing to keep")
        if idle.stage == "tool ended":
            return self._keep(idle, self._set.return_s, "its tool has ended")
        own = self._tools.get(idle.tool)
        seen = own if own is not None and len(own) >= self._set.samples else self._gaps
        if len(seen) < self._set.samples:
            return self._keep(idle, self._set.first_s, "too little is known of its tool")
        share = idle.context_tokens / idle.kv_capacity_tokens
        keep_s = best_s(seen, idle.refill_s, self._set.price * share)
        of = idle.tool if seen is own else "its tool"
        if keep_s <= 0.0:
            return Hold(keep_s=0.0, why=f"{of} takes longer than {idle.refill_s:.1f} s are worth")
        why = f"{of} may end within {keep_s:.1f} s, to save {idle.refill_s:.1f} s"
        return self._keep(idle, keep_s, why)

    def _keep(self, idle: IdleView, keep_s: float, why: str) -> Hold:
        value, spared_s = -idle.session_arrived_s, self._set.spares * idle.refill_s
        return Hold(keep_s=keep_s, value=value, spared_s=spared_s, why=why)

    def takes_held_at_s(self, call: CallView) -> float:
        del call
        return inf


def best_s(seen: Sample, gain_s: float, cost: float) -> float:
    """argmax_tau P(t <= tau) * gain_s - cost * E[min(t, tau)]: one of the durations, or 0."""
    return seen.wait_for(gain_s / cost)


def _bound(book: dict[K, V], most: int) -> None:
    """What nobody ever ended: oldest first."""
    if len(book) > most:
        del book[next(iter(book))]
