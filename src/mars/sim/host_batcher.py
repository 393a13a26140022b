"""The batcher for an engine with host memory behind its KV (mars.sim.host), as vLLM 0.32 loads:

    a waiting call that would be admitted, and of which the host has more than the prefix cache,
    takes those blocks, if it fits, and they do beside what prompts under way will still need; it
    waits beside the line until they have come, and then enters before all others

The link carries one load after the other at its bandwidth. What is simpler than in vLLM: what is
being loaded can be evicted from the host meanwhile, and two sessions that load the same shared
prompt at once both wait for a copy of their own.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.policy.base import Policy
from mars.sim.batcher import Batcher
from mars.sim.call import Batch, Call
from mars.sim.host import HostPool
from mars.sim.settings import EngineSettings


@dataclass(slots=True, eq=False)
class _Load:
    call: Call
    end_s: float
    is_wanted: bool = True
    """False: its call is gone, but its blocks are being written to."""


class HostBatcher(Batcher):
    def __init__(
        self,
        settings: EngineSettings,
        pool: HostPool,
        policy: Policy,
        rate: PrefillRate,
        emit: Callable[[ev.Event], None],
        *,
        keep_tokens: bool = False,
    ) -> None:
        super().__init__(settings, pool, policy, rate, emit, keep_tokens=keep_tokens)
        self._kv, self._host = pool, pool.host
        self.host_blocks = pool.host.blocks
        self._loads: deque[_Load] = deque()
        self._link_free_s = 0.0
        self._ready: deque[Call] = deque()
        """Whose blocks have come."""

    @property
    def is_idle(self) -> bool:
        return super().is_idle and not self._loads and not self._ready

    @property
    def admits(self) -> bool:
        waits = self.waiting.line or self._ready
        return bool(waits) and len(self.running.calls) < self._most_calls

    @property
    def head(self) -> Call:
        """A call whose blocks have come goes before the line."""
        return self._ready[0] if self._ready else self.waiting.head

    @property
    def waiting_calls(self) -> int:
        return super().waiting_calls + len(self._loaded)

    @property
    def _loaded(self) -> list[Call]:
        """Calls that own memory and do not run."""
        return [*self._ready, *(load.call for load in self._loads if load.is_wanted)]

    def next_load_s(self, now_s: float) -> float:
        """When the next load ends that has not ended yet."""
        return next((load.end_s for load in self._loads if load.end_s > now_s), inf)

    # -- loads ------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch:
        self._arrive(now_s)
        return super().schedule(now_s)

    def update(self, batch: Batch, now_s: float) -> None:
        self._arrive(now_s)
        super().update(batch, now_s)

    def _arrive(self, now_s: float) -> None:
        """Whose load is over may enter."""
        while self._loads and self._loads[0].end_s <= now_s:
            load = self._loads.popleft()
            call = load.call
            self._kv.hash(call.chain, call.computed // self._kv.block_tokens)
            if load.is_wanted:
                self._ready.append(call)
            else:
                self.pool.detach(call.chain)

    def _enter(self, batch: Batch, call: Call, left: int, now_s: float) -> int | None:
        """0: its blocks are on their way."""
        bt = self.pool.block_tokens
        if call.is_loaded:
            tokens = min(self.running.chunk(call, call.tokens - call.computed), left)
            if not self._make_room(call, call.computed // bt, tokens, now_s):
                return None
            self._ready.popleft()
            call.is_loaded = False
            self._start(batch, call, tokens, now_s)
            return tokens
        hit, at_hand = self._at_hand(call)
        if at_hand == hit:
            return super()._enter(batch, call, left, now_s)
        if not self._make_room(call, hit, 0, now_s):
            return None
        self._load(call, hit, at_hand, now_s)
        return 0

    def _at_hand(self, call: Call) -> tuple[int, int]:
        """Blocks of a waiting call that the GPU has, and that GPU and host have together."""
        most = (call.tokens - 1) // self.pool.block_tokens
        hit = self.pool.found(call.chain, most)
        return hit, min(self._host.reach(call.chain, hit), most)

    def _load(self, call: Call, hit: int, at_hand: int, now_s: float) -> None:
        pool, missing = self._kv, at_hand - hit
        self.waiting.remove(call)
        self._accounts.takes_over(call.view.session_id, call.chain)
        pool.attach(call.chain, hit)
        pool.take(missing)
        call.chain.own += missing
        call.computed = at_hand * pool.block_tokens
        call.loaded_tokens += missing * pool.block_tokens
        call.is_loaded = True
        self._host.touch(call.chain)
        self._link_free_s = max(self._link_free_s, now_s) + missing * self._host.block_s
        self._loads.append(_Load(call, self._link_free_s))
        self._accounts.returned(call, now_s)

    def _fits(self, call: Call, hit: int, tokens: int) -> bool:
        """`tokens` 0: it would own memory without running, so what is at hand of it must fit beside
        what others need, or nobody might ever go on.
        """
        pool = self._kv
        if call.is_loaded:
            return self._rest_need(call) <= pool.free
        if pool.takes(call.chain, hit, pool.count(call.tokens)) > pool.free:
            return False
        if tokens:
            return True
        _, at_hand = self._at_hand(call)
        return pool.takes(call.chain, hit, at_hand) <= pool.free - self._promised

    @property
    def _promised(self) -> int:
        """Blocks that prompts under way will still need."""
        return sum(map(self._rest_need, (*self.running.prefills, *self._loaded)))

    def _rest_need(self, call: Call) -> int:
        return self.pool.growth(call.computed, call.tokens - call.computed)

    def abort(self, call: Call, now_s: float) -> None:
        """vLLM, too, frees no block that is written to."""
        if not call.is_loaded:
            super().abort(call, now_s)
            return
        if call in self._ready:
            self._ready.remove(call)
            self.pool.detach(call.chain)
        for load in self._loads:
            if load.call is call:
                load.is_wanted = False
        self._accounts.served(call, now_s, ok=False)

    # -- stores -----------------------------------------------------------------------------------

    def advance(self, batch: Batch) -> None:
        super().advance(batch)
        for call in batch.complete:
            self._store(call, call.tokens)
        if batch.complete:
            batch.is_full = False  # who waits may have lost what it would have loaded

    def _store(self, call: Call, kv_tokens: int) -> None:
        """Of its prompt so much is in KV."""
        known_tokens = min(kv_tokens, call.view.prompt_tokens)
        self._host.store(call.chain, known_tokens // self.pool.block_tokens)

    def _stop(self, call: Call, tokens: int = 0) -> None:
        self._store(call, self.running.kv_tokens(call))
        super()._stop(call, tokens)

    def _finish(self, call: Call, now_s: float) -> None:
        if call.is_running:
            self._host.touch(call.chain)
        super()._finish(call, now_s)

    def check(self) -> None:
        super().check()
        self._host.check()
        for call in self._loaded:
            owned = call.chain.shared + call.chain.own
            assert owned * self.pool.block_tokens == call.computed, "a load leaks"  # noqa: S101
