import math
import random
import statistics

import pytest

from mars.workload.mixture import (
    MIXTURE,
    LogNormal,
    Normal,
    Uniform,
    draw_tool,
    mean_run_s,
    scaled_tool,
)
from mars.workload.trace import Tool

COUNT = 40_000


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * len(values))]


def test_the_mixture_is_that_of_the_plan() -> None:
    """p50 0.19, p90 7.2, p99 187, mean 8.0 s.

    Of 40,000 draws a quantile's rank is known to 4 * sqrt(p * (1-p) / n): the stated value lies
    between the values at those ranks (and half a unit of its last digit). The mean's standard error
    is the standard deviation (about 40 s) / 200 = 0.2 s.
    """
    chance = random.Random(1)
    runs_s = [draw_tool(MIXTURE, chance, 4).run_s for _ in range(COUNT)]
    for part, stated_s, digit_s in ((0.5, 0.19, 0.01), (0.9, 7.2, 0.1), (0.99, 187.0, 1.0)):
        slack = 4 * math.sqrt(part * (1 - part) / COUNT)
        low_s, high_s = quantile(runs_s, part - slack), quantile(runs_s, part + slack)
        assert low_s - digit_s / 2 <= stated_s <= high_s + digit_s / 2
        assert high_s / low_s < 1.35  # the check is not met by anything
    assert statistics.stdev(runs_s) < 45
    assert statistics.mean(runs_s) == pytest.approx(8.0, abs=4 * 0.2)
    assert mean_run_s(MIXTURE) == pytest.approx(8.0, abs=0.05)


def test_a_lognormal_has_its_median_and_its_mean() -> None:
    chance, law = random.Random(2), LogNormal(10.0, 0.5)
    values = [law.draw(chance) for _ in range(COUNT)]
    assert statistics.median(values) == pytest.approx(10.0, rel=0.02)
    assert statistics.mean(values) == pytest.approx(law.mean, rel=0.02)


def test_a_normal_is_cut_below_and_a_uniform_keeps_its_ends() -> None:
    chance = random.Random(3)
    values = [Normal(2.0, 1.0, least=1.0).draw(chance) for _ in range(COUNT)]
    assert 1.0 <= min(values) < 1.01
    # E[X | X >= 1] = 2 + phi(1) / Phi(1) = 2 + 0.24197 / 0.84134; nothing heaps at the cut
    assert statistics.mean(values) == pytest.approx(2.2876, abs=0.02)
    even = [Uniform(3.0, 5.0).draw(chance) for _ in range(COUNT)]
    assert 3.0 <= min(even) < 3.01
    assert 4.99 < max(even) <= 5.0


def test_scaling_leaves_the_cores_and_keeps_whole_microseconds() -> None:
    tool = Tool(name="build", run_s=1.0, cpu_s=1 / 3, cores=3, memory_bytes=7)
    scaled = Tool(name="build", run_s=0.3, cpu_s=0.1, cores=3, memory_bytes=7)
    assert scaled_tool(tool, 0.3) == scaled
