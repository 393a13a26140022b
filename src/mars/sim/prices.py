"""Prices so low that no engine step, whatever is in it, takes less time than that costs.

So what a workload needs, at these prices, is GPU time that every schedule spends (weak duality).
Two things are assumed of a Cost: a prompt costs least in steps as full as can be, and b is the same
for any batch. One thing is left out: a preemption can turn a decoded token into a cheaper chunk.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mars.sim.cost import Cost
from mars.sim.needs import Need
from mars.sim.settings import EngineSettings


class Prices(NamedTuple):
    """step >= sum over its decodes (m + A own/K + b context) + sum over chunks n (p + q (C + n/2))

    A + m B <= a(B) for all batches B (decode_line), and the own KV of a batch is K tokens at most;
    p and q: what a prompt adds to a step, at the least (prefill rides on decodes that go anyway).
    Of all lines A + m B the one is taken that makes this workload dearest: decodes then cost
    as in batches of K / mean own KV tokens, on the lower convex hull of a(B).
    """

    decode_s: float
    own_token_s: float
    """A / K."""
    context_token_s: float
    prompt_token_s: float
    pair_s: float

    def prompt(self, tokens: float, pairs: float) -> float:
        return self.prompt_token_s * tokens + self.pair_s * pairs

    def of(self, need: Need) -> float:
        decodes_s = self.decode_s * need.decodes + self.own_token_s * need.own_tokens
        reads_s = self.context_token_s * need.context_tokens
        return decodes_s + reads_s + self.prompt(need.prompt_tokens, need.pairs)


def prices_of(needs: Sequence[Need], cost: Cost, engine: EngineSettings) -> Prices:
    capacity_tokens = engine.kv_blocks * engine.block_tokens
    most = min(_most_calls(needs, capacity_tokens), engine.most_calls, engine.step_tokens)
    decodes = sum(need.decodes for need in needs)
    own_tokens = sum(need.own_tokens for need in needs)
    alike = own_tokens / capacity_tokens  # decodes / those in a batch of the mean
    lines = [cost.decode_line(b) for b in range(1, most + 1)]
    slope, height = max(
        _supports([a for a, _ in lines]), key=lambda x: x[0] * decodes + x[1] * alike
    )
    prompt_s, pair_s = _prompt_prices(cost, most, engine.step_tokens)
    read_s = min(b for _, b in lines)
    return Prices(slope, height / capacity_tokens, read_s, prompt_s, min(pair_s, read_s))


def _most_calls(needs: Sequence[Need], capacity_tokens: int) -> int:
    """So many calls at most fit into the KV at once: one of each session, its smallest."""
    room_tokens, calls = float(capacity_tokens), 0
    for own_tokens in sorted(need.least_own_tokens for need in needs):
        room_tokens -= own_tokens
        if room_tokens < 0.0:
            break
        calls += 1
    return max(1, calls)


def _supports(steps_s: Sequence[float]) -> list[tuple[float, float]]:
    """Lines (m, A >= 0) with A + m B <= a(B): the lower hull's edges, and a constant."""
    hull: list[tuple[int, float]] = []
    for point in enumerate(steps_s, 1):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    edges = pairwise(hull)
    flat = (0.0, min(steps_s))
    through = (min(a / b for b, a in enumerate(steps_s, 1)), 0.0)
    lines = [(m, p[1] - m * p[0]) for p, q in edges if (m := _slope(p, q)) >= 0.0]
    return [flat, through, *((m, height) for m, height in lines if height >= 0.0)]


def _slope(p: tuple[int, float], q: tuple[int, float]) -> float:
    return (q[1] - p[1]) / (q[0] - p[0])


def _prompt_prices(cost: Cost, most_calls: int, step_tokens: int) -> tuple[float, float]:
    """(p, q): q as far contexts show it; p is least at the ends, or at the points of a law's table
    (2^k and 3 2^k): it is linear between them.
    """
    points = {n << k for n in (1, 3) for k in range(step_tokens.bit_length())}
    sizes = sorted({n for n in points if n <= step_tokens} | {step_tokens})
    near, far = (cost.step_s(0, 0, ((step_tokens, c),)) for c in (1 << 19, 1 << 20))
    pair_s = (far - near) / (step_tokens << 19)
    per_call_s = [cost.decode_line(b)[0] for b in range(most_calls + 1)]
    prompt_s = min(b - a for a, b in pairwise(per_call_s))  # a one-token chunk is a decode
    for decodes in (0, *(n for n in sizes if n < most_calls), most_calls):
        for tokens in (n - decodes for n in sizes if n > decodes + 1):
            for context_tokens in (0, 1 << 12, 1 << 15, 1 << 18):
                chunk_s = cost.step_s(decodes, 0, ((tokens, context_tokens),)) - per_call_s[decodes]
                pairs_s = pair_s * (context_tokens + tokens / 2.0)
                prompt_s = min(prompt_s, chunk_s / tokens - pairs_s)
    return max(0.0, prompt_s), pair_s
