"""Cores that are shared: as a system that gives everybody, in small steps, an equal part."""

import random
from math import inf

import pytest

from mars.sim.cores import Burn, SharedCores


def rates(widths: list[int], cores: int) -> list[float]:
    """Pour it out: who has its width is full, the others rise together."""
    got, left, thirsty = [0.0] * len(widths), float(cores), set(range(len(widths)))
    while left > 1e-12 and thirsty:
        sip = min(left / len(thirsty), *(widths[one] - got[one] for one in thirsty))
        for one in thirsty:
            got[one] += sip
        left -= sip * len(thirsty)
        thirsty = {one for one in thirsty if got[one] < widths[one] - 1e-12}
    return got


@pytest.mark.parametrize("seed", range(40))
def test_everybody_burns_as_fast_as_an_equal_part_of_the_cores_lets_it(seed: int) -> None:
    chance = random.Random(seed)
    cores = chance.randint(1, 6)
    shared = SharedCores(cores)
    left_s: dict[Burn, float] = {}
    now_s = 0.0
    for _ in range(80):
        got = dict(zip(left_s, rates([burn.width for burn in left_s], cores), strict=True))
        next_s = min((now_s + left_s[burn] / got[burn] for burn in left_s), default=inf)
        assert shared.next_s == pytest.approx(next_s, abs=1e-9)
        until_s = min(next_s, now_s + chance.uniform(0.0, 2.0))
        for burn in left_s:
            left_s[burn] -= got[burn] * (until_s - now_s)
        now_s = until_s
        if now_s == next_s:
            assert left_s.pop(shared.take(shared.next_s)) == pytest.approx(0.0, abs=1e-9)
        elif left_s and chance.random() < 0.3:
            burn = chance.choice(list(left_s))
            assert shared.leave(burn, now_s) == pytest.approx(left_s.pop(burn), abs=1e-9)
        else:
            cpu_s = chance.uniform(0.0, 3.0)
            left_s[shared.begin(chance.randint(1, 4), cpu_s, now_s)] = cpu_s


def test_nobody_burns() -> None:
    shared = SharedCores(2)
    assert shared.next_s == inf
    burn = shared.begin(1, 3.0, 5.0)
    assert shared.next_s == 8.0
    assert shared.take(8.0) is burn
    assert shared.next_s == inf
