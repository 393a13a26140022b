"""The window: hand cases, and laws over random histories."""

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.admission import GatedView, Verdict
from mars.core.control import ControlPlane
from mars.core.decisions import Admit
from mars.core.ids import CallId, SessionId
from mars.core.pressure import Hysteresis, Pressure
from mars.core.session import Session
from mars.core.settings import WindowSettings
from mars.core.window import Window

CALM = Pressure()
KV_FULL = Pressure(kv_used_frac=0.95)


def settings(**changes: object) -> WindowSettings:
    return msgspec.convert(changes, WindowSettings)


class Asked(NamedTuple):
    size: int | None
    entered: int


class Gate:
    """A window, told in numbers: how many are active, how many wait."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.arrived = 0
        self.last = Verdict(admit=[], why_not="", window=None)

    def finish(self, calls: int, *, ok: bool = True) -> None:
        for _ in range(calls):
            self.window.observe(
                ev.CallFinished(at_s=0.0, session_id=SessionId("s"), call_id=CallId("c"), ok=ok)
            )

    def ask(
        self, active: int, waiting: int, pressure: Pressure = CALM, now_s: float = 0.0
    ) -> Asked:
        gated = [
            GatedView(session_id=SessionId(str(n)), arrived_s=float(n), prompt_bytes=0)
            for n in range(self.arrived, self.arrived + waiting)
        ]
        inside = [Session(SessionId(f"active {n}"), 0.0) for n in range(active)]
        self.last = self.window.choose(gated, inside, pressure, now_s)
        entered = [admit.session_id for admit in self.last.admit]
        assert entered == [view.session_id for view in gated[: len(entered)]], "overtaken"
        self.arrived += len(entered)
        return Asked(self.last.window, len(entered))


def test_slow_start_doubles_once_a_turnover_when_it_binds_and_somebody_waits() -> None:
    gate = Gate(Window(settings(first=2)))
    assert gate.ask(active=2, waiting=0) == (2, 0), "it binds, but nobody waits"
    assert gate.ask(active=1, waiting=5) == (2, 1), "somebody waits, but it does not bind"
    assert gate.ask(active=2, waiting=5) == (2, 0), "no turnover yet"
    gate.finish(2)
    assert gate.ask(active=2, waiting=5) == (4, 2)
    assert gate.ask(active=4, waiting=5) == (4, 0)
    gate.finish(3)
    assert gate.ask(active=4, waiting=5) == (4, 0)
    gate.finish(1)
    assert gate.ask(active=4, waiting=9) == (8, 4), "4 of 4 calls finished: a turnover"
    gate.finish(80)
    assert gate.ask(active=8, waiting=1) == (16, 1), "many turnovers at once are one move"
    assert gate.ask(active=16, waiting=1) == (16, 0)


def test_a_turnover_is_counted_from_the_last_move() -> None:
    gate = Gate(Window(settings(first=4)))
    gate.finish(7)
    assert gate.ask(active=4, waiting=1) == (8, 1)
    gate.finish(7)
    assert gate.ask(active=8, waiting=1) == (8, 0), "7 + 7 calls, but 7 were before the move"
    gate.finish(1)
    assert gate.ask(active=8, waiting=1) == (16, 1)


def test_failed_calls_are_no_turnover() -> None:
    gate = Gate(Window(settings(first=1)))
    gate.finish(50, ok=False)
    assert gate.ask(active=1, waiting=1) == (1, 0)
    gate.finish(1)
    assert gate.ask(active=1, waiting=1) == (2, 1)


def test_a_cut_is_to_a_share_of_what_is_active_and_ends_slow_start() -> None:
    gate = Gate(Window(settings(first=16)))
    assert gate.ask(active=10, waiting=9, pressure=KV_FULL) == (7, 0), "floor(0.7 * 10)"
    gate.finish(10)
    assert gate.ask(active=7, waiting=9, pressure=CALM) == (8, 1), "by one, not doubled"


@pytest.mark.parametrize(
    ("pressure", "window"),
    [
        (Pressure(kv_used_frac=0.3), 12),  # 6 * 0.9 / 0.3 = 18 fit, but at most twice as many
        (Pressure(kv_used_frac=0.6), 9),  # 6 * 0.9 / 0.6
        (Pressure(kv_used_frac=0.84), 7),  # 6 fit: by one all the same
        (Pressure(kv_used_frac=0.3, tool_load=1.0), 12),  # 6 * 2 / 1 by the tools
        (Pressure(kv_used_frac=0.3, tool_load=0.0), 12),
    ],
)
def test_after_a_cut_it_grows_by_what_fits(pressure: Pressure, window: int) -> None:
    gate = Gate(Window(settings(first=9)))
    assert gate.ask(active=9, waiting=9, pressure=KV_FULL)[0] == 6
    gate.finish(6)
    assert gate.ask(active=6, waiting=9, pressure=pressure)[0] == window


def test_a_cut_is_not_repeated_while_it_drains() -> None:
    gate = Gate(Window(settings(first=10)))
    assert gate.ask(active=10, waiting=9, pressure=KV_FULL) == (7, 0)
    for active in (10, 9, 8):
        gate.finish(2 * active)
        assert gate.ask(active=active, waiting=9, pressure=KV_FULL) == (7, 0)
    assert gate.ask(active=7, waiting=9, pressure=KV_FULL) == (4, 0), "drained: floor(0.7 * 7)"
    assert gate.ask(active=4, waiting=9, pressure=KV_FULL) == (4, 0), "no turnover since"


def test_a_cut_stops_at_least() -> None:
    gate = Gate(Window(settings(first=3, least=3)))
    gate.finish(9)
    assert gate.ask(active=3, waiting=9, pressure=KV_FULL) == (3, 0)


def test_an_overloaded_gate_lets_in_up_to_least_and_no_more() -> None:
    gate = Gate(Window(settings(first=8, least=3)))
    assert gate.ask(active=8, waiting=1, pressure=KV_FULL) == (5, 0)
    assert gate.ask(active=2, waiting=9, pressure=KV_FULL) == (5, 1)


@pytest.mark.parametrize(
    ("high", "between", "low"),
    [
        ({"kv_used_frac": 0.90}, {"kv_used_frac": 0.86}, {"kv_used_frac": 0.85}),
        ({"kv_session_frac": 1.70}, {"kv_session_frac": 0.86}, {"kv_session_frac": 0.85}),
        ({"tool_load": 2.0}, {"tool_load": 1.1}, {"tool_load": 1.0}),
        ({"tool_wait_s": 5.0}, {"tool_wait_s": 2.1}, {"tool_wait_s": 2.0}),
    ],
)
def test_each_pressure_closes_at_high_and_opens_at_low(
    high: dict[str, float], between: dict[str, float], low: dict[str, float]
) -> None:
    gate = Gate(Window(settings(first=4)))
    assert gate.ask(active=1, waiting=1, pressure=Pressure(**between)).entered == 1
    assert gate.ask(active=1, waiting=1, pressure=Pressure(**high)).entered == 0
    gate.window._size = 4  # undo the cut: this test asks only whether the gate is closed
    assert gate.ask(active=1, waiting=1, pressure=Pressure(**between)).entered == 0
    assert gate.ask(active=1, waiting=1, pressure=Pressure(**low)).entered == 1
    assert gate.ask(active=1, waiting=1, pressure=Pressure(**between)).entered == 1


def test_hysteresis_flips_once_each_way() -> None:
    switch = Hysteresis(low=1.0, high=2.0)
    values = [0.0, 1.5, 1.9, 2.0, 1.5, 1.01, 1.0, 1.5, 2.5]
    assert [switch.update(value) for value in values] == [False] * 3 + [True] * 3 + [
        False,
        False,
        True,
    ]


def test_it_says_why() -> None:
    gate = Gate(Window(settings(first=4)))
    gate.ask(active=4, waiting=0)
    assert gate.last.why_not == "4 sessions are active, the window is 4"
    gate.ask(active=4, waiting=1, pressure=KV_FULL)
    assert gate.last.why_not == "KV is at 95% (limit 90%)"
    gate.ask(active=4, waiting=1, pressure=Pressure(tool_load=3.0, tool_wait_s=1.0))
    assert gate.last.why_not == "tools: 3.0 a slot, 1.0 s of waiting for cores"


def test_low_marks_above_high_marks_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="`kv_low_frac` must not be above"):
        settings(kv_low_frac=0.9, kv_high_frac=0.8)
    with pytest.raises(msgspec.ValidationError, match="`least` must not be above `first`"):
        settings(least=5, first=4)


S = SessionId("idle")


def plane_with_one_idle_session(context_tokens: int) -> ControlPlane:
    """A session that has been served and now acts; the engine counts all its KV as free."""
    plane = ControlPlane(Window(settings(first=2)))
    call = CallId("c")
    for event in (
        ev.SessionArrived(at_s=0.0, session_id=S),
        ev.SessionAdmitted(at_s=0.0, session_id=S, why=""),
        ev.CallQueued(at_s=0.0, session_id=S, call_id=call, turn=1),
        ev.CallServed(
            at_s=1.0,
            session_id=S,
            call_id=call,
            prompt_tokens=context_tokens,
            cached_tokens=0,
            computed_tokens=context_tokens,
            made_tokens=0,
            queued_s=0.0,
            ok=True,
        ),
        ev.CallFinished(at_s=1.0, session_id=S, call_id=call, ok=True),
        ev.EngineSampled(
            at_s=1.0,
            kv_used_blocks=0,
            kv_held_blocks=0,
            kv_total_blocks=100,
            block_tokens=16,
            running_calls=0,
            waiting_calls=0,
        ),
    ):
        plane.handle(event)
    return plane


@pytest.mark.parametrize(("context_tokens", "entered"), [(1439, 1), (1440, 0)])
def test_kv_of_idle_sessions_counts(context_tokens: int, entered: int) -> None:
    plane = plane_with_one_idle_session(context_tokens)  # of 1600 tokens: 90 % are 1440
    assert plane.pressure.kv_used_frac == 0.0
    told = plane.handle(ev.SessionArrived(at_s=2.0, session_id=SessionId("new")))
    assert sum(isinstance(it, Admit) for it in told) == entered


def test_kv_of_a_session_that_ended_does_not() -> None:
    plane = plane_with_one_idle_session(1600)
    assert plane.pressure.kv_frac == 1.0
    plane.handle(ev.SessionEnded(at_s=2.0, session_id=S, why=""))
    assert plane.pressure.kv_frac == 0.0


# ---- laws ----

SETTINGS = st.builds(
    WindowSettings,
    first=st.integers(4, 8),
    least=st.integers(1, 4),
    grow=st.integers(1, 3),
    shrink=st.floats(0.1, 0.9),
)
PRESSURES = st.builds(
    Pressure,
    kv_used_frac=st.floats(0.0, 1.0),
    kv_session_frac=st.floats(0.0, 1.5),
    tool_load=st.floats(0.0, 4.0),
    tool_wait_s=st.floats(0.0, 10.0),
    engine_at_s=st.none() | st.floats(0.0, 100.0),
    owes_since_s=st.none() | st.floats(0.0, 100.0),
)


@dataclass
class Step:
    pressure: Pressure
    now_s: float
    arrivals: int
    finished: int
    ended: int


STEPS = st.builds(
    Step,
    pressure=PRESSURES,
    now_s=st.floats(0.0, 120.0),
    arrivals=st.integers(0, 6),
    finished=st.integers(0, 12),
    ended=st.integers(0, 4),
)


class Fleet:
    """A gate with sessions behind it: who is let in is active until it ends."""

    def __init__(self, limits: WindowSettings) -> None:
        self.limits = limits
        self.gate = Gate(Window(limits))
        self.active = 0
        self.waiting = 0

    def step(self, step: Step) -> tuple[int, int]:
        """Returns how many were active when the gate was asked, and the window after it."""
        self.waiting += step.arrivals
        self.active = active = max(0, self.active - step.ended)
        self.gate.finish(step.finished)
        asked = self.gate.ask(active, self.waiting, step.pressure, step.now_s)
        self.active += asked.entered
        self.waiting -= asked.entered
        assert asked.size is not None
        return active, asked.size


def is_overloaded(pressure: Pressure, limits: WindowSettings) -> bool:
    return (
        pressure.kv_frac >= limits.kv_high_frac
        or pressure.tool_load >= limits.tool_load_high
        or pressure.tool_wait_s >= limits.tool_wait_high_s
    )


@given(limits=SETTINGS, history=st.lists(STEPS, max_size=40))
def test_no_history_lets_the_gate_starve_anybody(
    limits: WindowSettings, history: list[Step]
) -> None:
    fleet = Fleet(limits)
    for step in history:
        fleet.step(step)
        assert fleet.active >= limits.least or fleet.waiting == 0, "`least` may always be active"
    # Calm now, and nobody ever ends: each turnover still adds one to a window that binds.
    turnovers = 0
    enough = fleet.active + fleet.waiting + 1
    while fleet.waiting:
        turnovers += 1
        assert turnovers <= enough, "somebody starves"
        fleet.step(Step(CALM, 0.0, arrivals=0, finished=max(1, fleet.active), ended=0))


@given(limits=SETTINGS, history=st.lists(STEPS, max_size=40))
def test_no_history_moves_the_window_twice_in_a_turnover(
    limits: WindowSettings, history: list[Step]
) -> None:
    fleet = Fleet(limits)
    size, finished, may_move = limits.first, 0, True
    for step in history:
        active, after = fleet.step(step)
        finished += step.finished
        may_move = may_move or finished >= max(1, active)
        if after != size:
            assert may_move, "moved twice in a turnover"
            size, finished, may_move = after, 0, False


@given(limits=SETTINGS, history=st.lists(STEPS, max_size=40))
def test_no_overload_grows_the_window_or_lets_in_more_than_least(
    limits: WindowSettings, history: list[Step]
) -> None:
    fleet = Fleet(limits)
    size = limits.first
    for step in history:
        active, after = fleet.step(step)
        if is_overloaded(step.pressure, limits):
            assert after <= size
            assert fleet.active <= max(active, limits.least)
        assert after >= min(size, limits.least)
        size = after


@given(limits=SETTINGS, history=st.lists(STEPS, max_size=20), last=STEPS)
def test_a_machine_without_sessions_always_lets_somebody_in(
    limits: WindowSettings, history: list[Step], last: Step
) -> None:
    fleet = Fleet(limits)
    for step in history:
        fleet.step(step)
    fleet.active, fleet.waiting = 0, 1
    fleet.step(Step(last.pressure, last.now_s, arrivals=0, finished=0, ended=0))
    assert fleet.active == 1
