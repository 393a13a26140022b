"""Facts folded into spans, one fact at a time: a span is told once, when it is over.

What is kept is what is open, within bounds where its end may never be heard. A call that has
finished waits for the engine's account of it, but not for long: not every engine gives one.
"""

from collections.abc import Callable
from typing import Final

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.stream.spans import OpenCall, OpenSession, OpenTool, Place, Span

_LATE_S: Final = 10.0
"""So long a finished call waits for its CallServed."""
_MOST_LATE: Final = 1000
"""Finished calls that wait."""
_MOST_TOOLS: Final = 10_000
"""Tool calls that are open: the fact of an end may be lost between processes."""
_MOST_LEFT: Final = 1000
"""Sessions that have ended, below which a child or a tool may still come."""


class SpanFold:
    def __init__(self, tell: Callable[[Span], None]) -> None:
        """`tell` is handed each span; it may not raise."""
        self.sessions = 0
        """So many have come."""
        self._tell = tell
        self._last_s = 0.0
        self._sessions: dict[SessionId, OpenSession] = {}
        self._left: dict[SessionId, Place] = {}
        self._calls: dict[tuple[SessionId, CallId], OpenCall] = {}
        self._late: dict[tuple[SessionId, CallId], OpenCall] = {}
        """Finished, and not accounted for; the oldest first."""
        self._tools: dict[tuple[SessionId, ToolId], OpenTool] = {}

    @property
    def open(self) -> int:
        """Spans that are not over."""
        return len(self._sessions) + len(self._calls) + len(self._late) + len(self._tools)

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.SessionArrived():
                self._arrive(event)
            case ev.SessionReturned() | ev.SessionAdmitted() | ev.SessionEnded():
                self._session(event)
            case ev.CallQueued():
                self._begin_call(event)
            case ev.CallServed() | ev.CallFinished():
                self._end_call(event)
            case ev.ToolQueued():
                self._begin_tool(event)
            case ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                self._tool(event)
            case _:
                pass
        self.look(event.at_s)

    def look(self, now_s: float) -> None:
        """Let go of finished calls that have waited long enough."""
        self._last_s = max(self._last_s, now_s)
        while self._late:
            key, call = next(iter(self._late.items()))
            since_s = call.finished.at_s if call.finished else 0.0
            if len(self._late) <= _MOST_LATE and self._last_s < since_s + _LATE_S:
                return
            self._tell(self._late.pop(key).over(self._last_s))

    def close(self) -> None:
        """What is open ends with the last fact."""
        for call in (*self._late.values(), *self._calls.values()):
            self._tell(call.over(self._last_s))
        for tool in self._tools.values():
            self._tell(tool.over(None, self._last_s))
        for session in self._sessions.values():
            self._tell(session.over(None, self._last_s))
        for kept in (self._late, self._calls, self._tools, self._sessions, self._left):
            kept.clear()

    def _place(self, session_id: SessionId | None) -> Place | None:
        """None: it came before the first fact, or has long left."""
        if session_id is None:
            return None
        session = self._sessions.get(session_id)
        return session.place if session else self._left.get(session_id)

    def _arrive(self, arrived: ev.SessionArrived) -> None:
        above = self._place(arrived.parent_id)
        if arrived.session_id in self._sessions:  # its end is missing
            self._leave(arrived.session_id, None)
        self._sessions[arrived.session_id] = OpenSession(arrived, above)
        self.sessions += 1

    def _session(self, event: ev.SessionReturned | ev.SessionAdmitted | ev.SessionEnded) -> None:
        session = self._sessions.get(event.session_id)
        if session is None:
            return
        match event:
            case ev.SessionReturned():
                session.waits_since_s = event.at_s
            case ev.SessionAdmitted():
                if (gate := session.let_in(event)) is not None:
                    self._tell(gate)
            case ev.SessionEnded():
                self._leave(event.session_id, event)

    def _leave(self, session_id: SessionId, ended: ev.SessionEnded | None) -> None:
        session = self._sessions.pop(session_id)
        self._left.pop(session_id, None)
        self._left[session_id] = session.place
        if len(self._left) > _MOST_LEFT:
            del self._left[next(iter(self._left))]
        self._tell(session.over(ended, self._last_s))

    def _begin_call(self, queued: ev.CallQueued) -> None:
        key = queued.session_id, queued.call_id
        for of_old in (self._late, self._calls):  # its client has used the name again
            if (old := of_old.pop(key, None)) is not None:
                self._tell(old.over(queued.at_s))
        if (above := self._place(queued.session_id)) is not None:
            self._calls[key] = OpenCall(queued, above)

    def _end_call(self, event: ev.CallServed | ev.CallFinished) -> None:
        key = event.session_id, event.call_id
        call = self._calls.get(key) or self._late.get(key)
        if call is None:
            return
        if isinstance(event, ev.CallServed):
            call.served = event
        else:
            call.finished = event
            self._calls.pop(key, None)
            self._late[key] = call
        if call.served and call.finished:
            self._tell(self._late.pop(key).over(self._last_s))

    def _begin_tool(self, queued: ev.ToolQueued) -> None:
        key = queued.session_id, queued.tool_id
        if (above := self._place(queued.session_id)) is None:
            return
        if key in self._tools or len(self._tools) >= _MOST_TOOLS:
            unheard = key if key in self._tools else next(iter(self._tools))
            self._tell(self._tools.pop(unheard).over(None, queued.at_s))
        self._tools[key] = OpenTool(queued, above)

    def _tool(self, event: ev.ToolStarted | ev.ToolProgressed | ev.ToolFinished) -> None:
        key = event.session_id, event.tool_id
        if (tool := self._tools.get(key)) is None:
            return
        match event:
            case ev.ToolStarted():
                tool.started = event
            case ev.ToolProgressed():
                tool.progress(event)
            case ev.ToolFinished():
                self._tell(self._tools.pop(key).over(event, event.at_s))
