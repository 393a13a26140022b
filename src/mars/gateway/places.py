"""What a gateway that was killed knew: read from its event log by the one that follows it.

Only sessions past the gate are taken up. Who waited there has lost its connection and comes again,
and so does a request that was a session of its own. Calls that were open are over, also for the
engine, which has seen its client go.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.gateway.identity import Identity
from mars.stream.log import read_log

_ALONE: Final = "none"
"""The rule of a request that names no session (gateway.identity)."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Of a session past the gate. Times are of the machine's monotonic clock."""

    session_id: SessionId
    identity: Identity
    arrived_s: float
    heard_s: float
    """Its last sign of life; of one with a call open: now, since that call was cut just before."""
    prompt_bytes: int
    """Of its newest call."""
    turn: int
    tools: Mapping[ToolId, float]
    """Queued or running tool calls, and when they were last heard of."""
    engine: str
    """URL of the engine that it was at; empty: a log of before they said so."""

    def arrived(self, engine: str, parent_id: SessionId | None) -> ev.SessionArrived:
        """As it is told again by the gate of an engine; its parent if that is here too."""
        return ev.SessionArrived(
            at_s=self.arrived_s,
            session_id=self.session_id,
            rule=self.identity.rule,
            prompt_bytes=self.prompt_bytes,
            parent_id=parent_id,
            tenant=self.identity.tenant,
            was_in=True,
            turn=self.turn,
            engine=engine,
        )


def read_places(log: Path, now_s: float) -> list[Place]:
    """Places of the sessions that had not ended, in order of arrival; parents before children.

    The clock of another boot of the machine is another one: what comes out of it is older than any
    silence allows, or from the future, and left out. Raises InputError for what is no event log.
    """
    _, events = read_log(log)
    return [
        place
        for life in _lives(events)
        if (place := life.place(now_s)) is not None and place.arrived_s <= now_s
    ]


@dataclass(slots=True)
class _Life:
    arrived: ev.SessionArrived
    is_in: bool = False
    heard_s: float = 0.0
    prompt_bytes: int = 0
    turn: int = 0
    calls: set[CallId] = field(default_factory=set)
    tools: dict[ToolId, float] = field(default_factory=dict)

    def take(self, event: ev.SessionEvent) -> None:
        self.heard_s = event.at_s
        match event:
            case ev.SessionAdmitted():
                self.is_in = True
            case ev.SessionPaused():
                self.is_in = False
            case ev.CallQueued():
                self.calls.add(event.call_id)
                self.turn, self.prompt_bytes = event.turn, event.prompt_bytes
            case ev.CallFinished():
                self.calls.discard(event.call_id)
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed():
                self.tools[event.tool_id] = event.at_s
            case ev.ToolFinished():
                self.tools.pop(event.tool_id, None)
            case _:
                pass

    def place(self, now_s: float) -> Place | None:
        """None: it waited at the gate, or nobody can come back to it."""
        arrived = self.arrived
        if not self.is_in or arrived.rule == _ALONE:
            return None
        return Place(
            session_id=arrived.session_id,
            identity=Identity(
                session_id=arrived.session_id,
                rule=arrived.rule,
                final=False,
                parent_id=arrived.parent_id,
                tenant=arrived.tenant,
            ),
            arrived_s=arrived.at_s,
            heard_s=now_s if self.calls else self.heard_s,
            prompt_bytes=self.prompt_bytes or arrived.prompt_bytes,
            turn=self.turn,
            tools=self.tools,
            engine=arrived.engine,
        )


def _lives(events: Iterable[ev.Event]) -> Iterator[_Life]:
    """Of the sessions that have not ended."""
    lives: dict[SessionId, _Life] = {}
    for event in events:
        if isinstance(event, ev.OfNoSession):
            continue
        match event:
            case ev.SessionArrived():
                lives[event.session_id] = _Life(event, heard_s=event.at_s)
            case ev.SessionEnded():
                lives.pop(event.session_id, None)
            case _ if event.session_id in lives:
                lives[event.session_id].take(event)
            case _:
                pass
    yield from lives.values()
