"""vLLM's scheduler without the arithmetic: who is in the next step, with how many tokens.

    schedule(now_s)   one step of vLLM 0.32 under our plugin: running calls first, the greatest
                      victim preempted when one of them cannot grow, then waiting calls in the
                      policy's order until one does not fit whole
    update(batch)     the step is over: who has ended leaves

Decodes are not walked through (mars.sim.decodes): only a step that is short of tokens or of memory
looks at each call (`_run_each`). mars.sim.strides takes many alike steps at once. tests/twin drives
this beside the real scheduler.

`lag` is 1 for asynchronous scheduling: a step is scheduled before the one before it is over.
"""

from collections.abc import Callable, Sequence
from math import inf

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.policy.base import CallView, EngineEvent, Policy
from mars.sim.accounts import Accounts
from mars.sim.call import Batch, Call
from mars.sim.kv import Chain
from mars.sim.pool import Pool
from mars.sim.running import Running
from mars.sim.settings import EngineSettings
from mars.sim.waiting import WaitingLine


class Batcher:
    host_blocks = 0
    """Of host memory behind the KV."""

    def __init__(
        self,
        settings: EngineSettings,
        pool: Pool,
        policy: Policy,
        rate: PrefillRate,
        emit: Callable[[ev.Event], None],
        *,
        keep_tokens: bool = False,
    ) -> None:
        """`keep_tokens`: for a twin."""
        self.pool, self._retention = pool, policy.retention
        self._most_calls, self._lag = settings.most_calls, settings.lag
        self._keep_tokens = keep_tokens
        self.waiting = WaitingLine(policy.ordering, pool)
        self.running = Running(policy.ordering, pool, settings.step_tokens)
        self._accounts = Accounts(
            pool=pool,
            policy=policy,
            rate=rate,
            waiting=self.waiting,
            running_tokens=self.running.all_kv_tokens,
            emit=emit,
        )
        self.holds = self._accounts.holds
        self._order = 0
        self.is_regular = True
        """Many steps of decodes may be taken at once."""

    @property
    def is_idle(self) -> bool:
        return not self.running.calls and not self.waiting.line

    @property
    def used_blocks(self) -> int:
        return self.pool.blocks - self.pool.free

    @property
    def admits(self) -> bool:
        """May a waiting call enter, memory allowing?"""
        return bool(self.waiting.line) and len(self.running.calls) < self._most_calls

    @property
    def head(self) -> Call:
        """Who enters next, when `admits`."""
        return self.waiting.line[0]

    @property
    def waiting_calls(self) -> int:
        return len(self.waiting)

    def next_load_s(self, now_s: float) -> float:
        """When KV next comes from host memory (mars.sim.host_batcher); inf: none is on its way."""
        del now_s
        return inf

    def add(self, view: CallView, chain: Chain, output_tokens: int) -> Call:
        """A call comes; its prompt is `view.prompt_tokens` long and will make `output_tokens`."""
        self._order += 1
        view.uncached_tokens = view.prompt_tokens
        call = Call(view, chain, self._order, output_tokens, view.prompt_tokens)
        self._accounts.came(call)
        self.waiting.add(call, view.queued_s)
        return call

    def hear(self, event: EngineEvent, now_s: float) -> None:
        """A fact of another process."""
        self._accounts.hear(event, now_s)

    def abort(self, call: Call, now_s: float) -> None:
        """Its client has gone."""
        if call.is_running:
            in_flight = bool(self._lag and call.last and call.starved != self.running.step)
            self._stop(call)
            call.made -= in_flight
            self.running.calls.remove(call)
            call.is_running = False
        else:
            self.waiting.remove(call)
        self._accounts.served(call, now_s, ok=False)

    # -- the step ---------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch:
        running = self.running
        if self.holds:
            self.holds.expire(now_s, self._accounts.is_open)
        self.note_changes()
        if self.waiting.line and self.admits:
            self.waiting.rank(now_s)
        running.sort(now_s)
        running.used_frac = self.used_blocks / self.pool.blocks
        batch = Batch(running.step + 1)
        left = self._run(batch, now_s)
        if left > 0 and not batch.preempted and self.admits:
            self._admit(batch, left, now_s)
        if running.decodes.count or batch.complete or batch.chunks:
            self.advance(batch)
        return batch

    def note_changes(self) -> None:
        """Evictions may have changed what waiting calls would find in the cache."""
        if self.pool.changed:
            if self.waiting.by_cache:
                for owner in dict.fromkeys(self.pool.changed):
                    self.waiting.recached(owner)
            self.pool.changed.clear()

    def _run(self, batch: Batch, now_s: float) -> int:
        """Give the running their tokens; returns how many the step has left."""
        plan, left = self.running.plan()
        if left < 0 or (need := self.need(batch.index, plan)) > self.pool.free:
            return self._run_each(batch, now_s)
        self.run(batch, plan, need)
        return left

    def need(self, step: int, plan: Sequence[tuple[Call, int]]) -> int:
        """Blocks that decodes and planned chunks take in this step."""
        need = self.running.decodes.need(step)
        for call, tokens in plan:
            need += self.pool.growth(call.computed, tokens)
        return need

    def run(self, batch: Batch, plan: Sequence[tuple[Call, int]], need: int) -> None:
        """Decodes and planned chunks get the blocks that they `need`, which are there."""
        if need:
            self.pool.take(need)
        for call, tokens in plan:
            self._prefill(batch, call, tokens)

    def take_decodes(self, first: int, steps: int) -> None:
        """The blocks that decodes need in so many steps, of which `first` is the first."""
        self.pool.take(self.running.decodes.need(first, steps))

    def _prefill(self, batch: Batch, call: Call, tokens: int) -> None:
        """`tokens` more of a prompt are computed in this step; their blocks have been taken."""
        computed = call.computed + tokens
        self.pool.grow(call.chain, computed, computed)
        self._put(batch, call, tokens)

    def _put(self, batch: Batch, call: Call, tokens: int) -> None:
        if tokens == 1:
            batch.decodes += 1
            batch.context_tokens += call.computed + 1
        else:
            batch.chunks.append((tokens, call.computed))
        call.computed += tokens
        if self._keep_tokens:
            batch.tokens[call.view.call_id] = tokens
        if call.computed == call.tokens:
            batch.complete.append(call)

    def _run_each(self, batch: Batch, now_s: float) -> int:
        """The loop of vLLM over the running: tokens or memory do not suffice for all of them."""
        pool, running = self.pool, self.running
        calls = running.calls
        left, place = running.step_tokens, 0
        given: dict[Call, int] = {}  # tokens, whose blocks are taken
        while place < len(calls) and left > 0:
            call = calls[place]
            tokens = 0 if call.is_leaving else 1
            if not call.last:
                tokens = min(running.chunk(call, call.tokens - call.computed), left)
            if tokens == 0:
                place += 1
                continue
            need = self._growth(call, tokens, batch.index)
            while need > pool.free and call.is_running:
                if self.holds.release_least(call.view.session_id, now_s):
                    continue
                victim = running.victim(now_s)
                at = calls.index(victim)
                del calls[at]
                place -= at < place
                tokens_back = given.pop(victim, 0)
                left += tokens_back
                self._accounts.preempted(victim, call, running.kv_tokens(victim), now_s)
                self._preempt(batch, victim, tokens_back, now_s)
            if not call.is_running:
                break
            pool.take(need)
            given[call] = tokens
            left -= tokens
            place += 1
        for call in [c for c in calls if not c.is_leaving and c not in given]:
            self._starve(batch, call)
        for call, tokens in given.items():
            if not call.last:
                self._prefill(batch, call, tokens)
        return left

    def _growth(self, call: Call, tokens: int, step: int) -> int:
        """Blocks that a running call takes for so many tokens more."""
        if call.is_decode and not self.running.decodes.needs(call, step):
            return 0
        return self.pool.growth(self.running.kv_tokens(call), tokens)

    def _starve(self, batch: Batch, call: Call) -> None:
        """No token in this step: with a decode everything comes a step later."""
        running = self.running
        call.starved = batch.index
        if call.last:
            running.decodes.leave(call, running.kv_tokens(call))
            call.joined += 1
            call.last += 1
            running.decodes.join(call, running.kv_tokens(call))
            batch.decodes -= 1
            batch.context_tokens -= running.kv_tokens(call) + 1

    def _admit(self, batch: Batch, left: int, now_s: float) -> None:
        while left > 0 and self.admits:
            tokens = self._enter(batch, self.head, left, now_s)
            if tokens is None:
                batch.is_full = True
                return
            left -= tokens

    def _enter(self, batch: Batch, call: Call, left: int, now_s: float) -> int | None:
        """A waiting call's first chunk of at most `left` tokens; None: there is no room for it."""
        bt = self.pool.block_tokens
        hit = self.pool.found(call.chain, (call.tokens - 1) // bt)
        tokens = min(self.running.chunk(call, call.tokens - hit * bt), left)
        if not self._make_room(call, hit, tokens, now_s):
            return None
        self.waiting.remove(call)
        self._accounts.takes_over(call.view.session_id, call.chain)
        self.pool.start(call.chain, hit, call.tokens, call.view.prompt_tokens)
        call.computed = hit * bt
        self._start(batch, call, tokens, now_s)
        return tokens

    def _make_room(self, call: Call, hit: int, tokens: int, now_s: float) -> bool:
        """Does a waiting call fit whole, `tokens` of it at first? Held memory goes if it may."""
        fits = self._fits(call, hit, tokens)
        if fits or not self.holds:
            return fits
        if now_s < self.held_opens_at_s(call, now_s):
            return False
        while not fits and self.holds.release_least(call.view.session_id, now_s):
            fits = self._fits(call, hit, tokens)
        return fits

    def held_opens_at_s(self, call: Call, now_s: float) -> float:
        """From when on a waiting call may take what is held (there is something), if it must."""
        return self.holds.opens_at_s(call.view, now_s, idle=not self.running.calls)

    def _fits(self, call: Call, hit: int, tokens: int) -> bool:
        return self.pool.fits(call.chain, hit, call.tokens, tokens)

    def _start(self, batch: Batch, call: Call, tokens: int, now_s: float) -> None:
        """A call that owns what is cached of it runs from this step on."""
        running, call.start_tokens = self.running, call.computed
        if call.started_s < 0.0:
            call.started_s, call.cached_tokens = now_s, call.computed
        call.is_running = True
        running.calls.append(call)
        running.is_sorted = False
        self._accounts.started(call, now_s)
        batch.started.append(call)
        self.pool.take(self.pool.growth(call.computed, tokens))
        self._prefill(batch, call, tokens)
        if call.computed < call.tokens:
            running.prefills.append(call)

    def advance(self, batch: Batch) -> None:
        """The step is taken: complete prompts become decodes, and who makes its last token in it
        is not scheduled again.
        """
        running, decodes = self.running, self.running.decodes
        if self._keep_tokens:
            for call in running.calls:
                if call.is_decode and call.starved != batch.index:
                    batch.tokens[call.view.call_id] = 1
        running.step = batch.index
        batch.decodes += decodes.count
        decodes.context_tokens += decodes.count
        batch.context_tokens += decodes.context_tokens
        for call in batch.complete:
            if call in running.prefills:
                running.prefills.remove(call)
            call.joined = running.step
            call.last = running.step + call.output_tokens - call.made - 1
            call.made += 1
            decodes.join(call, call.tokens)
            running.is_sorted = False
        self.end(batch)

    def end(self, batch: Batch) -> None:
        """Note who makes its last token in this step."""
        running = self.running
        for call in running.decodes.ended_by(running.step):
            running.decodes.leave(call, running.kv_tokens(call))
            call.is_leaving = True
            batch.ended.append(call)
        if len(batch.ended) > 1:
            batch.ended.sort(key=running.calls.index)

    # -- the step is over -------------------------------------------------------------------------

    def update(self, batch: Batch, now_s: float) -> None:
        for call in batch.ended:
            self._finish(call, now_s)
        if batch.ended:
            self.running.calls = [c for c in self.running.calls if c.is_running]

    def _finish(self, call: Call, now_s: float) -> None:
        if not call.is_running:
            if call in self.waiting:  # preempted while its last token was made
                self.waiting.remove(call)
                self._accounts.served(call, now_s, ok=True)
            return
        kv_tokens = self.running.kv_tokens(call)
        self._close(call, kv_tokens, kv_tokens)
        call.made = call.output_tokens
        call.spent_tokens += kv_tokens - call.start_tokens
        self._accounts.served(call, now_s, ok=True)
        if not self._accounts.hold(call, kv_tokens, now_s):
            self.pool.detach(call.chain)
        call.is_running = False

    def _close(self, call: Call, kv_tokens: int, hashed_tokens: int) -> None:
        """A call is about to leave: so much it owns, and of that so much is hashed."""
        self.pool.grow(call.chain, kv_tokens, hashed_tokens)

    def _preempt(self, batch: Batch, call: Call, tokens: int, now_s: float) -> None:
        """Memory of a running call goes; it waits again. `tokens`: of this step."""
        batch.preempted.append(call)
        self._stop(call, tokens)
        call.computed = 0
        call.is_running = call.is_leaving = False
        self.waiting.add(call, now_s)

    def _stop(self, call: Call, tokens: int = 0) -> None:
        """Free the memory of a running call, its hashed part warm."""
        running = self.running
        kv_tokens = running.kv_tokens(call)
        hashed_tokens = kv_tokens + tokens  # vLLM hashes a block when it hands it out
        if self._lag and call.last and call.starved != running.step:
            # its newest token is still being made, and what is not known cannot be hashed
            fresh = tokens or call.joined == running.step
            hashed_tokens = kv_tokens if fresh else kv_tokens - 1
        self._close(call, kv_tokens + tokens, hashed_tokens)
        self.pool.detach(call.chain)
        call.spent_tokens += max(0, kv_tokens - call.start_tokens)
        call.start_tokens = 0
        if call.last:
            if call.is_decode:
                running.decodes.leave(call, kv_tokens)
            call.made += kv_tokens - call.tokens
            call.tokens = kv_tokens + 1
            call.last = 0
        else:
            running.prefills.remove(call)

    def check(self) -> None:
        """Raise AssertionError when an invariant of docs/invariants.md does not hold."""
        running = self.running
        decodes = [c for c in running.calls if c.is_decode]
        kv_tokens = sum(map(running.kv_tokens, decodes))
        assert len(decodes) == running.decodes.count, "decodes leak"  # noqa: S101
        assert kv_tokens == running.decodes.context_tokens, "contexts leak"  # noqa: S101
        self.pool.check()
