"""When sessions come, and which of a pool: both seeded, and a longer list begins with the shorter.

Arrivals and choice draw from streams of their own: another rate changes no session.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count as numbers
from itertools import islice
from math import isfinite

import msgspec

from mars.core.errors import InputError
from mars.workload.trace import Recorded


def poisson_s(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Arrival k is (E_1 + ... + E_k) / rate, E exponential with mean 1; in whole microseconds."""
    check_load(count, rate_per_s)
    chance, at_s, arrivals_s = random.Random(f"{seed}/arrivals"), 0.0, []
    for _ in range(count):
        at_s += chance.expovariate(1.0) / rate_per_s
        arrivals_s.append(round(at_s, 6))
    return arrivals_s


def check_load(count: int, rate_per_s: float) -> None:
    if count < 1:
        raise InputError(f"count is {count}: ask for at least one session")
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise InputError(f"rate_per_s is {rate_per_s:g}: sessions a second are above 0 and finite")


def sampled(pool: Sequence[Recorded], count: int, rate_per_s: float, seed: int) -> list[Recorded]:
    """The pool in a seeded order, again in another one (with fresh ids) while more are asked for.

    They come as a Poisson process, whenever they came when they were recorded.
    """
    arrivals_s = poisson_s(count, rate_per_s, seed)
    if not pool:
        raise InputError("there is no session to sample from")
    chosen = islice(_rounds(pool, seed), count)
    return [
        msgspec.structs.replace(session, arrives_s=at_s)
        for session, at_s in zip(chosen, arrivals_s, strict=True)
    ]


def _rounds(pool: Sequence[Recorded], seed: int) -> Iterator[Recorded]:
    for again in numbers():
        for session in random.Random(f"{seed}/choice/{again}").sample(pool, len(pool)):
            suffix = f"~{again}" if again else ""
            yield msgspec.structs.replace(session, session_id=session.session_id + suffix)
