"""Ratios over seeds: the formulas by hand, the interval by simulation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.compare.stats import Estimate, estimate, geometric_mean, paired

ratios = st.lists(st.floats(0.01, 100), min_size=1, max_size=12)


def _estimate(values: list[float]) -> Estimate:
    found = estimate(values)
    assert found is not None
    return found


def test_twice_and_half_make_one() -> None:
    assert geometric_mean([2, 0.5]) == pytest.approx(1)
    assert geometric_mean([1, 2, 4]) == pytest.approx(2)
    assert geometric_mean([0, 3]) == 0


def test_pairs_are_of_one_seed() -> None:
    assert paired({1: 30, 2: 10, 9: 5}, {2: 5, 1: 10, 3: 7}) == [3, 2]
    assert paired({1: 30, 2: 10}, {1: 0, 2: 5}) == [2], "nothing is a multiple of 0"


def test_fewer_than_three_seeds_have_no_interval() -> None:
    assert estimate([]) is None
    two = _estimate([1.5, 6])
    assert (two.ratio, two.low, two.high) == pytest.approx((3, 1.5, 6))
    assert (two.pairs, two.resampled) == (2, False)
    assert _estimate([1, 2, 4]).resampled


def test_a_verdict_needs_the_whole_interval() -> None:
    assert _estimate([1.2, 1.3, 1.4, 1.2]).verdict == "won"
    assert _estimate([0.7, 0.8, 0.9, 0.8]).verdict == "lost"
    assert _estimate([0.8, 1.3, 1.1, 0.9]).verdict == "even"
    assert _estimate([1, 1, 1]).verdict == "even"
    assert _estimate([1 + 1e-12] * 4).verdict == "even", "that is rounding"


def test_the_same_ratios_have_the_same_interval() -> None:
    values = [1.1, 1.7, 0.9, 2.5, 1.3]
    assert estimate(values) == estimate(values)


@given(ratios)
def test_the_interval_holds_the_ratio_and_stays_among_the_ratios(values: list[float]) -> None:
    of = _estimate(values)
    slack = 1 + 1e-9
    assert min(values) / slack <= of.low <= of.ratio * slack
    assert of.ratio / slack <= of.high <= max(values) * slack


@given(ratios)
def test_the_other_way_round_is_the_inverse(values: list[float]) -> None:
    assert _estimate([1 / v for v in values]).ratio == pytest.approx(1 / _estimate(values).ratio)


@pytest.mark.parametrize(("seeds", "least_frac", "most_frac"), [(5, 0.76, 0.90), (20, 0.90, 0.97)])
def test_how_often_the_interval_holds_the_truth(
    seeds: int, least_frac: float, most_frac: float
) -> None:
    """The module says: of 5 seeds 5 times in 6, of 20 about 15 in 16. Measured on known truth."""
    chance, truth, trials = random.Random(7), 1.5, 400
    held = 0
    for _ in range(trials):
        of = _estimate([truth * math.exp(chance.gauss(0, 0.3)) for _ in range(seeds)])
        held += of.low <= truth <= of.high
    assert least_frac < held / trials < most_frac
