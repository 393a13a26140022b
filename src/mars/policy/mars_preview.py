"""The scheduler of the published MARS preview, as it was released: the part inside the engine.

Its control loop is in `mars_preview_window`; it keeps no KV across tools. Not a recommendation:
`mars` is this with its faults mended.
"""

from bisect import bisect_left
from math import inf

from mars.policy.base import FOR_EVER, CallView, Key, Stays, Steady
from mars.policy.settings import PreviewOrderSettings


class PreviewLevels(Steady):
    """Multi-level feedback by the prefill that is left; a decode is of level 0.

        level(call)  of a running prefill: by the tokens left; of a waiting call: by its FULL prompt
        key          (max(0, level - a), arrival), with a = how often `ageing_s` has passed
        victim       the greatest (level, KV, arrival)

    A warm return with 60k cached and 1k new tokens so ranks as 61k. The preview looks at the first
    30 waiting calls only; here all are ranked, as a key cannot say its place in the line.
    """

    live = True
    by_cache = False

    def __init__(self, settings: PreviewOrderSettings) -> None:
        self._set = settings

    def run_key(self, call: CallView, now_s: float) -> Key:
        level = self._level(call)
        return (level - self._risen(call, level, now_s), call.queued_s)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        level = self._level(call)
        return (level - self._risen(call, level, now_s), call.kv_tokens, call.queued_s)

    def stays(self, call: CallView, now_s: float) -> Stays:
        level = self._level(call)
        risen = self._risen(call, level, now_s)
        return FOR_EVER if risen == level else Stays(self._rises_s(call, risen), inf)

    def chunk_tokens(self, call: CallView, kv_used_frac: float) -> int | None:
        if call.is_decode:
            return None
        quantum_tokens = self._set.quantum_tokens[self._level(call)]
        return quantum_tokens // 2 if kv_used_frac >= self._set.kv_short_frac else quantum_tokens

    def _level(self, call: CallView) -> int:
        if call.is_decode:
            return 0
        is_waiting = call.kv_tokens == 0  # a running one has been given tokens
        tokens = call.prompt_tokens if is_waiting else call.uncached_tokens
        return bisect_left(self._set.level_tokens, tokens)

    def _risen(self, call: CallView, level: int, now_s: float) -> int:
        """Levels that it has risen by waiting."""
        risen = 0
        while risen < level and now_s > self._rises_s(call, risen):
            risen += 1
        return risen

    def _rises_s(self, call: CallView, risen: int) -> float:
        """Until when it has risen so often and no more."""
        return call.queued_s + (risen + 1) * self._set.ageing_s
