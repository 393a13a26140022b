"""MARS (arXiv 2604.26963), agent-centric scheduler: continuations first, warm KV where it pays."""

from bisect import bisect_left
from math import inf
from typing import Annotated

import msgspec
from msgspec import Meta

from mars.core import events as ev
from mars.policy.base import EngineEvent, Hold, IdleView, Key, Steady
from mars.policy.views import FOR_EVER, CallView, Stays


class OrderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level_tokens: tuple[int, ...] = (2048, 8192, 32768)
    """A call with at most level_tokens[i] uncached tokens is of level i (preview's levels)."""
    ageing_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """A call that came this long ago goes before all that came later than that; among those past
    the bound the older session goes first, so nobody is passed for ever (preview: 30 s)."""

    def __post_init__(self) -> None:
        if list(self.level_tokens) != sorted(set(self.level_tokens)):
            raise ValueError("`level_tokens` must rise")


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


class HoldSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    most_s: Annotated[float, Meta(gt=0.0)] = 60.0
    """No hold is longer than this, however cheap."""
    return_s: Annotated[float, Meta(gt=0.0)] = 2.0
    """After its tool has ended a session is expected back within this time."""
    cold_wait_s: Annotated[float, Meta(ge=0.0)] = 10.0
    """So long a call that would need held memory waits for it; then it may take it."""
    tool_samples: Annotated[int, Meta(ge=1, le=50)] = 5
    """A tool's mean run time is believed after so many runs."""


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
