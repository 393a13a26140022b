"""`GET /mars/sessions`: each session as an operator wants to see it.

A reader of facts keeps what the control plane has no use for: who named a session, what its last
call found in the cache, what the engine holds for it, which tools it runs. The rest is the control
plane's own table.
"""

from dataclasses import dataclass, field

import msgspec

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.core.session import Phase, Session
from mars.gateway.desk import Desk


class ToolRow(msgspec.Struct, frozen=True, kw_only=True):
    tool: str
    state: str
    """`queued`: it waits for cores; `running`."""
    state_s: float
    """Since when, in seconds before now."""
    run_s: float | None = None
    """How long it had run when it was last looked at; None: it was not yet."""
    cpu_s: float | None = None
    """That its processes had taken by then."""
    memory_bytes: int | None = None
    """In use then."""


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId
    engine: str
    """URL of the engine that it is at."""
    rule: str
    """Which rule named it: `header NAME`, `body FIELD`, or `none`."""
    tenant: str
    parent_id: SessionId | None
    """The session that started it."""
    phase: str
    phase_s: float
    """Since when it has been in this phase, in seconds before now."""
    age_s: float
    """Since it arrived."""
    why: str
    """Why it waits at the gate, or a request of it past the gate: for its tenant's calls."""
    turn: int
    context_tokens: int
    """What its next call will extend (core.context)."""
    served_tokens: int
    """Tokens that the engine has computed for it."""
    warm_frac: float | None
    """Of its last call's prompt, the share that was cached; None: no call of it was served yet."""
    held_tokens: int
    """KV that the engine holds for its next call."""
    tools: list[ToolRow]


_OpenTool = ev.ToolQueued | ev.ToolStarted | ev.ToolProgressed


@dataclass(slots=True)
class _Seen:
    rule: str
    tenant: str
    warm_frac: float | None = None
    held_tokens: int = 0
    tools: dict[ToolId, _OpenTool] = field(default_factory=dict)


class Roster:
    """A reader of facts: hand each to `observe`, in the order they were told."""

    def __init__(self) -> None:
        self._seen: dict[SessionId, _Seen] = {}

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.SessionArrived():
                self._seen[event.session_id] = _Seen(event.rule, event.tenant)
            case ev.SessionEnded():
                self._seen.pop(event.session_id, None)
            case ev.CallServed() | ev.KvHeld() | ev.KvReleased():
                if seen := self._seen.get(event.session_id):
                    _hear_engine(seen, event)
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                if seen := self._seen.get(event.session_id):
                    _hear_tool(seen, event)
            case _:
                pass

    def rows(self, desk: Desk, now_s: float) -> list[SessionRow]:
        kept_out = desk.control.held_back
        return [
            self._row(desk, session, kept_out.get(session.session_id), now_s)
            for session in desk.control.sessions.values()
        ]

    def _row(self, desk: Desk, session: Session, limit: str | None, now_s: float) -> SessionRow:
        """`limit`: of its tenant, that keeps it out."""
        seen = self._seen.get(session.session_id) or _Seen("", "")
        return SessionRow(
            session_id=session.session_id,
            engine=desk.engine,
            rule=seen.rule,
            tenant=seen.tenant,
            parent_id=session.parent_id,
            phase=session.phase.value,
            phase_s=now_s - session.since_s,
            age_s=now_s - session.arrived_s,
            why=(limit or desk.control.why_not)
            if session.phase is Phase.GATED
            else desk.why_in_line(session.session_id),
            turn=session.turn,
            context_tokens=session.context_tokens,
            served_tokens=session.served_tokens,
            warm_frac=seen.warm_frac,
            held_tokens=seen.held_tokens,
            tools=[_tool_row(tool, now_s) for tool in seen.tools.values()],
        )


def _hear_engine(seen: _Seen, event: ev.CallServed | ev.KvHeld | ev.KvReleased) -> None:
    match event:
        case ev.CallServed():
            if event.ok and event.prompt_tokens:
                seen.warm_frac = event.cached_tokens / event.prompt_tokens
        case ev.KvHeld():
            seen.held_tokens = event.kv_tokens
        case ev.KvReleased():
            seen.held_tokens = 0


def _hear_tool(seen: _Seen, event: ev.ToolEvent) -> None:
    if isinstance(event, ev.ToolFinished):
        seen.tools.pop(event.tool_id, None)
    else:
        seen.tools[event.tool_id] = event


def _tool_row(tool: _OpenTool, now_s: float) -> ToolRow:
    if isinstance(tool, ev.ToolProgressed):
        return ToolRow(
            tool=tool.tool,
            state="running",
            state_s=now_s - tool.at_s + tool.run_s,
            run_s=tool.run_s,
            cpu_s=tool.cpu_s,
            memory_bytes=tool.memory_bytes,
        )
    return ToolRow(
        tool=tool.tool,
        state="running" if isinstance(tool, ev.ToolStarted) else "queued",
        state_s=now_s - tool.at_s,
    )
