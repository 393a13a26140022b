"""Many engine steps at once: what makes the simulator fast, and must change nothing.

Steps go on while nobody comes, ends or is preempted, memory suffices, no waiting call could be
ranked otherwise, and none could enter. Chunks of prompts are added one by one, without another look
at the line; pure decodes, whose cost and memory have closed forms, all at once.
"""

import math
from math import inf

from mars.policy.base import Policy
from mars.sim.batcher import Batcher
from mars.sim.call import Batch


class Strides:
    def __init__(self, batcher: Batcher, policy: Policy) -> None:
        self._batcher, self._policy = batcher, policy

    def next_change_s(self, now_s: float) -> float:
        """The first time after which a load, a hold or a waiting call may be treated otherwise."""
        batcher = self._batcher
        at_s = batcher.next_load_s(now_s)
        if batcher.holds:
            at_s = min(at_s, batcher.holds.next_expiry_s(now_s))
        if not batcher.admits:
            return at_s
        if batcher.holds:
            opens_s = batcher.held_opens_at_s(batcher.head, now_s)
            at_s = min(at_s, opens_s if opens_s > now_s else inf)
        if self._policy.ordering.live:
            at_s = min(at_s, batcher.waiting.next_change_s())
        return at_s

    def next_try_s(self, now_s: float) -> float:
        """When to schedule again, though nothing runs, for calls that wait."""
        return max(self.next_change_s(now_s), math.nextafter(now_s, inf))

    def most_decodes(self, batch: Batch) -> int:
        """In how many steps the next of the running ends, when all of them are decodes; 0: they are
        not, or somebody else may enter.
        """
        batcher, running = self._batcher, self._batcher.running
        if (
            running.prefills
            or not batcher.is_regular
            or not running.decodes.count
            or not (batch.is_full or not batcher.admits)
        ):
            return 0
        return running.decodes.next_end() - running.step

    def decodes(self, batch: Batch, most: int, now_s: float) -> int:
        """Add steps of decodes alone, `most` of them (`most_decodes` allows it) if memory suffices
        and no waiting call's worth changes; returns how many.
        """
        batcher, running = self._batcher, self._batcher.running
        decodes, step = running.decodes, running.step
        blocks = self._calm_blocks(decodes.need(step + 1, most))
        steps = decodes.affordable(step + 1, most, blocks) if blocks >= 0 else 0
        if not steps:
            return 0
        batcher.take_decodes(step + 1, steps - 1)
        running.step += steps - 1
        decodes.context_tokens += decodes.count * (steps - 1)
        running.sort(now_s)  # as before the last of them
        batcher.take_decodes(step + steps, 1)
        running.step += 1
        decodes.context_tokens += decodes.count
        batch.index, batch.steps = running.step, batch.steps + steps
        batcher.end(batch)
        return steps

    def chunks(self, batch: Batch, now_s: float) -> bool:
        """Add one step in which prompts get a chunk each and every decode its token."""
        batcher, running = self._batcher, self._batcher.running
        running.sort(now_s)
        running.used_frac = batcher.used_blocks / batcher.pool.blocks
        plan, left = running.plan()
        if left < 0 or (left > 0 and batcher.admits and not batch.is_full):
            return False
        need = batcher.need(running.step + 1, plan)
        if need > self._calm_blocks(need):
            return False
        batch.index += 1
        batch.steps += 1
        batch.decodes = batch.context_tokens = 0
        batch.chunks.clear()
        batch.complete.clear()
        batcher.run(batch, plan, need)
        batcher.advance(batch)
        return True

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
        if not batcher.waiting.by_cache:
            return batcher.pool.free
        return batcher.pool.evictable(need, batcher.waiting.spare_blocks)


def within(p: float, q: float, horizon_s: float, most: int) -> int:
    """The most steps m <= `most` with D(m) = p m + q m (m - 1) / 2 < horizon_s, at least 0."""
    if horizon_s <= 0.0:
        return 0
    if p * most + q * most * (most - 1) / 2.0 < horizon_s:
        return most
    half = p - q / 2.0
    steps = 2.0 * horizon_s / (half + math.sqrt(half * half + 2.0 * q * horizon_s))
    m = max(0, math.ceil(steps) - 1)
    while p * (m + 1) + q * (m + 1) * m / 2.0 < horizon_s:
        m += 1
    while m and p * m + q * m * (m - 1) / 2.0 >= horizon_s:
        m -= 1
    return m
