"""How long one step of the engine takes.

A law (mars.sim.laws) is data; a Cost is a law made fast. Seconds and tokens throughout.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mars.sim.laws import Kernel, Linear


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


class KernelCost:
    """`prefill_factor` multiplies what the step's prompts would cost alone, so that a step never
    costs less than a part of it.
    """

    __slots__ = (
        "_attention_s", "_cube", "_dearer", "_factor", "_law", "_lines", "_pair_s", "_table_s",
        "_tok_s", "_window_pair_s",
    )  # fmt: skip

    def __init__(self, law: "Kernel", step_factor: float, prefill_factor: float) -> None:
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


class LinearCost:
    __slots__ = ("_call_s", "_context_s", "_pair_s", "_prompt_s", "_step_s")

    def __init__(self, law: "Linear", step_factor: float, prefill_factor: float) -> None:
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
