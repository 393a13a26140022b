"""The control plane: folds the stream into sessions and pressure, and opens the gate.

    at the gate   a call waits: of a new session, or of one that was paused and came back
    active        past the gate, from the decision on; what `Admission` counts
    paused        sent back, and its next call has not come

Every session is in one of the three. The KV of a paused one does not count in the pressure: nothing
keeps it from being evicted (held blocks are in `kv_used_frac`), and to make room is why it was sent
back. It counts again from its next admission on.

Whoever its tenant's limit keeps out is shown to no admission (core.quotas).

A child (a sub-agent) of an active session does not wait at the gate, whatever the admission, which
is asked about the others only: its parent waits for it, and keeps its own place for as long.

Sans-I/O. A shell (the gateway, the simulator) hands it every event it sees and carries out
what it returns; neither holds any rule of its own. The shell's own facts must be legal. Facts that
crossed a process may be late or lost: those that no longer fit are counted in `late`.
"""

from collections.abc import Collection
from math import inf
from typing import Final, assert_never

from mars.core import events as ev
from mars.core.admission import Admission, GatedView, overdue
from mars.core.decisions import Admit, Decision, Pause
from mars.core.errors import IllegalMoveError
from mars.core.failsafe import Failsafe
from mars.core.ids import SessionId
from mars.core.meter import Meter
from mars.core.pressure import Pressure
from mars.core.quotas import Quotas, Seats
from mars.core.session import Phase, Session
from mars.core.settings import GateSettings
from mars.core.sign import Sign

_MAY_OPEN: Final[frozenset[type[ev.Event]]] = frozenset(
    {
        ev.SessionArrived,
        ev.SessionReturned,
        ev.SessionEnded,
        ev.CallFinished,
        ev.CallServed,
        ev.ToolFinished,
        ev.EngineSampled,
        ev.ToolsSampled,
    }
)
"""Facts after which the gate is asked about: the others tell it nothing new."""

UNBOUNDED: Final = GateSettings(blind_s=inf)
"""Of an engine that cannot go missing."""


class ControlPlane:
    def __init__(
        self,
        admission: Admission,
        gate: GateSettings = UNBOUNDED,
        quotas: Quotas | None = None,
    ) -> None:
        """`quotas`: of tenants, over all control planes that are given the same."""
        self._admission = admission
        self._bounds = gate
        self.failsafe = Failsafe(gate.blind_s)
        self._seats = Seats(quotas)
        self._gate: dict[SessionId, GatedView] = {}
        self._children: dict[SessionId, SessionId] = {}
        """Those at the gate that have a parent, and it."""
        self._active: dict[SessionId, Session] = {}
        self._paused: dict[SessionId, Session] = {}
        self._restored: list[SessionId] = []
        """Those at the gate that were past that of an earlier gateway."""
        self._meter = Meter()
        self._sign = Sign()
        self.sessions: dict[SessionId, Session] = {}
        self.window: int | None = None
        self.why_not = ""
        """Why the gated sessions wait, in words."""
        self.late = 0

    @property
    def pressure(self) -> Pressure:
        return self._meter.pressure

    @property
    def tool_controls(self) -> str:
        return self._meter.tool_controls

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def gated(self) -> int:
        return len(self._gate)

    @property
    def held_back(self) -> dict[SessionId, str]:
        """Those of them whose tenant has as many in as it may, and that in words."""
        return self._seats.held_back(self._gate.values())

    @property
    def offered(self) -> Collection[GatedView]:
        """Those of them who may be let in."""
        return self._seats.offered(self._gate.values())

    @property
    def paused(self) -> int:
        return len(self._paused)

    @property
    def tick_s(self) -> float | None:
        """How often the shell should call `tick`; None: never."""
        return self._admission.tick_s

    @property
    def watch_s(self) -> float | None:
        """How often the shell should call `watch`: what comes by time is seen a tenth late."""
        bound_s = min(self._bounds.blind_s, self._bounds.wait_s or inf)
        return bound_s / 10 if bound_s < inf else None

    def handle(self, event: ev.Event) -> list[Decision]:
        match event:
            case ev.SessionArrived() | ev.SessionReturned():
                self._come(event)
            case ev.SessionAdmitted() | ev.SessionPaused():
                self.sessions[event.session_id].advance(event)
            case ev.SessionEnded():
                self._leave(event)
            case ev.CallQueued() | ev.CallFinished():
                if event.session_id in self.sessions:
                    self._advance(self.sessions[event.session_id], event)
                else:  # it was ended while its last call was open
                    self.late += 1
            case (
                ev.CallStarted()
                | ev.CallPreempted()
                | ev.CallServed()
                | ev.KvHeld()
                | ev.KvDropped()
                | ev.KvReleased()
                | ev.ToolQueued()
                | ev.ToolStarted()
                | ev.ToolProgressed()
                | ev.ToolFinished()
            ):
                self._hear(event)
            case ev.EngineSampled() | ev.ToolsSampled():
                self._meter.sample(event)
            case ev.SessionRefused() | ev.GateShut() | ev.FailOpenChanged():
                pass  # our own word
            case _:
                assert_never(event)
        self._admission.observe(event)
        return self._open_gate(event.at_s) if type(event) in _MAY_OPEN else []

    def tick(self, now_s: float) -> list[Decision]:
        """Ask again who may enter: a window that waits for time to pass must not need an event."""
        return self._open_gate(now_s)

    def watch(self, now_s: float) -> list[Decision]:
        """See what comes by time alone: that nothing is heard, or somebody has waited too long."""
        if changed := self.failsafe.look(self.pressure, now_s):
            return [*changed, *self._open_gate(now_s)]
        return [*self._let_in(list(overdue(self.offered, self._bounds, now_s)))]

    def _come(self, event: ev.SessionArrived | ev.SessionReturned) -> None:
        """A call is at the gate."""
        session_id = event.session_id
        returning = isinstance(event, ev.SessionReturned)
        session = self.sessions.get(session_id) or Session.of(event)
        if returning or session_id in self.sessions:
            session.advance(event)  # raises at a second arrival: the table has none
        if returning and self._paused.pop(session_id, None) is None:
            return  # it was let in meanwhile
        self.sessions[session_id] = session
        self._gate[session_id] = GatedView(
            session_id=session_id,
            arrived_s=event.at_s if returning else session.arrived_s,
            prompt_bytes=event.prompt_bytes,
            patience_s=event.patience_s,
            context_tokens=session.context_tokens,
            returning=returning,
            parent_id=session.parent_id,
            tenant=session.tenant,
        )
        if session.parent_id is not None:
            self._children[session_id] = session.parent_id
        if isinstance(event, ev.SessionArrived) and event.was_in:
            self._restored.append(session_id)

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
            self._meter.served(event.session_id, event.prompt_tokens)
        if session.open_calls != calls:
            self._meter.count_calls(event.at_s, session.open_calls - calls)
        if session.context_tokens != context_tokens and event.session_id in self._active:
            self._meter.grow(session.context_tokens - context_tokens)

    def _leave(self, event: ev.SessionEnded) -> None:
        session = self.sessions[event.session_id]
        session.advance(event)
        del self.sessions[event.session_id]
        self._gate.pop(event.session_id, None)
        self._children.pop(event.session_id, None)
        self._paused.pop(event.session_id, None)
        self._seats.leave(event.session_id)
        self._meter.count_calls(event.at_s, -session.open_calls)
        if self._active.pop(event.session_id, None):
            self._meter.leave(session)
            self._meter.foresee()

    def _open_gate(self, now_s: float) -> list[Decision]:
        changed: list[Decision] = [*self.failsafe.look(self.pressure, now_s)]
        if self._restored:
            changed += self._let_restored_in()
        if self.failsafe.cause:
            return [*changed, *self._let_all_in(self.failsafe)]
        if not (self._gate or self._admission.steers):
            self._sign.clear()
            return changed
        family = self._let_children_in() if self._children else []
        verdict = self._admission.choose(self.offered, self._active.values(), self.pressure, now_s)
        if family or verdict.admit or verdict.pause:
            for admit in verdict.admit:
                self._admit(admit)
            for pause in verdict.pause:
                self._pause(pause)
            family += self._let_children_in()
            self._meter.foresee()
        verdict = self._seats.explain(verdict, self._gate.values())
        self.window, self.why_not = verdict.window, verdict.why_not
        shut = self._sign.say(verdict, len(self._gate), now_s)
        return [*changed, *verdict.admit, *family, *verdict.pause, *shut]

    def _let_all_in(self, outage: Failsafe) -> list[Admit]:
        """Everybody at the gate, for a cause that is not empty; whoever a tenant's limit keeps out
        only for a fault: the limit is kept by what has failed.
        """
        assert outage.cause  # noqa: S101 mypy cannot see that the caller has asked
        self.window, self.why_not = None, ""
        self._sign.clear()
        why, by = f"{outage.why}: the gate is open", outage.cause
        views = self._gate.values() if by == "fault" else self.offered
        return self._let_in([Admit(session_id=it.session_id, why=why, by=by) for it in views])

    def _let_restored_in(self) -> list[Admit]:
        why = "it was past the gate before the gateway was started again"
        back, self._restored = self._restored, []
        return self._let_in([Admit(session_id=it, why=why, by="restart") for it in back])

    def _let_in(self, admits: list[Admit]) -> list[Admit]:
        """Whatever the admission would say."""
        for admit in admits:
            self._admit(admit)
        if admits:
            self._meter.foresee()
        return admits

    def _let_children_in(self) -> list[Admit]:
        let_in: list[Admit] = []
        while ready := [c for c, parent_id in self._children.items() if parent_id in self._active]:
            for child_id in ready:
                why = f"its parent {self._children[child_id]} is in, and waits for it"
                let_in.append(Admit(session_id=child_id, why=why, by="parent"))
                self._admit(let_in[-1])
        return let_in

    def _admit(self, admit: Admit) -> None:
        session_id, prompt_bytes = admit.session_id, 0
        if self._paused.pop(session_id, None) is None:
            view = self._gate.pop(session_id)
            prompt_bytes = view.prompt_bytes
            self._children.pop(session_id, None)
            self._seats.enter(view)
        session = self._active[session_id] = self.sessions[session_id]
        self._meter.enter(session, prompt_bytes)

    def _pause(self, pause: Pause) -> None:
        session = self._active[pause.session_id]
        if session.phase is not Phase.ACTING:
            raise IllegalMoveError(pause.session_id, session.phase.value, type(pause).__name__)
        self._paused[pause.session_id] = self._active.pop(pause.session_id)
        self._meter.leave(session)

    def check(self) -> None:
        """Raise AssertionError when an invariant of docs/invariants.md does not hold."""
        sessions, active = self.sessions.values(), self._active.values()
        gated = {s.session_id for s in sessions if s.phase is Phase.GATED}
        places = sorted([*self._gate, *self._active, *self._paused])
        assert set(self._gate) <= set(self.sessions), "a phantom at the gate"  # noqa: S101
        assert gated >= set(self._gate), "past the gate without Admit"  # noqa: S101
        assert places == sorted(self.sessions), "nowhere, or in two places"  # noqa: S101
        assert all(  # noqa: S101
            s.phase in {Phase.ACTING, Phase.PAUSED} for s in self._paused.values()
        ), "back without Admit"
        assert self._meter.open_calls == sum(s.open_calls for s in sessions), "calls leak"  # noqa: S101
        assert self._meter.context_tokens == sum(  # noqa: S101
            s.context_tokens for s in active
        ), "contexts leak"
