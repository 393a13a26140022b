"""Who runs first and who gives up memory: the promises of each ordering."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, Key, Ordering
from mars.policy.fcfs import Fcfs
from mars.policy.mars_order import LeastLeftFirst
from mars.policy.mars_paper import ContinuationsFirst
from mars.policy.session_fcfs import SessionFcfs
from mars.policy.settings import LeastLeftSettings, OrderSettings

NOW_S = 1000.0
AGEING_S = 30.0

MEAN_LIFE_S = 200.0


def least_left() -> LeastLeftFirst:
    """It has seen one session: of two calls, and 200 s."""
    ordering = LeastLeftFirst(LeastLeftSettings(samples=1, patience=1.0))
    session, call = SessionId("past"), CallId("past")
    ordering.observe(ev.SessionArrived(at_s=0.0, session_id=session))
    for _ in range(2):
        ordering.observe(
            ev.CallServed(
                at_s=0.0,
                session_id=session,
                call_id=call,
                prompt_tokens=1,
                cached_tokens=0,
                computed_tokens=1,
                made_tokens=1,
                queued_s=0.0,
                ok=True,
            )
        )
    ordering.observe(ev.SessionEnded(at_s=MEAN_LIFE_S, session_id=session, why=""))
    return ordering


ORDERINGS: dict[str, Callable[[], Ordering]] = {
    "fcfs": Fcfs,
    "session_fcfs": SessionFcfs,
    "mars-paper": lambda: ContinuationsFirst(OrderSettings(ageing_s=AGEING_S)),
    "mars": least_left,
}
PAPER = ORDERINGS["mars-paper"]()


def call(
    name: str,
    *,
    uncached_tokens: int = 1000,
    arrived_s: float = NOW_S - 100.0,
    queued_s: float = NOW_S - 1.0,
    is_decode: bool = False,
) -> CallView:
    return CallView(
        call_id=CallId(name),
        session_id=SessionId(name),
        queued_s=queued_s,
        session_arrived_s=arrived_s,
        prompt_tokens=uncached_tokens,
        uncached_tokens=uncached_tokens,
        is_decode=is_decode,
    )


def ranked(ordering: Ordering, *calls: CallView) -> list[str]:
    return [view.call_id for view in sorted(calls, key=lambda view: ordering.run_key(view, NOW_S))]


@st.composite
def fleets(draw: st.DrawFn) -> list[CallView]:
    """Calls of several sessions, some of them of one session, none from the future."""
    times = st.floats(0.0, NOW_S)
    arrivals = draw(st.lists(times, min_size=1, max_size=6, unique=True))
    fleet = []
    for number in range(draw(st.integers(1, 12))):
        session = draw(st.integers(0, len(arrivals) - 1))
        view = CallView(
            call_id=CallId(f"c{number}"),
            session_id=SessionId(f"s{session}"),
            queued_s=draw(st.floats(arrivals[session], NOW_S)),
            session_arrived_s=arrivals[session],
            prompt_tokens=draw(st.integers(1, 200_000)),
            uncached_tokens=draw(st.integers(0, 200_000)),
            is_decode=draw(st.booleans()),
            is_held=draw(st.booleans()),
        )
        fleet.append(view)
    return fleet


def test_mars_paper_runs_a_warm_continuation_before_a_new_prompt() -> None:
    """61k tokens of which 60k are cached are 1k to compute; a new prompt of 4k is more."""
    warm = call("warm", uncached_tokens=61_000 - 60_000, arrived_s=NOW_S - 10.0)
    new = call("new", uncached_tokens=4_000, arrived_s=NOW_S - 20.0)
    assert ranked(PAPER, new, warm) == ["warm", "new"]
    cold = call("cold", uncached_tokens=61_000, arrived_s=NOW_S - 10.0)
    assert ranked(PAPER, cold, new) == ["new", "cold"]


def test_mars_paper_runs_decodes_before_everything() -> None:
    decode = call("decode", is_decode=True, arrived_s=NOW_S - 1.0)
    aged = call("aged", queued_s=NOW_S - 99.0)
    assert ranked(PAPER, aged, call("fresh", uncached_tokens=1), decode)[0] == "decode"


def test_mars_paper_breaks_ties_by_session_then_by_call() -> None:
    old = call("old", arrived_s=100.0, uncached_tokens=2048, queued_s=NOW_S)
    young = call("young", arrived_s=200.0, uncached_tokens=1, queued_s=NOW_S - 9.0)
    assert ranked(PAPER, young, old) == ["old", "young"], "of one level: the older session"
    first = call("first", arrived_s=100.0, queued_s=NOW_S - 2.0)
    second = call("second", arrived_s=100.0, queued_s=NOW_S - 1.0)
    assert ranked(PAPER, second, first) == ["first", "second"]


@pytest.mark.parametrize("edge", OrderSettings().level_tokens)
def test_mars_paper_levels_end_where_the_settings_say(edge: int) -> None:
    within = call("within", uncached_tokens=edge, arrived_s=2.0)
    beyond = call("beyond", uncached_tokens=edge + 1, arrived_s=1.0)
    assert ranked(PAPER, beyond, within) == ["within", "beyond"]


@given(fleets())
def test_mars_paper_ageing_bound(fleet: list[CallView]) -> None:
    """Who has waited longer than ageing_s precedes everybody who has not, decodes aside."""
    waiting = [view for view in fleet if not view.is_decode]
    for aged, fresh in itertools.permutations(waiting, 2):
        if NOW_S - aged.queued_s > AGEING_S >= NOW_S - fresh.queued_s:
            assert PAPER.run_key(aged, NOW_S) < PAPER.run_key(fresh, NOW_S)


@given(fleets())
def test_mars_paper_oldest_session_is_first_once_it_has_aged(fleet: list[CallView]) -> None:
    oldest = min(fleet, key=lambda view: (view.session_arrived_s, view.queued_s))
    oldest.is_decode = False
    later_s = oldest.queued_s + AGEING_S + 1.0  # decodes hold their memory: they do not wait
    waiting = [view for view in fleet if not view.is_decode and view.queued_s <= later_s]
    assert min(waiting, key=lambda view: PAPER.run_key(view, later_s)) is oldest


@pytest.mark.parametrize("name", ["session_fcfs", "mars-paper"])
@given(fleet=fleets())
def test_the_oldest_session_is_no_victim_while_there_is_another(
    name: str, fleet: list[CallView]
) -> None:
    ordering = ORDERINGS[name]()
    victim = max(fleet, key=lambda view: ordering.victim_key(view, NOW_S))
    oldest_s = min(view.session_arrived_s for view in fleet)
    alone = all(view.session_arrived_s == oldest_s for view in fleet)
    assert alone or victim.session_arrived_s > oldest_s


@given(fleets())
def test_fcfs_takes_memory_from_whom_it_would_run_last(fleet: list[CallView]) -> None:
    latest_s = max(view.queued_s for view in fleet)
    victim = max(fleet, key=lambda view: Fcfs().victim_key(view, NOW_S))
    assert victim.queued_s == latest_s


def test_fcfs_and_session_fcfs_disagree_about_an_old_agent() -> None:
    old_agent = call("old agent", arrived_s=1.0, queued_s=NOW_S)
    new_agent = call("new agent", arrived_s=900.0, queued_s=900.0)
    assert ranked(Fcfs(), old_agent, new_agent) == ["new agent", "old agent"]
    assert ranked(SessionFcfs(), old_agent, new_agent) == ["old agent", "new agent"]


@pytest.mark.parametrize("name", ORDERINGS)
@given(fleet=fleets())
def test_keys_of_different_calls_compare(name: str, fleet: list[CallView]) -> None:
    """All keys of an ordering are of one length and hold no NaN, so they are in total order."""
    ordering = ORDERINGS[name]()
    for keys in (
        [ordering.run_key(view, NOW_S) for view in fleet],
        [ordering.victim_key(view, NOW_S) for view in fleet],
    ):
        assert len({len(key) for key in keys}) == 1
        assert not any(math.isnan(part) for key in keys for part in key)
        for one, other in itertools.combinations(keys, 2):
            assert (one < other) + (one == other) + (one > other) == 1


@pytest.mark.parametrize("name", ORDERINGS)
@given(fleet=fleets(), later_s=st.floats(0.0, 1000.0))
def test_a_key_that_is_not_live_stays(name: str, fleet: list[CallView], later_s: float) -> None:
    ordering = ORDERINGS[name]()
    if not ordering.live:
        before = [keys(ordering, view, NOW_S) for view in fleet]
        for view in fleet:
            view.uncached_tokens //= 2
        assert [keys(ordering, view, NOW_S + later_s) for view in fleet] == before
    else:
        waiting = call("waiting", uncached_tokens=100_000)
        stays, key = ordering.stays(waiting, NOW_S), ordering.run_key(waiting, NOW_S)
        assert ordering.run_key(waiting, min(NOW_S + later_s, stays.until_s)) == key
        assert ordering.run_key(waiting, stays.until_s + 0.1) < key


@pytest.mark.parametrize("name", ORDERINGS)
@given(tokens=st.lists(st.integers(0, 100_000), min_size=2, max_size=2))
def test_who_ranks_by_the_cache_says_so(name: str, tokens: list[int]) -> None:
    ordering = ORDERINGS[name]()
    one, other = (
        keys(ordering, call("waiting", uncached_tokens=uncached), NOW_S) for uncached in tokens
    )
    assert one == other or ordering.by_cache


def keys(ordering: Ordering, view: CallView, now_s: float) -> tuple[Key, Key]:
    return ordering.run_key(view, now_s), ordering.victim_key(view, now_s)
