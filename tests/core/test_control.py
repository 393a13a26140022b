"""The control plane under every order of events that a shell and a lossy link can make."""

import copy
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mars.core import events as ev
from mars.core.admission import Admission, GatedView, Open, Verdict, let_in
from mars.core.control import ControlPlane
from mars.core.errors import IllegalMoveError
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.pressure import Pressure
from mars.core.session import Phase
from mars.core.window import Window, WindowSettings


class NeverAdmit(Open):
    """An instrument: the worst admission there is. Nobody may be lost under it."""

    def choose(
        self, gated: Sequence[GatedView], active: int, pressure: Pressure, now_s: float
    ) -> Verdict:
        return Verdict(admit=[], why_not="never", window=0)


class LastFirst(Open):
    """An instrument: one at a time, in the wrong order."""

    def choose(
        self, gated: Sequence[GatedView], active: int, pressure: Pressure, now_s: float
    ) -> Verdict:
        return Verdict(admit=let_in(gated[-1:], "last"), why_not="not last", window=None)


class AdmitTwice(Open):
    """An instrument: breaks the contract."""

    def choose(
        self, gated: Sequence[GatedView], active: int, pressure: Pressure, now_s: float
    ) -> Verdict:
        return Verdict(admit=let_in([*gated, *gated], "twice"), why_not="", window=None)


ADMISSIONS: dict[str, Callable[[], Admission]] = {
    "open": Open,
    "window": lambda: Window(WindowSettings(first=2)),
    "never": NeverAdmit,
    "last first": LastFirst,
}


def arrived(session: str, at_s: float = 0.0) -> ev.SessionArrived:
    return ev.SessionArrived(at_s=at_s, session_id=SessionId(session))


def admitted(session: str, at_s: float = 0.0) -> ev.SessionAdmitted:
    return ev.SessionAdmitted(at_s=at_s, session_id=SessionId(session), why="")


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
    "tool finished",
)


class Shell(RuleBasedStateMachine):
    """A gateway whose own facts are legal, beside an engine and tools whose facts are late, lost,
    doubled or about nobody.
    """

    @initialize(admission=st.sampled_from(sorted(ADMISSIONS)))
    def open(self, admission: str) -> None:
        self.admission = admission
        self.plane = ControlPlane(ADMISSIONS[admission]())
        self.now_s = 0.0
        self.named = 0
        self.gated: list[str] = []
        self.let_in: list[str] = []  # the shell has not yet carried the decision out
        self.inside: list[str] = []
        self.calls: dict[str, str] = {}  # open call -> its session, which may have ended
        self.past_calls: list[str] = ["never seen"]
        self.past_sessions: list[str] = ["never seen"]
        self.kv_total_tokens = 0

    def tell(self, event: ev.Event) -> None:
        grown = self.plane.late
        admits = self.plane.handle(event)
        self.plane.check()
        assert self.plane.late >= grown
        entered: list[str] = [admit.session_id for admit in admits]
        if self.admission != "last first":
            assert entered == self.gated[: len(entered)], "somebody was overtaken"
        for session in entered:
            self.gated.remove(session)
            self.let_in.append(session)

    def name(self) -> str:
        self.named += 1
        return str(self.named)

    @rule(passed_s=st.floats(0.0, 20.0))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        """Sessions come; one that ended may come back, once its calls are closed."""
        old = set(self.past_sessions[1:]) - {*self.gated, *self.let_in, *self.inside}
        old -= set(self.calls.values())
        session = min(old) if old and again else self.name()
        self.gated.append(session)
        self.tell(arrived(session, self.now_s))

    @precondition(lambda self: self.let_in)
    @rule(data=st.data())
    def carry_out_admission(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.let_in))
        self.let_in.remove(session)
        self.inside.append(session)
        self.tell(admitted(session, self.now_s))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def queue_call(self, data: st.DataObject) -> None:
        session, call = data.draw(st.sampled_from(self.inside)), "c" + self.name()
        self.calls[call] = session
        self.tell(queued(session, call, self.now_s))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), ok=st.booleans())
    def finish_call(self, data: st.DataObject, ok: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        session = self.calls.pop(call)
        self.past_calls.append(call)
        late = self.plane.late + (session not in self.inside)
        self.tell(finished(session, call, self.now_s, ok=ok))
        assert self.plane.late == late

    @precondition(lambda self: self.gated or self.let_in or self.inside)
    @rule(data=st.data())
    def end_session(self, data: st.DataObject) -> None:
        """From anywhere: at the gate, just let in, at rest, with calls open."""
        session = data.draw(st.sampled_from([*self.gated, *self.let_in, *self.inside]))
        for where in (self.gated, self.let_in, self.inside):
            if session in where:
                where.remove(session)
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
        sessions = [*self.past_sessions, *self.gated, *self.let_in, *self.inside]
        session = data.draw(st.sampled_from(sessions))
        call = data.draw(st.sampled_from(self.past_calls))
        self.hear(from_afar(kind, session, call, self.now_s))

    def hear(self, event: ev.SessionEvent) -> None:
        sessions, late = copy.deepcopy(self.plane.sessions), self.plane.late
        self.tell(event)
        assert self.plane.late - late in {0, 1}
        if self.plane.late > late:
            assert self.plane.sessions == sessions, "a fact that did not fit changed something"
        else:
            assert event.session_id in self.inside, "a fact about nobody was believed"

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
        known = [*self.gated, *self.let_in, *self.inside]
        assert sorted(self.plane.sessions) == sorted(known)
        assert self.plane.active == len(self.let_in) + len(self.inside)
        at_the_gate = {s for s, it in self.plane.sessions.items() if it.phase is Phase.GATED}
        assert at_the_gate == {*self.gated, *self.let_in}

    @invariant()
    def calls_and_contexts_add_up(self) -> None:
        self.plane.check()
        sessions = self.plane.sessions
        open_calls = sum(session in self.inside for session in self.calls.values())
        assert sum(session.open_calls for session in sessions.values()) == open_calls
        assert (self.plane.pressure.busy_since_s is None) == (open_calls == 0)
        if self.kv_total_tokens:
            contexts = sum(session.context_tokens for session in sessions.values())
            assert self.plane.pressure.kv_session_frac == contexts / self.kv_total_tokens

    @invariant()
    def an_empty_machine_lets_somebody_in(self) -> None:
        if self.admission != "never" and not self.let_in and not self.inside:
            assert not self.gated


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
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c"), ended("s"))
    assert plane.pressure.busy_since_s is None
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
    assert [admit.session_id for admit in plane.handle(arrived("a"))] == ["a"]
    plane.handle(admitted("a"))
    plane.handle(queued("a", "c"))
    plane.handle(engine_sampled(95, 100))
    assert plane.handle(arrived("b")) == []
    assert plane.why_not == "KV is at 95% (limit 90%)"
    assert [admit.session_id for admit in plane.handle(ended("a"))] == ["b"]


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
    plane._open_calls += 1
    with pytest.raises(AssertionError, match="calls leak"):
        plane.check()
    plane._open_calls -= 1
    del plane.sessions[SessionId("s")]
    plane.check()
    phantom = SessionId("phantom")
    plane._gate[phantom] = GatedView(session_id=phantom, arrived_s=0.0, prompt_bytes=0)
    with pytest.raises(AssertionError, match="a phantom at the gate"):
        plane.check()
    del plane._gate[phantom]
    plane._context_tokens += 1
    with pytest.raises(AssertionError, match="contexts leak"):
        plane.check()


def test_pressure_is_read_off_the_samples() -> None:
    plane = plane_with(arrived("s"), admitted("s"), queued("s", "c", at_s=3.0))
    plane.handle(engine_sampled(25, 100, at_s=4.0))
    plane.handle(ev.ToolsSampled(at_s=5.0, running=3, waiting=6, slots=6, wait_s=0.5))
    plane.handle(served("s", "c", 799))
    assert plane.pressure == Pressure(
        kv_used_frac=0.25,
        kv_session_frac=0.5,  # 800 of 100 blocks of 16
        kv_frac_per_byte=0.25 / 1600,  # nothing learned yet
        tool_load=1.5,
        tool_wait_s=0.5,
        engine_at_s=4.0,
        tools_at_s=5.0,
        busy_since_s=3.0,
    )
    assert plane.pressure.kv_frac == 0.5
    assert plane.pressure.blind_s(10.0) == 6.0
