"""The control plane under every order of events that a shell and a lossy link can make."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mars.core import events as ev
from mars.core.admission import Admission, Beat, GatedView, Open, Verdict, let_in
from mars.core.control import ControlPlane
from mars.core.decisions import Admit, Decision, Pause, Shut
from mars.core.errors import IllegalMoveError
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.pressure import Pressure
from mars.core.residency import Residency
from mars.core.session import Phase, Session
from mars.core.settings import ResidencySettings, WindowSettings
from mars.core.window import Window


class NeverAdmit(Open):
    """An instrument: the worst admission there is. Nobody may be lost under it."""

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        return Verdict(admit=[], why_not="never", window=0)


class LastFirst(Open):
    """An instrument: one at a time, in the wrong order."""

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        return Verdict(admit=let_in([*gated][-1:], "last"), why_not="not last", window=None)


class AdmitTwice(Open):
    """An instrument: breaks the contract."""

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        return Verdict(admit=let_in([*gated, *gated], "twice"), why_not="", window=None)


class Restless(Open):
    """An instrument: sends back whoever rests, and lets in half of them before they return.

    Nobody of whom it has decided something that is not carried out yet: such a session only looks
    as if it rested.
    """

    steers = True

    def __init__(self) -> None:
        self.away: list[SessionId] = []
        self.orders: list[SessionId] = []  # not carried out

    def observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.SessionReturned | ev.SessionEnded):
            self.away = [away for away in self.away if away != event.session_id]
        if isinstance(event, ev.SessionEnded):
            self.orders = [order for order in self.orders if order != event.session_id]
        if isinstance(event, ev.SessionAdmitted | ev.SessionPaused):
            self.orders.remove(event.session_id)

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        back = self.away[:1] if len(self.away) > 1 else []
        self.away = self.away[len(back) :]
        resting = [it.session_id for it in active if it.phase is Phase.ACTING]
        at_rest = [it for it in resting if it not in self.orders][:1]
        self.away += at_rest
        enter = [*gated][: 1 if len(active) - len(at_rest) < 2 else 0]
        self.orders += [*back, *at_rest, *(view.session_id for view in enter)]
        return Verdict(
            admit=[*let_in(enter, "room"), *(Admit(session_id=it, why="back") for it in back)],
            pause=[Pause(session_id=it, why="rests") for it in at_rest],
            why_not="restless",
            window=None,
        )


class PauseBusy(Open):
    """An instrument: breaks the contract."""

    steers = True

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        busy = [it.session_id for it in active if it.open_calls]
        pause = [Pause(session_id=it, why="busy") for it in busy]
        return Verdict(admit=let_in(gated, ""), pause=pause, why_not="", window=None)


ADMISSIONS: dict[str, Callable[[], Admission]] = {
    "open": Open,
    "window": lambda: Window(WindowSettings(first=2)),
    "residency": lambda: Residency(ResidencySettings(first=2)),
    "never": NeverAdmit,
    "last first": LastFirst,
    "restless": Restless,
}


def arrived(session: str, at_s: float = 0.0) -> ev.SessionArrived:
    return ev.SessionArrived(at_s=at_s, session_id=SessionId(session))


def admitted(session: str, at_s: float = 0.0) -> ev.SessionAdmitted:
    return ev.SessionAdmitted(at_s=at_s, session_id=SessionId(session), why="")


def paused(session: str, at_s: float = 0.0) -> ev.SessionPaused:
    return ev.SessionPaused(at_s=at_s, session_id=SessionId(session), why="")


def returned(session: str, at_s: float = 0.0, prompt_bytes: int = 0) -> ev.SessionReturned:
    return ev.SessionReturned(at_s=at_s, session_id=SessionId(session), prompt_bytes=prompt_bytes)


def queued(session: str, call: str, at_s: float = 0.0) -> ev.CallQueued:
    return ev.CallQueued(at_s=at_s, session_id=SessionId(session), call_id=CallId(call), turn=1)


def started(session: str, call: str, at_s: float = 0.0) -> ev.CallStarted:
    return ev.CallStarted(
        at_s=at_s,
        session_id=SessionId(session),
        call_id=CallId(call),
        prompt_tokens=10,
        cached_tokens=0,
    )


def served(session: str, call: str, tokens: int, at_s: float = 0.0) -> ev.CallServed:
    return ev.CallServed(
        at_s=at_s,
        session_id=SessionId(session),
        call_id=CallId(call),
        prompt_tokens=tokens,
        cached_tokens=0,
        computed_tokens=tokens,
        made_tokens=1,
        queued_s=0.0,
        ok=True,
    )


def finished(session: str, call: str, at_s: float = 0.0, *, ok: bool = True) -> ev.CallFinished:
    return ev.CallFinished(at_s=at_s, session_id=SessionId(session), call_id=CallId(call), ok=ok)


def ended(session: str, at_s: float = 0.0) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=at_s, session_id=SessionId(session), why="")


def engine_sampled(used: int, total: int, at_s: float = 0.0) -> ev.EngineSampled:
    return ev.EngineSampled(
        at_s=at_s,
        kv_used_blocks=used,
        kv_held_blocks=0,
        kv_total_blocks=total,
        block_tokens=16,
        running_calls=0,
        waiting_calls=0,
    )


def from_afar(kind: str, session: str, call: str, at_s: float) -> ev.SessionEvent:
    """A fact of the engine or of the tool runtime."""
    session_id, tool_id = SessionId(session), ToolId("t")
    facts: dict[str, ev.SessionEvent] = {
        "started": started(session, call, at_s),
        "preempted": ev.CallPreempted(
            at_s=at_s, session_id=session_id, call_id=CallId(call), lost_tokens=1
        ),
        "served": served(session, call, 40 + len(session + call), at_s),
        "held": ev.KvHeld(at_s=at_s, session_id=session_id, kv_tokens=1, keep_s=1.0, why=""),
        "released": ev.KvReleased(
            at_s=at_s, session_id=session_id, kv_tokens=1, held_s=1.0, why="expired"
        ),
        "tool queued": ev.ToolQueued(
            at_s=at_s, session_id=session_id, tool_id=tool_id, tool="sh", cores=1
        ),
        "tool started": ev.ToolStarted(
            at_s=at_s, session_id=session_id, tool_id=tool_id, tool="sh", cores=(0,), wait_s=0.0
        ),
        "tool progressed": ev.ToolProgressed(
            at_s=at_s,
            session_id=session_id,
            tool_id=tool_id,
            tool="sh",
            run_s=1.0,
            cpu_s=1.0,
            memory_bytes=1,
        ),
        "tool finished": ev.ToolFinished(
            at_s=at_s,
            session_id=session_id,
            tool_id=tool_id,
            tool="sh",
            run_s=1.0,
            cpu_s=1.0,
            peak_memory_bytes=1,
            exit_code=0,
        ),
    }
    return facts[kind]


KINDS_FROM_AFAR = (
    "started",
    "preempted",
    "served",
    "held",
    "released",
    "tool queued",
    "tool started",
    "tool progressed",
    "tool finished",
)


Stage = Literal["gated", "inside", "paused"]


def moves(decisions: list[Decision]) -> list[Admit | Pause]:
    return [it for it in decisions if isinstance(it, Admit | Pause)]


class Shell(RuleBasedStateMachine):
    """A gateway whose own facts are legal, beside an engine and tools whose facts are late, lost,
    doubled or about nobody. Decisions are carried out some time after they were taken.
    """

    admissions: ClassVar[Mapping[str, Callable[[], Admission]]] = ADMISSIONS
    unfair: ClassVar[set[str]] = {"last first"}
    shut: ClassVar[set[str]] = {"never"}

    @initialize(data=st.data())
    def open(self, data: st.DataObject) -> None:
        self.admission = data.draw(st.sampled_from(sorted(self.admissions)))
        self.plane = self.make_plane()
        self.now_s = 0.0
        self.named = 0
        self.gate: list[str] = []
        self.active: list[str] = []  # from the decision on
        self.sent_back: list[str] = []  # from the decision on, until they are at the gate
        self.orders: list[Admit | Pause] = []  # not yet carried out
        self.stages: dict[str, Stage] = {}  # as the shell has told
        self.calls: dict[str, str] = {}  # open call -> its session, which may have ended
        self.past_calls: list[str] = ["never seen"]
        self.past_sessions: list[str] = ["never seen"]
        self.kv_total_tokens = 0

    def make_plane(self) -> ControlPlane:
        return ControlPlane(self.admissions[self.admission]())

    def tell(self, event: ev.Event) -> None:
        late = self.plane.late
        self.follow(self.plane.handle(event))
        assert self.plane.late >= late

    def follow(self, said: list[Decision]) -> None:
        self.plane.check()
        decisions = moves(said)
        from_gate = [it.session_id for it in decisions if it.session_id in self.gate]
        if self.admission not in self.unfair:
            assert from_gate == self.gate[: len(from_gate)], "somebody was overtaken"
        for decision in decisions:
            session = decision.session_id
            match decision:
                case Admit():
                    (self.gate if session in self.gate else self.sent_back).remove(session)
                    self.active.append(session)
                case Pause():
                    assert self.stages[session] == "inside"
                    assert session not in self.calls.values()
                    self.active.remove(session)
                    self.sent_back.append(session)
        self.orders += decisions
        for shut in said:
            if isinstance(shut, Shut):
                assert shut.waiting == len(self.gate) > 0
                self.tell(ev.GateShut(at_s=self.now_s, limit="", why="", waiting=shut.waiting))

    def name(self) -> str:
        self.named += 1
        return str(self.named)

    def inside(self) -> list[str]:
        """Who may call: past the gate, and not about to be sent back."""
        ordered = {order.session_id for order in self.orders}
        return [s for s, stage in self.stages.items() if stage == "inside" and s not in ordered]

    def away(self) -> list[str]:
        return [s for s, stage in self.stages.items() if stage == "paused"]

    @rule(passed_s=st.floats(0.0, 20.0))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.follow(self.plane.tick(self.now_s))

    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        """Sessions come; one that ended may come back, once its calls are closed."""
        old = set(self.past_sessions[1:]) - {*self.stages, *self.calls.values()}
        session = min(old) if old and again else self.name()
        self.gate.append(session)
        self.stages[session] = "gated"
        self.tell(arrived(session, self.now_s))

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def carry_out(self, data: st.DataObject) -> None:
        """The first order of any session."""
        session = data.draw(st.sampled_from([order.session_id for order in self.orders]))
        order = next(order for order in self.orders if order.session_id == session)
        self.orders.remove(order)
        match order:
            case Admit():
                self.stages[session] = "inside"
                self.tell(admitted(session, self.now_s))
            case Pause():
                self.stages[session] = "paused"
                self.tell(paused(session, self.now_s))

    @precondition(lambda self: self.away())
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """Also one that has been let in, and does not know yet."""
        session = data.draw(st.sampled_from(self.away()))
        self.stages[session] = "gated"
        if session in self.sent_back:
            self.sent_back.remove(session)
            self.gate.append(session)
        self.tell(returned(session, self.now_s))

    @precondition(lambda self: self.inside())
    @rule(data=st.data())
    def queue_call(self, data: st.DataObject) -> None:
        session, call = data.draw(st.sampled_from(self.inside())), "c" + self.name()
        self.calls[call] = session
        self.tell(queued(session, call, self.now_s))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), ok=st.booleans())
    def finish_call(self, data: st.DataObject, ok: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        session = self.calls.pop(call)
        self.past_calls.append(call)
        late = self.plane.late + (session not in self.stages)
        self.tell(finished(session, call, self.now_s, ok=ok))
        assert self.plane.late == late

    @precondition(lambda self: self.stages)
    @rule(data=st.data())
    def end_session(self, data: st.DataObject) -> None:
        """From anywhere: at the gate, just let in, at rest, with calls open, paused."""
        session = data.draw(st.sampled_from(sorted(self.stages)))
        del self.stages[session]
        for where in (self.gate, self.active, self.sent_back):
            if session in where:
                where.remove(session)
        self.orders = [order for order in self.orders if order.session_id != session]
        self.past_sessions.append(session)
        self.tell(ended(session, self.now_s))

    @rule(data=st.data(), kind=st.sampled_from(KINDS_FROM_AFAR))
    def hear_of_an_open_call(self, data: st.DataObject, kind: str) -> None:
        """Out of order, twice, or not at all: it never raises."""
        calls = sorted(self.calls.items()) or [("never seen", "never seen")]
        call, session = data.draw(st.sampled_from(calls))
        self.hear(from_afar(kind, session, call, self.now_s))

    @rule(data=st.data(), kind=st.sampled_from(KINDS_FROM_AFAR))
    def hear_of_anything(self, data: st.DataObject, kind: str) -> None:
        session = data.draw(st.sampled_from([*self.past_sessions, *self.stages]))
        call = data.draw(st.sampled_from(self.past_calls))
        self.hear(from_afar(kind, session, call, self.now_s))

    def hear(self, event: ev.SessionEvent) -> None:
        sessions, late = copy.deepcopy(self.plane.sessions), self.plane.late
        self.tell(event)
        assert self.plane.late - late in {0, 1}
        if self.plane.late > late:
            assert self.plane.sessions == sessions, "a fact that did not fit changed something"
        else:
            stage = self.stages.get(event.session_id)
            assert stage in {"inside", "paused"}, "a fact about nobody was believed"

    @rule(used=st.integers(0, 100), seen_s=st.floats(0.0, 5.0))
    def sample_engine(self, used: int, seen_s: float) -> None:
        self.kv_total_tokens = 1600
        self.tell(engine_sampled(used, 100, max(0.0, self.now_s - seen_s)))

    @rule(running=st.integers(0, 4), waiting=st.integers(0, 8), wait_s=st.floats(0.0, 9.0))
    def sample_tools(self, running: int, waiting: int, wait_s: float) -> None:
        self.tell(
            ev.ToolsSampled(
                at_s=self.now_s, running=running, waiting=waiting, slots=4, wait_s=wait_s
            )
        )

    @invariant()
    def nobody_is_lost_and_nobody_is_made_up(self) -> None:
        assert sorted(self.plane.sessions) == sorted(self.stages)
        assert sorted(self.stages) == sorted([*self.gate, *self.active, *self.sent_back])
        assert self.plane.active == len(self.active)
        assert self.plane.paused == len(self.sent_back)
        for session, stage in self.stages.items():
            phase = self.plane.sessions[SessionId(session)].phase
            known = {Phase.GATED: "gated", Phase.PAUSED: "paused"}
            assert known.get(phase, "inside") == stage

    @invariant()
    def calls_and_contexts_add_up(self) -> None:
        self.plane.check()
        sessions = self.plane.sessions
        open_calls = sum(session in self.stages for session in self.calls.values())
        assert sum(session.open_calls for session in sessions.values()) == open_calls
        pressure = self.plane.pressure
        if open_calls or pressure.engine_at_s is not None:
            assert (pressure.owes_since_s is None) == (open_calls == 0)
        if self.kv_total_tokens:
            contexts = sum(sessions[SessionId(it)].context_tokens for it in self.active)
            assert self.plane.pressure.kv_session_frac == contexts / self.kv_total_tokens

    @invariant()
    def an_empty_machine_lets_somebody_in(self) -> None:
        if self.admission not in self.shut and not self.active:
            assert not self.gate


TestShell = Shell.TestCase
TestShell.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def plane_with(*events: ev.Event, admission: Admission | None = None) -> ControlPlane:
    plane = ControlPlane(admission or Open())
    for event in events:
        plane.handle(event)
    return plane


def test_a_lost_call_started_costs_nothing_but_freshness() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"))
    plane.handle(served("s", "c", 99))
    plane.handle(finished("s", "c"))
    session = plane.sessions[SessionId("s")]
    assert (session.phase, session.open_calls, session.context_tokens) == (Phase.ACTING, 0, 100)
    assert plane.late == 0


def test_the_account_may_come_after_the_answer_but_not_after_the_end() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"), finished("s", "c"))
    plane.handle(served("s", "c", 99))
    assert (plane.sessions[SessionId("s")].context_tokens, plane.late) == (100, 0)
    plane.handle(ended("s"))
    plane.handle(served("s", "c", 99))
    assert (plane.sessions, plane.late) == ({}, 1)


def test_a_late_start_is_counted_and_does_not_reopen_the_call() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"), finished("s", "c"))
    plane.handle(started("s", "c"))
    assert (plane.sessions[SessionId("s")].open_calls, plane.late) == (0, 1)


def test_the_last_call_may_close_after_its_session() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"))
    plane.handle(engine_sampled(1, 100))
    assert plane.pressure.owes_since_s is not None
    plane.handle(ended("s"))
    assert plane.pressure.owes_since_s is None
    plane.handle(finished("s", "c"))
    assert (plane.sessions, plane.late) == ({}, 1)


@pytest.mark.parametrize(
    "event",
    [arrived("s"), queued("gated", "c"), finished("s", "never queued"), admitted("s")],
    ids=lambda event: type(event).__name__,
)
def test_an_illegal_fact_of_the_shell_raises_and_changes_nothing(event: ev.SessionEvent) -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"))
    plane._admission = NeverAdmit()
    plane.handle(arrived("gated"))
    before = copy.deepcopy((plane.sessions, plane._gate, plane.pressure, plane.late))
    with pytest.raises(IllegalMoveError):
        plane.handle(event)
    assert (plane.sessions, plane._gate, plane.pressure, plane.late) == before
    plane.check()


def test_a_session_may_leave_the_gate_without_entering() -> None:
    plane = plane_with(arrived("a"), arrived("b"), ended("a"), admission=NeverAdmit())
    assert list(plane.sessions) == ["b"]
    assert (plane.active, plane.window, plane.why_not) == (0, 0, "never")


def test_every_event_may_open_the_gate() -> None:
    plane = ControlPlane(Window(WindowSettings(first=1)))
    assert [admit.session_id for admit in moves(plane.handle(arrived("a")))] == ["a"]
    plane.handle(admitted("a"))
    plane.handle(queued("a", "c"))
    plane.handle(engine_sampled(95, 100))
    why = "KV is at 95% (limit 90%)"
    assert plane.handle(arrived("b")) == [Shut(limit="KV pressure", why=why, waiting=1)]
    assert plane.why_not == why
    assert [admit.session_id for admit in moves(plane.handle(ended("a")))] == ["b"]


def test_an_admission_that_lets_a_session_in_twice_does_not_pass() -> None:
    plane = ControlPlane(AdmitTwice())
    with pytest.raises(KeyError, match="s"):
        plane.handle(arrived("s"))


def test_check_sees_a_session_that_got_in_without_admit() -> None:
    plane = plane_with(arrived("s"), admission=NeverAdmit())
    plane.handle(admitted("s"))
    with pytest.raises(AssertionError, match="past the gate without Admit"):
        plane.check()


def test_check_sees_phantoms_and_leaks() -> None:
    plane = plane_with(arrived("s"), admitted("s"))
    plane._meter.open_calls += 1
    with pytest.raises(AssertionError, match="calls leak"):
        plane.check()
    plane._meter.open_calls -= 1
    del plane.sessions[SessionId("s")]
    with pytest.raises(AssertionError, match="nowhere, or in two places"):
        plane.check()
    del plane._active[SessionId("s")]
    plane.check()
    phantom = SessionId("phantom")
    plane._gate[phantom] = GatedView(session_id=phantom, arrived_s=0.0, prompt_bytes=0)
    with pytest.raises(AssertionError, match="a phantom at the gate"):
        plane.check()
    del plane._gate[phantom]
    plane._meter.context_tokens += 1
    with pytest.raises(AssertionError, match="contexts leak"):
        plane.check()


def test_pressure_is_read_off_the_samples() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c", at_s=3.0))
    plane.handle(engine_sampled(25, 100, at_s=4.0))
    tools = ev.ToolsSampled(at_s=5.0, running=3, waiting=6, slots=6, wait_s=0.5, controls="by luck")
    plane.handle(tools)
    plane.handle(served("s", "c", 799))
    assert plane.pressure == Pressure(
        kv_used_frac=0.25,
        kv_session_frac=0.5,  # 800 of 100 blocks of 16
        kv_frac_per_byte=0.25 / 1600,  # nothing learned yet
        tool_load=1.5,
        tool_wait_s=0.5,
        engine_at_s=4.0,
        tools_at_s=5.0,
        owes_since_s=3.0,
    )
    assert plane.pressure.kv_frac == 0.5
    assert plane.pressure.blind_s(10.0) == 6.0
    assert plane.tool_controls == "by luck"


def plane_with_one_paused(admission: Admission | None = None) -> ControlPlane:
    """`s` has a context of 800 tokens, half of the KV, and has been sent back."""
    plane = plane_with(engine_sampled(0, 100), arrived("s"), admitted("s"), queued("s", "c"))
    plane.handle(served("s", "c", 799))
    plane._admission = admission or Restless()
    assert plane.handle(finished("s", "c")) == [Pause(session_id=SessionId("s"), why="rests")]
    plane._admission = admission or NeverAdmit()
    plane.handle(paused("s"))
    return plane


def test_the_kv_of_a_paused_session_counts_again_when_it_is_let_in() -> None:
    plane = plane_with_one_paused()
    assert (plane.active, plane.paused, plane.pressure.kv_session_frac) == (0, 1, 0.0)
    assert moves(plane.handle(returned("s", prompt_bytes=4000))) == []
    view = GatedView(
        session_id=SessionId("s"),
        arrived_s=0.0,
        prompt_bytes=4000,
        context_tokens=800,
        returning=True,
    )
    assert (list(plane._gate.values()), plane.paused) == ([view], 0)
    plane._admission = Open()
    assert plane.tick(1.0) == [Admit(session_id=SessionId("s"), why="no admission control")]
    assert plane.pressure.kv_session_frac == 0.5, "its context once, and no estimate of its prompt"


def test_a_paused_session_hears_the_end_of_what_it_began() -> None:
    plane = plane_with_one_paused()
    plane.handle(served("s", "c", 1199))
    for kind in ("tool started", "tool finished", "released"):
        plane.handle(from_afar(kind, "s", "c", 1.0))
    assert plane.sessions[SessionId("s")].context_tokens == 1200
    assert (plane.sessions[SessionId("s")].phase, plane.late) == (Phase.PAUSED, 0)
    assert plane.pressure.kv_session_frac == 0.0
    plane.handle(ended("s"))
    assert (plane.sessions, plane.paused) == ({}, 0)
    plane.check()


def test_a_session_with_a_call_open_is_not_paused() -> None:
    plane = ControlPlane(PauseBusy())
    plane.handle(arrived("s"))
    plane.handle(admitted("s"))
    plane.handle(queued("s", "c"))
    with pytest.raises(IllegalMoveError, match="Pause cannot happen while queued"):
        plane.tick(1.0)


def test_who_does_not_steer_is_not_asked_while_nobody_waits() -> None:
    class Asked(Open):
        times = 0

        def choose(
            self,
            gated: Collection[GatedView],
            active: Collection[Session],
            pressure: Pressure,
            now_s: float,
        ) -> Verdict:
            Asked.times += 1
            return super().choose(gated, active, pressure, now_s)

    plane_with(arrived("s"), admitted("s"), queued("s", "c"), admission=Asked())
    assert Asked.times == 1


def test_the_gate_is_shown_and_not_copied() -> None:
    class Looks(NeverAdmit):
        seen: ClassVar[list[object]] = []

        def choose(
            self,
            gated: Collection[GatedView],
            active: Collection[Session],
            pressure: Pressure,
            now_s: float,
        ) -> Verdict:
            self.seen.append(gated)
            return super().choose(gated, active, pressure, now_s)

    plane_with(arrived("a"), arrived("b"), admission=Looks())
    assert isinstance(Looks.seen[0], type({}.values()))


@given(st.floats(0.1, 10.0), st.integers(1, 200))
def test_a_beat_is_due_once_a_period(period_s: float, times: int) -> None:
    """Also when the time is a sum of periods, which is not exact."""
    beat, now_s = Beat(period_s), 0.0
    for _ in range(times):
        assert beat.due(now_s)
        assert not beat.due(now_s + period_s / 2)
        now_s += period_s
