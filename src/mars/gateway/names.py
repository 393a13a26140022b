"""Which of our calls does the engine mean, where it names them itself? (ADR 13)

The engine's facts name a session and, on most paths, the call as we did. Where they do not, a name
that is new belongs to the oldest call of its session, not yet named, that was open when the fact
was made: gateway and engine share a clock, and no call starts before it is handed over. It keeps
the name until the engine has accounted for it.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

import msgspec

from mars.core import events as ev
from mars.core.ids import CallId, SessionId

_MOST: Final = 10_000
"""Calls remembered: an engine without the plugin names none, a dying one accounts for none."""

EngineCallEvent = ev.CallStarted | ev.CallPreempted | ev.CallServed


@dataclass(slots=True)
class _Nameless:
    call_id: CallId
    queued_s: float
    closed_s: float = inf


class EngineNames:
    def __init__(self) -> None:
        self._nameless: dict[SessionId, list[_Nameless]] = {}
        """By session, the oldest first."""
        self._count = 0
        self._ours: dict[CallId, CallId] = {}
        """Ours by the engine's."""

    def expect(self, session_id: SessionId, call_id: CallId, now_s: float) -> None:
        """A call is handed over that the engine will name. To be followed by `close`."""
        while self._count >= _MOST:
            self._drop(next(iter(self._nameless)), 0)
        calls = self._nameless.setdefault(session_id, [])
        calls.append(_Nameless(call_id, now_s))
        self._count += 1

    def close(self, session_id: SessionId, call_id: CallId, now_s: float) -> None:
        """A call has ended; what the engine did meanwhile may still be heard."""
        for call in self._nameless.get(session_id, ()):
            if call.call_id == call_id:
                call.closed_s = now_s

    def ours(self, fact: ev.Event) -> ev.Event:
        """The fact, under our name of its call."""
        if not isinstance(fact, EngineCallEvent):
            return fact
        call_id = self._ours.get(fact.call_id) or self._find(fact)
        if call_id is None:
            return fact
        if isinstance(fact, ev.CallServed):
            self._ours.pop(fact.call_id, None)
        return msgspec.structs.replace(fact, call_id=call_id)

    def _find(self, fact: EngineCallEvent) -> CallId | None:
        for place, call in enumerate(self._nameless.get(fact.session_id, ())):
            if call.queued_s <= fact.at_s <= call.closed_s:
                self._drop(fact.session_id, place)
                while len(self._ours) >= _MOST:
                    del self._ours[next(iter(self._ours))]
                self._ours[fact.call_id] = call.call_id
                return call.call_id
        return None

    def _drop(self, session_id: SessionId, place: int) -> None:
        calls = self._nameless[session_id]
        del calls[place]
        self._count -= 1
        if not calls:
            del self._nameless[session_id]
