"""Ski rental: what stays warm, for how long, computed by hand."""

from functools import partial
from math import inf
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy import made
from tests.policy.made import S, ran

from mars.core import events as ev
from mars.core.ids import CallId, ToolId
from mars.policy.base import CallView, IdleStage, IdleView, KeepNothing
from mars.policy.mars_paper import SkiRental
from mars.policy.settings import HoldSettings

idle = partial(
    made.idle,
    stage="left",
    context_tokens=32_000,
    kv_capacity_tokens=160_000,
    refill_s=4.0,
    idle_s=0.0,
)
"""The bound is 4 s * 160k / 32k = 20 s."""


def learned(tool: str, run_s: float, runs: int) -> SkiRental:
    rental = SkiRental(HoldSettings())
    for _ in range(runs):
        rental.observe(ran(tool, run_s))
    return rental


def test_the_bound_is_what_the_refill_costs() -> None:
    hold = SkiRental(HoldSettings()).hold(idle())
    assert (hold.keep_s, hold.value) == (20.0, 20.0)
    assert hold.why == "worth 20.0 s of waiting"


def test_time_off_the_gpu_is_spent_from_the_bound() -> None:
    rental = SkiRental(HoldSettings())
    assert rental.hold(idle(stage="tool started", tool="sh", idle_s=7.0)).keep_s == 13.0
    assert rental.hold(idle(stage="tool started", tool="sh", idle_s=25.0)).keep_s == 0.0


def test_no_hold_is_longer_than_most_s() -> None:
    rental = SkiRental(HoldSettings(most_s=6.0))
    assert rental.hold(idle()).keep_s == 6.0


def test_an_empty_context_is_not_kept() -> None:
    assert SkiRental(HoldSettings()).hold(idle(context_tokens=0)).keep_s == 0.0


def test_a_tool_known_to_be_long_is_not_waited_for() -> None:
    started = idle(stage="tool started", tool="make")
    hold = learned("make", 21.0, runs=5).hold(started)
    assert (hold.keep_s, hold.why) == (0.0, "make takes 21.0 s, worth 20.0 s")
    assert learned("make", 21.0, runs=4).hold(started).keep_s == 20.0, "not yet believed"
    assert learned("make", 19.0, runs=5).hold(started).keep_s == 20.0, "worth waiting for"
    assert (
        learned("make", 21.0, runs=5).hold(idle(stage="tool started", tool="ls")).keep_s == 20.0
    ), "another tool"


def test_a_tool_that_never_ran_teaches_nothing() -> None:
    rental = SkiRental(HoldSettings(tool_samples=1))
    rental.observe(ran("make", 500.0, exit_code=None))
    rental.observe(ev.ToolQueued(at_s=0.0, session_id=S, tool_id=ToolId("t"), tool="make", cores=1))
    assert rental.hold(idle(stage="tool started", tool="make")).keep_s == 20.0


def test_the_end_of_a_tool_renews_the_hold() -> None:
    rental = learned("make", 500.0, runs=50)
    hold = rental.hold(idle(stage="tool ended", tool="make", idle_s=500.0))
    assert (hold.keep_s, hold.value) == (2.0, 20.0)
    cheap = rental.hold(idle(stage="tool ended", tool="make", refill_s=0.1))
    assert cheap.keep_s == 0.5, "never longer than the refill is worth: 0.1 s * 5"


def test_the_learned_mean_is_a_mean_and_then_forgets() -> None:
    few = SkiRental(HoldSettings())
    for run_s in (10.0, 20.0, 60.0):
        few.observe(ran("make", run_s))
    assert few._mean_s["make"][0] == pytest.approx(30.0)
    many = learned("make", 1000.0, runs=5000)
    assert many._mean_s["make"][0] == pytest.approx(1000.0)
    for _ in range(500):
        many.observe(ran("make", 1.0))
    assert many._mean_s["make"][0] == pytest.approx(1.0 + 999.0 * (49 / 50) ** 500)
    assert many.hold(idle(stage="tool started", tool="make")).keep_s == 20.0


def test_a_call_may_take_held_memory_after_its_wait() -> None:
    rental = SkiRental(HoldSettings(cold_wait_s=10.0))
    view = CallView(CallId("c"), S, queued_s=100.0, session_arrived_s=0.0)
    assert rental.takes_held_at_s(view) == 110.0


IDLE_VIEWS = st.builds(
    idle,
    stage=st.sampled_from(get_args(IdleStage)),
    tool=st.just("make"),
    context_tokens=st.integers(0, 10**6),
    kv_capacity_tokens=st.integers(1, 10**7),
    refill_s=st.floats(0.0, 1e4),
    idle_s=st.floats(0.0, 1e5),
)


@given(view=IDLE_VIEWS, runs_s=st.lists(st.floats(0.0, 1e4), max_size=8))
def test_every_hold_is_bounded(view: IdleView, runs_s: list[float]) -> None:
    """Whatever was learned: 0 <= keep_s <= most_s, and no more than the refill is worth."""
    most_s, rounding = HoldSettings().most_s, 1 + 1e-9
    rental = SkiRental(HoldSettings())
    for run_s in runs_s:
        rental.observe(ran("make", run_s))
    keep_s = rental.hold(view).keep_s
    assert 0.0 <= keep_s <= most_s
    worth = view.refill_s * view.kv_capacity_tokens
    assert keep_s * view.context_tokens <= worth * rounding
    if view.stage != "tool ended" and keep_s > 0.0:
        assert keep_s + view.idle_s <= most_s * rounding


def test_keep_nothing_keeps_nothing_and_defends_nothing() -> None:
    nothing = KeepNothing()
    view = CallView(CallId("c"), S, queued_s=0.0, session_arrived_s=0.0)
    assert nothing.hold(idle(stage="tool ended")).keep_s == 0.0
    assert nothing.takes_held_at_s(view) == -inf
