"""One agent's life, as a table.

Every legal move is a row of `MOVES`; anything else raises and changes nothing. The diagram in
docs/lifecycle.md is generated from this table (`python -m mars.core.lifecycle`).

A client may have several calls of one session open at once (sub-agents, a title writer). Each
open call then walks through the table on its own, from the session's resting phase; the session
shows the busiest of them: RUNNING before QUEUED before the phase at rest.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from mars.core import events as ev
from mars.core.context import Context
from mars.core.errors import IllegalMoveError
from mars.core.ids import CallId, SessionId


class Phase(enum.Enum):
    GATED = "gated"  # arrived; the control plane has not let it in
    QUEUED = "queued"  # a call waits in the engine
    RUNNING = "running"  # a call is on the GPU
    ACTING = "acting"  # off the GPU: a tool runs or waits for cores, or the client thinks
    PAUSED = "paused"  # sent back: its tool may run on, its next call waits at the gate
    ENDED = "ended"

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call per look-up


MOVES: Final[Mapping[tuple[Phase, type[ev.SessionEvent]], Phase]] = {
    (Phase.GATED, ev.SessionAdmitted): Phase.ACTING,
    (Phase.GATED, ev.SessionEnded): Phase.ENDED,
    (Phase.ACTING, ev.CallQueued): Phase.QUEUED,
    (Phase.QUEUED, ev.CallStarted): Phase.RUNNING,
    (Phase.QUEUED, ev.CallFinished): Phase.ACTING,  # refused, aborted, or the engine died
    (Phase.QUEUED, ev.CallServed): Phase.QUEUED,  # aborted: the engine's account comes first
    (Phase.RUNNING, ev.CallPreempted): Phase.QUEUED,
    (Phase.RUNNING, ev.CallServed): Phase.RUNNING,  # the answer is still on its way out
    (Phase.ACTING, ev.CallServed): Phase.ACTING,  # the answer overtook the engine's account
    (Phase.RUNNING, ev.CallFinished): Phase.ACTING,
    (Phase.ACTING, ev.ToolQueued): Phase.ACTING,
    (Phase.ACTING, ev.ToolStarted): Phase.ACTING,
    (Phase.ACTING, ev.ToolProgressed): Phase.ACTING,
    (Phase.ACTING, ev.ToolFinished): Phase.ACTING,
    (Phase.ACTING, ev.KvHeld): Phase.ACTING,
    (Phase.ACTING, ev.KvDropped): Phase.ACTING,
    (Phase.ACTING, ev.KvReleased): Phase.ACTING,
    (Phase.ACTING, ev.SessionEnded): Phase.ENDED,
    (Phase.ACTING, ev.SessionPaused): Phase.PAUSED,
    (Phase.PAUSED, ev.SessionReturned): Phase.GATED,
    (Phase.PAUSED, ev.SessionAdmitted): Phase.ACTING,  # resumed before it came back
    (Phase.PAUSED, ev.CallServed): Phase.PAUSED,
    (Phase.PAUSED, ev.ToolQueued): Phase.PAUSED,
    (Phase.PAUSED, ev.ToolStarted): Phase.PAUSED,
    (Phase.PAUSED, ev.ToolProgressed): Phase.PAUSED,
    (Phase.PAUSED, ev.ToolFinished): Phase.PAUSED,
    (Phase.PAUSED, ev.KvHeld): Phase.PAUSED,
    (Phase.PAUSED, ev.KvDropped): Phase.PAUSED,
    (Phase.PAUSED, ev.KvReleased): Phase.PAUSED,
    (Phase.PAUSED, ev.SessionEnded): Phase.ENDED,
}


@dataclass(slots=True)
class Session:
    session_id: SessionId
    arrived_s: float
    parent_id: SessionId | None = None
    tenant: str = ""
    phase: Phase = Phase.GATED
    since_s: float = 0.0
    """When the present phase began."""
    turn: int = 0
    served_tokens: int = 0
    """Tokens the engine has computed for this session so far, prefill and decode."""
    _context: Context = field(default_factory=Context)
    _rest: Phase = Phase.GATED
    _calls: dict[CallId, Phase] = field(default_factory=dict)

    @classmethod
    def of(cls, event: ev.SessionArrived | ev.SessionReturned) -> Self:
        """A new one; one that returns and is not known tells less of itself."""
        if isinstance(event, ev.SessionReturned):
            return cls(event.session_id, event.at_s, since_s=event.at_s)
        return cls(
            event.session_id,
            event.first_s,
            parent_id=event.parent_id,
            tenant=event.tenant,
            since_s=event.at_s,
            turn=event.turn,
        )

    @property
    def context_tokens(self) -> int:
        """What its next call will extend (core.context)."""
        return self._context.tokens

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    def advance(self, event: ev.SessionEvent) -> None:
        """Take one step of the table.

        Raises IllegalMoveError, and changes nothing, when the table has no such row.
        """
        match event:
            case (
                ev.CallQueued()
                | ev.CallStarted()
                | ev.CallPreempted()
                | ev.CallServed()
                | ev.CallFinished()
            ):
                self._walk_call(event)
            case ev.SessionPaused() if self._calls:
                raise IllegalMoveError(self.session_id, self.phase.value, type(event).__name__)
            case _:
                self._rest = self._move(self._rest, event)
        match event:
            case ev.CallQueued():
                self.turn = event.turn
            case ev.CallServed():
                self._context.served(event)
                self.served_tokens += event.computed_tokens
            case _:
                pass
        self._show(event.at_s)

    def _walk_call(self, event: ev.CallEvent) -> None:
        after = self._move(self._calls.get(event.call_id, self._rest), event)
        if after in {Phase.QUEUED, Phase.RUNNING}:
            self._calls[event.call_id] = after
        else:
            self._calls.pop(event.call_id, None)

    def _move(self, phase: Phase, event: ev.SessionEvent) -> Phase:
        after = MOVES.get((phase, type(event)))
        if after is None:
            raise IllegalMoveError(self.session_id, phase.value, type(event).__name__)
        return after

    def _show(self, now_s: float) -> None:
        calls = self._calls.values()
        if self._rest is Phase.ENDED or not calls:
            phase = self._rest
        else:
            phase = Phase.RUNNING if Phase.RUNNING in calls else Phase.QUEUED
        if phase is not self.phase:
            self.phase, self.since_s = phase, now_s
