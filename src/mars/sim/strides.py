"""Many alike engine steps at once: what makes the simulator fast, and must change nothing.

Steps are alike while nobody comes, ends or is preempted, memory suffices, and no waiting call could
be ranked otherwise. Two kinds come in long rows: pure decodes, whose cost and memory have closed
forms, and the chunks of long prompts among decodes.
"""

from math import inf

from mars.policy.base import Policy
from mars.sim.batcher import Batcher
from mars.sim.call import Batch, Call


class Strides:
    def __init__(self, batcher: Batcher, policy: Policy) -> None:
        self._batcher, self._policy = batcher, policy

    def next_change_s(self, now_s: float) -> float:
        """The first time after which a hold, or a waiting call, may be treated otherwise."""
        batcher = self._batcher
        at_s = batcher.holds.next_expiry_s(now_s) if batcher.holds else inf
        if not batcher.admits:
            return at_s
        if batcher.holds:
            takes_s = self._policy.retention.takes_held_at_s(batcher.waiting.head.view)
            at_s = min(at_s, takes_s if takes_s > now_s else inf)
        if self._policy.ordering.live:
            at_s = min(at_s, batcher.waiting.next_change_s())
        return at_s

    def most_decodes(self, batch: Batch) -> int:
        """How often a step can be repeated before one of its decodes ends; 0: it is none of
        decodes alone.
        """
        running = self._batcher.running
        if not _calm(batch) or batch.chunks or batch.decodes != running.decodes.count:
            return 0
        return running.decodes.next_end() - running.step

    def decodes(self, batch: Batch, most: int, now_s: float) -> int:
        """Repeat a step of decodes, `most` times (`most_decodes` allows it) if memory suffices and
        no waiting call's worth changes; returns how often it was.
        """
        batcher, running = self._batcher, self._batcher.running
        decodes, step = running.decodes, running.step
        blocks = self._calm_blocks(decodes.need(step + 1, most))
        steps = decodes.affordable(step + 1, most, blocks) if blocks >= 0 else 0
        if not steps:
            return 0
        last_need = decodes.need(step + steps)
        batcher.pool.take(decodes.need(step + 1, steps) - last_need)
        running.step += steps - 1
        decodes.context_tokens += decodes.count * (steps - 1)
        running.sort(now_s)  # as before the last of them
        batcher.pool.take(last_need)
        running.step += 1
        decodes.context_tokens += decodes.count
        batch.index, batch.steps = running.step, batch.steps + steps
        batcher.end(batch)
        return steps

    def chunks(self, batch: Batch, now_s: float) -> bool:
        """Repeat once a step in which long prompts got a chunk each and every decode its token."""
        batcher, running = self._batcher, self._batcher.running
        decodes, index = running.decodes, running.step + 1
        if not self._is_mid_prompt(batch, now_s):
            return False
        again = [(call, n) for call, (n, _) in zip(running.prefills, batch.chunks, strict=True)]
        decodes_need = decodes.need(index)
        need = decodes_need + sum(self._chunk_blocks(call, n) for call, n in again)
        if need > self._calm_blocks(need):
            return False
        running.used_frac = batcher.used_blocks / batcher.pool.blocks
        if any(running.chunk(call, call.tokens - call.computed) < n for call, n in again):
            return False
        batcher.pool.take(decodes_need)
        batch.chunks.clear()
        for call, tokens in again:
            batcher.prefill(batch, call, tokens)
        running.step = index
        decodes.context_tokens += decodes.count
        batch.index, batch.steps = index, batch.steps + 1
        batch.context_tokens = decodes.context_tokens
        return True

    def _is_mid_prompt(self, batch: Batch, now_s: float) -> bool:
        """Was the step of one chunk for each prompt and all decodes, and will the next one be?"""
        running, live = self._batcher.running, self._policy.ordering.live
        decodes, prefills = running.decodes, running.prefills
        return (
            _calm(batch)
            and len(batch.chunks) == len(prefills)
            and batch.decodes == decodes.count
            and (not decodes.count or decodes.next_end() > running.step + 1)
            and all(
                call.computed == c + n
                and call.computed + n < call.tokens
                and not (live and running.key(call, now_s) != call.key)
                for call, (n, c) in zip(prefills, batch.chunks, strict=True)
            )
        )

    def _chunk_blocks(self, call: Call, tokens: int) -> int:
        blocks = self._batcher.pool.count(call.computed + tokens)
        return blocks - call.chain.shared - call.chain.own

    def _calm_blocks(self, need: int) -> int:
        """Of so many blocks how many can be taken without changing what a waiting call is worth;
        negative when something has just changed it.
        """
        batcher = self._batcher
        if not (self._policy.ordering.live and batcher.admits):
            return batcher.pool.free
        batcher.note_changes()
        if batcher.waiting.is_stale:
            return -1
        return batcher.pool.evictable(need, batcher.waiting.spare_blocks)


def _calm(batch: Batch) -> bool:
    return not (batch.started or batch.ended or batch.preempted or batch.complete)
