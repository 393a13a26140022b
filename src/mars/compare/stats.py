"""A figure of a policy as a multiple of the reference's, over seeds.

    x_s, y_s   the figure (mean_s, p95_s, ...) of the policy and of the reference, in one cell, with
               the same seed s: the same sessions at the same times, so chance falls out of
    r_s        x_s / y_s
    ratio      (r_1 * ... * r_n)^(1/n), the geometric mean: 2x slower and 2x faster make 1x
    low, high  percentile bootstrap (Efron, Ann. Statist. 7, 1979): n of the r_s are drawn with
               replacement, 2,000 times; 95 % of the geometric means lie between low and high

A percentile interval of few seeds is too narrow: of 3 it holds the truth about 3 times in 4, of 5
about 5 times in 6, of 20 about 15 times in 16 (tests/compare/test_stats.py measures it). Fewer than
3 say nothing of chance: low and high are then the least and the largest ratio, and `resampled` is
false.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Final, Literal

import msgspec

RESAMPLES: Final = 2000
FEWEST_SEEDS: Final = 3
_OUTSIDE: Final = RESAMPLES // 40
"""2.5 % of the resamples lie at or below `low`, as many at or above `high`."""
_SEED: Final = 1
ROUNDING: Final = 1e-9
"""Ratios that differ by less are equal: times are sums of thousands of steps."""

Verdict = Literal["won", "even", "lost"]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Above 1: the policy's figure is the larger one."""

    ratio: float
    low: float
    high: float
    pairs: int
    resampled: bool

    @property
    def verdict(self) -> Verdict:
        """For the reference, of a figure that should be small: even when 1 is in the interval."""
        if self.low > 1 + ROUNDING:
            return "won"
        return "lost" if self.high < 1 - ROUNDING else "even"


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log x)); 0 when an x is 0."""
    return math.exp(_mean_log(values))


def paired(of: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """r_s of the seeds that both have; a seed whose reference is 0 has no ratio."""
    return [of[s] / reference[s] for s in sorted(of.keys() & reference.keys()) if reference[s]]


def estimate(ratios: Sequence[float]) -> Estimate | None:
    """None of no ratio at all."""
    if not ratios:
        return None
    count, resampled = len(ratios), len(ratios) >= FEWEST_SEEDS
    low, high = _interval(ratios) if resampled else (min(ratios), max(ratios))
    ratio = geometric_mean(ratios)
    return Estimate(ratio=ratio, low=low, high=high, pairs=count, resampled=resampled)


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    drawn = _resamples(len(ratios)).items()
    means = sorted((geometric_mean([ratios[i] for i in picks]), times) for picks, times in drawn)
    spread = [mean for mean, times in means for _ in range(times)]
    return spread[_OUTSIDE - 1], spread[-_OUTSIDE]


@cache
def _resamples(count: int) -> Counter[tuple[int, ...]]:
    """Which of `count` ratios each resample drew; few seeds draw the same ones again and again."""
    chance = random.Random(_SEED)
    return Counter(tuple(sorted(chance.choices(range(count), k=count))) for _ in range(RESAMPLES))


def _mean_log(values: Sequence[float]) -> float:
    return fmean(math.log(value) if value else -math.inf for value in values)
