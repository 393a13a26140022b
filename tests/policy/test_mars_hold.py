"""Worth keeping: how long, by hand and against every other time; what is learned of gaps."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.made import S, idle, ran

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy import mars_hold
from mars.policy.base import CallView, IdleStage
from mars.policy.learned import Sample
from mars.policy.mars_hold import WorthKeeping, best_s
from mars.policy.settings import WorthSettings

DURATIONS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=12)


def started(call: str, at_s: float, session: str = "s") -> ev.CallStarted:
    return ev.CallStarted(
        at_s=at_s,
        session_id=SessionId(session),
        call_id=CallId(call),
        prompt_tokens=1,
        cached_tokens=0,
    )


def served(
    call: str, at_s: float, session: str = "s", *, queued_s: float = 0.0, ok: bool = True
) -> ev.CallServed:
    return ev.CallServed(
        at_s=at_s,
        session_id=SessionId(session),
        call_id=CallId(call),
        prompt_tokens=1,
        cached_tokens=0,
        computed_tokens=1,
        made_tokens=1,
        queued_s=queued_s,
        ok=ok,
    )


def ended(session: str = "s") -> ev.SessionEnded:
    return ev.SessionEnded(at_s=0.0, session_id=SessionId(session), why="")


def keeping(
    tools: dict[str, Sequence[float]] | None = None,
    gaps: Sequence[float] = (),
    *,
    price: float = 1.0,
    samples: int = 2,
) -> WorthKeeping:
    policy = WorthKeeping(WorthSettings(price=price, samples=samples, first_s=1.5, return_s=3.0))
    for tool, runs_s in (tools or {}).items():
        for run_s in runs_s:
            policy.observe(ran(tool, run_s))
    for number, gap_s in enumerate(gaps):
        for event in (
            started(f"{number}", 0.0, f"of {number}"),
            served(f"{number}", 10.0, f"of {number}"),
            started(f"{number} next", 10.0 + gap_s, f"of {number}"),
            served(f"{number} next", 20.0 + gap_s, f"of {number}"),
            ended(f"of {number}"),
        ):
            policy.observe(event)
    return policy


# -- how long -------------------------------------------------------------------------------------


def test_a_certain_duration_is_kept_through_while_that_is_cheaper_than_the_refill() -> None:
    """Ski rental with the duration known: keep if t < refill * K / (price * C), 10 s here."""
    assert keeping({"sh": [9.9, 9.9]}).hold(idle()).keep_s == 9.9
    assert keeping({"sh": [10.1, 10.1]}).hold(idle()).keep_s == 0.0
    assert keeping({"sh": [10.1, 10.1]}, price=0.9).hold(idle()).keep_s == 10.1


def test_the_best_time_covers_the_short_ones_and_gives_up_on_the_long() -> None:
    """At 0.1 a second: through 1 s  3/4 * 1 - 0.1 * 1 = 0.65;  through 100 s  1 - 0.1 * 25.75."""
    policy = keeping({"sh": [1.0, 100.0, 1.0, 1.0]})
    hold = policy.hold(idle())
    assert (hold.keep_s, hold.value) == (1.0, -7.0)
    assert hold.why == "sh may end within 1.0 s, to save 1.0 s"
    dear = policy.hold(idle(refill_s=11.0))
    assert dear.keep_s == 100.0, "11 - 2.575 is more than 3/4 * 11 - 0.1"


def test_what_costs_more_than_it_saves_is_not_kept() -> None:
    policy = keeping({"sh": [1.0, 2.0]}, price=1000.0)
    hold = policy.hold(idle())
    assert (hold.keep_s, hold.why) == (0.0, "sh takes longer than 1.0 s are worth")
    assert keeping({"sh": [1.0, 2.0]}).hold(idle(refill_s=0.0)).keep_s == 0.0


def test_the_named_tool_beats_the_gaps_and_the_gaps_beat_nothing() -> None:
    policy = keeping({"sh": [4.0, 4.0], "new": [1.0]}, gaps=[2.0, 2.0])
    assert policy.hold(idle()).keep_s == 4.0
    hold = policy.hold(idle(tool="new"))
    assert hold.keep_s == pytest.approx(2.0), "one run is not believed"
    assert hold.why == "its tool may end within 2.0 s, to save 1.0 s"
    assert policy.hold(idle(stage="left")).keep_s == pytest.approx(2.0), "no tool is named"


def test_nothing_known_is_the_static_time() -> None:
    policy = keeping({"sh": [50.0]}, gaps=[50.0])
    for stage in ("left", "tool started"):
        hold = policy.hold(idle(stage=stage))
        assert (hold.keep_s, hold.value, hold.why) == (1.5, -7.0, "too little is known of its tool")


def test_a_session_on_its_way_back_is_kept() -> None:
    hold = keeping({"sh": [500.0] * 9}).hold(idle(stage="tool ended"))
    assert (hold.keep_s, hold.value, hold.why) == (3.0, -7.0, "its tool has ended")


@pytest.mark.parametrize("stage", get_args(IdleStage))
def test_an_empty_context_is_not_kept(stage: IdleStage) -> None:
    assert keeping().hold(idle(stage=stage, context_tokens=0)).keep_s == 0.0


@pytest.mark.parametrize("stage", get_args(IdleStage))
def test_an_idle_engine_spares_it_for_half_of_what_it_costs_to_have_again(stage: IdleStage) -> None:
    assert keeping({"sh": [0.1] * 9}).hold(idle(stage=stage, refill_s=3.0)).spared_s == 1.5


def test_no_waiting_call_ever_takes_held_memory_while_others_run() -> None:
    view = CallView(CallId("c"), S, queued_s=0.0, session_arrived_s=0.0)
    assert keeping().takes_held_at_s(view) == inf


def worth(durations: list[float], gain_s: float, cost: float, tau_s: float) -> float:
    """The formula, E[min(t, tau)] as the integral of P(t > x) from 0 to tau: exact, by pieces."""
    edges = sorted({0.0, tau_s, *(t for t in durations if t < tau_s)})
    mean = sum(
        (high - low) * sum(t > low for t in durations) / len(durations)
        for low, high in pairwise(edges)
    )
    back = sum(t <= tau_s for t in durations) / len(durations)
    return back * gain_s - cost * mean


@given(DURATIONS, st.floats(0.0, 50.0), st.floats(0.001, 10.0), st.lists(st.floats(0.0, 200.0)))
def test_no_other_time_is_worth_more(
    durations: list[float], gain_s: float, cost: float, others_s: list[float]
) -> None:
    seen = Sample()
    for duration_s in durations:
        seen.add(duration_s)
    tau_s = best_s(seen, gain_s, cost)
    assert tau_s == 0.0 or tau_s in durations
    most = worth(durations, gain_s, cost, tau_s)
    for other_s in (*durations, *others_s):
        assert worth(durations, gain_s, cost, other_s) <= most + 1e-6


@given(
    runs_s=DURATIONS,
    gaps_s=DURATIONS,
    stage=st.sampled_from(get_args(IdleStage)),
    refill_s=st.floats(0.0, 1e4),
    context_tokens=st.integers(0, 10**6),
)
def test_every_hold_is_bounded(
    runs_s: list[float],
    gaps_s: list[float],
    stage: IdleStage,
    refill_s: float,
    context_tokens: int,
) -> None:
    """By the longest duration seen, and by the two times of the settings."""
    policy = keeping({"sh": runs_s}, gaps_s)
    view = idle(stage=stage, refill_s=refill_s, context_tokens=context_tokens)
    assert 0.0 <= policy.hold(view).keep_s <= max(1.5, 3.0, *runs_s, *gaps_s) + 1e-9


# -- what is learned ------------------------------------------------------------------------------


def learned(*events: ev.CallStarted | ev.CallServed | ev.SessionEnded) -> list[float]:
    policy = keeping()
    for event in events:
        policy.observe(event)
    return policy._gaps.sorted


FIRST = (started("1", 0.0), served("1", 10.0))


def test_a_gap_ends_at_the_intake_of_the_next_call_not_at_its_start() -> None:
    assert learned(*FIRST, started("2", 25.0), served("2", 30.0, queued_s=4.0)) == [11.0]


def test_a_call_that_is_started_again_ends_its_gap_once() -> None:
    again = (started("2", 25.0), started("2", 40.0))
    assert learned(*FIRST, *again, served("2", 50.0, queued_s=4.0)) == [11.0]


def test_each_session_has_its_own_gaps() -> None:
    other = (started("x", 12.0, "other"), served("x", 13.0, "other"))
    assert learned(*FIRST, *other, started("2", 25.0), served("2", 30.0)) == [15.0]


def test_calls_side_by_side_are_no_gaps() -> None:
    """A sub-agent's call came before the last one had left."""
    side = (started("1", 0.0), started("2", 1.0), served("1", 5.0), served("2", 8.0))
    assert learned(*side) == []
    assert learned(*side, started("3", 20.0), served("3", 21.0)) == [12.0], "from the later end"


def test_a_return_without_delay_is_a_gap_of_nothing() -> None:
    assert learned(*FIRST, started("2", 14.0), served("2", 15.0, queued_s=4.0)) == [0.0]
    rounded = served("2", 15.0, queued_s=4.0 + 1e-9)
    assert learned(*FIRST, started("2", 14.0), rounded) == [0.0]


def test_after_an_aborted_call_no_gap_is_known() -> None:
    aborted = (started("2", 12.0), served("2", 13.0, ok=False))
    assert learned(*FIRST, *aborted, started("3", 30.0), served("3", 31.0)) == [2.0]


def test_a_lost_start_and_an_ended_session_teach_nothing() -> None:
    assert learned(*FIRST, served("2", 30.0)) == []
    assert learned(*FIRST, ended(), started("2", 25.0), served("2", 30.0)) == []


def test_a_tool_that_never_ran_teaches_nothing() -> None:
    policy = keeping({"sh": [1.0]})
    policy.observe(ran("sh", 0.0, exit_code=None))
    assert policy._tools["sh"].sorted == [1.0]


def test_the_books_do_not_grow_with_what_nobody_ends() -> None:
    policy = keeping()
    for number in range(mars_hold._MOST_SESSIONS + 50):
        policy.observe(started(f"never served {number}", 0.0))
        policy.observe(served(f"{number}", 1.0, f"never ended {number}"))
    assert len(policy._started_s) == len(policy._left_s) == mars_hold._MOST_SESSIONS
    for number in range(mars_hold._MOST_TOOLS + 50):
        policy.observe(ran(f"tool {number}", 1.0))
        policy.observe(ran("regular", 2.0))
    assert len(policy._tools) == mars_hold._MOST_TOOLS
    assert policy.hold(idle(tool="regular")).keep_s == 2.0, "what still runs is not forgotten"


def test_calls_that_were_served_and_sessions_that_ended_leave_nothing() -> None:
    policy = keeping()
    for event in (*FIRST, started("2", 12.0), served("2", 13.0, ok=False), ended()):
        policy.observe(event)
    assert (policy._started_s, policy._left_s) == ({}, {})
