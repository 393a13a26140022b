"""Running decodes as numbers: how many, how much context, who needs a block when, who ends when."""

import heapq

from mars.sim.call import Call


class Decodes:
    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.count = 0
        self.context_tokens = 0
        """KV of all of them."""
        self._phase = [0] * (2 * block_tokens)
        """Decodes by the step (modulo) in which they need a block, twice over."""
        self._round = 0
        """Blocks that they take in `block_tokens` steps."""
        self._ends: list[tuple[int, int, Call]] = []

    def join(self, call: Call, kv_tokens: int) -> None:
        call.is_decode = True
        self.count += 1
        self.context_tokens += kv_tokens
        self._count_need(call, 1)
        heapq.heappush(self._ends, (call.last, call.order, call))

    def leave(self, call: Call, kv_tokens: int) -> None:
        call.is_decode = False
        self.count -= 1
        self.context_tokens -= kv_tokens
        self._count_need(call, -1)

    def ended_by(self, step: int) -> list[Call]:
        """Whose last step this is, or was; they are still among the decodes."""
        ended: list[Call] = []
        if not self._ends or self._ends[0][0] > step:
            return ended
        while self._ends and self._ends[0][0] <= step:
            last, _, call = heapq.heappop(self._ends)
            if call.is_decode and call.last == last and call not in ended[-1:]:
                ended.append(call)  # once, though it may have left and come back to the same end
        return ended

    def next_end(self) -> int:
        """The step in which the next of them ends (there must be one)."""
        ends = self._ends
        while not (ends[0][2].is_decode and ends[0][2].last == ends[0][0]):
            heapq.heappop(ends)
        return ends[0][0]

    def needs(self, call: Call, step: int) -> bool:
        """Does this one take a block in that step?"""
        return (call.joined - call.tokens + 1 - step) % self._block_tokens == 0

    def need(self, first: int, steps: int = 1) -> int:
        """Blocks that they take in so many steps, of which `first` is the first."""
        bt, phase = self._block_tokens, self._phase
        if steps == 1:
            return phase[first % bt]
        rounds, rest = divmod(steps, bt)
        first %= bt
        return rounds * self._round + sum(phase[first : first + rest])

    def affordable(self, first: int, steps: int, blocks: int) -> int:
        """The most steps, up to `steps`, that need no more than so many blocks."""
        if self.need(first, steps) <= blocks:
            return steps
        bt = self._block_tokens
        rounds = blocks // self._round
        left, most = blocks - rounds * self._round, rounds * bt
        while self._phase[(first + most) % bt] <= left:
            left -= self._phase[(first + most) % bt]
            most += 1
        return min(steps, most)

    def _count_need(self, call: Call, change: int) -> None:
        """A decode in step n has tokens + n - joined: its block is full every so many steps."""
        step = (call.joined - call.tokens + 1) % self._block_tokens
        self._phase[step] += change
        self._phase[step + self._block_tokens] += change
        self._round += change
