"""Where a session's time goes: its events folded into spans, one phase each, without gaps.

The phases are those of `core.session`, with ACTING (and PAUSED) told apart by the tool calls:

    gated       at the gate with a call, not let in
    queued      a call waits in the engine
    running     a call is on the GPU (one is enough, whatever else the session does)
    tool waits  none of the above; tool calls wait for cores and none runs
    tool runs   none of the above; a tool call runs
    client      nothing of ours: the agent itself, the network, a tool that we did not run
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mars.core import events as ev
from mars.core.errors import IllegalMoveError
from mars.core.ids import SessionId, ToolId
from mars.core.session import Phase, Session

PHASES: Final = ("gated", "queued", "running", "tool waits", "tool runs", "client")


class Span(NamedTuple):
    phase: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class _Life:
    session: Session
    shown: str = "gated"
    since_s: float = 0.0
    waiting: set[ToolId] = field(default_factory=set)
    running: set[ToolId] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def take(self, event: ev.SessionEvent) -> None:
        try:
            self.session.advance(event)
        except IllegalMoveError:
            return  # a fact of another process that came too late: the control plane drops it too
        match event:
            case ev.ToolQueued():
                self.waiting.add(event.tool_id)
            case ev.ToolStarted():
                self.waiting.discard(event.tool_id)
                self.running.add(event.tool_id)
            case ev.ToolFinished():
                self.waiting.discard(event.tool_id)
                self.running.discard(event.tool_id)
            case _:
                pass
        self._show(event.at_s)

    def _show(self, now_s: float) -> None:
        name = self._name()
        if name != self.shown:
            if now_s > self.since_s and self.shown in PHASES:
                self.spans.append(Span(self.shown, self.since_s, now_s))
            self.shown, self.since_s = name, now_s

    def _name(self) -> str:
        if self.session.phase not in {Phase.ACTING, Phase.PAUSED}:
            return str(self.session.phase.value)
        if self.running:
            return "tool runs"
        return "tool waits" if self.waiting else "client"


def fold(events: Iterable[ev.Event]) -> dict[SessionId, list[Span]]:
    """Spans of every session, in order of arrival; a session that never ends lacks its last one."""
    lives: dict[SessionId, _Life] = {}
    for event in events:
        if isinstance(event, ev.OfNoSession):
            continue
        match event:
            case ev.SessionArrived():
                session = Session(event.session_id, event.at_s, since_s=event.at_s)
                lives[event.session_id] = _Life(session, since_s=event.at_s)
            case _:
                if event.session_id in lives:
                    lives[event.session_id].take(event)
    return {session_id: life.spans for session_id, life in lives.items()}
