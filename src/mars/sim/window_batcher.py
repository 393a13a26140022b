"""The batcher for models with two KV groups (mars.sim.windows): the window of each call slides.

A regular decode needs no look: every `block_tokens` steps it takes a block in either group and
gives back one of no content. At first what leaves its window may be hashed, and joins the LRU queue
in the order of steps and calls (`_slide`). When a chunk of a prompt leaves a window, more is freed
than taken: then the order of the calls matters, and each is looked at (`_look_at_each`). So it
is in every step without a lag, where a block is given back a step before the next is taken.
"""

from collections.abc import Callable, Sequence

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.policy.base import KeepNothing, Policy
from mars.sim.batcher import Batcher
from mars.sim.call import Batch, Call
from mars.sim.decodes import Decodes
from mars.sim.runs import Run
from mars.sim.settings import EngineSettings
from mars.sim.windows import WindowPool


class WindowDecodes(Decodes):
    """Those that are not regular are counted as if they gave nothing back."""

    def __init__(self, block_tokens: int) -> None:
        super().__init__(block_tokens)
        self.irregular: dict[Call, None] = {}

    def leave(self, call: Call, kv_tokens: int) -> None:
        super().leave(call, kv_tokens)
        if call in self.irregular:
            self.settle(call)

    def watch(self, call: Call) -> None:
        """It is not regular (any more)."""
        if call not in self.irregular:
            self.irregular[call] = None
            self._count_need(call, 1)

    def settle(self, call: Call) -> None:
        del self.irregular[call]
        self._count_need(call, -1)


class WindowBatcher(Batcher):
    def __init__(
        self,
        settings: EngineSettings,
        pool: WindowPool,
        policy: Policy,
        rate: PrefillRate,
        emit: Callable[[ev.Event], None],
        *,
        keep_tokens: bool = False,
    ) -> None:
        super().__init__(settings, pool, policy, rate, emit, keep_tokens=keep_tokens)
        self._kv = pool
        self._decodes = self.running.decodes = WindowDecodes(pool.block_tokens)
        self._window_tokens = pool.window_blocks * pool.block_tokens
        self._chunks: dict[Call, tuple[int, int]] = {}
        """Latest chunk of each prompt: (step, tokens)."""
        self._looks_until = 0
        """Up to this step each call is to be looked at."""
        self.is_regular = False
        self._pins = pool.may_pin and not isinstance(self._retention, KeepNothing)

    # -- a call grows ---------------------------------------------------------------------------

    def run(self, batch: Batch, plan: Sequence[tuple[Call, int]], need: int) -> None:
        del need
        if plan or batch.index <= self._looks_until or not self._lag:
            self._look_at_each(batch, plan)
        else:
            self.take_decodes(batch.index, 1)

    def _look_at_each(self, batch: Batch, plan: Sequence[tuple[Call, int]]) -> None:
        """As `_run_each`, where tokens and memory suffice."""
        pool, step, chunks = self.pool, batch.index, dict(plan)
        for call in self.running.calls:
            tokens = chunks[call] if not call.last else int(not call.is_leaving)
            if tokens and (need := self._growth(call, tokens, step)):
                pool.take(need)
        for call, tokens in plan:
            self._prefill(batch, call, tokens)

    def _prefill(self, batch: Batch, call: Call, tokens: int) -> None:
        self._chunks[call] = batch.index, tokens
        super()._prefill(batch, call, tokens)

    def _growth(self, call: Call, tokens: int, step: int) -> int:
        pool = self._kv
        if self._moves_within_blocks(call, step):
            return 0
        kv_tokens = self.running.kv_tokens(call)
        pool.slid(call.chain, self._skipped(call))
        out = kv_tokens - self._flying(call, step) - self._window_tokens + 1
        pool.let_go(pool.slide(call.chain, max(0, out) // pool.block_tokens))
        return pool.growth(kv_tokens, tokens)

    def _moves_within_blocks(self, call: Call, step: int) -> bool:
        """A decode that neither takes a block nor gives one back in this step: its last chunk and
        any step without a token are behind it.
        """
        return (
            call.is_decode
            and self._lag > 0
            and call.joined + 2 < step != call.starved + 1
            and not self._decodes.needs(call, step)
        )

    def _flying(self, call: Call, step: int) -> int:
        """Tokens of a call in the step before this one, which is not over yet."""
        if not self._lag:
            return 0
        chunk_step, tokens = self._chunks[call]
        if chunk_step == step - 1:
            return tokens
        return 1 if call.last and call.starved != step - 1 else 0

    def _skipped(self, call: Call) -> int:
        """Blocks that have left the window of a decode that nobody has looked at for a while."""
        if not (self._lag and call.last) or min(self.running.step, call.last) < call.joined + 2:
            return 0
        out = self.running.kv_tokens(call) - 1 - self._window_tokens
        return max(0, out) // self.pool.block_tokens

    def _close(self, call: Call, kv_tokens: int, hashed_tokens: int) -> None:
        self._kv.slid(call.chain, self._skipped(call))
        super()._close(call, kv_tokens, hashed_tokens)
        del self._chunks[call]

    def advance(self, batch: Batch) -> None:
        super().advance(batch)
        for call in batch.complete:
            if self._pins:
                self._kv.pin(call.chain)
            if call.is_decode:
                self._decodes.watch(call)
                self._looks_until = batch.index + 2
        self.is_regular = bool(self._lag) and batch.index >= self._looks_until

    def _starve(self, batch: Batch, call: Call) -> None:
        super()._starve(batch, call)
        if call.is_decode:
            self._decodes.watch(call)
            self._looks_until = max(self._looks_until, batch.index + 1)

    # -- decodes that nobody looks at -----------------------------------------------------------

    def take_decodes(self, first: int, steps: int) -> None:
        late: list[tuple[int, int, list[Run]]] = []
        need = self._decodes.need(first, steps)
        for call in list(self._decodes.irregular):
            late += self._slide(call, first, steps)
        self.pool.take(need)
        for _, _, runs in sorted(late, key=lambda left: left[:2]):
            self._kv.let_go(runs)

    def _slide(self, call: Call, first: int, steps: int) -> list[tuple[int, int, list[Run]]]:
        """What leaves its window in these steps; of that what is hashed: (step, place, runs)."""
        bt, late, settled = self.pool.block_tokens, [], False
        step = first + (call.joined - call.tokens + 1 - first) % bt
        while step < first + steps:
            out = call.tokens + step - 1 - call.joined - self._window_tokens
            if runs := self._kv.slide(call.chain, max(0, out) // bt):
                late.append((step, self.running.calls.index(call), runs))
            if out >= 0 and not self._kv.grip(call.chain).window:
                settled = True
            step += bt
        if settled:
            self._decodes.settle(call)
        return late
