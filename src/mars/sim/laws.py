"""How long one step of the engine takes, as data (mars.sim.profiles keeps it in a file).

    Kernel    a GPU and a model by measured kernel times
    Linear    five rates, as a short run on a real engine shows them

`cost()` makes of either what the simulator asks (mars.sim.cost), for one pair of factors of the
band that results are reported over. Seconds and tokens throughout.
"""

import math
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mars.core.errors import InputError
from mars.sim.cost import Cost, KernelCost, LinearCost

Seconds = Annotated[float, Meta(ge=0.0)]
Ratio = Annotated[float, Meta(gt=0.0)]

BANDWIDTH_BOUND_TOKENS: Final = 512
COMPUTE_BOUND_TOKENS: Final = 2048
"""Below the one a step waits for weights, above the other for arithmetic (see Kernel)."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kernel"):
    """A step as the sum of its kernels, after measurements of each.

        t        = c0 + tok(B + P) + [B > 0] (a0 + (a1 + h) B + b S + b_w w B) + sum_i pre(n_i, C_i)
        tok(T)   = moe(T) + dense(T) + logits
        pre(n,C) = (p0^3 + (n (x (C + n/2) + x_w min(w, C + n/2) + p1))^3)^(1/3)

    B decodes over S tokens of context, chunks of n_i prompt tokens after C_i computed ones, P all
    prompt tokens. tok is a table: linear between its points, proportional after the last. A cube
    sum is a soft maximum: short prompts cost a launch, long ones their arithmetic.

    A card that was not measured is scaled from one that was: reads by bandwidth, attention over
    prompts by compute, tok(T) by bandwidth up to 512 tokens, by compute from 2,048, mixed between.
    Launches (a0, a1, p0, p1) stay as they are.
    """

    step_s: Seconds
    """c0: the host, once a step."""
    call_s: Seconds
    """h: the host, once a decoding call."""
    tokens: tuple[Annotated[int, Meta(ge=1)], ...]
    """T of the table's points, rising."""
    moe_s: tuple[Seconds, ...]
    """Router and experts of all layers."""
    dense_s: tuple[Seconds, ...]
    """Projections and all else that has weights."""
    logits_s: Seconds
    decode_s: Seconds
    """a0: decode attention, once a step."""
    decode_call_s: Seconds
    """a1: decode attention, once a call."""
    context_token_s: Seconds
    """b: KV bytes of the layers that see the whole context / (bandwidth * efficiency)."""
    window_tokens: Annotated[int, Meta(ge=0)] = 0
    """w: what the other layers see of a context; 0: there are none."""
    window_token_s: Seconds = 0.0
    """b_w: as b, for those."""
    pair_s: Seconds
    """x: 4 * heads * head size * layers that see all / (FLOP/s * efficiency)."""
    window_pair_s: Seconds = 0.0
    """x_w: as x, for the others."""
    prefill_s: Seconds
    """p0: attention of a chunk, least."""
    prefill_token_s: Seconds
    """p1."""
    bandwidth_ratio: Ratio = 1.0
    """This card's memory bandwidth / the measured card's."""
    compute_ratio: Ratio = 1.0
    """This card's FLOP/s / the measured card's."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.moe_s) == len(self.dense_s) > 0:
            raise ValueError("`tokens`, `moe_s` and `dense_s` must be equally long, and not empty")
        if any(a >= b for a, b in pairwise(self.tokens)):
            raise ValueError("`tokens` must rise")
        if any(a > b for a, b in pairwise(self.table_s())):
            raise ValueError("`moe_s` + `dense_s` must not fall with `tokens`, after scaling")

    def table_s(self) -> list[float]:
        """tok(T) of this card at each of `tokens`."""
        span = math.log2(COMPUTE_BOUND_TOKENS / BANDWIDTH_BOUND_TOKENS)
        table = []
        for tokens, moe_s, dense_s in zip(self.tokens, self.moe_s, self.dense_s, strict=True):
            compute = min(1.0, max(0.0, math.log2(tokens / BANDWIDTH_BOUND_TOKENS) / span))
            slower = (1.0 - compute) / self.bandwidth_ratio + compute / self.compute_ratio
            table.append((moe_s + dense_s) * slower + self.logits_s / self.bandwidth_ratio)
        return table

    def cost(self, step_factor: float = 1.0, prefill_factor: float = 1.0) -> Cost:
        _check(step_factor, prefill_factor)
        return KernelCost(self, step_factor, prefill_factor)


class Linear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="linear"):
    """t = c0 + p P + d B + a S + q sum_i n_i (C_i + n_i / 2)      (symbols as in Kernel)"""

    step_s: Seconds
    """c0"""
    prefill_token_s: Seconds
    """p"""
    decode_call_s: Seconds
    """d"""
    context_token_s: Seconds = 0.0
    """a"""
    pair_s: Seconds = 0.0
    """q: one prompt token attending to one token."""

    def cost(self, step_factor: float = 1.0, prefill_factor: float = 1.0) -> Cost:
        _check(step_factor, prefill_factor)
        return LinearCost(self, step_factor, prefill_factor)


Law = Kernel | Linear


def _check(step_factor: float, prefill_factor: float) -> None:
    if not 0.0 < step_factor < math.inf:
        raise InputError(f"`step_factor` is {step_factor}; give a number above 0")
    if not 1.0 <= prefill_factor < math.inf:
        # below 1 a mixed step could cost less than its decodes alone
        raise InputError(f"`prefill_factor` is {prefill_factor}; give a number of at least 1")
