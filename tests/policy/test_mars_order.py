"""Least left first: its index by hand, what it learns, and how long a key holds."""

from collections.abc import Sequence
from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy import mars_order
from mars.policy.base import FOR_EVER, CallView, EngineEvent, Stays
from mars.policy.mars_order import LeastLeftFirst
from mars.policy.settings import LeastLeftSettings


def call(
    name: str,
    *,
    session: str | None = None,
    prompt_tokens: int = 1000,
    arrived_s: float = 0.0,
    queued_s: float = 50.0,
    is_held: bool = False,
    kv_tokens: int = 0,
) -> CallView:
    return CallView(
        CallId(name),
        SessionId(session or name),
        queued_s,
        arrived_s,
        prompt_tokens=prompt_tokens,
        is_held=is_held,
        kv_tokens=kv_tokens,
    )


def arrived(session: str, at_s: float = 0.0) -> ev.SessionArrived:
    return ev.SessionArrived(at_s=at_s, session_id=SessionId(session))


def served(session: str, name: str = "c", *, ok: bool = True) -> ev.CallServed:
    return ev.CallServed(
        at_s=0.0,
        session_id=SessionId(session),
        call_id=CallId(name),
        prompt_tokens=1,
        cached_tokens=0,
        computed_tokens=1,
        made_tokens=1,
        queued_s=0.0,
        ok=ok,
    )


def ended(session: str, at_s: float = 0.0) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=at_s, session_id=SessionId(session), why="")


def life(calls: int, life_s: float, name: str = "past") -> list[EngineEvent]:
    """A whole session."""
    return [arrived(name), *[served(name)] * calls, ended(name, life_s)]


def order(
    lives: Sequence[tuple[int, float]] = (), *, samples: int = 1, patience: float = 2.0
) -> LeastLeftFirst:
    """That has seen sessions of so many calls, which lived so long."""
    made = LeastLeftFirst(LeastLeftSettings(samples=samples, patience=patience))
    for calls, life_s in lives:
        tell(made, *life(calls, life_s))
    return made


def tell(ordering: LeastLeftFirst, *events: EngineEvent) -> None:
    for event in events:
        ordering.observe(event)


def ranked(ordering: LeastLeftFirst, *calls: CallView, now_s: float = 60.0) -> list[str]:
    return [it.call_id for it in sorted(calls, key=lambda view: ordering.run_key(view, now_s))]


# -- order ----------------------------------------------------------------------------------------


def test_the_index_is_calls_left_times_prompt_tokens() -> None:
    """Of lives of 2 and 10 calls: none made (2 + 10 + 0) / 3 are left, 4 made (6 + 4) / 2."""
    ordering = order([(2, 100.0), (10, 100.0)])
    tell(ordering, *[served("old")] * 4)
    new, old = call("new", prompt_tokens=1200), call("old", prompt_tokens=900)
    assert ordering.run_key(new, 60.0) == pytest.approx((True, 4 * 1200, 0.0, 50.0))
    assert ordering.run_key(old, 60.0) == pytest.approx((True, 5 * 900, 0.0, 50.0))
    assert ranked(ordering, new, old) == ["old", "new"]
    shorter = call("shorter", prompt_tokens=1100)
    assert ranked(ordering, new, old, shorter) == ["shorter", "old", "new"]


def test_who_holds_kv_goes_first() -> None:
    ordering = order([(3, 100.0)])
    held = call("held", prompt_tokens=90_000, is_held=True)
    short = call("short", prompt_tokens=10)
    assert ranked(ordering, short, held) == ["held", "short"]
    held.kv_tokens = 5
    assert ranked(ordering, short, held) == ["short", "held"], "it runs: the hold is its own now"


def test_before_enough_sessions_have_ended_it_is_order_of_arrival() -> None:
    ordering = order([(5, 10.0)] * 2, samples=3)
    old, young = call("old", prompt_tokens=90_000, arrived_s=1.0), call("young", arrived_s=2.0)
    later = call("later", session="old", prompt_tokens=1, arrived_s=1.0, queued_s=51.0)
    assert ranked(ordering, young, later, old) == ["old", "later", "young"]
    tell(ordering, *life(5, 100.0))
    fresh = [call("old2", prompt_tokens=90_000, arrived_s=1.0), call("young2", arrived_s=2.0)]
    assert ranked(ordering, *fresh) == ["young2", "old2"]


def test_the_rank_of_a_call_stays_while_others_teach() -> None:
    ordering = order([(4, 100.0)])
    waiting = call("waiting", prompt_tokens=1000)
    key, stays = ordering.run_key(waiting, 60.0), ordering.stays(waiting, 60.0)
    for _ in range(9):
        tell(ordering, *life(90, 1000.0))
    tell(ordering, served("waiting", "a call beside it"))
    assert (ordering.run_key(waiting, 60.0), ordering.stays(waiting, 60.0)) == (key, stays)
    assert ordering.run_key(call("next", session="waiting"), 60.0) > key


def test_patience_puts_an_old_session_first() -> None:
    """The mean life is 100 s; who is older than twice that goes before all younger ones."""
    ordering = order([(4, 50.0), (4, 150.0)], patience=2.0)
    old = call("old", prompt_tokens=90_000, arrived_s=10.0)
    short = call("short", prompt_tokens=1, arrived_s=11.0)
    assert ranked(ordering, short, old, now_s=210.0) == ["short", "old"]
    assert ranked(ordering, short, old, now_s=210.5) == ["old", "short"]
    assert ranked(ordering, short, old, now_s=999.0) == ["old", "short"], "both are late"
    held = call("held", arrived_s=300.0, is_held=True)
    assert ranked(ordering, old, held, now_s=999.0) == ["held", "old"]


def test_stays_says_when_patience_ends() -> None:
    ordering = order([(4, 100.0)], patience=2.0)
    waiting = call("waiting", prompt_tokens=90_000, arrived_s=10.0)
    assert ordering.stays(waiting, 60.0) == Stays(until_s=210.0)
    before = ordering.run_key(waiting, 60.0)
    assert ordering.run_key(waiting, 210.0) == before
    assert ordering.run_key(waiting, 210.0 + 1e-9) < before
    assert ordering.stays(waiting, 210.0 + 1e-9) == FOR_EVER


def test_the_session_with_the_most_left_gives_up_its_memory_first() -> None:
    ordering = order([(4, 100.0)])
    fleet = [
        call("least", prompt_tokens=1, kv_tokens=1),
        call("most", prompt_tokens=9000, kv_tokens=9000, is_held=True),
        call("middle", prompt_tokens=800, kv_tokens=1),
    ]
    by_victim = sorted(fleet, key=lambda view: ordering.victim_key(view, 60.0), reverse=True)
    assert [view.call_id for view in by_victim] == ["most", "middle", "least"]
    fleet[1].session_arrived_s = -1.0
    by_victim = sorted(fleet, key=lambda view: ordering.victim_key(view, 1e6), reverse=True)
    assert by_victim[-1].call_id == "most", "the oldest, once patience has ended"


# -- what is learned ------------------------------------------------------------------------------


def test_the_mean_life_forgets() -> None:
    ordering = order([(1, 10.0), (1, 20.0), (1, 60.0)])
    assert ordering._life_s == pytest.approx(30.0)
    for _ in range(2000):
        tell(ordering, *life(1, 500.0))
    assert ordering._life_s == pytest.approx(500.0)


def test_aborted_calls_and_sessions_without_a_call_teach_nothing() -> None:
    ordering = order()
    tell(ordering, arrived("a"), served("a", ok=False), ended("a", 1000.0))
    assert (len(ordering._lives), ordering._life_s) == (0, 0.0)


def test_the_books_are_empty_when_calls_and_sessions_have_ended() -> None:
    ordering = order()
    for name in ("served", "aborted", "aborted before it was asked about"):
        tell(ordering, arrived(name))
        if "before" not in name:
            ordering.run_key(call(name), 60.0)
            ordering.stays(call(name), 60.0)
        tell(ordering, served(name, name, ok=name == "served"), ended(name))
    assert (ordering._calls, ordering._arrived_s, ordering._ranks) == ({}, {}, {})


def test_the_books_do_not_grow_with_sessions_that_nobody_ends() -> None:
    ordering = order()
    for number in range(mars_order._MOST_SESSIONS + 50):
        tell(ordering, arrived(f"{number}"), served(f"{number}"))
        if number % 1000 == 0:
            tell(ordering, served("regular"))
    assert len(ordering._calls) == len(ordering._arrived_s) == mars_order._MOST_SESSIONS
    assert ordering._calls[SessionId("regular")] == 101, "who calls again is not forgotten"


@given(
    lives=st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 500.0)), max_size=6),
    made=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    prompts=st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)),
    now_s=st.floats(0.0, 5000.0),
)
def test_a_child_goes_no_later_than_its_parent_did(
    lives: list[tuple[int, float]], made: tuple[int, int], prompts: tuple[int, int], now_s: float
) -> None:
    """Whoever the parent's newest call would go before, its child's calls go before too."""
    ordering = order(lives, samples=2)
    tell(ordering, arrived("parent"), *[served("parent")] * made[0])
    parent = call("p", session="parent", prompt_tokens=prompts[0], queued_s=1.0)
    before = ordering.run_key(parent, now_s)
    tell(ordering, msgspec.structs.replace(arrived("child"), parent_id=SessionId("parent")))
    tell(ordering, *[served("child")] * made[1])
    child = call("c", session="child", prompt_tokens=prompts[1], queued_s=2.0)
    assert ordering.run_key(child, now_s)[:-1] <= before[:-1]
    tell(ordering, ended("child", 9e9), ended("parent", 50.0))
    assert (ordering._parents, ordering._places) == ({}, {})


def test_the_life_of_a_child_is_a_part_of_its_family_s() -> None:
    ordering = order([(4, 100.0)])
    tell(ordering, msgspec.structs.replace(arrived("child"), parent_id=SessionId("parent")))
    tell(ordering, served("child"), ended("child", 1.0))
    assert ordering._life_s == 100.0


# -- laws -----------------------------------------------------------------------------------------

LIVES = st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 500.0)), max_size=6)
TIMES = st.floats(0.0, 1000.0)


@st.composite
def fleets(draw: st.DrawFn) -> list[CallView]:
    """Calls of several sessions, some of them of one session."""
    arrivals = draw(st.lists(TIMES, min_size=1, max_size=5, unique=True))
    fleet = []
    for number in range(draw(st.integers(1, 9))):
        session = draw(st.integers(0, len(arrivals) - 1))
        fleet.append(
            call(
                f"c{number}",
                session=f"s{session}",
                prompt_tokens=draw(st.integers(1, 100_000)),
                arrived_s=arrivals[session],
                queued_s=arrivals[session] + draw(TIMES),
                is_held=draw(st.booleans()),
            )
        )
    return fleet


@given(lives=LIVES, fleet=fleets(), now_s=st.floats(0.0, 5000.0), later_s=st.floats(0.0, 5000.0))
def test_a_key_holds_for_as_long_as_it_says(
    lives: list[tuple[int, float]], fleet: list[CallView], now_s: float, later_s: float
) -> None:
    ordering = order(lives, samples=2)
    for view in fleet:
        stays, key = ordering.stays(view, now_s), ordering.run_key(view, now_s)
        tell(ordering, *life(7, 70.0), served(view.session_id, "beside"))
        view.uncached_tokens += 1000
        assert ordering.run_key(view, min(now_s + later_s, stays.until_s)) == key
        assert ordering.run_key(view, now_s + later_s) <= key, "it only moves forward"


@given(lives=LIVES, fleet=fleets(), now_s=st.floats(0.0, 5000.0))
def test_who_runs_first_is_no_victim_while_there_is_another(
    lives: list[tuple[int, float]], fleet: list[CallView], now_s: float
) -> None:
    """Of those that run: somebody always makes progress, so there is no livelock."""
    ordering = order(lives, samples=2)
    for view in fleet:
        view.kv_tokens = 1
    for one, other in combinations(fleet, 2):
        first = ordering.run_key(one, now_s) < ordering.run_key(other, now_s)
        assert first == (ordering.victim_key(one, now_s) < ordering.victim_key(other, now_s))


@given(lives=LIVES, fleet=fleets(), patience=st.floats(0.1, 9.0))
def test_nobody_is_passed_for_ever(
    lives: list[tuple[int, float]], fleet: list[CallView], patience: float
) -> None:
    """The oldest session is first once its patience has ended, whatever else waits, holds aside."""
    ordering = order(lives, samples=2, patience=patience)
    oldest = min(fleet, key=lambda view: (view.session_arrived_s, view.queued_s))
    until_s = ordering.stays(oldest, 0.0).until_s
    assert until_s <= oldest.session_arrived_s + patience * 500.0 + 1e-6
    for view in fleet:
        view.is_held = False
    first = min(fleet, key=lambda view: ordering.run_key(view, until_s + 1.0))
    assert (first.session_arrived_s, first.queued_s) == (
        oldest.session_arrived_s,
        oldest.queued_s,
    )
