"""One stay of a session, as the desk keeps it: from its arrival to its end.

A session that comes back after its end begins another stay of the same id. Timers and requests
hold the stay, not the id, so what is left of an old stay cannot touch the new one.
"""

import asyncio
from dataclasses import dataclass, field

from mars.core import events as ev
from mars.core.errors import MarsError
from mars.core.ids import CallId, SessionId, ToolId
from mars.gateway.settings import GatewaySettings


class SessionOverError(MarsError):
    """The session was ended while its request waited at the gate; the text says why."""


@dataclass(slots=True, eq=False)
class Stay:
    session_id: SessionId
    heard_s: float
    """Last sign of life, on the machine's monotonic clock."""
    admitted: bool = False
    over: str = ""
    """Why it ended; empty while it lasts."""
    final: bool = False
    """A final request has been answered: ends with its last open call."""
    gone: bool = False
    """Its last call was cut by the client."""
    turn: int = 0
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    """Requests at the gate, or just woken and not yet calls."""
    calls: set["Call"] = field(default_factory=set)
    tools: dict[ToolId, float] = field(default_factory=dict)
    """Queued or running tool calls, and when they were last heard of."""
    timer: asyncio.TimerHandle | None = None

    @property
    def quiet(self) -> bool:
        """Past the gate, and nothing of it is with us."""
        return self.admitted and not (self.over or self.calls or self.waiting)

    def hear(self, event: ev.ToolEvent, now_s: float) -> None:
        self.heard_s = now_s
        if isinstance(event, ev.ToolFinished):
            self.tools.pop(event.tool_id, None)
        else:
            self.tools[event.tool_id] = now_s
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
    told: bool = False
    """CallFinished has been emitted."""
