"""One stay of a session, as the desk keeps it: from its arrival to its end.

A session that comes back after its end begins another stay of the same id. Timers and requests
hold the stay, not the id, so what is left of an old stay cannot touch the new one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, assert_never

import msgspec

from mars.core import events as ev
from mars.core.decisions import Admit, Pause
from mars.core.errors import MarsError
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.slots import Slot
from mars.gateway.settings import GatewaySettings


class SessionOverError(MarsError):
    """The session was ended while its request waited at the gate; the text says why."""

    def __init__(self, why: str, session_id: SessionId | None = None) -> None:
        super().__init__(why)
        self.session_id = session_id


class OtherTenantError(MarsError):
    """The session that the request names is another tenant's; the text says so."""


class QueueFullError(MarsError):
    """No more may wait at the gate; one place is expected to be free in `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} sessions wait at the gate, and no more may")
        self.waiting = waiting
        self.retry_after_s = retry_after_s

    def refused(self, session_id: SessionId, now_s: float) -> ev.SessionRefused:
        return ev.SessionRefused(
            at_s=now_s,
            session_id=session_id,
            waiting=self.waiting,
            retry_after_s=self.retry_after_s,
        )


class Asking(NamedTuple):
    """A request that asks to enter."""

    prompt_bytes: int
    still_waiting: Callable[[], Awaitable[None]]
    patience_s: Callable[[], float | None]
    """How long its client waits for a byte; costs a look into the body."""


@dataclass(slots=True, eq=False)
class Stay:
    session_id: SessionId
    arrived: ev.SessionArrived
    heard_s: float
    """Last sign of life, on the machine's monotonic clock."""
    admitted: bool = False
    away: bool = False
    """Sent back to the gate, and no request of it has come since."""
    over: str = ""
    """Why it ended; empty while it lasts."""
    final: bool = False
    """A final request has been answered: ends with its last open call."""
    gone: bool = False
    """Its last call was cut by the client."""
    turn: int = 0
    slots: list[Slot] = field(default_factory=list)
    """Had for requests that are no calls yet."""
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    """Requests at the gate, in the line for a slot, or just woken and not yet calls."""
    calls: set["Call"] = field(default_factory=set)
    tools: dict[ToolId, float] = field(default_factory=dict)
    """Queued or running tool calls, and when they were last heard of."""
    timer: asyncio.TimerHandle | None = None
    parent: "Stay | None" = None
    children: int = 0
    """Sessions that it started and that have not ended: it waits for them, and is not silent."""

    @property
    def tenant(self) -> str:
        return self.arrived.tenant

    @property
    def may_move(self) -> bool:
        """At the gate: it has been in nowhere, was not moved yet, and is bound to nobody here."""
        was_in = self.admitted or self.away or self.turn
        bound = self.parent is not None or self.children
        return not (was_in or bound or self.arrived.waits_since_s is not None)

    @property
    def quiet(self) -> bool:
        """Nothing of it is with us."""
        return not (self.over or self.calls or self.waiting or self.children)

    @classmethod
    def of(cls, arrived: ev.SessionArrived, parent: "Stay | None", now_s: float) -> "Stay":
        return cls(arrived.session_id, arrived, heard_s=now_s, turn=arrived.turn, parent=parent)

    def arrives_at(self, engine: str, now_s: float) -> ev.SessionArrived:
        """As it waits on at the gate of another engine."""
        return msgspec.structs.replace(
            self.arrived, at_s=now_s, engine=engine, waits_since_s=self.arrived.first_s
        )

    def returned(self, asking: Asking, now_s: float) -> ev.SessionReturned:
        return ev.SessionReturned(
            at_s=now_s,
            session_id=self.session_id,
            prompt_bytes=asking.prompt_bytes,
            patience_s=asking.patience_s(),
        )

    def obey(self, decision: Admit | Pause, now_s: float) -> ev.Event | None:
        """The fact that the decision is now; None: it changes nothing."""
        match decision:
            case Admit():
                if self.admitted:
                    return None
                self.admitted, self.away = True, False
                return ev.SessionAdmitted(
                    at_s=now_s, session_id=self.session_id, why=decision.why, by=decision.by
                )
            case Pause():
                self.admitted, self.away = False, True
                self.wake()  # who waits for a slot waits at the gate now
                return ev.SessionPaused(at_s=now_s, session_id=self.session_id, why=decision.why)
            case _:
                assert_never(decision)

    def hear(self, event: ev.ToolEvent, now_s: float) -> None:
        self.heard_s = now_s
        if isinstance(event, ev.ToolFinished):
            self.tools.pop(event.tool_id, None)
            return
        self.tools[event.tool_id] = now_s
        if not isinstance(event, ev.ToolProgressed):  # that asks for no client
            self.gone = False

    def ends(self, settings: GatewaySettings) -> tuple[float, str]:
        """When it will have been silent for too long (seconds, as `heard_s`), and why that ends it.

        Each tool counts from its own last event: one whose end was lost cannot hold the place
        for longer than `tool_idle_s`.
        """
        if self.gone:
            end_s = self.heard_s + settings.gone_s
            why = f"the client left and was not back within {settings.gone_s:g} s"
        else:
            end_s = self.heard_s + settings.idle_s
            why = f"silent for {settings.idle_s:g} s"
        tools_end_s = max(self.tools.values(), default=end_s) + settings.tool_idle_s
        if self.tools and tools_end_s > end_s:
            return tools_end_s, f"silent for {settings.tool_idle_s:g} s with a tool running"
        return end_s, why

    def line_up(self) -> asyncio.Future[None]:
        """A request begins to wait at the gate."""
        self.stop_timer()
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(gate)
        return gate

    def wake(self) -> None:
        for gate in self.waiting:
            if not gate.done():
                gate.set_result(None)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class Call:
    call_id: CallId
    stay: Stay
    final: bool
    """Its session ends with it."""
    slot: Slot | None
    """Where its tenant's calls are limited."""
    queued_s: float
    """When it was handed to the engine, on the machine's monotonic clock."""
    told: bool = False
    """CallFinished has been emitted."""

    def queued(self, prompt_bytes: int) -> ev.CallQueued:
        asked_s = self.slot.asked_s if self.slot else None
        return ev.CallQueued(
            at_s=self.queued_s,
            session_id=self.stay.session_id,
            call_id=self.call_id,
            turn=self.stay.turn,
            prompt_bytes=prompt_bytes,
            waited_s=0.0 if asked_s is None else self.queued_s - asked_s,
        )

    def finished(self, now_s: float, end: "CallEnd") -> ev.CallFinished:
        first_byte_s = None if end.first_byte_s is None else end.first_byte_s - self.queued_s
        return ev.CallFinished(
            at_s=now_s,
            session_id=self.stay.session_id,
            call_id=self.call_id,
            ok=end.ok,
            why=end.why,
            gone=end.gone,
            status=end.status,
            first_byte_s=first_byte_s,
        )


class CallEnd(NamedTuple):
    ok: bool
    why: str = ""
    gone: bool = False
    """Its client cut it."""
    status: int | None = None
    first_byte_s: float | None = None
    """When the first byte of the engine's answer came, on the machine's monotonic clock."""
