"""The control plane: folds the stream into sessions and pressure, and opens the gate.

Sans-I/O. A shell (the gateway, later the simulator) hands it every event it sees and carries out
what it returns; neither holds any rule of its own. The shell's own facts must be legal. Facts that
crossed a process may be late or lost: those that no longer fit are counted in `late`.
"""

from typing import assert_never

import msgspec

from mars.core import events as ev
from mars.core.admission import Admission, GatedView
from mars.core.decisions import Admit
from mars.core.errors import IllegalMoveError
from mars.core.estimate import Newcomers
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Phase, Session


class ControlPlane:
    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._gate: dict[SessionId, GatedView] = {}
        self._kv_capacity_tokens = 0
        self._context_tokens = 0
        self._newcomers = Newcomers()
        self._open_calls = 0
        self.sessions: dict[SessionId, Session] = {}
        self.pressure = Pressure()
        self.window: int | None = None
        self.why_not = ""
        """Why the gated sessions wait, in words."""
        self.late = 0

    @property
    def active(self) -> int:
        return len(self.sessions) - len(self._gate)

    def handle(self, event: ev.Event) -> list[Admit]:
        match event:
            case ev.SessionArrived():
                if known := self.sessions.get(event.session_id):
                    known.advance(event)  # raises: the table has no second arrival
                self.sessions[event.session_id] = Session(
                    event.session_id, event.at_s, since_s=event.at_s
                )
                self._gate[event.session_id] = GatedView(
                    session_id=event.session_id,
                    arrived_s=event.at_s,
                    prompt_bytes=event.prompt_bytes,
                )
            case ev.SessionAdmitted():
                self.sessions[event.session_id].advance(event)
            case ev.SessionEnded():
                self._leave(event)
            case ev.CallQueued() | ev.CallFinished():
                session = self.sessions.get(event.session_id)
                if session is None:  # it was ended while its last call was open
                    self.late += 1
                else:
                    self._advance(session, event)
            case (
                ev.CallStarted()
                | ev.CallPreempted()
                | ev.CallServed()
                | ev.KvHeld()
                | ev.KvReleased()
                | ev.ToolQueued()
                | ev.ToolStarted()
                | ev.ToolFinished()
            ):
                self._hear(event)
            case ev.EngineSampled() | ev.ToolsSampled():
                self._sample(event)
            case _:
                assert_never(event)
        self._admission.observe(event)
        return self._open_gate(event.at_s)

    def tick(self, now_s: float) -> list[Admit]:
        """Ask again who may enter: a window that waits for time to pass must not need an event."""
        return self._open_gate(now_s)

    def _hear(self, event: ev.SessionEvent) -> None:
        """A fact from another process: advisory."""
        session = self.sessions.get(event.session_id)
        try:
            if session is not None:
                self._advance(session, event)
        except IllegalMoveError:
            session = None
        if session is None:
            self.late += 1

    def _advance(self, session: Session, event: ev.SessionEvent) -> None:
        calls, context_tokens = session.open_calls, session.context_tokens
        session.advance(event)
        if isinstance(event, ev.CallServed):
            self._newcomers.served(event.session_id, event.prompt_tokens)
        self._count(event.at_s, session.open_calls - calls, session.context_tokens - context_tokens)

    def _count(self, now_s: float, calls: int, context_tokens: int) -> None:
        was_busy = self._open_calls > 0
        self._open_calls += calls
        self._context_tokens += context_tokens
        changes: dict[str, float | None] = {}
        if was_busy != (self._open_calls > 0):
            changes["busy_since_s"] = None if was_busy else now_s
        if changes:
            self.pressure = msgspec.structs.replace(self.pressure, **changes)
        if context_tokens:
            self._foresee()

    def _foresee(self) -> None:
        """KV that the admitted sessions have or are about to have."""
        capacity_tokens = self._kv_capacity_tokens
        if capacity_tokens:
            tokens = self._context_tokens + self._newcomers.tokens
            self.pressure = msgspec.structs.replace(
                self.pressure,
                kv_session_frac=tokens / capacity_tokens,
                kv_frac_per_byte=self._newcomers.tokens_per_byte / capacity_tokens,
            )

    def _sample(self, event: ev.EngineSampled | ev.ToolsSampled) -> None:
        match event:
            case ev.EngineSampled():
                self._kv_capacity_tokens = event.kv_total_blocks * event.block_tokens
                self.pressure = msgspec.structs.replace(
                    self.pressure,
                    kv_used_frac=event.kv_used_blocks / event.kv_total_blocks,
                    engine_at_s=event.at_s,
                )
                self._foresee()
            case ev.ToolsSampled():
                self.pressure = msgspec.structs.replace(
                    self.pressure,
                    tool_load=(event.running + event.waiting) / event.slots,
                    tool_wait_s=event.wait_s,
                    tools_at_s=event.at_s,
                )

    def _leave(self, event: ev.SessionEnded) -> None:
        session = self.sessions[event.session_id]
        session.advance(event)
        del self.sessions[event.session_id]
        self._gate.pop(event.session_id, None)
        self._newcomers.leave(event.session_id)
        self._count(event.at_s, -session.open_calls, -session.context_tokens)

    def _open_gate(self, now_s: float) -> list[Admit]:
        verdict = self._admission.choose(
            list(self._gate.values()), self.active, self.pressure, now_s
        )
        for admit in verdict.admit:
            view = self._gate.pop(admit.session_id)
            self._newcomers.enter(admit.session_id, view.prompt_bytes)
        if verdict.admit:
            self._foresee()
        self.window, self.why_not = verdict.window, verdict.why_not
        return list(verdict.admit)

    def check(self) -> None:
        """Raise AssertionError when an invariant of docs/invariants.md does not hold."""
        sessions = self.sessions.values()
        gated = {s.session_id for s in sessions if s.phase is Phase.GATED}
        assert set(self._gate) <= set(self.sessions), "a phantom at the gate"  # noqa: S101
        assert gated >= set(self._gate), "past the gate without Admit"  # noqa: S101
        assert self._open_calls == sum(s.open_calls for s in sessions), "calls leak"  # noqa: S101
        assert self._context_tokens == sum(  # noqa: S101
            s.context_tokens for s in sessions
        ), "contexts leak"
