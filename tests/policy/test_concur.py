"""CONCUR's window, by its three rules."""

import msgspec
import pytest
from tests.policy.fleet import Fleet

from mars.policy.concur import Concur
from mars.policy.settings import ConcurSettings


def fleet(**changes: object) -> Fleet:
    made = Fleet(Concur(msgspec.convert({"first": 4} | changes, ConcurSettings)))
    assert made.plane.window == 6, "an empty cache: + 2 at the first look"
    return made


def test_an_empty_cache_grows_the_window_by_two() -> None:
    it = fleet()
    it.tick(4.9)
    assert it.plane.window == 6, "no look yet"
    it.tick(0.1)
    assert it.plane.window == 8


def test_a_full_cache_without_hits_halves_it_down_to_one() -> None:
    it = fleet()
    it.arrive("a")
    it.call("a", 1000, cached_tokens=199)
    it.sample(5010)
    sizes = []
    for _ in range(4):
        it.tick(5.0)
        sizes.append(it.plane.window)
    assert sizes == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("used_tokens", "cached_tokens"),
    [(2000, 0), (5000, 0), (9000, 200), (9000, 1000)],
    ids=["not empty", "not full", "some hits", "all hits"],
)
def test_else_it_stays(used_tokens: int, cached_tokens: int) -> None:
    it = fleet()
    it.arrive("a")
    it.call("a", 1000, cached_tokens=cached_tokens)
    it.sample(used_tokens)
    it.tick(5.0)
    assert it.plane.window == 6


def test_hits_are_of_late_and_without_calls_nothing_is_known() -> None:
    it = fleet(hits_s=7.0)
    it.arrive("a")
    it.sample(9000)
    it.tick(5.0)
    assert it.plane.window == 6, "no call has ended"
    it.call("a", 1000)
    it.tick(5.0)
    assert it.plane.window == 3
    it.tick(5.0)
    assert it.plane.window == 3, "the call is too long ago"


def test_so_many_enter_in_order_and_who_is_in_stays() -> None:
    it = fleet()
    it.sample(3000)
    it.arrive(*"abcdefgh")
    assert it.phases == dict.fromkeys("abcdef", "acting") | dict.fromkeys("gh", "gated")
    it.call("a", 1000)
    it.sample(9000)
    it.tick(5.0)
    assert (it.plane.window, it.plane.active) == (3, 6)
    for name in "abc":
        it.end(name)
    assert it.phases["g"] == "gated", "3 of 3"
    it.end("d")
    assert it.phases["g"] == "acting"


def test_marks_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="`kv_low_frac` must not be above"):
        msgspec.convert({"kv_low_frac": 0.6}, ConcurSettings)
