import math
import statistics
from itertools import pairwise

import pytest

from mars.core.errors import InputError
from mars.workload.arrivals import poisson_s, sampled

MEAN, COUNT = 4.0, 20_000


def test_gaps_are_exponential() -> None:
    """4 standard errors; an exponential's mean is its deviation, and e^-1 of it lies beyond."""
    arrivals_s = poisson_s(COUNT, 1 / MEAN, seed=3)
    gaps_s = [after - before for before, after in pairwise([0.0, *arrivals_s])]
    error_s = MEAN / math.sqrt(COUNT)
    assert statistics.mean(gaps_s) == pytest.approx(MEAN, abs=4 * error_s)
    assert statistics.stdev(gaps_s) == pytest.approx(MEAN, abs=4 * math.sqrt(2) * error_s)
    beyond = sum(gap_s > MEAN for gap_s in gaps_s) / COUNT
    assert beyond == pytest.approx(math.exp(-1), abs=4 * math.sqrt(0.37 * 0.63 / COUNT))


def test_another_rate_stretches_the_same_arrivals_and_more_of_them_begin_alike() -> None:
    slow, fast = poisson_s(50, 0.1, seed=1), poisson_s(60, 0.4, seed=1)
    assert slow == pytest.approx([4 * at_s for at_s in fast[:50]], abs=1e-5)
    assert poisson_s(50, 0.1, seed=2) != slow


@pytest.mark.parametrize("rate_per_s", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_cannot_be_is_refused(rate_per_s: float) -> None:
    with pytest.raises(InputError, match="rate_per_s is"):
        poisson_s(1, rate_per_s, seed=1)


def test_a_count_below_one_and_an_empty_pool_are_refused() -> None:
    with pytest.raises(InputError, match="count is 0"):
        poisson_s(0, 1.0, seed=1)
    with pytest.raises(InputError, match="no session"):
        sampled([], 1, 1.0, seed=1)
