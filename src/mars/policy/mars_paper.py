"""MARS (arXiv 2604.26963), agent-centric scheduler: continuations first, warm KV where it pays."""

from bisect import bisect_left
from math import inf

from mars.core import events as ev
from mars.policy.base import FOR_EVER, CallView, EngineEvent, Hold, IdleView, Key, Stays, Steady
from mars.policy.settings import HoldSettings, OrderSettings


class ContinuationsFirst(Steady):
    """Few uncached tokens first; among equals the older session; nobody past the ageing bound.

    The preview ranks a waiting call by its whole prompt, so a warm return with 60k cached and 1k
    new tokens looks like 61k. Here it looks like 1k. Memory is taken from the youngest session
    first, so the oldest one always makes progress: no livelock.
    """

    live = True
    by_cache = True

    def __init__(self, settings: OrderSettings) -> None:
        self._levels = settings.level_tokens
        self._ageing_s = settings.ageing_s

    def run_key(self, call: CallView, now_s: float) -> Key:
        if call.is_decode:
            level = -1
        elif now_s > call.queued_s + self._ageing_s:
            level = 0
        else:
            level = 1 + bisect_left(self._levels, call.uncached_tokens)
        return (level, call.session_arrived_s, call.queued_s)

    def stays(self, call: CallView, now_s: float) -> Stays:
        if now_s > call.queued_s + self._ageing_s:
            return FOR_EVER
        level = bisect_left(self._levels, call.uncached_tokens)
        most_tokens = self._levels[level] if level < len(self._levels) else inf
        return Stays(call.queued_s + self._ageing_s, most_tokens)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (call.session_arrived_s, call.queued_s)


class SkiRental:
    """Keep KV across a tool while keeping costs less than computing it again.

    To keep C tokens of a cache of K tokens for t seconds costs the machine the share C/K of t; to
    let them go costs T_recompute(C). With t unknown, renting until the costs are equal and then
    giving up is at most twice as bad as knowing t (ski rental). The bound is

        tau* = T_recompute(C) * K / C

    A tool that is known to run, on average, beyond the bound is not waited for at all; the end of
    a tool, once reported, renews the hold: the session is on its way back.
    """

    def __init__(self, settings: HoldSettings) -> None:
        self._set = settings
        self._mean_s: dict[str, tuple[float, int]] = {}

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.ToolFinished) and event.exit_code is not None:
            mean_s, runs = self._mean_s.get(event.tool, (0.0, 0))
            runs = min(runs + 1, 50)  # an average that forgets
            self._mean_s[event.tool] = (mean_s + (event.run_s - mean_s) / runs, runs)

    def hold(self, idle: IdleView) -> Hold:
        if idle.context_tokens <= 0:
            return Hold(keep_s=0.0, why="nothing to keep")
        bound_s = idle.refill_s * idle.kv_capacity_tokens / idle.context_tokens
        bound_s = min(bound_s, self._set.most_s)
        if idle.stage == "tool ended":
            keep_s = min(bound_s, self._set.return_s)
            return Hold(keep_s=keep_s, value=bound_s, why="its tool has ended")
        left_s = bound_s - idle.idle_s
        mean_s, runs = self._mean_s.get(idle.tool, (0.0, 0))
        if runs >= self._set.tool_samples and mean_s > left_s:
            return Hold(keep_s=0.0, why=f"{idle.tool} takes {mean_s:.1f} s, worth {left_s:.1f} s")
        return Hold(keep_s=max(0.0, left_s), value=left_s, why=f"worth {bound_s:.1f} s of waiting")

    def takes_held_at_s(self, call: CallView) -> float:
        return call.queued_s + self._set.cold_wait_s
