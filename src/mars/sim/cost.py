"""How long one step of the engine takes.

    Cost      what the simulator asks
    Kernel    a GPU and a model by measured kernel times; `cost()` makes a Cost of it
    Linear    five rates, as a short run on a real engine shows them; `cost()` likewise

A law is data (mars.sim.profiles keeps it in a file); a Cost is a law made fast, for one pair of
factors of the band that results are reported over. Seconds and tokens throughout.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from mars.core.errors import InputError

Seconds = Annotated[float, Meta(ge=0.0)]
Ratio = Annotated[float, Meta(gt=0.0)]

BANDWIDTH_BOUND_TOKENS: Final = 512
COMPUTE_BOUND_TOKENS: Final = 2048
"""Below the one a step waits for weights, above the other for arithmetic (see Kernel)."""


class Cost(Protocol):
    def step_s(self, decodes: int, context_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of one engine step.

        `decodes` calls compute one token each over `context_tokens` in all (their own new tokens
        included), and each chunk (n, c) computes n prompt tokens after c tokens already in KV.
        """
        ...

    def decode_line(self, decodes: int) -> tuple[float, float]:
        """(a, b): a step of these decodes alone takes a + b * context_tokens seconds.

        step_s(B, S, ()) == a + b * S exactly.
        """
        ...


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
        return _KernelCost(self, step_factor, prefill_factor)


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
        return _LinearCost(self, step_factor, prefill_factor)


Law = Kernel | Linear


def _check(step_factor: float, prefill_factor: float) -> None:
    if not 0.0 < step_factor < math.inf:
        raise InputError(f"`step_factor` is {step_factor}; give a number above 0")
    if not 1.0 <= prefill_factor < math.inf:
        # below 1 a mixed step could cost less than its decodes alone
        raise InputError(f"`prefill_factor` is {prefill_factor}; give a number of at least 1")


class _KernelCost:
    """`prefill_factor` multiplies what the step's prompts would cost alone, so that a step never
    costs less than a part of it.
    """

    __slots__ = (
        "_attention_s", "_cube", "_dearer", "_factor", "_law", "_lines", "_pair_s", "_table_s",
        "_tok_s", "_window_pair_s",
    )  # fmt: skip

    def __init__(self, law: Kernel, step_factor: float, prefill_factor: float) -> None:
        self._law, self._factor = law, step_factor
        self._dearer = prefill_factor - 1.0
        self._table_s = [step_factor * s for s in law.table_s()]
        self._cube = (step_factor * law.prefill_s) ** 3
        self._attention_s = step_factor * law.prefill_token_s
        self._pair_s = step_factor * law.pair_s / law.compute_ratio
        self._window_pair_s = step_factor * law.window_pair_s / law.compute_ratio
        self._tok_s: dict[int, float] = {0: 0.0}
        self._lines: dict[int, tuple[float, float]] = {}

    def decode_line(self, decodes: int) -> tuple[float, float]:
        line = self._lines.get(decodes)
        if line is None:
            law = self._law
            read_s = law.context_token_s / law.bandwidth_ratio
            window_s = law.window_token_s * law.window_tokens / law.bandwidth_ratio
            a = law.step_s
            if decodes:
                a += law.decode_s + (law.decode_call_s + law.call_s + window_s) * decodes
            line = (self._factor * a + self._tok(decodes), self._factor * read_s)
            self._lines[decodes] = line
        return line

    def step_s(self, decodes: int, context_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        a, b = self._lines.get(decodes) or self.decode_line(decodes)
        if not chunks:
            return a + b * context_tokens
        pair_s, window_pair_s = self._pair_s, self._window_pair_s
        window_tokens = self._law.window_tokens
        prompt_tokens, attention_s = 0, 0.0
        for n, c in chunks:
            prompt_tokens += n
            seen = c + 0.5 * n
            x = pair_s * seen + self._attention_s
            if window_pair_s:
                x += window_pair_s * min(window_tokens, seen)
            x *= n
            attention_s += math.cbrt(self._cube + x * x * x)
        prompts_s = self._tok(decodes + prompt_tokens) - self._tok(decodes) + attention_s
        if self._dearer:
            prompts_s += self._dearer * (self._tok(prompt_tokens) + attention_s)
        return a + b * context_tokens + prompts_s

    def _tok(self, tokens: int) -> float:
        known = self._tok_s.get(tokens)
        if known is None:
            known = self._tok_s[tokens] = self._interpolate(tokens)
        return known

    def _interpolate(self, tokens: int) -> float:
        points, table = self._law.tokens, self._table_s
        i = bisect_left(points, tokens)
        if i == len(points):
            return table[-1] * tokens / points[-1]
        if i == 0 or points[i] == tokens:
            return table[i]
        share = (tokens - points[i - 1]) / (points[i] - points[i - 1])
        return table[i - 1] + (table[i] - table[i - 1]) * share


class _LinearCost:
    __slots__ = ("_call_s", "_context_s", "_pair_s", "_prompt_s", "_step_s")

    def __init__(self, law: Linear, step_factor: float, prefill_factor: float) -> None:
        self._step_s = step_factor * law.step_s
        self._call_s = step_factor * law.decode_call_s
        self._context_s = step_factor * law.context_token_s
        self._prompt_s = step_factor * prefill_factor * law.prefill_token_s
        self._pair_s = step_factor * prefill_factor * law.pair_s

    def decode_line(self, decodes: int) -> tuple[float, float]:
        return self._step_s + self._call_s * decodes, self._context_s

    def step_s(self, decodes: int, context_tokens: int, chunks: Sequence[tuple[int, int]]) -> float:
        took_s = self._step_s + self._call_s * decodes + self._context_s * context_tokens
        for n, c in chunks:
            took_s += n * (self._prompt_s + self._pair_s * (c + 0.5 * n))
        return took_s
