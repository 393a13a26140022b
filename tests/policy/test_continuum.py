"""Continuum by hand: its order, the static time to live, and the learned one."""

from math import inf
from statistics import StatisticsError, correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.made import idle, ran

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import FOR_EVER, CallView, IdleStage
from mars.policy.continuum import DynamicTtl, HeldFirst, StaticTtl
from mars.policy.settings import ContinuumSettings

POLICIES = (StaticTtl, DynamicTtl)


def served(
    session: str = "s",
    *,
    prompt_tokens: int = 1000,
    cached_tokens: int = 1000,
    queued_s: float = 0.0,
    ok: bool = True,
) -> ev.CallServed:
    return ev.CallServed(
        at_s=0.0,
        session_id=SessionId(session),
        call_id=CallId("c"),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        computed_tokens=0,
        made_tokens=1,
        queued_s=queued_s,
        ok=ok,
    )


def ended(session: str) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=0.0, session_id=SessionId(session), why="test")


def dynamic(
    runs: dict[str, list[float]], *, tool_samples: int = 3, price: float | None = None
) -> DynamicTtl:
    settings = ContinuumSettings(tool_samples=tool_samples, reload_s_per_token=price)
    policy = DynamicTtl(settings)
    for tool, runs_s in runs.items():
        for run_s in runs_s:
            policy.observe(ran(tool, run_s))
    return policy


# -- order ----------------------------------------------------------------------------------------


def call(
    name: str,
    arrived_s: float,
    *,
    queued_s: float = 50.0,
    is_held: bool = False,
    kv_tokens: int = 0,
) -> CallView:
    return CallView(
        CallId(name), SessionId(name), queued_s, arrived_s, is_held=is_held, kv_tokens=kv_tokens
    )


def test_held_sessions_first_then_the_older_program() -> None:
    fleet = [
        call("old", 1.0, queued_s=60.0),
        call("young", 2.0),
        call("held", 9.0, is_held=True),
        call("held and older", 8.0, is_held=True),
    ]
    ranked = sorted(fleet, key=lambda view: HeldFirst().run_key(view, 99.0))
    assert [view.call_id for view in ranked] == ["held and older", "held", "old", "young"]


def test_the_latest_program_gives_up_its_memory_held_or_not() -> None:
    fleet = [call("old", 1.0, queued_s=60.0), call("held", 9.0, is_held=True), call("young", 2.0)]
    assert max(fleet, key=lambda view: HeldFirst().victim_key(view, 99.0)).call_id == "held"


def test_a_running_call_has_its_own_memory_and_a_fixed_key() -> None:
    running = call("running", 1.0, is_held=True, kv_tokens=5)
    assert HeldFirst().run_key(running, 0.0) == HeldFirst().run_key(call("x", 1.0), 0.0)


@given(
    arrived_s=st.floats(0.0, 1e4),
    is_held=st.booleans(),
    now_s=st.floats(50.0, 1e6),
    later_s=st.floats(0.0, 1e6),
)
def test_only_a_hold_that_ends_changes_a_key(
    arrived_s: float, is_held: bool, now_s: float, later_s: float
) -> None:
    ordering, waiting = HeldFirst(), call("c", arrived_s, is_held=is_held)
    key = ordering.run_key(waiting, now_s)
    assert ordering.stays(waiting, now_s) == FOR_EVER
    for event in (served("c"), ended("c"), ran("sh", 1.0)):
        ordering.observe(event)
    waiting.uncached_tokens += 1000
    assert ordering.run_key(waiting, now_s + later_s) == key
    waiting.is_held = False
    assert (ordering.run_key(waiting, now_s) > key) == is_held


# -- static ---------------------------------------------------------------------------------------


def test_static_two_seconds_unless_the_tool_is_known_to_take_longer() -> None:
    policy = StaticTtl(ContinuumSettings())
    assert policy.hold(idle(stage="left")).keep_s == 2.0
    assert policy.hold(idle()).keep_s == 2.0, "not known"
    policy.observe(ran("sh", 1.0))
    policy.observe(ran("sh", 3.0))
    assert policy.hold(idle()).keep_s == 2.0, "2 s on average is not longer"
    policy.observe(ran("sh", 2.3))
    assert policy.hold(idle()).keep_s == 0.0
    assert policy.hold(idle(tool="ls")).keep_s == 2.0
    assert policy.hold(idle(stage="left")).keep_s == 2.0, "no tool is named yet"


@pytest.mark.parametrize("build", POLICIES)
def test_a_tool_that_never_ran_teaches_nothing(build: type[StaticTtl]) -> None:
    policy = build(ContinuumSettings(tool_samples=0))
    policy.observe(ran("sh", 500.0, exit_code=None))
    assert policy.hold(idle()).keep_s == 2.0


@pytest.mark.parametrize("build", POLICIES)
def test_both_keep_a_session_on_its_way_back_and_pin_hard(build: type[StaticTtl]) -> None:
    policy = build(ContinuumSettings(return_s=1.5, tool_samples=0))
    policy.observe(ran("sh", 500.0))
    assert policy.hold(idle(stage="tool ended")).keep_s == 1.5
    assert policy.takes_held_at_s(call("c", 0.0)) == inf


@pytest.mark.parametrize("build", POLICIES)
def test_the_latest_program_is_worth_least(build: type[StaticTtl]) -> None:
    policy = build(ContinuumSettings())
    old, young = (policy.hold(idle(session_arrived_s=at_s)) for at_s in (1.0, 2.0))
    assert young.value < old.value


# -- dynamic --------------------------------------------------------------------------------------


def test_tau_is_the_best_of_the_durations() -> None:
    """Gain 10 s. tau 1: 5 - 1 = 4; tau 2: 7.5 - 2 = 5.5; tau 8: 10 - 8 = 2."""
    policy = dynamic({"sh": [8.0, 1.0, 2.0, 1.0]})
    assert policy.hold(idle(refill_s=10.0)).keep_s == 2.0
    assert policy.hold(idle(refill_s=40.0)).keep_s == 8.0, "29, 28, 32"
    assert policy.hold(idle(refill_s=3.0)).keep_s == 1.0, "0.5, 0.25"
    assert policy.hold(idle(refill_s=2.0)).keep_s == 0.0, "1 - 1 is no gain"
    assert policy.hold(idle(refill_s=0.0)).keep_s == 0.0


def test_a_tool_without_samples_of_its_own_is_judged_by_all() -> None:
    policy = dynamic({"sh": [1.0] * 3, "make": [5.0] * 4})
    assert policy.hold(idle(tool="make", refill_s=8.0)).keep_s == 5.0, "its own four: 8 - 5"
    assert policy.hold(idle(tool="sh", refill_s=8.0)).keep_s == 5.0, "three: 3 < 3.43 of all seven"
    assert policy.hold(idle(stage="left", refill_s=4.0)).keep_s == 1.0, "all: 4 * 3/7 - 1 is most"
    policy.observe(ran("sh", 1.0))
    assert policy.hold(idle(tool="sh", refill_s=8.0)).keep_s == 1.0, "four of its own"


def test_until_anything_is_known_the_static_time_holds() -> None:
    assert dynamic({"sh": [9.0] * 3}).hold(idle(refill_s=0.1)).keep_s == 2.0
    assert dynamic({"sh": [9.0] * 4}).hold(idle(refill_s=0.1)).keep_s == 0.0
    assert DynamicTtl(ContinuumSettings())._set.tool_samples == 100


def test_a_flat_price_goes_before_the_engines_estimate() -> None:
    """200 us * 10k tokens = 2 s."""
    runs = {"sh": [1.5] * 4}
    assert dynamic(runs, price=200e-6).hold(idle(refill_s=0.1)).keep_s == 1.5
    assert dynamic(runs).hold(idle(refill_s=0.1)).keep_s == 0.0


def test_the_wait_of_evicted_calls_is_part_of_the_gain() -> None:
    policy = dynamic({"sh": [5.0] * 4})
    policy.observe(served(cached_tokens=0, queued_s=100.0))  # a first call is not evicted
    policy.observe(served(cached_tokens=992, queued_s=100.0))  # a hit, but for a block
    assert policy.hold(idle(refill_s=1.0)).keep_s == 0.0
    policy.observe(served(cached_tokens=0, queued_s=8.0))
    assert policy.hold(idle(refill_s=1.0)).keep_s == 5.0, "8 + 1 > 5"
    policy.observe(served(cached_tokens=500, queued_s=0.0))
    assert policy.hold(idle(refill_s=1.0)).keep_s == 0.0, "on average 4 + 1"


def test_eta_is_the_correlation_of_turns_done_and_left() -> None:
    policy = dynamic({})
    assert policy._order.eta == 1.0, "not known"
    for _ in range(3):
        policy.observe(served("long"))
    policy.observe(ended("long"))
    assert policy._order.eta == 1.0, "all programs alike: what is done is not left"
    policy.observe(served("short"))
    policy.observe(served("short", ok=False))
    policy.observe(ended("short"))
    assert policy._order.eta == pytest.approx(5 / 11)  # of (0,3) (1,2) (2,1) (0,1)
    policy.observe(ended("short"))  # a program without a turn
    assert policy._order.eta == pytest.approx(5 / 11)


@given(st.lists(st.integers(0, 12), max_size=8))
def test_eta_agrees_with_the_definition(programs: list[int]) -> None:
    policy = dynamic({})
    for number, turns in enumerate(programs):
        for _ in range(turns):
            policy.observe(served(str(number)))
        policy.observe(ended(str(number)))
    pairs = [(k, turns - k) for turns in programs for k in range(turns)]
    try:
        expected = -correlation([k for k, _ in pairs], [left for _, left in pairs])
    except StatisticsError:
        expected = 1.0
    assert policy._order.eta == pytest.approx(expected)


@given(
    runs_s=st.lists(st.floats(0.0, 100.0), min_size=4, max_size=20), refill_s=st.floats(0.0, 200.0)
)
def test_no_time_to_live_is_better(runs_s: list[float], refill_s: float) -> None:
    tau_s = dynamic({"sh": runs_s}).hold(idle(refill_s=refill_s)).keep_s

    def worth_s(tau_s: float) -> float:
        return sum(run_s <= tau_s for run_s in runs_s) / len(runs_s) * refill_s - tau_s

    assert tau_s in (0.0, *runs_s)
    assert worth_s(tau_s) >= max(worth_s(other_s) for other_s in (0.0, *runs_s)) - 1e-9


def test_old_durations_are_forgotten() -> None:
    policy = dynamic({"sh": [50.0] * 1000, "ls": [1.0] * 1000})
    assert policy.hold(idle(stage="left", refill_s=3.0)).keep_s == 1.0
    assert len(policy._all) == 1000


@pytest.mark.parametrize("build", POLICIES)
@given(stage=st.sampled_from(["left", "tool started", "tool ended"]), refill_s=st.floats(0.0, 1e4))
def test_an_empty_context_is_not_kept(
    build: type[StaticTtl], stage: IdleStage, refill_s: float
) -> None:
    policy = build(ContinuumSettings(tool_samples=0))
    policy.observe(ran("sh", 0.0))
    hold = policy.hold(idle(stage=stage, refill_s=refill_s, context_tokens=0))
    assert hold.keep_s == 0.0
