"""What policies learn from: the newest values, sorted, and what they say is left."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.policy.learned import Sample

VALUES = st.lists(st.integers(0, 50).map(float), max_size=60)


def sample(*values: float, newest: int = 1000) -> Sample:
    made = Sample(newest)
    for value in values:
        made.add(value)
    return made


def test_values_are_sorted_and_summed() -> None:
    seen = sample(5.0, 1.0, 3.0)
    assert (len(seen), seen.sorted, seen.sums) == (3, [1.0, 3.0, 5.0], [0.0, 1.0, 4.0, 9.0])
    seen.add(2.0)
    assert seen.sums == [0.0, 1.0, 3.0, 6.0, 11.0]


def test_the_oldest_is_forgotten_not_the_least() -> None:
    seen = sample(9.0, 1.0, 5.0, newest=3)
    seen.add(2.0)
    assert seen.sorted == [1.0, 2.0, 5.0]
    assert seen.sums == [0.0, 1.0, 3.0, 8.0]


@pytest.mark.parametrize(
    ("done", "left"),
    [
        (0.0, (2 + 4 + 12 + 0) / 4),
        (1.0, (1 + 3 + 11 + 1) / 4),  # one more of 2
        (2.0, (2 + 10 + 2) / 3),  # one more of 4; the 2 is not more than 2
        (4.0, (8 + 4) / 2),
        (11.0, (1 + 11) / 2),
        (12.0, 12.0),  # beyond all: as much again
        (30.0, 30.0),
    ],
)
def test_what_is_left(done: float, left: float) -> None:
    assert sample(4.0, 12.0, 2.0).left(done) == pytest.approx(left)


def test_nothing_seen_leaves_as_much_as_was_done() -> None:
    assert (Sample().left(0.0), Sample().left(7.0)) == (0.0, 7.0)


def test_how_long_to_wait_by_hand() -> None:
    """Of 1, 1, 1 and 100: through 1 it is 3/4 B - 1, through 100 B - 25.75."""
    seen = sample(1.0, 100.0, 1.0, 1.0)
    assert [seen.wait_for(bound) for bound in (0.0, 1.3, 1.4, 98.9, 99.1, 1e9)] == [
        0.0, 0.0, 1.0, 1.0, 100.0, 100.0,
    ]  # fmt: skip
    assert Sample().wait_for(5.0) == 0.0


def worth(values: list[float], bound: float, tau: float) -> float:
    back = sum(value <= tau for value in values)
    return (back * bound - sum(min(value, tau) for value in values)) / len(values)


@given(VALUES.filter(bool), st.floats(0.0, 500.0), st.lists(st.floats(0.0, 60.0)))
def test_no_other_wait_is_worth_more(
    values: list[float], bound: float, others: list[float]
) -> None:
    best = sample(*values).wait_for(bound)
    most = worth(values, bound, best)
    assert all(worth(values, bound, tau) <= most + 1e-9 for tau in (0.0, *values, *others))


def test_the_best_wait_is_found_anew_when_a_twentieth_is_new() -> None:
    seen = sample(*[1.0] * 95)
    assert seen.wait_for(10.0) == 1.0
    for value in (4.0, 5.0, 6.0, 7.0, 8.0):
        seen.add(value)
        assert seen.wait_for(1e6) == 1.0, "as it was"
    seen.add(9.0)
    assert seen.wait_for(1e6) == 9.0


@given(VALUES, st.integers(1, 20))
def test_it_is_the_newest_sorted(values: list[float], newest: int) -> None:
    seen = Sample(newest)
    for number, value in enumerate(values, 1):
        seen.add(value)
        kept = sorted(values[max(0, number - newest) : number])
        assert seen.sorted == kept
        assert seen.sums == [sum(kept[:count]) for count in range(len(kept) + 1)]


@given(VALUES, st.integers(0, 60).map(float))
def test_left_is_the_mean_beyond_with_one_more_of_twice_done(
    values: list[float], done: float
) -> None:
    beyond = [value for value in values if value > done]
    assert sample(*values).left(done) == pytest.approx(fmean([*beyond, 2 * done]) - done)
