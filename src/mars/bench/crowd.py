"""Why one session waited at the gate, and what the others had meanwhile: read off the facts.

The gate says why it is shut when that changes in kind (`GateShut`). What it decides by stands
beside that, least and most: who was active, what the engine's memory looked like, who was let in.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from mars.bench.phases import Span
from mars.bench.words import number
from mars.core import events as ev
from mars.core.errors import IllegalMoveError
from mars.core.ids import SessionId
from mars.core.session import Phase, Session


class Extent(NamedTuple):
    least: float
    mean: float
    """Over time."""
    most: float


class Shut(msgspec.Struct, frozen=True, kw_only=True):
    at_s: float
    why: str


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    start_s: float
    end_s: float
    shut: list[Shut]
    """Why the gate was shut: at the start, and each time that this changed."""
    ahead: int
    """Others at the gate when it came there."""
    entered: int
    """Others that were let in while it waited."""
    active: Extent
    """Others past the gate."""
    kv_used_frac: Extent | None
    """Blocks of calls and holds over all blocks; None: the engine told nothing."""
    kv_session_frac: Extent | None
    """Contexts of the active sessions, idle ones too, over all KV (what mars goes by)."""
    calls_waiting: Extent | None
    """In the engine."""
    tools_waiting: Extent | None
    """For cores."""

    @property
    def said(self) -> str:
        """Means over the wait, and in brackets the least and the most."""
        parts = [
            f"{number(self.ahead, 'session')} ahead",
            f"{self.entered} let in meanwhile",
            f"active {_said(self.active)}",
        ]
        if self.kv_used_frac is not None:
            parts.append(f"KV in use {_percent(self.kv_used_frac)}")
        if self.kv_session_frac is not None:
            parts.append(f"contexts of the active {_percent(self.kv_session_frac)} of the KV")
        if self.calls_waiting is not None:
            parts.append(f"calls queued {_said(self.calls_waiting)}")
        if self.tools_waiting is not None and self.tools_waiting.most > 0:
            parts.append(f"tools waiting {_said(self.tools_waiting)}")
        return "; ".join(parts)


def crowds(
    facts: Iterable[ev.Event], session_id: SessionId, waits: Sequence[Span]
) -> Iterator[Crowd]:
    """`facts` of all sessions and `waits` of this one, both in order of time."""
    room, stream = _Room(session_id), iter(facts)
    event = next(stream, None)
    for wait in waits:
        while event is not None and event.at_s <= wait.start_s:
            room.take(event)
            event = next(stream, None)
        ahead, room.entered, room.gauges = room.gated, 0, {}
        # with nobody ahead, what was said before is of an earlier wait
        sign = room.sign if room.sign and (ahead or room.sign.at_s >= wait.start_s) else None
        room.shut = [_shut(wait.start_s, sign)] if sign else []
        room.look(wait.start_s)
        while event is not None and event.at_s < wait.end_s:
            room.take(event)
            room.look(event.at_s)
            event = next(stream, None)
        extents = {name: gauge.extent(wait.end_s) for name, gauge in room.gauges.items()}
        yield Crowd(
            start_s=wait.start_s,
            end_s=wait.end_s,
            shut=room.shut,
            ahead=ahead,
            entered=room.entered,
            active=extents["active"],
            kv_used_frac=extents.get("kv_used_frac"),
            kv_session_frac=extents.get("kv_session_frac"),
            calls_waiting=extents.get("calls_waiting"),
            tools_waiting=extents.get("tools_waiting"),
        )


@dataclass(slots=True)
class _Gauge:
    """A value that holds until it is seen again."""

    value: float
    first_s: float
    since_s: float
    least: float
    most: float
    area: float = 0.0
    """The value's integral over time."""

    def see(self, value: float, now_s: float) -> None:
        self.area += self.value * (now_s - self.since_s)
        self.value, self.since_s = value, now_s
        self.least, self.most = min(self.least, value), max(self.most, value)

    def extent(self, end_s: float) -> Extent:
        self.see(self.value, end_s)
        return Extent(self.least, self.area / (end_s - self.first_s), self.most)


@dataclass(slots=True)
class _Room:
    """Everybody but one session: what they are at, now."""

    besides: SessionId
    others: dict[SessionId, Session] = field(default_factory=dict)
    active: set[SessionId] = field(default_factory=set)
    gated: int = 0
    entered: int = 0
    context_tokens: int = 0
    engine: ev.EngineSampled | None = None
    tools: ev.ToolsSampled | None = None
    sign: ev.GateShut | None = None
    shut: list[Shut] = field(default_factory=list)
    gauges: dict[str, _Gauge] = field(default_factory=dict)

    def take(self, event: ev.Event) -> None:
        match event:
            case ev.EngineSampled():
                self.engine = event
            case ev.ToolsSampled():
                self.tools = event
            case ev.GateShut():
                self.sign = event
                self.shut.append(_shut(event.at_s, event))
            case ev.FailOpenChanged():
                self.sign = None
            case ev.SessionRefused():
                pass
            case _ if event.session_id == self.besides:
                pass
            case ev.SessionArrived():
                session = Session(event.session_id, event.at_s, since_s=event.at_s)
                self.others[event.session_id] = session
                self.gated += 1
            case _:
                self._move(event)

    def _move(self, event: ev.SessionEvent) -> None:
        session = self.others.get(event.session_id)
        if session is None:
            return
        was_gated, was_tokens = session.phase is Phase.GATED, session.context_tokens
        try:
            session.advance(event)
        except IllegalMoveError:
            return  # too late: the control plane drops it too
        self.gated += (session.phase is Phase.GATED) - was_gated
        match event:
            case ev.SessionAdmitted():
                self.active.add(event.session_id)
                self.context_tokens += session.context_tokens
                self.entered += 1
            case ev.SessionPaused() | ev.SessionEnded():
                if event.session_id in self.active:
                    self.active.remove(event.session_id)
                    self.context_tokens -= session.context_tokens
            case _ if event.session_id in self.active:
                self.context_tokens += session.context_tokens - was_tokens
            case _:
                pass

    def look(self, now_s: float) -> None:
        self._see("active", len(self.active), now_s)
        if (engine := self.engine) is not None:
            kv_tokens = engine.kv_total_blocks * engine.block_tokens
            self._see("kv_used_frac", engine.kv_used_blocks / engine.kv_total_blocks, now_s)
            self._see("kv_session_frac", self.context_tokens / kv_tokens, now_s)
            self._see("calls_waiting", engine.waiting_calls, now_s)
        if self.tools is not None:
            self._see("tools_waiting", self.tools.waiting, now_s)

    def _see(self, name: str, value: float, now_s: float) -> None:
        if name in self.gauges:
            self.gauges[name].see(value, now_s)
        else:
            self.gauges[name] = _Gauge(value, now_s, now_s, value, value)


def _shut(at_s: float, sign: ev.GateShut) -> Shut:
    return Shut(at_s=at_s, why=sign.why)


def _said(of: Extent, unit: str = "") -> str:
    """The mean, and between what it moved."""
    if of.least == of.most:
        return f"{_digits(of.mean)}{unit}"
    return f"{_digits(of.mean)}{unit} ({_digits(of.least)} to {_digits(of.most)})"


def _percent(of: Extent) -> str:
    return _said(Extent(*(100 * frac for frac in of)), " %")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= _ONE_DIGIT or value == int(value) else f"{value:.1f}"


_ONE_DIGIT: Final = 10
