"""Laws of the rule that places sessions on engines."""

from math import inf

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.placement import COLD, ROOM, EngineView, elsewhere, place, warmth

SLOW_START_S = 30.0


def engine(url: str = "a", **how: object) -> EngineView:
    plain = {
        "url": url,
        "state": "up",
        "up_since_s": -inf,
        "kv_frac": 0.5,
        "newcomer_frac": 0.01,
        "waiting": 0,
        "calls": 3,
    }
    return EngineView(**(plain | how))  # type: ignore[arg-type]


def placed(*engines: EngineView, now_s: float = 1000.0) -> str | None:
    found = place(engines, now_s, SLOW_START_S)
    return None if found is None else found.url


views = st.builds(
    engine,
    url=st.uuids().map(str),
    state=st.sampled_from(["up", "down", "draining"]),
    up_since_s=st.floats(900, 1000) | st.just(-inf),
    kv_frac=st.floats(0, 2) | st.none(),
    newcomer_frac=st.floats(0.001, 0.5),
    waiting=st.integers(0, 20),
    calls=st.integers(0, 200),
    is_shut=st.booleans(),
)
roomy = st.builds(
    engine,
    url=st.uuids().map(str),
    state=st.sampled_from(["up", "up", "down"]),
    kv_frac=st.floats(0, 1),
    newcomer_frac=st.floats(0.001, 0.2),
    waiting=st.sampled_from([0, 0, 1]),
)
"""Some of which have room."""


@given(st.lists(views))
def test_only_an_engine_that_is_up_and_one_whenever_there_is_one(engines: list[EngineView]) -> None:
    found = place(engines, 1000.0, SLOW_START_S)
    assert (found is not None) == any(it.state == "up" for it in engines)
    assert found is None or found.state == "up"


@given(st.lists(views, min_size=1), st.integers(0, 10))
def test_who_gets_fuller_is_not_chosen_for_it(engines: list[EngineView], more: int) -> None:
    """An engine that was not taken is not taken after it has got more to do."""
    found = place(engines, 1000.0, SLOW_START_S)
    others = [
        it
        if it is found
        else msgspec.structs.replace(it, calls=it.calls + more, waiting=it.waiting + more)
        for it in engines
    ]
    assert place(others, 1000.0, SLOW_START_S) == found


@given(st.lists(roomy | views))
def test_elsewhere_is_where_there_is_room_by_all_that_is_known(engines: list[EngineView]) -> None:
    def has_room(it: EngineView) -> bool:
        known = it.kv_frac is not None and it.newcomer_frac is not None
        free = it.state == "up" and not (it.waiting or it.is_shut)
        return known and free and (it.kv_frac or 0.0) + (it.newcomer_frac or 0.0) <= ROOM

    found = elsewhere(engines, 1000.0, SLOW_START_S)
    assert (found is not None) == any(map(has_room, engines))
    assert found is None or has_room(found)


@given(st.lists(roomy, unique_by=lambda it: it.url))
def test_one_at_a_time_is_brought_to_a_gate(engines: list[EngineView]) -> None:
    """Where it went nobody else is brought while it waits there."""
    brought: list[str] = []
    while (found := elsewhere(engines, 1000.0, SLOW_START_S)) is not None:
        brought.append(found.url)
        engines = [
            msgspec.structs.replace(it, waiting=it.waiting + (it is found)) for it in engines
        ]
    assert len(set(brought)) == len(brought)


@pytest.mark.parametrize(
    ("fuller", "emptier"),
    [
        ({"kv_frac": 0.6, "calls": 1}, {"kv_frac": 0.5, "calls": 9}),
        ({"waiting": 9}, {"waiting": 0}),
        ({"kv_frac": None, "calls": 5}, {"kv_frac": 0.9, "calls": 4}),
        ({"calls": 4}, {"calls": 3}),
        ({"state": "draining", "kv_frac": 0.0}, {"kv_frac": 0.9}),
        ({"state": "down", "kv_frac": 0.0}, {"kv_frac": 0.9}),
    ],
    ids=["KV before calls", "gates", "calls where KV is not known", "equals", "drains", "is down"],
)
def test_the_emptier(fuller: dict[str, object], emptier: dict[str, object]) -> None:
    assert placed(engine("full", **fuller), engine("empty", **emptier)) == "empty"
    assert placed(engine("empty", **emptier), engine("full", **fuller)) == "empty"


def test_of_twins_the_first() -> None:
    assert placed(engine("a"), engine("b")) == "a"
    assert placed() is None


def test_an_engine_that_has_just_come_up_gets_its_part_by_and_by() -> None:
    """Sessions that come one by one, beside an engine that is half full."""
    shares: list[int] = []
    for age_s in (0.0, 10.0, 20.0, 30.0):
        new, old = engine("new", up_since_s=1000.0 - age_s, kv_frac=0.0), engine("old")
        taken = 0
        while placed(new, old) == "new":
            taken += 1
            new = msgspec.structs.replace(new, kv_frac=0.01 * taken)
        shares.append(taken)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] / 5


@given(st.floats(0, 1e6))
def test_warmth_is_a_share(age_s: float) -> None:
    assert COLD <= warmth(engine(up_since_s=1e6 - age_s), 1e6, SLOW_START_S) <= 1.0
