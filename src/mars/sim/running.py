"""The running calls: in what order, how much KV they have, how many prompt tokens each may have."""

from operator import attrgetter

from mars.policy.base import Key, Ordering
from mars.sim.call import Call
from mars.sim.decodes import Decodes
from mars.sim.pool import Pool

_key = attrgetter("key")


class Running:
    def __init__(self, ordering: Ordering, pool: Pool, step_tokens: int) -> None:
        self._ordering, self._pool = ordering, pool
        self.step_tokens = step_tokens
        self.calls: list[Call] = []
        self.prefills: list[Call] = []
        """Those whose prompt is not complete."""
        self.decodes = Decodes(pool.block_tokens)
        self.step = 0
        """Steps scheduled so far."""
        self.is_sorted = True
        self.used_frac = 0.0
        """Of the KV, at the start of the present step."""

    def sort(self, now_s: float) -> None:
        """By key, when it can matter (as the plugin does, and for its reasons)."""
        prefills, live = self.prefills, self._ordering.live
        if live:
            for call in prefills:
                key = self.key(call, now_s)
                if key != call.key:
                    call.key, self.is_sorted = key, False
        if self.is_sorted or not (prefills or self._is_short()):
            return
        if live:
            for call in self.calls:
                if call.last and not call.view.is_decode:
                    call.key = self.key(call, now_s)
        self.calls.sort(key=_key)
        prefills.sort(key=_key)
        self.is_sorted = True

    def _is_short(self) -> bool:
        step_blocks = self.step_tokens // self._pool.block_tokens + 2 * len(self.calls)
        return self._pool.free < self._pool.groups * step_blocks

    def key(self, call: Call, now_s: float) -> Key:
        view = call.view
        if call.last:
            view.is_decode = True
            view.kv_tokens = self.kv_tokens(call)
            view.uncached_tokens = 1
        else:
            view.is_decode = False
            view.kv_tokens = call.computed
            view.uncached_tokens = call.tokens - call.computed
        return (*self._ordering.run_key(view, now_s), call.order)

    def victim(self, now_s: float) -> Call:
        """Who gives up its memory first."""

        def key(call: Call) -> Key:
            call.view.kv_tokens = self.kv_tokens(call)
            return (*self._ordering.victim_key(call.view, now_s), call.order)

        return max(self.calls, key=key)

    def chunk(self, call: Call, tokens: int) -> int:
        """Of so many tokens of a prompt how many may be in one step."""
        most = self._ordering.chunk_tokens(call.view, self.used_frac)
        return tokens if most is None else min(tokens, most)

    def plan(self) -> tuple[list[tuple[Call, int]], int]:
        """(chunks of the prefills, tokens left to the step); left < 0: some call gets nothing."""
        left, count = self.step_tokens, self.decodes.count
        plan: list[tuple[Call, int]] = []
        rest = left - count
        for call in self.prefills:
            tokens = self.chunk(call, call.tokens - call.computed)
            plan.append((call, tokens))
            rest -= tokens
        if rest >= 0 or not plan:
            return plan, rest
        leaving = [place for place, call in enumerate(self.calls) if call.is_leaving]
        passed = 0  # decodes before the prefill
        for number, (call, most) in enumerate(plan):
            place = self.calls.index(call)
            before = place - number - sum(at < place for at in leaving)
            left -= before - passed
            passed = before
            if left <= 0:
                return plan, -1
            plan[number] = (call, min(most, left))
            left -= min(most, left)
        return plan, left - (count - passed)

    def kv_tokens(self, call: Call) -> int:
        """Its tokens in KV, those of a step under way included (vLLM: num_computed_tokens)."""
        if not call.last:
            return call.computed
        return call.tokens + min(self.step, call.last) - call.joined

    def all_kv_tokens(self) -> int:
        others = sum(self.kv_tokens(c) for c in self.calls if not c.is_decode)
        return self.decodes.context_tokens + others
